"""What every analysis says of itself: its plan, its checks, its errors, its origin."""

import json
import subprocess

import fsspec
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save, save_file
from typer.testing import CliRunner

import asysi
from asysi.weights.commands import app
from asysi.weights.run.download import default_folder, download
from asysi.weights.tables.export import code_version, read_table, write_table


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(folder, name):
    return json.loads((folder / name).read_text())


@pytest.fixture
def model(tmp_path):
    """A folder with four matrices of three types."""
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    x = np.random.default_rng(0).standard_normal((40, 30))
    save_file({"a.0.weight": x, "a.1.weight": x.astype("f4"), "b.weight": x.astype("f2"), "n": np.arange(9)},
              folder / "model.safetensors")  # fmt: skip
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("command", ["analyze", "run"])
def test_plan_and_checks(model, tmp_path, command):
    """Both commands leave a plan with goal, inputs and the state of each step, and what was checked."""
    out = tmp_path / "out"
    assert run(command, model, "-o", out, "--include", "a.*", "--revision", "v1").exit_code == 0
    plan = said(out, "plan.json")
    steps = {step["name"]: step["state"] for step in plan["steps"]}
    assert steps == {
        **({"download": "skipped"} if command == "run" else {}),
        "read": "done", "analyze": "done", "export": "done", "check": "done",
    }  # fmt: skip
    assert all(step["does"] and step["done_when"] for step in plan["steps"])
    inputs = plan["inputs"]
    assert (inputs["model"], inputs["revision"], inputs["device"]) == (str(model), "v1", "cpu")
    assert inputs["filter"] == {"include": ["a.*"], "exclude": []}
    assert "as stored" in inputs["precision"]
    check = said(out, "check.json")
    assert (check["rows"], check["failures"], len(check["spot_checks"])) == (2, [], 2)
    assert said(out, "run_meta.json")["filter"]["parameters"] == "2 of 4 parameters"
    assert (out / "report.html").exists() == (command == "run")
    assert all(step["name"] != "download" for step in plan["steps"]) or command == "run"


