"""The .mscan format: what is written is read again, what is damaged is never read silently."""

import contextlib
import multiprocessing
import os
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.packets import as_bfloat16, packet_of, rows_of

from asysi.archive import format as mscan
from asysi.archive.dataset import MScanDataset, replay
from asysi.archive.errors import CorruptError, MScanError, TornError, VersionError
from asysi.archive.export import export
from asysi.archive.format import METRICS_DTYPE, ChunkKind, checksum, record, seal
from asysi.archive.measure import measure, measure_parameter_gradient, measure_rows
from asysi.archive.recover import recover
from asysi.archive.segment import open_segment, read_points, read_segment
from asysi.archive.verify import verify, verify_data
from asysi.archive.writer import MScanWriter, SeqInfo
from asysi.bus.packet import Dtype, Kind, RowFlag, place_in_document

_ELEMENT = {Dtype.FLOAT32: "<f4", Dtype.BFLOAT16: "<u2", Dtype.FLOAT16: "<f2", Dtype.INT8: "i1"}


def make_packet(sequence=0, point="layer.0", *, rows=3, width=4, dtype=Dtype.BFLOAT16):
    """A packet as the bus gives it, its content drawn from its sequence number."""
    generator = np.random.default_rng(sequence)
    payload = generator.integers(0, 256, rows * width * dtype.itemsize, np.uint8).view(_ELEMENT[dtype])
    if dtype is not Dtype.INT8 and dtype is not Dtype.BFLOAT16:
        payload = generator.standard_normal(rows * width).astype(_ELEMENT[dtype])
    elif dtype is Dtype.BFLOAT16:
        payload = as_bfloat16(generator.standard_normal(rows * width).astype(np.float32))
    scales = generator.random(rows, np.float32) if dtype is Dtype.INT8 else None
    records = rows_of(
        rows,
        sample=np.arange(rows) + 10 * sequence,
        position=np.arange(rows),
        token=generator.integers(0, 1000, rows),
    )
    shaped = payload.reshape(rows, width)
    return packet_of(shaped, sequence, point, rows=records, scales=scales, dtype=dtype, account=7)


def append(writer, packet, shard=0):
    """Append a packet and its metrics, as the archiver does."""
    sequence = int(packet.header["sequence"])
    width = int(packet.header["width"])
    writer.append_records(measure(packet), SeqInfo(packet.point, shard, sequence, sequence, width))
    writer.append_tensor(packet, shard)


def write(path, packets, **options):
    with MScanWriter(path, {"experiment": "test"}, **options) as writer:
        for packet in packets:
            append(writer, packet)
    return path


def content(packet):
    """What must come back of a packet; the account is the segment's own."""
    header = packet.header.copy()
    header["account"] = 0
    scales = None if packet.scales is None else packet.scales.tobytes() or None
    return packet.point, header.tobytes(), packet.rows.tobytes(), scales, packet.payload.tobytes()


def everything(source):
    """All that a segment or dataset holds, in order."""
    dataset = source if isinstance(source, MScanDataset) else MScanDataset(source)
    return [content(p) for p in dataset.packets()], dataset.metrics().tobytes()


def load(data, path=Path("segment.mscan")):
    """Read every chunk of a segment in memory; raises what a reader would."""
    segment = read_segment(data, path)
    found = []
    for chunk, entry in enumerate(segment.entries):
        if entry["kind"] == ChunkKind.METRICS:
            found.append(segment.records(chunk).tobytes())
        elif entry["kind"] == ChunkKind.TENSOR:
            found.extend(content(p) for p in segment.packets(chunk))
    return found


packets_strategy = st.lists(
    st.builds(
        make_packet,
        sequence=st.integers(0, 2**32),
        point=st.sampled_from(["layer.0", "layer.1", "naïve/../..\n"]),
        rows=st.integers(0, 9),
        width=st.integers(0, 17),
        dtype=st.sampled_from(list(_ELEMENT)),
    ),
    max_size=12,
)


