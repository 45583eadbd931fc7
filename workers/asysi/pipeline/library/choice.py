"""Operators that select rows."""

from typing import Any

import xxhash

from asysi.contract.errors import ConfigError
from asysi.pipeline.library.template import expression
from asysi.pipeline.operators.operator import BaseOperator, Made, Row
from asysi.pipeline.rows import values
from asysi.pipeline.rows.ids import FIELD

_WHOLE = 1 << 64


class Filter(BaseOperator):
    """Keeps the rows for which an expression is true.

    Args:
        where: a Jinja expression over the row's fields, like `score > 3 and lang == "en"`.

    Raises:
        ConfigError: it is not a valid expression.
    """

    harmless = True

    def __init__(self, where: str) -> None:
        self.where = where
        self._holds = expression(where)

    def process_item(self, item: Row, ctx: Any = None) -> Made:
        """Return the row, or None.

        Raises:
            jinja2.UndefinedError: the row has no such field.
        """
        return item if self._holds(item) else None


class Sample(BaseOperator):
    """Keeps a random share of the rows, determined by the seed and the row ids alone.

    The same rows are therefore kept after a restart, in shards, and with any number of threads.

    Args:
        share: fraction to keep, 0..1.
        seed: selects a different sample.
        field: field to hash instead of the id: rows with equal values are kept or dropped together.

    Raises:
        ConfigError: the share is out of range.
    """

    harmless = True

    def __init__(self, share: float, seed: int = 0, field: str = FIELD) -> None:
        if not 0 <= share <= 1:
            raise ConfigError(f"sample: share is {share}: give a number from 0 to 1")
        self.share, self.seed, self.field = share, seed, field
        self._prefix = f"{seed}\n".encode()
        self._limit = round(share * _WHOLE)

    def process_item(self, item: Row, ctx: Any = None) -> Made:
        """Return the row, or None.

        Raises:
            KeyError: the row has no such field.
        """
        digest: int = xxhash.xxh3_64_intdigest(self._prefix + values.dumps(item[self.field]))
        return item if digest < self._limit else None
