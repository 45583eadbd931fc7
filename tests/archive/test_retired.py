"""Segments rotate by age, and an archive keeps to its disk budget without losing count."""

import json
from collections import Counter

import numpy as np
import pytest
from tests.packets import packet_of

from asysi.archive.dataset import MScanDataset
from asysi.archive.errors import MScanError
from asysi.archive.follow import MScanFollower
from asysi.archive.format import ChunkKind
from asysi.archive.retired import RETIRED_FILE, read_retired
from asysi.archive.series import Series, resume
from asysi.archive.summary import retired_lines


def packet(sequence, point="a", rows=10):
    return packet_of(np.full((rows, 64), sequence, np.float32), sequence, point)


def fill(series, count, first=0):
    for sequence in range(first, first + count):
        series.append(packet(sequence, "ab"[sequence % 2]))
        if series.full:
            series.close()
    series.close()


def size(folder):
    return sum(path.stat().st_size for path in folder.glob("*.mscan"))


def test_rotation_by_age(tmp_path):
    """A segment is closed at the age asked for, counted from its first packet, however small it is."""
    now = [100.0]
    series = Series(tmp_path, 0, {}, rotate_seconds=30, clock=lambda: now[0])
    now[0] = 500.0
    assert not series.full
    series.append(packet(0))
    now[0] = 529.0
    assert not series.full
    now[0] = 530.0
    assert series.full
    series.close()
    assert not series.full


def test_budget(tmp_path):
    """Beyond the budget the oldest closed segments go; rows kept and rows deleted add up to rows written."""
    series = Series(tmp_path, 0, {}, rotate=20_000, budget=100_000)
    fill(series, 200)
    assert size(tmp_path) <= 100_000
    dataset = MScanDataset(tmp_path)
    steps = [int(p.header["step"]) for p in dataset.packets()]
    assert sorted(steps) == list(range(200 - len(steps), 200))
    deleted = read_retired(tmp_path)
    assert [one["attempt"] for one in deleted] == [0]
    rows = sum((Counter(one["rows"]) for one in deleted), Counter())
    assert rows.total() == series.retired == 2000 - 10 * len(steps)
    assert "were deleted to keep to archive.maxSize" in retired_lines(tmp_path)[0]


