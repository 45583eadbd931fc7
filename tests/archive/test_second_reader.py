"""What docs/mscan.md says is enough to read an archive: a reader made from it agrees with the package's."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from tests.packets import as_bfloat16, packet_of, rows_of

from asysi.archive.codec import Codec
from asysi.archive.dataset import MScanDataset
from asysi.archive.format import METRICS_DTYPE, ChunkKind
from asysi.archive.measure import measure
from asysi.archive.segment import open_segment
from asysi.archive.writer import MScanWriter, SeqInfo
from asysi.bus.packet import Dtype, Kind

_HERE = Path(__file__).parent
_SPEC = importlib.util.spec_from_file_location("second_reader", _HERE / "second_reader.py")
second = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(second)


def packet(sequence, point, dtype, rows=7, width=24):
    """A packet of smooth activations, which compress."""
    generator = np.random.default_rng(sequence)
    values = (generator.standard_normal((rows, width)) * 0.1 + 1).astype(np.float32)
    payload = {
        Dtype.FLOAT32: values,
        Dtype.FLOAT16: values.astype("<f2"),
        Dtype.BFLOAT16: as_bfloat16(values),
        Dtype.INT8: (values * 50).astype(np.int8),
    }[dtype]
    scales = generator.random(rows, np.float32) if dtype is Dtype.INT8 else None
    records = rows_of(
        rows,
        sample=np.arange(rows) + 2**40,
        position=np.arange(rows),
        token=generator.integers(-5, 1000, rows),
    )
    more = {"step": sequence // 2, "attempt": 3, "call_index": sequence % 3}
    return packet_of(payload, sequence, point, rows=records, scales=scales, **more)


def write(path, compression, *, close=True):
    """A segment of four hook points, one for each type of element, in small chunks."""
    writer = MScanWriter(path, {"experiment": "é"}, compression=compression, chunk_bytes=4000, attempt=3)
    for sequence in range(40):
        dtype = [Dtype.FLOAT32, Dtype.FLOAT16, Dtype.BFLOAT16, Dtype.INT8][sequence % 4]
        one = packet(sequence, f"layer.{sequence % 4}", dtype)
        writer.append_records(measure(one), SeqInfo(one.point, 1, sequence, sequence, 24))
        writer.append_tensor(one, 1)
    if close:
        writer.close()
    else:
        writer.flush()


def same(path):
    """The second reader gives what the package gives, chunk by chunk and number by number."""
    metadata, points, chunks = second.read(path)
    segment = open_segment(path, scan=True)
    assert metadata == segment.metadata
    assert points == {index: point.path for index, point in segment.points.items()}
    mine = [n for n, e in enumerate(segment.entries) if e["kind"] != ChunkKind.POINTS]
    assert len(mine) == len(chunks)
    for number, (head, raw) in zip(mine, chunks, strict=True):
        if head.kind == ChunkKind.METRICS:
            ours = segment.records(number)
            theirs = list(second.records(head, raw))
            assert len(theirs) == len(ours)
            for name in METRICS_DTYPE.names:
                column = np.array([record[name] for record in theirs], ours[name].dtype)
                np.testing.assert_array_equal(column, ours[name])
        else:
            pairs = zip(segment.packets(number), second.packets(head, raw, points), strict=True)
            for our, their in pairs:
                assert (our.point, int(our.header["step"])) == (their.point, their.step)
                assert int(our.header["call_index"]) == their.call_index
                assert [tuple(row) for row in our.rows.tolist()] == their.rows
                values = np.array(their.values, np.float64).reshape(our.payload.shape)
                np.testing.assert_array_equal(values.astype(np.float32), our.to_float32())
    return {Codec(head.codec) for head, _ in chunks}


@pytest.mark.parametrize(
    ("compression", "codecs"),
    [
        ("none", {Codec.NONE}),
        ("zstd", {Codec.SHUFFLED_ZSTD, Codec.ZSTD}),
        ("lz4", {Codec.SHUFFLED_LZ4, Codec.LZ4}),
    ],
)
@pytest.mark.parametrize("close", [True, False])
def test_every_compression(tmp_path, compression, codecs, close):
    """Closed and torn segments of every codec read alike with both readers."""
    write(tmp_path / "a.mscan", compression, close=close)
    assert same(tmp_path / "a.mscan") == codecs


@pytest.mark.parametrize("number", [0, 1, 2])
def test_version_1_0(number):
    """Segments of version 1.0, closed, compressed and torn, read alike with both readers."""
    same(_HERE / "golden" / "mscan-1.0" / f"attempt-0000-segment-{number:04d}.mscan")


def test_damage(tmp_path):
    """The second reader refuses a segment in which any payload byte was changed."""
    path = tmp_path / "a.mscan"
    write(path, "lz4")
    data = bytearray(path.read_bytes())
    for entry in open_segment(path).entries[1::7]:
        place = int(entry["offset"]) + 200
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(second.DamagedError):
            second.read(path)
        data[place] ^= 1


def test_small_and_alone():
    """The second reader is under 150 lines and imports nothing of this project, nor NumPy."""
    text = (_HERE / "second_reader.py").read_text()
    assert len(text.splitlines()) < 150
    assert "asysi" not in text
    assert "numpy" not in text


def test_compression_keeps_rows_apart_and_exact(tmp_path):
    """Shuffled compression makes bfloat16 smaller than compression alone would, and returns the same bits."""
    sizes = {}
    for compression in ("none", "zstd", "lz4"):
        path = tmp_path / f"{compression}.mscan"
        with MScanWriter(path, {}, compression=compression) as writer:
            for sequence in range(30):
                writer.append_tensor(packet(sequence, "layer.0", Dtype.BFLOAT16, rows=64, width=64))
        sizes[compression] = path.stat().st_size
        stored = np.concatenate(list(MScanDataset(path).tensors("layer.0")))
        sent = [packet(i, "layer.0", Dtype.BFLOAT16, rows=64, width=64).to_float32() for i in range(30)]
        np.testing.assert_array_equal(stored, np.concatenate(sent))
    assert sizes["zstd"] < 0.75 * sizes["none"]
    assert sizes["lz4"] < 0.85 * sizes["none"]


def test_kinds_are_apart(tmp_path):
    """Gradients of a hook point never join the columns of its activations, whatever a packet is called."""
    with MScanWriter(tmp_path / "a.mscan", {}) as writer:
        for sequence, (point, kind) in enumerate(
            [("layer.0", Kind.ACTIVATION), ("layer.0", Kind.GRADIENT), ("layer.0:gradient", Kind.GRADIENT)]
        ):
            one = packet(sequence, point, Dtype.FLOAT32)
            one.header["kind"] = kind
            writer.append_records(measure(one), SeqInfo(point, 0, sequence, sequence, 24))
            writer.append_tensor(one)
        mixed = measure(packet(9, "layer.0", Dtype.FLOAT32))
        mixed["kind"][0] = Kind.GRADIENT
        with pytest.raises(ValueError, match="one kind"):
            writer.append_records(mixed, SeqInfo("layer.0"))
    dataset = MScanDataset(tmp_path)
    assert dataset.points == ["layer.0", "layer.0:gradient"]
    assert [int(p.header["sequence"]) for p in dataset.packets("layer.0")] == [0]
    assert [int(p.header["sequence"]) for p in dataset.packets("layer.0:gradient")] == [1, 2]
    assert set(dataset.metrics("layer.0")["kind"]) == {Kind.ACTIVATION}
