"""Hook points: where a model is watched."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from asysi.bus.packet import Dtype
from asysi.contract.errors import ConfigError
from asysi.model.globs import split_call


@dataclass(frozen=True, slots=True)
class HookPoint:
    """A module whose output is captured."""

    path: str
    """Its name: the module's exact dotted path in the model, and `#n` behind it for one call alone."""
    alias: str | None = None
    """TransformerLens' name of the same place, None when it has none."""
    shape: tuple[int, ...] = ()
    """Of the largest output: [batch, length, …]; empty when unknown."""
    dtype: str = "float32"
    """Type of the output's elements: float32, bfloat16 or float16."""
    calls: int = 1
    """Calls of the module in a forward, as far as the trial showed; 0 when it did not reach it, so that the
    shape is a guess."""

    @property
    def module(self) -> str:
        """Exact dotted path of the module."""
        return split_call(self.path)[0]

    @property
    def call(self) -> int | None:
        """Number of the one call in a forward that is captured, from 0; None captures all."""
        return split_call(self.path)[1]

    @property
    def width(self) -> int:
        """Elements in a row, 0 when unknown: everything behind batch and length counts."""
        width = 1
        for size in self.shape[2:]:
            width *= size
        return width if self.shape else 0

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return Dtype[self.dtype.upper()].itemsize


def points_to_json(points: Sequence[HookPoint]) -> str:
    """Return what POINTS_FILE holds: a list of {path, alias, shape, dtype}."""
    return json.dumps([asdict(point) for point in points], indent=1)


def read_points(file: Path) -> list[HookPoint]:
    """Return the hook points that prepare matched.

    Raises:
        ConfigError: the file is missing or is no such list.
    """
    try:
        return [
            HookPoint(**{**entry, "shape": tuple(entry["shape"])}) for entry in json.loads(file.read_text())
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"the hook points in {file} cannot be read ({error}): prepare writes them first"
        ) from error
