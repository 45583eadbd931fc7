"""One measurement in its own process: `task.py CONTENDER ACTION FOLDER SOURCE [fsync]`; prints JSON.

The time is measured from the first byte to the last, without imports and opening the source. Data that is
read is summed, so that every byte is touched; data that is written is already in memory.
"""

import json
import os
import resource
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
from contenders import CONTENDERS, Blocks, sync_all

POINTS = [f"layer.{n}" for n in range(6)]
BLOCK_BYTES = 256 << 10
RANDOM_ROWS = 4096
WARM = {
    "mscan": "asysi.archive.torch_data",
    "Parq": "pyarrow.parquet",
    "HF d": "datasets.arrow_writer",
    "safe": "safetensors.numpy",
    "HDF5": "h5py",
    "Zarr": "zarr.codecs",
}


def blocks(source: np.ndarray) -> Blocks:
    """Yield the blocks of all hook points in turn, as views of the source [points, rows, width]."""
    size = max(1, BLOCK_BYTES // (2 * source.shape[2]))
    for first in range(0, source.shape[1], size):
        for number, point in enumerate(POINTS):
            yield point, source[number, first : first + size]


def touch(array: np.ndarray) -> int:
    """Sum an array's bytes as 64-bit words."""
    flat = array.reshape(-1)
    return int(np.add.reduce(flat[: len(flat) // 4 * 4].view(np.uint64))) + int(
        flat[len(flat) // 4 * 4 :].sum()
    )


def peak() -> int:
    """Return the peak resident memory so far, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Measure."""
    name, action, place, source_file = sys.argv[1:5]
    folder, fsync = Path(place), "fsync" in sys.argv
    contender = CONTENDERS[name]()
    for prefix, module in WARM.items():
        if name.startswith(prefix):
            import_module(module)
    source = np.load(source_file, mmap_mode="r")
    numbers = np.sort(
        np.random.default_rng(0).choice(source.shape[1], min(RANDOM_ROWS, source.shape[1]), False)
    )
    if action == "write":
        touch(np.asarray(source))  # mapped and resident
        if name.startswith("mscan") and not fsync:
            os.fsync = lambda _fd: None
    before, cpu, began = peak(), time.process_time(), time.perf_counter()
    total = size = 0
    if action == "write":
        contender.write(folder, blocks(source))
        if fsync:
            sync_all(folder)
        size = source.nbytes
    else:
        found = {
            "sequential": lambda: contender.sequential(folder),
            "point": lambda: contender.point(folder, POINTS[2]),
            "rows": lambda: contender.rows(folder, POINTS[2], numbers),
        }[action]()
        for array in found:
            total += touch(array)
            size += array.nbytes
    result = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "bytes": size}
    result |= {"sum": total % 2**64, "memory": (peak() - before) * 1024}
    result["disk"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(json.dumps(result))


if __name__ == "__main__":
    main()
