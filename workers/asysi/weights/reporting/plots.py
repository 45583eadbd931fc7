"""Line plots as SVG, drawn when the page is built, so the page needs no script."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asysi.weights.reporting.formatting import short_number

WIDTH, HEIGHT = 520.0, 190.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 8.0, 8.0, 22.0
_ROW, _MOST_LABEL = 22.0, 160.0
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a plot."""

    name: str
    path: str
    """`d` attribute of the SVG path."""
    dots: tuple[tuple[float, float, str], ...]
    """Position of each point, and its tooltip."""
    shade: int
    """Index of its colour."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot, in the coordinates of its SVG."""

    title: str
    note: str
    lines: tuple[Line, ...]
    across: tuple[tuple[float, str], ...]
    """Ticks of the horizontal axis: position and label."""
    up: tuple[tuple[float, str], ...]
    """Ticks of the vertical axis."""
    width: float = WIDTH
    height: float = HEIGHT
    left: float = _LEFT
    bottom: float = HEIGHT - _BOTTOM

    @property
    def named(self) -> bool:
        """Whether the vertical axis names the lines, so that no legend is needed."""
        return bool(self.lines) and [line.name for line in self.lines] == [label for _, label in self.up]


def plot(
    title: str,
    note: str,
    series: Mapping[str, Sequence[Point]],
    *,
    shades: Mapping[str, int],
    log_x: bool = False,
    log_y: bool = False,
    dots: bool = True,
) -> Plot | None:
    """Return a plot of series of points, None if no point can be drawn.

    Args:
        title: what is shown.
        note: how to read it, in one sentence.
        series: points by name; those not finite, or not positive on a logarithmic axis, are left out.
        shades: colour index of each series.
        log_x: whether the horizontal axis is logarithmic.
        log_y: whether the vertical axis is logarithmic.
        dots: whether points are marked and show their value as a tooltip.
    """
    drawn = {
        name: [one for one in points if _fits(one, log_x=log_x, log_y=log_y)]
        for name, points in series.items()
    }
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        return None
    every = [point for points in drawn.values() for point in points]
    across = _Axis([x for x, _ in every], _LEFT, WIDTH - _RIGHT, log=log_x, whole=not log_x)
    up = _Axis([y for _, y in every], HEIGHT - _BOTTOM, _TOP, log=log_y, whole=False)
    lines = []
    for name, points in drawn.items():
        places = [(across.place(x), up.place(y)) for x, y in sorted(points)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        said = tuple(
            (px, py, f"{name}, {short_number(x)}: {short_number(y)}")
            for (px, py), (x, y) in zip(places, sorted(points), strict=True)
        )
        lines.append(Line(name, path, said if dots else (), shades.get(name, 0)))
    return Plot(title, note, tuple(lines), across.ticks(), up.ticks())


def dots_by_name(
    title: str, note: str, values: Mapping[str, float], *, shades: Mapping[str, int], log_x: bool = False
) -> Plot | None:
    """Return a plot of one value per name, one row per name; None if no value can be drawn.

    Args:
        title: what is shown.
        note: how to read it, in one sentence.
        values: by name.
        shades: colour index of each name.
        log_x: whether the axis of the values is logarithmic.
    """
    drawn = {name: x for name, x in values.items() if _fits((x, 1.0), log_x=log_x, log_y=False)}
    if not drawn:
        return None
    left = min(_MOST_LABEL, 14.0 + 7.0 * max(map(len, drawn)))
    across = _Axis(list(drawn.values()), left + 8, WIDTH - _RIGHT, log=log_x, whole=False)
    rows = {name: _TOP + _ROW * (number + 0.5) for number, name in enumerate(drawn)}
    lines = []
    for name, x in drawn.items():
        said = f"{name}: {short_number(x)}"
        place = (across.place(x), rows[name], said)
        lines.append(Line(name, "", (place,), shades.get(name, 0)))
    height = _TOP + _ROW * len(drawn) + _BOTTOM
    up = tuple((at, name) for name, at in rows.items())
    return Plot(title, note, tuple(lines), across.ticks(), up, WIDTH, height, left, height - _BOTTOM)


def _fits(point: Point, *, log_x: bool, log_y: bool) -> bool:
    x, y = point
    return math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x) and (y > 0 or not log_y)


class _Axis:
    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool, whole: bool) -> None:
        self._log, self._start, self._end = log, start, end
        low, high = min(values), max(values)
        if log:
            low, high = math.log10(low), math.log10(high)
        if high - low < 1e-12 * max(abs(low), abs(high), 1e-30):
            pad = 0.5 if log or whole else (abs(high) or 1.0) * 0.5
            floor = 0.0 if low >= 0 and not (log or whole) else -math.inf  # shares and counts are >= 0
            low, high = max(floor, low - pad), high + pad
        self._low, self._high, self._whole = low, high, whole

    def place(self, value: float) -> float:
        at = math.log10(value) if self._log else value
        return self._start + (at - self._low) / (self._high - self._low) * (self._end - self._start)

    def ticks(self) -> tuple[tuple[float, str], ...]:
        if self._log:
            first, last = math.ceil(self._low - 1e-9), math.floor(self._high + 1e-9)
            step = max(1, (last - first) // 4)
            values = [10.0**power for power in range(first, last + 1, step)]
            if len(values) < 2:
                values = [10**self._low, 10**self._high]
        else:
            step_size = _nice((self._high - self._low) / 4)
            if self._whole:
                step_size = max(1.0, round(step_size))
            first = math.ceil(self._low / step_size - 1e-9)
            last = math.floor(self._high / step_size + 1e-9)
            values = [step_size * number for number in range(first, last + 1)]
        return tuple((self.place(value), short_number(value)) for value in values)


def _nice(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= step * (1 - 1e-9))
