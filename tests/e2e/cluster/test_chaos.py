"""The operator among kills: of itself at any write, of pods, of the API server, of the kubelet.

After each, everything is as a plan wants it: no orphan, no double, nothing left to do. Counts are small by
default; ASYSI_CHAOS=full takes those of the project's promises, in about half an hour.
"""

import copy
import os
import random
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asysi_operator.observation import attempt_of

Tree = dict[str, Any]
FULL = os.environ.get("ASYSI_CHAOS") == "full"
KILLED, DELETIONS, RACES = (40, 200, 200) if FULL else (1, 20, 20)
"""Experiments of five plans each in which the operator is killed; pods deleted; experiments deleted."""
ATONCE = 8
"""Experiments that are under way at the same time: more would not fit a small node."""
LOST_SECONDS = 60.0
"""Seconds in which a deleted pod must have a successor."""
PREPARED_SECONDS = 180.0
"""Seconds in which a pod must have taken its number; how soon is up to its node, which starts 16 at once."""
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600 if FULL else 300)]

IDLE: Tree = {"lifecycle": {"suspend": True}, "output": {"claim": None, "size": "1Gi"}}
"""An experiment of which everything is made, but no pod."""


def _shape(lab: Any, name: str) -> list[Tree]:
    """Return what an experiment has, without what differs from one experiment to the next."""
    found = []
    for item in lab.children(of=name):
        if item["kind"] == "Pod":
            continue
        plain = {key: copy.deepcopy(item.get(key)) for key in ("kind", "spec", "data")}
        found.append(_plain(plain | {"name": item["metadata"]["name"]}, name))
    return sorted(found, key=lambda one: one["kind"])


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        dropped = {"controller-uid", "batch.kubernetes.io/controller-uid", "uid", "volumeName"}
        return {key: _plain(one, name) for key, one in value.items() if key not in dropped}
    if isinstance(value, list):
        return [_plain(one, name) for one in value]
    if isinstance(value, str):
        return "\n".join(line for line in value.replace(name, "NAME").splitlines() if '"uid"' not in line)
    return value


def test_a_kill_after_any_write_converges(lab, operator, record_property):
    """Killed after every write it makes, the operator ends with what it makes undisturbed."""
    rng = random.Random(0)
    steps: list[tuple[str, Tree]] = [
        ("begin", {}),
        ("edit", {"workload": {"scan": {"batchSize": 7}}, "output": {"size": "2Gi"}}),
        ("resume", {"lifecycle": {"suspend": False}, "scheduling": {"nodeSelector": {"disk": "none"}}}),
        ("suspend", {"lifecycle": {"suspend": True, "activeDeadlineSeconds": 900}}),
        ("share", {"output": {"claim": "results"}}),
    ]
    for step, change in steps:
        _take(lab, "whole", step, change)
        assert _settled(lab, operator, ["whole"])
    whole = _shape(lab, "whole")
    lab.delete("ScanExperiment", "whole")
    kills = 0
    for begin in range(0, KILLED, ATONCE):
        names = [f"killed-{number}" for number in range(begin, min(KILLED, begin + ATONCE))]
        for step, change in steps:
            operator.kill()
            for name in names:
                _take(lab, name, step, change)
            kills += _kill_until_done(lab, operator, names, rng)
        for name in names:
            assert _shape(lab, name) == whole
            lab.delete("ScanExperiment", name)
    record_property("kills", kills)
    print(f"{KILLED} experiments, {len(steps)} plans each, {kills} kills: the same {len(whole)} objects each")
    assert kills >= KILLED * len(steps)


def _take(lab: Any, name: str, step: str, change: Tree) -> None:
    if step == "begin":
        lab.apply(name, IDLE | change)
    else:
        code, answer = lab.edit("ScanExperiment", name, {"spec": change})
        assert code == 200, answer