def test_analyze_checks_what_it_exported(model, tmp_path, monkeypatch):
    """A table that numpy contradicts, or that lacks a row, is exit code 1 with the reason."""
    from asysi.weights.run import orchestrator

    def spoilt(rows, file, form):
        return write_table([{**row, "mean": 1e3} for row in rows[1:]], file, form)

    monkeypatch.setattr(orchestrator, "write_table", spoilt)
    done = run("analyze", model, "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert "the table has 3 rows, 4 tensors were to be analysed" in done.stderr
    assert "numpy says" in done.stderr


@pytest.mark.parametrize("stats", ["full", "basic"])
def test_the_check_holds_for_every_kind_of_number(tmp_path, stats):
    """Complex numbers, numbers beyond float64's squares, NaNs and empty tensors are no false alarm."""
    x = np.random.default_rng(1).standard_normal((50, 40))
    tensors = {
        "complex": (x + 2j).astype("c8"), "large": np.full((4, 3), 1e300), "nan": np.full(3, np.nan),
        "empty": np.zeros((0, 3)), "b": (x + 100).astype(ml_dtypes.bfloat16), "f": (x * 1e-20).astype("f4"),
        "int": np.array([2**62, -5]), "bool": np.array([True, False]),
    }  # fmt: skip
    (tmp_path / "model.safetensors").write_bytes(save(tensors))
    for seed in range(3):  # each picks other tensors
        done = run("analyze", tmp_path, "-o", tmp_path / f"{seed}", "--stats", stats, "--seed", seed)
        assert done.exit_code == 0, done.output
        assert said(tmp_path / f"{seed}", "check.json")["failures"] == []


def test_errors_are_logged_with_name_and_shape(model, tmp_path, monkeypatch):
    """What could not be analysed is in errors.log, a line each; the next whole analysis removes it."""
    from asysi.weights.statistics import analysis

    def measured(tensor, settings, real=analysis._measured):
        if tensor.name.startswith("a."):
            raise OverflowError(34, "out of\nrange")
        return real(tensor, settings)

    with monkeypatch.context() as patched:
        patched.setattr(analysis, "_measured", measured)
        assert run("analyze", model, "-o", tmp_path / "out").exit_code == 1
    first, second = (tmp_path / "out" / "errors.log").read_text().splitlines()
    assert "a.0.weight (40, 30): OverflowError" in first + second
    assert " ERROR asysi.weights AnalysisError: " in first
    assert len(read_table(tmp_path / "out" / "params.csv")) == 2
    assert run("analyze", model, "-o", tmp_path / "out").exit_code == 0
    assert not (tmp_path / "out" / "errors.log").exists()


@pytest.mark.parametrize("command", ["analyze", "run"])
def test_files_that_are_not_read(model, tmp_path, command):
    """A variant beside the model is named on stderr and in run_meta.json."""
    save_file({"x": np.ones(3)}, model / "model.fp16.safetensors")
    done = run(command, model, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "note: " in done.stderr
    assert "model.fp16.safetensors" in done.stderr
    assert "model.fp16.safetensors" in " ".join(said(tmp_path / "out", "run_meta.json")["notes"])


def test_run_takes_a_store(tmp_path):
    """An address of a store is read where it is: nothing is fetched, the rows say the address."""
    with fsspec.open("memory://weights/tiny/model.safetensors", "wb") as stream:
        stream.write(save({"w": np.ones((3, 2))}))
    done = run("run", "memory://weights/tiny", "-o", tmp_path / "out", "--models", tmp_path / "m")
    assert done.exit_code == 0, done.output
    (row,) = read_table(tmp_path / "out" / "params.csv")
    assert (row["model_path"], row["model_id"]) == ("memory://weights/tiny", "tiny")
    assert not (tmp_path / "m").exists()


def test_the_name_of_a_model_survives_its_copy(model, tmp_path):
    """A model copied out of …/name/model is called name, also in the table of the copy."""
    source = tmp_path / "packages" / "minilm" / "model"
    model.rename(source.parent.mkdir(parents=True) or source)
    folder = default_folder(tmp_path / "data", str(source))
    download(str(source), folder)
    assert run("analyze", folder, "-o", tmp_path / "out").exit_code == 0
    (name,) = {row["model_id"] for row in read_table(tmp_path / "out" / "params.csv")}
    assert name == "minilm"


def test_seed(model, tmp_path):
    """One seed, one table; another draws other directions; run_meta.json says which it was."""
    found = []
    for number, seed in enumerate((3, 3, 4)):
        out = tmp_path / str(number)
        run("analyze", model, "-o", out, "--method", "randomized", "--rank-k", 2, "--seed", seed)
        found.append(
            {row["param_name"]: row["top_singular_values"] for row in read_table(out / "params.csv")}
        )
        assert said(out, "run_meta.json")["seed"] == seed
    assert found[0] == found[1]
    assert found[0]["a.0.weight"] != found[2]["a.0.weight"]


class TestCodeVersion:
    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        """asysi as if its files were in a folder of its own, inside a repository."""
        for key in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
            monkeypatch.delenv(key, raising=False)
        file = tmp_path / "lib" / "asysi" / "__init__.py"
        file.parent.mkdir(parents=True)
        file.write_text("")
        (tmp_path / "other").write_text("")
        git(tmp_path, "init", "-q")
        monkeypatch.setattr(asysi, "__file__", str(file))
        code_version.cache_clear()
        yield tmp_path
        code_version.cache_clear()

    def test_a_checkout(self, package):
        """From a checkout the version has the commit, and says when files differ from it."""
        commit = committed(package, ".")
        assert code_version() == f"{asysi.__version__}+g{commit}"
        code_version.cache_clear()
        (package / "lib" / "asysi" / "__init__.py").write_text("changed = True")
        assert code_version() == f"{asysi.__version__}+g{commit}-dirty"

    def test_a_repository_around_it(self, package):
        """Installed below somebody else's repository, it does not take that one's commit for its own."""
        commit = committed(package, "other")
        assert commit not in code_version()


def git(folder, *arguments):
    named = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *named, *arguments], check=True, capture_output=True,
                          text=True)  # fmt: skip
    return done.stdout.strip()


def committed(folder, what):
    git(folder, "add", what)
    git(folder, "commit", "-qm", "c")
    return git(folder, "rev-parse", "--short=12", "HEAD")
