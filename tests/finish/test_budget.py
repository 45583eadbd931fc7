"""What finish reads with the model again is bounded in tokens and in time, and says how far it came."""

import dataclasses
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from asysi.contract.runtime import REREAD_FILE, REREAD_LOCK, REREADER
from asysi.contract.spec import Data, Holdout, ScanExperiment
from asysi.files import held, is_held
from asysi.finish import analysis, splice
from asysi.finish.analysis import RunAnalysis
from asysi.finish.budget import ReadBudget, ReadProgress, Spending, Unwatched
from asysi.finish.host_rows import await_rows, read_rows_left, write_rows
from asysi.finish.provenance import read_again as said_of
from asysi.finish.reread_tokens import RereadTokens
from asysi.finish.rereading import AT_ONCE, BATCH, Extent, plan_forwards, read_again, read_for_report
from asysi.finish.splice import Target
from asysi.finish.status import Snapshot, status_response
from asysi.hosts.leaving import announced
from asysi.model.loading import LoadedModel
from asysi.model.points import HookPoint
from asysi_operator.local.display import line
from asysi_operator.local.view import View

LETTERS = "*abcdefghijklmnopqrstuvwxyz "


class Watched:
    """Keeps what it is told."""

    def __init__(self):
        self.beats, self.told = 0, []

    def beat(self):
        self.beats += 1

    def show(self, progress):
        self.told.append(progress)


