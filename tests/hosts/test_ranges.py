"""Ranges of int8 that the hook worker freezes while the host runs."""

import logging

import numpy as np
from safetensors.numpy import save_file

from asysi.hosts.ranges import FrozenRanges


def write(file, **widths):
    """Leave a file as the hook worker does."""
    tables = {point: np.full((2, width), 0.5, np.float32) for point, width in widths.items()}
    save_file(tables, file, dict.fromkeys(widths, "0 7"))


def test_each_table_is_handed_on_once_when_it_is_there(tmp_path):
    """Nothing before the file exists; then each hook point's, also one that is frozen later."""
    file, given = tmp_path / "q.safetensors", []
    ranges = FrozenRanges(file, lambda point, table: given.append((point, table.shape)))
    ranges.refresh()
    assert given == []
    write(file, a=3)
    ranges.refresh()
    ranges.refresh()
    assert given == [("a", (2, 3))]
    write(tmp_path / "next", a=3, b=5)
    (tmp_path / "next").replace(file)
    ranges.refresh()
    assert given == [("a", (2, 3)), ("b", (2, 5))]


def test_a_damaged_file_leaves_conversion_to_the_hook_worker(tmp_path, caplog):
    """It is said once; when the file has been mended its tables are used."""
    file, given = tmp_path / "q.safetensors", []
    ranges = FrozenRanges(file, lambda point, _: given.append(point))
    file.write_bytes(b"not safetensors at all")
    with caplog.at_level(logging.WARNING):
        ranges.refresh()
        ranges.refresh()
    assert len(caplog.records) == 1
    assert "int8 is left to the hook worker" in caplog.text
    write(tmp_path / "next", a=3)
    (tmp_path / "next").replace(file)
    ranges.refresh()
    assert given == ["a"]
