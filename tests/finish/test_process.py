"""finish as a process, between real rings: it waits for the end, balances the books and gives the verdict."""

import csv
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
from tests.pod import SECONDS, WorkerPod

import asysi_ring
from asysi.bus.mailbox import CaptureWord, Gauge
from asysi.bus.packet import HEADER_DTYPE, MAGIC, ROW_DTYPE, VERSION, Dtype
from asysi.contract.runtime import BUS_RING, CAPTURE_RING, MODEL_FILE, POINTS_FILE

POINTS = ["encoder.layer.0.output", "encoder.layer.1.output"]
WIDTH, ROWS = 16, 40


class Pod(WorkerPod):
    """A pod with stand-ins for every worker but finish."""

    def __init__(self, folder, spec):
        super().__init__(folder, spec, name="tiny")
        self.readers = [
            name for name in ("archiver", "sae") if spec.get("archive", {}).get("enabled") or name == "sae"
        ]
        self.fresh_rings()

    def fresh_rings(self):
        """Make the rings of an attempt, in place of those of the one before."""
        shutil.rmtree(self.shm, ignore_errors=True)
        (self.shm / CAPTURE_RING.parent).mkdir(parents=True)
        ring = {"shards": 1, "chunks": 64, "chunk_bytes": 16384}
        asysi_ring.create(str(self.shm / CAPTURE_RING), **ring, readers=["hook"], policy="drop_new")
        asysi_ring.create(str(self.shm / BUS_RING), **ring, readers=["sae"], policy="overwrite")

    def verdict(self):
        """Return what `verdict.json` says."""
        return json.loads((self.output / "verdict.json").read_text())

    def left_by_the_host(self, *attempts):
        """Leave what the host leaves: counts of documents, and the attempts in which it has run a step."""
        (self.output / "host").mkdir(exist_ok=True)
        (self.output / "host" / "seen.json").write_text(json.dumps({"documents": 60, "truncated": 0}))
        steps = {str(number): 2 for number in attempts}
        (self.output / "host" / "progress.json").write_text(json.dumps({"attempts": steps}))

    def asked(self, path):
        """Return what finish answers, None while it does not."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.read()
        except OSError:
            return None

    def waiting(self):
        """Start finish, and return it once it waits."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.environment |= {"ASYSI_PORT": str(self.port), "ASYSI_BIND": "127.0.0.1"}
        process, until = self.finish(), time.monotonic() + SECONDS
        while self.asked("/readyz") is None and time.monotonic() < until:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        return process

    def finish(self, attempt=0):
        """Start finish."""
        return subprocess.Popen(
            [sys.executable, "-m", "asysi.finish"],
            env={**self.environment, "ASYSI_ATTEMPT": str(attempt)}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *, end="complete", lost=0, steps=3, stopped=False):
        """Move rows from host to sae as the workers would, losing `lost` of them from sae's books; a stopped
        sae reads only when all is written.
        """
        capture, bus = (
            asysi_ring.Writer(str(self.shm / CAPTURE_RING)),
            asysi_ring.Writer(str(self.shm / BUS_RING)),
        )
        hook, sae = (
            asysi_ring.Reader(str(self.shm / CAPTURE_RING), "hook"),
            asysi_ring.Reader(str(self.shm / BUS_RING), "sae"),
        )
        with asysi_ring.Control(str(self.shm / CAPTURE_RING)) as control:
            for word, value in (
                (CaptureWord.STEPS, steps),
                (CaptureWord.TOKENS, steps * ROWS),
                (CaptureWord.STEPS_TOTAL, steps),
            ):
                control.set(word, value)
            control.set_float(CaptureWord.RATE, 1.0)
        for step in range(steps):
            for number, point in enumerate(POINTS):
                _publish(capture, point, step)
                capture.book(capture.account(point), seen=5, sampled_out=5)
                for view in hook.pull(1, 1.0):
                    _publish(bus, point, step)
                    hook.consumed(view)
                hook.mark_durable()
                for view in [] if stopped else sae.pull(1, 1.0):
                    sae.consumed(view)
                sae.gauge(number, Gauge.TRAINED, ROWS * (step + 1))
                sae.gauge(number, Gauge.DEAD, 0.25)
        while stopped and (views := sae.pull(16, 0.2)):
            for view in views:
                sae.consumed(view)
        sae.mark_durable()
        if lost:
            bus.book(bus.account(POINTS[0]), seen=lost)
        capture.close(end)
        bus.close(end)
        sae.settle()
        sae.finalise("finalised" if end == "complete" else "checkpointed")


