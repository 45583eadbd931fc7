"""The schema as a list of fields, used by the docs, the suggestions and the tests."""

import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from asysi.contract.quantity import PATTERN as QUANTITY

Path = tuple[str | int, ...]
"""Path of a value: keys as in the file, and list indices."""


@dataclass(frozen=True)
class SchemaField:
    """A field of the schema."""

    pattern: str
    """Its path, list items as `[]`: `spec.sae.train[].latents`."""
    owner: type[BaseModel]
    """The part that has the field."""
    name: str
    """Its name in Python."""
    info: FieldInfo
    part: type[BaseModel] | None
    """The part that is its value or its list item, or None."""
    repeated: bool
    """Whether its value is a list of parts."""

    @property
    def quantity(self) -> bool:
        """Whether its value is a memory quantity, which can be written in several ways."""
        return any(getattr(rule, "pattern", None) == QUANTITY for rule in self.info.metadata)

    @property
    def key(self) -> str:
        """Its name in files."""
        return self.info.alias or self.name


def schema_fields(part: type[BaseModel], prefix: str = "") -> Iterator[SchemaField]:
    """Yield every field of `part` and of its nested parts, outer fields first."""
    for name, info in part.model_fields.items():
        pattern = f"{prefix}{info.alias or name}"
        inner, repeated = part_in(info.annotation)
        yield SchemaField(pattern, part, name, info, inner, repeated)
        if inner is not None:
            yield from schema_fields(inner, f"{pattern}{'[]' if repeated else ''}.")


def values(part: BaseModel, prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield path and value of every field of `part` and of its nested parts, outer fields first."""
    for name, info in type(part).model_fields.items():
        path, value = (*prefix, info.alias or name), getattr(part, name)
        yield path, value
        if isinstance(value, BaseModel):
            yield from values(value, path)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from values(item, (*path, index))


def written(path: Path) -> str:
    """Return `path` as a string: `spec.capture.hookPoints[0]`."""
    return _joined(path, "[{}]")


def pattern_of(path: Path) -> str:
    """Return `path` as a string without indices: `spec.capture.hookPoints[]`."""
    return _joined(path, "[]")


def part_at(part: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """Return the part at `path` within `part`; None if there is no part."""
    current: type[BaseModel] | None = part
    for step in path:
        if current is None:
            return None
        if isinstance(step, int):
            continue
        found = next((f for f in current.model_fields.items() if step in {f[0], f[1].alias}), None)
        current = part_in(found[1].annotation)[0] if found else None
    return current


def _joined(path: Path, index: str) -> str:
    text = ""
    for step in path:
        text += index.format(step) if isinstance(step, int) else f".{step}" if text else step
    return text


def part_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Return the part in a type annotation, or None, and whether it is a list item."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    repeated = typing.get_origin(annotation) is list
    for argument in typing.get_args(annotation):
        inner, deeper = part_in(argument)
        if inner is not None:
            return inner, repeated or deeper
    return None, False
