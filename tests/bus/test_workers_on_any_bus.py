"""Hook, trainer and archiver stand on the stream alone: what carries it makes no difference to them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.bus.test_stream_conformance import KINDS

from asysi.archive.dataset import MScanDataset
from asysi.archive.worker import ArchiverWorker
from asysi.bus.accounts import read_accounts
from asysi.bus.mailbox import Gauge
from asysi.bus.packet import HEADER_DTYPE, ROW_DTYPE, ActivationPacket, Dtype, Quantization, RowFlag
from asysi.bus.states import ProducerState, ReaderState, StreamEnd
from asysi.bus.stream import DataBus
from asysi.contract.errors import ConfigError
from asysi.contract.runtime import Container, Exit
from asysi.contract.spec import ScanExperiment
from asysi.hook.loop import Hook
from asysi.hook.pacer import Pacer
from asysi.hook.rate import Limits
from asysi.hook.relay import Relay
from asysi.hook.statistics import Statistics
from asysi.hook.timeline import Timeline
from asysi.hook.totals import HOOK, read_totals
from asysi.monitor.health import Health
from asysi.monitor.worker import StopSignal, Worker
from asysi.sae.worker import SAETrainerWorker

POINTS = ("layer.0", "layer.1")
STEPS, ROWS, WIDTH = 25, 8, 16
TRAINER = {"latents": 32, "k": 4, "batch": 16, "buffer": {"batches": 4, "sequences": 20}}


def packet_of(point: str, step: int) -> ActivationPacket:
    """Return a packet of random rows; in every fourth step two of them are held out."""
    header = np.zeros(1, HEADER_DTYPE)[0]
    header["width"], header["dtype"], header["step"] = WIDTH, Dtype.FLOAT32, step
    records = np.zeros(ROWS, ROW_DTYPE)
    records["sequence"] = np.arange(ROWS) // 4
    records["flags"][: 2 if step % 4 == 0 else 0] = RowFlag.HOLDOUT
    values = np.random.default_rng([step, *point.encode()]).normal(size=(ROWS, WIDTH)).astype(np.float32)
    return ActivationPacket(header, point, records, None, values)


def fill(bus: DataBus, end: StreamEnd = StreamEnd.COMPLETE) -> None:
    """Publish all steps at every hook point, and end the stream."""
    producer = bus.producer()
    for step in range(STEPS):
        for point in POINTS:
            assert producer.push(packet_of(point, step))
    producer.end(end)


def frame(container: Container, folder: Path) -> Worker:
    """Return the frame of a worker whose folders are below `folder`."""
    places = [folder / name for name in ("shm", "output", "workspace")]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    spec = {
        "model": {"uri": "python://nothing:here"},
        "workload": {"scan": {}},
        "capture": {"hookPoints": ["**"]},
        "sae": {"train": [TRAINER]},
    }
    head = {"apiVersion": "asysi.dev/v1alpha1", "kind": "ScanExperiment", "metadata": {"name": "test"}}
    return Worker(container, ScanExperiment.model_validate({**head, "spec": spec}), *places, 0, port=0)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each implementation of the stream."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _like_the_worker() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


def _archive(kind: str, folder: Path) -> tuple[DataBus, MScanDataset]:
    folder.mkdir()
    bus = KINDS[kind].make(folder, ["archiver"])
    fill(bus)
    with bus.consumer("archiver") as stream:
        assert ArchiverWorker.resumed(frame(Container.ARCHIVER, folder), stream).run() is StreamEnd.COMPLETE
    return bus, MScanDataset(folder / "output")


def test_the_archive_is_the_same(kind: str, tmp_path: Path) -> None:
    """Every row that was published is in the archive, bit for bit, and the books say so."""
    bus, dataset = _archive(kind, tmp_path / kind)
    for point in POINTS:
        expected = [packet_of(point, step) for step in range(STEPS)]
        for packet, made in zip(dataset.packets(point), expected, strict=True):
            assert packet.payload.tobytes() == made.payload.tobytes()
            assert packet.rows.tobytes() == made.rows.tobytes()
        metrics = dataset.metrics(point)
        assert metrics["mean"].tolist() == pytest.approx(
            np.concatenate([made.payload for made in expected]).mean(axis=1).tolist(), abs=1e-6
        )
    consumer = read_accounts(bus.control()).consumers["archiver"]
    assert consumer.state is ReaderState.FINALISED
    assert [rows.durable for rows in consumer.consumed.values()] == [STEPS * ROWS] * len(POINTS)


def test_an_archive_of_another_run_is_refused(kind: str, tmp_path: Path) -> None:
    """An archiver whose folder holds more than the stream has carried says whose rows they are."""
    _archive(kind, tmp_path / kind)
    (tmp_path / "other").mkdir()
    bus = KINDS[kind].make(tmp_path / "other", ["archiver"])
    bus.producer().push(packet_of("layer.1", 0))
    with bus.consumer("archiver") as stream, pytest.raises(ConfigError, match=r"200 rows of layer\.[01]"):
        ArchiverWorker.resumed(frame(Container.ARCHIVER, tmp_path / kind), stream)


def test_hook_carries_everything_and_ends_both_streams(kind: str, tmp_path: Path) -> None:
    """Between two streams of a kind every row arrives once, quantised, and the ledgers of both balance."""
    for name in ("capture", "bus"):
        (tmp_path / name).mkdir()
    captured = KINDS[kind].make(tmp_path / "capture", [HOOK])
    published = KINDS[kind].make(tmp_path / "bus", ["sae"])
    fill(captured)
    capture, bus = captured.control(), published.control()
    totals = read_totals(capture, bus)
    hook = Hook(
        captured=captured.consumer(HOOK),
        published=(producer := published.producer()),
        capture=capture,
        bus=bus,
        relay=Relay(producer, Quantization.BF16, (), lambda _: None),
        pacer=Pacer(capture, bus, Limits(most=1.0, least=0.1), totals),
        statistics=Statistics(tmp_path / "statistics.json"),
        timeline=Timeline(tmp_path / "timeline.jsonl", attempt=0),
        totals=totals,
    )
    assert hook.run(Health(), StopSignal()) is StreamEnd.COMPLETE
    hook.finish(StreamEnd.COMPLETE)
    found = dict.fromkeys(POINTS, 0)
    with published.consumer("sae") as stream:
        while batch := stream.pull(16, 0.1):
            for packet in batch:
                made = packet_of(packet.point, found[packet.point])
                assert packet.rows.tobytes() == made.rows.tobytes()
                assert np.abs(packet.to_float32() - made.payload).max() < 0.02
                assert int(packet.header["quantization"]) == Quantization.BF16
                found[packet.point] += 1
    assert found == dict.fromkeys(POINTS, STEPS)
    before, behind = read_accounts(capture), read_accounts(bus)
    assert before.consumers[HOOK].state is ReaderState.FINALISED
    assert behind.state is ProducerState.COMPLETE
    for point in POINTS:
        rows = STEPS * ROWS
        assert before.consumers[HOOK].consumed[point].durable == behind.produced[point].published == rows


def _train(kind: str, folder: Path, end: StreamEnd = StreamEnd.COMPLETE) -> DataBus:
    folder.mkdir()
    bus = KINDS[kind].make(folder, ["sae"])
    fill(bus, end)
    assert SAETrainerWorker(frame(Container.SAE, folder), bus.consumer("sae")).run() == Exit.OK
    return bus


def test_the_autoencoders_are_the_same(kind: str, tmp_path: Path) -> None:
    """From the same packets come the same autoencoders, bit for bit, on every bus."""
    bus = _train(kind, tmp_path / kind)
    _train("memory", tmp_path / "other")
    for point in POINTS:
        one, other = (tmp_path / name / "output" / "sae" / "topk" / point for name in (kind, "other"))
        files = sorted(file.name for file in one.glob("*.safetensors"))
        assert files
        assert all((one / name).read_bytes() == (other / name).read_bytes() for name in files)
    consumer = read_accounts(bus.control()).consumers["sae"]
    assert consumer.state is ReaderState.FINALISED
    for point in POINTS:
        assert consumer.consumed[point].durable == STEPS * ROWS
        assert consumer.gauges[point][Gauge.TRAINED] == STEPS * ROWS - 7 * 2


def test_an_attempt_that_is_over_is_checkpointed(kind: str, tmp_path: Path) -> None:
    """The trainer keeps what the next attempt needs, exports nothing, and says so where others look."""
    bus = _train(kind, tmp_path / kind, StreamEnd.ATTEMPT_OVER)
    assert (tmp_path / kind / "output" / "checkpoints" / "topk.ckpt").exists()
    assert not (tmp_path / kind / "output" / "sae").exists()
    assert read_accounts(bus.control()).consumers["sae"].state is ReaderState.CHECKPOINTED
