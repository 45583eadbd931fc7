"""The file with the frozen ranges of int8 by channel, as the hook worker writes it and others read it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from asysi.bus.quantization import Table
from asysi.contract.errors import ConfigError


class Frozen(NamedTuple):
    """The ranges of a hook point, and the packet that completed them; later packets are converted."""

    table: Table
    """[2, width] mean and scale of each channel."""
    attempt: int
    sequence: int


def read_ranges(file: Path) -> dict[str, Frozen]:
    """Return the ranges in `file` by hook point, empty if there is no such file.

    Raises:
        ConfigError: the file holds something else.
    """
    if not file.exists():
        return {}
    try:
        with safe_open(str(file), "np") as opened:
            places = opened.metadata() or {}
            return {point: _frozen(opened.get_tensor(point), places[point]) for point in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{file} does not hold the ranges of int8 ({error}): remove it, and they are measured again"
        ) from error


def _frozen(table: Table, place: str) -> Frozen:
    attempt, sequence = map(int, place.split())
    if table.dtype != np.float32 or table.ndim != 2 or len(table) != 2:
        raise ValueError(f"a table {table.dtype} {table.shape} is not float32 [2, width]")
    if not np.isfinite(table).all() or not (table[1] > 0).all():
        raise ValueError("a scale is not a number above 0")
    return Frozen(table, attempt, sequence)
