"""Conversion on the way into a chunk."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from asysi.bus.packet import HEADER_DTYPE, ActivationPacket, Dtype, Quantization, RowFlag, parse_packet
from asysi.bus.quantization import Quantised, quantise
from asysi_ring import Reader, Writer, create

CHUNK = 256 * 1024
NUMPY = {Dtype.FLOAT32: np.float32, Dtype.FLOAT16: np.float16, Dtype.BFLOAT16: np.uint16, Dtype.INT8: np.int8}


class Pipe:
    """Sends one block through a ring."""

    def __init__(self, folder: str) -> None:
        create(folder, shards=1, chunks=5, chunk_bytes=CHUNK, readers=["r"], policy="overwrite", pins=2)
        self.writer, self.reader = Writer(folder), Reader(folder, "r")
        self.account = self.writer.account("p")

    def send(
        self, rows, quantization, dtype=Dtype.FLOAT32, *, index=None, scales=None, table=None
    ) -> ActivationPacket:
        header = np.zeros(1, HEADER_DTYPE)
        header["account"], header["width"] = self.account, rows.shape[1]
        count = len(rows) if index is None else len(index)
        assert self.writer.publish_block(
            0,
            header,
            None,
            rows.ctypes.data,
            rows.strides[0],
            index,
            count,
            dtype,
            quantization,
            scales=scales,
            table=table,
        )
        (view,) = self.reader.pull()
        self.reader.consumed(view)
        return parse_packet(memoryview(view.copy()), ["p"])


@pytest.fixture
def pipe(folder):
    """A ring with both ends in this process."""
    pipe = Pipe(folder)
    yield pipe
    pipe.reader.close()
    pipe.writer.close()


# Widths around the vector registers' and the pieces' sizes.
shapes = st.tuples(st.integers(1, 6), st.sampled_from([1, 3, 15, 16, 17, 31, 64, 100, 384, 2047, 2048, 2049]))
everything = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)
with_pipe = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def rows_of(elements):
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=elements, fill=elements))


@with_pipe
@given(rows=rows_of(everything))
def test_bf16_rounds_as_torch_does(pipe, rows):
    """float32 becomes bfloat16 by rounding to nearest even, and NaN stays NaN."""
    packet = pipe.send(rows, Quantization.BF16)
    wanted = torch.from_numpy(rows.copy()).bfloat16().float().numpy()
    assert Dtype(int(packet.header["dtype"])) is Dtype.BFLOAT16
    assert Quantization(int(packet.header["quantization"])) is Quantization.BF16
    np.testing.assert_array_equal(packet.to_float32(), wanted)


@pytest.mark.parametrize("high", range(0, 65536, 4096))
def test_bf16_rounds_every_bit_pattern_near_a_tie_as_torch_does(pipe, high):
    """All 65,536 upper halves, each just below, at and just above the tie."""
    upper = np.arange(high, high + 4096, dtype=np.uint32)[:, None] << 16
    rows = (upper | np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)).view(np.float32)
    wanted = torch.from_numpy(rows.copy()).bfloat16().float().numpy()
    np.testing.assert_array_equal(pipe.send(rows, Quantization.BF16).to_float32(), wanted)


@with_pipe
@given(rows=rows_of(st.floats(-(2.0**100), 2.0**100, width=32)))
def test_int8_is_at_most_half_a_step_off(pipe, rows):
    """Of a row with scale = max|x|/127, every element is off by half a scale at most."""
    packet = pipe.send(rows, Quantization.INT8)
    biggest = np.abs(rows).max(axis=1)
    wanted = np.where(biggest / np.float32(127) >= np.finfo(np.float32).tiny, biggest / np.float32(127), 0)
    np.testing.assert_array_equal(packet.scales, wanted.astype(np.float32))
    off = np.abs(packet.to_float32().astype(np.float64) - rows)
    # Half a step, and what float32 arithmetic adds; a row too small for a normal scale becomes zeros.
    allowed = np.where(packet.scales > 0, packet.scales * np.float64(0.5001), 127 * np.finfo(np.float32).tiny)
    assert (off <= allowed[:, None]).all()


@with_pipe
@given(rows=rows_of(everything))
def test_int8_is_defined_for_what_is_no_number(pipe, rows):
    """NaN becomes 0, infinity the end of the range, and the scale comes from the finite elements alone."""
    packet = pipe.send(rows, Quantization.INT8)
    finite = np.where(np.isfinite(rows), np.abs(rows), 0).max(axis=1)
    scale = finite / np.float32(127)
    np.testing.assert_array_equal(
        packet.scales, np.where(scale >= np.finfo(np.float32).tiny, scale, np.float32(0))
    )
    usable = (packet.scales > 0)[:, None]
    assert (packet.payload[np.isnan(rows)] == 0).all()
    np.testing.assert_array_equal(packet.payload[usable & np.isposinf(rows)], 127)
    np.testing.assert_array_equal(packet.payload[usable & np.isneginf(rows)], -127)
    assert (packet.payload[~usable[:, 0]] == 0).all()
    assert packet.payload.min() >= -127


@with_pipe
@given(
    rows=rows_of(st.floats(-60000, 60000, width=16)),
    quantization=st.sampled_from([Quantization.BF16, Quantization.INT8]),
)
def test_half_precision_converts_as_its_float32_would(pipe, rows, quantization):
    """float16 and bfloat16 sources give what their exact float32 values give."""
    half = rows.astype(np.float16)
    via = pipe.send(half.astype(np.float32), quantization).to_float32()
    np.testing.assert_array_equal(pipe.send(half, quantization, Dtype.FLOAT16).to_float32(), via)
    brain = torch.from_numpy(rows.copy()).bfloat16()
    bits = brain.view(torch.int16).numpy().view(np.uint16)
    via = pipe.send(brain.float().numpy(), quantization).to_float32()
    np.testing.assert_array_equal(pipe.send(bits, quantization, Dtype.BFLOAT16).to_float32(), via)


@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [(dtype, Quantization.NONE) for dtype in NUMPY]
    + [(Dtype.BFLOAT16, Quantization.BF16), (Dtype.INT8, Quantization.BF16), (Dtype.INT8, Quantization.INT8)],
)
def test_what_is_as_narrow_passes_through(pipe, dtype, quantization):
    """No conversion, or none that would narrow: the payload has the source's bits, int8 keeps its scales."""
    rows = np.random.default_rng(0).integers(-99, 99, (7, 33)).astype(NUMPY[dtype])
    scales = np.arange(7, dtype=np.float32) if dtype is Dtype.INT8 else None
    packet = pipe.send(rows, quantization, dtype, scales=scales)
    assert Dtype(int(packet.header["dtype"])) is dtype
    assert packet.payload.tobytes() == rows.tobytes()
    assert (packet.scales is None) == (scales is None)
    if scales is not None:
        np.testing.assert_array_equal(packet.scales, scales)


