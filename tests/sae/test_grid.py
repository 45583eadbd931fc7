"""A grid of autoencoders shares one stream, one mixing buffer and one order of rows."""

import json

import pytest
import torch
from tests.sae.conftest import (
    STEPS,
    WIDTH,
    a_resumed_training_ends_on_the_same_bits,
    a_training,
    feed,
    finish,
)

from asysi.contract.errors import ConfigError
from asysi.contract.grid import members
from asysi.contract.loading import check
from asysi.contract.spec import SaeTrain
from asysi.sae.trainer import Trainer
from asysi.sae.training import Training

SMALL = {
    "latents": 64, "k": 4, "batch": 32, "buffer": {"batches": 4, "sequences": 20}, "auxk": {"deadAfter": 200},
}  # fmt: skip
GRID = {"k": [4, 8], "latents": [64, 96], "seeds": [0, 1]}


def entry(**changes):
    return SaeTrain.model_validate({**SMALL, **changes})


def a_grid(config):
    first, *others = members(config)
    return Training(first, "layer.0", WIDTH, torch.float32, 1 << 26, followers=others)


def test_members_are_all_combinations():
    """Each combination has its name and its values; without a grid the trainer is its only member."""
    found = members(entry(name="t", grid=GRID))
    assert [one.name for one in found][:3] == [
        "t-k4-latents64-seed0",
        "t-k4-latents64-seed1",
        "t-k4-latents96-seed0",
    ]
    assert {(one.k, one.latents, one.seed) for one in found} == {
        (k, latents, seed) for k in (4, 8) for latents in (64, 96) for seed in (0, 1)
    }
    assert members(found[0]) == [found[0]]
    assert [one.name for one in members(entry(name="t", grid={"seeds": [3, 3, 5]}))] == ["t-seed3", "t-seed5"]


@pytest.mark.parametrize("variant", ["topk", "batchtopk"])
def test_a_member_is_what_it_would_be_alone(variant):
    """The first member, and each that differs from it in k alone, ends on the bits of a run of its own."""
    grid, alone = a_grid(entry(variant=variant, grid={"k": [4, 8]})), []
    with torch.inference_mode():
        feed(grid, range(STEPS))
        finish(grid)
        for config in members(entry(variant=variant, grid={"k": [4, 8]})):
            alone.append(a_training(config))
            feed(alone[-1], range(STEPS))
            finish(alone[-1])
    for member, one in zip(grid.members, alone, strict=True):
        assert torch.equal(member.sae.parameters, one.sae.parameters)
        assert torch.equal(member.frozen().parameters, one.frozen().parameters)
        assert member.progress.curve == one.progress.curve
        assert member.counts.trained == one.counts.trained


def test_members_differ_and_share_the_rows():
    """All are trained on the same rows; seeds and sizes make different autoencoders of similar quality."""
    grid = a_grid(entry(grid=GRID))
    with torch.inference_mode():
        feed(grid, range(STEPS))
        finish(grid)
        grid.conclude()
    reports = [one.report() for one in grid.members]
    assert len({json.dumps([r[name] for name in ("received", "trained", "held_out")]) for r in reports}) == 1
    assert len({r["fvu"] for r in reports}) == 8
    for (_, latents, k), report in zip(
        ((m, m.sae.latents, m.sae.k) for m in grid.members), reports, strict=True
    ):
        assert latents in {64, 96}
        assert 0 < report["l0"] <= k
        assert report["fvu"] < 0.6
    assert len({id(one._buffer) for one in grid.members}) == len({id(one._held) for one in grid.members}) == 1


def test_a_resumed_grid_ends_on_the_same_bits(tmp_path):
    """A checkpoint holds every member, and rows and evaluation set once."""
    config = entry(grid=GRID, ema=0.9)
    tensors = a_resumed_training_ends_on_the_same_bits(config, tmp_path, (3, 60), a_grid)
    assert sum("buffer" in name for name in tensors) == 1


def test_a_trainer_names_its_results(tmp_path):
    """Each member has its name among the results, with the training of every hook point."""
    trainer = Trainer(entry(name="t", grid={"seeds": [0, 1]}), tmp_path / "t.ckpt")
    trainer.trainings["layer.0"] = trainer._begin("layer.0", WIDTH, torch.float32, 1 << 26)
    results = trainer.results()
    assert list(results) == ["t-seed0", "t-seed1"]
    assert results["t-seed1"]["layer.0"].config.seed == 1


@pytest.mark.parametrize(
    ("trainers", "said"),
    [
        ([{"grid": {"k": [8, 2000]}}], "is 2000, but the trainer has only 1024 latents"),
        (
            [{"grid": {"k": list(range(1, 17)), "seeds": [0, 1, 2, 3, 4]}}],
            "has 80 combinations, more than 64",
        ),
        ([{"name": "t", "grid": {"k": [8]}}, {"name": "t-k8"}], "'t-k8', which another trainer has"),
    ],
)
def test_mistakes_are_named(minimal, trainers, said):
    """Too many combinations, a k beyond the latents, and a name that is taken are refused."""
    with pytest.raises(ConfigError, match=said):
        check(minimal({"sae": {"train": trainers}}))
