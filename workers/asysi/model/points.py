"""Hook points: the places in a model whose activations are captured."""

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
    """Name: the module's exact dotted path in the model, followed by `#n` for a single call."""
    alias: str | None = None
    """TransformerLens name of the same place; None if it has none."""
    shape: tuple[int, ...] = ()
    """Shape of the largest output, [batch, length, …]; empty if unknown."""
    dtype: str = "float32"
    """Dtype of the output: float32, bfloat16 or float16."""
    calls: int = 1
    """Number of module calls per forward pass in the trial run; 0 if it was not reached, in which case the
    shape is a guess."""

    @property
    def module(self) -> str:
        """Exact dotted path of the module."""
        return split_call(self.path)[0]

    @property
    def call(self) -> int | None:
        """Index of the only call captured per forward pass, from 0; None captures all calls."""
        return split_call(self.path)[1]

    @property
    def width(self) -> int:
        """Elements in a row, 0 if unknown: the product of all dimensions after batch and length."""
        width = 1
        for size in self.shape[2:]:
            width *= size
        return width if self.shape else 0

    @property
    def itemsize(self) -> int:
        """Size of an element in bytes."""
        return Dtype[self.dtype.upper()].itemsize


def points_to_json(points: Sequence[HookPoint]) -> str:
    """Return the content of POINTS_FILE: a list of {path, alias, shape, dtype}."""
    return json.dumps([asdict(point) for point in points], indent=1)


def read_points(file: Path) -> list[HookPoint]:
    """Return the hook points that prepare resolved.

    Raises:
        ConfigError: the file is missing or invalid.
    """
    try:
        return [
            HookPoint(**{**entry, "shape": tuple(entry["shape"])}) for entry in json.loads(file.read_text())
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"the hook points in {file} cannot be read ({error}): prepare writes them first"
        ) from error
