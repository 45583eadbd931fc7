"""What every bus promises, whatever carries it: one suite, and a row of KINDS for each implementation."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from tests.bus.memory import MemoryBus
from tests.bus.servers import queue_server, redis_server
from tests.bus.spool import SpoolBus

from asysi.bus.accounts import StreamAccounts, read_accounts
from asysi.bus.packet import HEADER_DTYPE, ROW_DTYPE, ActivationPacket, Dtype, Quantization
from asysi.bus.plan import StreamPlan
from asysi.bus.queue import PythonQueueBus
from asysi.bus.queue_server import QueueHub
from asysi.bus.redis_stream import RedisStreamBus
from asysi.bus.ring import CppShardedSPMCBus
from asysi.bus.states import DropReason, ProducerState, ReaderState, StreamEnd
from asysi.bus.stream import AheadError, DataBus, StreamError
from asysi_ring import create

ROOT = Path(__file__).parents[2]
READERS = ("one", "two")
POINTS = ("layer.0", "layer.1", "layer.2")
ROWS, WIDTH, SECONDS = 3, 8, 60.0


@dataclass(frozen=True)
class Kind:
    """An implementation."""

    make: Callable[[Path, Sequence[str]], DataBus]
    """Makes a stream in an empty folder, for consumers of these names."""
    find: Callable[[Path], DataBus] | None
    """Finds it from another process; None when it lives in one process only."""


def _ring(folder: Path, readers: Sequence[str]) -> CppShardedSPMCBus:
    ring = folder / "ring"
    create(str(ring), shards=2, chunks=96, chunk_bytes=1024, readers=list(readers), policy="overwrite")
    return CppShardedSPMCBus(ring)


def _plan(readers: Sequence[str]) -> StreamPlan:
    return StreamPlan(PurePosixPath("bus"), 1, 64, 1 << 12, tuple(readers), 0, "drop_new")


def _queue(folder: Path, readers: Sequence[str]) -> PythonQueueBus:
    """Make a stream in the one queue server of all tests, named after the folder."""
    bus = PythonQueueBus(queue_server(), str(folder))
    bus.create(_plan(readers))
    return bus


LEASE = 0.6
"""Seconds that a killed process keeps its place in Redis."""


def _redis(folder: Path, readers: Sequence[str]) -> RedisStreamBus:
    """Make a stream in the one Redis of all tests, named after the folder."""
    bus = RedisStreamBus(redis_server(), str(folder), lease=LEASE)
    bus.create(_plan(readers))
    return bus


def _local(_: Path, readers: Sequence[str]) -> PythonQueueBus:
    bus = PythonQueueBus(QueueHub())
    bus.create(_plan(readers))
    return bus


KINDS = {
    "ring": Kind(_ring, lambda folder: CppShardedSPMCBus(folder / "ring")),
    "memory": Kind(lambda _, readers: MemoryBus(readers), None),
    "spool": Kind(
        lambda folder, readers: SpoolBus.create(folder / "spool", readers),
        lambda folder: SpoolBus(folder / "spool"),
    ),
    "queue": Kind(_queue, lambda folder: PythonQueueBus(queue_server(), str(folder))),
    "local queue": Kind(_local, None),
    "redis": Kind(_redis, lambda folder: RedisStreamBus(redis_server(), str(folder), lease=LEASE)),
}
LONG = {"redis": pytest.mark.long}
"""Where kills take long: Redis writes to disk before it answers."""
SHARED = [name for name, kind in KINDS.items() if kind.find is not None]


def packet_of(point: str, step: int, rows: int = ROWS) -> ActivationPacket:
    """Return a packet whose content follows from its step."""
    header = np.zeros(1, HEADER_DTYPE)[0]
    header["width"], header["dtype"], header["step"], header["captured_ns"] = WIDTH, Dtype.FLOAT32, step, 1
    records = np.zeros(rows, ROW_DTYPE)
    records["sample"], records["token"] = step, np.arange(rows)
    values = np.random.default_rng([step, *point.encode()]).normal(size=(rows, WIDTH)).astype(np.float32)
    return ActivationPacket(header, point, records, None, values)


def steps_of(packets: Sequence[ActivationPacket]) -> dict[str, list[int]]:
    """Return the steps of packets by hook point, in their order; every one must hold what it was made of."""
    found: dict[str, list[int]] = defaultdict(list)
    for packet in packets:
        step = int(packet.header["step"])
        made = packet_of(packet.point, step, len(packet.rows))
        assert packet.rows.tobytes() == made.rows.tobytes()
        assert packet.payload.tobytes() == made.payload.tobytes()
        found[packet.point].append(step)
    return dict(found)


def accounts_of(bus: DataBus) -> StreamAccounts:
    """Return the counters of a stream."""
    control = bus.control()
    try:
        return read_accounts(control)
    finally:
        control.close()


def expect_balance(bus: DataBus, reader: str) -> StreamAccounts:
    """Assert both equations of the ledger at every hook point; return the counters."""
    found = accounts_of(bus)
    for point, made in found.produced.items():
        used = found.consumers[reader].consumed[point]
        assert made.seen == made.published + made.sampled_out + sum(made.dropped.values()), point
        assert made.published == used.durable + used.lapped + used.rolled_back, (point, made, used)
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory."""
    made = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(params=KINDS)
