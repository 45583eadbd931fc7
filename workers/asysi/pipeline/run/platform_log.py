"""`platform.log`: decisions, waits and recoveries of a run, one per line, with searchable tags.

`[Node]` a node starts or ends · `[Dispatch]` rows were dispatched · `[Input]` files arrived late ·
`[Backpressure]` computing waited for the writer · `[EOF Retry]` a reader waits for its writer · `[Resume]` ·
`[Seal]` · `[Dead Letter]` · `[Budget]` · `[Cancel]` · `[Hook]` · `[Retry]` a call to a server was retried.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = "platform.log"
_log = logging.getLogger("asysi.pipeline")


@contextmanager
def journal(folder: Path | None) -> Iterator[None]:
    """Within the block, append the pipeline's log to `platform.log` in a folder (None: disabled)."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / FILE, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("asysi.pipeline")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(before, logging.INFO) if before else logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
        handler.close()
