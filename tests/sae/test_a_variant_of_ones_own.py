"""A variant that this file alone knows, from the stream to the report's features.

It is a ReLU autoencoder with an L1 penalty that rises over the first rows: its gradient is autograd's, no k
bounds its latents, it keeps a tensor of its own, and it gives dead latents new directions. Beside the class
it takes a model of its settings and a line in the table: what docs/extending.md says.
"""

import json
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import pytest
import torch
from pydantic import Field
from tests.bus.memory import MemoryBus

from asysi.bus.packet import HEADER_DTYPE, ROW_DTYPE, ActivationPacket, Dtype, RowFlag
from asysi.bus.states import ReaderState, StreamEnd
from asysi.contract import variants
from asysi.contract.errors import ConfigError
from asysi.contract.runtime import Container, Exit
from asysi.contract.spec import Part, Sae, SaeTrain, ScanExperiment
from asysi.finish import features, provenance
from asysi.finish.analysis import find_exports
from asysi.finish.reread_tokens import RereadTokens, every_token
from asysi.monitor.worker import Worker
from asysi.sae.checkpoint import read_checkpoint
from asysi.sae.export import load
from asysi.sae.initial import directions
from asysi.sae.sparse import SparseLatents
from asysi.sae.trainer import Trainer
from asysi.sae.training import Training
from asysi.sae.variants.base import Objective, SparseAutoencoder, spread
from asysi.sae.worker import READER, SAETrainerWorker

WIDTH, LATENTS, POINT = 16, 64, "layer.0"


class Own(Part):
    """Settings of the variant."""

    l1: Annotated[float, Field(ge=0)] = 0.02
    """Weight of the L1 penalty."""
    warm_up: Annotated[int, Field(ge=1)] = 500
    """Rows over which it rises to that."""


class OwnTrain(SaeTrain):
    """A trainer's entry with the variant's settings: in the schema these would be a field of `SaeTrain`."""

    variant: Literal["own"] = "own"
    own: Own = Own()


class ReLU(SparseAutoencoder):
    """latents = ReLU((x - b_dec) W_enc + b_enc), reconstruction = latents W_dec + b_dec; unit rows."""

    architecture = "own"
    W_enc: torch.Tensor
    b_enc: torch.Tensor

    def __init__(self, width, latents, own):
        sizes = {"W_enc": (width, latents), "b_enc": (latents,), "W_dec": (latents, width), "b_dec": (width,)}
        super().__init__(width, width, latents, sizes, state={"usage": torch.zeros(latents)})
        self.own = own

    @classmethod
    def from_spec(cls, config, d_in, d_out):
        return cls(d_in, config.latents, config.own)

    @classmethod
    def describe(cls, config):
        return f"L1 {config.own.l1:g}"

    def initialise_from(self, rows, targets, rng):
        self.b_dec.copy_(rows.mean(0))
        self.W_dec.copy_(directions(rows - self.b_dec, self.latents, rng))
        self.constrain()
        self.W_enc.copy_(self.W_dec.T / 2)

    def loss(self, x, y, context):
        latents = self._dense(x)
        error = self.decode(latents) - y
        self.state["usage"].lerp_((latents.detach() > 0).to(x.dtype).mean(0), 0.1)
        penalty = latents.sum() * self.own.l1 * min(1.0, (context.trained + 1) / self.own.warm_up)
        return Objective((error.square().sum() + penalty) / spread(y), error, latents > 0)

    def constrain(self):
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))

    def revive(self, x, y, dead, moments, rng):
        self.W_dec[dead] = directions(x - self.b_dec, len(dead), rng)
        self.constrain()
        self.W_enc[:, dead], self.b_enc[dead] = self.W_dec[dead].T / 2, 0
        for one in moments:
            one["W_dec"][dead] = 0
            one["W_enc"][:, dead] = 0
            one["b_enc"][dead] = 0
        return dead

    def activate(self, x):
        return SparseLatents.from_dense(self._dense(x))

    def _dense(self, x):
        return torch.addmm(self.b_enc, x - self.b_dec, self.W_enc).relu()

    def frozen(self, scale, target_scale):
        folded = self.to(self.parameters.dtype)
        folded.b_enc.div_(scale)
        folded.b_dec.div_(scale)
        return folded

    def exported(self):
        names = ("W_enc", "b_enc", "W_dec", "b_dec")
        return {"architecture": "own"}, {name: getattr(self, name) for name in names}

    @classmethod
    def from_export(cls, config, tensors):
        sae = cls(config["d_in"], config["d_sae"], Own())
        for name, tensor in tensors.items():
            getattr(sae, name).copy_(tensor)
        return sae


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(variants.VARIANTS, "own", f"{__name__}:ReLU")