def _kill_until_done(lab: Any, operator: Any, names: list[str], rng: random.Random) -> int:
    """Let the operator live for a write at a time until nothing is left to write; returns the kills.

    Where it writes for several experiments, it lives for some writes: so many orders are gone through.
    """
    for kills in range(500):
        operator.proxy.fuse = rng.choice((1, 1, 2, 3)) if len(names) > 1 else 1
        operator.start(wait=False)
        if _settled(lab, operator, names):
            operator.proxy.fuse = 0
            return kills
    raise AssertionError("it never comes to an end")


def _settled(lab: Any, operator: Any, names: list[str]) -> bool:
    """Wait until every status is of its spec and no plan has anything to do; False when the operator dies."""
    deadline = time.monotonic() + 60
    while operator.alive:
        if not (said := _unsaid(lab, names)) and not (strays := lab.strays()):
            return True
        assert time.monotonic() < deadline, (said, strays, operator.said())
        time.sleep(0.2)
    return False


def _unsaid(lab: Any, names: list[str]) -> list[str]:
    """Return the experiments whose status does not yet speak of their spec as it is."""
    found = {one["metadata"]["name"]: one for one in lab.all("ScanExperiment")}
    return [
        name
        for name in names
        if found[name].get("status", {}).get("observedGeneration") != found[name]["metadata"]["generation"]
    ]


