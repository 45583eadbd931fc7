"""`logs`: which containers of which pod are shown."""

from typing import Any

import pytest

from asysi.cli import main

Tree = dict[str, Any]


def logs(*arguments: str) -> int:
    """Run `asysi cluster logs minilm …` here and return its exit code."""
    with pytest.raises(SystemExit) as leaving:
        main(["cluster", "logs", "minilm", *arguments])
    return int(leaving.value.code or 0)


def pod(name: str, made: str, phase: str = "Running", **states: Tree) -> Tree:
    """Return a pod with three containers, and the states of those that have one."""
    return {
        "kind": "Pod",
        "metadata": {"name": name, "creationTimestamp": made},
        "spec": {
            "initContainers": [{"name": "sae"}, {"name": "prepare"}],
            "containers": [{"name": "finish"}, {"name": "host"}],
        },
        "status": {
            "phase": phase,
            "containerStatuses": [{"name": key, "state": state} for key, state in states.items()],
        },
    }


@pytest.fixture
def pods(fake, experiment) -> Any:
    """An experiment with two attempts; the newer one has begun prepare and sae."""
    fake.objects += [
        experiment(phase="Running"),
        pod("old", "2026-01-02T03:00:00Z", host={"terminated": {}}),
        pod(
            "new",
            "2026-01-02T03:05:00Z",
            sae={"running": {}},
            prepare={"terminated": {}},
            host={"waiting": {}},
        ),
    ]
    fake.save()
    return fake


def asked(fake: Any) -> list[list[str]]:
    """The calls for logs."""
    return [call for call in fake.calls if call[0] == "logs"]


def test_the_newest_pods_containers_are_shown_in_their_order(pods, capfd):
    """Those that have begun, each line with its container; those of an older attempt are not."""
    assert logs("--tail", "5") == 0
    assert [call[1:] for call in asked(pods)] == [
        ["new", "--container=prepare", "--tail=5", "--prefix"],
        ["new", "--container=sae", "--tail=5", "--prefix"],
    ]
    assert capfd.readouterr().out.count("said by kubectl") == 2


def test_one_container_is_shown_alone(pods):
    """Without a prefix, also of before its restart."""
    assert logs("-c", "host", "--previous") == 0
    assert asked(pods) == [["logs", "new", "--container=host", "--previous"]]


def test_following_ends_with_the_pod(pods):
    """Each container that has begun is followed, and the command ends when the pod has."""
    pods.objects[-1]["status"]["phase"] = "Succeeded"
    pods.save()
    assert logs("-f") == 0
    followed = sorted(call[2] for call in asked(pods) if "--follow" in call)
    assert followed == ["--container=prepare", "--container=sae"]


def test_what_is_not_there_is_named(pods, capsys):
    """An unknown container, no pod at all, none that has begun: exit code 2, and what to do."""
    assert logs("-c", "trainer") == 2
    assert "it has prepare, sae, host, finish" in capsys.readouterr().err
    pods.objects[1:] = [pod("new", "2026-01-02T03:05:00Z")]
    pods.save()
    assert logs() == 2
    assert "no container of new has begun" in capsys.readouterr().err
    pods.objects[1:] = []
    pods.save()
    assert logs() == 2
    assert "`asysi cluster why minilm` says why" in capsys.readouterr().err
