"""Measures the cost of capture for a model on a GPU: one command, for a machine with torch and g++, offline.

    python benchmarks/gpu/measure.py --out DIR [--stages values,hosts,…] [--small] [--dry-run]

Prints a table and writes gpu.json and gpu.md. All contenders run interleaved in one process. Without a CUDA
device it prints a message and exits with code 2. With --dry-run it runs a small version on the CPU, to test
the script itself; the figures are then meaningless.
"""

import argparse
import ctypes
import json
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

import ours
import trainer
import whole
from lane import LAYOUTS, Lane, Pool, build

import model as models

Hooked = Callable[[int], None]
BATCH, LENGTH, LAYERS, STEPS, ROUNDS = 16, 512, 16, 12, 3
DEVICE = "cuda"
STAGES = ("ceilings", "values", "hosts", "sae", "experiment", "layouts")
ON_A_CPU = ("values", "hosts", "sae", "experiment")
CONVERSIONS = ("bf16", "fp8", "int8")
BOUNDS = {
    "bf16": (2**-8, 0.0),
    "fp8": (2**-4, 2**-10),
    "int8": (0.0, 0.5),
    "int8_channel": (0.0, 0.5),
}
"""Error bounds of a conversion: relative to the element, and relative to the scale of its row or channel."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", default="", help=f"of {','.join(STAGES)}, separated by commas")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU: does the script itself run")
    parser.add_argument(
        "--small", action="store_true", help="a small model and few steps: does it run at all"
    )
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        print("no CUDA device: nothing is measured here", file=sys.stderr)
        return 2
    if options.small or options.dry_run:
        global BATCH, LENGTH, LAYERS, STEPS, ROUNDS
        BATCH, LENGTH, LAYERS, STEPS, ROUNDS = (2, 16, 2, 2, 1) if options.dry_run else (4, 128, 4, 3, 1)
    if options.dry_run:
        globals()["DEVICE"] = "cpu"
        models.WIDTH = 64
    chosen = [name for name in options.stages.split(",") if name] or (ON_A_CPU if options.dry_run else STAGES)
    result: dict[str, Any] = {"machine": machine()}
    options.out.mkdir(parents=True, exist_ok=True)
    stages = {
        "ceilings": ceilings, "layouts": layouts, "values": values, "hosts": hosts, "sae": sae,
        "experiment": partial(experiment, options.out / "experiment"),
    }  # fmt: skip
    for name in chosen:
        started = time.perf_counter()
        try:
            result[name] = stages[name]()
        except Exception:  # noqa: BLE001 - the other stages are worth having
            result[name] = {"failed": traceback.format_exc()[-1500:]}
        result[name]["seconds"] = round(time.perf_counter() - started, 1)
        (options.out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
        print(name, json.dumps(result[name]), flush=True)
    (options.out / "gpu.md").write_text(table(result))
    print(table(result))
    return int(any("failed" in result[name] for name in chosen))


def machine() -> dict[str, Any]:
    """Return the facts about the machine that the figures depend on."""
    said = DEVICE == "cuda" and subprocess.run(
        ["nvidia-smi", "--format=csv,noheader",
         "--query-gpu=name,driver_version,pcie.link.gen.max,pcie.link.width.max"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {
        "card": torch.cuda.get_device_name() if DEVICE == "cuda" else "no card (a dry run)",
        "nvidia-smi": said.stdout.strip() if said else "",
        "torch": torch.__version__,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": len(__import__("os").sched_getaffinity(0)),
    }


def ceilings() -> dict[str, Any]:
    """Measure copies on an otherwise idle machine, in GB/s."""
    size = 1 << 28
    device = torch.empty(size, dtype=torch.uint8, device="cuda")
    pinned = torch.empty(size, dtype=torch.uint8).pin_memory()
    pageable = torch.ones(size, dtype=torch.uint8)

    def rate(to: torch.Tensor, source: torch.Tensor, times: int) -> float:
        to.copy_(source)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(times):
            to.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        return size * times / (time.perf_counter() - started) / 1e9

    return {
        "device to pinned": rate(pinned, device, 20),
        "device to pageable": rate(pageable, device, 4),
        "memcpy, one thread": rate(pageable, pinned, 4),
    }


# -- steps


def ids() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 30000, (BATCH, LENGTH), generator=generator).to(DEVICE) for _ in range(4)]


def synchronize() -> None:
    """Wait for the device, if there is one."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def seconds_a_step(
    model: torch.nn.Module, batches: list[torch.Tensor], before: Hooked = lambda _: None
) -> float:
    """Return the time per step of a loop that synchronises only at its end, as a real one does."""
    with torch.inference_mode():
        for i in range(2):
            before(i)
            model(input_ids=batches[i % 4])
        synchronize()
        started = time.perf_counter()
        for i in range(STEPS):
            before(i)
            model(input_ids=batches[i % 4])
        synchronize()
        return (time.perf_counter() - started) / STEPS


