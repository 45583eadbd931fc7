"""Two checkpoints against each other, and the weights part of an experiment."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from asysi.contract.spec import Weights
from asysi.weights.comparing.compare import DIFFERENCE_COLUMNS, compare, totals
from asysi.weights.reading.checkpoint import open_checkpoint
from asysi.weights.run.experiment import analyse_weights, checkpoint_of, sources_of

GENERATOR = np.random.default_rng(0)
BASE = {
    "model.layers.0.self_attn.q_proj.weight": GENERATOR.standard_normal((48, 96)).astype("f4"),
    "model.layers.0.mlp.down_proj.weight": GENERATOR.standard_normal((80, 40)).astype("f4"),
    "model.layers.0.input_layernorm.weight": np.ones(48, "f4"),
    "model.norm.weight": np.ones(48, "f4"),
    "old": np.ones(3, "f4"),
    "reshaped": np.ones((2, 3), "f4"),
}


def pair(tmp_path, **changes):
    """Two checkpoints: BASE, and BASE with changes; None removes."""
    for name, tensors in (("a", BASE), ("b", {k: v for k, v in (BASE | changes).items() if v is not None})):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    return tmp_path / "a", tmp_path / "b"


def compared(a, b, **options):
    with open_checkpoint(a) as first, open_checkpoint(b) as second:
        done = compare(first, second, **options)
    return {row["param_name"]: row for row in done.rows}, done


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"]
)
def test_every_figure_is_numpy_s(tmp_path, name):
    """Norms, spectra and angles of a planted change of rank 3 are those of numpy in float64."""
    w = BASE[name]
    delta = 0.1 * GENERATOR.standard_normal((w.shape[0], 3)) @ GENERATOR.standard_normal((3, w.shape[1]))
    changed = (w + delta).astype("f4")
    rows, _ = compared(*pair(tmp_path, **{name: changed}), k=5)
    row, one, two = rows[name], w.astype("f8"), changed.astype("f8")
    s = np.linalg.svd(two - one, compute_uv=False)
    (u1, s1, v1), (u2, s2, v2) = (np.linalg.svd(x, full_matrices=False) for x in (one, two))
    shares = s / s.sum()

    def angles(x, y):
        return np.degrees(np.arccos(np.clip(np.linalg.svd(x.T @ y, compute_uv=False), 0, 1)))

    left, right = angles(u1[:, :5], u2[:, :5]), angles(v1[:5].T, v2[:5].T)
    truth = {
        "norm_a": np.linalg.norm(one),
        "norm_b": np.linalg.norm(two),
        "delta_norm": np.linalg.norm(two - one),
        "delta_relative": np.linalg.norm(two - one) / np.linalg.norm(one),
        "delta_max": np.abs(two - one).max(),
        "cosine": (one * two).sum() / np.linalg.norm(one) / np.linalg.norm(two),
        "delta_sigma_max": s[0],
        "delta_stable_rank": np.square(s).sum() / s[0] ** 2,
        "delta_effective_rank": np.exp(-(shares * np.log(shares)).sum()),
        "sigma_shift": np.abs(s1 - s2).max() / s1[0],
        "angle_left_max": left.max(),
        "angle_left_mean": left.mean(),
        "angle_right_max": right.max(),
        "angle_right_mean": right.mean(),
    }
    for key, value in truth.items():
        print(f"{key:>22} {row[key]:.10g} error {abs(row[key] - value):.1g}")
        assert row[key] == pytest.approx(float(value), rel=1e-6, abs=1e-9), key
    assert (row["status"], row["changed"], row["delta_rank_f32tol"]) == (
        "changed",
        int((one != two).sum()),
        3,
    )


def test_statuses(tmp_path):
    """What is the same, added, removed or reshaped is said so, and nothing is left out."""
    rows, done = compared(*pair(tmp_path, old=None, new=np.ones(2, "f4"), reshaped=np.ones(6, "f4")))
    assert {name: row["status"] for name, row in rows.items()} == {
        **dict.fromkeys(list(BASE)[:4], "same"),
        "old": "removed",
        "new": "added",
        "reshaped": "reshaped",
    }
    assert rows["reshaped"]["note"] == "(2, 3) before, (6,) after"
    assert all(set(row) == {column.name for column in DIFFERENCE_COLUMNS} for row in done.rows)
    assert totals(done.rows)["delta_relative"] == 0.0


def test_another_type_with_equal_values_is_the_same(tmp_path):
    """Values decide: ones as float16 are the ones that they were."""
    rows, _ = compared(*pair(tmp_path, **{"model.norm.weight": np.ones(48, "f2")}))
    row = rows["model.norm.weight"]
    assert (row["status"], row["dtype"], row["delta_norm"]) == ("same", "float32 → float16", 0.0)


def test_nan_in_one(tmp_path):
    """A NaN is a change, costs the spectrum, and is not called a change of zero."""
    name = "model.layers.0.mlp.down_proj.weight"
    broken = BASE[name].copy()
    broken[0, 0] = np.nan
    rows, _ = compared(*pair(tmp_path, **{name: broken}))
    assert (rows[name]["status"], rows[name]["changed"], rows[name]["delta_norm"]) == ("changed", 1, None)
    assert rows[name]["delta_sigma_max"] is None
    assert "not finite" in rows[name]["note"]


def test_a_lost_tensor_fails_and_the_others_are_compared(tmp_path):
    """A file that is cut loses its last tensor: it is `failed`, not `removed`, and listed."""
    a, b = pair(tmp_path)
    file = b / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    rows, done = compared(a, b)
    lost = [name for name, row in rows.items() if row["status"] == "failed"]
    assert len(lost) == 1
    assert list(done.problems[0].tensors) == lost
    assert all(row["status"] == "same" for name, row in rows.items() if name not in lost)


class TestExperiment:
    """What finish does with `spec.weights`."""

    def resolved(self, path):
        return SimpleNamespace(uri=f"file://{path}", path=str(path) if path else None, revision=None)

    def table(self, folder, name):
        with (folder / name).open() as stream:
            return list(csv.DictReader(stream))

    def test_a_workload_that_trains(self, tmp_path):
        """The model in the output is `after`: three tables, the difference on the page and in words."""
        name = "model.layers.0.mlp.down_proj.weight"
        a, b = pair(tmp_path, **{name: BASE[name] * np.float32(1.5)})
        output = tmp_path / "out"
        output.mkdir()
        b.rename(output / "model")
        beats = []
        found = analyse_weights(
            Weights(enabled=True), sources_of(self.resolved(a), output, list), output / "weights",
            beat=lambda: beats.append(1),
        )  # fmt: skip
        assert not found.problems
        assert "1 changed, 5 same" in found.summary
        assert beats
        folder = output / "weights"
        difference = {row["param_name"]: row for row in self.table(folder, "difference.csv")}
        assert float(difference[name]["delta_relative"]) == pytest.approx(0.5)
        assert len(self.table(folder, "before.csv")) == len(self.table(folder, "after.csv")) == len(BASE)
        assert "What changed" in (folder / "report.html").read_text()
        assert json.loads((folder / "run_meta.json").read_text())["sources"]["after"]["revision"] == "trained"

    def test_a_workload_that_does_not(self, tmp_path):
        """Without a trained model there is no after: no table pretends one, and the summary says why."""
        a, _ = pair(tmp_path)
        found = analyse_weights(
            Weights(enabled=True), sources_of(self.resolved(a), tmp_path / "out", list), tmp_path / "weights"
        )
        assert "6 parameters before the run analysed" in found.summary
        assert "no after and no difference: a scan changes no parameter" in found.summary
        assert {file.name for file in (tmp_path / "weights").glob("*.csv")} == {"before.csv"}

    def test_again(self, tmp_path):
        """A second finish analyses no tensor that has not changed: after takes the rows of before by hash."""
        name = "model.norm.weight"
        a, b = pair(tmp_path, **{name: BASE[name] * 2})
        b.rename(tmp_path / "model")
        analyse_weights(
            Weights(enabled=True), sources_of(self.resolved(a), tmp_path, list), tmp_path / "weights"
        )
        meta = json.loads((tmp_path / "weights" / "run_meta.json").read_text())
        assert meta["reused"] == len(BASE) - 1

    @pytest.mark.parametrize(("when", "files"), [(["before"], {"before.csv"}), (["after"], {"after.csv"})])
    def test_only_one(self, tmp_path, when, files):
        """`when` chooses: one table, no difference."""
        a, b = pair(tmp_path)
        b.rename(tmp_path / "model")
        sources = sources_of(self.resolved(a), tmp_path, list)
        found = analyse_weights(Weights(enabled=True, when=when), sources, tmp_path / "weights")
        assert not found.problems
        assert {file.name for file in (tmp_path / "weights").glob("*.csv")} == files

    def test_a_factory(self, tmp_path):
        """A model that comes from no files is analysed as a module, bfloat16 exactly."""
        module = torch.nn.Linear(4, 3).to(torch.bfloat16)
        with checkpoint_of(module, "python://a:b") as checkpoint:
            weight = checkpoint.tensors["weight"]
            assert str(weight.dtype) == "bfloat16"
            np.testing.assert_array_equal(weight.array().astype("f4"), module.weight.detach().float().numpy())
        sources = sources_of(self.resolved(None), tmp_path, lambda: module)
        found = analyse_weights(Weights(enabled=True), sources, tmp_path / "weights")
        assert "2 parameters before" in found.summary
        assert not found.problems

    def test_a_broken_model_is_a_problem_not_a_crash(self, tmp_path):
        """Whatever goes wrong is a sentence in the run's report."""
        found = analyse_weights(
            Weights(enabled=True),
            sources_of(self.resolved(tmp_path / "gone"), tmp_path, list),
            tmp_path / "weights",
        )
        assert len(found.problems) == 1
        assert "there is no" in found.problems[0]