class Slow(torch.nn.Module):
    """A model of letters that takes some time for a forward."""

    def __init__(self, seconds=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(len(LETTERS), 6)
        self.a = torch.nn.Linear(6, 8)
        self.seconds, self.forwards = seconds, 0

    def forward(self, input_ids, attention_mask=None):
        self.forwards += 1
        time.sleep(self.seconds)
        return self.a(self.embed(input_ids))


@pytest.fixture
def data(tmp_path):
    """Two hundred documents of letters, of unlike length, half of them held out."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list(LETTERS[1:]), rng.integers(5, 90))) for _ in range(200)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Data(uri=f"jsonl://{tmp_path}/text.jsonl", holdout=Holdout(share=0.5))


def loaded(seconds=0.0):
    tokenizer = Tokenizer(
        models.WordLevel({letter: number for number, letter in enumerate(LETTERS)}, unk_token="*")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return LoadedModel(
        Slow(seconds), PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="*"), None
    )


def read(data, budget, model=None, watch=None):
    return read_again(
        model or loaded(), [HookPoint("a", shape=(1, 1, 8))], data,
        passes=1, max_samples=None, seed=0, budget=budget, watch=watch or Unwatched(),
    )  # fmt: skip


def test_tokens_are_a_limit_and_the_report_says_so(data):
    """With room for all of it everything is read; else no more than the budget, or than the memory, holds."""
    everything = read(data, ReadBudget(100_000, 3600))
    total = everything.extent.available
    assert everything.extent.ended == "all"
    assert everything.extent.tokens == total == len(everything.sheet.tokens) > 5000
    for budget, ended in ((ReadBudget(1000, 3600), "tokens"), (ReadBudget(9999, 3600, 32 * 1000), "memory")):
        some = read(data, budget)
        assert some.extent.ended == ended
        assert 800 < some.extent.tokens == len(some.sheet.tokens) <= 1000
        assert some.extent.available == total
        assert 0.5 < some.sheet.held_tokens.mean() < 0.8


def test_time_is_a_limit_and_what_was_read_is_whole(data):
    """When the time is over no further forward begins. What was read until then are whole documents, with the
    rows that they have when all is read, and they are no shorter than the others.
    """
    everything, model = read(data, ReadBudget(100_000, 3600)), loaded(0.05)
    some = read(data, ReadBudget(100_000, 0.2), model)
    assert some.extent.ended == "seconds"
    assert 1 <= model.module.forwards < len(everything.sheet.tokens) // AT_ONCE
    assert 0 < some.extent.tokens < everything.extent.tokens
    assert len(some.weight) == len(some.pieces) == some.extent.tokens
    assert some.weight[some.sheet.held_tokens].sum() == pytest.approx(
        everything.sheet.held_tokens.sum(), rel=1e-6
    )
    rows, reference = some.activations["a"], everything.activations["a"]
    assert rows.token.tolist() == list(range(some.extent.tokens))
    for number, sample in enumerate(some.sheet.rows):
        here = some.sheet.document == number
        there = everything.sheet.document == int(np.flatnonzero(everything.sheet.rows == sample)[0])
        assert some.sheet.tokens[here].tolist() == everything.sheet.tokens[there].tolist()
        np.testing.assert_allclose(
            rows.values[here[rows.token]], reference.values[there[reference.token]], rtol=1e-5, atol=1e-6
        )
    first = loaded(0.05)
    assert read(data, ReadBudget(100_000, 0.001), first).sheet.held_out.any()
    assert first.module.forwards == 1


@given(st.lists(st.tuples(st.integers(1, 700), st.booleans()), max_size=60), st.integers(0, 3))
def test_every_document_is_in_one_forward(documents, seed):
    """Forwards hold each document once and few tokens; the first has a held-out document if any has."""
    lengths = np.array([length for length, _ in documents], np.int64)
    held_out = np.array([out for _, out in documents], np.bool_)
    plan = plan_forwards(lengths, held_out, seed)
    assert sorted(np.concatenate(plan).tolist() if plan else []) == list(range(len(documents)))
    for some in plan:
        assert len(some) <= BATCH
        assert len(some) == 1 or len(some) * lengths[some].max() <= AT_ONCE
    if held_out.any():
        assert held_out[plan[0]].any()


def test_progress_says_how_much_time_is_left():
    """The time left is that of the tokens ahead at the present pace, or that of the budget if it is less."""
    now, watch = [0.0], Watched()
    spending = Spending("report", 10.0, watch, lambda: now[0])
    assert spending.fits(10**9)  # the first may take any time
    spending.plan(1000)
    now[0] = 2.0
    spending.spend(200)
    assert watch.told[-1] == ReadProgress("report", 200, 1000, 8.0)
    assert spending.fits(800)
    assert not spending.fits(801)
    now[0] = 6.0
    spending.spend(200)
    assert watch.told[-1] == ReadProgress("report", 400, 1000, 4.0)  # and not the 9 s of 600 tokens
    assert watch.beats == 2


def test_progress_is_on_status_and_on_the_terminal(data):
    """Each forward is told; `/status` and the line of a local run show tokens and the time left."""
    watch = Watched()
    read(data, ReadBudget(2000, 3600), watch=watch)
    assert watch.told[-1].tokens == watch.told[-1].tokens_total > 1500
    assert watch.beats >= len(watch.told) > 2
    answer = status_response(
        Snapshot(), said="analysing", reading=ReadProgress("report", 5000, 20_000, 12.34)
    )
    assert answer["rereading"] == {
        "what": "report", "tokens": 5000, "tokensTotal": 20_000, "secondsLeft": 12.3,
    }  # fmt: skip
    view = View("minilm", status=type(View("x").status).model_validate(answer))
    assert "5,000 of 20,000 tokens read for the report" in line(view)
    assert "0:12 left" in line(view)
    assert "rereading" not in status_response(Snapshot())


@pytest.mark.parametrize(
    ("extent", "said"),
    [
        (Extent(900, 900, "all", 1.25, "cpu"), "900 of 900 tokens, held-out documents first, in 1.2 s on"),
        (Extent(900, 900, "all", 1.25, "cpu"), "on the CPU: that is all of it."),
        (Extent(9, 900, "seconds", 31.0, "cpu"), "spec.finish.maxSeconds was over."),
        (Extent(9, 900, "tokens", 31.0, "cuda"), "on the host's GPU: spec.finish.maxTokens allows no more."),
        (Extent(9, 900, "memory", 31.0, "cpu"), "spec.resources.finish.memory holds no more activations."),
    ],
)  # fmt: skip
def test_the_page_says_what_was_read(extent, said):
    """How many tokens of how many, where, and why no more."""
    assert said in said_of(extent)


# -- cross-entropy


class Paced(torch.nn.Module):
    """Predicts the next of ten tokens; a forward takes a hundredth of a made-up second a token."""

    def __init__(self, now):
        super().__init__()
        self.now = now
        self.embed = torch.nn.Embedding(10, 4)
        self.head = torch.nn.Linear(4, 10)

    def forward(self, input_ids, attention_mask=None):
        self.now[0] += 0.01 * int(attention_mask.sum())
        return SimpleNamespace(logits=self.head(self.embed(input_ids)))


def spliced(seconds, targets=1):
    rng = np.random.default_rng(0)
    lengths = np.full(100, 20)
    sheet = RereadTokens(
        rng.integers(1, 10, 2000), np.repeat(np.arange(100), lengths), np.ones(2000, np.bool_),
        np.arange(100, dtype=np.uint64), np.ones(100, np.bool_),
    )  # fmt: skip
    now = [0.0]
    sae = SimpleNamespace(forward=lambda rows: rows)
    found = splice.measure(
        Paced(now), sheet, [Target("embed", sae)] * targets, ReadBudget(100_000, seconds),
        padding=0, watch=Unwatched(), clock=lambda: now[0],
    )  # fmt: skip
    return found, now[0]


def test_the_cross_entropy_has_a_time_of_its_own():
    """As many documents are read as fit at the pace of the first forward; all SAEs are measured on them."""
    whole, took = spliced(1000.0, targets=2)
    assert [one.tokens for one in whole.figures] == [1900, 1900]
    assert (whole.ended, took) == ("all", pytest.approx(100.02))
    part, took = spliced(30.0, targets=2)
    first, second = part.figures
    assert first == second
    assert 400 < first.tokens < 700
    assert took < 30.1
    none, took = spliced(5.0, targets=2)
    assert (none.figures, none.ended) == ([None, None], "seconds")
    assert took < 5.1


# -- rows of the host


def experiment(tmp_path, data, gpus=1, **finish):
    return ScanExperiment.model_validate({
        "metadata": {"name": "letters"},
        "spec": {
            "model": {"uri": "python://x:y", "tokenizer": "."},
            "data": {"uri": data.uri, "holdout": {"share": 0.5}},
            "workload": {"scan": {}}, "capture": {"hookPoints": ["a"]},
            "resources": {"host": {"gpus": gpus}}, "finish": {"maxTokens": 1000, "maxSeconds": 600, **finish},
        },
    })  # fmt: skip


def worker_of(tmp_path, made, attempt=3):
    return SimpleNamespace(
        experiment=made, output=tmp_path, workspace=tmp_path, attempt=attempt,
        stop=SimpleNamespace(terminated=False), health=SimpleNamespace(beat=lambda: None),
    )  # fmt: skip


def same(one, other):
    for name in ("tokens", "document", "content", "rows", "held_out"):
        np.testing.assert_array_equal(getattr(one.sheet, name), getattr(other.sheet, name))
    np.testing.assert_array_equal(one.weight, other.weight)
    assert (one.pieces, one.joined, list(one.activations)) == (
        other.pieces, other.joined, list(other.activations),
    )  # fmt: skip
    for path, rows in one.activations.items():
        also = other.activations[path]
        for name in ("values", "token", "call"):
            np.testing.assert_array_equal(getattr(rows, name), getattr(also, name))
        assert (rows.not_finite, rows.dropped) == (also.not_finite, also.dropped)


def test_finish_reads_the_rows_that_the_host_left(tmp_path, data):
    """A host with a GPU holds the lock while it runs and reads; what it leaves is what finish would read."""
    made = experiment(tmp_path, data)
    points, model = [HookPoint("a", shape=(1, 1, 8))], loaded()
    with announced(worker_of(tmp_path, made)) as rows:
        assert is_held(tmp_path / REREAD_LOCK)
        rows.leave(model, SimpleNamespace(points=points, device="cpu"))
    assert not is_held(tmp_path / REREAD_LOCK)
    again = read_for_report(made, tmp_path, model, points, watch=Unwatched())
    result = RunAnalysis()
    left = analysis._left_by_host(made, tmp_path, 3, result, Unwatched())
    same(left, again)
    assert result.missing == []
    seconds = {"seconds": 0.0}
    assert dataclasses.replace(left.extent, **seconds) == dataclasses.replace(again.extent, **seconds)
    assert analysis._left_by_host(made, tmp_path, 4, result, Unwatched()) is None  # another attempt's
    assert "the host left none, see its log; finish read its own" in result.missing[0]


@pytest.mark.parametrize(
    ("limits", "most"),
    [(("16Gi", "1Gi", "512Mi"), 128 * 2**20), (("1Gi", "64Gi", "64Mi"), 256 * 2**20)],
)
def test_a_host_reads_within_its_own_memory(tmp_path, data, monkeypatch, limits, most):
    """The host keeps rows in its own container, beside the model and its /dev/shm: a large finish is no
    reason to be killed behind a complete run. What it leaves fits finish, too.
    """
    made = experiment(tmp_path, data)
    resources = made.spec.resources.model_dump(by_alias=True)
    host = resources["host"]
    resources["finish"]["memory"], host["memory"], host["shm"] = limits
    spec = made.spec.model_copy(update={"resources": type(made.spec.resources).model_validate(resources)})
    made, budgets = made.model_copy(update={"spec": spec}), []

    def spent(*args, budget, **named):
        budgets.append(budget)
        return read_again(*args, budget=budget, **named)

    monkeypatch.setattr("asysi.finish.rereading.read_again", spent)
    with announced(worker_of(tmp_path, made)) as rows:
        rows.leave(loaded(), SimpleNamespace(points=[HookPoint("a", shape=(1, 1, 8))], device="cpu"))
    [budget] = budgets
    assert budget.memory == most
    read_for_report(made, tmp_path, loaded(), [HookPoint("a", shape=(1, 1, 8))], watch=Unwatched())
    assert budgets[1].memory == {"16Gi": 4 * 2**30, "1Gi": 256 * 2**20}[limits[0]]


def test_without_a_gpu_nothing_is_left(tmp_path, data):
    """The processor of finish is as good: no lock, no file."""
    made = experiment(tmp_path, data, gpus=0)
    with announced(worker_of(tmp_path, made)) as rows:
        rows.leave(loaded(), SimpleNamespace(points=[], device="cpu"))
    assert not list(tmp_path.glob("reread*"))
    assert analysis._left_by_host(made, tmp_path, 3, RunAnalysis(), Unwatched()) is None


def test_a_host_that_fails_to_read_does_not_fail(tmp_path, data, caplog):
    """What goes wrong while rows are read is logged; the run itself is done."""
    with announced(worker_of(tmp_path, experiment(tmp_path, data))) as rows:
        rows.leave(loaded(), SimpleNamespace(points=[HookPoint("nowhere")], device="cpu"))
    assert "no rows are left for the report" in caplog.text
    assert not (tmp_path / REREAD_FILE).exists()


@pytest.mark.parametrize(
    "damage",
    [
        "cut",
        "other",
        "longer",
        "infinite",
        "list",
        "nested",
        "token",
        "call",
        "values",
        "document",
        "content",
    ],
)
def test_rows_that_do_not_fit_are_not_taken(tmp_path, data, damage, monkeypatch):
    """A file that is cut, is another one, or whose parts do not fit is named, and finish reads itself."""
    again, file = read(data, ReadBudget(1000, 3600)), tmp_path / REREAD_FILE
    rows = again.activations["a"]
    if damage == "longer":
        rows = dataclasses.replace(rows, token=rows.token + 1)
    if damage == "infinite":
        rows.values[0, 0] = np.inf
    if damage in {"token", "call"}:
        rows = dataclasses.replace(rows, **{damage: getattr(rows, damage).astype(np.float64)})
    if damage == "values":
        rows = dataclasses.replace(rows, values=rows.values.astype(np.int64))
    sheet = again.sheet
    if damage in {"document", "content"}:
        sheet = dataclasses.replace(sheet, **{damage: getattr(sheet, damage).astype(np.float64)})
    if damage == "list":
        monkeypatch.setattr("asysi.finish.host_rows.dict", lambda _: [["a", 1]], raising=False)
    if damage == "nested":
        monkeypatch.setattr("asysi.finish.host_rows.json.dumps", lambda _: "[" * 100_000, raising=False)
    write_rows(file, dataclasses.replace(again, sheet=sheet, activations={"a": rows}), 0)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    if damage == "other":
        file.write_bytes(file.read_bytes().replace(b"asysi-reread-1", b"asysi-reread-9"))
    found, why = await_rows(tmp_path, 0, 1.0, Unwatched())
    assert found is None
    assert why.startswith("what the host left cannot be read: ")


def test_a_host_that_is_gone_is_not_waited_for(tmp_path):
    """The lock ends with its process; one that is held too long is given up."""
    script = "import sys, time; from asysi.files import held\nfrom pathlib import Path\n"
    script += "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    host = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / REREAD_LOCK], stdout=subprocess.PIPE, text=True
    )
    assert host.stdout.readline() == "held\n"
    now, watch = [0.0], Watched()

    def sleep(seconds):
        now[0] += seconds

    waiting = {"clock": lambda: now[0], "sleep": sleep}
    assert await_rows(tmp_path, 0, 5.0, watch, **waiting) == (None, "the host was still reading after 5 s")
    assert watch.beats >= 50
    host.kill()
    host.communicate()
    assert await_rows(tmp_path, 0, 5.0, watch) == (None, "the host left none, see its log")
    assert read_rows_left(tmp_path / REREAD_FILE, 0) is None


def test_the_name_of_the_reader_is_one(tmp_path):
    """What hosts call by its name is there; a lock that is held here is not waited for twice."""
    module, _, name = REREADER.partition(":")
    assert callable(getattr(sys.modules[module], name))
    assert not is_held(tmp_path / "none")
    with held(tmp_path / "one"):
        assert is_held(tmp_path / "one")
