"""Stored experiments under another version of the definition: upgrade from the first version, and back."""

import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from asysi.contract.crd import GROUP, PLURAL

from .conftest import ROOT, SMALL, laid_over
from .test_upgrade import first_version  # noqa: F401 - a fixture

Tree = dict[str, Any]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
CRD = f"{PLURAL}.{GROUP}"
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
GOLDEN = json.loads((ROOT / "tests" / "golden" / "first_version.json").read_text())["experiments"]
TRAINERS = [{"name": "a"}, {"name": "b", "latents": 2048}]
ODD: dict[str, Tree] = {
    "a": {},
    "a" * 52: {},
    "0-9": {"lifecycle": {"suspend": True}},
    "amounts": {"bus": {"size": "0.5Mi"}, "capture": {"size": "1000k"}, "archive": {"memory": "1.5Gi"}},
    "spelled": {"resources": {"host": {"memory": "1024Mi", "shm": "1048576"}}},
    "doubled-kinds": {"capture": {"kinds": ["activations", "activations"]}},
    "doubled-when": {"weights": {"enabled": True, "when": ["before", "before"]}},
    "nulls": {"sae": None, "scheduling": {"queueName": None}},
    "trainers": {"sae": {"enabled": True, "train": TRAINERS}},
    "inputs": {"inputs": [{"claim": "b"}, {"claim": "a"}]},
    "placed": {"scheduling": {"tolerations": [{"operator": "Exists"}], "nodeSelector": {"a.b/c": ""}}},
}
"""Changes to the smallest spec, each valid in the first version."""
PHASES: dict[str, Tree] = {
    "waits": {},
    "runs": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z", "attempt": 0},
    "ended": {
        "phase": "Succeeded",
        "startTime": "2026-01-01T00:00:00Z",
        "completionTime": "2026-01-01T01:00:00Z",
        "conditions": [
            {
                "type": "Complete",
                "status": "True",
                "reason": "Finished",
                "message": "done",
                "lastTransitionTime": "2026-01-01T01:00:00Z",
                "observedGeneration": 1,
            }
        ],
    },
}


def _define(lab: Any, folder: Path, until: Any) -> None:
    """Put a version's definition in force."""
    definition = yaml.safe_load((folder / "crds" / f"{GROUP}_{PLURAL}.yaml").read_text())
    path = lab.path("CustomResourceDefinition", CRD)
    code, answer = lab.ask("PATCH", f"{path}?fieldManager=tests&force=true", definition, APPLY)
    assert code < 300, answer
    columns = definition["spec"]["versions"][0]["additionalPrinterColumns"]

    def served() -> bool:
        there = lab.ask("GET", path)[1]
        return bool(there["spec"]["versions"][0]["additionalPrinterColumns"] == columns)

    until(served, "the definition is stored")
    time.sleep(2)  # until every part of the API server minds it


@pytest.fixture
def defined(lab: Any, first_version: Path, until: Any) -> Iterator[Callable[[str], None]]:  # noqa: F811
    """Return a function that puts the definition of `first` or of `this` version in force."""
    versions = {"first": first_version, "this": ROOT}
    yield lambda version: _define(lab, versions[version], until)
    _define(lab, ROOT, until)


def _stored(lab: Any) -> dict[str, Tree]:
    trees = {}
    for name, change in ODD.items():
        for phase in PHASES:
            if len(name) < 46:
                trees[f"{name}-{phase}"] = laid_over(SMALL, change)
    trees["a" * 52] = SMALL
    for name, golden in GOLDEN.items():
        trees[f"golden-{name}".lower().replace("_", "-")[:52]] = golden["object"]["spec"]
    for name, spec in trees.items():
        body = {
            "apiVersion": f"{GROUP}/v1alpha1",
            "kind": "ScanExperiment",
            "metadata": {"name": name, "namespace": lab.namespace},
            "spec": spec,
        }
        code, answer = lab.ask("POST", f"{lab.path('ScanExperiment')}?fieldValidation=Strict", body)
        assert code == 201, (name, answer)
        phase = PHASES.get(name.rpartition("-")[2])
        if phase:
            path = f"{lab.path('ScanExperiment', name)}/status"
            code, answer = lab.ask("PATCH", path, {"status": phase}, MERGE)
            assert code == 200, (name, answer)
    return {name: lab.get("ScanExperiment", name) for name in trees}