class TestRoundTrip:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        packets=packets_strategy,
        compression=st.sampled_from(["none", "zstd", "lz4"]),
        chunk_bytes=st.sampled_from([1, 600, 1 << 20]),
        flush=st.booleans(),
    )
    def test_packets(self, tmp_path_factory, packets, compression, chunk_bytes, flush):
        """Whatever is appended comes back bit by bit, by hook point, and verifies."""
        path = tmp_path_factory.mktemp("mscan") / "a.mscan"
        with MScanWriter(path, {"a": 1}, compression=compression, chunk_bytes=chunk_bytes) as writer:
            for packet in packets:
                append(writer, packet)
                if flush:
                    writer.flush()
        assert verify(path) == []
        dataset = MScanDataset(path)
        for point in {p.point for p in packets}:
            mine = [p for p in packets if p.point == point]
            assert [content(p) for p in dataset.packets(point)] == [content(p) for p in mine]
            expected = np.concatenate([measure(p) for p in mine])
            expected["hook_point"] = dataset.points.index(point)
            assert dataset.metrics(point).tobytes() == expected.tobytes()
            blocks = list(dataset.tensors(point))
            assert all(
                np.array_equal(block, p.to_float32(), equal_nan=True)
                for block, p in zip(blocks, mine, strict=True)
            )

    def test_metadata(self, tmp_path):
        """The header keeps metadata, attempt, and the hook points known beforehand with their aliases."""
        path = tmp_path / "a.mscan"
        points = [("layer.0", "blocks.0.hook_resid_post", 384)]
        MScanWriter(path, {"model": "m"}, points=points, attempt=3, segment=5).close()
        segment = open_segment(path)
        assert (segment.attempt, segment.number, segment.metadata["model"]) == (3, 5, "m")
        assert segment.points[0].alias == "blocks.0.hook_resid_post"
        assert segment.metadata["hook_points"][0]["width"] == 384

    def test_header_counts(self, tmp_path):
        """close() fills in the header's final counts, the same as the footer's."""
        data = write(tmp_path / "a.mscan", [make_packet(i) for i in range(3)]).read_bytes()
        counts = mscan.parse_counts(data, mscan.HEADER_DTYPE.itemsize)
        assert counts.tobytes() == mscan.parse_footer(data).counts.tobytes()
        assert (counts["packets"][0], counts["metrics_records"][0], counts["tensor_rows"][0]) == (3, 9, 9)

    def test_never_appends(self, tmp_path):
        """A writer refuses a file that is there already."""
        path = write(tmp_path / "a.mscan", [make_packet()])
        before = path.read_bytes()
        with pytest.raises(FileExistsError):
            MScanWriter(path, {})
        assert path.read_bytes() == before

    def test_shards_do_not_share_a_chunk(self, tmp_path):
        """A chunk's cursor range is of one shard."""
        path = tmp_path / "a.mscan"
        with MScanWriter(path, {}) as writer:
            for sequence, shard in ((1, 0), (2, 0), (7, 1)):
                append(writer, make_packet(sequence), shard)
        entries = open_segment(path).entries
        tensors = entries[entries["kind"] == ChunkKind.TENSOR]
        cursors = [(int(e["shard"]), int(e["sequence_first"]), int(e["sequence_last"])) for e in tensors]
        assert cursors == [(0, 1, 2), (1, 7, 7)]


@pytest.mark.parametrize(
    "dtype", [mscan.HEADER_DTYPE, mscan.COUNTS_DTYPE, mscan.CHUNK_DTYPE, METRICS_DTYPE, mscan.FOOTER_DTYPE]
)
def test_documented_layout(dtype):
    """docs/mscan.md states the offset and type of every field."""
    text = (Path(__file__).parents[2] / "docs" / "mscan.md").read_text()
    cells = [
        [cell.strip() for cell in line.split("|")[1:]] for line in text.splitlines() if line.startswith("| ")
    ]
    rows = {
        (int(offset), name, row[1])
        for row in cells
        if row[0][:1].isdigit() and len(row) >= 3
        for offset, name in zip(row[0].split(", "), row[2].split(", "), strict=False)
        if offset.isdigit()
    }
    for name in dtype.names:
        field, offset = dtype.fields[name]
        kind = f"{field.itemsize} bytes" if field.kind == "V" else field.str[1:]
        assert (offset, name, kind) in rows


