"""Formats numbers and names for display."""

import math
from collections.abc import Sequence

UNKNOWN = "–"


def count(number: float | None) -> str:
    """Return a whole number with thin spaces between thousands: 1 234 567."""
    return UNKNOWN if number is None else f"{round(number):,}".replace(",", "\u202f")


def percent(share: float | None) -> str:
    """Return a share 0..1 as a percentage with three significant digits, without trailing zeros."""
    if share is None or not math.isfinite(share):
        return UNKNOWN
    value = 100 * share
    if value == 0 or abs(value) >= 99.95:
        return f"{value:.0f}%"
    digits = min(6, max(0, 2 - math.floor(math.log10(abs(value)))))
    text = f"{value:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if digits > 2 else text) + "%"


def decimal(number: float | None) -> str:
    """Return a number with at most one decimal."""
    return UNKNOWN if number is None or not math.isfinite(number) else f"{number:.1f}".removesuffix(".0")


def figure(number: float | None) -> str:
    """Return a number with four decimals."""
    return UNKNOWN if number is None or not math.isfinite(number) else f"{number:.4f}"


def short_names(paths: Sequence[str]) -> list[str]:
    """Return short unique names for dotted paths: `encoder.layer.3.output` becomes `layer 3`.

    Common leading and trailing parts are removed; a number keeps the preceding word.
    """
    parts = [path.split(".") for path in paths]
    if len(parts) < 2:
        return list(paths)
    head = _shared(parts)
    tail = _shared([list(reversed(one[head:])) for one in parts])
    return [_named(one, head, len(one) - tail) for one in parts]


def _shared(lists: list[list[str]]) -> int:
    most = min(map(len, lists)) - 1
    return next((i for i in range(most) if len({one[i] for one in lists}) > 1), max(most, 0))


def _named(parts: list[str], head: int, end: int) -> str:
    middle = ".".join(parts[head:end])
    return f"{parts[head - 1]} {middle}" if head and middle[:1].isdigit() else middle
