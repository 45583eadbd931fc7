"""Rows that lie in memory, as packets: for streams that carry whole packets rather than shared memory."""

import ctypes
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from asysi.bus.packet import ELEMENTS, ActivationPacket, Dtype, Quantization


def gather(  # noqa: PLR0917 - in the order of the ring's producer
    address: int, row_stride: int, index: NDArray[np.int64] | None, count: int, width: int, dtype: Dtype
) -> NDArray[np.generic]:
    """Return a copy [count, width] of rows in this process's memory.

    Args:
        address: of the first row.
        row_stride: bytes from row to row.
        index: [count] rows to take; None takes the first `count`.
        count: rows.
        width: elements of a row.
        dtype: of the elements; bfloat16 is uint16 holding its bits.
    """
    element = ELEMENTS[dtype]
    if not count:
        return np.empty((0, width), element)
    last = int(index.max()) + 1 if index is not None else count
    # The last row may end where the memory ends.
    memory = (ctypes.c_char * ((last - 1) * row_stride + width * element.itemsize)).from_address(address)
    source: NDArray[np.generic] = np.ndarray(
        (last, width), element, memoryview(memory).cast("B"), 0, (row_stride, element.itemsize)
    )
    return source[index] if index is not None else source.copy()


class _Pushes(Protocol):
    def push(
        self, packet: ActivationPacket, *, source: int = 0, quantization: Quantization = Quantization.NONE
    ) -> bool: ...


class _Books(Protocol):
    def __call__(self, point: str, seen: int, sampled_out: int, dropped: int, reason: int, /) -> None: ...


class PacketChannel:
    """One account's way into a stream that carries whole packets: rows are gathered, then pushed.

    Args:
        producer: of the stream.
        point: name of the account.
        account: its number.
        book: counts rows of the account that are not published.
    """

    def __init__(self, producer: _Pushes, point: str, account: int, book: _Books) -> None:
        self.account = account
        self._producer, self._point, self._book = producer, point, book

    def put(  # noqa: PLR0917 - as the ring's
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
        """Gather the rows and push them as one packet: see `asysi.bus.stream.BlockChannel.put`."""
        own = header[0].copy()
        own["dtype"] = source_dtype
        payload = gather(address, row_stride, index, count, int(own["width"]), Dtype(source_dtype))
        packet = ActivationPacket(own, self._point, rows[:count], None, payload)
        return self._producer.push(packet, quantization=Quantization(quantization))

    def book(self, *, seen: int = 0, sampled_out: int = 0, dropped: int = 0, reason: int = 0) -> None:
        """Count rows that were seen and not published."""
        self._book(self._point, seen, sampled_out, dropped, reason)