def bus(request: pytest.FixtureRequest, folder: Path) -> DataBus:
    """A stream of each kind."""
    return KINDS[request.param].make(folder, READERS)


def all_of(consumer: Any) -> list[ActivationPacket]:
    """Pull until nothing comes; the arrays are copies."""
    found: list[ActivationPacket] = []
    while batch := consumer.pull(5, 0.2):
        found += [
            replace(p, header=p.header.copy(), rows=p.rows.copy(), payload=p.payload.copy()) for p in batch
        ]
    return found


# -- packets


def test_every_consumer_sees_every_packet_in_order(bus: DataBus) -> None:
    """Each of two consumers is handed every packet, whole, in the order of its hook point."""
    with bus.producer() as producer, bus.consumer("one") as one, bus.consumer("two") as two:
        for step in range(12):
            for point in POINTS:
                assert producer.push(packet_of(point, step))
        for consumer in (one, two):
            assert steps_of(all_of(consumer)) == {point: list(range(12)) for point in POINTS}
            assert consumer.points() == list(POINTS)


def test_the_stream_writes_its_part_of_the_header(bus: DataBus) -> None:
    """Sequences grow within a shard, rows_before counts rows, and the source is the producer's."""
    with bus.producer() as producer, bus.consumer("one") as consumer:
        for step in range(6):
            for point in POINTS:
                producer.push(packet_of(point, step), source=step + 1)
        last: dict[int, int] = {}
        before: dict[str, int] = defaultdict(int)
        for packet in all_of(consumer):
            header = packet.header
            assert int(header["sequence"]) > last.get(packet.shard, 0)
            last[packet.shard] = int(header["sequence"])
            assert int(header["rows_before"]) == before[packet.point]
            before[packet.point] += len(packet.rows)
            assert int(header["source"]) == int(header["step"]) + 1
            assert (int(header["rows"]), int(header["width"])) == (ROWS, WIDTH)


def test_a_batch_stays_as_it_is_until_the_next_pull(bus: DataBus) -> None:
    """What was handed out cannot be written and does not change, however much is published meanwhile."""
    with bus.producer() as producer, bus.consumer("one") as consumer:
        for step in range(4):
            producer.push(packet_of("layer.0", step))
        batch = consumer.pull(4, 1.0)
        for step in range(4, 600):
            producer.push(packet_of("layer.0", step))
        assert steps_of(batch) == {"layer.0": [0, 1, 2, 3]}
        assert not any(array.flags.writeable for p in batch for array in (p.rows, p.payload))
        assert not any(array.flags.owndata for p in batch for array in (p.rows, p.payload))