def an_entry(**changes):
    small = {
        "name": "mine", "latents": LATENTS, "batch": 32, "lr": 5e-3,
        "buffer": {"batches": 4, "sequences": 20}, "auxk": {"deadAfter": 200},
    }  # fmt: skip
    return OwnTrain.model_validate({**small, **changes})


def test_it_conforms(check, tmp_path):
    """Each check of conftest.py holds for it as for the variants of the table."""
    check(an_entry(), tmp_path)


def packet(step, rows=24):
    """Return sparse mixtures of fixed directions in float32; the third sequence is held out."""
    rng = np.random.default_rng(step)
    basis = np.random.default_rng(7).normal(size=(40, WIDTH))
    values = (rng.exponential(size=(rows, 40)) * (rng.random((rows, 40)) < 0.08)) @ basis + 0.3
    header = np.zeros(1, HEADER_DTYPE)[0]
    header["step"] = header["sequence"] = step
    header["rows"], header["width"], header["dtype"] = rows, WIDTH, Dtype.FLOAT32
    records = np.zeros(rows, ROW_DTYPE)
    records["sequence"] = np.arange(rows) // 8
    records["sample"], records["position"] = step * 3 + records["sequence"], np.arange(rows) % 8
    records["flags"][records["sequence"] == 2] = RowFlag.HOLDOUT
    return ActivationPacket(header, POINT, records, None, values.astype(np.float32))


def push(bus, steps, end=None):
    """Publish the packets of some steps, and end the stream when told how."""
    producer = bus.producer()
    for step in steps:
        assert producer.push(packet(step))
    producer.close() if end is None else producer.end(end)


def run(minimal, folder, bus):
    """Run the worker until the stream ends or, as by SIGTERM, until it has read what there is."""
    experiment = ScanExperiment.model_validate(minimal())
    spec = experiment.spec.model_copy(update={"sae": Sae(train=[an_entry()])})
    experiment = experiment.model_copy(update={"spec": spec})
    frame = Worker(Container.SAE, experiment, folder / "shm", folder / "output", folder / "ws", 0, port=0)
    with torch.inference_mode(), bus.consumer(READER) as stream:
        pull = stream.pull

        def pull_or_stop(limit, timeout):
            frame.stop.terminated = not (packets := pull(limit, timeout)) and stream.ended() is None
            return packets

        stream.pull = pull_or_stop
        assert SAETrainerWorker(frame, stream).run() == Exit.OK


