"""A device that stands for a GPU: its streams are the stand-in library's, its memory is the host's."""

import ctypes
import subprocess
import weakref
from pathlib import Path
from typing import Any, Self

import torch

from asysi.capture.conversion import select_rows

NATIVE = Path(__file__).parents[2] / "native"
FLAGS = ("-std=c++20", "-O1", "-shared", "-fPIC", "-pthread")
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_size_t
_KERNEL = ctypes.CFUNCTYPE(None)


class OnDevice(torch.Tensor):
    """A tensor that says it lies on a device."""

    number = 0
    is_cpu = property(lambda self: False)
    device = property(lambda self: torch.device("cuda", self.number))


class OnSecondDevice(OnDevice):
    """The same, on another device."""

    number = 1


def build(compiler: str, to: Path) -> Path:
    """Compile the library."""
    subprocess.run([compiler, *FLAGS, NATIVE / "tests" / "standin.cpp", "-o", to], check=True)
    return to


class Standin:
    """What `asysi.capture.device.Accelerator` asks for, and the orders of a test.

    Args:
        library: what `build` made.
        seed: of what is random.
        delay_us: the longest delay of a step of a stream.
    """

    def __init__(self, library: Path, *, seed: int = 1, delay_us: int = 200) -> None:
        self._path = str(library)
        self._c = ctypes.CDLL(self._path)
        for name, *types in (
            ("gather", _POINTER, _POINTER, _POINTER, _POINTER, _SIZE, _SIZE),
            ("call", _POINTER, _KERNEL),
            ("copy", _POINTER, _POINTER, _POINTER, _SIZE),
            ("fail", ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_int),
            ("begin", ctypes.c_uint64, ctypes.c_uint),
            ("wait", _POINTER),
            ("delay", _POINTER, ctypes.c_uint),
        ):
            getattr(self._c, f"standin_{name}").argtypes = types
        self._c.standin_stream.restype = self._c.standin_default_stream.restype = _POINTER
        self._c.standin_calls.restype = ctypes.c_uint64
        for name in ("cudaEventRecord", "cudaStreamWaitEvent"):
            getattr(self._c, name).argtypes = [_POINTER, _POINTER, ctypes.c_uint][: 2 + ("Wait" in name)]
        self._c.cudaEventQuery.argtypes = [_POINTER]
        self._c.standin_begin(seed, delay_us)
        self._streams: dict[int, int] = {}
        self._places: dict[int, torch.device] = {}
        self.current = 0
        """Which of a device's streams the model's kernels run on."""
        self.default_streams = False
        """Whether the model's kernels run on each device's default stream, whose handle is 0."""
        self.in_graph = False
        self.slow_uploads_us = 0
        """How long a kernel runs before the indices of a step."""
        self.memory = 1 << 40
        """Bytes of the device's memory."""
        self._taken: list[weakref.ref[torch.Tensor]] = []
        self.kept: list[Any] = []
        """Tensors that kernels may still read, and kernels: the device's allocator would see to it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._c.standin_begin(0, 0)  # nothing runs over memory that goes away

    def fail(self, name: str, *, after: int = 0, code: int = 719, sticky: bool = True) -> None:
        """Have a call of the runtime fail."""
        self._c.standin_fail(name.encode(), after, code, sticky)

    def hold_copies(self, hold: bool) -> None:
        """Stop the copies into the ring, or let them go on."""
        self._c.standin_hold_copies(hold)

    def calls(self, name: str) -> int:
        """Return how often a function of the runtime was called."""
        return int(self._c.standin_calls(name.encode()))

    # -- Accelerator

    def runtime(self) -> str:
        return self._path

    def stream(self, device: torch.device) -> int:
        return 0 if self.default_streams else self._queue(device)

    def _queue(self, device: torch.device) -> int:
        """Return the stream itself, where a handle of 0 would mean that of the device that is current."""
        if self.default_streams:
            return int(self._c.standin_default_stream(device.index or 0))
        key = (device.index or 0) * 10 + self.current
        if key not in self._streams:
            self._streams[key] = self._c.standin_stream()
        return self._streams[key]

    def capturing(self) -> bool:
        return self.in_graph

    def allocate(self, size: int, device: torch.device) -> torch.Tensor:
        alive = [tensor for one in self._taken if (tensor := one()) is not None]
        if size + sum(map(len, alive)) > self.memory:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.\nmore")
        memory = torch.zeros(size, dtype=torch.uint8)
        self._taken.append(weakref.ref(memory))
        self._places[memory.data_ptr()] = device
        return memory

    def pinned(self, count: int) -> torch.Tensor:
        return torch.empty(count, dtype=torch.int64)

    def upload(self, to: torch.Tensor, source: torch.Tensor, mark: Any) -> Any:
        event = ctypes.c_void_p()
        if mark is None:
            self._c.cudaEventCreateWithFlags(ctypes.byref(event), 2)
            mark = event.value
        stream = self._queue(self._places[to.data_ptr()])
        if self.slow_uploads_us:
            self._c.standin_delay(stream, self.slow_uploads_us)
        self._c.standin_copy(stream, to.data_ptr(), source.data_ptr(), source.numel() * 8)
        self._c.cudaEventRecord(mark, stream)
        return mark

    def reached(self, mark: Any) -> bool:
        status = self._c.cudaEventQuery(mark)
        if status not in {0, 600}:
            raise RuntimeError(f"CUDA error: {status}")
        return bool(status == 0)

    def wait(self, device: torch.device, mark: Any) -> None:
        self._c.cudaStreamWaitEvent(self._queue(device), mark, 0)

    def select(
        self,
        out: torch.Tensor,
        source: torch.Tensor,
        index: torch.Tensor,
        beside: torch.Tensor | None = None,
        table: torch.Tensor | None = None,
    ) -> None:
        source = source.as_subclass(torch.Tensor)
        if beside is not None:
            source = source.clone()  # in a stream, what runs behind the gather changes it later
            kernel = _KERNEL(lambda: select_rows(out, source, index, beside, table))
            self.kept.append(kernel)
            self._c.standin_call(self._queue(self._places[out.data_ptr()]), kernel)
            return
        source = source.to(out.dtype).contiguous()
        self.kept.append(source)
        row = source.shape[1] * source.element_size()
        self._c.standin_gather(
            self._queue(self._places[out.data_ptr()]),
            out.data_ptr(),
            source.data_ptr(),
            index.data_ptr(),
            len(index),
            row,
        )