Contender = Callable[[torch.nn.Module], Any]


def compared(contenders: dict[str, Contender]) -> dict[str, Any]:
    """Run each contender against the unhooked model, round by round; return times and paired ratios."""
    model, batches = models.build(LAYERS, models.WIDTH, DEVICE), ids()
    seconds_a_step(model, batches)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    more: dict[str, Any] = {}
    for _ in range(ROUNDS):
        for name, contender in contenders.items():
            bare = seconds_a_step(model, batches)
            with contender(model) as (before, facts):
                mine = seconds_a_step(model, batches, before)
            more[name] = facts()
            times[name].append((bare, mine))
    taken = BATCH * LENGTH * models.WIDTH * 2 * LAYERS
    return {
        name: {
            "ms": round(1e3 * statistics.median(mine for _, mine in pairs), 3),
            "unhooked ms": round(1e3 * statistics.median(bare for bare, _ in pairs), 3),
            "ratio": round(statistics.median(mine / bare for bare, mine in pairs), 4),
            "ratios": [round(mine / bare, 4) for bare, mine in pairs],
            "GB/s offered": round(taken / statistics.median(mine for _, mine in pairs) / 1e9, 2),
            **more[name],
        }
        for name, pairs in times.items()
    }


def layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [model.get_submodule(f"layers.{i}") for i in range(LAYERS)]