def _publish(writer, point, step):
    header, rows = np.zeros(1, HEADER_DTYPE), np.zeros(ROWS, ROW_DTYPE)
    header["magic"], header["version"], header["header_bytes"] = MAGIC, VERSION, HEADER_DTYPE.itemsize
    header["account"], header["step"], header["width"], header["dtype"] = (
        writer.account(point),
        step,
        WIDTH,
        Dtype.FLOAT32,
    )
    values = np.ones((ROWS, WIDTH), np.float32)
    address = values.__array_interface__["data"][0]
    assert writer.publish_block(0, header, rows, address, values.strides[0], None, ROWS, Dtype.FLOAT32, 0)


def wait_for(process):
    """Return exit code and log."""
    _, log = process.communicate(timeout=SECONDS)
    return process.returncode, log


WITHOUT_SAE = {
    "model": {"uri": "file:///nowhere"}, "data": {"uri": "jsonl:///nowhere"}, "workload": {"scan": {}},
    "capture": {"hookPoints": ["encoder.layer.*.output"]}, "archive": {"enabled": False}, "sae": None,
}  # fmt: skip


def test_finish_waits_for_the_consumers_and_passes_balanced_books(tmp_path):
    """finish stays while a consumer works; after the in-band end it writes ledger and report, and exits 0."""
    pod = Pod(tmp_path, WITHOUT_SAE)
    process = pod.waiting()
    assert json.loads(pod.asked("/status"))["phase"] == "starting"
    assert pod.asked("/livez")
    assert not (pod.output / "ledger.json").exists()
    pod.run()
    code, log = wait_for(process)
    assert code == 0, log
    ledger = json.loads((pod.output / "ledger.json").read_text())
    assert ledger["balanced"]
    assert ledger["complete"]
    assert ledger["totals"]["capture"] == {
        "seen": 6 * (ROWS + 5), "published": 6 * ROWS, "sampledOut": 30, "dropped": {},
    }  # fmt: skip
    assert ledger["totals"]["consumers"]["sae"]["durable"] == 6 * ROWS
    assert "trains no autoencoder" in (pod.output / "report.html").read_text()
    assert json.loads(pod.termination.read_text())["capture"]["seen"] == 6 * (ROWS + 5)


def test_books_that_do_not_balance_fail_the_experiment(tmp_path):
    """Rows that nobody accounts for: exit code 1, and ledger, report and last words name the equation."""
    pod = Pod(tmp_path, WITHOUT_SAE)
    pod.run(lost=7)
    code, log = wait_for(pod.finish())
    assert code == 1, log
    ledger = json.loads((pod.output / "ledger.json").read_text())
    assert [line["difference"] for line in ledger["points"][0]["equations"]] == [0, 0, 0, 7, 0]
    assert "does not balance" in (pod.output / "report.html").read_text()
    assert json.loads(pod.termination.read_text())["ledger"]["unbalanced"] == [f"{POINTS[0]} bus"]


def test_an_attempt_that_is_over_leaves_its_ledger_and_no_report(tmp_path):
    """After the host's death: attempts/<n>/ledger.json, exit code 1, no report; the next attempt's ledger
    repeats it.
    """
    pod = Pod(tmp_path, WITHOUT_SAE)
    pod.run(end="attempt_over")
    code, log = wait_for(pod.finish())
    assert code == 1, log
    written = json.loads((pod.output / "attempts" / "0" / "ledger.json").read_text())
    assert written["balanced"]
    assert not written["complete"]
    assert not (pod.output / "report.html").exists()
    assert not (pod.output / "ledger.json").exists()


