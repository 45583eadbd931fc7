"""Runs one contender once in its own process: `python contender.py NAME FOLDER` prints a JSON object.

`ours`, `ours_mmap`, `ours_basic`, `numpy`, `ours_spectra` and `ceiling` run in the project's environment,
`weightlens` and `weightwatcher` in theirs. Imports are not timed. Peak memory is the kernel's VmHWM, reset
after the imports; it includes pages of mapped files.
"""

import json
import logging
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

Figures = dict[str, dict[str, Any]]
Work = Callable[[], Figures]


def ours(
    folder: str, backend: str = "pread", *, spectra: bool = False, stats: Literal["full", "basic"] = "full"
) -> Work:
    from asysi.weights import CheckpointOrigin, Settings, analyze, open_checkpoint

    def work() -> Figures:
        with open_checkpoint(folder, backend=backend) as checkpoint:
            # The version compared with may not support all settings.
            settings = Settings(spectra=spectra, **({"stats": stats} if stats != "full" else {}))
            done = analyze(checkpoint, CheckpointOrigin(folder, "benchmark"), settings)
        return {
            row["param_name"]: {key: one for key, one in row.items() if one is not None} for row in done.rows
        }

    return work


def numpy(folder: str) -> Work:
    """The same statistics written naively: one whole tensor at a time, in float64."""
    import ml_dtypes  # noqa: F401 - registers bfloat16
    import numpy as np
    from safetensors import safe_open

    shares = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)

    def figures(stored: Any) -> dict[str, Any]:
        x = stored.astype(np.float64)
        usable = np.isfinite(x)
        finite = x if usable.all() else x[usable]
        return {
            "mean": float(finite.mean()), "std": float(finite.std()), "min": float(finite.min()),
            "max": float(finite.max()), "zeros": int((x == 0).sum()), "elements": x.size,
            "near_zeros": int((np.abs(x) <= 1e-8).sum()), "nans": int(np.isnan(x).sum()),
            "median": float(np.quantile(finite, shares, overwrite_input=usable.all())[4]),
        }  # fmt: skip

    def work() -> Figures:
        found = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(file, framework="numpy") as shard:
                found |= {name: figures(shard.get_tensor(name)) for name in shard.keys()}  # noqa: SIM118
        return found

    return work


def weightlens(folder: str) -> Work:
    from weightlens.aggregators import StreamingGlobalAggregator
    from weightlens.analyzer import Analyzer
    from weightlens.classifiers import PyTorchParameterClassifier
    from weightlens.sources.safetensors import SafetensorsWeightSource
    from weightlens.stats_engines.basic_stats_engine import BasicStatsEngine
    from weightlens.validators import SafetensorsCheckpointValidator

    logging.disable(logging.CRITICAL)
    index = str(Path(folder) / "model.safetensors.index.json")
    layers: Figures = {}

    class Kept(BasicStatsEngine):
        def compute_layer(self, layer: Any) -> Any:
            found = super().compute_layer(layer)
            layers[layer.name] = {
                "mean": found.mean, "std": found.std, "min": found.min, "max": found.max,
                "zeros": round(found.sparsity * found.param_count), "elements": found.param_count,
            }  # fmt: skip
            return found

    analyzer = Analyzer(
        source=SafetensorsWeightSource(index, None, use_mmap=True),
        validator=SafetensorsCheckpointValidator(index, None),
        stats_engine=Kept(),
        aggregator=StreamingGlobalAggregator(),
        rules=[],
        classifier=PyTorchParameterClassifier(),
        num_workers=2,
    )

    def work() -> Figures:
        analyzer.analyze()
        return layers

    return work


def weightwatcher(folder: str) -> Work:
    warnings.simplefilter("ignore")
    import torch
    import weightwatcher as watcher
    from safetensors.torch import load_file

    logging.disable(logging.CRITICAL)
    matrices = list(load_file(Path(folder) / "model.safetensors").items())
    model = torch.nn.Module()
    for number, (_, x) in enumerate(matrices):
        layer = torch.nn.Linear(x.shape[1], x.shape[0], bias=False)
        layer.weight = torch.nn.Parameter(x)
        model.add_module(f"m{number}", layer)

    def work() -> Figures:
        table = watcher.WeightWatcher(model=model).analyze()
        columns = {"sigma_max": "sv_max", "stable_rank": "stable_rank", "alpha": "alpha", "alpha_ks": "D"}
        return {
            matrices[int(row["longname"][1:])][0]: {
                ours: float(row[theirs]) for ours, theirs in columns.items()
            }
            for _, row in table.iterrows()
        }

    return work


def ceiling(folder: str) -> Work:
    """Two threads that only read memory, only copy memory, or only read the checkpoint's files."""
    import os

    import numpy as np

    size, block = 1 << 29, 1 << 20
    halves = np.ones(size // 8, np.uint64).reshape(2, -1)
    copies = np.empty_like(halves)
    files = [os.open(file, os.O_RDONLY) for file in sorted(Path(folder).glob("*.safetensors"))]
    stored = sum(os.fstat(file).st_size for file in files)

    def read(thread: int) -> None:
        memory = memoryview(bytearray(block))
        for at in range(0, os.fstat(files[thread]).st_size, block):
            os.preadv(files[thread], [memory], at)

    def best(what: Callable[[int], object], size: int, times: int) -> tuple[float, float]:
        """Return GB per second, and GB per second of processor time."""
        seconds, spent = [], []
        for _ in range(times):
            threads = [threading.Thread(target=what, args=(thread,)) for thread in range(2)]
            began, before = time.perf_counter(), time.process_time()
            for one in threads:
                one.start()
            for one in threads:
                one.join()
            seconds.append(time.perf_counter() - began)
            spent.append(time.process_time() - before)
        return size / min(seconds) / 1e9, size / min(spent) / 1e9

    def work() -> Figures:
        found = {
            "files": best(read, stored, 1),
            "read": best(lambda thread: halves[thread].max(), size, 7),
            "copy": best(lambda thread: np.copyto(copies[thread], halves[thread]), size, 7),
        }
        return {
            "GB/s": {name: rate for name, (rate, _) in found.items()},
            "GB/s of a core": {name: rate for name, (_, rate) in found.items()},
        }

    return work


CONTENDERS: dict[str, Callable[[str], Work]] = {
    "ours": ours,
    "ours_mmap": lambda folder: ours(folder, "mmap"),
    "ours_basic": lambda folder: ours(folder, stats="basic"),
    "ours_spectra": lambda folder: ours(folder, spectra=True),
    "numpy": numpy,
    "weightlens": weightlens,
    "weightwatcher": weightwatcher,
    "ceiling": ceiling,
}


def memory(name: str) -> int:
    """Return VmRSS or VmHWM in bytes."""
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found.group(1)) * 1024


def main() -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # WeightWatcher prints to stdout
    work = CONTENDERS[sys.argv[1]](sys.argv[2])
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before, spent, began = memory("VmRSS"), time.process_time(), time.perf_counter()
    found = work()
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    result = {
        "seconds": seconds,
        "processor": spent,
        "before": before,
        "peak": memory("VmHWM"),
        "found": found,
    }
    out.write(json.dumps(result))


if __name__ == "__main__":
    main()