def tensor_of(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


@contextmanager
def hooks(
    model: torch.nn.Module, take: Callable[[int, torch.Tensor], None], waited: list[int]
) -> Iterator[None]:
    """Register a forward hook at every layer; record the duration of each call in nanoseconds."""

    def make(number: int) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            started = time.perf_counter_ns()
            take(number, tensor_of(output))
            waited.append(time.perf_counter_ns() - started)

        return hook

    handles = [layer.register_forward_hook(make(number)) for number, layer in enumerate(layers(model))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def call_times(waited: list[int]) -> dict[str, float]:
    if not waited:
        return {}
    low, high = np.quantile(waited, [0.5, 0.99]) / 1e3
    return {"hook call p50 us": round(float(low), 1), "hook call p99 us": round(float(high), 1)}


# -- the layouts of a copy into chunks


def layouts() -> dict[str, Any]:
    """Gather into slots and copy into registered chunks: one copy, one strided, or one per chunk."""
    library = build()
    rows = BATCH * LENGTH
    result: dict[str, Any] = {}
    with Pool(2048 if BATCH > 4 else 64) as pool:
        result["pool"] = {"bytes": pool.bytes, "register seconds": round(pool.register_seconds, 2)}
        for layout in LAYOUTS:
            result[f"{layout}: exact"] = exact(library, pool, layout)
            result[f"{layout}: alone, GB/s"] = alone(library, pool, layout, rows)
        slots = 2 * LAYERS
        cases: dict[str, tuple[str, int, float | None]] = {
            f"{layout}, rate {rate}": (layout, slots, rate) for layout in LAYOUTS for rate in (1.0, 0.1)
        }
        cases["2d, all rows by copy_"] = ("2d", slots, None)
        cases[f"2d, rate 1.0, {LAYERS // 2} slots"] = ("2d", LAYERS // 2, 1.0)
        result["beside the model"] = compared(
            {name: partial(lane, library, pool, rows=rows, case=case) for name, case in cases.items()}
        )
    return result


def exact(library: ctypes.CDLL, pool: Pool, layout: str) -> bool:
    """Return whether the chunks hold the gathered rows, even if the source changes right after the gather."""
    rows, width = 1000, models.WIDTH
    lane_ = Lane(library, pool, layout, slots=4, rows=rows, width=width)
    good = True
    for turn in range(8):
        source = torch.randn(rows, width, device="cuda").bfloat16()
        index = torch.randperm(rows, device="cuda")[: 700 + turn]
        want = source[index].cpu().view(torch.uint8).numpy().tobytes()
        lane_.take(source, index)
        source.zero_()
        lane_.drain()
        at, chunks, tail = lane_.last
        pitch = 1 << 20
        got = b"".join(pool.read(at + i * pitch, lane_.payload) for i in range(chunks))
        good &= got + pool.read(at + chunks * pitch, tail) == want
    lane_.close()
    return good


def alone(library: ctypes.CDLL, pool: Pool, layout: str, rows: int) -> float:
    lane_ = Lane(library, pool, layout, slots=8, rows=rows, width=models.WIDTH)
    source = torch.randn(rows, models.WIDTH, device="cuda").bfloat16()
    lane_.take(source, None)
    lane_.drain()
    started, size = time.perf_counter(), source.numel() * 2
    for _ in range(100):
        lane_.wait(7)
        lane_.take(source, None)
    lane_.drain()
    rate = 100 * size / (time.perf_counter() - started) / 1e9
    lane_.close()
    return round(rate, 2)


@contextmanager
def lane(
    library: ctypes.CDLL,
    pool: Pool,
    model: torch.nn.Module,
    *,
    rows: int,
    case: tuple[str, int, float | None],
) -> Iterator[tuple[Hooked, Callable[[], dict[str, Any]]]]:
    """Capture every layer's rows with a lane: its layout, slots and rate (None: all rows, not gathered)."""
    layout, slots, rate = case
    lane_ = Lane(library, pool, layout, slots=slots, rows=rows, width=models.WIDTH)
    rng = np.random.default_rng(0)
    pinned = [torch.empty(rows, dtype=torch.int64).pin_memory() for _ in range(4)]
    indices = [torch.empty(rows, dtype=torch.int64, device="cuda") for _ in range(4)]
    now: list[torch.Tensor | None] = [None]

    def before(step: int) -> None:
        if rate is None:
            return
        kept = np.flatnonzero(rng.random(rows) < rate)
        at = step % 4
        pinned[at].numpy()[: len(kept)] = kept
        indices[at][: len(kept)].copy_(pinned[at][: len(kept)], non_blocking=True)
        now[0] = indices[at][: len(kept)]

    waited: list[int] = []
    with hooks(model, lambda _, tensor: lane_.take(tensor, now[0]), waited):
        yield before, lambda: facts
    lane_.drain()
    facts = {"copied": lane_.submitted, "dropped": lane_.dropped, **call_times(waited)}
    lane_.close()


# -- hosts


def points() -> list[Any]:
    """Return every layer's hook point."""
    from asysi.model.points import HookPoint

    shape = (BATCH, LENGTH, models.WIDTH)
    return [HookPoint(f"layers.{i}", None, shape, "bfloat16") for i in range(LAYERS)]


def conversions() -> list[str]:
    """Return the conversions that the spec supports; the host decides where each is done."""
    from asysi.contract.available import refused

    return [name for name in CONVERSIONS if not refused(ours.experiment(["layers.0"], 1.0, name, 0, "64Mi"))]


def hosts() -> dict[str, Any]:
    """Compare hand-written hooks with asysi: at two rates, and with each conversion."""

    @contextmanager
    def bare(model: torch.nn.Module) -> Iterator[Any]:
        kept: dict[int, torch.Tensor] = {}
        waited: list[int] = []
        with hooks(model, lambda n, tensor: kept.__setitem__(n, tensor.detach().cpu()), waited):
            yield (lambda _: None), lambda: call_times(waited)

    @contextmanager
    def pinned(model: torch.nn.Module) -> Iterator[Any]:
        waited: list[int] = []
        size = (BATCH, LENGTH, models.WIDTH)
        bufs = [torch.empty(size, dtype=torch.bfloat16).pin_memory() for _ in range(LAYERS)]
        with hooks(model, lambda n, tensor: (bufs[n].copy_(tensor, non_blocking=True), None)[1], waited):
            yield (lambda _: None), lambda: call_times(waited)

    def asysi(rate: float, quantization: str = "none") -> Contender:
        chunks = 64 if BATCH <= 4 else 2048
        scales = np.stack([np.zeros(models.WIDTH), np.full(models.WIDTH, 0.1)]).astype(np.float32)
        tables = {point.path: scales for point in points()} if quantization == "int8" else None
        return lambda model: ours.watched(
            model, points(), shape=(BATCH, LENGTH), rate=rate, quantization=quantization, chunks=chunks,
            tables=tables,
        )  # fmt: skip

    return compared({
        "bare hooks, .cpu()": bare,
        **({"bare hooks, pinned, compute stream": pinned} if DEVICE == "cuda" else {}),
        "asysi, rate 1.0": asysi(1.0),
        "asysi, rate 0.1": asysi(0.1),
        **{f"asysi, rate 1.0, {name}": asysi(1.0, name) for name in conversions()},
    })  # fmt: skip


class InPlace(torch.nn.Module):
    """Changes the hooked tensor right after the hook."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(256, 256)
        self.r = torch.nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.r(self.a(x))


def values() -> dict[str, Any]:
    """Compare captured rows with those of plain hooks: equal, or within the bound of the conversion."""
    from asysi.model.points import HookPoint

    generator = torch.Generator().manual_seed(0)
    ids_ = torch.randint(0, 30000, (4, 64), generator=generator).to(DEVICE)
    rows = torch.randn(4, 64, 256, generator=generator).to(DEVICE)
    cases = {
        "llama": (models.build(2, models.WIDTH, DEVICE), "layers.1", ids_, models.WIDTH, "bfloat16"),
        "in place": (InPlace().to(DEVICE), "a", rows, 256, "float32"),
    }
    result: dict[str, Any] = {}
    for name, (model, path, given, width, dtype) in cases.items():
        want: list[torch.Tensor] = []
        handle = model.get_submodule(path).register_forward_hook(
            lambda _m, _a, output, want=want: want.append(tensor_of(output).detach().clone())
        )
        with torch.inference_mode():
            model(given)
        handle.remove()
        expected = want[0].reshape(-1, width).float().cpu().numpy()
        tables = {path: ranges(expected)}
        for quantization in ("none", *conversions()):
            point = HookPoint(path, None, (4, 64, width), dtype)
            with ours.watched(
                model, [point], shape=(4, 64), quantization=quantization, chunks=64, take=packets,
                tables=tables if quantization == "int8" else None,
            ) as (before, facts):  # fmt: skip
                with torch.inference_mode():
                    before(0)
                    model(given)
                synchronize()
            result[f"{name}, {quantization}"] = {
                **compare(facts()["taken"], expected), "errors": facts()["errors"],
            }  # fmt: skip
    return result | {f"operators, {name}": operators(name) for name in CONVERSIONS}


def ranges(rows: np.ndarray) -> np.ndarray:
    """Return a table of channels, [2, width], that no value of these rows lies beyond."""
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    return np.stack([mean, np.maximum(np.abs(rows - mean).max(axis=0) * 1.25 / 127, 1e-6)])


def operators(name: str) -> dict[str, Any]:
    """Convert rows on the device as capture does: within the bound, and equal to the reference on the CPU."""
    from asysi.bus.packet import read_back
    from asysi.bus.quantization import WIRE, quantise
    from asysi.capture.conversion import CONVERSIONS as OF_TYPE
    from asysi.capture.conversion import select_rows

    how = WIRE[name]
    element = next(dtype for dtype, made in OF_TYPE.items() if made is how)
    rows = np.random.default_rng(0).normal(0, 3, (4096, 256)).astype(np.float32)
    table = ranges(rows) if how.by_channel else None
    out = torch.empty(len(rows), 256, dtype=element, device=DEVICE)
    beside = torch.empty(len(rows), dtype=torch.int32 if how.by_channel else torch.float32, device=DEVICE)
    select_rows(
        out, torch.from_numpy(rows).to(DEVICE), torch.arange(len(rows), device=DEVICE), beside,
        None if table is None else torch.from_numpy(table).to(DEVICE),
    )  # fmt: skip
    wanted = quantise(rows, how, table)
    payload = out.cpu().view(torch.uint16 if name == "bf16" else torch.uint8).numpy()
    made = payload.view(wanted.payload.dtype)
    scales = beside.cpu().numpy() if name == "fp8" else None
    values_ = read_back(made, how.dtype, scales, table)
    unlike = int((made != wanted.payload).sum())
    if scales is not None:
        unlike += int((scales != wanted.scales).sum())
    found = [(how.name.lower(), values_, scales if table is None else table[1])]
    return {**compare(found, rows), "errors": 0, "unlike the reference": unlike}


def packets(ring: str) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
    """Return the packets in a ring: conversion, rows as float32, and scales of rows or channels."""
    from asysi.bus.packet import Quantization, parse_packet
    from asysi_ring import Control, Reader

    found = []
    with Reader(ring, "hook") as reader, Control(ring) as control:
        while views := reader.pull(16, 0.0):
            for view in views:
                packet = parse_packet(memoryview(view.copy()), control.accounts())
                how = Quantization(int(packet.header["quantization"])).name.lower()
                scales = packet.scales if packet.table is None else packet.table[1].copy()
                found.append((how, packet.to_float32(), scales))
                reader.consumed(view)
                view.release()
    return found


def compare(found: list[Any], expected: np.ndarray) -> dict[str, Any]:
    """Return the largest difference, and whether every element is within the bound of its conversion."""
    at, worst, within = 0, 0.0, True
    for how, rows, scales in found:
        want = expected[at : at + len(rows)]
        at += len(rows)
        away = np.abs(rows - want)
        relative, of_scale = BOUNDS.get(how, (0.0, 0.0))
        bound = relative * np.abs(want) * (1 + 1e-5)
        if how == "int8_channel":  # its mean is added and taken away in float32
            bound = bound + 2**-22 * np.abs(want)
        if scales is not None:
            shape = (1, -1) if how == "int8_channel" else (len(rows), 1)
            bound = bound + of_scale * np.asarray(scales).reshape(shape) * (1 + 1e-5)
        worst, within = max(worst, float(away.max())), within and bool((away <= bound).all())
    how = "/".join(sorted({name for name, _, _ in found}))
    return {"converted": how, "largest difference": worst, "all rows": at == len(expected), "within": within}


# -- downstream of the host


def sae() -> dict[str, Any]:
    """Measure rows per second of SAE training: width 2,048, 16,384 latents, k 32."""
    small = BATCH <= 4
    size = (
        {"width": 64, "latents": 256, "k": 8, "batch": 128, "seconds": 0.2} if small
        else {"width": 2048, "latents": 16384, "k": 32, "batch": 4096, "seconds": 10.0}
    )  # fmt: skip
    devices = ["cpu"] + (["cuda"] if DEVICE == "cuda" else [])
    return {device: trainer.rows_a_second(device, **size) for device in devices}


def experiment(folder: Path) -> dict[str, Any]:
    """Run a complete experiment with `asysi run`."""
    small, gpus = BATCH <= 4, int(DEVICE == "cuda")
    return {"asysi run": whole.run(folder, small=small, gpus=gpus, timeout=240)}


# -- the table


def _rest(result: dict[str, Any]) -> list[str]:
    """Return the tables of values, trainer and experiment."""
    lines: list[str] = []
    if any(isinstance(row, dict) and "within" in row for row in result.get("values", {}).values()):
        lines += [
            "| values | converted | largest difference | all rows, within the bound |",
            "|---|---|---|---|",
        ]
        for name, row in result["values"].items():
            if isinstance(row, dict):
                good = row["all rows"] and row["within"]
                lines.append(f"| {name} | {row['converted']} | {row['largest difference']:.3g} | {good} |")
        lines.append("")
    trained = {name: row for name, row in result.get("sae", {}).items() if isinstance(row, dict)}
    if trained:
        lines += ["| SAE in training | rows/s | TFLOP/s |", "|---|---|---|"]
        lines += [f"| {name} | {row['rows/s']:,.0f} | {row['TFLOP/s']} |" for name, row in trained.items()]
        lines.append("")
    whole_ = result.get("experiment", {}).get("asysi run")
    if whole_:
        lines += [
            "| `asysi run` | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in whole_.items()),
            "",
        ]
    return lines


def table(result: dict[str, Any]) -> str:
    """Return the figures as the tables of a page."""
    known = result["machine"]
    lines = [f"{known['card']}, torch {known['torch']}, {known['processors']} processors.", ""]
    if "device to pinned" in result.get("ceilings", {}):
        lines += ["| ceiling | GB/s |", "|---|---|"]
        lines += [f"| {key} | {value:.1f} |" for key, value in result["ceilings"].items() if key != "seconds"]
        lines.append("")
    for title, rows in (
        ("who", result.get("hosts", {})),
        ("copies into chunks", result.get("layouts", {}).get("beside the model", {})),
    ):
        lines += [f"| {title} | ms a step | unhooked | ratio | GB/s offered | hook call p99, us | dropped |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for name, row in rows.items():
            if isinstance(row, dict) and "ratio" in row:
                dropped = row.get("dropped", row.get("steps dropped", ""))
                lines.append(
                    f"| {name} | {row['ms']} | {row['unhooked ms']} | {row['ratio']} | {row['GB/s offered']}"
                    f" | {row.get('hook call p99 us', '')} | {dropped} |"
                )
        lines.append("")
    lines += _rest(result)
    alone_ = {key: value for key, value in result.get("layouts", {}).items() if "alone" in key}
    if alone_:
        lines += [
            "| layout | GB/s |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in alone_.items()),
            "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
