"""The ranges that the hook worker has frozen, handed to capture, so that a device converts with them."""

import logging
from collections.abc import Callable
from pathlib import Path

from asysi.bus.quantization import Table
from asysi.bus.ranges import read_ranges
from asysi.contract.errors import ConfigError

log = logging.getLogger("asysi")


class FrozenRanges:
    """Reads the hook worker's file when it has changed. Each hook point's table is handed on once.

    Until then rows leave the device as they are, and the hook worker measures and converts them: with the
    same table, so that it does not matter to a reader where a packet was converted.

    Args:
        file: written by `asysi.hook.ranges.Ranges`; it need not exist yet.
        freeze: takes the name of a hook point and its table.
    """

    def __init__(self, file: Path, freeze: Callable[[str, Table], None]) -> None:
        self._file, self._freeze = file, freeze
        self._read = (0, 0, 0)
        self._frozen: set[str] = set()

    def refresh(self) -> None:
        """Hand on what is new. A file that cannot be read is logged, and read again when it has changed."""
        try:
            there = self._file.stat()
        except OSError:
            return
        version = there.st_mtime_ns, there.st_size, there.st_ino  # a clock tick may see two replacements
        if version == self._read:
            return
        self._read = version
        try:
            found = read_ranges(self._file)
        except ConfigError as error:
            log.warning("int8 is left to the hook worker: %s", error)
            return
        for point in found.keys() - self._frozen:
            self._frozen.add(point)
            self._freeze(point, found[point].table)
