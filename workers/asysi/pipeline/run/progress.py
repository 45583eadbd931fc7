"""Progress on a terminal: a live table, or periodic lines."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from asysi.pipeline.run.hooks import DefaultPipelineHooks

Image = Mapping[str, Any]
"""Contents of `runtime.json`."""

_EVERY = 10.0
"""Seconds between two lines about a node."""


@contextmanager
def display(image: Callable[[], Image], wanted: bool | None) -> Iterator[None]:
    """Show a live table of a run's nodes on stderr, if wanted or, by default, on a terminal."""
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield
        return
    from rich.console import Console  # noqa: PLC0415 - only for a terminal
    from rich.live import Live  # noqa: PLC0415

    with Live(
        get_renderable=lambda: table([image()]),
        console=Console(stderr=True),
        refresh_per_second=4,
        transient=False,
    ):
        yield


def table(images: Sequence[Image]) -> Any:
    """Return the nodes of a run, or of its shards, as a table: durable and computed rows, rate, time
    left, usage.
    """
    from rich import box  # noqa: PLC0415 - only for a terminal
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    title = f"{images[0]['pipeline_id']} · {', '.join(dict.fromkeys(image['status'] for image in images))}"
    caption = "  ".join(f"{name} {value:,.6g}" for name, value in spent(images).items())
    found = Table(title=title, caption=caption, box=box.SIMPLE_HEAD)
    for name in ("node", "", "durable", "computed", "of", "made", "dead", "rows/s", "left"):
        found.add_column(name, justify="left" if name in {"node", ""} else "right")
    for image in images:
        for node in image["nodes"]:
            rate = _rate(node)
            left = (
                (node["total"] - node["durable"]) / rate
                if node["total"] and rate > 0 and node["status"] == "running"
                else None
            )
            found.add_row(
                _name(image, node),
                ProgressBar(total=max(node["total"] or 1, 1), completed=node["durable"], width=24),
                f"{node['durable']:,}",
                f"{node['computed']:,}",
                _total(node),
                f"{node['made']:,}",
                f"{node['dead']:,}" if node["dead"] else "",
                f"{rate:,.0f}" if rate else "",
                time.strftime("%H:%M:%S", time.gmtime(left)) if left is not None else "",
            )
    return found


def line(image: Image, node: Mapping[str, Any]) -> str:
    """Return a node's progress as a line."""
    total = f" of {_total(node)}" if node["total"] is not None else ""
    rate = f", {_rate(node):,.0f} rows/s" if _rate(node) else ""
    dead = f", {node['dead']:,} dead" if node["dead"] else ""
    return (
        f"{_name(image, node)}: {node['status']}, {node['durable']:,}{total} rows durable,"
        f" {node['computed']:,} computed, {node['made']:,} made{dead}{rate}"
    )


def spent(images: Sequence[Image]) -> dict[str, float]:
    """Return the total usage of several runs, by name."""
    total: dict[str, float] = {}
    for image in images:
        for name, value in image["usage"].items():
            total[name] = total.get(name, 0) + value
    return total


class ProgressLines(DefaultPipelineHooks):
    """Writes a line about a node when it starts and ends, and every ten seconds in between.

    Args:
        stream: output stream, by default stderr.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._next: dict[str, float] = {}

    def on_node_start(self, cid: str, nid: str, config: Mapping[str, Any]) -> None:
        """Print where the node starts."""
        at = f" at row {config['resumed_at']:,}" if config.get("resumed_at") else ""
        self._say(f"{nid}: begins{at}")
        self._next[nid] = time.monotonic() + _EVERY

    def on_node_progress(
        self, cid: str, nid: str, curr: int, total: int | None, meta: Mapping[str, Any]
    ) -> None:
        """Print the node's progress every ten seconds and at its end."""
        if meta["status"] != "running" or time.monotonic() >= self._next.get(nid, 0):
            self._next[nid] = time.monotonic() + _EVERY
            self._say(line({}, {"node_id": nid, **meta}))

    def _say(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()


def _name(image: Image, node: Mapping[str, Any]) -> str:
    shard = image.get("shard")
    return f"{shard[0]}/{shard[1]} {node['node_id']}" if shard else str(node["node_id"])


def _total(node: Mapping[str, Any]) -> str:
    return f"{'' if node['exact'] else '~'}{node['total']:,}" if node["total"] is not None else "?"


def _rate(node: Mapping[str, Any]) -> float:
    """Return the rows per second of this run."""
    done = node["durable"] - node.get("resumed_at", 0)
    return float(done / node["seconds"]) if node["seconds"] > 0 else 0.0
