"""The verbs, with a kubectl that is a real process."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from asysi.cli import main
from asysi.contract.loading import check
from asysi_operator.manifests import build
from asysi_operator.plugin.kubectl import Kubectl

Tree = dict[str, Any]
CLAIM: Tree = {
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "minilm-output", "uid": "c1"},
    "spec": {"accessModes": ["ReadWriteOnce"]},
}


def asysi(*arguments: object) -> int:
    """Run `asysi cluster …` here and return its exit code."""
    with pytest.raises(SystemExit) as leaving:
        main(["cluster", *map(str, arguments)])
    return int(leaving.value.code or 0)


def names(folder: Path) -> list[str]:
    """Return the names of what is in a folder."""
    return sorted(one.name for one in folder.iterdir())


@pytest.fixture
def finished(fake, experiment) -> Any:
    """An experiment that has succeeded, with its Job and results."""
    tree = experiment(phase="Succeeded", output="minilm-output")
    job = build(
        check(
            {key: tree[key] for key in ("apiVersion", "kind", "metadata", "spec")}
            | {"metadata": {"name": "minilm", "namespace": "lab"}}
        ),
        image="registry/worker:1",
    )[-1]
    fake.objects += [tree, CLAIM, job]
    (fake.claim / "sae" / "topk").mkdir(parents=True)
    (fake.claim / "sae" / "topk" / "weights").write_bytes(os.urandom(300_000))
    (fake.claim / "report.html").write_text("<html>report</html>")
    (fake.claim / "ledger.json").write_text("{}")
    fake.save()
    return fake


def test_fetch_brings_every_file(finished, capsys):
    """All results are below runs/NAME as they are on the claim, and the pod that was made is gone."""
    assert asysi("fetch", "minilm") == 0
    got = Path("runs/minilm")
    files = sorted(str(one.relative_to(got)) for one in got.rglob("*") if one.is_file())
    assert files == ["ledger.json", "report.html", "sae/topk/weights"]
    assert (got / "sae/topk/weights").read_bytes() == (finished.claim / "sae/topk/weights").read_bytes()
    assert "3 files" in capsys.readouterr().out
    assert "Pod" not in finished.kinds_left
    assert finished.made["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == "minilm-output"


def test_the_pod_runs_where_and_as_what_the_experiment_runs(finished):
    """Image, pull policy and security are those of the finish container; it ends by itself."""
    assert asysi("fetch", "minilm", "--only", "report", "-o", "here", "--pod-seconds", 99) == 0
    pod = finished.made["spec"]
    container = pod["containers"][0]
    assert (container["image"], container["imagePullPolicy"]) == ("registry/worker:1", "IfNotPresent")
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["volumeMounts"] == [{"name": "claim", "mountPath": "/claim", "readOnly": True}]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert (pod["activeDeadlineSeconds"], pod["automountServiceAccountToken"]) == (99, False)
    assert "asysi.dev/experiment" not in finished.made["metadata"]["labels"]
    assert names(Path("here")) == ["report.html"]


def test_a_folder_that_is_there_is_not_replaced_unasked(finished, capsys):
    """Somebody's results stay, exit code 2; --overwrite replaces them whole."""
    Path("runs/minilm").mkdir(parents=True)
    Path("runs/minilm/mine").write_text("x")
    assert asysi("fetch", "minilm") == 2
    assert "runs/minilm exists" in capsys.readouterr().err
    assert not finished.calls
    assert asysi("fetch", "minilm", "--overwrite") == 0
    assert not Path("runs/minilm/mine").exists()
    assert Path("runs/minilm/report.html").exists()


def test_a_stream_that_breaks_off_leaves_nothing(finished, capsys):
    """kubectl ends well after half of the bytes: no folder, no temporary one, exit code 1."""
    for cut in (100_000, 512, 10_240):
        finished.cut = cut
        finished.save()
        assert asysi("fetch", "minilm") == 1
        assert "broke off" in capsys.readouterr().err
        assert not Path("runs").exists() or names(Path("runs")) == []


def test_while_it_runs_its_own_container_gives_the_files(finished):
    """With a running finish container no pod is made."""
    statuses = [{"name": "finish", "state": {"running": {}}}]
    finished.objects.append(
        {"kind": "Pod", "metadata": {"name": "minilm-0-abc"}, "status": {"containerStatuses": statuses}}
    )
    finished.save()
    assert asysi("fetch", "minilm") == 0
    verbs = [call[0] for call in finished.calls]
    assert "create" not in verbs
    assert next(call for call in finished.calls if call[0] == "exec")[1:3] == [
        "minilm-0-abc",
        "--container=finish",
    ]


def test_what_is_not_written_yet_is_said(finished, capsys):
    """A path that is not there, a report that is not there yet, an experiment that has not begun."""
    assert asysi("fetch", "minilm", "--only", "nothing") == 2
    assert "there is no nothing" in capsys.readouterr().err
    (finished.claim / "report.html").unlink()
    assert asysi("report", "minilm", "--no-open") == 2
    assert "there is no report.html" in capsys.readouterr().err
    assert not Path("minilm-report.html").exists()
    for path in ("../x", "/etc/passwd"):
        assert asysi("fetch", "minilm", "--only", path) == 2
    del finished.objects[0]["status"]
    finished.save()
    assert asysi("fetch", "minilm") == 2
    assert "has written nothing" in capsys.readouterr().err