class TestSelection:
    def test_by_step_and_sample(self, tmp_path):
        """Steps and samples choose exactly the rows in them, and read only chunks that may hold one."""
        packets = [make_packet(i, rows=5) for i in range(10)]
        path = write(tmp_path / "a.mscan", packets, chunk_bytes=1)
        dataset = MScanDataset(path)
        assert set(dataset.metrics(steps=(2, 4))["step"]) == {2, 3}
        assert dataset.metrics(samples=(31, 52))["sample"].tolist() == [
            31,
            32,
            33,
            34,
            40,
            41,
            42,
            43,
            44,
            50,
            51,
        ]
        rows = [p.rows["sample"].tolist() for p, _ in dataset.blocks("layer.0", samples=(31, 42))]
        assert rows == [[31, 32, 33, 34], [40, 41]]
        blocks = list(dataset.tensors("layer.0", samples=(31, 42)))
        assert np.array_equal(blocks[0], packets[3].to_float32()[1:], equal_nan=True)
        assert len(list(dataset.chunks(ChunkKind.TENSOR, steps=(2, 4)))) == 2

    def test_segments_are_one(self, tmp_path):
        """Segments of a folder read as one, by attempt and number; points merge by their path."""
        for number, point in ((1, "b"), (0, "a")):
            with MScanWriter(tmp_path / f"{number}.mscan", {}, attempt=0, segment=number) as writer:
                append(writer, make_packet(number, point))
                append(writer, make_packet(number + 10, "a"))
        dataset = MScanDataset(tmp_path)
        assert dataset.points == ["a", "b"]
        assert [int(p.header["sequence"]) for p in dataset.packets("a")] == [0, 10, 11]
        assert set(dataset.metrics("b")["hook_point"]) == {1}

    def test_ordered(self, tmp_path):
        """`ordered` gives every packet by attempt, shard and sequence, across hook points and segments."""
        with MScanWriter(tmp_path / "0.mscan", {}) as writer:
            for sequence, point, shard in ((1, "a", 0), (2, "b", 0), (1, "c", 1), (3, "a", 0), (4, "b", 0)):
                append(writer, make_packet(sequence, point), shard)
        with MScanWriter(tmp_path / "1.mscan", {}, segment=1) as writer:
            append(writer, make_packet(5, "b"), 0)
            append(writer, make_packet(2, "c"), 1)
        found = [(*address, packet.point) for address, packet in MScanDataset(tmp_path).ordered()]
        assert found == [
            (0, 0, 1, "a"), (0, 0, 2, "b"), (0, 0, 3, "a"), (0, 0, 4, "b"), (0, 0, 5, "b"),
            (0, 1, 1, "c"), (0, 1, 2, "c"),
        ]  # fmt: skip

    @pytest.mark.parametrize("compression", ["none", "zstd", "lz4"])
    def test_replay(self, tmp_path, compression):
        """`replay` gives the logged packets in the order of the log, and says so when one is missing."""
        packets = [make_packet(i, f"layer.{i % 3}") for i in range(30)]
        path = write(tmp_path / "a.mscan", packets, compression=compression, chunk_bytes=300)
        dataset = MScanDataset(path)
        order = [*random.Random(0).sample(range(30), 20), 4, 4]
        found = [content(p) for p in replay(dataset, [(0, 0, i) for i in order])]
        assert found == [content(packets[i]) for i in order]
        with pytest.raises(MScanError, match="no packet"):
            list(replay(dataset, [(0, 0, 99)]))


