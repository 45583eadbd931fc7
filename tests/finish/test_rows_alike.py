"""Archive, trainer and report hold the rows that plain forward hooks see, whatever a module does."""

import json
import uuid
from collections import defaultdict
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from asysi.archive.dataset import MScanDataset
from asysi.archive.series import Series
from asysi.bus.packet import ROW_DTYPE, RowFlag, parse_packet
from asysi.bus.ring import RingProducer
from asysi.capture.collector import Collector
from asysi.capture.hooks import ActivationHooker
from asysi.capture.rows import first_tensor, row_shape
from asysi.contract.spec import Data, Holdout, SaeTrain
from asysi.finish.budget import ReadBudget, Unwatched
from asysi.finish.rereading import join_rows, read_again
from asysi.hosts.unseen import planned_width
from asysi.model.loading import LoadedModel
from asysi.model.points import HookPoint
from asysi.sae.trainer import Trainer
from asysi.text.grid import StepTokens
from asysi_ring import Control, Reader, Writer, create

BATCH, LENGTH, WIDTH, TOKENS = 3, 5, 8, 64


class Block(torch.nn.Module):
    """A linear layer, used in one of the ways that models use modules."""

    def __init__(self, way, shared):
        super().__init__()
        self.way = way
        self.layer = shared if way == "shared" else torch.nn.Linear(WIDTH, WIDTH)
        self.act = torch.nn.ReLU(inplace=True)

    def forward(self, x, ids):
        y = self.layer(x)
        match self.way:
            case "in_place":
                self.act(y)
            case "in_place_later":
                y.mul_(3.0)
            case "repeated":
                y = self.layer(self.act(self.layer(y)))
            case "conditional" if int(ids[0, 0]) % 2:
                y = self.layer(y)
            case "part":
                self.layer(y[: int(ids[0, 0]) % BATCH + 1])
            case "tuple":
                return None, y, y + 1
            case "not_finite":
                bad = (ids % 5 == 0).unsqueeze(-1)
                y = torch.where(bad, torch.full_like(y, [np.nan, np.inf][int(ids[0, 0]) % 2]), y)
        return y


class Model(torch.nn.Module):
    """An embedding and blocks; a skipped block is called for some batches alone, a late one for all but the
    batch `first`.
    """

    def __init__(self, ways, skipped, late=None, first=None):
        super().__init__()
        self.embed = torch.nn.Embedding(TOKENS, WIDTH)
        shared = torch.nn.Linear(WIDTH, WIDTH)
        self.blocks = torch.nn.ModuleList(Block(way, shared) for way in ways)
        self.skipped, self.late, self.first = skipped, late, first

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for number, block in enumerate(self.blocks):
            if number == self.skipped and int(input_ids[0, 0]) % 3 == 0:
                continue
            if number == self.late and torch.equal(input_ids, self.first):
                continue
            x = first_tensor(block(x, input_ids)).nan_to_num(0.0, 1.0, -1.0).clone()
        return x


def tokens_of(step, ids):
    """The step's tokens; multiples of 7 are not data, the last sequence is held out."""
    grid = BATCH * LENGTH
    rows = np.zeros(grid, ROW_DTYPE)
    rows["sample"] = step * grid + np.arange(grid)
    rows["sequence"], rows["position"] = np.divmod(np.arange(grid), LENGTH)
    rows["token"] = ids.numpy().reshape(-1)
    rows["flags"] = np.where(rows["sequence"] == BATCH - 1, RowFlag.HOLDOUT, 0)
    return StepTokens(step, BATCH, LENGTH, rows, rows["token"] % 7 != 0)


def by_plain_hooks(model, paths, batches):
    """What each hook point returned: {path: {(token, call): row}}, content tokens of whole outputs alone."""
    found, calls = defaultdict(dict), defaultdict(int)

    def keep(path, step, content, output):
        call, values = calls[path, step], first_tensor(output)
        calls[path, step] += 1
        if row_shape(values.shape, BATCH, LENGTH) is None:
            return
        rows = values.detach().reshape(BATCH * LENGTH, -1).clone().numpy()
        for token in np.flatnonzero(content):
            found[path][step * BATCH * LENGTH + int(token), call] = rows[token].tobytes()

    for step, ids in enumerate(batches):
        content = tokens_of(step, ids).content
        handles = [
            model.get_submodule(path).register_forward_hook(
                lambda _m, _a, output, path=path, step=step, content=content: keep(
                    path, step, content, output
                )
            )
            for path in paths
        ]
        model(input_ids=ids)
        for handle in handles:
            handle.remove()
    return found


def run(model, points, producer, batches):
    """Run the batches under capture."""
    with ActivationHooker(model, points, producer) as hooker:
        for step, ids in enumerate(batches):
            hooker.step(tokens_of(step, ids))
            model(input_ids=ids)
            yield step
    assert hooker.errors == 0


def planned(model, path, late):
    """The hook point as it is planned when the trial forward saw the batch without the late block."""
    if path.startswith(f"blocks.{late}"):
        width = planned_width(model.get_submodule(path), [WIDTH])
        return HookPoint(path, shape=(BATCH, LENGTH, width), calls=0)
    return HookPoint(path)


def rows_in(packets):
    """The rows of packets: {path: {(sample, call): row}}, each once."""
    found = defaultdict(dict)
    for packet in packets:
        for record, row in zip(packet.rows, packet.payload, strict=True):
            key = int(record["sample"]), int(packet.header["call_index"])
            assert key not in found[packet.point]
            found[packet.point][key] = row.tobytes()
    return found


def drained(ring, names):
    """The packets in the ring, copied."""
    with Reader(ring, "hook") as reader:
        while views := reader.pull(16, 0.0):
            for view in views:
                yield parse_packet(memoryview(view.copy()), names)
                reader.consumed(view)
                view.release()
        reader.mark_durable()


