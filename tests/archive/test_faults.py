"""What storage and kills can do to an archive: what was acknowledged is there, nothing wrong is ever read.

The counts are scaled down; `make mscan-faults` runs a thousand kills, and an error at every call.
"""

import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.archive import faulty_writer
from tests.archive.faulty_writer import packet
from tests.pod import ROOT

from asysi.archive import writer as archive_writer
from asysi.archive.codec import pack
from asysi.archive.dataset import MScanDataset
from asysi.archive.errors import MScanError, TornError
from asysi.archive.format import ChunkKind
from asysi.archive.measure import measure
from asysi.archive.recover import recover
from asysi.archive.segment import open_segment, read_segment
from asysi.archive.series import Series, resume
from asysi.archive.verify import verify, verify_data
from asysi.archive.writer import MScanWriter, SeqInfo

WRITER = (sys.executable, "-m", "tests.archive.faulty_writer")
KILLS = int(os.environ.get("ASYSI_MSCAN_KILLS", "6"))
CALLS = int(os.environ.get("ASYSI_MSCAN_CALLS", "7"))
"""Every how many calls an error is injected, 1 for every call."""
CASES = int(os.environ.get("ASYSI_MSCAN_CASES", "2000"))
"""Flipped bytes and truncations of a file of 64 KiB that are tried, of each kind; 0 for all of them."""
CALL = r"write|writev|pwrite64|fsync|rename|openat"


def acknowledged(text):
    numbers = [int(line) for line in text.split()]
    return numbers[-1] if numbers else -1


def check(folder, last, *, first=0):
    """After recovery, what was acknowledged is there bit for bit, and nothing but what was written."""
    for path in folder.glob("*.mscan"):
        assert verify(path) == []
    found = [(int(p.header["sequence"]), p.payload.tobytes()) for p in MScanDataset(folder).packets()]
    assert [sequence for sequence, _ in found] == list(range(first, first + len(found)))
    assert first + len(found) > last
    assert all(payload == packet(sequence).payload.tobytes() for sequence, payload in found)


def test_kills(tmp_path):
    """kill -9 at any moment: every acknowledged packet is there after `recover`, and the files verify."""
    generator = random.Random(7)
    for number in range(KILLS):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "attempt-0000-segment-0000.mscan"
        child = subprocess.Popen([*WRITER, path], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(generator.randrange(1, 30)):
            said = child.stdout.readline()
        child.kill()
        said += child.stdout.read()
        child.wait()
        child.stdout.close()
        recover(path)
        check(folder, acknowledged(said.rpartition("\n")[0]))
        shutil.rmtree(folder)


def traced(folder, *options):
    """Run the writer under strace; only its calls on files of the archive are counted."""
    command = ["strace", "-f", "-qq", "-o", folder.parent / "trace", *options]
    return subprocess.run(
        [*command, *WRITER, folder, "24", "none"], capture_output=True, text=True, check=False, cwd=ROOT
    )


def paths(folder):
    """strace traces calls by path; these are all names that the writer may give."""
    names = [f"attempt-0000-segment-{n:04d}.mscan" for n in range(12)]
    own = [*names, *(f".{name}.new" for name in names), "retired.json", ".retired.json.tmp"]
    return [option for name in own for option in ("-P", folder / name)]


@pytest.mark.long
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing: run make tools")
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_storage_errors(tmp_path, error):
    """An error of the storage at any call ends the writer with a message; acknowledged packets survive."""
    folder = tmp_path / "count"
    folder.mkdir()
    done = traced(folder, *paths(folder), "-e", f"trace=/^({CALL})$")
    assert done.returncode == 0, done.stderr
    calls = len((tmp_path / "trace").read_text().splitlines())
    assert calls > 40
    for number in range(1, calls + 1, CALLS):
        folder = tmp_path / str(number)
        folder.mkdir()
        inject = f"inject=/^({CALL})$:error={error}:when={number}"
        done = traced(folder, *paths(folder), "-e", f"trace=/^({CALL})$", "-e", inject)
        last = acknowledged(done.stdout)
        if done.returncode:
            assert done.returncode == 1
            assert re.search(r"No space left|Input/output error", done.stderr), done.stderr
        else:  # a spot where the writer needs no call to succeed
            assert last == 23
        _, rows = resume(folder, 0, tensors=True)
        assert rows.total() >= 40 * (last + 1)
        if last >= 0:
            check(folder, last)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def file_of_64_kib(tmp_path_factory):
    """A segment of 64 KiB with both kinds of chunks and both codecs."""
    path = tmp_path_factory.mktemp("small") / "attempt-0000-segment-0000.mscan"
    with MScanWriter(path, {}, chunk_bytes=4000, compression="lz4") as writer:
        number = 0
        while writer.size + writer.buffered < 60_000:
            one = packet(number)
            one.payload[::2] = 1  # compresses
            writer.append_records(measure(one), SeqInfo("a", 0, number, number, 16))
            writer.append_tensor(one)
            writer.flush()
            number += 1
    data = path.read_bytes()
    assert 60_000 < len(data) < 80_000
    return data


def places(size):
    if not CASES or size <= CASES:
        return range(size)
    return sorted(random.Random(3).sample(range(size), CASES))


def load(data):
    """Everything a reader gets of a segment, or its error."""
    segment = read_segment(data, Path("a.mscan"))
    found = []
    for chunk, entry in enumerate(segment.entries):
        if entry["kind"] == ChunkKind.METRICS:
            found.append(segment.records(chunk).tobytes())
        elif entry["kind"] == ChunkKind.TENSOR:
            found += [p.payload.tobytes() for p in segment.packets(chunk)]
    return found


def test_flipped_bytes(file_of_64_kib):
    """A flipped byte anywhere in 64 KiB is an error or leaves the right data, never wrong data."""
    whole = load(file_of_64_kib)
    generator = random.Random(5)
    damaged = bytearray(file_of_64_kib)
    for place in places(len(damaged)):
        before = damaged[place]
        damaged[place] ^= generator.randrange(1, 256)
        with contextlib.suppress(MScanError):
            assert load(damaged) == whole, place
        damaged[place] = before


def test_truncations(file_of_64_kib):
    """Cut at any length, a segment is an error; a scan gives exactly the chunks that are whole."""
    view = memoryview(file_of_64_kib)
    ends = [
        int(e["offset"]) + 192 + int(e["stored_bytes"]) + -int(e["stored_bytes"]) % 64
        for e in read_segment(view, Path("a.mscan")).entries
    ]
    for size in places(len(view))[:: 1 if CASES == 0 else 6]:
        with pytest.raises(MScanError):
            read_segment(view[:size], Path("a.mscan"))
        try:
            segment = read_segment(view[:size], Path("a.mscan"), scan=True)
        except MScanError:
            assert size < ends[0]
            continue
        assert len(segment.entries) == sum(end <= size for end in ends)
    assert verify_data(view, Path("a.mscan")) == []


def test_series_stops_for_good(tmp_path, monkeypatch):
    """After an error of the storage in the background, later calls raise, and nothing is tried again."""
    series = Series(tmp_path, 0, {}, rotate=1 << 30)
    series.append(packet(0))
    series.flush()
    calls = []

    def broken(_fd, _parts):
        calls.append(1)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "writev", broken)
    series.append(packet(1))
    with pytest.raises(OSError, match="Input/output"):
        series.flush()
    for call in (series.flush, lambda: series.append(packet(2))):
        with pytest.raises(MScanError, match="writing failed before"):
            call()
    assert len(calls) == 1


