"""The hook worker between two real rings: the host's packets stand on the bus once, in order, exactly.

Run as a script, this file is the host: `test_ring.py host <shm> <packets> [die]`.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from asysi.bus.mailbox import CaptureWord
from asysi.bus.packet import (
    HEADER_DTYPE,
    MAGIC,
    ROW_DTYPE,
    VERSION,
    ActivationPacket,
    Dtype,
    Quantization,
    parse_packet,
)
from asysi.bus.ring import CppShardedSPMCBus
from asysi.contract.runtime import BUS_RING, CAPTURE_RING
from asysi.hook.relay import Relay
from asysi.hook.statistics import Statistics
from asysi_ring import Control, Reader, Writer, create

POINTS = ["encoder.layer.0.output", "encoder.layer.1.output", "encoder.layer.2.output"]
WIDTH = 48
CAPTURE_CHUNK, BUS_CHUNK = 64 * 1024, 8 * 1024
SECONDS = 60.0


# -- the host


def rows_of(number):
    """Return the point and the rows, [n, WIDTH] float32 with a few special values, of the packet `number`."""
    rng = np.random.default_rng(number)
    values = rng.normal(0, 3, (int(rng.integers(1, 250)), WIDTH)).astype(np.float32)
    values[0, :4] = [0.0, -0.0, np.inf, 1e-40]
    return POINTS[number % len(POINTS)], values


def header_of(account, step, width=WIDTH, dtype=Dtype.FLOAT32):
    """Return a header as capture fills it."""
    header = np.zeros(1, HEADER_DTYPE)
    header["magic"], header["version"], header["header_bytes"] = MAGIC, VERSION, HEADER_DTYPE.itemsize
    header["account"], header["step"], header["width"], header["dtype"] = account, step, width, dtype
    header["captured_ns"], header["parts"] = time.monotonic_ns(), 1
    return header


def records_of(number, count):
    """Return rows' records: each is told apart from every other."""
    records = np.zeros(count, ROW_DTYPE)
    records["sample"], records["sequence"] = number, np.arange(count)
    records["token"], records["flags"] = number % 1000, np.arange(count) % 2
    return records


def publish(writer, number):
    """Publish the packet `number`."""
    point, values = rows_of(number)
    account = writer.account(point)
    header, records = header_of(account, number), records_of(number, len(values))
    address = values.__array_interface__["data"][0]
    return writer.publish_block(
        0, header, records, address, values.strides[0], None, len(values), Dtype.FLOAT32, 0
    )


def host(shm, packets, die):
    """Publish `packets` packets, waiting for room; close cleanly, or die with rows seen but not booked on."""
    writer = Writer(str(shm / CAPTURE_RING))
    for number in range(packets):
        while not writer.free():
            time.sleep(0.0005)
        assert publish(writer, number)
    if die:
        writer.book(writer.account(POINTS[0]), seen=17)
        os.kill(os.getpid(), signal.SIGKILL)
    writer.close("complete")


if __name__ == "__main__":
    host(Path(sys.argv[2]), int(sys.argv[3]), "die" in sys.argv)
    sys.exit()


# -- the stage


@pytest.fixture
def shm(tmp_path):
    """Folder with both rings; the bus holds a whole test's packets, so that its reader misses none."""
    (tmp_path / "capture").mkdir()
    create(
        str(tmp_path / CAPTURE_RING), shards=1, chunks=100, chunk_bytes=CAPTURE_CHUNK, readers=["hook"],
        accounts=16, policy="drop_new",
    )  # fmt: skip
    create(
        str(tmp_path / BUS_RING), shards=2, chunks=4000, chunk_bytes=BUS_CHUNK, readers=["sae"], accounts=16,
        policy="overwrite",
    )  # fmt: skip
    return tmp_path


