"""What Redis adds to the promises of every bus: its own kills, dead letters, trimming, lost writes."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from tests.bus.servers import REDIS_SOCKET, redis_command, redis_server, started
from tests.bus.test_stream_conformance import (
    LEASE,
    POINTS,
    ROOT,
    ROWS,
    _plan,
    all_of,
    expect_balance,
    lines_of,
    packet_of,
    steps_of,
)

from asysi.bus.redis_client import connect
from asysi.bus.redis_stream import DELIVERIES, RedisStreamBus
from asysi.bus.states import StreamEnd
from asysi.bus.stream import StreamError

WORKER_KILLS = int(os.environ.get("ASYSI_REDIS_WORKER_KILLS", "10"))
REDIS_KILLS = int(os.environ.get("ASYSI_REDIS_KILLS", "3"))
PACKETS = int(os.environ.get("ASYSI_REDIS_PACKETS", "2000"))


@pytest.fixture
def bus(tmp_path: Path) -> RedisStreamBus:
    """A stream with one consumer, in the Redis of all tests."""
    made = RedisStreamBus(redis_server(), str(tmp_path), lease=LEASE)
    made.create(_plan(["one"]))
    return made


def _raw(bus: RedisStreamBus) -> "tuple[redis.Redis, str]":
    store = bus._store()
    return redis.Redis.from_url(redis_server()), store.prefix


def test_an_entry_that_consumers_die_of_is_a_dead_letter(bus: RedisStreamBus) -> None:
    """After several consumers left with it in hand it is set aside and counted; its neighbours are not."""
    with bus.producer() as producer:
        for step in range(4):
            producer.push(packet_of("layer.0", step))
        with bus.consumer("one") as consumer:
            consumer.pull(4, 1.0)
        for _ in range(DELIVERIES):
            with bus.consumer("one") as consumer:
                assert steps_of(consumer.pull(4, 1.0)) == {"layer.0": [0]}, "it comes alone"
        with bus.consumer("one") as consumer:
            assert steps_of(all_of(consumer)) == {"layer.0": [1, 2, 3]}
            producer.end(StreamEnd.COMPLETE)
            consumer.finish(StreamEnd.COMPLETE)
    used = expect_balance(bus, "one").consumers["one"].consumed["layer.0"]
    assert (used.durable, used.lapped) == (3 * ROWS, ROWS)
    client, prefix = _raw(bus)
    assert client.xlen(f"{prefix}dead:one") == 1


def test_only_what_every_role_has_acknowledged_is_trimmed(tmp_path: Path) -> None:
    """The slowest role's entries stay in the stream, however far the other is."""
    bus = RedisStreamBus(redis_server(), str(tmp_path), lease=LEASE)
    bus.create(_plan(["one", "two"]))
    client, prefix = _raw(bus)
    with bus.producer() as producer, bus.consumer("one") as one, bus.consumer("two") as two:
        for step in range(10):
            producer.push(packet_of("layer.0", step))
        assert len(all_of(one)) == 10
        one.acknowledge()
        assert client.xlen(f"{prefix}s:0") == 10
        two.pull(4, 1.0)
        two.pull(1, 0.0)
        two.acknowledge()
        assert client.xlen(f"{prefix}s:0") == 6


def test_a_repeated_operation_is_done_once(bus: RedisStreamBus) -> None:
    """A push whose answer was lost is sent again with its number: one entry, one count."""
    with bus.producer() as producer:
        producer.push(packet_of("layer.0", 0))
        producer._seat._operation -= 1
        producer._head -= 1
        assert producer.push(packet_of("layer.0", 0))
    assert bus.control().produced()[0]["packets"] == 1


def test_lost_writes_are_no_silence(bus: RedisStreamBus) -> None:
    """A Redis that came back without what it had accepted ends the producer, which says what to set."""
    with bus.producer() as producer:
        producer.push(packet_of("layer.0", 0))
        client, prefix = _raw(bus)
        client.hincrby(f"{prefix}state", "op", -1)
        with pytest.raises(StreamError, match="appendfsync"):
            producer.push(packet_of("layer.0", 1))


def test_a_lost_lease_changes_nothing(bus: RedisStreamBus) -> None:
    """Once another consumer has the place, the old one can neither read nor acknowledge."""
    with bus.producer() as producer:
        producer.push(packet_of("layer.0", 0))
        old = bus.consumer("one")
        assert len(old.pull(1, 1.0)) == 1
        old._seat._lease._left.set()  # it renews no more, as a process that was stopped
        with bus.consumer("one") as new:
            assert steps_of(all_of(new)) == {"layer.0": [0]}
            old.take()
            with pytest.raises(StreamError, match="FENCED"):
                old.acknowledge()
            new.acknowledge()
    assert bus.control().consumed("one")[0]["durable"] == ROWS


@pytest.mark.parametrize("url", ["nonsense://h", "redis+sentinel://h:1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """The scheme, or the master's name, is what the message is about."""
    with pytest.raises(StreamError, match="no URL of Redis"):
        connect(url)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder on a disk, for a Redis of the test's own."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_nothing_is_lost_when_workers_and_redis_are_killed(folder: Path) -> None:
    """With AOF always: every packet is stored, what came twice is counted, and the ledger balances."""
    server = started(redis_command(folder), folder / REDIS_SOCKET)
    url = f"unix://{folder / REDIS_SOCKET}"
    bus = RedisStreamBus(url, "kills", lease=1.0)
    bus.create(_plan(["one"]))
    file = folder / "stored"
    code = (
        "from pathlib import Path; from tests.bus import test_stream_conformance as suite\n"
        "from asysi.bus.redis_stream import RedisStreamBus\n"
        f"bus = RedisStreamBus({url!r}, 'kills', lease=1.0); suite.PACKETS = {PACKETS}\n"
    )

    def start(call: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-c", code + call], cwd=ROOT)

    store = f"suite.relay(bus, Path({str(file)!r}))"
    producer, consumer = start("suite.produce(bus, True)"), start(store)
    events = [("worker", n / (WORKER_KILLS + 1)) for n in range(1, WORKER_KILLS + 1)]
    events += [("redis", n / (REDIS_KILLS + 1)) for n in range(1, REDIS_KILLS + 1)]
    events.sort(key=lambda event: event[1])
    try:
        deadline = time.monotonic() + 120 + PACKETS / 20
        for what, share in events:
            while len(lines_of(file)) < share * PACKETS:
                assert time.monotonic() < deadline, "it does not go on"
                assert producer.poll() in {None, 0}
                time.sleep(0.01)
            if what == "worker":
                consumer.kill()
                consumer.wait()
                consumer = start(store)
            else:
                server.kill()
                server.wait()
                (folder / REDIS_SOCKET).unlink()
                server = started(redis_command(folder), folder / REDIS_SOCKET)
        assert producer.wait(deadline - time.monotonic()) == 0
        assert consumer.wait(deadline - time.monotonic()) == 0
        found = lines_of(file)
        twice = len(found) - len(set(found))
        assert {step for _, step in found} == set(range(PACKETS)), "a packet is missing"
        assert twice <= WORKER_KILLS, "one packet at most is stored twice for each kill of a worker"
        used = expect_balance(bus, "one").consumers["one"].consumed
        assert sum(one.durable for one in used.values()) == PACKETS * ROWS
        assert set(used) == set(POINTS)
        sys.stderr.write(f"{PACKETS} packets stored, {twice} of them twice\n")
    finally:
        for process in (producer, consumer, server):
            process.kill()
            process.wait()
