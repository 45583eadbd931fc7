"""The measured host: the public frame of every host, in this process, with a ring and a reader."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

DRAIN = """
import sys
from asysi_ring import Reader
with Reader(sys.argv[1], "hook") as reader:
    print("up", flush=True)
    while True:
        views = reader.pull(16, 0.2)
        if not views and reader.ended():
            break
        for view in views:
            reader.consumed(view)
            view.release()
"""


def tokens(step: int, batch: int, length: int) -> Any:
    """Return the tokens of a step in the form that capture uses."""
    from asysi.bus.packet import ROW_DTYPE
    from asysi.text.grid import StepTokens

    rows = np.zeros(batch * length, ROW_DTYPE)
    rows["sample"] = rows["sequence"] = np.repeat(np.arange(batch), length)
    rows["position"] = np.tile(np.arange(length), batch)
    return StepTokens(step, batch, length, rows, np.ones(batch * length, np.bool_))


def experiment(paths: list[str], rate: float, quantization: str, gpus: int, size: str) -> Any:
    """Return an experiment that captures these modules."""
    from asysi.contract.spec import ScanExperiment

    return ScanExperiment.model_validate({
        "metadata": {"name": "benchmark"},
        "spec": {
            "model": {"uri": "python://model:build"}, "data": {"uri": "jsonl://none"},
            "workload": {"scan": {}},
            "capture": {
                "hookPoints": paths, "size": size, "quantization": quantization, "sampling": {"rate": rate},
            },
            "resources": {"host": {"gpus": gpus}},
        },
    })  # fmt: skip


@contextmanager
def watched(
    model: torch.nn.Module,
    points: list[Any],
    *,
    shape: tuple[int, int],
    rate: float = 1.0,
    quantization: str = "none",
    chunks: int = 2048,
    take: Callable[[str], Any] | None = None,
    tables: dict[str, np.ndarray] | None = None,
) -> Iterator[tuple[Callable[[int], None], Callable[[], dict[str, Any]]]]:
    """Capture a model with `open_host`; yields a function that starts a step, and one for the final results.

    Args:
        model: on its device.
        points: HookPoints.
        shape: [batch, length] of a step.
        rate, quantization: as in the spec; the host decides where conversion is done.
        chunks: number of 1 MiB chunks of the ring.
        tables: ranges of int8 that are frozen already, [2, width] by path.
        take: called with the ring's folder once the host has left, instead of a process that drains it.
    """
    from asysi.contract.runtime import CAPTURE_RING, POINTS_FILE, Container
    from asysi.hosts.frame import HostPlan, Step, open_host
    from asysi.model.points import points_to_json
    from asysi.monitor.worker import Worker
    from asysi_ring import create

    gpus = int(next(model.parameters()).device.type == "cuda")
    made = experiment([point.path for point in points], rate, quantization, gpus, f"{chunks}Mi")
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as home:
        shm = Path(home)
        ring = shm / CAPTURE_RING
        ring.parent.mkdir(parents=True)
        create(
            str(ring), shards=1, chunks=chunks, chunk_bytes=1 << 20, readers=["hook"], policy="drop_new",
            accounts=max(256, len(points)),
        )  # fmt: skip
        (shm / POINTS_FILE).write_text(points_to_json(points))
        if tables:
            _write_ranges(shm / "output", tables)
        reader = None if take else _drain(ring)
        try:
            worker = Worker(Container.HOST, made, shm, shm / "output", shm, 0, 0)
            with open_host(worker) as host:
                run = host.watch(model, HostPlan(context_length=shape[1], steps=1 << 30, tokens=1 << 40))
                steps = run.steps(Step(tokens(number, *shape)) for number in count())
                yield (lambda _: (next(steps), None)[1]), (lambda: facts)
                if gpus:
                    torch.cuda.synchronize()
                facts.update(_facts(run))
            if reader is not None:
                reader.wait(60)
            if take is not None:
                facts["taken"] = take(str(ring))
        finally:
            if reader is not None:
                reader.kill()
                reader.communicate()
            shutil.rmtree(shm, ignore_errors=True)
            shm.mkdir()


def _write_ranges(output: Path, tables: dict[str, np.ndarray]) -> None:
    """Write what an earlier attempt's hook worker would have left."""
    from safetensors.numpy import save_file

    from asysi.contract.runtime import RANGES_FILE

    output.mkdir(parents=True, exist_ok=True)
    save_file(tables, output / RANGES_FILE, dict.fromkeys(tables, "0 0"))


def _facts(run: Any) -> dict[str, Any]:
    hooker = run._hooker
    return {
        "steps": hooker.steps,
        "steps dropped": hooker.steps_dropped,
        "errors": hooker.errors,
        "hook call p50 us": round(hooker.latency.quantile(0.5) / 1e3, 1),
        "hook call p99 us": round(hooker.latency.quantile(0.99) / 1e3, 1),
    }


def _drain(ring: Path) -> subprocess.Popen[str]:
    reader = subprocess.Popen([sys.executable, "-c", DRAIN, ring], stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    assert reader.stdout.readline().strip() == "up"
    return reader
