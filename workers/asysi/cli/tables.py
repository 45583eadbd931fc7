"""Output of `asysi check`, and tables for other commands."""

import sys
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from asysi.contract.quantity import format_bytes

if TYPE_CHECKING:
    from asysi.bus.plan import StreamPlan
    from asysi.hosts.check import CheckReport


def print_check(report: "CheckReport") -> None:
    """Print the results of a check on stdout, and warnings and problems on stderr."""
    console = stdout_console()
    if report.model is not None:
        console.print(
            f"model      {report.model.uri}  {report.model.class_name or ''}".rstrip(), highlight=False
        )
        if report.model.stored:
            console.print(f"stored     {report.model.stored}, dequantised when loaded", highlight=False)
        if report.model.sha256:
            console.print(f"sha256     {report.model.sha256}", highlight=False)
    if report.points:
        console.print(_points(report))
    if report.documents:
        held = f"{report.held_out:,} held out, {report.duplicates:,} duplicates removed"
        console.print(f"data       {report.documents:,} distinct documents: {held}", highlight=False)
    for ring in report.rings:
        console.print(f"{'ring':<10} {_ring(ring)}", highlight=False)
    if report.slots is not None:
        console.print(f"{'slots':<10} {report.slots} of the GPU's memory", highlight=False)
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


def stdout_console() -> Console:
    """Return the console; output that is not a terminal is wide enough for full hook point names."""
    return Console() if sys.stdout.isatty() else Console(width=140)


def _points(report: "CheckReport") -> Table:
    table = new_table(f"{len(report.points)} hook points", "path", "alias", left=2)
    several = any(point.calls != 1 for point in report.points)
    for name in ("a row", "type", *(["calls"] if several else [])):
        table.add_column(name, justify="right")
    for point in report.points:
        row = " × ".join(str(size) for size in point.shape[2:]) or str(point.width)
        calls = [str(point.calls or "not seen")] if several else []
        table.add_row(point.path, point.alias or "", row, point.dtype, *calls)
    return table


def _ring(ring: "StreamPlan") -> str:
    size = format_bytes(ring.shards * ring.chunks * ring.chunk_bytes)
    shards = f"{ring.shards} shard{'s' if ring.shards > 1 else ''}"
    geometry = f"{size}: {shards} × {ring.chunks} chunks of {format_bytes(ring.chunk_bytes)}"
    return f"{ring.folder!s:<14} {geometry}, read by {', '.join(ring.readers)}"


def new_table(title: str, *columns: str, left: int = 1) -> Table:
    """Return an empty table; the first `left` columns contain text, the others numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    return table
