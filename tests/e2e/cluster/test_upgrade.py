"""An upgrade on a real cluster: what the first version's operator has made goes on under this one."""

import os
import signal
import site
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from asysi.contract.crd import GROUP, PLURAL

Tree = dict[str, Any]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[3]
FIRST = "a39c130"
"""Commit of the first version."""
_OLD = """
import sys
sys.path[:0] = sys.argv[1].split(":")
from asysi_operator.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def first_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of the first version."""
    folder = tmp_path_factory.mktemp("first")
    archive = folder / "sources.tar"
    git = ["git", "-C", str(ROOT), "archive", "--output", str(archive), FIRST, "operator", "workers", "crds"]
    if subprocess.run(git, capture_output=True, check=False).returncode:
        pytest.skip(f"needs the repository's history: git fetch --unshallow, for commit {FIRST}")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


def _define(lab: Any, folder: Path) -> None:
    """Make the definition of experiments be that of a version."""
    definition = yaml.safe_load((folder / "crds" / f"{GROUP}_{PLURAL}.yaml").read_text())
    path = lab.path("CustomResourceDefinition", definition["metadata"]["name"])
    code, answer = lab.ask(
        "PATCH", f"{path}?fieldManager=tests&force=true", definition, "application/apply-patch+yaml"
    )
    assert code < 300, answer


@pytest.fixture
def old_operator(lab: Any, operator: Any, first_version: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The operator of the first version, in the place of ours."""
    operator.kill()
    _define(lab, first_version)
    paths = [str(first_version / "workers"), str(first_version / "operator"), *site.getsitepackages()]
    import kopf

    paths.append(str(Path(kopf.__file__).parents[1]))
    options = [f"--namespace={lab.namespace}", f"--metrics-port={operator.port}", "--image=asysi-stub:e2e"]
    log = (operator.folder / "old.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", _OLD, ":".join(paths), *options, "--image-pull-policy=Never"],
        env={**os.environ, "KUBECONFIG": str(operator.folder / "kubeconfig")},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    yield process
    process.kill()
    process.wait()
    log.close()
    _define(lab, ROOT)
    operator.start()


def _identities(lab: Any, kind: str, names: list[str]) -> dict[str, list[str]]:
    return {name: sorted(one["metadata"]["uid"] for one in lab.all(kind, of=name)) for name in names}


def test_what_runs_waits_or_has_ended_is_left_as_it_is(
    lab: Any, operator: Any, old_operator: Any, until: Callable[..., Any]
) -> None:
    """Running, suspended, paused and finished: none is refused, no Job or pod is replaced, each goes on."""
    lab.apply("running")
    lab.apply("waiting", {"lifecycle": {"suspend": True}})
    lab.apply("paused")
    lab.apply("finished", host="run-2")
    lab.until_phase("running", "Running")
    lab.until_phase("waiting", "Suspended")
    lab.until_phase("paused", "Running")
    lab.edit("ScanExperiment", "paused", {"spec": {"lifecycle": {"suspend": True}}})
    lab.until_phase("paused", "Suspended")
    lab.until_phase("finished", "Succeeded")
    names = ["running", "waiting", "paused", "finished"]
    until(lambda: not lab.all("Pod", of="paused"), "the paused pod goes")
    jobs, pods = _identities(lab, "Job", names), _identities(lab, "Pod", names)
    assert all(len(found) == 1 for found in jobs.values())
    old_operator.send_signal(signal.SIGTERM)
    old_operator.wait(30)

    _define(lab, ROOT)
    before = len(operator.proxy.writes())
    operator.start()
    unfinished = ["running", "waiting", "paused"]
    until(lambda: all("output" in lab.status(name) for name in unfinished), "the new operator says where")
    time.sleep(3)
    assert _identities(lab, "Job", names) == jobs
    assert _identities(lab, "Pod", names) == pods
    for name in names:
        assert lab.condition(name, "Accepted")["status"] == "True", name
    assert [lab.status(name)["phase"] for name in names] == ["Running", "Suspended", "Suspended", "Succeeded"]
    assert [one.path for one in operator.proxy.writes()[before:] if one.method == "DELETE"] == []

    for name in ("waiting", "paused"):
        lab.edit("ScanExperiment", name, {"spec": {"lifecycle": {"suspend": False}}})
        status = lab.until_phase(name, "Running")
        assert status["output"] == "results", "what began in the claim's root stays there"
    assert _identities(lab, "Job", names) == jobs

    lab.apply("new")
    lab.until_phase("new", "Running")
    assert lab.status("new")["output"] == "results/new"
    for name in [*names, "new"]:
        lab.delete("ScanExperiment", name)


def test_a_sidecar_that_refuses_ends_the_experiment(
    lab: Any, operator: Any, until: Callable[..., Any]
) -> None:
    """Exit code 2 of a sidecar: Failed with BadConfiguration and its words, and the Job is gone."""
    lab.apply("refused", archiver="exit-2")
    status = lab.until_phase("refused", "Failed")
    condition = lab.condition("refused", "Failed")
    assert condition["reason"] == "BadConfiguration"
    assert "archiver: the stub was told to exit" in condition["message"]
    assert (status["lastFailure"]["container"], status["lastFailure"]["exitCode"]) == ("archiver", 2)
    until(lambda: lab.get("Job", "refused") is None, "the Job goes")
    until(lambda: not lab.all("Pod", of="refused"), "its pod goes")
    assert lab.status("refused")["phase"] == "Failed"