class TestMeasure:
    def test_against_float64(self):
        """Metrics of finite rows agree with float64, also where the mean dwarfs the deviation."""
        values = np.random.default_rng(0).standard_normal((300, 384)).astype(np.float32)
        values[:100] += 1000
        values[:, ::4] = 0
        records = np.zeros(300, METRICS_DTYPE)
        measure_rows(values, records)
        exact = values.astype(np.float64)
        np.testing.assert_allclose(records["mean"], exact.mean(axis=1), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(records["std"], exact.std(axis=1), rtol=1e-4)
        np.testing.assert_allclose(records["l2"], np.linalg.norm(exact, axis=1), rtol=1e-5)
        np.testing.assert_array_equal(records["max"], values.max(axis=1))
        np.testing.assert_allclose(records["sparsity"], 0.25)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, bad):
        """NaN and infinities are counted and left out of everything else."""
        values = np.array([[1, 2, bad, 4], [bad, bad, bad, bad], [1, 2, 3, 4]], np.float32)
        records = np.zeros(3, METRICS_DTYPE)
        measure_rows(values, records)
        counted = records["nan_count"] + records["inf_count"]
        assert counted.tolist() == [1, 4, 0]
        np.testing.assert_allclose(records["mean"][[0, 2]], [7 / 3, 2.5], rtol=1e-6)
        np.testing.assert_allclose(records["l2"][0], np.sqrt(21), rtol=1e-6)
        assert np.isnan(records["mean"][1])
        assert np.isnan(records["max"][1])

    def test_very_large(self):
        """Squares beyond float32 are not infinities of the row."""
        records = np.zeros(1, METRICS_DTYPE)
        measure_rows(np.full((1, 4), 3e37, np.float32), records)
        assert records["inf_count"][0] == 0
        np.testing.assert_allclose(records["l2"][0], 6e37, rtol=1e-6)

    def test_lineage(self):
        """Records carry the row's lineage, and NaN where gradients were not captured."""
        packet = make_packet(5, rows=4)
        records = measure(packet)
        assert records["sample"].tolist() == packet.rows["sample"].tolist()
        assert set(records["step"]) == {5}
        assert np.isnan(records["delta_sc"]).all()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A segment of some 4 KiB with both kinds of chunks."""
    path = tmp_path_factory.mktemp("small") / "attempt-0002-segment-0003.mscan"
    packets = [make_packet(i, f"layer.{i % 2}", rows=4, width=8) for i in range(3)]
    write(path, packets, chunk_bytes=300, attempt=2, segment=3)
    return path.read_bytes()


class TestDamage:
    def test_every_truncation(self, small):
        """A segment cut at any byte is an error, and whatever chunk is whole comes back."""
        whole = load(small)
        for size in range(len(small)):
            cut = small[:size]
            assert verify_data(memoryview(cut), Path("a.mscan")), size
            with pytest.raises(MScanError):
                load(cut)
            if size >= _data_begins(small):
                segment = read_segment(cut, Path("a.mscan"), scan=True)
                kept = [i for i in _offsets(small) if i[1] <= size]
                assert [(int(e["offset"]), _end(e)) for e in segment.entries] == kept, size
        assert whole == load(small)

    def test_every_flipped_byte(self, small):
        """A flipped byte anywhere is found by `verify`; a reader raises or reads what was written."""
        whole = load(small)
        generator = random.Random(0)
        for place in range(len(small)):
            damaged = bytearray(small)
            damaged[place] ^= 1 << generator.randrange(8)
            assert verify_data(memoryview(damaged), Path("a.mscan")), place
            try:
                found = load(damaged)
            except MScanError:
                continue
            assert found == whole, place

    def test_random_damage_recovers(self, tmp_path):
        """`recover` keeps exactly the chunks that were not hit, and the result verifies."""
        path = tmp_path / "attempt-0001-segment-0002.mscan"
        packets = [make_packet(i, f"layer.{i % 3}", rows=20, width=16) for i in range(40)]
        data = write(path, packets, chunk_bytes=1500, attempt=1, segment=2, compression="zstd").read_bytes()
        generator = random.Random(1)
        spans = _offsets(data, points=False)
        expected = {data[a + 192 : b] for a, b in spans}
        for _ in range(60):
            damaged = bytearray(data)
            hits = [generator.randrange(len(data)) for _ in range(generator.randrange(1, 4))]
            for place in hits:
                damaged[place] ^= generator.randrange(1, 256)
            intact = {data[a + 192 : b] for a, b in spans if not any(a <= hit < b for hit in hits)}
            path.write_bytes(damaged)
            done = recover(path)
            assert done.changed
            assert verify(path) == []
            mended = path.read_bytes()
            assert {mended[a + 192 : b] for a, b in _offsets(mended, points=False)} == intact <= expected
            segment = open_segment(path)
            assert (segment.attempt, segment.number) == (1, 2)
            _points_survive(segment, hits, data)
            for leftover in tmp_path.glob("*.damaged*"):
                assert leftover.read_bytes() == damaged
                leftover.unlink()

    def test_torn_tail(self, tmp_path):
        """A killed writer's segment reads up to its last chunk, and `recover` throws nothing else away."""
        path = tmp_path / "a.mscan"
        writer = MScanWriter(path, {})
        for i in range(4):
            append(writer, make_packet(i))
            writer.flush()
        with path.open("ab") as file:
            file.write(path.read_bytes()[-100:])
        os.close(writer._fd)
        with pytest.raises(TornError):
            MScanDataset(path)
        seen = everything(MScanDataset(path, scan=True))
        done = recover(path)
        assert done.changed
        assert everything(path) == seen
        assert len(seen[0]) == 4
        assert not recover(path).changed

    def test_lost_rows_are_counted(self, tmp_path):
        """The footer of a recovered segment says how many chunks and rows it lost; the original is kept."""
        packets = [make_packet(i, rows=4) for i in range(5)]
        path = write(tmp_path / "a.mscan", packets, chunk_bytes=1)
        data = bytearray(path.read_bytes())
        tensors = [e for e in open_segment(path).entries if e["kind"] == ChunkKind.TENSOR]
        data[int(tensors[2]["offset"]) + 192] ^= 1
        path.write_bytes(data)
        done = recover(path)
        counts = open_segment(path).counts[0]
        assert (int(counts["lost_chunks"]), int(counts["lost_rows"])) == (1, 4)
        assert done.original.read_bytes() == data
        assert [int(p.header["sequence"]) for p in MScanDataset(path).packets()] == [0, 1, 3, 4]

    def test_another_files_chunk(self, tmp_path):
        """A chunk of another segment, or of another place, is not a chunk of this one."""
        first = write(tmp_path / "a.mscan", [make_packet(1)]).read_bytes()
        second = write(tmp_path / "b.mscan", [make_packet(2)]).read_bytes()
        assert len(first) == len(second)
        begin, end = _offsets(first)[-1]
        assert verify_data(memoryview(first[:begin] + second[begin:end] + first[end:]), Path("a.mscan"))

    def test_not_mscan(self, tmp_path):
        """Other files and later versions are VersionErrors, also for `recover`."""
        path = tmp_path / "a.mscan"
        path.write_bytes(b"PAR1" * 1000)
        with pytest.raises(VersionError):
            MScanDataset(path)
        with pytest.raises(VersionError):
            recover(path)
        data = bytearray(write(tmp_path / "b.mscan", [make_packet()]).read_bytes())
        header = np.frombuffer(data, mscan.HEADER_DTYPE, 1)
        header["version"] = 2
        seal(header)
        path.write_bytes(data)
        with pytest.raises(VersionError, match="version 2"):
            MScanDataset(path, scan=True)


