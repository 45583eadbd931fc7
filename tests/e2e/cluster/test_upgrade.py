"""An upgrade on a real cluster: what the first version's operator has made goes on under this one."""

import json
import os
import shutil
import signal
import site
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from asysi.contract.crd import GROUP, PLURAL

Tree = dict[str, Any]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[3]
IMAGE = "asysi-stub:e2e"
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
    git = [
        "git",
        "-C",
        str(ROOT),
        "archive",
        "--output",
        str(archive),
        FIRST,
        "operator",
        "workers",
        "crds",
        "charts",
    ]
    if subprocess.run(git, capture_output=True, check=False).returncode:
        pytest.skip(f"needs the repository's history: git fetch --unshallow, for commit {FIRST}")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


def _define(lab: Any, folder: Path, manager: str = "tests") -> None:
    """Make the definition of experiments be that of a version, owned by a field manager."""
    definition = yaml.safe_load((folder / "crds" / f"{GROUP}_{PLURAL}.yaml").read_text())
    path = lab.path("CustomResourceDefinition", definition["metadata"]["name"])
    code, answer = lab.ask(
        "PATCH", f"{path}?fieldManager={manager}&force=true", definition, "application/apply-patch+yaml"
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
    options = [f"--namespace={lab.namespace}", f"--metrics-port={operator.port}", f"--image={IMAGE}"]
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


@dataclass
class Experiments:
    """Experiments in every state that an upgrade can meet, made under the first version.

    Attributes:
        jobs: uids of the Jobs, by experiment; pods: those of the pods.
    """

    lab: Any
    jobs: dict[str, list[str]] = field(default_factory=dict)
    pods: dict[str, list[str]] = field(default_factory=dict)

    STATES: ClassVar = {
        "running": "Running", "waiting": "Suspended", "paused": "Suspended", "finished": "Succeeded",
    }  # fmt: skip

    def bring_about(self) -> None:
        """Bring each into its state."""
        lab = self.lab
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
        deadline = time.monotonic() + 60
        while lab.all("Pod", of="paused"):
            assert time.monotonic() < deadline, "the paused pod stays"
            time.sleep(0.2)
        self.jobs, self.pods = self._identities("Job"), self._identities("Pod")
        assert all(len(found) == 1 for found in self.jobs.values())

    def assert_untouched(self) -> None:
        """Assert that none is refused and no Job or pod is replaced."""
        assert self._identities("Job") == self.jobs
        assert self._identities("Pod") == self.pods
        for name, phase in self.STATES.items():
            assert self.lab.condition(name, "Accepted")["status"] == "True", name
            assert self.lab.status(name)["phase"] == phase, name

    def assert_they_go_on(self) -> None:
        """Assert that what waits goes on in its Job and folder, and that a new one takes its own folder."""
        lab = self.lab
        for name in ("waiting", "paused"):
            lab.edit("ScanExperiment", name, {"spec": {"lifecycle": {"suspend": False}}})
            status = lab.until_phase(name, "Running")
            assert status["output"] == "results", "what began in the claim's root stays there"
        assert self._identities("Job") == self.jobs
        lab.apply("new")
        lab.until_phase("new", "Running")
        assert lab.status("new")["output"] == "results/new"
        for name in [*self.STATES, "new"]:
            lab.delete("ScanExperiment", name)

    def _identities(self, kind: str) -> dict[str, list[str]]:
        return {
            name: sorted(one["metadata"]["uid"] for one in self.lab.all(kind, of=name))
            for name in self.STATES
        }


def test_what_runs_waits_or_has_ended_is_left_as_it_is(
    lab: Any, operator: Any, old_operator: Any, until: Callable[..., Any]
) -> None:
    """Running, suspended, paused and finished: none is refused, no Job or pod is replaced, each goes on."""
    made = Experiments(lab)
    made.bring_about()
    old_operator.send_signal(signal.SIGTERM)
    old_operator.wait(30)

    _define(lab, ROOT)
    before = len(operator.proxy.writes())
    operator.start()
    unfinished = ["running", "waiting", "paused"]
    until(lambda: all("output" in lab.status(name) for name in unfinished), "the new operator says where")
    time.sleep(3)
    made.assert_untouched()
    assert [one.path for one in operator.proxy.writes()[before:] if one.method == "DELETE"] == []
    made.assert_they_go_on()


_FIRST_IMAGE = """
ARG BASE
FROM ${BASE}
COPY workers/asysi /opt/asysi/lib/python3.11/site-packages/asysi
COPY operator/asysi_operator /opt/asysi/lib/python3.11/site-packages/asysi_operator
"""


@pytest.fixture
def helm(lab: Any, kubeconfig: Path, tool: Callable[[str], str]) -> Iterator[Callable[..., None]]:
    """Return a function that runs helm in the lab's namespace; the release goes at the end."""
    program = tool("helm")

    def run(*arguments: str, fine: bool = False) -> None:
        command = [program, "--kubeconfig", str(kubeconfig), "--namespace", lab.namespace, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
        assert fine or done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"

    yield run
    run("uninstall", "first", "--wait", "--timeout", "60s", fine=True)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_first_chart_is_upgraded_by_helm(
    *,
    lab: Any,
    operator: Any,
    first_version: Path,
    images: dict[str, str],
    build_image: Callable[[str, Path, Path], None],
    helm: Callable[..., None],
    until: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """The same from chart to chart: `helm upgrade` of an installation of the first version.

    The old image is the first version's code on today's libraries.
    """
    operator.kill()
    for part in ("workers/asysi", "operator/asysi_operator"):
        shutil.copytree(first_version / part, tmp_path / part)
    base = images["operator"]
    base = f"localhost/{base}" if "ASYSI_CLUSTER" in os.environ and "/" not in base else base
    (tmp_path / "Dockerfile").write_text(_FIRST_IMAGE.replace("ARG BASE", f"ARG BASE={base}"))
    build_image("asysi-operator:first", tmp_path / "Dockerfile", tmp_path)
    stub, tag = IMAGE.split(":")

    def values(image: str) -> list[str]:
        repository, _, version = image.rpartition(":")
        given = {
            "namespaces": [lab.namespace],
            "image": {"repository": repository, "tag": version, "pullPolicy": "IfNotPresent"},
            "workerImage": {"repository": stub, "tag": tag, "pullPolicy": "Never"},
        }
        return [f"--set-json={key}={json.dumps(value)}" for key, value in given.items()]

    _define(lab, first_version, "helm")  # else Helm 4 would refuse to take it from the tests
    wait = ["--take-ownership", "--wait", "--timeout", "120s"]
    helm("install", "first", str(first_version / "charts" / "asysi"), *wait, *values("asysi-operator:first"))
    made = Experiments(lab)
    made.bring_about()
    helm("upgrade", "first", str(ROOT / "charts" / "asysi"), *wait, *values(images["operator"]))
    until(
        lambda: all("output" in lab.status(name) for name in ("running", "waiting", "paused")),
        "it says where",
    )
    time.sleep(3)
    made.assert_untouched()
    made.assert_they_go_on()
    helm("uninstall", "first", "--wait", "--timeout", "60s")
    operator.start()


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
