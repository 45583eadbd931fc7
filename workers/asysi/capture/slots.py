"""Plans the accelerator memory for capture: slots, each for the kept rows of one call. Pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from asysi.bus.packet import Quantization
from asysi.contract.quantity import format_bytes

BESIDE_BYTES = 4
"""Bytes of a row beside its elements: the scale of fp8, or the number of values out of range of int8."""
STEPS_AHEAD = 8
"""Maximum number of steps by which the model's thread is ahead of the device; more slots are of no use."""


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """The slots of one device."""

    slots: int
    slot_bytes: int
    calls: int
    """Calls of hooked modules in a step."""
    rows: int
    """Rows of the largest step."""
    budget: int | None
    """Maximum bytes for slots beyond one step; None means no limit."""

    @property
    def bytes(self) -> int:
        """Device memory of all slots."""
        return self.slots * self.slot_bytes

    def __str__(self) -> str:
        steps = f"{self.slots / max(1, self.calls):.3g} × {self.calls} calls a step"
        arithmetic = f"{steps} = {self.slots} slots × {format_bytes(self.slot_bytes)} ({self.rows} rows)"
        if self.budget is None:
            return f"{arithmetic} = {format_bytes(self.bytes)}"
        within = "within" if self.bytes <= self.budget else "which a step needs, beyond"
        size = format_bytes(self.budget)
        return f"{arithmetic} = {format_bytes(self.bytes)}, {within} spec.capture.size = {size}"

    def smaller(self) -> "SlotPlan | None":
        """Return the plan to try if the device lacks memory for this one; None if there is none."""
        return replace(self, slots=max(self.calls, self.slots // 2)) if self.slots > self.calls else None


def slot_row_bytes(width: int, itemsize: int, quantization: Quantization) -> int:
    """Return the bytes of a slot that a row of activations needs.

    Under int8 by channel rows leave the device unconverted until their ranges are frozen: that is the larger
    form.

    Args:
        width: elements of a row.
        itemsize: bytes of an element as the model computes it.
        quantization: of the stream.
    """
    match quantization:
        case Quantization.BF16:
            return 2 * width
        case Quantization.FP8:
            return width + BESIDE_BYTES
        case Quantization.INT8_CHANNEL:
            return max(itemsize * width, width + BESIDE_BYTES)
        case _:
            return itemsize * width


def plan_slots(calls: Sequence[tuple[int, int]], rows: int, budget: int | None = None) -> SlotPlan:
    """Return the slots for the hook points of a device.

    Args:
        calls: for each hook point, its calls per step and the bytes of a row as transferred.
        rows: rows of the largest step.
        budget: maximum bytes for slots beyond one step, the size of the capture ring: rows in flight to the
            ring never need more than the ring holds. One step always gets its slots.
    """
    in_all = sum(count for count, _ in calls)
    slot_bytes = max(1, rows) * max((row_bytes for _, row_bytes in calls), default=1)
    slot_bytes += -slot_bytes % BESIDE_BYTES  # what lies beside the elements ends with the slot
    slots = STEPS_AHEAD * in_all
    if budget is not None:
        slots = max(in_all, min(slots, budget // slot_bytes))
    return SlotPlan(slots, slot_bytes, in_all, rows, budget)
