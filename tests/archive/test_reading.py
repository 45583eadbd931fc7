"""An archive as datasets, tables, and as a file that grows."""

import gc
import mmap
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.packets import packet_of, rows_of
from torch.utils.data import DataLoader

from asysi.archive import follow
from asysi.archive.dataset import MScanDataset, find_segments
from asysi.archive.errors import CorruptError
from asysi.archive.follow import MScanFollower
from asysi.archive.format import ChunkKind
from asysi.archive.frames import metrics_frame, metrics_table
from asysi.archive.measure import measure
from asysi.archive.recover import recover
from asysi.archive.segment import open_segment
from asysi.archive.torch_data import MScanRows, MScanStream
from asysi.archive.writer import MScanWriter, SeqInfo

ROWS, WIDTH, PACKETS = 5, 8, 24


def packet(sequence, point="a"):
    """Five rows whose first element is the row's number in the archive."""
    values = np.random.default_rng(sequence).standard_normal((ROWS, WIDTH)).astype("<f4")
    values[:, 0] = samples = np.arange(ROWS) + ROWS * sequence
    return packet_of(values, sequence, point, rows=rows_of(ROWS, sample=samples))


def append(writer, one):
    sequence = int(one.header["sequence"])
    writer.append_records(measure(one), SeqInfo(one.point, 0, sequence, sequence, WIDTH))
    writer.append_tensor(one)


def packets_of(segment, chunk):
    return segment.packets(chunk) if segment.entries["kind"][chunk] == ChunkKind.TENSOR else ()


@pytest.fixture(params=["none", "zstd"])
def archive(tmp_path, request):
    """Two segments of 12 packets each at two hook points, a few packets in a chunk."""
    for segment in range(2):
        path = tmp_path / f"attempt-0000-segment-{segment:04d}.mscan"
        with MScanWriter(path, {}, compression=request.param, chunk_bytes=1500, segment=segment) as writer:
            for sequence in range(12 * segment, 12 * segment + 12):
                append(writer, packet(sequence))
                append(writer, packet(sequence, "b"))
    return tmp_path


def numbers(batches):
    return torch.cat([batch["activation"][:, 0] for batch in batches]).int().tolist()


