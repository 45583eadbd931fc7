"""Measures the cost of capture for the model: slowdown of the host, and hook latency against a bare copy.

    python benchmarks/host_slowdown.py [--seconds 60] [--consumers all|none] [--host-cpu 0] [--consumer-cpu 1]
                                       [--gradients]

It runs the demo's experiment: MiniLM, six hook points, one processor for the host, another for hook, SAE
trainer and archiver (real workers, real rings). These comparisons are interleaved within one run:

- steps: each batch is run twice, with and without hooks, in random order, while the same consumers are busy.
  The ratio of each pair is the cost of capture.
- blocks: a few batches are run with hooks and running consumers, and again with neither (no hooks, consumers
  stopped by SIGSTOP), in random order. The ratio also includes the caches and memory that consumers use.
- gradients, where asked for: as steps, but with a backward pass, without hooks and with hooks for activations
  and gradients. The loss is the mean square of the output.
- latency: one hook call on a 1 MiB activation, and a copy of the same tensor into a populated mapping as
  large as the ring.

Time is wall time minus the time the thread waited for its processor (/proc/thread-self/schedstat), which
excludes other programs on the machine. Waiting caused by capture itself, by blocking, is included. Plain wall
time is reported as well. Ratios are medians, intervals are 95 % bootstrap intervals. Writes
docs/benchmarks/host_slowdown.json and .md.
"""

import argparse
import json
import mmap
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asysi.bus.packet import ROW_DTYPE, Kind, Reduction
from asysi.bus.ring import RingProducer
from asysi.capture.hooks import ActivationHooker
from asysi.contract.loading import load
from asysi.contract.runtime import CAPTURE_RING, MODEL_FILE, POINTS_FILE, Env
from asysi.contract.spec import ScanExperiment, Spec
from asysi.model.forward import ScanRunner
from asysi.model.loading import LoadedModel, load_model, read_resolved
from asysi.model.loss import ScanLoss
from asysi.model.points import HookPoint, read_points
from asysi.text.grid import StepTokens
from asysi.text.reading import read_data
from asysi.text.tokens import Batch
from asysi_ring import Control, Reader, Writer, create

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "benchmarks"
CONSUMERS = {"all": ["asysi.archive", "asysi.sae", "asysi.hook"], "none": []}
BLOCK_STEPS = 6
LATENCY_CALLS = 4000
Interval = tuple[float, float, float]
"""Estimate, and the bounds of its 95 % interval."""


