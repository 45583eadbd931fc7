"""Ranges of int8 by channel in the hook worker: measured, written down, frozen."""

import numpy as np
import pytest
from tests.bus.memory import MemoryBus

from asysi.bus.packet import HEADER_DTYPE, ROW_DTYPE, ActivationPacket, Dtype, Quantization, RowFlag
from asysi.bus.quantization import FREEZE_ROWS
from asysi.bus.ranges import read_ranges
from asysi.contract.errors import ConfigError
from asysi.hook.ranges import Ranges
from asysi.hook.relay import Relay

WIDTH, ROWS = 8, FREEZE_ROWS // 4
GENERATOR = np.random.default_rng(0)
VALUES = GENERATOR.normal(2, 3, (8, ROWS, WIDTH)).astype(np.float32)


def packet(sequence: int, attempt: int = 0, width: int = WIDTH) -> ActivationPacket:
    """The captured packet with this sequence."""
    header = np.zeros(1, HEADER_DTYPE)[0]
    header["sequence"], header["attempt"], header["width"] = sequence, attempt, width
    header["rows"], header["dtype"] = ROWS, Dtype.FLOAT32
    return ActivationPacket(header, "p", np.zeros(ROWS, ROW_DTYPE), None, VALUES[sequence][:, :width])


def test_the_packets_behind_the_one_that_completed_them_are_converted(tmp_path):
    """Four packets hold the first rows: the fifth is the first with a table, which the file then holds."""
    ranges = Ranges(tmp_path / "q.safetensors")
    found = [ranges.of(packet(sequence)) for sequence in range(1, 7)]
    assert [table is None for table in found] == [True] * 4 + [False] * 2
    np.testing.assert_array_equal(found[4], found[5])
    np.testing.assert_array_equal(read_ranges(tmp_path / "q.safetensors")["p"].table, found[4])
    assert ranges.of(packet(6, width=WIDTH - 1)) is None, "another width has no table"


def test_a_successor_gives_each_packet_the_form_that_it_had(tmp_path):
    """Killed while it carried the packet that completed the ranges: a successor carries that as bf16 too."""
    first = Ranges(tmp_path / "q.safetensors")
    forms = [first.of(packet(sequence)) is None for sequence in range(1, 7)]
    successor = Ranges(tmp_path / "q.safetensors")
    assert [successor.of(packet(sequence)) is None for sequence in range(1, 7)] == forms
    assert successor.of(packet(1, attempt=1)) is not None, "another attempt converts from its first packet on"


def test_ranges_that_cannot_be_written_are_not_used(tmp_path, monkeypatch):
    """On a full disk packets stay bf16, whoever carries them; later ranges are measured again."""
    ranges = Ranges(tmp_path / "q.safetensors")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("asysi.hook.ranges.write_atomically", full)
        assert all(ranges.of(packet(sequence)) is None for sequence in (1, 2, 3, 4))
    assert all(ranges.of(packet(sequence)) is None for sequence in (3, 4, 5, 6))
    assert ranges.of(packet(7)) is not None


@pytest.mark.parametrize("damage", [b"", b"not safetensors at all", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_file_is_named(tmp_path, damage):
    """A file that holds something else is an error that says which and what to do; an empty table is none."""
    file = tmp_path / "q.safetensors"
    file.write_bytes(damage)
    if damage.startswith(b"\x08"):
        assert read_ranges(file) == {}
        return
    with pytest.raises(ConfigError, match=r"q\.safetensors.*remove it"):
        read_ranges(file)


def test_the_relay_converts_and_counts_what_saturates(tmp_path):
    """First bf16, then int8 with its table in every packet; values outside are flagged and counted."""
    bus = MemoryBus(["sae"], depth=64)
    with bus.producer() as producer, bus.consumer("sae") as consumer:
        relay = Relay(
            producer, Quantization.INT8_CHANNEL, (), lambda _: None, Ranges(tmp_path / "q.safetensors")
        )
        for sequence in range(1, 6):
            relay.forward(packet(sequence))
        last = packet(6)
        last.payload[3, 2] = 1e6
        relay.forward(last)
        carried = consumer.pull(64, 1.0)
        kinds = [Quantization(int(one.header["quantization"])) for one in carried]
        assert kinds == [Quantization.BF16] * 4 + [Quantization.INT8_CHANNEL] * 2
        table = carried[4].table
        off = np.abs(carried[4].to_float32() - VALUES[5])
        assert (off <= table[1] * 0.501).all()
        assert producer.saturated("p") == 1
        assert np.flatnonzero(carried[5].rows["flags"] & RowFlag.SATURATED).tolist() == [3]
        assert carried[5].to_float32()[3, 2] == pytest.approx(table[0, 2] + 127 * table[1, 2])
