"""`platform.log`: what a run decided, waited for and mended, a line each, with tags to search for.

`[Node]` a node starts or ends · `[Dispatch]` rows were given to be computed · `[Input]` files came late ·
`[Backpressure]` computing waited for the disk · `[EOF Retry]` a reader waits for its writer · `[Resume]` ·
`[Seal]` · `[Dead Letter]` · `[Budget]` · `[Cancel]` · `[Hook]` · `[Retry]` a call to a server was tried
again.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = "platform.log"
_log = logging.getLogger("asysi.pipeline")


@contextmanager
def journal(folder: Path | None) -> Iterator[None]:
    """Append what the pipeline logs to `platform.log` in a folder (none: nowhere) while the block lasts."""
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
