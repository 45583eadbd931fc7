"""Progress of a node: source rows and output rows, of earlier runs and of this one."""

import time
from dataclasses import dataclass

from asysi.pipeline.ledger.ledger import LedgerTotals, Range


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a node.

    Attributes:
        status: pending, running, completed, canceled or failed.
        computed: source rows computed.
        durable: source rows committed, and with `fsync` on disk.
        total: total source rows, estimated while `exact` is False; None if unknown.
        exact: whether `total` is exact.
        made, dropped, blank, dead: output rows; source rows dropped, empty, and failed.
        seconds: seconds since the start.
        waited: seconds that computing waited for the writer.
    """

    status: str
    computed: int
    durable: int
    total: int | None
    exact: bool
    made: int
    dropped: int
    blank: int
    dead: int
    seconds: float
    waited: float


class NodeCounters:
    """Counts a node's rows: `base` were committed before this run, `computed` in this run."""

    def __init__(self) -> None:
        self.base = self.computed = 0
        self.durable = self.made = self.dropped = self.blank = self.dead = 0
        self._began = self._ended = 0.0

    def restart(self) -> None:
        """Reset the computed rows and the clock."""
        self.computed, self._began, self._ended = 0, 0.0, 0.0

    def restore(self, totals: LedgerTotals) -> None:
        """Take over the ledger's totals."""
        self.durable = self.base = totals.rows
        self.made, self.dropped, self.blank, self.dead = (
            totals.made,
            totals.dropped,
            totals.blank,
            totals.dead,
        )

    def commit(self, done: Range) -> None:
        """Add a committed range."""
        self.durable += done.last - done.first
        self.made += done.made
        self.dropped += done.dropped
        self.blank += done.blank
        self.dead += done.dead

    def begin(self) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def end(self) -> None:
        """Stop the clock."""
        self._ended = time.monotonic()

    def progress(self, status: str, total: tuple[int | None, bool], waited: float) -> Progress:
        """Return the node's progress; `total` is (source rows, whether that is exact)."""
        end = self._ended or time.monotonic()
        return Progress(
            status,
            max(self.base + self.computed, self.durable),
            self.durable,
            *total,
            self.made,
            self.dropped,
            self.blank,
            self.dead,
            end - self._began if self._began else 0.0,
            waited,
        )
