"""Decides whether a file without a seal is complete: a regular file without a writer is read to its end.

A file that a node left unfinished is not complete: its rows contain ids, and the resumed node will seal it.
"""

import logging
import time
from pathlib import Path

import fsspec

from asysi.contract.errors import ConfigError
from asysi.pipeline.streams.data_streams import FileStream, IDataStream
from asysi.pipeline.streams.open_files import is_written
from asysi.pipeline.streams.seal import is_local
from asysi.pipeline.streams.source import FilesFeed, brings_ids

_LOOKS, _PAUSE = 5, 0.1
"""Number of checks of a recently written file, and the seconds between them."""
_LONG_AGO = 2.0
"""Seconds since the last write after which a file is assumed to have no writer."""
_log = logging.getLogger("asysi.pipeline")


def is_complete(bus: IDataStream) -> bool:
    """Return whether a stream without a seal can be read to its end: its files exist and have no writer.

    Checks a recently written file five times, 0.1 s apart.
    """
    if not isinstance(bus, FileStream) or bus.bound or bus.is_sealed():
        return False
    try:
        urls = bus.urls()
    except ConfigError:  # reported when it is read
        return False
    if not urls or (bus.direct and brings_ids(FilesFeed(urls[:1]))):
        return False
    paths = []
    for url in urls:
        files, path = fsspec.core.url_to_fs(url)
        if is_local(files):
            paths.append(Path(path))
    if not all(path.is_file() for path in paths) or is_written(paths) or _is_growing(paths):
        return False
    _log.info("[EOF Retry] %s has no seal and no writer: reading it to its end", bus.uri)
    return True


def _is_growing(paths: list[Path]) -> bool:
    """Return whether a recently written file is still growing."""
    if not paths or time.time() - max(path.stat().st_mtime for path in paths) > _LONG_AGO:
        return False
    before = [path.stat().st_size for path in paths]
    for _ in range(_LOOKS):
        time.sleep(_PAUSE)
        if [path.stat().st_size for path in paths] != before:
            _log.info("[EOF Retry] %s is still growing", paths[0] if len(paths) == 1 else "the input")
            return True
    return False
