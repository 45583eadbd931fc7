"""`[Dispatch]` lines of `platform.log`: which rows a node gave to be computed."""

import logging
import time

_EVERY = 1.0
"""Seconds that one line about dispatched rows covers."""
_log = logging.getLogger("asysi.pipeline")


class DispatchLog:
    """A line about the rows that a node gave to be computed: at once for the first, then one a second.

    Args:
        node: name of the node.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._next = 0.0
        self._first = self._last = self._blocks = self._flying = 0

    def tell(self, first: int, last: int, flying: int) -> None:
        """Take a block: source rows from `first` up to but without `last`, with so many in flight before."""
        if not self._blocks:
            self._first = first
        self._last, self._blocks, self._flying = last, self._blocks + 1, flying + 1
        if time.monotonic() >= self._next:
            self.end()

    def end(self) -> None:
        """Write what was not written yet."""
        if self._blocks:
            _log.info(
                "[Dispatch] %s: source rows %d to %d in %d blocks, %d in flight",
                *(self._node, self._first, self._last - 1, self._blocks, self._flying),
            )
        self._blocks, self._next = 0, time.monotonic() + _EVERY