class TestHostile:
    """Archives whose checksums are right and whose numbers are not."""

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("stored_bytes", 2**64 - 1), ("stored_bytes", 2**40), ("raw_bytes", 2**63), ("raw_bytes", 1),
            ("records", 2**62), ("rows", 2**62), ("point", 2**32 - 1), ("kind", 9), ("codec", 9),
            ("codec", 1), ("offset", 2**64 - 1), ("step_first", 2**64 - 1), ("rows_total", 0),
            ("header_bytes", 0),
        ],
    )  # fmt: skip
    def test_chunk_numbers(self, small, field, value):
        """No number in a chunk header makes a reader crash, allocate much, or believe it."""
        for number in range(len(_offsets(small))):
            forged = _forge(small, number, field, value)
            tracemalloc.start()
            problems = verify_data(memoryview(forged), Path("a.mscan"))
            for scan in (False, True):
                try:
                    segment = read_segment(forged, Path("a.mscan"), scan=scan)
                    for chunk, entry in enumerate(segment.entries):
                        if entry["kind"] == ChunkKind.TENSOR:
                            list(segment.packets(chunk))
                        elif entry["kind"] == ChunkKind.METRICS:
                            segment.records(chunk)
                except MScanError:
                    pass
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert problems or _harmless(small, number, field, value)
            assert all(isinstance(problem, MScanError) for problem in problems)
            assert peak < 4 << 20

    def test_compressed_hook_points(self, small):
        """A table of hook points is never compressed: few bytes could hold a gigabyte of objects."""
        forged = _forge(small, 0, "codec", 1)
        assert "hook points are compressed" in str(verify_data(memoryview(forged), Path("a.mscan"))[0])
        with pytest.raises(CorruptError, match="hook points are compressed"):
            read_points(read_segment(forged, Path("a.mscan")), 0)

    def test_many_damaged_chunks(self, tmp_path):
        """Problems are collected without the chunks that they are about: memory stays the same."""
        path = tmp_path / "a.mscan"
        one = make_packet(rows=100, width=5000)
        with MScanWriter(path, {}, compression="zstd") as writer:
            for _ in range(20):
                writer.append_tensor(one)
                writer.flush()
        data = path.read_bytes()
        for number in range(1, 21):
            data = _forge(data, number, "rows", 1)
        tracemalloc.start()
        problems = verify_data(memoryview(data), path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(problems) >= 20
        assert peak < 5 << 20, peak

    def test_index_of_a_hook_point_in_a_torn_segment(self, small):
        """A chunk without an index that names hook point 4,294,967,295 makes no table of as many names."""
        torn = _forge(small, len(_offsets(small)) - 1, "point", 2**32 - 1)[:-40]
        tracemalloc.start()
        segment = read_segment(torn, Path("a.mscan"), scan=True)
        assert len(segment.names) == 2
        assert len(segment.entries) == len(_offsets(small)) - 1
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        tracemalloc.stop()

    def test_compression_bomb(self, tmp_path):
        """A payload that decompresses to more than its header says is refused before it is decompressed."""
        import zstandard

        bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 28))
        for announced in (80, 1 << 28):
            data = _one_chunk(bomb, raw=announced, records=1)
            tracemalloc.start()
            assert verify_data(memoryview(data), Path("a.mscan"))
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
            tracemalloc.stop()

    def test_deep_json(self):
        """Metadata nested without end is a typed error."""
        text = b"[" * 100_000
        header = record(
            mscan.HEADER_DTYPE, magic=mscan.FILE_MAGIC, version=1, header_bytes=256, metadata_bytes=len(text),
            metadata_checksum=checksum(text),
        )  # fmt: skip
        with pytest.raises(CorruptError):
            mscan.parse_header(header.tobytes() + bytes(128) + text)

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_random_bytes(self, small, data):
        """Bytes at random, behind a real header, give typed errors only."""
        start = data.draw(st.integers(0, len(small)))
        tail = data.draw(st.binary(max_size=300))
        forged = small[:start] + tail
        for scan in (False, True):
            with contextlib.suppress(MScanError):
                read_segment(forged, Path("a.mscan"), scan=scan)