@pytest.mark.parametrize("quantization", [Quantization.BF16, Quantization.INT8])
def test_a_payload_is_converted_on_the_way(bus: DataBus, quantization: Quantization) -> None:
    """bfloat16 rounds to nearest even; int8 is the row over its largest magnitude times 127."""
    with bus.producer() as producer, bus.consumer("one") as consumer:
        made = packet_of("layer.0", 1)
        producer.push(made, quantization=quantization)
        (packet,) = consumer.pull(1, 1.0)
        largest = np.abs(made.payload).max(axis=1, keepdims=True)
        tolerance = largest / 256 if quantization is Quantization.BF16 else largest / 253
        assert (np.abs(packet.to_float32() - made.payload) <= tolerance).all()
        assert int(packet.header["quantization"]) == quantization
        assert packet.payload.itemsize == (2 if quantization is Quantization.BF16 else 1)
    assert (made.header["quantization"], made.header["account"]) == (0, 0), "push changed its argument"


def test_a_packet_larger_than_the_bus_carries_is_refused(bus: DataBus) -> None:
    """The packet is an error of its caller, and nothing of it is booked."""
    with bus.producer() as producer:
        rows = producer.packet_bytes // (WIDTH * 4) + 1
        with pytest.raises(ValueError, match=r"bytes"):
            producer.push(packet_of("layer.0", 1, rows))
    assert sum(made.seen for made in accounts_of(bus).produced.values()) == 0


# -- what becomes of them


def test_what_was_not_taken_is_handed_out_again(bus: DataBus) -> None:
    """A consumer that left with packets in its hands leaves them to its successor."""
    with bus.producer() as producer:
        for step in range(6):
            producer.push(packet_of("layer.0", step))
        with bus.consumer("one") as consumer:
            assert steps_of(consumer.pull(4, 1.0)) == {"layer.0": [0, 1, 2, 3]}
            consumer.take()
            consumer.take()
            consumer.acknowledge()
        with bus.consumer("one") as consumer:
            assert steps_of(all_of(consumer)) == {"layer.0": [2, 3, 4, 5]}


def test_what_is_acknowledged_is_never_handed_out_again(bus: DataBus) -> None:
    """Acknowledged covers what was taken, one by one or by the next pull, and nothing else."""
    with bus.producer() as producer:
        for step in range(9):
            producer.push(packet_of("layer.0", step))
        with bus.consumer("one") as consumer:
            assert len(consumer.pull(3, 1.0)) == 3
            assert len(consumer.pull(3, 1.0)) == 3
            consumer.acknowledge()
        assert accounts_of(bus).consumers["one"].consumed["layer.0"].durable == 3 * ROWS
        with bus.consumer("one") as consumer:
            assert steps_of(all_of(consumer)) == {"layer.0": [3, 4, 5, 6, 7, 8]}


@pytest.mark.parametrize("stored", [0, 2, 5])
def test_a_consumer_resumes_from_what_its_storage_holds(bus: DataBus, stored: int) -> None:
    """What the storage holds is durable; the rest is handed out again, or booked as rolled back."""
    with bus.producer() as producer:
        for step in range(8):
            producer.push(packet_of("layer.0", step))
        with bus.consumer("one") as consumer:
            consumer.pull(5, 1.0)
            for _ in range(5):
                consumer.take()
        with bus.consumer("one") as consumer:
            consumer.resume({"layer.0": stored * ROWS})
            found = steps_of(all_of(consumer))["layer.0"]
            assert found == list(range(8))[-len(found) :]
            assert found[0] >= stored
            producer.end(StreamEnd.COMPLETE)
            consumer.finish(StreamEnd.COMPLETE)
        used = expect_balance(bus, "one").consumers["one"].consumed["layer.0"]
        assert used.durable == (stored + len(found)) * ROWS
        assert used.rolled_back == (8 - stored - len(found)) * ROWS


@pytest.mark.parametrize("point", ["layer.0", "never.seen"])
def test_the_storage_of_another_run_is_refused(bus: DataBus, point: str) -> None:
    """More rows than the stream has handed out are an error that names the hook point and the rows."""
    with bus.producer() as producer:
        producer.push(packet_of("layer.0", 0))
        with bus.consumer("one") as consumer, pytest.raises(AheadError) as caught:
            consumer.resume({point: 1000})
        assert (caught.value.point, caught.value.rows) == (point, 1000)


