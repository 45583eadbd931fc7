"""How far a node is: source rows and rows made, of earlier runs and of this one."""

import time
from dataclasses import dataclass

from asysi.pipeline.ledger.ledger import LedgerTotals, Range


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a node is.

    Attributes:
        status: pending, running, completed, canceled or failed.
        computed: source rows computed.
        durable: source rows committed, and with `fsync` on the disk.
        total: source rows there are, estimated while `exact` is False; None while nothing is known.
        exact: whether `total` is counted.
        made, dropped, blank, dead: rows made; source rows that became none, were empty, failed.
        seconds: since it began.
        waited: seconds that computing waited for the disk.
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
    """Counts a node's rows: `base` were committed before this run began, `computed` are of this run."""

    def __init__(self) -> None:
        self.base = self.computed = 0
        self.durable = self.made = self.dropped = self.blank = self.dead = 0
        self._began = self._ended = 0.0

    def restart(self) -> None:
        """Forget how far an earlier run had computed, and how long it took."""
        self.computed, self._began, self._ended = 0, 0.0, 0.0

    def restore(self, totals: LedgerTotals) -> None:
        """Take over what the ledger has committed."""
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
        """Return how far the node is; `total` is (source rows, whether they are counted)."""
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