def test_budget_beyond_segment_9999(tmp_path):
    """Names of five digits sort after those of four: the newest data stays, and a follower reads in order."""
    fill(Series(tmp_path, 0, {}, rotate=1, number=9_990), 20)
    follower = MScanFollower(tmp_path)
    assert list(dict.fromkeys(segment.number for segment, _ in follower.poll())) == list(range(9_990, 10_010))
    fill(Series(tmp_path, 0, {}, rotate=1, number=10_010, budget=size(tmp_path) // 2), 1, first=20)
    steps = [int(p.header["step"]) for p in MScanDataset(tmp_path).packets()]
    assert 1 < len(steps) < 20
    assert steps == list(range(21 - len(steps), 21))


def test_books_survive_a_restart(tmp_path):
    """A restarted archiver counts deleted rows as durable, and takes no number of a deleted segment."""
    series = Series(tmp_path, 0, {}, rotate=20_000, budget=1)
    fill(series, 100)
    number, rows = resume(tmp_path, 0, tensors=True)
    assert rows == {"a": 500, "b": 500}
    assert number == series.number
    assert len(list(tmp_path.glob("*.mscan"))) == 1
    assert resume(tmp_path, 1, tensors=True) == (0, {})


def test_record_stays_small(tmp_path):
    """However many segments were deleted, each attempt has one entry, and no row or number is forgotten."""
    for attempt in range(2):
        series = Series(tmp_path, attempt, {}, rotate=1, budget=1)
        fill(series, 150)
        assert (tmp_path / RETIRED_FILE).stat().st_size < 4096
        assert resume(tmp_path, attempt, tensors=True) == (150, {"a": 750, "b": 750})
    first, second = read_retired(tmp_path)
    assert (first["attempt"], first["segments"], first["rows"]) == (0, 150, {"a": 750, "b": 750})
    assert (second["attempt"], second["segments"], second["rows"]) == (1, 149, {"a": 750, "b": 740})
    assert second["name"] == "attempt-0001-segment-0148.mscan"
    assert retired_lines(tmp_path)[0].startswith("299 older segments (2,990 rows,")


def test_record_of_each_segment(tmp_path):
    """A record with an entry for each segment, as earlier versions wrote, is read as one of each attempt."""
    entries = [
        {
            "name": f"attempt-{attempt:04d}-segment-{number:04d}.mscan",
            "attempt": attempt,
            "bytes": 3,
            "rows": rows,
        }
        for attempt, number, rows in [(0, 0, {"a": 1}), (0, 1, {"b": 2}), (1, 0, {"a": 4}), (0, 2, {"a": 8})]
    ]
    (tmp_path / RETIRED_FILE).write_text(json.dumps({"segments": entries}))
    assert read_retired(tmp_path) == [
        {
            "name": entries[3]["name"],
            "attempt": 0,
            "segments": 3,
            "uploaded": 0,
            "bytes": 9,
            "rows": {"a": 9, "b": 2},
        },
        {
            "name": entries[2]["name"],
            "attempt": 1,
            "segments": 1,
            "uploaded": 0,
            "bytes": 3,
            "rows": {"a": 4},
        },
    ]
    assert resume(tmp_path, 0, tensors=True) == (3, {"a": 9, "b": 2})
    assert retired_lines(tmp_path) == [
        "4 older segments (15 rows, 12 B) were deleted to keep to archive.maxSize"
    ]


def steps_of(chunks):
    found = []
    for segment, chunk in chunks:
        if segment.entries["kind"][chunk] == ChunkKind.TENSOR:
            found += [int(p.header["step"]) for p in segment.packets(chunk)]
    return found


def test_a_follower_reports_what_it_missed(tmp_path):
    """Rows that a follower yields and rows that it reports as missed add up to the rows that were written."""
    series = Series(tmp_path, 0, {}, rotate=20_000, budget=40_000)
    follower, read = MScanFollower(tmp_path), []
    fill(series, 30)
    read += steps_of(follower.poll())
    assert [(one.attempt, one.rows) for one in follower.missed()] == [(0, 10 * (30 - len(read)))]
    fill(series, 3, first=30)
    read += steps_of(follower.poll())
    fill(series, 60, first=33)
    read += steps_of(follower.poll())
    assert len(read) == len(set(read))
    (missed,) = follower.missed()
    assert 0 < missed.segments < read_retired(tmp_path)[0]["segments"]
    assert missed.rows == 10 * (93 - len(read))
    early = MScanFollower(tmp_path)
    assert (
        early.missed()[0].rows
        == read_retired(tmp_path)[0]["rows"]["a"] + read_retired(tmp_path)[0]["rows"]["b"]
    )


def test_a_follower_that_keeps_up_misses_nothing(tmp_path):
    """A segment that is deleted while it is read is read to its end."""
    series = Series(tmp_path, 0, {}, rotate=20_000, budget=1)
    follower, read = MScanFollower(tmp_path), []
    for sequence in range(60):
        series.append(packet(sequence))
        series.flush()
        if sequence % 2:  # never between the last packets of a segment and its deletion
            read += steps_of(follower.poll())
        if series.full:
            series.close()
    series.close()
    read += steps_of(follower.poll())
    assert read == list(range(60))
    assert follower.missed() == []
    assert read_retired(tmp_path)[0]["segments"] > 5


def test_uploaded_segments_are_marked(tmp_path):
    """The record says how many deleted segments a store holds, and `info` where they are."""
    there = {"attempt-0000-segment-0000.mscan", "attempt-0000-segment-0001.mscan"}
    fill(Series(tmp_path, 0, {}, rotate=1, budget=1, uploaded=lambda: there), 5)
    (record,) = read_retired(tmp_path)
    assert (record["segments"], record["uploaded"]) == (4, 2)
    assert retired_lines(tmp_path)[0].endswith("archive.maxSize; 2 of them are at output.uri")


def test_killed_before_the_deletion(tmp_path):
    """A kill between the record and the deletion counts no row twice: the restart deletes the segment."""
    fill(Series(tmp_path, 0, {}, rotate=20_000), 20)
    oldest = min(tmp_path.glob("*.mscan"))
    rows = dict(Counter({p: len(MScanDataset(oldest).metrics(p)) for p in "ab"}))
    record = {"segments": [{"name": oldest.name, "attempt": 0, "bytes": 1, "rows": rows}]}
    (tmp_path / RETIRED_FILE).write_text(json.dumps(record))
    _, found = resume(tmp_path, 0, tensors=True)
    assert not oldest.exists()
    assert found == {"a": 100, "b": 100}


def test_newest_stays(tmp_path):
    """However small the budget, the newest closed segment stays."""
    fill(Series(tmp_path, 0, {}, rotate=1, budget=1), 5)
    assert [int(p.header["step"]) for p in MScanDataset(tmp_path).packets()] == [4]


@pytest.mark.parametrize("text", ["", "{}", '{"segments": [{"name": 1}]}', '{"segments": 7}', "[1]"])
def test_damaged_record(tmp_path, text):
    """A record that cannot be read is an error that names the file, never an empty record."""
    (tmp_path / RETIRED_FILE).write_text(text)
    with pytest.raises(MScanError, match=r"retired\.json"):
        read_retired(tmp_path)


def test_names_stay_in_the_folder(tmp_path):
    """A record cannot delete a file outside the archive."""
    outside = tmp_path / "precious"
    outside.write_text("x")
    folder = tmp_path / "archive"
    folder.mkdir()
    record = {"segments": [{"name": "../precious", "attempt": 0, "bytes": 1, "rows": {}}]}
    (folder / RETIRED_FILE).write_text(json.dumps(record))
    with pytest.raises(MScanError, match="not the name of a segment"):
        resume(folder, 0, tensors=True)
    assert outside.exists()