def test_it_goes_from_the_stream_to_the_reports_features(minimal, tmp_path):
    """The worker trains, exports and accounts for every row; the report finds features in what is loaded."""
    bus = MemoryBus([READER], depth=512)
    push(bus, range(300), StreamEnd.COMPLETE)
    run(minimal, tmp_path, bus)
    [books] = bus.control().consumed(READER)
    assert (books["durable"], books["lapped"]) == (300 * 24, 0)
    assert bus.control().reader_state(READER) is ReaderState.FINALISED
    record = json.loads((tmp_path / "output/sae/mine/training.json").read_text())["points"][POINT]
    assert (record["received"], record["held_out"], record["trained"]) == (300 * 24, 300 * 8, 300 * 16)
    assert record["fvu"] < 0.5
    assert 0 < record["l0"] < LATENTS
    assert record["curve"][0][2] > record["curve"][-1][2]
    checkpoint = read_checkpoint(tmp_path / "output/checkpoints/mine.ckpt")
    assert checkpoint.words["trainer"]["own"] == {"l1": 0.02, "warm_up": 500}
    assert 0 < checkpoint.tensors[f"{POINT}/variant.usage"].mean() < 1
    [export] = find_exports(tmp_path / "output")
    sae = load(export.folder)
    assert isinstance(sae, ReLU)
    x = np.concatenate([packet(step).payload for step in range(900, 950)])
    tokens = np.arange(len(x))
    text = RereadTokens(
        tokens % 7 + 1, tokens // 24, np.ones(len(x), np.bool_), np.arange(50, dtype=np.uint64),
        np.arange(50) % 2 == 0,
    )  # fmt: skip
    question = features.MeasureOptions(k=None, quantization="none", seed=0, shown=LATENTS, sentence=0)
    looked = features.measure_sae(POINT, sae, every_token(x), text, question)
    held = x[text.held_tokens]
    fires = sae.encode(torch.from_numpy(held)).numpy() > 0
    assert (fires.sum(1).min(), fires.sum(1).max()) != (looked.layer.l0, looked.layer.l0)  # there is no k
    assert looked.layer.l0 == pytest.approx(fires.sum(1).mean())
    assert looked.layer.fvu_content == pytest.approx(record["fvu"], rel=0.2)
    assert looked.layer.dead == pytest.approx((fires.sum(0) == 0).mean())
    assert len(looked.features.latents) > LATENTS / 2
    assert (looked.features.explained > 0).any()


def test_a_resumed_run_ends_where_an_uninterrupted_one_ends(minimal, tmp_path):
    """A worker that resumes from a checkpoint in the middle leaves the same bits, own tensors included."""
    for name, cuts in (("whole", [0, 120]), ("cut", [0, 7, 64, 120])):
        bus = MemoryBus([READER], depth=512)
        for start, stop in pairwise(cuts):
            push(bus, range(start, stop), StreamEnd.COMPLETE if stop == 120 else None)
            run(minimal, tmp_path / name, bus)
    one, other = (
        read_checkpoint(tmp_path / name / "output/checkpoints/mine.ckpt") for name in ("whole", "cut")
    )
    assert one.words["points"] == other.words["points"]
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name


def test_dead_latents_come_back():
    """`revive` gives dead latents new parameters, and they no longer count as dead."""
    training = Training(an_entry(), POINT, WIDTH, torch.float32, 1 << 26)
    rows = torch.from_numpy(np.concatenate([packet(step).payload for step in range(40)]))
    with torch.inference_mode():
        training.begin(rows)
        training.sae.b_enc[:10] = -100.0
        for _ in range(7):
            training.learn(rows[:32])
        assert training.dead_share >= 10 / LATENTS
        assert training.sae.b_enc[:10].max() < -50
        training.learn(rows[:32])
        assert training.dead_share == 0
        assert training.sae.b_enc[:10].min() == 0
        assert training.sae.activate(rows).dense()[:, :10].any(0).sum() > 5
        tensors, _ = training.state()
        assert not training.sae.named(tensors["adam.mean"])["W_dec"][:10].any()


def test_the_report_names_its_settings(minimal):
    """Where other trainers say k, this one says what it is told."""
    assert "64 latents, L1 0.02" in provenance._trainer(an_entry())


def test_a_checkpoint_of_other_settings_is_refused(minimal, tmp_path):
    """The variant's own settings are compared like all others."""
    bus = MemoryBus([READER])
    push(bus, range(20), StreamEnd.COMPLETE)
    run(minimal, tmp_path, bus)
    other = Trainer(an_entry(own={"l1": 0.5}), tmp_path / "output/checkpoints/mine.ckpt")
    with pytest.raises(ConfigError, match="own"):
        other.load(0)
