"""Folders of a run: locks, stale rings, and the output."""

import json
from pathlib import Path, PurePosixPath

import pytest
import yaml

from asysi.contract import runtime
from asysi.contract.errors import ConfigError
from asysi.contract.identity import identity_of
from asysi.contract.spec import Output, ScanExperiment
from asysi_operator.local.events import Events
from asysi_operator.local.output import OutputFolder, output_folder
from asysi_operator.local.resuming import continued
from asysi_operator.local.run_directories import RunDirectories, refuse_small_memory


def _directories(folder: Path, name: str = "mini") -> RunDirectories:
    return RunDirectories(name, shared=folder, scratch=folder)


def test_every_output_is_known():
    """Whatever the contract directories at the top of an output folder is among the outputs of a run."""
    below = {
        value
        for name, value in vars(runtime).items()
        if name.endswith(("_FILE", "_FOLDER")) and isinstance(value, PurePosixPath)
    }
    elsewhere = {
        runtime.TRAINING_FILE, runtime.ATTEMPT_FILE, runtime.POINTS_FILE, runtime.MODEL_FILE,
        runtime.REREAD_FILE,
    }  # fmt: skip
    assert below - elsewhere <= set(runtime.OUTPUTS)


def test_a_new_run_replaces_everything_but_the_rows_of_a_pipeline(tmp_path):
    """With --overwrite nothing of the older run lies beside the new one; paid rows stay."""
    for path in runtime.OUTPUTS:
        if path.suffix or path.name == ".identity.lock":
            (tmp_path / path).touch()
        else:
            (tmp_path / path).mkdir()
    output = OutputFolder(tmp_path)
    output.open(overwrite=True)
    output.keep()
    assert {path.name for path in tmp_path.iterdir()} == {"events.jsonl", "logs", "pipeline"}