@pytest.mark.parametrize("error", [MemoryError, ValueError])
def test_no_footer_over_a_hole(tmp_path, monkeypatch, error):
    """Whatever fails in the background, the segment stays torn: a footer says that nothing is missing."""
    path = tmp_path / "a.mscan"
    failures = iter([error("once")])

    def fails_once(*arguments):
        for failure in failures:
            raise failure
        return pack(*arguments)

    with MScanWriter(path, {}, points=[("a", None, faulty_writer.WIDTH)]) as writer:
        writer.flush()
        monkeypatch.setattr(archive_writer, "pack", fails_once)
        writer.append_tensor(packet(0))
        with pytest.raises(error, match="once"):
            writer.flush()
        with pytest.raises(MScanError, match="writing failed before"):
            writer.append_tensor(packet(1))
    with pytest.raises(TornError):
        open_segment(path)


def test_no_footer_over_half_a_packet(tmp_path, monkeypatch):
    """A packet that could be copied in part alone leaves the segment torn, with what was flushed before."""
    path = tmp_path / "a.mscan"
    with MScanWriter(path, {}) as writer:
        writer.append_tensor(packet(0))
        writer.flush()
        monkeypatch.setattr(archive_writer, "padding", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            writer.append_tensor(packet(1))
        monkeypatch.undo()
    with pytest.raises(TornError):
        open_segment(path)
    recover(path)
    assert [int(one.header["sequence"]) for one in MScanDataset(path).packets()] == [0]


def test_no_thread_to_write(tmp_path, monkeypatch):
    """Where no thread can start, the writer says so instead of waiting for one that does not exist."""
    path, start, failures, raised = tmp_path / "a.mscan", threading.Thread.start, [1], []

    def fails_once(thread):
        if thread.name == "mscan-writer" and failures:
            failures.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    def write():
        try:
            with MScanWriter(path, {}) as writer:
                writer.append_tensor(packet(0))
        except RuntimeError as error:
            raised.append(str(error))

    monkeypatch.setattr(threading.Thread, "start", fails_once)
    user = threading.Thread(target=write, daemon=True)
    user.start()
    user.join(5)
    assert raised == ["can't start new thread"]
    with pytest.raises(TornError):
        open_segment(path)
