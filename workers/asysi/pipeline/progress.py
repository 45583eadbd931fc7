"""Progress on a terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asysi.pipeline.pipeline import UnifiedNodePipeline


@contextmanager
def display(pipeline: "UnifiedNodePipeline", wanted: bool | None) -> Iterator[None]:
    """Show a live table of the nodes on stderr: if wanted, or, by default, if that is a terminal."""
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield
        return
    from rich.console import Console  # noqa: PLC0415 - only for a terminal
    from rich.live import Live  # noqa: PLC0415

    with Live(
        get_renderable=lambda: table(pipeline),
        console=Console(stderr=True),
        refresh_per_second=4,
        transient=False,
    ):
        yield


def table(pipeline: "UnifiedNodePipeline") -> Any:
    """Return the nodes as a table: durable rows beside computed ones, rate, what is left, what was spent."""
    from rich import box  # noqa: PLC0415 - only for a terminal
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    spent = pipeline.get_runtime()["usage"]
    caption = "  ".join(f"{name} {value:,.6g}" for name, value in spent.items())
    found = Table(title=f"{pipeline.pipeline_id} · {pipeline.status}", caption=caption, box=box.SIMPLE_HEAD)
    for name in ("node", "", "durable", "computed", "of", "made", "dead", "rows/s", "left"):
        found.add_column(name, justify="left" if name in {"node", ""} else "right")
    for node in pipeline.nodes:
        now = node.progress()
        rate = (now.durable - getattr(node, "resumed_at", 0)) / now.seconds if now.seconds > 0 else 0.0
        left = (
            (now.total - now.durable) / rate if now.total and rate > 0 and now.status == "running" else None
        )
        found.add_row(
            node.node_id,
            ProgressBar(total=max(now.total or 1, 1), completed=now.durable, width=24),
            f"{now.durable:,}",
            f"{now.computed:,}",
            f"{'' if now.exact else '~'}{now.total:,}" if now.total is not None else "?",
            f"{now.made:,}",
            f"{now.dead:,}" if now.dead else "",
            f"{rate:,.0f}" if rate else "",
            time.strftime("%H:%M:%S", time.gmtime(left)) if left is not None else "",
        )
    return found