def test_a_slow_consumer_costs_rows_that_are_counted(bus: DataBus) -> None:
    """Far more than the stream holds: the producer never waits, and every row has a fate."""
    with bus.producer() as producer, bus.consumer("one") as consumer:
        pushed = [producer.push(packet_of("layer.0", step)) for step in range(500)]
        found = steps_of(all_of(consumer))["layer.0"]
        assert found == sorted(set(found))
        producer.end(StreamEnd.COMPLETE)
        consumer.finish(StreamEnd.COMPLETE)
    books = expect_balance(bus, "one")
    made, used = books.produced["layer.0"], books.consumers["one"].consumed["layer.0"]
    assert used.durable == len(found) * ROWS < 500 * ROWS
    assert made.published == sum(pushed) * ROWS
    assert sum(made.dropped.values()) == (500 - sum(pushed)) * ROWS


def test_drops_are_booked_with_their_reason(bus: DataBus) -> None:
    """A row that is not published is seen and dropped; with a mark it is booked once, whoever repeats it."""
    with bus.producer() as producer:
        producer.drop("layer.0", 7, DropReason.TOO_LARGE)
        for _ in range(2):
            producer.drop("layer.0", 5, DropReason.ERROR, source=9)
        assert producer.settled("layer.0") == 9
    made = accounts_of(bus).produced["layer.0"]
    assert (made.seen, made.published) == (12, 0)
    assert made.dropped == {"too_large": 7, "error": 5}


def test_a_producer_continues_behind_what_is_settled(bus: DataBus) -> None:
    """The mark outlives its producer; the generation says how many there were."""
    for mark in (3, 8):
        with bus.producer() as producer:
            assert producer.settled("layer.0") == (0 if mark == 3 else 3)
            producer.push(packet_of("layer.0", mark), source=mark)
            assert producer.settled("layer.0") == mark
        assert accounts_of(bus).state is ProducerState.GONE
    found = accounts_of(bus)
    assert (found.generation, found.packets) == (2, {"layer.0": 2})


def test_room_is_what_can_be_pushed(bus: DataBus) -> None:
    """As many packets as there is room for are published without a drop."""
    with bus.producer() as producer, bus.consumer("one"):
        room = producer.room("layer.0")
        assert room > 0
        assert all(producer.push(packet_of("layer.0", step)) for step in range(room))
    assert not accounts_of(bus).produced["layer.0"].dropped


# -- rows that lie in memory, as capture publishes them


def block_of(step: int) -> tuple[Any, Any, Any]:
    """Return header, records and the whole grid of rows, of which a packet takes some."""
    grid = np.random.default_rng(step).normal(size=(4 * ROWS, WIDTH)).astype(np.float32)
    header = np.zeros(1, HEADER_DTYPE)
    header["width"], header["step"], header["captured_ns"] = WIDTH, step, 1
    records = np.zeros(ROWS, ROW_DTYPE)
    records["sample"], records["token"] = step, np.arange(ROWS)
    return header, records, grid


@pytest.mark.parametrize("quantization", [Quantization.NONE, Quantization.BF16])
@pytest.mark.parametrize("indexed", [True, False], ids=["some", "first"])
def test_rows_are_gathered_out_of_memory(bus: DataBus, indexed: bool, quantization: Quantization) -> None:
    """The chosen rows of a tensor arrive with their records, whatever becomes of the tensor afterwards."""
    index = np.array([9, 0, 4]) if indexed else None
    with bus.producer() as producer, bus.consumer("one") as consumer:
        channels = {point: producer.channel(point) for point in POINTS}
        for step, (point, channel) in enumerate(channels.items()):
            header, records, grid = block_of(step)
            header["account"] = channel.account
            before = header.copy()
            address, stride = grid.__array_interface__["data"][0], WIDTH * 4
            assert channel.put(
                header, records, address, stride, index, ROWS, int(Dtype.FLOAT32), int(quantization)
            )
            assert header == before, "put changed its argument"
            grid[:] = np.nan
            (packet,) = consumer.pull(1, 1.0)
            expected = block_of(step)[2][[9, 0, 4] if indexed else slice(ROWS)]
            assert (packet.point, packet.rows.tobytes()) == (point, records.tobytes())
            assert int(packet.header["quantization"]) == quantization
            error = np.abs(packet.to_float32() - expected).max()
            assert error == 0 if quantization is Quantization.NONE else error < 0.02
    made = accounts_of(bus).produced
    assert [(made[point].seen, made[point].published) for point in POINTS] == [(ROWS, ROWS)] * len(POINTS)