class TestRows:
    def test_any_order(self, archive):
        """A row by its number is the row that was written, in whatever order rows are asked for."""
        rows = MScanRows(archive, "a")
        assert len(rows) == ROWS * PACKETS
        sent = np.concatenate([packet(i).payload for i in range(PACKETS)])
        for index in np.random.default_rng(0).permutation(len(rows)):
            row = rows[int(index)]
            np.testing.assert_array_equal(row["activation"].numpy(), sent[index])
            assert (int(row["sample"]), int(row["step"])) == (index, index // ROWS)
        assert int(rows[-1]["sample"]) == len(rows) - 1
        with pytest.raises(IndexError):
            rows[len(rows)]

    def test_selection(self, archive):
        """Steps and samples leave exactly the rows in them."""
        rows = MScanRows(archive, "b", steps=(3, 20), samples=(17, 33))
        assert [int(rows[i]["sample"]) for i in range(len(rows))] == list(range(17, 33))

    def test_workers(self, archive):
        """A DataLoader with workers gives every row once, shuffled by its sampler."""
        loader = DataLoader(
            MScanRows(archive, "a"), batch_size=16, shuffle=True, num_workers=2,
            multiprocessing_context="fork", generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        found = numbers(loader)
        assert found != sorted(found)
        assert sorted(found) == list(range(ROWS * PACKETS))

    def test_unknown_point(self, archive):
        """A hook point that the archive does not have is named with those that it has."""
        with pytest.raises(KeyError, match="no hook point 'c'; it has a, b"):
            MScanRows(archive, "c")


class TestStream:
    def test_in_order(self, archive):
        """Without shuffling, rows come in the order of the archive, in whole batches."""
        batches = list(MScanStream(archive, "a", batch=32))
        assert [len(batch["step"]) for batch in batches] == [32, 32, 32, 24]
        assert numbers(batches) == list(range(ROWS * PACKETS))

    def test_shuffled(self, archive):
        """Shuffling gives every row once; the seed and the epoch decide the order."""
        stream = MScanStream(archive, "a", batch=10, shuffle=True, seed=3, mix=3)
        first, again = numbers(stream), numbers(stream)
        stream.set_epoch(1)
        later = numbers(stream)
        assert first == again
        assert first != later
        assert sorted(first) == sorted(later) == list(range(ROWS * PACKETS))

    @pytest.mark.parametrize("shuffle", [False, True])
    def test_sharding(self, archive, shuffle):
        """Ranks and their workers share the rows: every row once, no row twice."""
        found = []
        for rank in range(2):
            stream = MScanStream(archive, "a", batch=7, shuffle=shuffle, rank=rank, ranks=2)
            loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="fork")
            found += numbers(loader)
        assert sorted(found) == list(range(ROWS * PACKETS))

    def test_damage_is_an_error(self, archive):
        """A damaged chunk ends the stream with an error; no row of it is given."""
        path = archive / "attempt-0000-segment-0001.mscan"
        data = bytearray(path.read_bytes())
        entry = next(e for e in open_segment(path).entries if e["kind"] == ChunkKind.TENSOR)
        data[int(entry["offset"]) + 400] ^= 1
        path.write_bytes(data)
        with pytest.raises(CorruptError):
            list(MScanStream(archive, "a"))


def test_zero_copy(archive):
    """Payloads of uncompressed chunks are views of the mapped file."""
    one = next(MScanDataset(archive).packets("a"))
    base = one.payload
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    codec = int(open_segment(next(archive.glob("*0000.mscan"))).entries["codec"][-1])
    assert isinstance(getattr(base, "obj", None), mmap.mmap) == (codec == 0)


class TestFrames:
    def test_table_and_frame(self, archive):
        """METRICS are a table with a column for each field, hook points and kinds as words."""
        dataset = MScanDataset(archive)
        table = metrics_table(dataset, steps=(1, 3))
        assert table.num_rows == 2 * 2 * ROWS
        frame = metrics_frame(dataset)
        assert list(frame.groupby("hook_point", observed=True).size().items()) == [("a", 120), ("b", 120)]
        assert set(frame["kind"]) == {"activation"}
        ours = dataset.metrics("b")
        np.testing.assert_array_equal(frame[frame["hook_point"] == "b"]["l2"], ours["l2"])
        assert metrics_table(dataset, steps=(900, 901)).num_rows == 0


class TestFollow:
    def test_while_it_is_written(self, tmp_path):
        """A reader beside the writer gets every flushed chunk once and in order, across segments."""
        folder = tmp_path / "archive"
        folder.mkdir()
        done = threading.Event()

        def write():
            for segment in range(3):
                path = folder / f"attempt-0000-segment-{segment:04d}.mscan"
                with MScanWriter(path, {}, segment=segment, chunk_bytes=900) as writer:
                    for sequence in range(20 * segment, 20 * segment + 20):
                        append(writer, packet(sequence))
                        if sequence % 3 == 0:
                            writer.flush()
            done.set()

        thread = threading.Thread(target=write)
        thread.start()
        follower = MScanFollower(folder)
        found = [
            int(one.header["sequence"])
            for segment, chunk in follower.follow(done.is_set, seconds=0.001)
            if segment.entries["kind"][chunk] == ChunkKind.TENSOR
            for one in segment.packets(chunk)
        ]
        thread.join()
        assert found == list(range(60))
        assert follower.closed

    def test_every_prefix(self, tmp_path):
        """However much of a segment is there, exactly its whole chunks are given, and each of them once."""
        whole = tmp_path / "whole.mscan"
        with MScanWriter(whole, {}, chunk_bytes=600) as writer:
            for sequence in range(6):
                append(writer, packet(sequence))
        data = whole.read_bytes()
        ends = [
            int(e["offset"]) + 192 + -(-int(e["stored_bytes"]) // 64) * 64
            for e in open_segment(whole).entries
        ]
        growing = tmp_path / "growing" / "a.mscan"
        growing.parent.mkdir()
        growing.write_bytes(b"")
        follower, given = MScanFollower(growing.parent), 0
        for size in range(0, len(data), 37):
            with growing.open("ab") as file:
                file.write(data[growing.stat().st_size : size])
            given += len(list(follower.poll()))
            assert given == max(0, sum(end <= size for end in ends) - 1)

    def test_recovered_meanwhile(self, tmp_path):
        """A torn segment that is recovered under the reader is read on where the reader was."""
        path = tmp_path / "attempt-0000-segment-0000.mscan"
        writer = MScanWriter(path, {}, chunk_bytes=600)
        for sequence in range(8):
            append(writer, packet(sequence))
        writer.flush()
        follower = MScanFollower(tmp_path)
        seen = len(list(follower.poll()))
        with path.open("ab") as file:
            file.write(b"torn tail")
        copy = tmp_path / "copy"
        shutil.copy(path, copy)
        recover(path)
        assert list(follower.poll()) == []
        assert follower.closed
        assert seen == len(open_segment(path).entries) - 1
        writer.close()

    def test_deleted_while_it_is_read(self, tmp_path):
        """A segment that is deleted after a part of it was read is read to its end, and none is missed."""
        path = tmp_path / "attempt-0000-segment-0000.mscan"
        writer = MScanWriter(path, {}, chunk_bytes=600)
        append(writer, packet(0))
        writer.flush()
        follower = MScanFollower(tmp_path)
        seen = list(follower.poll())
        for sequence in range(1, 6):
            append(writer, packet(sequence))
        writer.close()
        path.unlink()
        seen += list(follower.poll())
        sent = [int(p.header["sequence"]) for s, c in seen for p in packets_of(s, c)]
        assert sent == list(range(6))
        assert follower.closed
        assert follower.missed() == []

    def test_deleted_segments_are_unmapped(self, tmp_path):
        """A follower holds no block of a segment that was deleted, whether it had read the footer or not."""
        paths = [tmp_path / f"attempt-0000-segment-{number:04d}.mscan" for number in range(3)]
        writers = [MScanWriter(path, {}, segment=number) for number, path in enumerate(paths)]
        for number, writer in enumerate(writers):
            append(writer, packet(number))
            writer.flush()
        writers[0].close()
        follower = MScanFollower(tmp_path)
        assert len(list(follower.poll())) == 6
        writers[1].close()
        paths[0].unlink()
        paths[1].unlink()
        assert list(follower.poll()) == []
        gc.collect()  # frames of the test itself may be in cycles
        maps = Path("/proc/self/maps").read_text()
        assert paths[2].name in maps
        assert not any(path.name in maps for path in paths[:2])
        writers[2].close()
        assert list(follower.poll()) == []
        assert follower.closed
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()

    def test_deleted_before_it_is_mapped(self, tmp_path, monkeypatch):
        """A segment that is deleted between the listing of the folder and its opening is passed over."""
        for number in range(2):
            path = tmp_path / f"attempt-0000-segment-{number:04d}.mscan"
            with MScanWriter(path, {}, segment=number) as writer:
                append(writer, packet(number))

        def deleted_after(path):
            found = find_segments(path)
            found[0].unlink(missing_ok=True)
            return found

        monkeypatch.setattr(follow, "find_segments", deleted_after)
        follower = MScanFollower(tmp_path)
        assert [segment.number for segment, _ in follower.poll()] == [1, 1]
        assert follower.closed
