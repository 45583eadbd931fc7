"""Status of a pipeline as seen from outside: its image, corrected by its ledger."""

from pathlib import Path
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.pipeline.ledger.ledger import RowLedger
from asysi.pipeline.ledger.settled_rows import settled_rows
from asysi.pipeline.run.run_state import LIVE, RUNTIME, read_image
from asysi.pipeline.streams.data_streams import StreamFactory
from asysi.pipeline.streams.open_files import is_locked


def overview(folder: Path) -> list[dict[str, Any]]:
    """Return the image of the pipeline in a results folder, or of its shards in order.

    Each gets `settled` (source rows with all descendants in the output), `dead` (dead letters), and committed
    counts from the ledger. A run whose process has died is `interrupted`.

    Raises:
        ConfigError: there is no pipeline.
    """
    folders = [folder] if (folder / RUNTIME).exists() else sorted(folder.glob("shard-*"))
    if not folders:
        raise ConfigError(f"{folder} has no {RUNTIME} and no shards: no pipeline was created there")
    return [_corrected(one) for one in folders if (one / RUNTIME).exists()]


def _corrected(folder: Path) -> dict[str, Any]:
    image = read_image(folder)
    file = folder / "ledger.sqlite"
    if image["status"] in LIVE and not is_locked(folder / ".lock"):
        image["status"] = "interrupted"
        for node in image["nodes"]:
            if node["status"] == "running":
                node["status"] = "interrupted"
    if not file.exists():
        return {**image, "settled": 0, "dead": 0}
    ledger = RowLedger(file, fsync=False)
    try:
        for node in image["nodes"]:
            totals = ledger.totals(node["node_id"])
            node.update(
                durable=totals.rows,
                computed=max(node["computed"], totals.rows),
                made=totals.made,
                dropped=totals.dropped,
                blank=totals.blank,
                dead=totals.dead,
            )
        buses = [StreamFactory.create(node["output_uri"], folder / "spool") for node in image["nodes"]]
        settled = settled_rows(ledger, [node["node_id"] for node in image["nodes"]], buses)
        return {**image, "settled": settled, "dead": len(ledger.dead())}
    finally:
        ledger.close()
