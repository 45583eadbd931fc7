"""Whose an output folder is: who may go on in it, and who is refused with which words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asysi.contract.errors import ConfigError
from asysi.contract.identity import (
    FolderContent,
    Identity,
    identity_of,
    inspect_output,
    output_path,
    refusal,
    spec_changes,
)
from asysi.contract.spec import ScanExperiment

Make = Callable[..., Identity]


@pytest.fixture
def identity(minimal: Callable[..., Any]) -> Make:
    """Return a function that makes the identity of an experiment."""

    def make(spec: Any = None, **metadata: Any) -> Identity:
        tree = minimal(spec or {})
        tree["metadata"] |= metadata
        return identity_of(ScanExperiment.model_validate(tree))

    return make


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"resources": {"host": {"cpus": 2}}},
        {"lifecycle": {"maxRestarts": 7, "suspend": True}},
        {"scheduling": {"priorityClassName": "high"}},
        {"output": {"claim": "results", "path": "a", "resume": True}},
        {"bus": {"shards": 4}},
        {"sae": {"memory": "4Gi"}},
        {"archive": {"rotate": "2Gi"}},
    ],
)
def test_where_it_runs_is_not_what_it_is(identity: Make, elsewhere: Any) -> None:
    """Resources, deadlines and places do not make another content."""
    assert identity(elsewhere).digest == identity().digest


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"uri": "file:///other"}},
        {"data": {"tokens": {"contextLength": 64}}},
        {"workload": {"scan": {"seed": 1}}},
        {"capture": {"quantization": "int8"}},
        {"sae": {"train": [{"latents": 64}]}},
        {"archive": {"tensors": False}},
    ],
)
def test_another_content_is_another_identity(identity: Make, content: Any) -> None:
    """Model, data, workload, capture, trainers and archive decide the content."""
    assert identity(content).digest != identity().digest
    (named,), others = spec_changes(identity(), identity(content))
    assert named.startswith("spec.")
    assert others == []


def _found(recorded: Identity | None, *, begun: bool = True, finished: bool = False) -> FolderContent:
    return FolderContent(recorded, begun, finished, 1)


def test_the_same_uid_resumes(identity: Make) -> None:
    """An experiment goes on in its own folder, whatever stands there."""
    mine = identity(uid="a")
    for finished in (False, True):
        assert refusal(mine, _found(mine, finished=finished), kept=True, resume=False) is None


def test_a_restored_experiment_resumes(identity: Make) -> None:
    """Deleted and created anew: the API server gave the name to this uid, so the other one is gone."""
    assert refusal(identity(uid="b"), _found(identity(uid="a")), kept=False, resume=False) is None


def test_without_a_uid_the_user_has_to_say_so(identity: Make) -> None:
    """A pod that no operator made knows nothing about the owner: only output.resume resumes it."""
    for own, before in ((None, "a"), ("b", None), (None, None)):
        case = identity(uid=own), _found(identity(uid=before))
        assert "may still run" in (refusal(*case, kept=False, resume=False) or "")
        assert refusal(*case, kept=False, resume=True) is None


@pytest.mark.parametrize("resume", [False, True])
def test_finished_or_different_is_refused(identity: Make, resume: bool) -> None:
    """A finished run is never touched, nor one of another name or content, whatever the user says."""
    own = identity(uid="b")
    said = refusal(own, _found(identity(uid="a"), finished=True), kept=False, resume=resume)
    assert said == "holds the results of experiment default/minimal, which is finished"
    said = refusal(own, _found(identity(uid="a", name="other")), kept=False, resume=resume)
    assert said == "holds the results of experiment default/other"
    changed = identity({"workload": {"scan": {"passes": 2}}}, uid="a")
    said = refusal(own, _found(changed), kept=False, resume=resume)
    assert said is not None
    assert said.endswith("with another spec.workload.scan.passes")
    said = refusal(own, _found(identity(uid="a", name="other"), begun=False), kept=False, resume=resume)
    assert said is not None, "a foreign experiment that is about to begin"


def test_an_edit_before_the_start_is_no_stranger(identity: Make) -> None:
    """A spec that was changed before the model ran is of the same experiment; afterwards it is another."""
    before, now = identity(uid="a"), identity({"workload": {"scan": {"passes": 2}}}, uid="a")
    assert refusal(now, _found(before, begun=False), kept=False, resume=False) is None
    assert refusal(now, _found(before), kept=False, resume=False) is not None


def test_results_without_an_identity(identity: Make) -> None:
    """Results of an earlier version belong to the experiment whose place it can only be, or to nobody."""
    own = identity(uid="a")
    assert "says whose they are" in (refusal(own, _found(None), kept=False, resume=False) or "")
    assert refusal(own, _found(None), kept=True, resume=False) is None
    assert refusal(own, _found(None), kept=False, resume=True) is None
    assert refusal(own, _found(None, finished=True), kept=False, resume=True) is not None
    assert refusal(own, _found(None, begun=False), kept=False, resume=False) is None


@pytest.mark.parametrize(
    ("file", "begun", "finished", "attempts"),
    [
        ("logs/host.log", False, False, 0),
        ("pipeline/0123/rows.jsonl", False, False, 0),
        ("checkpoints/topk.ckpt", True, False, 0),
        ("archive/attempt-0003-segment-0001.mscan", True, False, 4),
        ("attempts/1/ledger.json", True, False, 2),
        ("attempts/1/notes", False, False, 2),
        ("sae/topk/cfg.json", True, False, 0),
        ("ledger.json", True, False, 0),
        ("report.html", True, True, 0),
    ],
)
def test_what_a_folder_holds(tmp_path: Path, file: str, begun: bool, finished: bool, attempts: int) -> None:
    """Whether the model has run there, whether the run was finished, and the number of the next attempt."""
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    assert inspect_output(tmp_path) == FolderContent(None, begun, finished, attempts)


def test_a_run_that_was_ended_early_is_not_finished(tmp_path: Path) -> None:
    """A report of a run that the user ended before its end is there, and the run can go on."""
    (tmp_path / "report.html").touch()
    for ledger, finished in (
        ('{"interrupted": true}', False),
        ('{"interrupted": false}', True),
        ("[]", True),
    ):
        (tmp_path / "ledger.json").write_text(ledger)
        assert inspect_output(tmp_path).finished is finished


def test_the_hosts_progress_counts_as_an_attempt(tmp_path: Path) -> None:
    """Where nothing is archived, the host's own file says which attempt was the last."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "progress.json").write_text('{"attempt": 2, "step": 7}')
    assert inspect_output(tmp_path) == FolderContent(None, True, False, 3)