def test_kept_results_outlive_their_experiment(finished, capsys):
    """Results on a claim of its own that outlives the experiment are fetched from there."""
    del finished.objects[0]
    finished.save()
    assert asysi("fetch", "minilm") == 0
    assert Path("runs/minilm/report.html").exists()
    assert asysi("report", "other") == 2
    assert "there is no ScanExperiment other" in capsys.readouterr().err


def test_report_writes_one_file(finished, capsys):
    """The report is in the working folder, and a newer one replaces it."""
    for text in ("<html>report</html>", "<html>newer</html>"):
        (finished.claim / "report.html").write_text(text)
        assert asysi("report", "minilm") == 0
        assert Path("minilm-report.html").read_text() == text
    assert not list(Path().glob(".*"))


@pytest.mark.parametrize("verb", ["report", "fetch"])
def test_a_folder_in_the_place_of_the_report_is_refused_before_a_pod_is_made(finished, capsys, verb):
    """A folder where the report is to be written is the user's mistake: exit code 2, nothing is made."""
    place = Path("pages")
    (place if verb == "report" else place / "report.html").mkdir(parents=True)
    options = ["--only", "report", "--overwrite"] if verb == "fetch" else []
    assert asysi(verb, "minilm", "-o", place, *options) == 2
    said = capsys.readouterr().err
    assert "is a folder" in said
    assert not (finished.folder / "made.json").exists()


def test_what_kubectl_says_beside_json_is_a_sentence(finished, capsys, monkeypatch):
    """A kubectl that answers with something else than JSON, as a wrapper may, is named: exit code 1."""
    monkeypatch.setattr(Kubectl, "run", lambda *_arguments, **_options: "Switched to context prod.")
    assert asysi("why", "minilm") == 1
    said = capsys.readouterr().err
    assert said.startswith("kubectl get answered with something that is not JSON: Switched to context prod.")


def test_an_unknown_experiment_is_the_users_mistake(finished, capsys):
    """Exit code 2, and the names of those that are there."""
    for verb in ("fetch", "report", "why", "logs"):
        assert asysi(verb, "minlim") == 2
        assert capsys.readouterr().err == (
            "there is no ScanExperiment minlim in namespace lab: there are minilm\n"
        )


def test_a_missing_permission_is_a_sentence(finished, capsys):
    """Verb, resource and namespace are named, exit code 1, and the pod is gone all the same."""
    forbidden = (
        'Error from server (Forbidden): pods "x" is forbidden: User "eve" cannot create resource "{}" in API '
        'group "" in the namespace "lab"'
    )
    for when, resource in ((["create"], "pods"), (["exec"], "pods/exec")):
        finished.refusals = [{"when": when, "says": forbidden.format(resource)}]
        finished.save()
        assert asysi("fetch", "minilm") == 1
        said = capsys.readouterr().err
        assert said.startswith(
            f"you may not create {resource} in namespace lab: ask for a Role with the verb create"
        )
        assert said.count("\n") == 1
        assert "Pod" not in finished.kinds_left


def test_a_pod_that_cannot_start_is_named_and_removed(finished, capsys, monkeypatch):
    """The reason is the node's own word."""
    monkeypatch.setattr("asysi_operator.plugin.reach.PATIENCE_SECONDS", 0.0)
    waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
    finished.pod_status = {"containerStatuses": [{"name": "files", "state": {"waiting": waiting}}]}
    finished.save()
    assert asysi("fetch", "minilm") == 1
    assert "cannot start: ImagePullBackOff: no such image" in capsys.readouterr().err
    assert "Pod" not in finished.kinds_left


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_removes_the_pod(finished, number):
    """A signal while the pod starts ends it: exit code 130, and no pod stays."""
    finished.pod_status = {}
    finished.save()
    process = subprocess.Popen([sys.executable, "-m", "asysi.cli", "cluster", "fetch", "minilm"])
    try:
        deadline = time.monotonic() + 60
        while "Pod" not in finished.kinds_left:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    assert "Pod" not in finished.kinds_left


