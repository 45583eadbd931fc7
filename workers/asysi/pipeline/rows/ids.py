"""Row ids: `_i` is a source line's number from 0, or the parent row's id and the index among its results.

If line 10 becomes three rows, their ids are `10_0`, `10_1`, `10_2`; rows that the next node makes of the last
start with `10_2_0`. The separator distinguishes them from line 100 and preserves the ancestry.
"""

from typing import Any

FIELD = "_i"


def child(parent: Any, place: int) -> str:
    """Return the id of the row at `place` (from 0) among those made from `parent`."""
    return f"{parent}_{place}"


def lineage(identity: Any) -> tuple[int, ...]:
    """Return an id as numbers, the source line first; ids sorted by it are in file order.

    Raises:
        ValueError: it is not an id.
    """
    parts = str(identity).split("_")
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"{identity!r} is not a row id: ids are 10, 10_0, 10_0_2")
    return tuple(map(int, parts))


def root(identity: Any) -> int:
    """Return the number of the source line that a row comes from.

    Raises:
        ValueError: it is not an id.
    """
    return lineage(identity)[0]