def test_one_run_of_a_name(tmp_path):
    """While an experiment runs, another of its name is refused, but one of another name is not."""
    with _directories(tmp_path):
        with pytest.raises(ConfigError, match="mini is running already"), _directories(tmp_path):
            pass
        with _directories(tmp_path, "mini-lm"):
            pass
    with _directories(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_rings_are_private(tmp_path):
    """Nobody else may look into the rings."""
    directories = RunDirectories("mini", shared=tmp_path, scratch=None)
    with directories:
        assert directories.rings.stat().st_mode & 0o777 == 0o700


def test_stale_folders_of_this_name_alone_are_removed(tmp_path):
    """What a killed run of the same name has left is removed, what belongs to others is not."""
    stale, other, foreign = (
        tmp_path / f"asysi-{n}" for n in ("mini-0123abcd", "mini-lm-0123abcd", "mini-notes")
    )
    for folder in (stale, other, foreign):
        folder.mkdir()
        (folder / "data").touch()
    with _directories(tmp_path):
        assert not stale.exists()
    assert other.exists()
    assert foreign.exists()


def test_folders_go_after_a_failure(tmp_path):
    """Whatever is raised inside, the folders and the lock go."""
    with pytest.raises(RuntimeError), _directories(tmp_path):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_small_shared_memory_is_refused_with_its_arithmetic(tmp_path):
    """Rings that do not fit are refused with what they need and what is free."""
    with pytest.raises(ConfigError, match=r"they need 1048576Ti, [0-9]+Mi of [0-9]+Mi are free"):
        refuse_small_memory(tmp_path, 2**60)
    refuse_small_memory(tmp_path, 1)


def _old_run(folder: Path) -> None:
    (folder / "sae").mkdir(parents=True)
    (folder / "events.jsonl").write_text("old")
    (folder / "report.html").write_text("old")
    (folder / "sae" / "weights").write_text("old")


def test_a_finished_run_is_not_replaced_unasked(tmp_path):
    """A folder that holds a run is refused, with the option that would replace it, and is left as it was."""
    _old_run(tmp_path)
    with pytest.raises(ConfigError, match=r"holds a finished run.*--overwrite"):
        OutputFolder(tmp_path).open(overwrite=False)
    assert (tmp_path / "sae" / "weights").read_text() == "old"


def test_overwriting_removes_a_run_and_nothing_else(tmp_path):
    """Only what a run makes is replaced; the user's own files in the folder stay."""
    _old_run(tmp_path)
    (tmp_path / "thesis.tex").write_text("mine")
    output = OutputFolder(tmp_path)
    output.open(overwrite=True)
    output.keep()
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex", "events.jsonl", "logs"}


def test_folders_that_no_run_made_are_never_replaced(tmp_path):
    """A folder with a `sae` or an experiment.yaml of the user's own is refused even with --overwrite."""
    (tmp_path / "experiment.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds experiment\.yaml, but no events\.jsonl"):
        OutputFolder(tmp_path).open(overwrite=True)
    assert (tmp_path / "experiment.yaml").read_text() == "mine"


def test_a_run_that_came_to_nothing_brings_the_old_one_back(tmp_path):
    """When the new run is discarded, the one that it would have replaced is there again."""
    _old_run(tmp_path)
    output = OutputFolder(tmp_path)
    output.open(overwrite=True)
    (tmp_path / "logs" / "prepare.log").touch()
    output.discard()
    assert {path.name for path in tmp_path.iterdir()} == {"events.jsonl", "report.html", "sae"}
    assert (tmp_path / "sae" / "weights").read_text() == "old"


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_a_runner_killed_while_it_moved_the_old_run(tmp_path, moved):
    """However many of its parts had been moved aside, the old run is whole at the next start."""
    _old_run(tmp_path)
    aside = tmp_path / ".replaced"
    aside.mkdir()
    for name in ["events.jsonl", "report.html", "sae"][:moved]:
        (tmp_path / name).rename(aside / name)
    with pytest.raises(ConfigError, match="holds a finished run"):
        OutputFolder(tmp_path).open(overwrite=False)
    assert {path.name for path in tmp_path.iterdir()} == {"events.jsonl", "report.html", "sae"}


def test_a_folder_in_use_is_not_replaced(tmp_path):
    """A folder that a run of another name is writing is refused even with --overwrite."""
    _old_run(tmp_path)
    with Events(tmp_path / "events.jsonl"), pytest.raises(ConfigError, match="a run is writing to"):
        OutputFolder(tmp_path).open(overwrite=True)


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
    """A folder that cannot be made is refused by name, and no part of its path is left behind."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        OutputFolder(tmp_path / "file" / "deeper" / "still").open(overwrite=False)
    assert (tmp_path / "file").is_file()


def test_discarding_removes_the_folders_that_were_made(tmp_path):
    """Parents that the run made go with it; those that were there stay."""
    output = OutputFolder(tmp_path / "runs" / "mini")
    output.open(overwrite=False)
    output.discard()
    assert list(tmp_path.iterdir()) == []


def test_where_results_go(tmp_path, monkeypatch):
    """The option wins over the spec, the spec over runs/<name>; what is not a local folder is refused."""
    monkeypatch.chdir(tmp_path)
    there = Output(uri="file:///there/x%20y", path="z")
    assert output_folder("mini", Path("here"), there) == tmp_path / "here"
    assert output_folder("mini", None, there) == Path("/there/x y/z")
    assert output_folder("mini", None, Output(uri="there")) == tmp_path / "there"
    assert output_folder("mini", None, Output()) == tmp_path / "runs" / "mini"
    assert output_folder("mini", None, Output(path="a/b")) == tmp_path / "runs" / "a" / "b"
    assert output_folder("mini", None, Output(uri="s3://bucket/x")) == tmp_path / "runs" / "mini"
    with pytest.raises(ConfigError, match="is not a folder on this machine"):
        output_folder("mini", None, Output(uri="file://other-host/x"))


def _experiment(**spec):
    base = {
        "model": {"uri": "file:///model"},
        "data": {"uri": "jsonl:///text.jsonl"},
        "workload": {"scan": {}},
        "capture": {"hookPoints": ["*"]},
    }
    return ScanExperiment.model_validate({"metadata": {"name": "mini"}, "spec": base | spec})


def _killed_run(folder: Path, experiment: ScanExperiment, *, before_identities: bool = False) -> None:
    """Leave what a run leaves whose processes were all killed in its second attempt."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "archive").mkdir()
    (folder / "events.jsonl").write_text('{"container": "host"}\n{"contai')
    (folder / "checkpoints" / "topk.ckpt").write_text("old")
    (folder / "archive" / "attempt-0001-segment-0000.mscan").touch()
    if before_identities:
        tree = experiment.model_dump(mode="json", by_alias=True)
        (folder / "experiment.yaml").write_text(yaml.safe_dump(tree))
    else:
        (folder / "identity.json").write_text(identity_of(experiment).model_dump_json())


@pytest.mark.parametrize("before_identities", [False, True])
def test_a_killed_run_is_continued_from_its_next_attempt(tmp_path, capsys, before_identities):
    """What was killed is continued, also after an upgrade, and what has changed in the spec is said."""
    _killed_run(tmp_path, _experiment(), before_identities=before_identities)
    changed = _experiment(lifecycle={"maxRestarts": 5}, sae={"memory": "4Gi"})
    assert continued(tmp_path, changed) == 2
    said = capsys.readouterr().err
    assert "with attempt 2" in said
    assert "changed since: spec.sae.memory, spec.lifecycle.maxRestarts" in said
    output = OutputFolder(tmp_path)
    output.open(overwrite=False, resume=True)
    output.discard()
    assert (tmp_path / "checkpoints" / "topk.ckpt").read_text() == "old"
    with Events(tmp_path / "events.jsonl") as events:
        events.write("host", "started", attempt=2)
    last = (tmp_path / "events.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["attempt"] == 2


def test_another_content_is_not_continued(tmp_path):
    """A spec with other results is refused with the fields that differ, and nothing is touched."""
    _killed_run(tmp_path, _experiment())
    changed = _experiment(workload={"scan": {"passes": 3}}, lifecycle={"maxRestarts": 5})
    with pytest.raises(
        ConfigError, match=r"had another spec\.workload\.scan\.passes, and its results would be"
    ):
        continued(tmp_path, changed)
    foreign = changed.model_copy(update={"metadata": changed.metadata.model_copy(update={"name": "other"})})
    with pytest.raises(ConfigError, match="holds a run of default/mini, not of default/other"):
        continued(tmp_path, foreign)


def test_a_finished_run_is_not_continued(tmp_path):
    """There is nothing to continue in a run that has its report."""
    _killed_run(tmp_path, _experiment())
    (tmp_path / "report.html").touch()
    with pytest.raises(ConfigError, match="holds a finished run, so there is nothing to continue"):
        continued(tmp_path, _experiment())


def test_continuing_where_nothing_is_begins_a_run(tmp_path, capsys):
    """The same command starts a run and goes on with it."""
    assert continued(tmp_path / "new", _experiment()) == 0
    assert "there is no run to continue" in capsys.readouterr().err


def test_a_killed_run_is_not_replaced_unasked(tmp_path):
    """Without an option a killed run is refused, with both options that there are."""
    _killed_run(tmp_path, _experiment())
    with pytest.raises(
        ConfigError, match=r"did not finish: continue it with --resume, replace it with --over"
    ):
        OutputFolder(tmp_path).open(overwrite=False)
