"""A stream endpoint that keeps rows in this process as plain arrays."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from asysi.bus.blocks import gather
from asysi.bus.packet import Dtype, read_back
from asysi.bus.states import DropReason

_ROOM = 1 << 40


@dataclass
class Rows:
    """Rows of one hook point, in the order in which the model produced them."""

    records: list[NDArray[np.void]] = field(default_factory=list)
    """[n] of ROW_DTYPE, one array per call."""
    calls: list[int] = field(default_factory=list)
    """Call index of each entry of `records`."""
    values: list[NDArray[np.float32]] = field(default_factory=list)
    """[n, width] of each entry of `records`."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows that could not be captured, by reason."""


class CollectorChannel:
    """Channel of one hook point into a `Collector`."""

    def __init__(self, account: int, into: Rows) -> None:
        self.account, self._into = account, into

    def book(self, *, seen: int = 0, sampled_out: int = 0, dropped: int = 0, reason: int = 0) -> None:
        """Count rows that were not published."""
        if dropped:
            counts, name = self._into.dropped, DropReason(reason).word
            counts[name] = counts.get(name, 0) + dropped

    def put(  # noqa: PLR0917 - as every channel has it
        self,
        header: NDArray[np.void],
        rows: NDArray[np.void],
        address: int,
        row_stride: int,
        index: NDArray[np.int64] | None,
        count: int,
        source_dtype: int,
        quantization: int,
        /,
    ) -> bool:
        """Copy rows from memory; see `asysi.bus.stream.BlockChannel.put`."""
        dtype = Dtype(source_dtype)
        taken = gather(address, row_stride, index, count, int(header["width"][0]), dtype)
        into = self._into
        into.records.append(rows.copy())
        into.calls.append(int(header["call_index"][0]))
        into.values.append(
            np.asarray(taken, np.float32) if dtype is Dtype.FLOAT32 else read_back(taken, dtype)
        )
        return True


class Collector:
    """Replaces a stream's producer: `ActivationHooker` puts rows into it.

    Code that reruns a model therefore captures its rows exactly as the host does. Rows are never sampled out
    or dropped for lack of room.
    """

    packet_bytes = _ROOM
    depth = _ROOM

    def __init__(self) -> None:
        self.points: dict[str, Rows] = {}
        """Rows by name of the hook point."""
        self._channels: dict[str, CollectorChannel] = {}

    def channel(self, point: str, /) -> CollectorChannel:
        """Return the channel of a hook point, registering the hook point if it is new."""
        if point not in self._channels:
            self.points[point] = Rows()
            self._channels[point] = CollectorChannel(len(self._channels), self.points[point])
        return self._channels[point]

    def free(self) -> int:
        """Return the number of packets it can accept, which is unlimited."""
        return _ROOM

    def take(self) -> dict[str, Rows]:
        """Return and clear the rows published since the last call."""
        taken = {
            name: Rows(rows.records, rows.calls, rows.values, rows.dropped)
            for name, rows in self.points.items()
        }
        for rows in self.points.values():
            rows.records, rows.calls, rows.values, rows.dropped = [], [], [], {}
        return taken