@with_pipe
@given(data=st.data(), rows=rows_of(st.floats(-1e3, 1e3, width=32)), quantization=st.sampled_from([0, 1, 3]))
def test_gathered_rows_are_the_chosen_ones_in_order(pipe, data, rows, quantization):
    """An index takes rows of a strided source, in any order and more than once."""
    index = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=8)), np.int64)
    wide = np.zeros((len(rows), rows.shape[1] + 5), np.float32)
    wide[:, : rows.shape[1]] = rows
    chosen = pipe.send(wide[:, : rows.shape[1]], quantization, index=index)
    plain = pipe.send(np.ascontiguousarray(rows[index]), quantization)
    np.testing.assert_array_equal(chosen.to_float32(), plain.to_float32())


def table_of(data, width: int) -> np.ndarray:
    """A mean and a scale for each channel, of any size."""
    means = st.floats(-(2.0**60), 2.0**60, width=32)
    scales = st.floats(2.0**-120, 2.0**60, width=32)
    drawn = [data.draw(hnp.arrays(np.float32, width, elements=one, fill=one)) for one in (means, scales)]
    return np.stack(drawn)


def same(packet: ActivationPacket, wanted: Quantised) -> None:
    """The packet holds the bytes that the reference makes."""
    assert packet.payload.dtype == wanted.payload.dtype
    np.testing.assert_array_equal(packet.payload, wanted.payload)
    for got, made in ((packet.scales, wanted.scales), (packet.table, wanted.table)):
        assert (got is None) == (made is None)
        if made is not None:
            assert got.tobytes() == made.tobytes()


