"""Every field of the spec that concerns the cluster changes something in the rendered objects."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi.contract.fields import schema_fields
from asysi.contract.spec import ScanExperiment
from asysi_operator.manifests import build

BASE: dict[str, Any] = {
    "metadata": {"name": "minilm"},
    "spec": {
        "model": {"uri": "file:///models/minilm"},
        "data": {"uri": "jsonl:///data/text.jsonl"},
        "workload": {"scan": {}},
        "capture": {"hookPoints": ["*"]},
        "resources": {"prepare": {"memory": "4Gi"}},
    },
}
CHANGES: dict[str, Any] = {
    "metadata.name": "other",
    "metadata.namespace": "lab",
    "metadata.labels": {"team": "x"},
    "metadata.uid": "1-2-3",
    "spec.model.uri": "hf://owner/name",
    "spec.model.tokenizer": "hf://owner/name",
    "spec.model.secretRef": {"name": "hub"},
    "spec.data.uri": "jsonl://s3://bucket/rows",
    "spec.inputs": [{"claim": "models"}],
    "spec.workload.custom": {"image": "mine", "command": ["run"]},
    "spec.capture.size": "128Mi",
    "spec.bus.size": "256Mi",
    "spec.sae": None,
    "spec.sae.enabled": False,
    "spec.sae.cpus": 2,
    "spec.sae.memory": "5Gi",
    "spec.archive.enabled": False,
    "spec.archive.cpus": 2,
    "spec.archive.memory": "5Gi",
    "spec.output.uri": "s3://bucket",
    "spec.output.claim": "results",
    "spec.output.size": "5Gi",
    "spec.output.secretRef": {"name": "bucket"},
    **{f"spec.resources.{name}.cpus": 2.5 for name in ("host", "hook", "prepare", "finish")},
    **{f"spec.resources.{name}.memory": "5Gi" for name in ("host", "hook", "prepare", "finish")},
    "spec.resources.host.gpus": 1,
    "spec.resources.host.shm": "128Mi",
    "spec.scheduling.nodeSelector": {"disk": "fast"},
    "spec.scheduling.tolerations": [{"key": "gpu", "operator": "Exists"}],
    "spec.scheduling.priorityClassName": "high",
    "spec.scheduling.runtimeClassName": "nvidia",
    "spec.scheduling.queueName": "lab",
    "spec.lifecycle.suspend": True,
    "spec.lifecycle.activeDeadlineSeconds": 60,
    "spec.lifecycle.startDeadlineSeconds": 60,
    "spec.lifecycle.maxRestarts": 7,
    "spec.lifecycle.gracePeriodSeconds": 7,
    "spec.lifecycle.ttlSecondsAfterFinished": 7,
}
"""A change to every field that the cluster must know of."""
WORKERS_OWN = (
    "apiVersion",
    "kind",
    "spec.mode",
    "spec.model",
    "spec.data",
    "spec.workload",
    "spec.capture",
    "spec.bus",
    "spec.sae.train",
    "spec.archive",
    "spec.weights",
    "spec.consumers",
    "spec.resources.binding",
)
"""Parts whose other fields only the workers read, from the ConfigMap."""


def _with(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(BASE)
    part = document
    *parents, last = path.split(".")
    for parent in parents:
        part = part.setdefault(parent, {})
    part[last] = value
    return document


def _seen_by_the_cluster(document: dict[str, Any]) -> str:
    objects = build(ScanExperiment.model_validate(document))
    return json.dumps([item for item in objects if item["kind"] != "ConfigMap"])


@pytest.mark.parametrize("path", CHANGES)
def test_change_is_seen(path):
    """A change to the field changes an object beside the ConfigMap."""
    assert _seen_by_the_cluster(_with(path, CHANGES[path])) != _seen_by_the_cluster(BASE)


def test_every_field_is_somebodys():
    """Each field of the schema is in the table of changes, or in a part that the workers alone read."""
    leaves = [field.pattern for field in schema_fields(ScanExperiment) if field.part is None]
    orphans = [
        leaf
        for leaf in leaves
        if not any(
            leaf == known or leaf.startswith((f"{known}.", f"{known}[]"))
            for known in (*CHANGES, *WORKERS_OWN)
        )
    ]
    assert orphans == []


memory = st.integers(5, 64).map(lambda size: f"{size}Gi")
cpus = st.floats(0.0001, 1024)
resources = st.fixed_dictionaries({}, optional={"cpus": cpus, "memory": memory})
specs = st.fixed_dictionaries(
    {
        "resources": st.fixed_dictionaries(
            {"prepare": st.just({"memory": "16Gi"})},
            optional=dict.fromkeys(("host", "hook", "finish"), resources),
        ),
        "sae": st.none() | resources,
        "archive": st.fixed_dictionaries(
            {"enabled": st.booleans()}, optional={"cpus": cpus, "memory": memory}
        ),
        "bus": st.fixed_dictionaries({}, optional={"shards": st.integers(1, 64), "size": st.just("1Gi")}),
        "lifecycle": st.fixed_dictionaries(
            {}, optional={"maxRestarts": st.integers(0, 100), "gracePeriodSeconds": st.integers(1, 3600)}
        ),
    }
)


@given(specs)
def test_any_pod_is_guaranteed_and_the_same_each_time(spec):
    """Whatever the numbers: requests equal limits, no CPU quantity is zero, twice rendered is the same."""
    document = {"metadata": BASE["metadata"], "spec": {**BASE["spec"], **spec}}
    experiment = ScanExperiment.model_validate(document)
    objects = build(experiment)
    assert json.dumps(objects) == json.dumps(build(experiment))
    pod = objects[-1]["spec"]["template"]["spec"]
    for item in [*pod["initContainers"], *pod["containers"]]:
        assert item["resources"]["requests"] == item["resources"]["limits"]
        assert item["resources"]["limits"]["cpu"] not in {"0", "0m"}
        threads = next(v["value"] for v in item["env"] if v["name"] == "OMP_NUM_THREADS")
        assert 1 <= int(threads) <= 1024