def test_rows_that_are_not_published_have_a_fate(bus: DataBus) -> None:
    """Sampled out or dropped with a reason, in one step with what was seen."""
    with bus.producer() as producer:
        channel = producer.channel("layer.0")
        channel.book(seen=9, sampled_out=9)
        channel.book(seen=4, dropped=4, reason=int(DropReason.RING_FULL))
    made = accounts_of(bus).produced["layer.0"]
    assert (made.seen, made.published, made.sampled_out) == (13, 0, 9)
    assert made.dropped == {"ring_full": 4}


def test_free_is_what_is_published_whatever_the_hook_points(bus: DataBus) -> None:
    """As many packets as are free are published without a drop."""
    with bus.producer() as producer, bus.consumer("one"):
        channels = [producer.channel(point) for point in POINTS]
        free = producer.free()
        assert free > 0
        for step in range(free):
            header, records, grid = block_of(step)
            channel = channels[step % len(channels)]
            header["account"] = channel.account
            assert channel.put(
                header,
                records,
                grid.__array_interface__["data"][0],
                WIDTH * 4,
                None,
                ROWS,
                int(Dtype.FLOAT32),
                0,
            )
    assert not any(made.dropped for made in accounts_of(bus).produced.values())


def test_a_block_larger_than_the_bus_carries_is_refused(bus: DataBus) -> None:
    """It is an error of its caller, and nothing of it is counted."""
    with bus.producer() as producer:
        channel = producer.channel("layer.0")
        rows = producer.packet_bytes // (WIDTH * 4) + 1
        header, records, grid = np.zeros(1, HEADER_DTYPE), np.zeros(rows, ROW_DTYPE), np.zeros((rows, WIDTH))
        header["width"], header["account"] = WIDTH, channel.account
        with pytest.raises(ValueError, match=r"bytes"):
            channel.put(header, records, grid.__array_interface__["data"][0], WIDTH * 4, None, rows, 0, 0)
    assert sum(made.seen for made in accounts_of(bus).produced.values()) == 0


# -- the end, and what others see


@pytest.mark.parametrize("end", StreamEnd)
def test_the_end_comes_behind_the_last_packet(bus: DataBus, end: StreamEnd) -> None:
    """No consumer hears of the end before it has taken everything; then it says how it finished."""
    producer = bus.producer()
    with bus.consumer("one") as consumer:
        producer.push(packet_of("layer.0", 0))
        assert consumer.ended() is None
        producer.end(end)
        assert len(consumer.pull(4, 1.0)) == 1
        assert consumer.ended() is None
        assert consumer.pull(4, 0.0) == []
        assert consumer.ended() is end
        consumer.finish(end)
    books = expect_balance(bus, "one")
    assert books.state.end is end
    assert books.consumers["one"].state is end.reader_state
    assert books.consumers["two"].state is ReaderState.ABSENT


def test_what_is_not_read_to_the_end_is_lapped(bus: DataBus) -> None:
    """A consumer may finish early: what it leaves counts as lapped."""
    with bus.consumer("one") as consumer:
        producer = bus.producer()
        for step in range(5):
            producer.push(packet_of("layer.0", step))
        consumer.pull(2, 1.0)
        consumer.take()
        consumer.take()
        producer.end(StreamEnd.COMPLETE)
        consumer.finish(StreamEnd.COMPLETE)
    used = expect_balance(bus, "one").consumers["one"].consumed["layer.0"]
    assert (used.durable, used.lapped) == (2 * ROWS, 3 * ROWS)


def test_lag_is_the_share_that_is_unread(bus: DataBus) -> None:
    """0 before anything, at most 1 whatever is published, 0 again once everything is taken."""
    with bus.producer() as producer, bus.consumer("one") as consumer:
        assert consumer.lag() == 0
        seen = []
        for step in range(40):
            producer.push(packet_of("layer.0", step))
            seen.append(consumer.lag())
        assert seen == sorted(seen)
        assert 0 < seen[0] < seen[-1] <= 1
        all_of(consumer)
        assert consumer.lag() == 0
        consumer.acknowledge()
        assert accounts_of(bus).consumers["one"].lag == 0


