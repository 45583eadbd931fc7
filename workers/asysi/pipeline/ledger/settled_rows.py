"""Counts the settled source rows, whose descendants are all in the last output.

Rows keep their order from node to node, and an id starts with the number of its source row. The first row
that a node has not yet read from the previous one therefore shows which source rows are still in progress.
"""

from collections.abc import Sequence

from asysi.pipeline.ledger.ledger import RowLedger
from asysi.pipeline.rows.ids import FIELD, root
from asysi.pipeline.rows.values import loads
from asysi.pipeline.streams.data_streams import IDataStream
from asysi.pipeline.streams.row_log import FileLog
from asysi.pipeline.streams.source import CHUNK

IDS_ARE_ROW_NUMBERS = "own_ids"
"""Fact in the ledger: whether ids of the first source are row numbers rather than given by the source."""


def settled_rows(ledger: RowLedger, names: Sequence[str], buses: Sequence[IDataStream | None]) -> int:
    """Return how many source rows of the first node have all descendants in the last output.

    Exact if rows are numbered by the pipeline and stored in files; otherwise whole committed ranges are
    counted, which may be fewer.

    Args:
        ledger: the ledger.
        names: names of the nodes, in order.
        buses: their outputs.
    """
    counted = ledger.settled(list(names))
    first = ledger.last(names[0])
    if first is None or ledger.about(IDS_ARE_ROW_NUMBERS) != "1":
        return counted
    reached = first.last
    for name, following, bus in zip(names, names[1:], buses, strict=False):
        made, taken = ledger.last(name), ledger.last(following)
        at = taken.source_end if taken else 0
        if made is None or at >= made.out_end:
            continue
        number = _root_at(bus, at, made.out_end)
        if number is None:
            return counted
        reached = min(reached, number)
    return max(counted, reached - ledger.first(names[0]))


def _root_at(bus: IDataStream | None, at: int, end: int) -> int | None:
    """Return the source row of the row at an offset of a file, or None if unknown."""
    log = bus.log() if bus is not None else None
    if not isinstance(log, FileLog) or not log.path.exists():
        return None
    line = b""
    while b"\n" not in line and at + len(line) < end:
        data = log.read(at + len(line), min(CHUNK, end - at - len(line)))
        if not data:
            return None
        line += data
    try:
        return root(loads(line.partition(b"\n")[0])[FIELD])
    except (ValueError, KeyError, TypeError):
        return None