class TestStorage:
    def test_fsync_error_is_fatal(self, tmp_path, monkeypatch):
        """After a failed fsync every call raises, nothing is tried again, what was flushed survives."""
        path = tmp_path / "a.mscan"
        writer = MScanWriter(path, {})
        append(writer, make_packet(0))
        writer.flush()
        append(writer, make_packet(1))
        calls = []

        def broken(_fd):
            calls.append(1)
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", broken)
            with pytest.raises(OSError, match="Input/output"):
                writer.flush()
            with pytest.raises(MScanError):
                writer.flush()
            with pytest.raises(MScanError):
                append(writer, make_packet(2))
            writer.close()
        assert len(calls) == 1
        recover(path)
        assert content(make_packet(0)) in everything(path)[0]

    def test_disk_full(self, tmp_path, monkeypatch):
        """When the disk fills up in the middle of a chunk, what was flushed before survives."""
        path = tmp_path / "a.mscan"
        writer = MScanWriter(path, {})
        append(writer, make_packet(0))
        writer.flush()
        append(writer, make_packet(1, rows=200))
        real = os.writev

        def full(fd, parts):
            real(fd, [b"".join(bytes(p) for p in parts)[:500]])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "writev", full)
            with pytest.raises(OSError, match="No space"):
                writer.flush()
        writer.close()
        assert verify(path)
        recover(path)
        assert everything(path)[0] == [content(make_packet(0))]

    def test_acknowledged_chunks_survive_kill(self, tmp_path):
        """Whatever a writer had flushed when it was killed with -9 is there after `recover`, 20 times."""
        generator = random.Random(2)
        forks = multiprocessing.get_context("fork")
        for number in range(20):
            path = tmp_path / f"{number}.mscan"
            mine, its = forks.Pipe(duplex=False)
            child = forks.Process(target=_write_for_ever, args=(path, its))
            child.start()
            its.close()
            acknowledged = [mine.recv() for _ in range(generator.randrange(1, 40))]
            child.kill()
            child.join()
            with contextlib.suppress(EOFError):
                while True:
                    acknowledged.append(mine.recv())
            mine.close()
            assert verify(path)
            recover(path)
            assert verify(path) == []
            dataset = MScanDataset(path)
            last = acknowledged[-1]
            assert sorted(set(dataset.metrics()["step"].tolist()))[: last + 1] == list(range(last + 1))
            assert [content(p) for p in dataset.packets(steps=(0, last + 1))] == [
                content(make_packet(i, rows=50)) for i in range(last + 1)
            ]


def _write_for_ever(path, pipe):
    """What the child does: append, flush, acknowledge."""
    writer = MScanWriter(path, {}, chunk_bytes=1000)
    for i in range(1_000_000):
        append(writer, make_packet(i, rows=50))
        writer.flush()
        pipe.send(i)


def _offsets(data, points=True):
    """[begin, end) of every chunk, by the footer."""
    entries = mscan.parse_footer(data).entries
    return [(int(e["offset"]), _end(e)) for e in entries if points or e["kind"] != ChunkKind.POINTS]


def _end(entry):
    return int(entry["offset"]) + mscan.chunk_size(entry)


def _data_begins(data):
    return _offsets(data)[0][0]


def _points_survive(segment, hits, data):
    """Hook points keep their names unless header, footer and POINTS chunks were all hit."""
    header_end, footer_at = _data_begins(data), _offsets(data)[-1][1]
    if not any(hit < header_end or hit >= footer_at for hit in hits):
        assert {p.path for p in segment.points.values()} == {"layer.0", "layer.1", "layer.2"}


