"""A sink that keeps rows in this process, as plain arrays."""

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asysi.bus.packet import Dtype
from asysi.bus.states import DropReason

_NUMPY: dict[Dtype, np.dtype[Any]] = {
    Dtype.FLOAT32: np.dtype("<f4"),
    Dtype.BFLOAT16: np.dtype("<u2"),
    Dtype.FLOAT16: np.dtype("<f2"),
}
_ROOM = 1 << 40


@dataclass
class Rows:
    """Rows of one hook point, in the order in which the model made them."""

    records: list[NDArray[np.void]] = field(default_factory=list)
    """[n] of ROW_DTYPE, a call each."""
    calls: list[int] = field(default_factory=list)
    """Call index of each entry of `records`."""
    values: list[NDArray[np.float32]] = field(default_factory=list)
    """[n, width] of each entry of `records`."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows that could not be taken, by reason."""


class Collector:
    """Stands in for the capture ring: `ActivationHooker` puts rows into it.

    So whoever reads a model again takes its rows exactly as the host does. Nothing is ever sampled out or
    dropped for want of room.
    """

    chunk_bytes = _ROOM
    depth = _ROOM

    def __init__(self) -> None:
        self.points: dict[str, Rows] = {}
        """By name of the hook point."""
        self._by_account: list[Rows] = []
        self._numbers: dict[str, int] = {}

    def account(self, name: str) -> int:
        """Return the number of a hook point, registering it when it is new."""
        if name not in self._numbers:
            self._numbers[name] = len(self._by_account)
            self.points[name] = Rows()
            self._by_account.append(self.points[name])
        return self._numbers[name]

    def rate(self) -> float:
        """Return 0: nobody has asked for another rate."""
        return 0.0

    def room(self) -> int:
        """Return the packets that it takes: any number."""
        return _ROOM

    def book(
        self, account: int, *, seen: int = 0, sampled_out: int = 0, dropped: int = 0, reason: int = 0
    ) -> None:
        """Count rows that were not published."""
        if dropped:
            counts, name = self._by_account[account].dropped, DropReason(reason).word
            counts[name] = counts.get(name, 0) + dropped

    def put(  # noqa: PLR0917 - as every sink has it
        self,
        header: NDArray[np.void],
        rows: NDArray[np.void],
        address: int,
        row_stride: int,
        index: NDArray[np.int64] | None,
        count: int,
        source_dtype: int,
        quantization: int,
    ) -> bool:
        """Copy rows out of memory as the ring's producer does; see `asysi_ring.Writer.publish_block`."""
        last = int(index.max()) + 1 if index is not None else count
        memory = (ctypes.c_char * (last * row_stride)).from_address(address)
        elements: NDArray[Any] = np.frombuffer(memoryview(memory).cast("B"), np.uint8)
        source = elements.view(_NUMPY[Dtype(source_dtype)]).reshape(last, -1)
        taken: NDArray[Any] = source[index] if index is not None else source.copy()
        if source_dtype == Dtype.BFLOAT16:
            taken = (taken.astype(np.uint32) << 16).view(np.float32)
        into = self._by_account[int(header["account"][0])]
        into.records.append(rows.copy())
        into.calls.append(int(header["call_index"][0]))
        into.values.append(taken.astype(np.float32, copy=False))
        return True

    def take(self) -> dict[str, Rows]:
        """Return what was published since the last time, and forget it."""
        taken = {
            name: Rows(rows.records, rows.calls, rows.values, rows.dropped)
            for name, rows in self.points.items()
        }
        for rows in self._by_account:
            rows.records, rows.calls, rows.values, rows.dropped = [], [], [], {}
        return taken

    def tell(self, word: int, value: int) -> None:
        """Ignore what the host would report."""
