"""kill -9 of either side, at any time: order, content and books hold. Real processes.

The core's own test kills at every single instruction; here the times are random and both sides run.
"""

import os
import random
import signal
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from asysi.bus.packet import HEADER_DTYPE, ROW_DTYPE, Dtype, parse_packet
from asysi_ring import ClosedError, Control, Reader, Writer

POINTS = ["layer.0", "layer.1", "layer.2"]
ROWS = 8
KILLS = 40


def spawn(work: Callable[[], None]) -> int:
    """Run `work` in a forked process, whose exit code says whether it raised; return its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def kill(pid: int) -> None:
    """Kill -9 and wait for the end."""
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait a minute at most."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "waited a minute in vain"
        time.sleep(0.0005)


def produce(folder: str, packets: int = 10**9, *, by_source: bool = False) -> None:
    """Publish packets that carry their own checksum, up to number `packets`.

    By source: their numbers are marks, and a restarted producer goes on from the ring's own. Otherwise it is
    live and samples: 3 rows of 11 are left out, and what was seen is booked before the rest is published.
    """
    writer = Writer(folder)
    accounts = [writer.account(point) for point in POINTS]
    number = max(writer.source(shard) for shard in range(writer.shards)) if by_source else 0
    header = np.zeros(1, HEADER_DTYPE)
    header["width"] = 64
    rows = np.zeros(ROWS, ROW_DTYPE)
    payload = np.zeros((ROWS, 64), np.float32)
    while number < packets:
        number += 1
        point = number % len(POINTS)
        payload[:] = number % 1000
        payload[number % ROWS] = -number
        header["account"], header["source"] = accounts[point], number if by_source else 0
        header["step"] = zlib.crc32(payload)
        if not by_source:
            writer.book(accounts[point], seen=ROWS + 3, sampled_out=3)
        shard = point % writer.shards
        while not writer.free(shard):
            time.sleep(0.0001)
        writer.publish_block(
            shard, header, rows, payload.ctypes.data, 256, None, ROWS, Dtype.FLOAT32, 0, book_seen=by_source
        )
    writer.close("complete")


def consume(folder: str, on_packet: Callable[[int, int, int], None] = lambda *_: None) -> None:
    """Check and consume packets until the producer has ended; every tenth makes all durable."""
    reader = Reader(folder, "r")
    with Control(folder) as control:
        for account, book in enumerate(control.consumed("r")):
            reader.restore_durable(account, book["durable"])
    taken = 0
    while reader.ended() is None:
        for view in reader.pull(8, 0.01):
            packet = parse_packet(memoryview(view), POINTS)
            assert zlib.crc32(packet.payload) == int(packet.header["step"])
            on_packet(view.account, view.sequence, int(packet.header["rows_before"]))
            del packet
            reader.consumed(view)
            view.release()
            taken += 1
            if taken % 10 == 0:
                reader.mark_durable()
    reader.settle()
    reader.mark_durable()
    reader.finalise("finalised")


def test_a_killed_producer_leaves_exact_books(make_ring):
    """Killed at random and restarted into the same ring: every row seen is published, sampled out or dropped.

    A reader that runs all the while sees whole packets in order and knows exactly what it lost.
    """
    ring = make_ring(shards=2, chunks=24)
    dice = random.Random(1)
    positions = [0] * len(POINTS)

    def in_order(account: int, _: int, rows_before: int) -> None:
        assert rows_before >= positions[account]
        positions[account] = rows_before + ROWS

    reader = spawn(lambda: consume(ring.folder, in_order))
    with Control(ring.folder) as control:
        for life in range(KILLS):
            producer = spawn(lambda: produce(ring.folder))
            wait_until(lambda: control.geometry()["generation"] == 2 * life + 1)  # noqa: B023 - called at once
            time.sleep(dice.uniform(0, 0.003))
            kill(producer)
            assert control.writer_state() == "gone"
            with Writer(ring.folder) as successor:
                assert successor.generation == 2 * life + 2
                ring.balance()
        Writer(ring.folder).close("complete")
        assert os.waitpid(reader, 0)[1] == 0
        ring.balance("r")
        assert sum(book["published"] for book in control.produced()) > KILLS * ROWS
        assert sum(book["dropped"][0] for book in control.produced()) > 0


def test_a_killed_producer_with_sources_neither_repeats_nor_skips(make_ring):
    """Going on from source(), it publishes every packet exactly once, however often it is killed."""
    ring = make_ring(shards=2, chunks=24)
    dice = random.Random(2)
    with Control(ring.folder) as control:
        for life in range(KILLS):
            producer = spawn(lambda: produce(ring.folder, by_source=True))
            wait_until(lambda: control.geometry()["generation"] == life + 1)  # noqa: B023 - called at once
            time.sleep(dice.uniform(0, 0.003))
            kill(producer)
        with Writer(ring.folder) as writer:
            packets = max(writer.source(0), writer.source(1)) + 10
        produce(ring.folder, packets, by_source=True)
        assert packets > KILLS
        for point, book in enumerate(control.produced()):
            numbers = len(range(point or len(POINTS), packets + 1, len(POINTS)))
            assert book["seen"] == book["published"] == numbers * ROWS
            assert book["packets"] == numbers


def test_a_killed_reader_goes_on_where_it_was(make_ring, tmp_path):
    """Killed at random, it skips nothing, repeats at most the packet it was on, and its books are exact."""
    ring = make_ring(shards=1, chunks=24, policy="drop_new")
    dice = random.Random(3)
    log = tmp_path / "sequences"
    descriptor = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def note(_: int, sequence: int, __: int) -> None:
        os.write(descriptor, struct.pack("<q", sequence))

    packets = 20_000
    producer = spawn(lambda: produce(ring.folder, packets))
    kills = 0
    with Control(ring.folder) as control:
        while kills < KILLS and control.writer_state() != "complete":
            reader = spawn(lambda: consume(ring.folder, note))
            # Once the producer is through, a reader may be finished before anybody has seen it attached.
            wait_until(lambda: control.reader_state("r") in {"attached", "finalised"})
            time.sleep(dice.uniform(0, 0.01))
            os.kill(reader, signal.SIGKILL)
            ended = os.waitpid(reader, 0)[1]
            assert ended == signal.SIGKILL or (ended == 0 and control.reader_state("r") == "finalised")
            kills += 1
        assert os.waitpid(spawn(lambda: consume(ring.folder, note)), 0)[1] == 0
        assert os.waitpid(producer, 0)[1] == 0
        assert control.reader_state("r") == "finalised"
    os.close(descriptor)
    sequences = np.fromfile(log, "<i8")
    assert kills > 5
    assert sequences.tolist() == sorted(sequences.tolist())
    assert np.unique(sequences).tolist() == list(range(1, packets + 1))
    assert len(sequences) - packets <= kills
    ring.balance("r")
    books = [ring.consumed("r", account) for account in range(len(POINTS))]
    assert sum(book["lapped"] for book in books) == 0
    assert sum(book["durable"] for book in books) > 0


def test_both_sides_may_die(make_ring):
    """Producer and reader killed in turn, over and over: the ledger of both still close."""
    ring = make_ring(shards=2, chunks=24)
    dice = random.Random(4)
    for _ in range(KILLS // 2):
        pids = [spawn(lambda: produce(ring.folder)), spawn(lambda: consume(ring.folder))]
        time.sleep(dice.uniform(0.002, 0.01))
        dice.shuffle(pids)
        for pid in pids:
            kill(pid)
    with Writer(ring.folder) as writer:
        ring.balance()
        writer.close("complete")
    assert os.waitpid(spawn(lambda: consume(ring.folder)), 0)[1] == 0
    ring.balance("r")


def test_a_dead_reader_costs_its_pins_and_nothing_more(make_ring):
    """Its pinned chunks are passed over, nothing is dropped; back again, it may pin as many as before."""
    ring = make_ring(pins=4, chunks=14)
    read, write = os.pipe()

    def hold() -> None:
        reader = Reader(ring.folder, "r")
        views = reader.pull(4)
        os.write(write, bytes([len(views)]))
        time.sleep(60)

    with Writer(ring.folder) as writer:
        for value in range(6):
            ring.publish(writer, value)
        holder = spawn(hold)
        assert os.read(read, 1) == b"\4"
        kill(holder)
        assert all(ring.publish(writer, value) for value in range(100))
        with Reader(ring.folder, "r") as reader:
            assert len(reader.pull(64)) == 4
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("how", ["fork", "exec"])
def test_a_child_does_not_keep_the_lock(make_ring, how):
    """When a participant is killed, its place is free although a child of it lives on."""
    ring = make_ring()
    read, write = os.pipe()

    def attach_and_bear() -> None:
        ends = Writer(ring.folder), Reader(ring.folder, "r")
        if how == "fork":
            child = spawn(lambda: time.sleep(60))
        else:
            child = subprocess.Popen(["/bin/sleep", "60"], close_fds=False).pid
        os.write(write, struct.pack("<q", child))
        time.sleep(60)
        del ends

    parent = spawn(attach_and_bear)
    (child,) = struct.unpack("<q", os.read(read, 8))
    kill(parent)
    try:
        assert Path(f"/proc/{child}").exists()
        with Control(ring.folder) as control:
            assert (control.writer_state(), control.reader_state("r")) == ("gone", "gone")
        Writer(ring.folder).close()
        Reader(ring.folder, "r").close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(read)
        os.close(write)


def test_a_forked_child_cannot_disturb_its_parent(make_ring):
    """What it inherited refuses to work, and letting go of inherited views unpins nothing."""
    ring = make_ring()

    def misuse(writer: Writer, reader: Reader, views: list) -> None:
        for call in (
            lambda: ring.publish(writer, 2),
            lambda: writer.book(0, seen=1),
            reader.pull,
            reader.mark_durable,
        ):
            with pytest.raises(ClosedError, match="forked"):
                call()
        while views:
            views.pop().release()
        reader.close()
        writer.close("complete")

    with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
        ring.publish(writer, 1)
        views = reader.pull()
        assert os.waitpid(spawn(lambda: misuse(writer, reader, views)), 0)[1] == 0
        with Control(ring.folder) as control:
            assert (control.writer_state(), control.reader_state("r")) == ("attached", "attached")
        assert all(ring.publish(writer, value) for value in range(50))
        assert ring.value(views[0]) == 1
        views[0].release()
