"""A cluster in memory, as simple as planning needs it: objects, identities, apply, late observation."""

import copy
import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from asysi_operator.manifests.labels import EXPERIMENT
from asysi_operator.observation import Observed
from asysi_operator.reconcile import Action, Apply, OperatorSettings, Plan, plan
from asysi_operator.status import derive

Tree = dict[str, Any]
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SPEC: Tree = {
    "model": {"uri": "file:///models/minilm"},
    "data": {"uri": "jsonl:///data/text.jsonl"},
    "workload": {"scan": {}},
    "capture": {"hookPoints": ["*"]},
}


class FakeCluster:
    """What an API server and its garbage collector keep. It is not a fake of their timing: nothing waits."""

    def __init__(self, spec: Tree | None = None, **metadata: Any) -> None:
        self._ids = itertools.count(1)
        self.objects: dict[tuple[str, str], Tree] = {}
        self.removed: list[tuple[str, str, str]] = []
        self.writes = 0
        self.experiment: Tree = {
            "apiVersion": "asysi.dev/v1alpha1",
            "kind": "ScanExperiment",
            "metadata": {
                "name": "minilm",
                "namespace": "lab",
                "uid": "experiment-1",
                "generation": 1,
                **metadata,
            },
            "spec": {**SPEC, **(spec or {})},
        }

    def edit(self, spec: Tree) -> None:
        """Replace parts of the spec, as a user would."""
        self.experiment = copy.deepcopy(self.experiment)
        self.experiment["spec"] |= spec
        self.experiment["metadata"]["generation"] += 1

    def put(self, item: Tree) -> None:
        """Put an object there that is nobody's, or somebody else's."""
        item = copy.deepcopy(item)
        item["metadata"] |= {"uid": f"uid-{next(self._ids)}", "creationTimestamp": "2026-01-02T03:00:00Z"}
        self.objects[item["kind"], item["metadata"]["name"]] = item

    def observe(self, **more: Any) -> Observed:
        """Return what the watches would have brought by now."""
        labelled = [
            item for item in self.objects.values() if EXPERIMENT in (item["metadata"].get("labels") or {})
        ]
        pods = [item for item in labelled if item["kind"] == "Pod"]
        children = [item for item in labelled if item["kind"] != "Pod"]
        return copy.deepcopy(Observed(self.experiment, more.pop("now", NOW), children, pods, **more))

    def do(self, action: Action) -> None:
        """Carry out a write as the effects do: what was not seen is not taken from anybody."""
        self.writes += 1
        if isinstance(action, Apply):
            manifest = copy.deepcopy(action.manifest)
            key = (manifest["kind"], manifest["metadata"]["name"])
            there = self.objects.get(key)
            if there is None:
                self.put(manifest)
            elif action.exists or there["metadata"].get("ownerReferences") == manifest["metadata"].get(
                "ownerReferences"
            ):
                kept = {name: there["metadata"][name] for name in ("uid", "creationTimestamp")}
                status = {"status": there["status"]} if "status" in there else {}
                self.objects[key] = manifest | {"metadata": manifest["metadata"] | kept} | status
            return
        key = (action.kind, action.name)
        if key in self.objects and self.objects[key]["metadata"]["uid"] == action.uid:
            del self.objects[key]
            self.removed.append((*key, action.uid))
            if action.kind == "Job":
                for other in [o for o, item in self.objects.items() if _owner(item) == action.uid]:
                    del self.objects[other]

    def step(self, writes: int | None = None, observed: Observed | None = None) -> Plan:
        """Plan once and carry out at most so many writes; then the operator is gone, or writes the status."""
        observed = observed or self.observe()
        decided = plan(observed, OperatorSettings())
        for action in list(decided.actions)[:writes]:
            self.do(action)
        if writes is None or writes > len(decided.actions):
            self.write_status(derive(self.observe(), decided).status)
        return decided

    def write_status(self, status: Tree) -> None:
        """Record a status."""
        self.experiment = self.experiment | {"status": status}

    def settle(self) -> None:
        """Let the operator work until it finds nothing more to do."""
        for _ in range(20):
            if not self.step().actions:
                return
        raise AssertionError("it does not settle")

    def run_pod(self, attempt: int = 0, *, host: Tree | None = None, **status: Any) -> Tree:
        """Let the Job have a pod, whose host is in the given state."""
        job = self.objects["Job", "minilm"]
        template = job["spec"]["template"]
        prepared = {"exitCode": 0, "reason": "Completed", "message": json.dumps({"attempt": attempt})}
        pod = {
            "kind": "Pod",
            "metadata": {
                "name": f"minilm-0-{attempt}",
                "namespace": "lab",
                "labels": template["metadata"]["labels"],
                "annotations": template["metadata"]["annotations"],
                "ownerReferences": [{"uid": job["metadata"]["uid"]}],
            },
            "spec": {"nodeName": "node"},
            "status": {
                "phase": "Running",
                "conditions": [{"type": "PodScheduled", "status": "True"}],
                "initContainerStatuses": [{"name": "prepare", "state": {"terminated": prepared}}],
                "containerStatuses": [{"name": "host", "state": host or {}}],
                **status,
            },
        }
        self.put(pod)
        return self.objects["Pod", pod["metadata"]["name"]]


def _owner(item: Tree) -> str | None:
    owners = item["metadata"].get("ownerReferences") or [{}]
    return owners[0].get("uid")


@pytest.fixture(scope="session")
def cluster() -> Callable[..., FakeCluster]:
    """Makes a cluster with one experiment and nothing else."""
    return FakeCluster
