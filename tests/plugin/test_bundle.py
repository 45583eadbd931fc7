"""`why --bundle`: what a report of a problem needs, and nothing that is a secret."""

import tarfile
from pathlib import Path
from typing import Any

import pytest

from asysi.cli import main
from asysi_operator.plugin import bundle as bundling
from asysi_operator.plugin.bundle import clean, scrub

Tree = dict[str, Any]
SECRETS = ("hunter2hunter2", "sk-abcdef0123456789", "s3cr3tvalue", "eyJhbGciOi.abc")


@pytest.fixture
def bundle(fake, experiment, tmp_path: Path) -> dict[str, str]:
    """The bundle of an experiment whose objects carry secrets where people put them; its files by name."""
    tree = experiment({"data": {"uri": f"jsonl://https://me:{SECRETS[0]}@host/a.jsonl"}}, phase="Running")
    tree["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": SECRETS[1]}
    env = [{"name": "OPENAI_API_KEY", "value": SECRETS[1]}, {"name": "PLAIN", "value": "kept"}]
    pod: Tree = {
        "kind": "Pod",
        "metadata": {"name": "minilm-0-a", "uid": "p", "creationTimestamp": "2026-01-02T03:00:00Z"},
        "spec": {"containers": [{"name": "host", "env": env}]},
        "status": {"containerStatuses": [{"name": "host", "restartCount": 1, "state": {"running": {}}}]},
    }
    secret = {"kind": "Secret", "metadata": {"name": "hub"}, "data": {"token": SECRETS[2]}}
    crd: Tree = {
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "scanexperiments.asysi.dev"},
        "spec": {"versions": [{"name": "v1alpha1", "served": True, "storage": True, "schema": {"x": "y"}}]},
    }
    fake.objects += [tree, pod, secret, crd]
    fake.refusals = [{"when": ["describe", "nodes"], "says": 'cannot list resource "nodes" in API group ""'}]
    fake.save()
    with pytest.raises(SystemExit) as leaving:
        main(["cluster", "why", "minilm", "--bundle", str(tmp_path / "b.tgz")])
    assert not leaving.value.code
    with tarfile.open(tmp_path / "b.tgz") as tar:
        return {one.name: tar.extractfile(one).read().decode() for one in tar}  # type: ignore[union-attr]


def test_a_bundle_has_what_a_report_needs(bundle):
    """Experiment, objects, descriptions, logs with those before the restart, events, versions and why."""
    root = "asysi-lab-minilm/"
    wanted = (
        *("why.txt", "versions.txt", "experiment.yaml", "events.yaml", "missing.txt", "objects/pods.yaml"),
        *("objects/jobs.yaml", "objects/crd.yaml", "describe/minilm-0-a.txt", "describe/experiment.txt"),
        *("logs/minilm-0-a/host.log", "logs/minilm-0-a/host.previous.log", "objects/claims.yaml"),
    )
    assert {f"{root}{name}" for name in wanted} <= bundle.keys()
    assert "--previous" in bundle[f"{root}logs/minilm-0-a/host.previous.log"]
    assert "kept" in bundle[f"{root}objects/pods.yaml"]
    assert "schema" not in bundle[f"{root}objects/crd.yaml"]


def test_a_part_that_cannot_be_read_leaves_the_others(fake, experiment, tmp_path, monkeypatch, capsys):
    """An object that no code of ours expects costs the bundle one part, which is named."""
    fake.objects += [experiment(phase="Running")]
    fake.save()

    def unexpected(_seen):
        raise KeyError("reason")

    monkeypatch.setattr(bundling, "explain", unexpected)
    file = tmp_path / "reports" / "b.tgz"
    with pytest.raises(SystemExit) as leaving:
        main(["cluster", "why", "minilm", "--bundle", str(file)])
    assert not leaving.value.code
    with tarfile.open(file) as tar:
        names = tar.getnames()
        missing = tar.extractfile("asysi-lab-minilm/missing.txt").read().decode()  # type: ignore[union-attr]
    assert "asysi-lab-minilm/experiment.yaml" in names
    assert "asysi-lab-minilm/why.txt" not in names
    assert "why.txt: KeyError: 'reason'" in missing
    assert "why.txt: KeyError: 'reason'" in capsys.readouterr().err


def test_a_folder_in_the_place_of_the_bundle_is_refused_at_once(fake, experiment, tmp_path, capsys):
    """It is the user's mistake, exit code 2, and nothing is asked for."""
    fake.objects += [experiment(phase="Running")]
    fake.save()
    with pytest.raises(SystemExit) as leaving:
        main(["cluster", "why", "minilm", "--bundle", str(tmp_path)])
    assert leaving.value.code == 2
    assert "is a folder" in capsys.readouterr().err
    assert fake.calls == []


def test_a_bundle_holds_no_secret(bundle, fake):
    """No planted value is in any file, and no Secret was ever asked for."""
    for name, text in bundle.items():
        for secret in SECRETS:
            assert secret not in text, name
    assert not [call for call in fake.calls if any(word.startswith("secret") for word in call)]


def test_what_may_not_be_read_is_named(bundle):
    """The rest is there, and the missing part is in missing.txt with the permission."""
    assert "you may not list nodes in all namespaces" in bundle["asysi-lab-minilm/missing.txt"]
    assert "asysi-lab-minilm/objects/nodes.txt" not in bundle


@pytest.mark.parametrize(
    "text",
    [
        f"redis://user:{SECRETS[0]}@host:6379/0",
        f"redis://{SECRETS[0]}@host",
        f"Authorization: Bearer {SECRETS[3]}",
        f"HF_TOKEN={SECRETS[2]}",
        f'{{"api_key": "{SECRETS[1]}"}}',
        f"    AWS_SECRET_ACCESS_KEY:  {SECRETS[1]}",
    ],
)
def test_secrets_in_text_are_removed(text):
    """Passwords in URLs, bearer tokens, and what is assigned to a name that says what it is."""
    said = scrub(text)
    assert not any(secret in said for secret in SECRETS)
    assert "[removed]" in said


def test_ordinary_text_stays():
    """Tokens of text, which this is all about, are not secrets."""
    for text in (
        "serviceAccountToken:\n  expirationSeconds: 3607",
        "automountServiceAccountToken: false",
        "2% 4,521 of 225,768 tokens · 474 tok/s",
        "http://host:80/a@b",
        "tokenizer: gpt2",
        "sae: loss=0.1",
    ):
        assert scrub(text) == text


def test_a_secret_object_keeps_its_name_alone():
    """Should one be among the objects, its data go."""
    found = clean({"kind": "Secret", "metadata": {"name": "hub", "annotations": {}}, "data": {"a": "b"}})
    assert found == {"kind": "Secret", "metadata": {"name": "hub"}}