def test_finish_leaves_with_143_when_terminated(tmp_path):
    """SIGTERM while waiting: exit code 143, no verdict."""
    pod = Pod(tmp_path, WITHOUT_SAE)
    process = pod.waiting()
    process.terminate()
    code, log = wait_for(process)
    assert code == 143, log
    assert not (pod.output / "ledger.json").exists()


def test_without_rings_finish_says_so(tmp_path):
    """Missing rings are a sentence and exit code 2."""
    pod = Pod(tmp_path, WITHOUT_SAE)
    (pod.shm / BUS_RING / "control").unlink()
    code, log = wait_for(pod.finish())
    assert code == 2
    assert "cannot read the rings" in log


WORDS = [f"{a}{b}" for a in "bdfgkl" for b in "aeiou"]
WITH_SAE = {
    **WITHOUT_SAE,
    "sae": {"train": [{"name": "tiny", "latents": 24, "k": 3}]},
    "data": {"uri": "jsonl://DATA", "tokens": {"contextLength": 16}, "holdout": {"share": 0.4}},
    "model": {"uri": "file://MODEL"},
    "workload": {"scan": {"batchSize": 4, "passes": 2}},
}


def tiny_model(folder):
    """Write a BERT of two layers and its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder, safe_serialization=True)


def with_model(tmp_path, spoil=lambda _parameters: None, exported=POINTS):
    """Return a pod with a real model whose parameters `spoil` may change, text, and some SAEs."""
    import torch
    from safetensors.torch import load_file, save_file

    from asysi.sae.export import export, folder_of
    from asysi.sae.variants.topk import TopK

    model, data = tmp_path / "model", tmp_path / "data.jsonl"
    tiny_model(model)
    parameters = load_file(model / "model.safetensors")
    spoil(parameters)
    save_file(parameters, model / "model.safetensors", {"format": "pt"})
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, rng.integers(4, 12))) for _ in range(60)]
    data.write_text("".join(json.dumps({"_i": 100 + i, "text": line}) + "\n" for i, line in enumerate(lines)))
    spec = json.loads(json.dumps(WITH_SAE).replace("MODEL", str(model)).replace("DATA", str(data)))
    pod = Pod(tmp_path, spec)
    found = [{"path": point, "alias": None, "shape": [4, 16, WIDTH], "dtype": "float32"} for point in POINTS]
    (pod.workspace / POINTS_FILE).write_text(json.dumps(found))
    resolved = {
        "uri": spec["model"]["uri"], "path": str(model), "sha256": None, "revision": None,
        "class_name": "BertModel", "tokenizer": str(model),
    }  # fmt: skip
    (pod.workspace / MODEL_FILE).write_text(json.dumps(resolved))
    generator = torch.Generator().manual_seed(0)
    for point in exported:
        sae = TopK(WIDTH, 24, 3)
        sae.initialise(torch.zeros(WIDTH), torch.randn(24, WIDTH, generator=generator))
        export(folder_of(pod.output / "sae" / "tiny", point), sae, {})
    return pod


def test_the_report_shows_the_frozen_autoencoders_on_held_out_text(tmp_path):
    """With a real model, text and exports: layers and features of both hook points, and no problem, exit
    code 0.
    """
    pod = with_model(tmp_path)
    pod.left_by_the_host(0)
    pod.run()
    code, log = wait_for(pod.finish())
    assert code == 0, log
    page = (pod.output / "report.html").read_text()
    payload = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
    browser = payload["browser"]
    assert [one["layer"] for one in browser["features"]] == POINTS
    assert {word.strip() for word in browser["vocabulary"]} <= set(WORDS)
    assert set(map(int, browser["rows"])) <= set(range(100, 160))
    assert browser["sentence"] is not None
    assert "25.0% in training" in page
    words = json.loads(pod.termination.read_text())
    assert words["sae"]["l0"] == 3.0
    assert words["conditions"]["LedgerBalanced"]["status"] == "True"
    assert words["conditions"]["DataSound"] == {
        "status": "True", "reason": "Sound", "message": "Every check of the data has passed.",
    }  # fmt: skip
    assert pod.verdict()["level"] == "ok"
    assert 'class="verdict ok"' in page


def nothing_but_nan(parameters):
    """Spoil the second layer: every row of it is NaN, as after an overflow of float16."""
    parameters["encoder.layer.1.output.LayerNorm.bias"].fill_(float("nan"))


def nan_at_a_word(parameters):
    """Spoil a word: every sentence that holds it is NaN at both hook points."""
    parameters["embeddings.word_embeddings.weight"][7].fill_(float("nan"))


def test_a_hook_point_without_a_finite_row_is_on_the_page_and_fails_the_run(tmp_path):
    """Every row NaN: no SAE can be, so the run has failed; the report is written, names the hook point, says
    why and shows the other one.
    """
    pod = with_model(tmp_path, nothing_but_nan, POINTS[:1])
    pod.left_by_the_host(0)
    why = "all 240 rows received by the trainer contain NaN or infinity"
    record = {"points": {POINTS[1]: {"not_finite": 240, "why": why}}}
    (pod.output / "sae" / "tiny" / "training.json").write_text(json.dumps(record))
    pod.run()
    code, log = wait_for(pod.finish())
    assert code == 1, log
    found = pod.verdict()
    assert [(one["reason"], one["points"]) for one in found["findings"]] == [
        ("NoResult", [POINTS[1]]), ("RowsNotFinite", [POINTS[1]]),
    ]  # fmt: skip
    assert found["points"][1]["notFinite"] == 240
    assert found["points"][0]["saes"][0]["fvu"] > 0
    page = (pod.output / "report.html").read_text()
    assert page.count(why) >= 2
    assert 'class="verdict fail"' in page
    assert json.loads(pod.termination.read_text())["conditions"]["DataSound"]["reason"] == "NoResult"


def test_some_rows_that_are_not_finite_cost_no_report(tmp_path):
    """NaN in some sentences: figures are of the others, the page is whole, the verdict a warning, exit 0."""
    pod = with_model(tmp_path, nan_at_a_word)
    pod.left_by_the_host(0)
    pod.run()
    code, log = wait_for(pod.finish())
    assert code == 0, log
    found = pod.verdict()
    assert {one["reason"] for one in found["findings"]} == {"RowsNotFinite"}
    assert all(point["notFinite"] > 0 and point["saes"][0]["fvu"] > 0 for point in found["points"])
    page = (pod.output / "report.html").read_text()
    json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
    assert 'class="verdict warning"' in page


def test_finish_killed_while_it_analyses(tmp_path):
    """The next attempt has nothing left to read, and knows the rows of the one before: nobody says 0 rows."""
    pod = with_model(tmp_path)
    pod.left_by_the_host(0)
    pod.run()
    process, kept = pod.finish(), pod.output / "attempts" / "0" / "ledger.json"
    until = time.monotonic() + SECONDS
    while not kept.exists() and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    wait_for(process)
    assert not (pod.output / "verdict.json").exists()
    pod.fresh_rings()
    pod.run(steps=0)
    code, log = wait_for(pod.finish(attempt=1))
    assert code == 0, log
    rows = 6 * (ROWS + 5)
    found = pod.verdict()["conditions"]["LedgerBalanced"]
    assert (found["status"], found["message"]) == ("True", f"All {rows} rows seen are accounted for.")
    assert json.loads(pod.termination.read_text())["capture"]["seen"] == rows
    assert json.loads((pod.output / "ledger.json").read_text())["allAttempts"]["capture"]["seen"] == rows


def test_finish_killed_while_the_stream_runs(tmp_path):
    """The ledger of that attempt is gone with its rings: what it saw is not known, nobody says balanced."""
    pod = Pod(tmp_path, WITHOUT_SAE)
    process = pod.waiting()
    process.send_signal(signal.SIGKILL)
    wait_for(process)
    pod.run()
    pod.left_by_the_host(0)
    pod.fresh_rings()
    pod.run(steps=0)
    pod.environment["ASYSI_PORT"] = "0"
    code, log = wait_for(pod.finish(attempt=1))
    assert code == 0, log
    found = pod.verdict()
    assert found["conditions"]["LedgerBalanced"]["reason"] == "AttemptWithoutBooks"
    page = (pod.output / "report.html").read_text()
    assert 'class="verdict unknown"' in page
    assert "What attempt 0 saw is not known" in page
    assert "ledger balances" not in page.split("</section>")[0]


def test_a_consumer_that_stood_still_is_told_of(tmp_path):
    """Most rows overwritten before the trainer read them: the ledger balances, and the data has a warning."""
    pod = Pod(tmp_path, WITHOUT_SAE)
    pod.left_by_the_host(0)
    pod.run(steps=80, stopped=True)
    code, log = wait_for(pod.finish())
    assert code == 0, log
    found = pod.verdict()
    assert found["conditions"]["LedgerBalanced"]["status"] == "True"
    assert found["findings"][0]["reason"] == "RowsLapped"
    assert all(0.5 < point["lapped"]["sae"] < 1 for point in found["points"])
    assert 'class="verdict warning"' in (pod.output / "report.html").read_text()


def test_books_are_closed_when_a_run_is_suspended(tmp_path):
    """SIGTERM, then the stream comes to rest: the attempt's books are written, and the exit code is 143."""
    pod = Pod(tmp_path, WITHOUT_SAE)
    with asysi_ring.Control(str(pod.shm / CAPTURE_RING)) as control:
        control.set(CaptureWord.STEPS, 3)
    process = pod.waiting()
    process.terminate()
    pod.run(end="attempt_over")
    code, log = wait_for(process)
    assert code == 143, log
    written = json.loads((pod.output / "attempts" / "0" / "ledger.json").read_text())
    assert written["balanced"]
    assert not (pod.output / "verdict.json").exists()