def _is_usable(lab: Any, name: str, before: Tree) -> None:
    """Hold a stored object against what everybody needs of it: reading, status, updates of other fields."""
    there = lab.get("ScanExperiment", name)
    assert there is not None
    for key, value in before["spec"].items():
        assert _within(value, there["spec"].get(key)), (name, key)
    assert there.get("status") == before.get("status"), name
    status = {
        **copy.deepcopy(before.get("status", {})),
        "observedGeneration": 1,
        "phase": before.get("status", {}).get("phase", "Pending"),
    }
    body = {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": "ScanExperiment",
        "metadata": {"name": name, "namespace": lab.namespace},
        "status": status,
    }
    path = f"{lab.path('ScanExperiment', name)}"
    query = "?fieldManager=asysi-operator&force=true&dryRun=All"
    code, answer = lab.ask("PATCH", f"{path}/status{query}", body, APPLY)  # as the operator writes it
    assert code == 200, (name, answer)
    for change in (
        {"metadata": {"labels": {"team": "x"}, "annotations": {"note": "y"}}},
        {"spec": {"lifecycle": {"suspend": not there["spec"]["lifecycle"].get("suspend", False)}}},
        {"spec": {"lifecycle": {"ttlSecondsAfterFinished": 7}}},
    ):
        code, answer = lab.ask("PATCH", f"{path}?dryRun=All", change, MERGE)
        assert code == 200, (name, change, answer)
    again = {key: there[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": body["metadata"]}
    again["metadata"]["resourceVersion"] = there["metadata"]["resourceVersion"]
    code, answer = lab.ask("PUT", f"{path}?dryRun=All", again)
    assert code == 200, (name, answer)


def _within(before: Any, after: Any) -> bool:
    """Whether what was stored is still there; defaults of later fields may have come beside it."""
    if isinstance(before, dict) and isinstance(after, dict):
        return all(key in after and _within(value, after[key]) for key, value in before.items())
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(_within, before, after))
    return bool(before == after)


def test_what_is_stored_outlives_upgrade_and_rollback(lab: Any, defined: Any) -> None:
    """Odd names, amounts and lists, in every state: readable and writable under this version, and back."""
    defined("first")
    before = _stored(lab)
    assert len(before) > 30
    defined("this")
    for name, one in before.items():
        _is_usable(lab, name, one)
    defined("first")
    for name, one in before.items():
        _is_usable(lab, name, one)
    for name in before:
        lab.delete("ScanExperiment", name)


def test_what_this_version_stores_outlives_a_rollback(lab: Any, defined: Any) -> None:
    """Fields that the first version does not know are dropped when it writes; nothing else is refused."""
    long = "claim." + "a" * 60
    news: Tree = {
        "output": {"claim": long, "path": "a/b", "whenFull": "continue"},
        "inputs": [{"claim": long}],
        "scheduling": {"serviceAccountName": "robot"},
    }
    lab.apply("newer", news)
    path = f"{lab.path('ScanExperiment', 'newer')}/status"
    assert lab.ask("PATCH", path, {"status": {"phase": "Terminating"}}, MERGE)[0] == 200
    before = lab.get("ScanExperiment", "newer")
    defined("first")
    there = lab.get("ScanExperiment", "newer")
    assert there["spec"]["output"] == {"claim": long, "size": before["spec"]["output"]["size"]}
    assert "serviceAccountName" not in there["spec"]["scheduling"]
    kept = {"spec": there["spec"], "status": there["status"]}
    _is_usable(lab, "newer", before | kept)
    defined("this")
    assert lab.get("ScanExperiment", "newer")["spec"] == before["spec"], "nothing was written meanwhile"
    lab.delete("ScanExperiment", "newer")
