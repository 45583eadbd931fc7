"""Per-channel int8 ranges: measured on the first rows of a hook point, written to a file, then frozen."""

import logging
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import save_file

from asysi.bus.packet import ActivationPacket
from asysi.bus.quantization import Calibration, Table
from asysi.bus.ranges import Frozen, read_ranges
from asysi.files import write_atomically

log = logging.getLogger("asysi")


class Ranges:
    """The frozen ranges of all hook points, in one file that survives restarts and attempts.

    A packet has the same form no matter which process relays it: if a predecessor was killed halfway, its
    successor splits the packet at the same rows. Ranges are therefore used only for packets after the one
    that completed them, and only once the file contains them.

    Args:
        file: safetensors; a tensor [2, width] per hook point, with mean and scale of each channel.

    Raises:
        ConfigError: the file exists and holds something else.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._frozen = read_ranges(file)
        self._measured: dict[str, Calibration] = {}

    def of(self, packet: ActivationPacket) -> Table | None:
        """Return the table for converting a captured packet; None, and measure the packet, while its hook
        point has none.
        """
        width = packet.payload.shape[1]
        found = self._frozen.get(packet.point)
        if found is None:
            self._measure(packet, width)
            return None
        place = (int(packet.header["attempt"]), int(packet.header["sequence"]))
        usable = place > (found.attempt, found.sequence) and found.table.shape[1] == width
        return found.table if usable else None

    def _measure(self, packet: ActivationPacket, width: int) -> None:
        measured = self._measured.setdefault(packet.point, Calibration())
        if measured.width not in {0, width}:
            return  # a module called with several widths: the first one is measured
        measured.add(packet.to_float32())
        table = measured.table()
        if table is None:
            return
        header = packet.header
        frozen = Frozen(table, int(header["attempt"]), int(header["sequence"]))
        try:
            _write(self._file, self._frozen | {packet.point: frozen})
        except (OSError, SafetensorError) as error:
            log.warning("%s stays bf16 for now, its ranges cannot be written: %s", packet.point, error)
            del self._measured[packet.point]  # measure it again
            return
        self._frozen[packet.point] = frozen
        del self._measured[packet.point]
        log.info("%s: the ranges of %d channels are frozen", packet.point, width)


def _write(file: Path, ranges: dict[str, Frozen]) -> None:
    tables = {point: one.table for point, one in ranges.items()}
    places = {point: f"{one.attempt} {one.sequence}" for point, one in ranges.items()}
    write_atomically(file, lambda temporary: save_file(tables, temporary, places))