def with_weights(tmp_path):
    """Return a pod whose experiment analyses the parameters of a small model, and the model's folder."""
    from asysi.model.loading import hash_files

    model = tmp_path / "model"
    tiny_model(model)
    pod = Pod(tmp_path, {**WITHOUT_SAE, "model": {"uri": f"file://{model}"}, "weights": {"enabled": True}})
    resolved = {
        "uri": f"file://{model}", "path": str(model), "sha256": hash_files([model / "model.safetensors"]),
        "revision": None, "class_name": "BertModel", "tokenizer": str(model),
    }  # fmt: skip
    (pod.workspace / MODEL_FILE).write_text(json.dumps(resolved))
    return pod, model


def test_parameters_before_and_after_a_run_that_trained(tmp_path):
    """A model in the output is compared with the one that was loaded: three tables, a page, a sentence in the
    report; exit code 0.
    """
    from safetensors.numpy import load_file, save_file

    pod, model = with_weights(tmp_path)
    name = "encoder.layer.1.output.dense.weight"
    parameters = load_file(model / "model.safetensors")
    parameters[name] = parameters[name] * 1.5
    (pod.output / "model").mkdir()
    save_file(parameters, pod.output / "model" / "model.safetensors")
    pod.run()
    code, log = wait_for(pod.finish())
    assert code == 0, log
    folder = pod.output / "weights"
    assert {file.name for file in folder.iterdir()} >= {
        "before.csv", "after.csv", "difference.csv", "report.html", "run_meta.json",
    }  # fmt: skip
    with (folder / "difference.csv").open() as stream:
        (changed,) = [row for row in csv.DictReader(stream) if row["status"] == "changed"]
    assert (changed["param_name"], round(float(changed["delta_relative"]), 6)) == (name, 0.5)
    assert "1 changed" in (pod.output / "report.html").read_text()


def test_parameters_of_a_scan(tmp_path):
    """A scan leaves no model, so there is a table of before alone and the report says why; files that were
    replaced under the run are named, and fail it.
    """
    pod, model = with_weights(tmp_path)
    pod.run()
    code, log = wait_for(pod.finish())
    assert code == 0, log
    assert [file.name for file in (pod.output / "weights").glob("*.csv")] == ["before.csv"]
    page = (pod.output / "report.html").read_text()
    assert "a scan changes no parameter" in page
    assert "replaced during the run" not in page
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    code, log = wait_for(pod.finish())
    assert code == 1, log
    assert "replaced during the run" in (pod.output / "report.html").read_text()
