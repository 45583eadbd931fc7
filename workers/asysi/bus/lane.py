"""What a stream needs to take rows straight out of an accelerator's memory."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class LaneError(Exception):
    """Rows cannot be taken straight from a device; the message says what it answered."""


class DeviceLane(Protocol):
    """Copies slots of a device's memory into the stream's memory, and publishes them in order.

    No call waits for the device. See `asysi_ring.Lane`, which it is on the ring.
    """

    @property
    def slots(self) -> int:
        """Number of slots."""
        ...

    def free(self) -> int:
        """Return how many slots can be filled; 0 where the lane has failed."""
        ...

    def next(self) -> int:
        """Return the slot to fill next."""
        ...

    def unclaimed(self) -> int:
        """Return how many packets are submitted for which no chunk is claimed yet."""
        ...

    def begin_step(self, rows: NDArray[np.void], /) -> None:
        """Take the records of the rows that the slots of a step hold."""
        ...

    def add_table(self, table: NDArray[np.float32], /) -> int:
        """Keep mean and scale of channels, [2, width], and return the number that `submit` takes."""
        ...

    def submit(  # noqa: PLR0917 - as `asysi_ring.Lane` takes them
        self,
        stream: int,
        header: NDArray[np.void],
        counts: NDArray[np.uint32],
        address: int,
        dtype: int,
        quantization: int = 0,
        scales: int = 0,
        outside: int = 0,
        table: int = 0,
    ) -> bool:
        """Hand over the slot `next()`; False, its rows counted as dropped, where the lane has failed."""
        ...

    @property
    def failed(self) -> bool:
        """Whether it takes nothing any more."""
        ...

    @property
    def problem(self) -> str:
        """What the device answered first."""
        ...

    def stop(self) -> None:
        """Publish what is submitted, and end."""
        ...


OpenLane = Callable[[int, int, str], DeviceLane | None]
"""Takes number of the device, slots, and path of its runtime; None where the stream takes rows only from the
host's memory. Raises LaneError."""