def main() -> None:
    options = parse()
    experiment = load([ROOT / "examples" / "minilm" / "scan.yaml"])
    if options.gradients:
        experiment = with_gradients(experiment)
    shm = Path(tempfile.mkdtemp(prefix="asysi-bench-", dir="/dev/shm"))
    work = Path(tempfile.mkdtemp(prefix="asysi-bench-"))
    os.sched_setaffinity(0, {options.host_cpu})
    torch.set_num_threads(1)
    try:
        environment = write_environment(experiment, shm, work)
        subprocess.run([sys.executable, "-m", "asysi.hosts.prepare"], env=environment, check=True)
        with consumers(CONSUMERS[options.consumers], environment, options.consumer_cpu, work) as pids:
            slowdown = measure_slowdown(experiment.spec, shm, work / "workspace", pids, options)
        latency = measure_latency(shm / "latency", np.random.default_rng(options.seed))
    finally:
        shutil.rmtree(shm)
        shutil.rmtree(work)
    report({"machine": machine(options), **slowdown, **latency})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="of each of the two slowdown comparisons")
    parser.add_argument("--consumers", choices=sorted(CONSUMERS), default="all")
    parser.add_argument("--host-cpu", type=int, default=0)
    parser.add_argument("--consumer-cpu", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gradients", action="store_true", help="also measure steps with a backward pass")
    return parser.parse_args()


def with_gradients(experiment: ScanExperiment) -> ScanExperiment:
    """Return the experiment with gradients, and a ring that holds a step of them."""
    tree = experiment.model_dump(mode="json", by_alias=True)
    spec = tree["spec"]
    spec["workload"]["scan"]["loss"] = "python://host_slowdown:mean_square"
    spec["capture"] |= {"kinds": ["activations", "gradients"], "size": "256Mi"}
    for part in (spec["resources"]["prepare"], spec["resources"]["hook"]):
        part["memory"] = "2Gi"
    return ScanExperiment.model_validate(tree)


def mean_square(output: Any, _inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a loss of a model without a head."""
    return output[0].float().square().mean()


# -- the pod


def write_environment(experiment: ScanExperiment, shm: Path, work: Path) -> dict[str, str]:
    """Write the experiment file; returns the environment of its containers."""
    config = work / "experiment.json"
    config.write_text(experiment.model_dump_json(by_alias=True))
    return {
        **os.environ,
        Env.CONFIG: str(config),
        Env.SHM: str(shm),
        Env.OUTPUT: str(work / "output"),
        Env.WORKSPACE: str(work / "workspace"),
        Env.ATTEMPT: "0",
        Env.PORT: "0",
        Env.MODULES: str(Path(__file__).parent),
    }


@contextmanager
def consumers(modules: list[str], environment: dict[str, str], cpu: int, work: Path) -> Iterator[list[int]]:
    """Run the consumers on one processor; yields their process ids."""
    running = []
    for module in modules:
        with (work / f"{module}.log").open("wb") as log:
            command = ["taskset", "-c", str(cpu), sys.executable, "-m", module]
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    time.sleep(8 if modules else 0)  # they import torch and map the rings
    try:
        for module, process in zip(modules, running, strict=True):
            if process.poll() is not None:
                sys.exit(f"{module} ended with {process.returncode}:\n{(work / f'{module}.log').read_text()}")
        yield [process.pid for process in running]
    finally:
        for process in running:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


# -- slowdown


@dataclass
class Host:
    """The scan host of the demo, whose hooks can be attached and detached."""

    engine: ScanRunner
    hooker: ActivationHooker
    batches: list[Batch]
    rng: np.random.Generator

    def choose(self, count: int) -> list[Batch]:
        """Return `count` distinct random batches."""
        return [self.batches[at] for at in self.rng.choice(len(self.batches), count, replace=False)]

    def coin(self) -> list[bool]:
        """Return True and False in random order."""
        return [bool(answer) for answer in self.rng.permutation([True, False])]

    def run(self, batches: list[Batch], *, hooked: bool) -> np.ndarray:
        """Run steps; returns seconds: wall time minus waiting for the processor, and wall time."""
        (self.hooker.attach if hooked else self.hooker.detach)()
        waited, wall = waited_for_processor(), time.perf_counter()
        for batch in batches:
            if hooked:
                self.hooker.step(batch.tokens)
            self.engine.run(batch)
        wall = time.perf_counter() - wall
        return np.array([wall - (waited_for_processor() - waited), wall])


def waited_for_processor() -> float:
    """Return the seconds that this thread was runnable but not running."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def measure_slowdown(
    spec: Spec, shm: Path, workspace: Path, pids: list[int], options: argparse.Namespace
) -> dict[str, object]:
    """Return both ratios of the host's time with hooks to that without."""
    assert spec.data is not None
    assert spec.workload.scan is not None
    points = read_points(workspace / POINTS_FILE)
    loaded = load_model(read_resolved(workspace / MODEL_FILE), spec.model.dtype)
    engine = ScanRunner(loaded, points)
    batches = list(read_data(spec.data, spec.workload.scan, loaded.tokenizer).batches.from_step(0))
    ring, rng = str(shm / CAPTURE_RING), np.random.default_rng(options.seed)
    with Writer(ring) as writer, Control(ring) as control:
        hooker = ActivationHooker(engine.module, points, RingProducer(writer), control, root=engine.root)
        host = Host(engine, hooker, batches, rng)
        host.run(batches[:5], hooked=True)
        steps = pairs_of_steps(host, options.seconds)
        blocks = pairs_of_blocks(host, options.seconds, pids)
        backward = steps_with_gradients(host, points, RingProducer(writer), control, options)
    return {
        **({"gradients": backward} if backward else {}),
        "hook_points": len(points),
        "consumers": len(pids),
        "steps": {
            "pairs": len(steps),
            "time": quantile_of(steps[:, 0], 50, rng),
            "wall": quantile_of(steps[:, 1], 50, rng),
        },
        "blocks": {
            "pairs": len(blocks),
            "steps": BLOCK_STEPS,
            "time": quantile_of(blocks[:, 0], 50, rng),
            "wall": quantile_of(blocks[:, 1], 50, rng),
        },
        "rate": hooker.rate,
        "steps_dropped": hooker.steps_dropped / hooker.steps,
        "share_of_time_in_hooks": hooker.capture_ns / hooker.forward_ns,
        "hook_us": {f"p{percent}": hooker.latency.quantile(percent / 100) / 1e3 for percent in (50, 99)},
    }


def steps_with_gradients(
    host: Host, points: list[HookPoint], producer: RingProducer, control: Control, options: argparse.Namespace
) -> dict[str, object]:
    """Return the ratio of a step with a backward pass, with hooks to without; empty if not asked for."""
    if not options.gradients:
        return {}
    host.hooker.detach()
    loaded = LoadedModel(host.engine.module, None, None)
    loss = ScanLoss(lambda root, inputs: mean_square(root(**inputs), {}), Reduction.MEAN)
    engine = ScanRunner(loaded, points, loss=loss)
    kinds = (Kind.ACTIVATION, Kind.GRADIENT)
    hooker = ActivationHooker(engine.module, points, producer, control, kinds=kinds, root=engine.root)
    other = Host(engine, hooker, host.batches, host.rng)
    other.run(host.batches[:5], hooked=True)
    steps = pairs_of_steps(other, options.seconds)
    hooker.detach()
    assert hooker.errors == 0
    return {
        "pairs": len(steps),
        "time": quantile_of(steps[:, 0], 50, host.rng),
        "wall": quantile_of(steps[:, 1], 50, host.rng),
        "rate": hooker.rate,
        "steps_dropped": hooker.steps_dropped / hooker.steps,
        "share_of_time_in_hooks_and_forward": hooker.capture_ns / hooker.forward_ns,
    }


def pairs_of_steps(host: Host, seconds: float) -> np.ndarray:
    """Return [pairs, time | wall] of a step with hooks over the same step without."""
    ratios, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        batches = host.choose(1)
        times = {hooked: host.run(batches, hooked=hooked) for hooked in host.coin()}
        ratios.append(times[True] / times[False])
    return np.array(ratios)


def pairs_of_blocks(host: Host, seconds: float, pids: list[int]) -> np.ndarray:
    """Return [pairs, time | wall] of steps with hooks and consumers over those with neither."""
    ratios, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        batches, times = host.choose(BLOCK_STEPS), {}
        for watched in host.coin():
            for pid in pids:
                os.kill(pid, signal.SIGCONT if watched else signal.SIGSTOP)
            times[watched] = host.run(batches, hooked=watched)
        ratios.append(times[True] / times[False])
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    return np.array(ratios)


# -- latency


class TimedHooker(ActivationHooker):
    """Keeps the exact duration of every hook call."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.durations: list[int] = []

    def _seen(self, *args) -> None:
        started = time.perf_counter_ns()
        super()._seen(*args)
        self.durations.append(time.perf_counter_ns() - started)


def measure_latency(folder: Path, rng: np.random.Generator) -> dict[str, object]:
    """Return the latency of a hook call on 1 MiB, and of a bare copy of the same tensor."""
    chunks, chunk_bytes, batch, length, width = 64, 1 << 20, 2, 128, 1024  # 2 × 128 × 1024 float32 = 1 MiB
    create(str(folder), shards=1, chunks=chunks, chunk_bytes=chunk_bytes, readers=["hook"], policy="drop_new")
    module = torch.nn.Sequential(torch.nn.Identity())
    point = HookPoint("0", None, (batch, length, width))
    fresh = torch.randn(batch, length, width)
    source = fresh.clone()
    rows = np.zeros(batch * length, ROW_DTYPE)
    target = mmap.mmap(
        -1, chunks * chunk_bytes, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    )
    places = np.frombuffer(target, np.float32).reshape(chunks, -1)
    flat, copies = source.numpy().reshape(-1), []
    with (
        torch.inference_mode(),
        Writer(str(folder)) as writer,
        Control(str(folder)) as control,
        Reader(str(folder), "hook") as reader,
        TimedHooker(module, [point], RingProducer(writer), control) as hooker,
    ):
        for step in range(LATENCY_CALLS):
            for hooked in rng.permutation([True, False]):
                source.copy_(fresh)  # as warm as a freshly computed activation
                if hooked:
                    hooker.step(StepTokens(step, batch, length, rows, np.ones(batch * length, np.bool_)))
                    module(source)
                    for view in reader.pull(16, 0.0):
                        reader.consumed(view)
                        view.release()
                else:
                    started = time.perf_counter_ns()
                    np.copyto(places[step % chunks], flat)
                    copies.append(time.perf_counter_ns() - started)
    assert hooker.errors == hooker.steps_dropped == 0
    hook, copy = (np.array(values[LATENCY_CALLS // 10 :]) / 1e3 for values in (hooker.durations, copies))
    del places
    return {
        "latency_us": {
            f"p{p}": {
                "hook": quantile_of(hook, p, rng),
                "copy": quantile_of(copy, p, rng),
                "more": more(hook, copy, p, rng),
            }
            for p in (50, 99)
        }
    }


# -- statistics and reports


def quantile_of(values: np.ndarray, percent: float, rng: np.random.Generator) -> Interval:
    drawn = np.percentile(resampled(values, rng), percent, axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(np.percentile(values, percent)), float(low), float(high)


def more(hook: np.ndarray, copy: np.ndarray, percent: float, rng: np.random.Generator) -> Interval:
    """Return how much higher the quantile of the hook is."""
    drawn = np.percentile(resampled(hook, rng), percent, axis=1) - np.percentile(
        resampled(copy, rng), percent, axis=1
    )
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(np.percentile(hook, percent) - np.percentile(copy, percent)), float(low), float(high)


def resampled(values: np.ndarray, rng: np.random.Generator, times: int = 1000) -> np.ndarray:
    return values[rng.integers(0, len(values), (times, len(values)))]


def machine(options: argparse.Namespace) -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")
    return {
        "processor": model.strip(),
        "processors": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "consumers": options.consumers,
        "seed": options.seed,
        "gradients": options.gradients,
        "15-minute load": round(os.getloadavg()[2], 2),
    }


def report(result: dict) -> None:
    steps, blocks, latency = result["steps"], result["blocks"], result["latency_us"]
    lines = [
        "# What watching costs the host",
        "",
        "Made by `python benchmarks/host_slowdown.py`: MiniLM (bfloat16), six hook points, host on one",
        "processor, hook, SAE trainer and archiver on the other. Medians with 95 % bootstrap intervals;",
        "everything is interleaved in one run. Time is wall time less what the thread waited for its",
        "processor.",
        "",
        "| comparison | estimate | interval | aim |",
        "|---|---|---|---|",
        row("step with hooks / without", steps["time"], "<= 1.03", "{:.4f}"),
        row("the same, wall time", steps["wall"], "", "{:.4f}"),
        row("steps with hooks and consumers / with neither", blocks["time"], "", "{:.4f}"),
        row("the same, wall time", blocks["wall"], "", "{:.4f}"),
        *gradient_rows(result),
        row("hook call on 1 MiB, p50, µs", latency["p50"]["hook"], "", "{:.1f}"),
        row("copy of the same 1 MiB, p50, µs", latency["p50"]["copy"], "", "{:.1f}"),
        row("hook over copy, p50, µs", latency["p50"]["more"], "", "{:.1f}"),
        row("hook call on 1 MiB, p99, µs", latency["p99"]["hook"], "", "{:.1f}"),
        row("copy of the same 1 MiB, p99, µs", latency["p99"]["copy"], "", "{:.1f}"),
        row("hook over copy, p99, µs", latency["p99"]["more"], "<= 20", "{:.1f}"),
        "",
        f"{steps['pairs']} pairs of steps, {blocks['pairs']} pairs of {blocks['steps']}-step blocks,"
        f" {LATENCY_CALLS} calls. Sampling rate at the end {result['rate']:.2f},"
        f" {100 * result['steps_dropped']:.1f} % of steps dropped;"
        f" hooks took {100 * result['share_of_time_in_hooks']:.2f} % of the forward's time.",
        "",
        "What a step with hooks costs beyond the time in hooks is cache and memory that the hook worker uses",
        "on the other processor at that moment; the line with and without consumers holds all of that.",
        "",
        "Machine: " + ", ".join(f"{key} {value}" for key, value in result["machine"].items()) + ".",
        "",
    ]
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "host_slowdown.json").write_text(json.dumps(result, indent=1) + "\n")
    (OUT / "host_slowdown.md").write_text("\n".join(lines))
    print("\n".join(lines))


def gradient_rows(result: dict) -> list[str]:
    """Return the lines about steps with a backward pass."""
    if "gradients" not in result:
        return []
    found = result["gradients"]
    return [
        row("step with a backward pass, hooks for both kinds / without", found["time"], "", "{:.4f}"),
        row("the same, wall time", found["wall"], "", "{:.4f}"),
    ]


def row(name: str, interval: Interval, aim: str, form: str) -> str:
    estimate, low, high = (form.format(value) for value in interval)
    return f"| {name} | {estimate} | {low} – {high} | {aim} |"


if __name__ == "__main__":
    main()
