"""Killed at every testpoint, stopped, forked, in other namespaces: what is left behind is exact.

`make ring-faults` runs this with many more kills; ASYSI_RING_KILLS says how many.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asysi_ring import Control, Writer

KILLS = int(os.environ.get("ASYSI_RING_KILLS", "1000"))
SEED = os.environ.get("ASYSI_RING_SEED", "1")
# 1,000 kills take 5 s on a quiet machine.
PATIENCE = 300 + KILLS / 20
pytestmark = pytest.mark.timeout(PATIENCE + 60)


@pytest.fixture(scope="module")
def programs(build) -> dict[str, Path]:
    """The programs that die, and those that live on."""
    built = build(("tests/faults_kill.cpp", "-DASYSI_TESTPOINTS"), ("tests/faults_live.cpp", "-O2"))
    return dict(zip(("kill", "live"), built, strict=True))


def output(program: Path, *arguments: str) -> str:
    """Return what a program prints; it must end well."""
    ran = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_killed_at_every_testpoint(programs):
    """Order, content, every number of the books and every chunk are exact after each kill.

    Producer and readers are killed in turn. The program holds the ring against its own notes of what each
    call should have done; see its head.
    """
    labels = output(programs["kill"], "labels").split()
    tally = json.loads(output(programs["kill"], str(KILLS), SEED))
    assert tally["kills"] >= KILLS
    assert list(tally["labels"]) == labels
    assert [label for label, kills in tally["labels"].items() if kills == 0] == []
    # Calls that were cut short ended in each way in which they may.
    assert min(tally["cut_short"].values()) > 0


def test_a_stopped_reader_does_not_hold_up_its_producer(programs):
    """Every push goes through while the reader is stopped; then the reader goes on, and its books balance."""
    pushes = 20_000
    result = json.loads(output(programs["live"], "stopped", str(pushes)))
    for phase in ("reader at work", "reader stopped", "reader back"):
        assert (result[phase]["pushes"], result[phase]["refused"]) == (pushes, 0)


def test_a_child_forked_at_any_moment_is_refused_and_never_stuck(programs):
    """Whatever its parent's threads are at, each call is refused, and the parent goes on."""
    result = json.loads(output(programs["live"], "forked", "300"))
    assert result["forks"] == 300
    assert result["published"] > 0
    assert result["taken"] > 0


class Contained:
    """A participant in a PID namespace of its own, where it has number 1 and sees nobody else."""

    def __init__(self, unshare: str, program: Path, *arguments: str) -> None:
        own = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        command = [unshare, *own, "--pid", "--fork", "--mount-proc", "--kill-child", program, *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    @property
    def inner(self) -> int:
        """The participant's PID as seen from here."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        deadline = time.monotonic() + 30
        while not (text := children.read_text().split()):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return int(text[0])

    def line(self) -> str:
        """Wait for its next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            assert self.process.stderr is not None
            raise AssertionError(self.process.stderr.read())
        return line

    def publish(self) -> int:
        """Have a producer publish a packet; return its number."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.line())

    def kill(self) -> None:
        """Kill -9 the participant itself, from outside of its namespace."""
        os.kill(self.inner, signal.SIGKILL)
        self.process.wait(30)

    def leave(self) -> int:
        """Let a producer come to its end; return the exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(30)


@pytest.fixture
def contain(build, programs) -> Iterator[Callable[..., Contained]]:
    """Start participants in namespaces of their own; whoever is left at the end is killed."""
    started: list[Contained] = []

    def start(*arguments: str) -> Contained:
        started.append(Contained(build.tool("unshare"), programs["live"], *arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait(30)
        for stream in (one.process.stdin, one.process.stdout, one.process.stderr):
            if stream is not None and not stream.closed:
                stream.close()


def test_namespaces_do_not_matter(make_ring, contain):
    """Across PID namespaces, producer and reader see who lives, wake each other and take over.

    The reader sleeps without limit, so only a wake-up through the shared doorbell brings it a packet.
    """
    ring = make_ring()
    producer = contain("produce", ring.folder)
    assert producer.line() == "generation 1"
    reader = contain("consume", ring.folder, "r")
    assert reader.line() == "attached"
    assert Path(f"/proc/{producer.inner}/status").read_text().count("NSpid:\t") == 1
    assert producer.inner != reader.inner
    with Control(ring.folder) as control:
        assert (control.writer_state(), control.reader_state("r")) == ("attached", "attached")
        for _ in range(20):
            number = producer.publish()
            assert int(reader.line()) == number

        producer.kill()
        assert (control.writer_state(), control.reader_state("r")) == ("gone", "attached")
        successor = contain("produce", ring.folder)
        assert successor.line() == "generation 2"
        assert successor.publish() == 21
        assert reader.line() == "21"

        reader.kill()
        assert (control.writer_state(), control.reader_state("r")) == ("attached", "gone")
        assert successor.publish() == 22
        again = contain("consume", ring.folder, "r")
        assert again.line() == "attached"
        assert again.line() == "22"
        assert successor.leave() == 0
        assert again.process.wait(30) == 0
        assert control.writer_state() == "complete"
    ring.balance()


def test_a_living_participant_keeps_its_place_across_namespaces(make_ring, contain):
    """A second producer or reader from another namespace is refused while the first one lives."""
    ring = make_ring()
    producer = contain("produce", ring.folder)
    assert producer.line() == "generation 1"
    second = contain("produce", ring.folder)
    assert second.process.wait(30) == 1
    assert second.process.stderr is not None
    assert "it is alive" in second.process.stderr.read()
    assert producer.leave() == 0
    Writer(ring.folder).close()