def _forge(data, number, field, value):
    """Change a number in a chunk header and in the index, and put every checksum right again."""
    forged = bytearray(data)
    begin, _ = _offsets(data)[number]
    footer = mscan.parse_footer(data)
    entries = footer.entries.copy()
    head = entries[number : number + 1].copy()
    head[field] = value
    seal(head)
    forged[begin : begin + 192] = head.tobytes()
    entries[number] = head[0]
    counts = mscan.final_counts(entries, len(footer.points), footer.offset, 1)
    forged[128:256] = counts.tobytes()
    return bytes(forged[: footer.offset]) + mscan.pack_footer(
        key=footer.key, metadata_checksum=footer.metadata_checksum, counts=counts, entries=entries,
        points=footer.points, offset=footer.offset,
    )  # fmt: skip


def _harmless(data, number, field, value):
    """Whether the field says nothing about this chunk: POINTS chunks count no rows, name no step."""
    kind = mscan.parse_footer(data).entries[number]["kind"]
    same = int(mscan.parse_footer(data).entries[number][field]) == value
    return same or (
        kind == ChunkKind.POINTS and field in {"rows", "rows_total", "point", "step_first", "records"}
    )


def _one_chunk(payload, *, raw, records):
    """A segment with one compressed METRICS chunk."""
    text = mscan.pack_json({})
    header = record(
        mscan.HEADER_DTYPE, magic=mscan.FILE_MAGIC, version=1, header_bytes=256, key=1,
        metadata_bytes=len(text), metadata_checksum=checksum(text),
    )  # fmt: skip
    padded = payload + bytes(mscan.padding(len(payload)))
    at = 256 + len(text)
    head = record(
        mscan.CHUNK_DTYPE, magic=mscan.CHUNK_MAGIC, key=1, offset=at, kind=1, codec=1, header_bytes=192,
        stored_bytes=len(payload), raw_bytes=raw, records=records, rows=records, rows_total=records,
        payload_checksum=checksum(padded),
    )  # fmt: skip
    end = at + 192 + len(padded)
    counts = mscan.final_counts(head, 0, end, 1)
    return header.tobytes() + counts.tobytes() + text + head.tobytes() + padded + mscan.pack_footer(
        key=1, metadata_checksum=checksum(text), counts=counts, entries=head, points=[], offset=end
    )  # fmt: skip


GOLDEN = Path(__file__).parent / "golden" / "mscan-1.0"


def test_archives_of_version_1_0_read_as_before(tmp_path):
    """What version 1.0 wrote (closed, compressed, torn) exports as it did then, with call index 0."""
    dataset = MScanDataset(GOLDEN, scan=True)
    found = {}
    for content in ("metrics", "tensors"):
        for file in export(dataset, tmp_path, output_format="npz", content=content):
            with np.load(file) as columns:
                found |= {f"{file.stem}/{name}": column for name, column in columns.items()}
    with np.load(GOLDEN / "expected.npz") as expected:
        assert len(expected.files) > 40
        for name, column in expected.items():
            np.testing.assert_array_equal(found[name], column)
            assert found[name].dtype == column.dtype
    for file in ("layer.0.metrics", "layer.1.metrics", "layer.0.tensors", "layer.1.tensors"):
        assert not found[f"{file}/call_index"].any()
        np.testing.assert_array_equal(found[f"{file}/document_position"], found[f"{file}/position"])


def test_archives_of_version_1_0_verify_and_recover(tmp_path):
    """Whole segments of version 1.0 have no fault, and a torn one is mended to one without."""
    for number in (0, 1):
        assert verify(GOLDEN / f"attempt-0000-segment-{number:04d}.mscan") == []
    torn = tmp_path / "torn.mscan"
    torn.write_bytes((GOLDEN / "attempt-0000-segment-0002.mscan").read_bytes())
    assert [type(error) for error in verify(torn)] == [TornError]
    recover(torn)
    assert verify(torn) == []
    assert len(MScanDataset(torn).metrics("layer.0")) == 9


def test_records_of_a_later_minor_version_are_read():
    """Fields that a later version adds at the end of a record are left out."""
    records = np.zeros(3, METRICS_DTYPE)
    records["call_index"], records["position"], records["document_position"] = [0, 1, 2], 7, 9
    longer = b"".join(record.tobytes() + b"later..." for record in records)
    assert (mscan.parse_metrics(longer, 3) == records).all()
    for wrong in (longer[:-1], bytes(3 * 79), b"x"):
        with pytest.raises(ValueError, match="are not 3 records"):
            mscan.parse_metrics(wrong, 3)