class Stage:
    """Processes of a test, all ended with it."""

    def __init__(self, shm, quantization):
        self.shm = shm
        self.processes = []
        config = shm / "experiment.json"
        config.write_text(json.dumps({
            "apiVersion": "asysi.dev/v1alpha1", "kind": "ScanExperiment", "metadata": {"name": "hook"},
            "spec": {
                "model": {"uri": "file:///m"}, "data": {"uri": "jsonl:///d"}, "workload": {"scan": {}},
                "capture": {"hookPoints": ["**"], "quantization": quantization,
                            "sampling": {"rate": 0.5, "minRate": 0.1}},
            },
        }))  # fmt: skip
        self.hooks = set()
        self.environment = {
            "ASYSI_CONFIG": str(config), "ASYSI_SHM": str(shm), "ASYSI_OUTPUT": str(shm),
            "ASYSI_WORKSPACE": str(shm), "PYTHONPATH": ":".join(filter(None, sys.path)),
        }  # fmt: skip

    def start(self, *arguments):
        """Start a Python process."""
        log = (self.shm / "log").open("a")
        process = subprocess.Popen([sys.executable, *map(str, arguments)], env=self.environment, stderr=log)
        log.close()
        self.processes.append(process)
        return process

    def hook(self):
        """Start the hook worker."""
        process = self.start("-m", "asysi.hook")
        self.hooks.add(process)
        return process

    def host(self, packets, *how):
        """Start the host."""
        return self.start(__file__, "host", self.shm, packets, *how)

    def code(self, process):
        """Wait for a process, asking a hook to go once its stream has ended; return its exit code."""
        deadline = time.monotonic() + SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            with Control(str(self.shm / CAPTURE_RING)) as control:
                ended = control.reader_state("hook") in {"finalised", "checkpointed"}
            if ended and process in self.hooks:
                process.terminate()
                break
            time.sleep(0.02)
        return process.wait(SECONDS)

    def log(self):
        """Return what the processes said."""
        return (self.shm / "log").read_text()

    def until_said(self, words, times=1):
        """Wait until processes have said `words` so many times."""
        deadline = time.monotonic() + SECONDS
        while self.log().count(words) < times:
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)


@pytest.fixture
def stage(shm, request):
    """The stage; its parameter is the quantization."""
    stage = Stage(shm, getattr(request, "param", "none"))
    yield stage
    for process in stage.processes:
        process.kill()
        process.wait(SECONDS)


class Collector:
    """A reader of the bus that keeps all that it is given."""

    def __init__(self, shm):
        self._control = Control(str(shm / BUS_RING))
        self._reader = Reader(str(shm / BUS_RING), "sae")
        self._packets = []

    def pull(self, timeout):
        """Take what is there; copies only, so that this reader keeps up with the hook worker."""
        for view in self._reader.pull(64, timeout):
            self._packets.append(view.copy())
            self._reader.consumed(view)
            view.release()

    def pull_until(self, done):
        """Take packets until `done()`."""
        deadline = time.monotonic() + SECONDS
        while not done():
            assert time.monotonic() < deadline
            self.pull(0.01)

    def pull_for(self, seconds):
        """Take packets for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.pull(0.001)

    def finish(self, end):
        """Take packets until the bus ended as said; return the rows' records and payload by point."""
        self.pull_until(lambda: self._reader.ended() == end)
        self._reader.mark_durable()
        self._reader.close()
        assert sum(books["lapped"] for books in self._control.consumed("sae")) == 0, (
            "this reader did not keep up"
        )
        found = defaultdict(list)
        for content in self._packets:
            packet = parse_packet(memoryview(content), self._control.accounts())
            found[packet.point].append((packet.rows, packet.payload))
        self._control.close()
        return {
            point: tuple(np.concatenate(column) for column in zip(*blocks, strict=True))
            for point, blocks in found.items()
        }


