"""How a captured packet is cut into blocks for the bus."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi.bus.packet import Dtype, Kind, Quantization, payload_at
from asysi.bus.stream import shard_of
from asysi.hook.blocks import PART_BITS, RowBytes, RowTooLargeError, conversion, row_bytes, split_rows

CHUNK = 256 * 1024
PACKETS = {
    "sequence": st.integers(1, 2**47),
    "rows": st.integers(1, 20_000),
    "width": st.integers(1, 16_384),
    "dtype": st.sampled_from(Dtype),
    "wanted": st.sampled_from(Quantization),
}


def packet_bytes(rows: int, row: RowBytes) -> int:
    """Bytes of a packet of so many rows."""
    return payload_at(rows, row.table + rows * row.scale) + rows * row.payload


@given(**PACKETS)
def test_blocks_hold_every_row_once_in_order_and_fit(sequence, rows, width, dtype, wanted):
    """Blocks laid end to end are the packet's rows, and each fits a chunk with its header."""
    size = row_bytes(width, dtype, conversion(dtype, wanted))
    blocks = list(split_rows(sequence, rows, size, CHUNK))
    assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(rows))
    assert all(packet_bytes(block.stop - block.start, size) <= CHUNK for block in blocks)


@given(**PACKETS)
def test_blocks_are_as_few_as_can_be(sequence, rows, width, dtype, wanted):
    """No cutting into fewer blocks would fit."""
    size = row_bytes(width, dtype, conversion(dtype, wanted))
    count = len(list(split_rows(sequence, rows, size, CHUNK)))
    assert count == 1 or packet_bytes(-(-rows // (count - 1)), size) > CHUNK


@given(sequence=st.integers(1, 2**47 - 1), rows=st.integers(1, 5_000), size=st.integers(1, 100_000))
def test_marks_grow_within_a_packet_and_from_packet_to_packet(sequence, rows, size):
    """Source marks are above 0, strictly growing, below those of the next packet, and name their packet."""
    row = RowBytes(0, size)
    now = [block.source for block in split_rows(sequence, rows, row, CHUNK)]
    after = [block.source for block in split_rows(sequence + 1, rows, row, CHUNK)]
    assert now[0] > 0
    assert now + after == sorted(set(now + after))
    assert {mark >> PART_BITS for mark in now} == {sequence}


def test_a_row_that_fits_no_chunk_is_refused():
    """A row larger than a chunk is an error that says both sizes."""
    with pytest.raises(RowTooLargeError, match=f"{CHUNK} bytes does not fit a chunk of {CHUNK}"):
        list(split_rows(1, 1, RowBytes(0, CHUNK), CHUNK))


def test_a_packet_of_too_many_blocks_is_refused():
    """More blocks than a mark can number are an error, not a mark of another packet."""
    with pytest.raises(RowTooLargeError, match="65537 blocks"):
        list(split_rows(1, (1 << PART_BITS) + 1, RowBytes(0, 64), 256 + 64))


@pytest.mark.parametrize(
    ("dtype", "wanted", "done", "payload"),
    [
        (Dtype.FLOAT32, Quantization.NONE, Quantization.NONE, 4),
        (Dtype.FLOAT32, Quantization.BF16, Quantization.BF16, 2),
        (Dtype.FLOAT32, Quantization.INT8, Quantization.INT8, 1),
        (Dtype.FLOAT32, Quantization.FP8, Quantization.FP8, 1),
        (Dtype.FP8_E4M3, Quantization.BF16, Quantization.NONE, 1),
        (Dtype.BFLOAT16, Quantization.BF16, Quantization.NONE, 2),
        (Dtype.BFLOAT16, Quantization.INT8, Quantization.INT8, 1),
        (Dtype.FLOAT16, Quantization.BF16, Quantization.NONE, 2),
        (Dtype.INT8, Quantization.BF16, Quantization.NONE, 1),
        (Dtype.INT8, Quantization.INT8, Quantization.NONE, 1),
    ],
)
def test_what_is_small_enough_passes_through(dtype, wanted, done, payload):
    """Only payloads that become smaller are converted; quantised ones pass; int8 rows carry a scale."""
    assert conversion(dtype, wanted) is done
    scale = 4 if payload == 1 else 0
    assert row_bytes(384, dtype, done) == (scale, 384 * payload, 0)


@pytest.mark.parametrize("wanted", list(Quantization))
def test_gradients_are_never_quantised(wanted):
    """Whatever activations travel as, gradients of either kind stay as they are."""
    for kind in (Kind.GRADIENT, Kind.PARAMETER_GRADIENT):
        assert conversion(Dtype.FLOAT32, wanted, kind=kind) is Quantization.NONE


def test_a_table_of_channels_takes_its_room_once_in_each_packet():
    """Mean and scale of each channel are 8 bytes; so it is too where the device has made them."""
    made = row_bytes(384, Dtype.FLOAT32, Quantization.INT8_CHANNEL)
    assert made == row_bytes(384, Dtype.INT8, Quantization.NONE, by_channel=True) == (0, 384, 3072)


def test_a_hook_point_has_the_same_shard_in_every_process():
    """The shard does not depend on Python's hash seed, and points spread over all shards."""
    points = [f"encoder.layer.{number}.output" for number in range(64)]
    code = f"from asysi.bus.stream import shard_of; print([shard_of(p, 4) for p in {points}])"
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)}
    other = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    here = [shard_of(point, 4) for point in points]
    assert other.stdout.strip() == str(here)
    assert set(np.unique(here)) == {0, 1, 2, 3}