def test_an_identity_that_cannot_be_read_is_nobodys(tmp_path: Path) -> None:
    """A damaged identity is said, not taken for none."""
    (tmp_path / "identity.json").write_text("{")
    with pytest.raises(ConfigError, match="unknown whose results these are"):
        inspect_output(tmp_path)


@pytest.mark.parametrize(
    ("output", "path"),
    [
        ({}, "."),
        ({"claim": "results"}, "minimal"),
        ({"claim": "results", "path": "a/b"}, "a/b"),
        ({"path": "a"}, "a"),
    ],
)
def test_a_folder_of_its_own_on_a_shared_claim(minimal: Callable[..., Any], output: Any, path: str) -> None:
    """On a named claim the folder has the experiment's name; the claim that is made keeps its root."""
    experiment = ScanExperiment.model_validate(minimal({"output": output}))
    assert str(output_path(experiment)) == path


@pytest.mark.parametrize(
    "path", ["..", "../a", "a/../b", "/a", "a//b", "a/", "", ".hidden", "a/.b", "a\\b", "a\nb"]
)
def test_a_path_leads_nowhere_else(minimal: Callable[..., Any], path: str) -> None:
    """What would leave the volume, or hide, is refused."""
    with pytest.raises(ValueError, match=r"output\.path"):
        ScanExperiment.model_validate(minimal({"output": {"path": path}}))