def bfloat16_bits(values):
    """Return the bits of bfloat16 nearest to float32 `values`, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def expect_bus(found, packets, convert):
    """Assert that each point holds exactly the rows of the first `packets` packets, in order."""
    wanted = defaultdict(list)
    for number in range(packets):
        point, values = rows_of(number)
        wanted[point].append((records_of(number, len(values)), convert(values)))
    assert set(found) == set(wanted)
    for point, blocks in wanted.items():
        records, payload = (np.concatenate(column) for column in zip(*blocks, strict=True))
        assert found[point][0].tobytes() == records.tobytes()
        assert found[point][1].tobytes() == payload.tobytes()


def expect_balance(shm):
    """Assert every equation of the ledger, for each hook point."""
    with Control(str(shm / CAPTURE_RING)) as capture, Control(str(shm / BUS_RING)) as bus:
        on_bus = dict(zip(bus.accounts(), range(99), strict=False))
        for account, point in enumerate(capture.accounts()):
            made, taken = capture.produced()[account], capture.consumed("hook")[account]
            passed = bus.produced()[on_bus[point]]
            got = bus.consumed("sae")[on_bus[point]]
            for books in (made, passed):
                assert books["seen"] == books["published"] + books["sampled_out"] + sum(books["dropped"])
            assert made["published"] == taken["durable"] + taken["lapped"] + taken["rolled_back"]
            assert taken["durable"] == passed["published"] + sum(passed["dropped"])
            assert passed["published"] == got["durable"] + got["lapped"] + got["rolled_back"]


# -- the claims


@pytest.mark.parametrize(
    ("stage", "convert"),
    [("none", lambda values: values), ("bf16", bfloat16_bits)],
    indirect=["stage"],
    ids=["none", "bf16"],
)
def test_what_the_host_captured_stands_on_the_bus_bit_for_bit(shm, stage, convert):
    """From the first row to the end in band every row arrives once, in order; the books balance."""
    hook, host = stage.hook(), stage.host(400)
    found = Collector(shm).finish("complete")
    assert (stage.code(host), stage.code(hook)) == (0, 0), stage.log()
    expect_bus(found, 400, convert)
    expect_balance(shm)
    with Control(str(shm / CAPTURE_RING)) as capture:
        assert capture.reader_state("hook") == "finalised"
        assert 0.1 <= capture.get_float(CaptureWord.RATE) <= 0.5
    lines = [json.loads(line) for line in (shm / "timeline.jsonl").read_text().splitlines()]
    assert lines[-1]["lag"] == {"hook": 0.0, "sae": lines[-1]["lag"]["sae"]}
    saved = json.loads((shm / "statistics.json").read_text())["points"]
    rows = {point: len(columns[0]) for point, columns in found.items()}
    assert {point: -(-count // 16) for point, count in rows.items()} == {
        point: moments["rows"] + moments["nonFinite"] for point, moments in saved.items()
    }


@pytest.mark.parametrize("stage", ["bf16"], indirect=True)
def test_kill_9_at_any_time_neither_repeats_nor_skips_a_row(shm, stage):
    """Twelve kills at random moments of the work leave the bus as without them, and the books exact."""
    packets, kills, rng = 9000, 12, random.Random(5)
    host = stage.host(packets)
    with Control(str(shm / CAPTURE_RING)) as capture, Control(str(shm / BUS_RING)) as bus:
        collector, hook = Collector(shm), stage.hook()
        for _ in range(kills):
            before = capture.cursors("hook")[0]
            collector.pull_until(lambda before=before: capture.cursors("hook")[0] > before)
            collector.pull_for(rng.uniform(0, 0.06))
            hook.kill()
            assert stage.code(hook) == -signal.SIGKILL, "the stream was over before the last kill"
            hook = stage.hook()
        found = collector.finish("complete")
        assert (stage.code(host), stage.code(hook)) == (0, 0), stage.log()
        assert bus.geometry()["generation"] == kills + 1
    expect_bus(found, packets, bfloat16_bits)
    expect_balance(shm)
    last = json.loads((shm / "timeline.jsonl").read_text().splitlines()[-1])
    assert last["restarts"]["hook"] == kills


def test_a_host_that_dies_ends_the_attempt_after_everything_is_drained(shm, stage):
    """Without a clean close the bus holds all that was published, says attempt_over, the books balance."""
    hook, host = stage.hook(), stage.host(100, "die")
    found = Collector(shm).finish("attempt_over")
    assert (stage.code(host), stage.code(hook)) == (-signal.SIGKILL, 0), stage.log()
    expect_bus(found, 100, lambda values: values)
    expect_balance(shm)
    with Control(str(shm / CAPTURE_RING)) as capture:
        assert capture.writer_state() == "attempt_over"
        assert capture.reader_state("hook") == "checkpointed"
        assert sum(books["dropped"][0] for books in capture.produced()) == 17


def test_sigterm_leaves_with_143_and_ends_nothing(shm, stage):
    """SIGTERM leaves both rings open; the next hook worker goes on to the end."""
    host = stage.host(3000)
    hook = stage.hook()
    with Control(str(shm / BUS_RING)) as bus, Control(str(shm / CAPTURE_RING)) as capture:
        deadline = time.monotonic() + SECONDS
        while not bus.heads()[0]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        hook.terminate()
        assert stage.code(hook) == 143, stage.log()
        assert bus.writer_state() == "gone"
        assert capture.reader_state("hook") == "gone"
    hook = stage.hook()
    assert stage.code(hook) == 0
    assert stage.code(host) == 0
    with Control(str(shm / BUS_RING)) as bus:
        assert bus.writer_state() == "complete"


def test_a_worker_restarted_after_the_end_only_waits(shm, stage):
    """A hook worker started again after its last act waits for SIGTERM, leaves with 0, and the end stands."""
    host = stage.host(3)
    assert stage.code(host) == 0
    assert stage.code(stage.hook()) == 0
    with Control(str(shm / BUS_RING)) as bus:
        generation = bus.geometry()["generation"]
        again = stage.hook()
        stage.until_said("waiting for the pod's end", times=2)
        assert stage.code(again) == 0, stage.log()
        assert bus.writer_state() == "complete"
        assert bus.geometry()["generation"] == generation


# -- the relay alone


def _joined(columns):
    """Return the columns end to end, None when there are none."""
    return None if columns[0] is None else np.concatenate(columns)


@pytest.fixture
def relayed(shm):
    """A function that carries one packet and returns it as the bus has it."""

    def carry(values, dtype, wanted, scales=None):
        latencies, looked = [], []

        def look(packet):
            looked.append(packet.point)

        captured = CppShardedSPMCBus(shm / CAPTURE_RING).consumer("hook")
        with Writer(str(shm / CAPTURE_RING)) as source, captured:
            account, count = source.account(POINTS[0]), len(values)
            header, records = header_of(account, 7, values.shape[1], dtype), records_of(7, count)
            address = values.__array_interface__["data"][0]
            assert source.publish_block(
                0, header, records, address, values.strides[0], None, count, dtype, 0, scales=scales
            )
            with CppShardedSPMCBus(shm / BUS_RING).producer() as bus:
                relay = Relay(bus, wanted, [look], latencies.append)
                [packet] = captured.pull(1, 1.0)
                relay.forward(packet)
                relay.forward(packet)  # as a successor would: it finds everything published
        with Control(str(shm / BUS_RING)) as control, Reader(str(shm / BUS_RING), "sae") as reader:
            views = reader.pull(64, 0.0)
            packets = [parse_packet(memoryview(view), control.accounts()) for view in views]
            columns = (
                np.concatenate([packet.payload for packet in packets]),
                _joined([packet.scales for packet in packets]),
                np.concatenate([packet.to_float32() for packet in packets]),
                packets[0].header.copy(),
            )
            assert np.concatenate([packet.rows for packet in packets]).tobytes() == records.tobytes()
            sources = [int(packet.header["source"]) for packet in packets]
            assert sources == sorted(set(sources))
            del packets
        assert len(latencies) == len(looked) == 2
        return columns

    return carry


VALUES = np.random.default_rng(0).normal(0, 3, (300, WIDTH)).astype(np.float32)


def test_int8_has_a_scale_a_row_and_numpys_rounding(relayed):
    """int8 is the row over its largest magnitude times 127, rounded to even."""
    payload, scales, back, header = relayed(VALUES, Dtype.FLOAT32, Quantization.INT8)
    largest = np.abs(VALUES).max(axis=1)
    assert scales.tobytes() == (largest / np.float32(127)).tobytes()
    wanted = np.rint(VALUES * (np.float32(127) / largest)[:, None]).astype(np.int8)
    assert payload.tobytes() == wanted.tobytes()
    assert np.abs(back - VALUES).max() <= 0.51 * scales.max()
    assert (header["dtype"], header["quantization"]) == (Dtype.INT8, Quantization.INT8)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [(bfloat16_bits(VALUES), Dtype.BFLOAT16), (VALUES.astype(np.float16), Dtype.FLOAT16)],
    ids=["bfloat16", "float16"],
)
def test_two_byte_sources_pass_unchanged_under_bf16(relayed, given, dtype):
    """What is two bytes wide already is copied as it is."""
    payload, _, _, header = relayed(given, dtype, Quantization.BF16)
    assert payload.tobytes() == given.tobytes()
    assert (header["dtype"], header["quantization"]) == (dtype, Quantization.NONE)


def test_quantised_packets_pass_with_their_scales(relayed):
    """int8 rows that the host quantised arrive with their own scales, whatever the spec wants."""
    numbers = np.random.default_rng(1).integers(-127, 128, (300, WIDTH)).astype(np.int8)
    given = np.linspace(0.1, 2.0, 300, dtype=np.float32)
    payload, scales, _, header = relayed(numbers, Dtype.INT8, Quantization.BF16, given)
    assert payload.tobytes() == numbers.tobytes()
    assert scales.tobytes() == given.tobytes()
    assert header["dtype"] == Dtype.INT8


def test_a_row_larger_than_a_chunk_is_dropped_and_booked(shm):
    """A row that no block can hold is booked as too large, and the next packet goes through."""
    captured = CppShardedSPMCBus(shm / CAPTURE_RING).consumer("hook")
    with Writer(str(shm / CAPTURE_RING)) as source, captured:
        wide = np.zeros((2, BUS_CHUNK // 4), np.float32)
        for values in (wide, VALUES[:5]):
            header = header_of(source.account(POINTS[0]), 0, values.shape[1])
            address = values.__array_interface__["data"][0]
            source.publish_block(
                0, header, None, address, values.strides[0], None, len(values), Dtype.FLOAT32, 0
            )
        with CppShardedSPMCBus(shm / BUS_RING).producer() as bus:
            relay = Relay(bus, Quantization.NONE, [], lambda _: None)
            for packet in captured.pull(2, 1.0):
                relay.forward(packet)
    with Control(str(shm / BUS_RING)) as control:
        [books] = control.produced()
    assert (books["seen"], books["published"], books["dropped"][4]) == (7, 5, 2)


def of_width(width, sequence, count=4096):
    """Return a captured packet of `count` rows of the first point."""
    header = header_of(0, sequence, width)[0]
    header["sequence"], header["rows"], header["rows_before"] = sequence, count, (sequence - 1) * count
    return ActivationPacket(
        header, POINTS[0], np.zeros(count, ROW_DTYPE), None, np.ones((count, width), np.float32)
    )


def relay_all(shm, packets, look):
    """Carry packets to the bus, then return its books of the first point."""
    with CppShardedSPMCBus(shm / BUS_RING).producer() as bus:
        relay = Relay(bus, Quantization.NONE, [look], lambda _: None)
        for packet in packets:
            relay.forward(packet)
    with Control(str(shm / BUS_RING)) as control:
        [books] = control.produced()
    return books["seen"], books["published"], sum(books["dropped"])


def test_a_hook_point_that_changes_its_width_loses_no_rows(shm):
    """Attention weights [B, L, L] are as wide as the step is long: all are published, the statistics are of
    the first width, and say how many rows had another.
    """
    statistics = Statistics(shm / "statistics.json")
    packets = [of_width(width, sequence) for sequence, width in enumerate((8, 9), 1)]
    assert relay_all(shm, packets, statistics.observe) == (8192, 8192, 0)
    statistics.write()
    saved = json.loads((shm / "statistics.json").read_text())["points"][POINTS[0]]
    assert (saved["rows"], saved["otherWidth"], saved["mean"]) == (256, 256, [1.0] * 8)


def test_an_observer_that_fails_loses_no_rows(shm, caplog):
    """What is on the bus is not dropped as well because something that only looks at it fails; it is said
    once.
    """

    def look(packet):
        raise ValueError("cannot look")

    assert relay_all(shm, [of_width(8, 1), of_width(8, 2)], look) == (8192, 8192, 0)
    [record] = caplog.records
    assert "cannot look" in caplog.text
    assert POINTS[0] in record.getMessage()