def test_gauges_outlive_their_consumer(bus: DataBus) -> None:
    """A number shown of a hook point stands where others look, also after its consumer has gone."""
    with bus.producer() as producer:
        for point in POINTS:
            producer.push(packet_of(point, 0))
        with bus.consumer("one") as consumer:
            consumer.gauge("layer.1", 3, 0.25)
    found = accounts_of(bus).consumers["one"]
    assert found.state is ReaderState.GONE
    assert [found.gauges[point][3] for point in POINTS] == [0.0, 0.25, 0.0]


def test_a_word_of_the_mailbox_outlives_its_writer(bus: DataBus) -> None:
    """Single numbers are told to whoever looks, 0 before the first; the last one written stands."""
    first, second = bus.control(), bus.control()
    assert (second.get(3), second.get_float(4)) == (0, 0.0)
    for number in (7, 2**40):
        first.set(3, number)
        first.set_float(4, number / 8)
        assert (second.get(3), second.get_float(4)) == (number, number / 8)
    first.close()
    second.close()
    third = bus.control()
    assert (third.get(3), third.get_float(4)) == (2**40, 2.0**37)
    third.close()


def test_an_unknown_consumer_is_refused(bus: DataBus) -> None:
    """A stream has the consumers that it was made for."""
    with pytest.raises(ValueError, match="nobody"):
        bus.consumer("nobody")


def test_a_place_has_one_owner(bus: DataBus) -> None:
    """While a producer, or a consumer of a name, is there, nobody else takes its place."""
    for attach in (bus.producer, lambda: bus.consumer("one")):
        with attach(), pytest.raises(StreamError):
            attach()
        attach().close()


@pytest.mark.parametrize("kind", SHARED)
def test_a_missing_stream_is_named(kind: str, folder: Path) -> None:
    """Attaching where nothing is raises one kind of error, which names the place."""
    find = KINDS[kind].find
    assert find is not None
    missing = find(folder / "nowhere")
    for attach in (missing.producer, lambda: missing.consumer("one"), missing.control):
        with pytest.raises(StreamError, match="nowhere"):
            attach()


# -- kills: a process for each end, killed with -9 at moments nobody chose

PACKETS = 3000


def produce(bus: DataBus, patient: bool) -> None:
    """Push PACKETS packets with growing marks, continuing behind what a killed predecessor settled."""
    producer, control = bus.producer(), bus.control()
    for step in range(PACKETS):
        point = POINTS[step % len(POINTS)]
        if step + 1 > producer.settled(point):
            while patient and control.lag("one") > 0.5:
                time.sleep(0.0005)
            producer.push(packet_of(point, step), source=step + 1)
    producer.end(StreamEnd.COMPLETE)


def store(bus: DataBus, file: Path) -> None:
    """Keep every packet in a file, as the archiver does: taken, stored, acknowledged now and then."""
    stored = lines_of(file)
    with bus.consumer("one") as consumer, file.open("ab", buffering=0) as out:
        consumer.resume({point: sum(point == one for one, _ in stored) * ROWS for point in POINTS})
        number = 0
        while (end := consumer.ended()) is None:
            packets = consumer.pull(16, 0.1)
            for packet in packets:
                consumer.take()
                out.write(json.dumps([packet.point, int(packet.header["step"])]).encode() + b"\n")
                number += 1
                if number % 20 == 0:
                    consumer.acknowledge()
            if not packets:  # else a bus that waits for room and this one would wait for each other
                consumer.acknowledge()
        consumer.finish(end)


def relay(bus: DataBus, file: Path) -> None:
    """Hand every packet on, as the hook does: stored first, then taken and acknowledged."""
    with bus.consumer("one") as consumer, file.open("ab", buffering=0) as out:
        while (end := consumer.ended()) is None:
            for packet in consumer.pull(16, 0.1):
                out.write(json.dumps([packet.point, int(packet.header["step"])]).encode() + b"\n")
                consumer.take()
                consumer.acknowledge()
        consumer.finish(end)