def test_call_and_position_in_the_document_are_kept(tmp_path):
    """METRICS say which call made a row, and where in its document the token stands."""
    packet = make_packet(3)
    packet.header["call_index"] = 2
    place_in_document(packet.rows, np.array([5, 2**24, 9], np.int32), np.array([True, True, False]))
    packet.rows["flags"] |= np.uint32(RowFlag.HOLDOUT)
    path = write(tmp_path / "a.mscan", [packet])
    records = MScanDataset(path).metrics()
    assert records["call_index"].tolist() == [2, 2, 2]
    assert records["position"].tolist() == [0, 1, 2]
    assert records["document_position"].tolist() == [5, 2**24 - 1, 2]
    assert [RowFlag(flags) & RowFlag.HOLDOUT for flags in records["flags"].tolist()] == [RowFlag.HOLDOUT] * 3
    assert records["flags"].max() <= 3
    (columns,) = export_columns(MScanDataset(path), tmp_path / "out")
    assert columns["call_index"].tolist() == [2, 2, 2]
    assert columns["document_position"].tolist() == [5, 2**24 - 1, 2]


def export_columns(dataset, folder):
    """The columns of each exported file of tensors."""
    for file in export(dataset, folder, output_format="npz", content="tensors"):
        with np.load(file) as columns:
            yield dict(columns)


def _metrics(rows=2):
    records = np.zeros(rows, METRICS_DTYPE)
    records["sample"] = np.arange(rows)
    return records


@pytest.mark.parametrize(
    "origin",
    [
        SeqInfo("layer.0", 1, 2, 3, 4),
        ("layer.0", 1, 2, 3, 4),
        {"point": "layer.0", "shard": 1, "first": 2, "last": 3, "width": 4},
        {"width": np.uint32(4), "last": 3, "first": 2, "shard": 1, "point": "layer.0"},
    ],
    ids=["SeqInfo", "tuple", "mapping", "numpy"],
)
def test_the_origin_of_records_is_a_seq_info_a_tuple_or_a_mapping(tmp_path, origin):
    """All forms of `seq_info` write the same segment."""
    with MScanWriter(tmp_path / "a.mscan", {}) as writer:
        writer.append_records(_metrics(), origin)
    segment = open_segment(tmp_path / "a.mscan")
    (point,) = segment.points.values()
    assert (point.path, point.width) == ("layer.0", 4)
    chunk = segment.entries[segment.entries["kind"] == ChunkKind.METRICS][0]
    assert [int(chunk[name]) for name in ("shard", "sequence_first", "sequence_last")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ({"points": "layer.0"}, "unknown key 'points'; keys are point, shard, first, last, width"),
        ({"width": 3}, "'point' is missing"),
        ((), "'point' is missing"),
        (("layer.0", 0, 0, 0, 4, 5), "expected a mapping or a tuple of point, shard"),
        ("layer.0", "expected a mapping or a tuple"),
        ({"point": 3}, "point is 3, expected text"),
        ({"point": "a", "first": "0"}, "first is '0', expected an integer"),
        ({"point": "a", "first": True}, "first is True"),
        ({"point": "a", "last": -1}, "last is -1, expected an integer, 0 or more"),
    ],
)
def test_a_wrong_origin_is_named(tmp_path, origin, said):
    """An unknown, missing or malformed field of `seq_info` is named, and the segment stays usable."""
    with MScanWriter(tmp_path / "a.mscan", {}) as writer:
        with pytest.raises(ValueError, match=said):
            writer.append_records(_metrics(), origin)
        writer.append_records(_metrics(), ("layer.0",))
    assert len(MScanDataset(tmp_path / "a.mscan").metrics()) == 2


@given(st.lists(st.floats(width=32), max_size=40))
def test_a_parameter_gradient_is_measured_like_a_row(values):
    """The record of a whole parameter has the figures of its elements; what is not finite is counted."""
    array = np.array(values, np.float32)
    (record,) = measure_parameter_gradient(array, sample=5, step=7)
    finite = array[np.isfinite(array)].astype(np.float64)
    assert (record["sample"], record["step"], record["kind"]) == (5, 7, Kind.PARAMETER_GRADIENT)
    assert (record["nan_count"], record["inf_count"]) == (np.isnan(array).sum(), np.isinf(array).sum())
    if not len(finite):
        assert np.isnan([record[name] for name in ("mean", "std", "l2", "min", "max")]).all()
        return
    scale = float(np.abs(finite).max())
    with np.errstate(over="ignore"):
        expected = np.array([finite.mean(), finite.std(), np.sqrt(np.square(finite).sum())], np.float32)
    found = [record[name] for name in ("mean", "std", "l2")]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * scale)
    assert (record["min"], record["max"]) == (finite.min(), finite.max())
    assert record["grad_norm"] == record["l2"]