@with_pipe
@given(
    rows=rows_of(everything),
    quantization=st.sampled_from([Quantization.BF16, Quantization.FP8, Quantization.INT8]),
)
def test_the_ring_makes_the_bytes_of_the_reference(pipe, rows, quantization):
    """C++ and numpy agree bit by bit, whatever the numbers are."""
    packet = pipe.send(rows, quantization)
    same(packet, quantise(rows, quantization))
    assert int(packet.header["version"]) == (3 if quantization is Quantization.FP8 else 2)


@with_pipe
@given(rows=rows_of(everything), data=st.data(), ordinary=st.booleans())
def test_int8_by_channel_is_that_of_the_reference(pipe, rows, data, ordinary):
    """C++ and numpy agree bit by bit; rows with values outside are flagged, and the values counted."""
    table = np.array([[0.5], [0.25]], np.float32).repeat(rows.shape[1], 1)
    table = table if ordinary else table_of(data, rows.shape[1])
    before = pipe.writer.saturated(pipe.account)
    packet = pipe.send(rows, Quantization.INT8_CHANNEL, table=table)
    wanted = quantise(rows, Quantization.INT8_CHANNEL, table)
    same(packet, wanted)
    flagged = (packet.rows["flags"] & RowFlag.SATURATED) != 0
    np.testing.assert_array_equal(flagged, wanted.saturated > 0)
    assert pipe.writer.saturated(pipe.account) - before == wanted.saturated.sum()
    assert Quantization(int(packet.header["quantization"])) is Quantization.INT8_CHANNEL
    again = pipe.send(np.ascontiguousarray(packet.payload), 0, Dtype.INT8, table=packet.table)
    same(again, Quantised(packet.payload, table=table))
    assert again.header["quantization"] == packet.header["quantization"], (
        "what passes through says what it is"
    )


@with_pipe
@given(rows=rows_of(st.floats(-60000, 60000, width=16)))
def test_half_precision_becomes_fp8_and_int8_by_channel_as_its_float32_would(pipe, rows):
    """float16 sources give the bytes that their exact float32 values give."""
    half, table = rows.astype(np.float16), np.ones((2, rows.shape[1]), np.float32)
    same(
        pipe.send(half, Quantization.FP8, Dtype.FLOAT16), quantise(half.astype(np.float32), Quantization.FP8)
    )
    packet = pipe.send(half, Quantization.INT8_CHANNEL, Dtype.FLOAT16, table=table)
    same(packet, quantise(half.astype(np.float32), Quantization.INT8_CHANNEL, table))


def test_int8_by_channel_without_its_table_is_refused(pipe):
    """No table, or one of another width: a ValueError, and nothing is booked."""
    rows = np.ones((2, 8), np.float32)
    with pytest.raises(ValueError, match="table"):
        pipe.send(rows, Quantization.INT8_CHANNEL)
    with pytest.raises(ValueError, match="table"):
        pipe.send(rows, Quantization.INT8_CHANNEL, table=np.ones((2, 7), np.float32))
    assert pipe.writer.head() == 0


def test_a_claim_of_int8_by_channel_carries_its_table(pipe):
    """Filled in place by another converter, a device say, a packet is read back like the ring's own."""
    rows = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    table = np.stack([rows.mean(0), np.full(12, 0.03, np.float32)])
    made = quantise(rows, Quantization.INT8_CHANNEL, table)
    header = np.zeros(1, HEADER_DTYPE)
    header["account"], header["width"] = pipe.account, 12
    with pipe.writer.claim(0, header, 5, Dtype.FLOAT32, Quantization.INT8_CHANNEL) as claim:
        claim.set_scales(table)
        np.copyto(np.frombuffer(claim, np.int8).reshape(5, 12), made.payload)
    (view,) = pipe.reader.pull()
    same(parse_packet(memoryview(view.copy()), ["p"]), made)
