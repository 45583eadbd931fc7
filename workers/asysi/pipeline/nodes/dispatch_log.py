"""`[Dispatch]` lines in `platform.log`: the rows that a node dispatched."""

import logging
import time

_EVERY = 1.0
"""Seconds covered by one line."""
_log = logging.getLogger("asysi.pipeline")


class DispatchLog:
    """Logs the dispatched rows of a node: at once for the first block, then once per second.

    Args:
        node: name of the node.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._next = 0.0
        self._first = self._last = self._blocks = self._flying = 0

    def tell(self, first: int, last: int, flying: int) -> None:
        """Record a dispatched block of source rows [`first`, `last`) after `flying` blocks in flight."""
        if not self._blocks:
            self._first = first
        self._last, self._blocks, self._flying = last, self._blocks + 1, flying + 1
        if time.monotonic() >= self._next:
            self.end()

    def end(self) -> None:
        """Write the pending line."""
        if self._blocks:
            _log.info(
                "[Dispatch] %s: source rows %d to %d in %d blocks, %d in flight",
                *(self._node, self._first, self._last - 1, self._blocks, self._flying),
            )
        self._blocks, self._next = 0, time.monotonic() + _EVERY