def lines_of(file: Path) -> list[tuple[str, int]]:
    """Return what the file holds."""
    return [tuple(json.loads(line)) for line in file.read_bytes().splitlines()] if file.exists() else []


class Cast:
    """Processes on one stream."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.bus = KINDS[kind].make(folder, ["one"])
        self.file = folder / "stored"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, role: str, *arguments: str) -> subprocess.Popen[bytes]:
        code = (
            "import sys; from pathlib import Path\n"
            "from tests.bus import test_stream_conformance as suite\n"
            f"bus = suite.KINDS[{self.kind!r}].find(Path({str(self.folder)!r}))\n"
            f"suite.{role}(bus, {', '.join(arguments)})"
        )
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=log)
        self.processes.append(process)
        return process

    def text(self) -> str:
        return (self.folder / "log").read_text()

    def finished(self, process: subprocess.Popen[bytes]) -> None:
        assert process.wait(SECONDS) == 0, self.text()


@pytest.fixture(params=[pytest.param(name, marks=LONG.get(name, ())) for name in SHARED])
def cast(request: pytest.FixtureRequest, folder: Path) -> Iterator[Cast]:
    """The processes of a test."""
    made = Cast(request.param, folder)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def _killed_again_and_again(cast: Cast, role: str, argument: str) -> None:
    """Start a role and kill it once 40 more packets have arrived, four times; then let it end."""
    for _ in range(4):
        enough = len(lines_of(cast.file)) + 40
        process = cast.start(role, argument)
        deadline = time.monotonic() + SECONDS
        while len(lines_of(cast.file)) < enough and process.poll() is None:
            assert time.monotonic() < deadline, cast.text()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait(SECONDS) == -signal.SIGKILL, "it ended before it was killed: " + cast.text()
    cast.finished(cast.start(role, argument))


def test_a_killed_consumer_that_stores_loses_and_repeats_nothing_durable(cast: Cast) -> None:
    """After every kill the storage holds each packet at most once, in order, and the books say how many."""
    producer = cast.start("produce", "True")
    _killed_again_and_again(cast, "store", repr_path(cast.file))
    cast.finished(producer)
    stored = defaultdict(list)
    for point, step in lines_of(cast.file):
        stored[point].append(step)
    books = expect_balance(cast.bus, "one")
    for point, steps in stored.items():
        assert steps == sorted(set(steps))
        assert books.consumers["one"].consumed[point].durable == len(steps) * ROWS
        assert books.produced[point].published == PACKETS // len(POINTS) * ROWS


def test_a_killed_consumer_that_hands_on_misses_nothing(cast: Cast) -> None:
    """Taken only once it was handed on, no packet is missing, whatever kills come between."""
    producer = cast.start("produce", "True")
    _killed_again_and_again(cast, "relay", repr_path(cast.file))
    cast.finished(producer)
    found = lines_of(cast.file)
    used = expect_balance(cast.bus, "one").consumers["one"].consumed
    assert sum(one.lapped for one in used.values()) == 0, "the consumer did not keep up"
    assert {step for _, step in found} == set(range(PACKETS))
    assert len(found) <= PACKETS + 4, "one packet at most is handed on twice for each kill"


def test_a_killed_producer_neither_repeats_nor_skips(cast: Cast) -> None:
    """Continuing behind its marks, the producer publishes every packet once, whatever kills it."""
    consumer = cast.start("relay", repr_path(cast.file))
    _killed_again_and_again(cast, "produce", "True")
    cast.finished(consumer)
    found = defaultdict(list)
    for point, step in lines_of(cast.file):
        found[point].append(step)
    books = expect_balance(cast.bus, "one")
    assert books.generation == 5
    for number, point in enumerate(POINTS):
        lapped = books.consumers["one"].consumed[point].lapped
        dropped = sum(books.produced[point].dropped.values())
        assert (lapped, dropped) == (0, 0), "the consumer did not keep up"
        assert found[point] == list(range(number, PACKETS, len(POINTS)))


def repr_path(path: Path) -> str:
    """Return an expression for a path."""
    return f"Path({str(path)!r})"