def test_put_fills_a_claim(finished, capsys, tmp_path):
    """Files and folders arrive under their names; what is there stays, unless it is to be replaced."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "text.jsonl").write_text("one\n")
    assert asysi("put", "minilm-output", "model", "text.jsonl", "--to", "data") == 0
    assert (finished.claim / "data/model/config.json").read_text() == "{}"
    assert "2 files" in capsys.readouterr().out
    (tmp_path / "text.jsonl").write_text("two\n")
    assert asysi("put", "minilm-output", "text.jsonl", "--to", "data") == 2
    assert "text.jsonl already exists" in capsys.readouterr().err
    assert (finished.claim / "data/text.jsonl").read_text() == "one\n"
    assert asysi("put", "minilm-output", "text.jsonl", "--to", "data", "--overwrite") == 0
    assert (finished.claim / "data/text.jsonl").read_text() == "two\n"
    assert names(finished.claim / "data") == ["model", "text.jsonl"]
    assert "Pod" not in finished.kinds_left


def test_a_killed_transfer_leaves_nothing_for_ever(finished, tmp_path):
    """What a killed put has staged goes with a later one, once it is so old that nobody can be at it."""
    (tmp_path / "a").write_text("a")
    for name in ("old", "young"):
        (finished.claim / f".asysi-put-{name}").mkdir()
    os.utime(finished.claim / ".asysi-put-old", (0, 0))
    assert asysi("put", "minilm-output", "a") == 0
    assert [one for one in names(finished.claim) if one.startswith(".")] == [".asysi-put-young"]
    assert asysi("fetch", "minilm") == 0
    assert not list(Path("runs/minilm").glob(".*"))


def test_put_takes_an_experiments_only_input(finished, capsys, tmp_path):
    """The name of an experiment means the one claim that it reads; with none or several it must be named."""
    (tmp_path / "a").write_text("a")
    finished.objects[0]["spec"]["inputs"] = [{"claim": "texts"}]
    finished.objects.append({**CLAIM, "metadata": {"name": "texts"}})
    finished.save()
    assert asysi("put", "minilm", "a") == 0
    assert finished.made["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == "texts"
    for inputs, says in (([], "reads no claim"), ([{"claim": "b"}, {"claim": "c"}], "reads b, c")):
        finished.objects[0]["spec"]["inputs"] = inputs
        finished.save()
        assert asysi("put", "minilm", "a") == 2
        assert says in capsys.readouterr().err


def test_put_can_make_the_claim(finished, tmp_path, capsys):
    """--create makes a claim of that size; without it a missing claim is the user's mistake."""
    (tmp_path / "a").write_text("a")
    assert asysi("put", "new", "a", "--image", "worker") == 2
    assert "--create SIZE" in capsys.readouterr().err
    assert asysi("put", "new", "a", "--image", "worker", "--create", "lots") == 2
    assert asysi("put", "new", "a", "--image", "worker", "--create", "2Gi") == 0
    assert finished.kinds_left.count("PersistentVolumeClaim") == 2


@pytest.mark.parametrize("filtered", [True, False])
def test_nothing_leaves_the_folder(tmp_path, monkeypatch, filtered):
    """`..`, an absolute path, a link and a device are refused, also by a Python without filters."""
    from asysi_operator.plugin import pod_side
    from asysi_operator.plugin.pod_side import TransferError, unpack

    if not filtered:
        monkeypatch.setattr(pod_side, "_FILTER", {})
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    device = tarfile.TarInfo("device")
    device.type = tarfile.CHRTYPE
    for number, member in enumerate(
        (tarfile.TarInfo("../out"), tarfile.TarInfo("/tmp/asysi-out"), link, device)
    ):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w|") as tar:
            tar.addfile(member)
        stream.seek(0)
        folder = tmp_path / f"in-{number}"
        folder.mkdir()
        with pytest.raises(TransferError):
            unpack(stream, folder)
        assert names(folder) == []
    assert not (tmp_path / "out").exists()
    assert not Path("/tmp/asysi-out").exists()


def test_the_plugin_has_the_same_verbs():
    """`kubectl-asysi` is installed with the package, and its help names every verb."""
    code = "import sys; from asysi.cli import kubectl_plugin as run; sys.argv = ['', '--help']; run()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("Usage: kubectl asysi")
    for verb in ("fetch", "report", "logs", "why", "put"):
        assert f"\n  {verb} " in done.stdout


def test_the_wheel_has_the_plugin():
    """kubectl finds a program of this name on the PATH, and the package installs it."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["kubectl-asysi"] == "asysi.cli:kubectl_plugin"


def test_it_needs_neither_a_client_nor_torch():
    """The verbs work with the package's own requirements: nothing of an extra is imported."""
    modules = "reach, bundle, logs, transfer, observe"
    code = f"import sys; from asysi_operator.plugin import commands, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    extras = {"kubernetes", "kopf", "prometheus_client", "httpx", "numpy", "torch", "orjson", "msgspec"}
    assert not extras & set(done.stdout.split())


def test_without_kubectl_it_says_so(finished, monkeypatch, capsys):
    """No traceback, but what is missing and where to get it."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert asysi("why", "minilm") == 1
    assert "no kubectl on the PATH" in capsys.readouterr().err


def test_context_and_namespace_reach_every_call(finished):
    """What kubectl is to be told is told it each time."""
    assert asysi("fetch", "minilm", "-n", "lab", "--context", "far", "--kubeconfig", "/k") == 0
    for call in finished.calls:
        assert call[:3] == ["--kubeconfig=/k", "--context=far", "--namespace=lab"]


def test_a_pod_that_cannot_be_deleted_is_named(finished, capsys):
    """The files are there, and who looks knows that the pod goes by itself."""
    finished.refusals = [{"when": ["delete"], "says": "Error from server: no"}]
    finished.save()
    assert asysi("report", "minilm") == 0
    assert "could not be deleted: it ends by itself within 3600 s" in capsys.readouterr().err
