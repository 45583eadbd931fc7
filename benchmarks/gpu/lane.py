"""The lane in lane.cpp, and a pool of chunks in shared memory that is registered with the driver."""

import ctypes
import mmap
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import torch

CHUNK = 1 << 20
HEAD = 12 << 10
"""Bytes at the beginning of a chunk, in place of a packet's header and records."""
LAYOUTS = {"contiguous": 0, "2d": 1, "chunk by chunk": 2}


def runtime() -> str:
    """Return the path of the CUDA runtime that torch has loaded."""
    torch.cuda.init()
    torch.zeros(1, device="cuda")
    found = re.search(r"(/\S*libcudart\S*)", Path("/proc/self/maps").read_text())
    assert found, "torch has loaded no libcudart"
    return found[1]


def build() -> ctypes.CDLL:
    """Compile lane.cpp and load it."""
    to = Path(tempfile.mkdtemp()) / "lane.so"
    flags = ["-std=c++20", "-O2", "-shared", "-fPIC", "-pthread", "-Wall", "-Wextra"]
    subprocess.run(
        ["g++", *flags, str(Path(__file__).with_name("lane.cpp")), "-o", str(to), "-ldl"], check=True
    )
    library = ctypes.CDLL(str(to))
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    library.lane_start.restype = pointer
    library.lane_start.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, size]
    library.lane_submit.argtypes = [pointer, pointer, pointer, pointer, size, size, size, size]
    library.lane_done.restype = ctypes.c_uint64
    for name in ("lane_done", "lane_error", "lane_stop"):
        getattr(library, name).argtypes = [pointer]
    return library


class Pool:
    """Shared memory of `chunks` chunks, registered with CUDA as one region.

    A copy that crosses from one registered region into the next fails, so there is only one.
    """

    def __init__(self, chunks: int) -> None:
        self.bytes = chunks * CHUNK
        self._file = tempfile.NamedTemporaryFile(dir="/dev/shm")  # noqa: SIM115 - lives as long as the pool
        self._file.truncate(self.bytes)
        self._map = mmap.mmap(self._file.fileno(), self.bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        started = time.perf_counter()
        cuda = torch.cuda.cudart()
        error = int(cuda.cudaHostRegister(self.address, self.bytes, 1))
        assert error == 0, f"cudaHostRegister answered {error}"
        self.register_seconds = time.perf_counter() - started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaHostUnregister(self.address)

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the pool."""
        return self._map[offset : offset + size]


class Lane:
    """Slots on the device, and the thread that copies them into chunks.

    Args:
        layout: a key of LAYOUTS.
        slots: maximum number of gathers in flight.
        rows, width: size of a slot, in elements of bfloat16.
    """

    def __init__(
        self, library: ctypes.CDLL, pool: Pool, layout: str, *, slots: int, rows: int, width: int
    ) -> None:
        self._library, self._pool, self.width = library, pool, width
        self.slots = [torch.empty(rows, width, dtype=torch.bfloat16, device="cuda") for _ in range(slots)]
        self._ready = [torch.cuda.Event() for _ in range(slots)]
        for event in self._ready:
            event.record()  # creates the handle
        torch.cuda.synchronize()
        row = width * 2
        self.payload = (CHUNK - HEAD) // row * row if layout != "contiguous" else CHUNK
        self._lane = library.lane_start(runtime().encode(), 0, LAYOUTS[layout], slots)
        assert self._lane, "the lane did not start"
        self.submitted = self.dropped = 0
        self._next = 0

    def take(self, tensor: torch.Tensor, index: torch.Tensor | None) -> None:
        """Gather the rows in `index` (None: all) and submit them; drop them if no slot is free."""
        slot = self.submitted % len(self.slots)
        if self.submitted - self._library.lane_done(self._lane) >= len(self.slots):
            self.dropped += 1
            return
        flat = tensor.reshape(-1, self.width)
        if index is None:
            kept = self.slots[slot]
            kept.copy_(flat)
        else:
            kept = self.slots[slot][: len(index)]
            torch.index_select(flat, 0, index, out=kept)
        self._ready[slot].record()
        size = kept.numel() * 2
        chunks, tail = divmod(size, self.payload)
        need = (chunks + (tail > 0)) * CHUNK
        if self._next + need > self._pool.bytes:
            self._next = 0
        head = HEAD if self.payload != CHUNK else 0
        self._library.lane_submit(
            self._lane, self._ready[slot].cuda_event, kept.data_ptr(), self._pool.address + self._next + head,
            self.payload, CHUNK, chunks, tail,
        )  # fmt: skip
        self.last = (self._next + head, chunks, tail)
        self._next += need
        self.submitted += 1

    def wait(self, under_way: int) -> None:
        """Wait until at most `under_way` copies are in flight.

        Raises:
            RuntimeError: the runtime returned an error.
        """
        while self.submitted - self._library.lane_done(self._lane) > under_way:
            if error := self._library.lane_error(self._lane):
                raise RuntimeError(f"CUDA answered {error}")
            time.sleep(0.00005)

    def drain(self) -> None:
        """Wait until all copies are done."""
        self.wait(0)

    def close(self) -> None:
        """End the thread."""
        self._library.lane_stop(self._lane)
