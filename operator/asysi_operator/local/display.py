"""The live display: panels on a terminal, otherwise a line every few seconds."""

import sys
import time
from types import TracebackType
from typing import Protocol, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from asysi.contract.telemetry import PointStatus, RunStatus
from asysi_operator.local.view import View

LINE_EVERY = 3.0
"""Seconds between plain lines."""
UNKNOWN = "–"


class Display(Protocol):
    """Shows views of a run, throttled."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def show(self, view: View) -> None:
        """Show the current state of the run."""


def display(*, plain: bool) -> Display:
    """Return the display for stderr: live on a terminal, otherwise or with `plain` as lines."""
    console = Console(stderr=True)
    return PlainDisplay(console) if plain or not console.is_terminal else Panels(console)


class PlainDisplay:
    """Plain lines: every few seconds, and at once when the state changes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown_at = 0.0
        self._told: tuple[object, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stderr.flush()

    def show(self, view: View) -> None:
        """Print a line if one is due."""
        now = time.monotonic()
        telling = (view.attempt, view.phase, view.restarts, view.notes)
        if telling == self._told and now - self._shown_at < LINE_EVERY:
            return
        new = [note for note in view.notes if note not in self._told[-1:] and note not in _notes(self._told)]
        for note in new:
            self._print(note)
        self._print(line(view))
        self._shown_at, self._told = now, telling

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class Panels:
    """A full-screen view that is redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, view: View) -> None:
        """Redraw if due."""
        if time.monotonic() - self._shown_at >= 0.25:
            self._live.update(panels(view), refresh=True)
            self._shown_at = time.monotonic()


def line(view: View) -> str:
    """Return a run as one line of text."""
    status = view.status
    if view.phase == "starting":
        states = ", ".join(f"{process.name} {process.state}" for process in view.processes)
        rows = f" · {view.rows}" if view.rows else ""
        return f"[{clock(view.seconds)}] {view.name}: {states}{rows}"
    parts = [
        f"[{clock(view.seconds)}] {view.name} {view.phase}",
        f"{percent(status.share_done)} {progress(status)}",
        f"{whole(status.progress.tokens_per_second)} tok/s",
        *([f"{clock(view.remaining)} left"] if view.remaining is not None else []),
        f"rate {ratio(status.rate)}",
        f"dropped {dropped(status)}",
        f"lag {_lags(status)}",
        "FVU " + (" ".join(ratio(point.fvu) for point in measured(status)) or UNKNOWN),
        f"restarts {view.restarts}",
    ]
    return " · ".join(parts)


def panels(view: View) -> RenderableType:
    """Return a run as a full-screen view."""
    return Group(
        _headline(view),
        *([Text(view.rows)] if view.rows else [_progress_bar(view), _flow(view.status)]),
        _processes(view),
        *([_points(view.status)] if view.status.points else []),
        *(Text(note, style="yellow") for note in view.notes),
    )


def _headline(view: View) -> Text:
    attempt = f" · attempt {view.attempt + 1}" if view.attempt else ""
    return Text.assemble((view.name, "bold"), f" · {view.phase}{attempt} · {clock(view.seconds)}")


def _progress_bar(view: View) -> Table:
    status, grid = view.status, Table.grid(padding=(0, 1))
    left = f"{clock(view.remaining)} left" if view.remaining is not None else ""
    bar = ProgressBar(total=1.0, completed=status.share_done or 0.0, width=30)
    grid.add_row(
        bar,
        percent(status.share_done),
        progress(status),
        f"{whole(status.progress.tokens_per_second)} tok/s",
        left,
    )
    return grid


def _flow(status: RunStatus) -> Text:
    seen, published = status.capture.seen, status.capture.published
    kept = (published or 0) / seen if seen else None
    return Text(
        f"sampling rate {ratio(status.rate)} · rows kept {percent(kept)} · "
        f"sampled out {whole(status.capture.sampled_out or 0)} · dropped {dropped(status)}"
    )


def _processes(view: View) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("process", "state", "restarts", "lag", "lapped"):
        table.add_column(heading, justify="left" if heading in {"process", "state"} else "right")
    for process in view.processes:
        reader = view.status.consumers.get(process.name)
        seen = (percent(reader.lag), whole(reader.lapped or 0)) if reader else ("", "")
        table.add_row(process.name, process.state, str(process.restarts or ""), *seen)
    return table


def _points(status: RunStatus) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("hook point")
    for heading in ("FVU", "L0", "dead"):
        table.add_column(heading, justify="right")
    for point in measured(status):
        table.add_row(point.path or "?", ratio(point.fvu), ratio(point.l0, 1), percent(point.dead))
    return table


def _notes(told: tuple[object, ...]) -> tuple[object, ...]:
    notes = told[-1] if told else ()
    return notes if isinstance(notes, tuple) else ()


def progress(status: RunStatus) -> str:
    """Return how far the model is: tokens of tokens, or steps of steps; or how far finish is that reads."""
    again = status.rereading
    if again.tokens_total:
        return f"{whole(again.tokens)} of {whole(again.tokens_total)} tokens read for the {again.what}"
    at = status.progress
    if at.tokens is not None and at.tokens_total:
        return f"{whole(at.tokens)} of {whole(at.tokens_total)} tokens"
    if at.steps is not None and at.steps_total:
        return f"{whole(at.steps)} of {whole(at.steps_total)} steps"
    return f"{whole(at.tokens)} tokens"


def _lags(status: RunStatus) -> str:
    return " ".join(f"{name} {percent(reader.lag)}" for name, reader in status.consumers.items()) or UNKNOWN


def measured(status: RunStatus) -> list[PointStatus]:
    """Return the hook points; the figures of one without trained rows are left out."""
    return [PointStatus(path=point.path) if point.trained == 0 else point for point in status.points]


def dropped(status: RunStatus) -> str:
    """Return the number of rows dropped at capture, by reason."""
    lost = {reason: rows for reason, rows in (status.capture.dropped or {}).items() if rows}
    if not lost:
        return "0"
    reasons = ", ".join(f"{whole(rows)} {reason}" for reason, rows in sorted(lost.items()))
    return f"{whole(sum(lost.values()))} ({reasons})"


def clock(seconds: float | None) -> str:
    """Return seconds as `m:ss` or `h:mm:ss`."""
    if seconds is None:
        return UNKNOWN
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(share: float | None) -> str:
    """Format a fraction of 0..1 as a percentage."""
    return UNKNOWN if share is None else f"{share:.0%}"


def ratio(number: float | None, digits: int = 3) -> str:
    """Format a number with `digits` decimal places."""
    return UNKNOWN if number is None else f"{number:.{digits}f}"


def whole(number: float | None) -> str:
    """Format a count with thousands separators."""
    return UNKNOWN if number is None else f"{number:,.0f}"
