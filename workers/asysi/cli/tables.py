"""What `asysi check` and `asysi ring inspect` print."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from asysi.bus.mailbox import DROP_REASONS
from asysi.contract.errors import ConfigError
from asysi.contract.quantity import format_bytes

if TYPE_CHECKING:
    from asysi.hosts.check import CheckReport
    from asysi.hosts.rings import RingPlan
    from asysi_ring import Control


def print_check(report: "CheckReport") -> None:
    """Print what an experiment would do on stdout, and what is refused on stderr."""
    console = _console()
    if report.model is not None:
        console.print(
            f"model      {report.model.uri}  {report.model.class_name or ''}".rstrip(), highlight=False
        )
        if report.model.sha256:
            console.print(f"sha256     {report.model.sha256}", highlight=False)
    if report.points:
        console.print(_points(report))
    if report.documents:
        held = f"{report.held_out:,} held out, {report.duplicates:,} duplicates left out"
        console.print(f"data       {report.documents:,} distinct documents: {held}", highlight=False)
    for ring in report.rings:
        console.print(f"{'ring':<10} {_ring(ring)}", highlight=False)
    if report.ring_bytes:
        console.print(
            f"{'memory':<10} {report.ring_bytes / 2**20:,.0f} MiB of shared memory", highlight=False
        )
    for warning in report.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    for problem in report.problems:
        sys.stderr.write(f"{problem}\n")
    console.print(
        "refused" if report.problems else "nothing is refused", style="red" if report.problems else "green"
    )


def print_ring(folder: Path) -> None:
    """Print geometry, cursors, lag and books of the ring in `folder`.

    Raises:
        ConfigError: there is no ring of this version.
    """
    from asysi_ring import Control, RingError  # noqa: PLC0415 - a check needs no compiled ring

    try:
        control = Control(str(folder))
    except (RingError, OSError) as error:
        raise ConfigError(
            f"{folder} holds no ring that can be read: {error}. A ring has `control` and `data` in it"
        ) from error
    console = _console()
    with control:
        console.print(_geometry(control), highlight=False)
        console.print(_readers(control))
        console.print(_produced(control))
        for reader in control.readers():
            console.print(_consumed(control, reader))


def _console() -> Console:
    """Return the console; what is no terminal has room for a hook point's whole name."""
    return Console() if sys.stdout.isatty() else Console(width=140)


def _points(report: "CheckReport") -> Table:
    table = _table(f"{len(report.points)} hook points", "path", "alias", left=2)
    for name in ("a row", "type"):
        table.add_column(name, justify="right")
    for point in report.points:
        row = " × ".join(str(size) for size in point.shape[2:]) or str(point.width)
        table.add_row(point.path, point.alias or "", row, point.dtype)
    return table


def _ring(ring: "RingPlan") -> str:
    size = format_bytes(ring.shards * ring.chunks * ring.chunk_bytes)
    shards = f"{ring.shards} shard{'s' if ring.shards > 1 else ''}"
    geometry = f"{size}: {shards} × {ring.chunks} chunks of {format_bytes(ring.chunk_bytes)}"
    return f"{ring.folder!s:<14} {geometry}, read by {', '.join(ring.readers)}"


def _geometry(control: "Control") -> str:
    ring = control.geometry()
    shape = f"{ring['shards']} × {ring['chunks']} chunks of {format_bytes(int(ring['chunk_bytes']))}"
    depth = f"{ring['depth']} a shard can be unread"
    heads = ", ".join(f"{head:,}" for head in control.heads())
    return (
        f"{shape} ({depth}), {ring['policy']}, ABI {ring['abi']}\n"
        f"writer {control.writer_state()}, generation {ring['generation']}, heads {heads}"
    )


def _readers(control: "Control") -> Table:
    table = _table("readers", "reader", "state", left=2)
    for name in ("cursors", "lag"):
        table.add_column(name, justify="right")
    for reader in control.readers():
        cursors = ", ".join(f"{cursor:,}" for cursor in control.cursors(reader))
        table.add_row(reader, control.reader_state(reader), cursors, f"{control.lag(reader):.1%}")
    return table


def _produced(control: "Control") -> Table:
    table = _table(
        "produced, in rows", "hook point", "seen", "published", "sampled out", "dropped", "balance"
    )
    for point, books in zip(control.accounts(), control.produced(), strict=False):
        seen, published, left_out = (_count(books[key]) for key in ("seen", "published", "sampled_out"))
        drops: list[int] = list(books["dropped"])  # type: ignore[call-overload]  # the ring's eight reasons
        reasons = ", ".join(
            f"{name} {count:,}" for name, count in zip(DROP_REASONS, drops, strict=True) if count
        )
        balance = seen - published - left_out - sum(drops)
        table.add_row(
            point, f"{seen:,}", f"{published:,}", f"{left_out:,}", reasons or "0", _balance(balance)
        )
    return table


def _consumed(control: "Control", reader: str) -> Table:
    table = _table(
        f"consumed by {reader}, in rows", "hook point", "position", "durable", "lapped", "rolled back"
    )
    for point, books in zip(control.accounts(), control.consumed(reader), strict=False):
        table.add_row(point, *(f"{books[key]:,}" for key in ("position", "durable", "lapped", "rolled_back")))
    return table


def _table(title: str, *columns: str, left: int = 1) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    return table


def _count(value: object) -> int:
    assert isinstance(value, int)
    return value


def _balance(difference: int) -> str:
    return "even" if difference == 0 else f"{difference:+,}"
