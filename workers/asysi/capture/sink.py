"""Where capture puts rows: the capture ring now, behind an interface that other transports can have too."""

from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from asysi.bus.mailbox import CaptureWord

if TYPE_CHECKING:
    from asysi_ring import Control, Writer

_SHARD = 0  # the capture ring has one


class Sink(Protocol):
    """What capture needs of a transport.

    `room`, `put` and `book` are called between two layers of the model: they neither wait nor allocate. An
    implementation may make them attributes rather than methods, so that none costs a frame.
    """

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the largest packet."""

    @property
    def depth(self) -> int:
        """Packets that can be unread at once."""

    def account(self, name: str, /) -> int:
        """Return the number of an account, registering it when it is new."""

    def rate(self) -> float:
        """Return the sampling rate that was asked for last, 0 before the first."""

    def room(self) -> int:
        """Return how many packets are taken before one is dropped."""

    def put(  # noqa: PLR0917 - the ring's producer takes them by position, which is the fastest
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
        """Copy rows out of memory and publish them as one packet: see `asysi_ring.Writer.publish_block`."""

    def book(
        self, account: int, /, *, seen: int = 0, sampled_out: int = 0, dropped: int = 0, reason: int = 0
    ) -> None:
        """Count rows that were seen and not published."""

    def tell(self, word: CaptureWord, value: int, /) -> None:
        """Write a word of the mailbox."""


class RingSink:
    """The capture ring.

    Args:
        writer: its producer.
        control: its control file, for the mailbox.
    """

    def __init__(self, writer: "Writer", control: "Control") -> None:
        self.chunk_bytes = writer.chunk_bytes
        self.depth = int(control.geometry()["depth"])
        self.account = writer.account
        self.room = partial(writer.free, _SHARD)
        self.put = partial(writer.publish_block, _SHARD)
        self.book = writer.book
        self.tell = control.set
        self._control = control

    def rate(self) -> float:
        """Return the sampling rate that the hook worker last wrote, 0 before the first."""
        return float(self._control.get_float(CaptureWord.RATE))
