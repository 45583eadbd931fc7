"""Extracts JSON that matches a schema from text."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import json_repair
import jsonschema  # type: ignore[import-untyped]
import referencing

from asysi.contract.errors import ConfigError
from asysi.pipeline.operators.operator import BaseOperator, Made, Row
from asysi.pipeline.rows import values

_FENCE = re.compile(r"```[A-Za-z0-9_-]*\s*\n(.*?)```", re.DOTALL)
_SHOWN = 200
_ON_INVALID = ("fail", "drop", "null")


class ExtractError(Exception):
    """A text contains no JSON that matches the schema."""


class Extract(BaseOperator):
    """Extracts JSON from model output: surrounded by prose, in a code fence, or slightly malformed.

    Valid JSON is used as is. Otherwise, with `repair`, quotes, commas and brackets are repaired and values
    are converted to the types required by the schema. The result always matches the schema.

    Args:
        schema: JSON Schema of the value; external references are not resolved.
        field: field with the text.
        output: field for the value; None merges an object's properties into the row.
        repair: whether to repair malformed JSON.
        explode: whether a list becomes one row per value.
        on_invalid: how to handle a row without a matching value: `fail` or `drop` it, or use `null`.

    Raises:
        ConfigError: the schema or a parameter is invalid.
    """

    def __init__(
        self,
        schema: Mapping[str, Any],
        field: str = "answer",
        output: str | None = None,
        *,
        repair: bool = True,
        explode: bool = False,
        on_invalid: str = "fail",
    ) -> None:
        self.schema, self.field, self.output = dict(schema), field, output
        self.repair, self.explode, self.on_invalid = repair, explode, on_invalid
        if on_invalid not in _ON_INVALID:
            raise ConfigError(f"extract: on_invalid is {on_invalid!r}: give one of {', '.join(_ON_INVALID)}")
        kind: Any = jsonschema.validators.validator_for(self.schema, jsonschema.Draft202012Validator)
        try:
            kind.check_schema(self.schema)
        except jsonschema.SchemaError as error:
            raise ConfigError(f"extract: schema at {error.json_path}: {error.message}") from error
        # An empty registry, so that no reference is fetched.
        self._validator = kind(
            self.schema, registry=referencing.Registry(), format_checker=kind.FORMAT_CHECKER
        )

    def process_item(self, item: Row, ctx: Any = None) -> Made:
        """Return the row with the value, or one row per value of a list.

        Raises:
            ExtractError: the text contains no matching value and `on_invalid` is `fail`.
            KeyError: the row has no such field.
        """
        try:
            value = self.read(str(item[self.field] or ""))
        except ExtractError:
            if self.on_invalid == "fail":
                raise
            return {**item, self.output or self.field: None} if self.on_invalid == "null" else None
        if self.explode and isinstance(value, list):
            return [self._row(item, part) for part in value]
        return self._row(item, value)

    def read(self, text: str) -> Any:
        """Return the first value in a text that matches the schema.

        Raises:
            ExtractError: there is none; the message explains the first parsable value's error.
        """
        problem = ""
        for value in self._values(text):
            error = next(self._validator.iter_errors(value), None)
            if error is None:
                return value
            problem = problem or f"{error.json_path}: {error.message[:_SHOWN]}"
        raise ExtractError(f"{problem or 'no JSON'} in {text[:_SHOWN]!r}")

    def _values(self, text: str) -> Iterator[Any]:
        """Yield candidate values, the most literal interpretations first."""
        places = [text, *_FENCE.findall(text), *_spans(text)]
        for place in places:
            try:
                yield values.loads(place.strip())
            except ValueError:
                continue
        if not self.repair:
            return
        for place in dict.fromkeys([*places[1:], text]):
            yield from self._mended(place)

    def _mended(self, text: str) -> Iterator[Any]:
        for schema in (None, self.schema):
            try:
                value = json_repair.loads(text, schema=schema, skip_json_loads=True)
            except (ValueError, RecursionError):
                continue
            if value != "":  # its result if there is nothing to repair
                yield value

    def _row(self, item: Row, value: Any) -> Row:
        if self.output is not None:
            return {**item, self.output: value}
        return {**item, **value} if isinstance(value, dict) else {**item, self.field: value}


def _spans(text: str) -> list[str]:
    """Return the text between the first opening and the last closing bracket, for both bracket types."""
    found = []
    for opening, closing in ("{}", "[]"):
        begin, end = text.find(opening), text.rfind(closing)
        if begin >= 0:
            found.append((begin, text[begin : end + 1] if end > begin else text[begin:]))
    return [span for _, span in sorted(found)]
