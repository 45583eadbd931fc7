"""The hook converts with as many threads as it has processors: the same bytes, in the same order."""

import platform
import subprocess

import numpy as np
import pytest

from asysi.bus.packet import HEADER_DTYPE, ROW_DTYPE, ActivationPacket, Dtype, Quantization, parse_packet
from asysi.bus.ring import CppShardedSPMCBus
from asysi.hook.blocks import conversion
from asysi.hook.relay import Relay
from asysi_ring import Control, Reader, Writer, create

CHUNK = 256 * 1024


def test_threads_race_for_nothing_and_make_the_same_bytes(build):
    """Rows of every size and type, gathered or not: one thread, two, three and five agree, and
    ThreadSanitizer finds no race between them.
    """
    plain, watched = build(
        ("tests/convert_pool.cpp", "-O2"), ("tests/convert_pool.cpp", "-O1", "-g", "-fsanitize=thread")
    )
    for command in ([plain, "1000"], ["setarch", platform.machine(), "-R", watched, "60"]):
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert (ran.returncode, ran.stdout) == (0, "the same\n"), ran.stderr


def test_where_threads_are_refused_fewer_convert(build):
    """A system that has no room for all of the threads costs speed, never the process."""
    (program,) = build(("tests/convert_pool.cpp", "-O2"))
    ran = subprocess.run([program, "50", "refused"], capture_output=True, text=True, check=False, timeout=120)
    assert (ran.returncode, ran.stdout) == (0, "the same\n"), ran.stderr


def captured(point, number, values, dtype, *, quantization=Quantization.NONE, scales=None):
    """A captured packet as the hook sees it."""
    header = np.zeros(1, HEADER_DTYPE)
    header["sequence"], header["dtype"], header["quantization"] = number + 1, dtype, quantization
    header["width"], header["step"] = values.shape[1], number
    rows = np.zeros(len(values), ROW_DTYPE)
    rows["sample"], rows["sequence"] = number, np.arange(len(values))
    return ActivationPacket(header[0], point, rows, scales, values)


def carried(folder, threads, packets, wanted):
    """What the hook's relay makes of packets: the bytes of every packet on the bus, by hook point."""
    create(folder, shards=2, chunks=64, chunk_bytes=CHUNK, readers=["r"], policy="overwrite", pins=2)
    found = {}
    with CppShardedSPMCBus(folder).producer(threads) as bus, Reader(folder, "r") as reader:
        relay = Relay(bus, wanted, (), lambda _: None)
        for packet in packets:
            relay.forward(packet)
            while views := reader.pull(16, 0.0):
                for view in views:
                    with Control(folder) as control:
                        one = parse_packet(memoryview(view.copy()), control.accounts())
                    found.setdefault(one.point, []).append(one)
                    reader.consumed(view)
                    view.release()
    return found


@pytest.mark.parametrize("wanted", [Quantization.NONE, Quantization.BF16, Quantization.INT8])
def test_several_threads_carry_what_one_carries(tmp_path, wanted):
    """Every packet of a hook point is on the bus in its order, with the bytes that one thread makes."""
    rng = np.random.default_rng(0)
    packets = [
        captured(f"layer.{n % 3}", n, rng.normal(0, 3, (400 + n, 384)).astype(np.float32), Dtype.FLOAT32)
        for n in range(12)
    ]
    one, four = (carried(str(tmp_path / f"{n}"), n, packets, wanted) for n in (1, 4))
    assert sorted(one) == sorted(four) == ["layer.0", "layer.1", "layer.2"]
    for point, blocks in one.items():
        steps = [int(block.header["step"]) for block in four[point]]
        assert steps == sorted(steps)
        assert len(blocks) == len(four[point]) >= 4
        for block, other in zip(blocks, four[point], strict=True):
            assert block.header.tobytes() == other.header.tobytes()
            assert block.rows.tobytes() == other.rows.tobytes()
            assert block.payload.tobytes() == other.payload.tobytes()
            assert (block.scales is None) == (other.scales is None) == (wanted is not Quantization.INT8)
            if block.scales is not None:
                assert block.scales.tobytes() == other.scales.tobytes()


@pytest.mark.parametrize(
    ("dtype", "made", "how"),
    [
        (Dtype.INT8, np.int8, Quantization.INT8),
        (Dtype.FP8_E4M3, np.uint8, Quantization.FP8),
        (Dtype.BFLOAT16, np.uint16, Quantization.BF16),
    ],
)
@pytest.mark.parametrize("wanted", list(Quantization))
def test_what_the_device_converted_passes_untouched(tmp_path, dtype, made, how, wanted):
    """A packet that says how it was converted is carried byte for byte, whatever the spec asks for."""
    values = np.random.default_rng(0).integers(0, 100, (50, 64)).astype(made)
    scales = np.linspace(0.5, 2, 50, dtype=np.float32) if dtype is Dtype.INT8 else None
    packet = captured("a", 0, values, dtype, quantization=how, scales=scales)
    assert conversion(dtype, wanted, how) is Quantization.NONE
    (block,) = carried(str(tmp_path / "bus"), 3, [packet], wanted)["a"]
    assert block.payload.tobytes() == values.tobytes()
    assert (int(block.header["dtype"]), int(block.header["quantization"])) == (dtype, how)
    if scales is not None:
        assert block.scales.tobytes() == scales.tobytes()


def test_threads_are_a_number(tmp_path):
    """One to 256 threads; a closed writer takes none."""
    create(
        str(tmp_path / "r"), shards=1, chunks=8, chunk_bytes=CHUNK, readers=["r"], policy="overwrite", pins=1
    )
    with Writer(str(tmp_path / "r")) as writer:
        for wrong in (0, 257):
            with pytest.raises(ValueError, match="threads is not within 1 to 256"):
                writer.convert_with(wrong)
        writer.convert_with(2)
        writer.convert_with(1)