def is_finite(row):
    return bool(np.isfinite(np.frombuffer(row, np.float32)).all())


WAYS = [
    "plain", "in_place", "in_place_later", "repeated", "conditional", "part", "tuple", "shared", "not_finite",
]  # fmt: skip


@pytest.fixture(scope="module")
def ring():
    """A capture ring that holds everything one example makes."""
    folder = Path("/dev/shm") / f"asysi-test-{uuid.uuid4().hex}"
    create(
        str(folder),
        shards=1,
        chunks=512,
        chunk_bytes=1 << 12,
        readers=["hook"],
        policy="drop_new",
        accounts=512,
    )
    yield str(folder)
    rmtree(folder)


@settings(max_examples=40, deadline=None)
@given(
    ways=st.lists(st.sampled_from(WAYS), min_size=1, max_size=4),
    skipped=st.sampled_from([None, 0, 1]),
    late=st.sampled_from([None, 0, 1]),
    seed=st.integers(0, 2**31),
)
def test_archive_trainer_and_report_hold_what_plain_hooks_see(ring, ways, skipped, late, seed):
    """Modules in place, repeated, conditional, shared, on part of a batch, with NaN, or first reached after
    the rings were planned: all of them agree.
    """
    torch.manual_seed(seed)
    batches = torch.randint(0, TOKENS, (3, BATCH, LENGTH))
    model = Model(ways, skipped, late, batches[0])
    paths = [name for name, _ in model.named_modules(remove_duplicate=False) if name.startswith("blocks.")]
    points = [planned(model, path, late) for path in paths]
    names = [point.path for point in points]
    config = SaeTrain(latents=16, k=4, batch=4)
    with torch.no_grad(), TemporaryDirectory() as folder:
        expected = by_plain_hooks(model, paths, batches)
        trainer = Trainer(config, Path(folder) / "trainer")
        series = Series(Path(folder), attempt=0, metadata={})
        with Writer(ring) as writer, Control(ring) as control:
            for _ in run(model, points, RingProducer(writer), batches):
                pass
            for packet in drained(ring, control.accounts()):
                series.append(packet)
                trainer.receive(packet, names, 0, 0)
        series.close()
        archived = {}
        if any(expected.values()):
            dataset = MScanDataset(Path(folder))
            archived = rows_in(dataset.packets())
            place = ["hook_point", "step", "sequence", "position", "call_index"]
            assert len(np.unique(dataset.metrics()[place])) == sum(map(len, expected.values()))
        collector, parts = Collector(), defaultdict(list)
        for _ in run(model, points, collector, batches):
            for path, rows in collector.take().items():
                parts[path].append(rows)
    assert {path: rows for path, rows in archived.items() if rows} == expected
    for path in paths:
        here = expected.get(path, {})
        finite = {key: row for key, row in here.items() if is_finite(row)}
        report = join_rows(parts[path])
        told = report and {
            (int(token), int(call)): row.tobytes()
            for token, call, row in zip(report.token, report.call, report.values, strict=True)
        }
        assert (told or {}) == finite
        assert (report.not_finite if report else 0) == len(here) - len(finite)
        training = trainer.trainings.get(path)
        if not here:
            assert training is None
            continue
        held = {key for key in finite if key[0] % (BATCH * LENGTH) >= (BATCH - 1) * LENGTH}
        counts, (tensors, _) = training.counts, training.state()
        assert (counts.received, counts.not_finite) == (len(here), len(here) - len(finite))
        assert (counts.held_out, counts.trained) == (len(held), 0)  # the buffer is larger than the run
        for name, keys in (("held", held), ("buffer", finite.keys() - held)):
            assert sorted(row.tobytes() for row in tensors[name].numpy()) == sorted(
                finite[key] for key in keys
            )


class Looped(torch.nn.Module):
    """Embedding, a Linear whose output the next module changes in place, and one that is called twice."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(TOKENS, WIDTH)
        self.a, self.b = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.act = torch.nn.ReLU(inplace=True)

    def forward(self, input_ids, attention_mask=None):
        return self.b(self.b(self.act(self.a(self.embed(input_ids)))))


def letters():
    """A tokenizer of letters without special tokens but padding."""
    vocabulary = {letter: number for number, letter in enumerate("*abcdefghijklmnopqrstuvwxyz ")}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="*"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="*")


def test_the_report_reads_rows_as_training_did(tmp_path):
    """Each hook point's rows are those of its own output at its own call, whatever comes after it."""
    torch.manual_seed(0)
    model = Looped()
    texts = ["the model must not notice", "a hook", "which row is whose", "in place", "twice"]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = Data(uri=f"jsonl://{tmp_path}/text.jsonl", holdout=Holdout(share=0.5))
    again = read_again(
        LoadedModel(model, letters(), None), [HookPoint("a"), HookPoint("b")], data,
        passes=1, max_samples=None, seed=0, budget=ReadBudget(20_000, 3600), watch=Unwatched(),
    )  # fmt: skip
    tokens = torch.from_numpy(again.sheet.tokens)
    with torch.no_grad():
        a = model.a(model.embed(tokens))
        first = model.b(a.relu())
        second = model.b(first)
    assert (a < 0).any()
    assert len(tokens) == sum(map(len, texts))
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(again.activations["a"].values, a.numpy(), **close)
    b = again.activations["b"]
    assert b.token.tolist() == np.repeat(np.arange(len(tokens)), 2).tolist()
    assert b.call.tolist() == [0, 1] * len(tokens)
    np.testing.assert_allclose(b.values[::2], first.numpy(), **close)
    np.testing.assert_allclose(b.values[1::2], second.numpy(), **close)
