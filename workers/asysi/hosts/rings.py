"""Calculates the size of the rings and checks that it is sufficient for an experiment. Pure arithmetic."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from asysi.bus.packet import ROW_DTYPE, Kind, account_name, kinds_named, rows_that_fit
from asysi.bus.plan import BUS_CHUNK, CAPTURE_CHUNK, PINS, StreamPlan
from asysi.bus.quantization import WIRE
from asysi.capture.slots import SlotPlan, plan_slots, slot_row_bytes
from asysi.contract.quantity import format_bytes, parse_bytes
from asysi.contract.runtime import BUS_RING, CAPTURE_RING
from asysi.contract.spec import Spec
from asysi.contract.workloads import name_of
from asysi.model.points import HookPoint

_SCORE_BYTES = 8  # of a gradient
_SCALE_BYTES = 4  # fp8 has one scale per row, int8 mean and scale of each channel in each packet
_ACCOUNTS = 256


def plan_rings(spec: Spec, points: int, parameters: int = 0) -> tuple[StreamPlan, StreamPlan]:
    """Return the capture ring and the bus of an experiment with so many hook points and parameters."""
    readers = tuple(
        name for name, wanted in (("archiver", spec.archive.enabled), ("sae", spec.sae is not None)) if wanted
    )
    accounts = max(_ACCOUNTS, points * len(spec.capture.kinds) + parameters)
    capture_chunks = parse_bytes(spec.capture.size) // CAPTURE_CHUNK
    bus_chunks = parse_bytes(spec.bus.size) // spec.bus.shards // BUS_CHUNK
    return (
        StreamPlan(CAPTURE_RING, 1, capture_chunks, CAPTURE_CHUNK, ("hook",), accounts, "drop_new"),
        StreamPlan(BUS_RING, spec.bus.shards, bus_chunks, BUS_CHUNK, readers, accounts, "overwrite"),
    )


def captured(spec: Spec, points: Sequence[HookPoint]) -> list[HookPoint]:
    """Return what is captured at the hook points: activations, and gradients in float32."""
    found: list[HookPoint] = []
    for kind in kinds_named(spec.capture.kinds):
        if kind is Kind.ACTIVATION:
            found += points
        elif kind is Kind.GRADIENT:
            found += [
                replace(point, path=account_name(point.path, kind), dtype="float32") for point in points
            ]
    return found


def capture_problems(
    spec: Spec, plan: StreamPlan, points: Sequence[HookPoint], batch: int, length: int, *, parameters: int = 0
) -> list[str]:
    """Return why the capture ring cannot hold a step of batch × length tokens; empty if it can."""
    rows = batch * length
    needed = 0
    terms: list[str] = []
    calls: Counter[tuple[int, int]] = Counter()
    for point in captured(spec, points):
        calls[point.width, point.itemsize] += max(1, point.calls)  # 0: not reached by the trial
    what = "outputs and gradients" if len(spec.capture.kinds) > 1 else "outputs"
    for (width, itemsize), count in calls.items():
        fitting = rows_that_fit(plan.chunk_bytes, width * itemsize)
        if not fitting:
            return [_row_too_wide("capture ring", width * itemsize, plan.chunk_bytes)]
        needed += count * -(-rows // fitting)
        terms.append(
            f"{count} {what} × {-(-rows // fitting)} chunks ({rows} rows of {width} × {itemsize} B"
            f" + {ROW_DTYPE.itemsize} B, {fitting} to a chunk)"
        )
    if parameters:
        needed += parameters
        terms.append(f"{parameters} parameters × 1 chunk")
    if needed <= plan.depth:
        return []
    enough = format_bytes(needed * plan.chunk_bytes)
    return [
        f"spec.capture.size: {spec.capture.size} is too small for a step: it has {plan.chunks} chunks of"
        f" {format_bytes(plan.chunk_bytes)};"
        f" a step of {batch} × {length} tokens needs {' + '.join(terms)} = {needed}."
        f" Raise capture.size to {enough}, or lower workload.{name_of(spec)}.batchSize or"
        " data.tokens.contextLength"
    ]


def plan_device_slots(spec: Spec, points: Sequence[HookPoint], batch: int, length: int) -> SlotPlan | None:
    """Return what capture takes of a GPU's memory for steps of batch × length tokens; None without one."""
    if not spec.resources.host.gpus:
        return None
    how = WIRE[spec.capture.quantization]
    calls = [(max(1, point.calls), slot_row_bytes(point.width, point.itemsize, how)) for point in points]
    return plan_slots(calls, batch * length, parse_bytes(spec.capture.size))


def bus_problems(spec: Spec, plan: StreamPlan, points: Sequence[HookPoint]) -> list[str]:
    """Return why the bus is too small for its geometry or for a row; empty if it is large enough."""
    widest = max((point.width * point.itemsize for point in captured(spec, points)), default=0)
    if not rows_that_fit(plan.chunk_bytes, widest, _SCORE_BYTES):
        return [_row_too_wide("bus", widest, plan.chunk_bytes)]
    channels = max((point.width for point in points), default=0)
    table = 2 * _SCALE_BYTES * channels
    if spec.capture.quantization == "int8" and not rows_that_fit(plan.chunk_bytes, channels, 0, table):
        return [
            f"spec.capture.quantization: under int8 a row of {channels} channels takes {channels} + {table}"
            f" bytes (mean and scale of each), a chunk of the bus has {format_bytes(plan.chunk_bytes)}:"
            " take fp8 or bf16"
        ]
    if plan.depth >= 1:
        return []
    readers, size, least = len(plan.readers), format_bytes(plan.chunk_bytes), format_bytes(plan.smallest)
    return [
        f"spec.bus.size: {spec.bus.size} is too small: {plan.shards} shards × {readers * PINS + 2} chunks"
        f" ({readers} readers × {PINS} + 2) of {size} = {least}. Raise bus.size, or lower bus.shards"
    ]


def _row_too_wide(ring: str, row_bytes: int, chunk_bytes: int) -> str:
    return (
        f"spec.capture.hookPoints: a row of {row_bytes} bytes does not fit a chunk of the {ring}, which has"
        f" {format_bytes(chunk_bytes)}: choose narrower hook points"
    )
