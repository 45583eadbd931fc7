"""`platform.log`: what a run decided, waited for and mended, a line each, with tags to search for.

`[Node]` a node starts or ends · `[Dispatch]` rows were given to be computed · `[Input]` files came late ·
`[Backpressure]` computing waited for the disk · `[EOF Retry]` a reader waits for its writer · `[Resume]` ·
`[Seal]` · `[Dead Letter]` · `[Budget]` · `[Cancel]` · `[Hook]` · `[Retry]` a call to a server was tried
again.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = "platform.log"
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


@contextmanager
def journal(folder: Path | None) -> Iterator[None]:
    """Append what the pipeline logs to `platform.log` in a folder (none: nowhere) while the block lasts."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / FILE, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("asysi.pipeline")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(before, logging.INFO) if before else logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
        handler.close()
