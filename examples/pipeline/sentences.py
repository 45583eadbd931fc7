"""A custom operator: one row per sentence of a text."""

import re
from typing import Any

from asysi.pipeline import BaseOperator


class Sentences(BaseOperator):
    """Makes one row of each sentence.

    Args:
        shortest: minimum number of characters of a sentence.
    """

    def __init__(self, shortest: int = 1) -> None:
        self.shortest = shortest

    def process_item(self, item: dict[str, Any], ctx: Any = None) -> list[dict[str, Any]]:
        """Return the rows; an empty list drops the text."""
        found = re.split(r"(?<=[.!?])\s+", item["text"])
        return [{**item, "text": text} for text in found if len(text) >= self.shortest]