def test_deleted_pods_come_back(lab, operator, until, record_property):
    """Pods that are deleted at any moment of their life have successors within a minute, numbered on."""
    operator.proxy.fuse = 0
    operator.start()
    rng = random.Random(1)
    each = 2  # a Job waits 10 s after the first failure and 20 s after the second: that much is in a minute
    jobs = [
        (f"pods-{number}", rng.random() * 5, rng.choice((None, 0))) for number in range(DELETIONS // each)
    ]

    def live(job: tuple[str, float, int | None]) -> list[float]:
        name, delay, grace = job
        account = partial(lab.account, name)
        lab.apply(name, {"lifecycle": {"maxRestarts": each}})
        pods: list[Tree] = []
        seconds = []
        for _ in range(each + 1):
            began = time.monotonic()
            if pods:
                lab.delete("Pod", pods[-1]["metadata"]["name"], grace=grace)
            until(lambda: _successor(lab, name, pods), account, LOST_SECONDS)
            seconds.append(time.monotonic() - began)
            pods.append(until(lambda: _prepared(_successor(lab, name, pods)), account, PREPARED_SECONDS))
            time.sleep(delay)
        numbers = [attempt_of(pod) for pod in pods]
        assert numbers == sorted(set(numbers)), account()
        until(lambda: lab.status(name).get("attempt") == numbers[-1], account)
        lab.delete("ScanExperiment", name)
        until(lambda: not lab.children(of=name), f"nothing of {name} is left")
        return seconds[1:]

    with ThreadPoolExecutor(2 * ATONCE) as pool:
        seconds = [one for found in pool.map(live, jobs) for one in found]
    record_property("longest", max(seconds))
    print(
        f"{len(seconds)} pods deleted: a successor after {sum(seconds) / len(seconds):.1f} s, "
        f"at most {max(seconds):.1f} s"
    )
    until(lambda: not lab.strays(), lab.strays)


def _successor(lab: Any, name: str, known: list[Tree]) -> Tree | None:
    """Return the living pod of an experiment that is none of those known."""
    uids = {pod["metadata"]["uid"] for pod in known}
    return next(
        (
            pod
            for pod in lab.all("Pod", of=name)
            if pod["metadata"]["uid"] not in uids
            and pod["status"].get("phase") in {"Pending", "Running"}
            and "deletionTimestamp" not in pod["metadata"]
        ),
        None,
    )


def _prepared(pod: Tree | None) -> Tree | None:
    """Return a pod whose prepare has taken the number of its attempt."""
    return pod if pod is not None and attempt_of(pod) is not None else None


def test_creation_races_with_deletion(lab, operator, until):
    """Experiments that are deleted while they are being made, and made anew at once, leave nothing."""
    operator.start()
    names = [f"race-{number}" for number in range(10)]

    def race(name: str) -> None:
        rng = random.Random(name)
        for turn in range(RACES // len(names)):
            pending = {"lifecycle": {"suspend": False}, "scheduling": {"nodeSelector": {"disk": "none"}}}
            lab.apply(name, {**IDLE, **(pending if turn % 2 else {})})
            time.sleep(rng.random() * 0.6)
            lab.delete("ScanExperiment", name)
            until(lambda: lab.get("ScanExperiment", name) is None, f"{name} goes", 30)
        if name != names[0]:
            lab.apply(name, IDLE)

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(race, names))
    assert _settled(lab, operator, names[1:])
    until(lambda: not lab.children(of=names[0]), "what was deleted last leaves nothing")
    for name in names[1:]:
        lab.delete("ScanExperiment", name)
    until(lambda: not [one for name in names for one in lab.children(of=name)], "nothing is left")


@pytest.fixture
def restart(kubeconfig: Path) -> Callable[..., None]:
    """Return a function that stops a component of the cluster and starts it again."""
    script = os.environ.get("ASYSI_CLUSTER")
    if not script:
        pytest.skip("restarts components of the cluster: needs ASYSI_CLUSTER naming a script that can")

    def again(*what: str) -> None:
        done = subprocess.run(
            [script, "restart", *what], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return again


def test_the_api_server_is_killed_mid_run(lab, operator, until, restart):
    """Killed while experiments begin, run and end, the API server finds an operator that goes on."""
    operator.start()
    lab.apply("before", host="run-12")
    lab.apply("through")
    lab.until_phase("through", "Running")
    new = [f"new-{number}" for number in range(5)]
    for name in new:
        lab.apply(name, IDLE)
    restart("kube-apiserver", "KILL")
    code, answer = until(lambda: _tried(lab, "through"), "the API server takes an edit")
    assert code == 200, answer
    assert operator.alive
    lab.until_phase("through", "Suspended", 120)
    assert lab.until_phase("before", "Succeeded", 120)["attempt"] == 0
    assert _settled(lab, operator, [*new, "before", "through"])
    for name in (*new, "before", "through"):
        lab.delete("ScanExperiment", name)


def _tried(lab: Any, name: str) -> Any:
    try:
        return lab.edit("ScanExperiment", name, {"spec": {"lifecycle": {"suspend": True}}})
    except Exception:  # noqa: BLE001 - whatever a server says that has just been killed
        return None


def test_the_kubelet_is_restarted(lab, operator, until, restart):
    """An experiment runs on through a restart of the kubelet, in the same attempt, to its end."""
    operator.start()
    lab.apply("running", host="run-15")
    lab.until_phase("running", "Running")
    restart("kubelet", "KILL")
    assert lab.until_phase("running", "Succeeded", 120)["attempt"] == 0
    assert "lastFailure" not in lab.status("running")
    until(lambda: not lab.strays(), lab.strays)
    lab.delete("ScanExperiment", "running")


def test_without_a_cpu_policy_nothing_is_pinned_and_the_status_says_so(
    lab, operator, until, restart, kubeconfig
):
    """Where the CPU manager's policy is none, whole CPUs pin nothing: CPUPinned is False and says why."""
    operator.start()
    settings, state = (
        kubeconfig.with_name("kubelet.yaml"),
        kubeconfig.parent / "kubelet" / "cpu_manager_state",
    )
    pinning = settings.read_text()
    assert "cpuManagerPolicy: static" in pinning

    def policy(text: str) -> None:
        settings.write_text(text)
        state.unlink(missing_ok=True)
        restart("kubelet")

    policy(pinning.replace("cpuManagerPolicy: static", "cpuManagerPolicy: none"))
    try:
        lab.apply("shared", {"archive": {"cpus": 1}})
        until(
            lambda: lab.condition("shared", "CPUPinned").get("reason") == "NotExclusive",
            lambda: lab.status("shared"),
            90,
        )
        condition, sets = lab.condition("shared", "CPUPinned"), lab.status("shared")["cpuSets"]
        assert condition["status"] == "False"
        assert "policy is none" in condition["message"]
        assert sets["archiver"] == sets["host"]
    finally:
        lab.delete("ScanExperiment", "shared")
        until(lambda: not lab.all("Pod", of="shared"), "its pod goes")
        policy(pinning)
