"""The committed definition on a real API server: what it fills in, what it keeps, what it refuses."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from asysi.contract.crd import GROUP, PLURAL, VERSION
from asysi.contract.errors import ConfigError
from asysi.contract.loading import check
from asysi.contract.spec import ScanExperiment

pytestmark = pytest.mark.e2e

Tree = dict[str, Any]
Create = Callable[[Tree], Tree]
CRD = Path(__file__).parents[2] / "crds" / f"{GROUP}_{PLURAL}.yaml"


@pytest.fixture(scope="module")
def api(kubeconfig: Path) -> Iterator[Any]:
    """Return a client of an API server that knows the committed definition."""
    from kubernetes import client, config

    definition = yaml.safe_load(CRD.read_text())
    name = definition["metadata"]["name"]
    with config.new_client_from_config(str(kubeconfig)) as connection:
        definitions = client.ApiextensionsV1Api(connection)
        known = any(
            item.metadata.name == name for item in definitions.list_custom_resource_definition().items
        )
        if known:
            definitions.patch_custom_resource_definition(name, definition)
        else:
            definitions.create_custom_resource_definition(definition)
        _wait_until(lambda: _established(definitions.read_custom_resource_definition(name)))
        yield connection
        if not known:
            definitions.delete_custom_resource_definition(name)


@pytest.fixture(scope="module")
def namespace(api: Any) -> Iterator[str]:
    """Return a namespace of its own."""
    from kubernetes import client

    name = f"asysi-crd-{os.getpid()}"
    core = client.CoreV1Api(api)
    core.create_namespace({"metadata": {"name": name}})
    yield name
    core.delete_namespace(name)


@pytest.fixture
def create(api: Any, namespace: str) -> Create:
    """Return a function that sends an experiment, strictly, and returns what would be stored."""
    from kubernetes import client

    def send(tree: Tree) -> Tree:
        return client.CustomObjectsApi(api).create_namespaced_custom_object(
            GROUP,
            VERSION,
            namespace,
            PLURAL,
            tree | {"metadata": tree["metadata"] | {"namespace": namespace}},
            dry_run="All",
            field_validation="Strict",
        )

    return send


def test_defaults_arrive(create: Create, minimal: Callable[..., Tree]) -> None:
    """The API server fills in exactly the defaults that the models have."""
    stored = create(minimal())["spec"]
    assert (
        stored
        == ScanExperiment.model_validate(minimal()).model_dump(by_alias=True, exclude_none=True)["spec"]
    )


def test_nothing_is_pruned(create: Create, everything: Tree) -> None:
    """Every field that the models know is stored as it was sent."""
    assert create(everything)["spec"] == everything["spec"]


WORKLOADS = {
    "train": {"config": "c.yaml", "batchSize": 8, "length": 2, "epochs": 3, "seed": 1, "holdout": 0.2},
    "ppo": {"epochs": 3, "deep": {"er": [1]}},
    "custom": {"image": "i", "command": ["c"]},
}


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_workload_is_stored(create: Create, minimal: Callable[..., Tree], workload: str) -> None:
    """Each workload is stored as it was sent; the untyped one with whatever is in it."""
    content = WORKLOADS[workload]
    stored = create(minimal({"workload": {"scan": None, workload: content}}))
    assert stored["spec"]["workload"] == {workload: content}


def test_null_means_absent(create: Create, minimal: Callable[..., Tree]) -> None:
    """A field that may be null is stored as null, and the rules take it for absent."""
    tree = minimal()
    tree["spec"] |= {"sae": None, "workload": {"scan": {}, "custom": None}}
    tree["spec"]["model"]["revision"] = None
    assert create(tree)["spec"]["sae"] is None
    tree["spec"]["archive"] = {"enabled": False}
    assert "the stream has no reader" in _refusal(create, tree)


def test_each_rule_is_kept_by_both_sides(create: Create, broken: tuple[str, Tree]) -> None:
    """What breaks a rule is refused by the API server, with the rule's message, and by the models."""
    message, tree = broken
    assert message in _refusal(create, tree)
    with pytest.raises(ConfigError):
        check(tree)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bus": {"shards": 0}}, "spec.bus.shards"),
        ({"bus": {"size": "64Bi"}}, "spec.bus.size"),
        ({"mode": "hpc"}, "spec.mode"),
        ({"sae": {"train": [{"seed": -1}]}}, "spec.sae.train[0].seed"),
        ({"capture": {"hookPoints": []}}, "spec.capture.hookPoints"),
        ({"capture": {"hookPoints": None}}, "spec.capture.hookPoints"),
        ({"capture": {"sampling": {"rate": 0}}}, "spec.capture.sampling.rate"),
        ({"workload": {"scan": {"batchSize": "8"}}}, "spec.workload.scan.batchSize"),
        ({"archive": {"rotated": "1Gi"}}, "spec.archive.rotated"),
        ({"resources": {"binding": {"cpus": {"hots": "0"}}}}, "spec.resources.binding.cpus.hots"),
    ],
)
def test_bad_values_are_refused_by_name(
    create: Create, minimal: Callable[..., Tree], change: Tree, said: str
) -> None:
    """A value of the wrong type or range, or an unknown key, is refused with its path."""
    assert said in _refusal(create, minimal(change))


def test_names_that_would_not_fit_are_refused(create: Create, minimal: Callable[..., Tree]) -> None:
    """An experiment's name leaves room for the names made from it."""
    tree = minimal()
    tree["metadata"]["name"] = "a" * 53
    assert "metadata.name" in _refusal(create, tree)


def test_status_is_a_subresource(api: Any, namespace: str, minimal: Callable[..., Tree]) -> None:
    """Status is written apart from the spec, and holds one condition a type."""
    from kubernetes import client

    objects = client.CustomObjectsApi(api)
    objects.create_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, minimal())
    condition = {
        "type": "Ready",
        "status": "True",
        "reason": "Done",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    status: Tree = {
        "phase": "Running",
        "counters": {"captured": 12, "dropped": 3},
        "sae": {"fvu": 0.25},
        "conditions": [condition],
        "cpuSets": {"host": "0-3"},
    }
    written = objects.patch_namespaced_custom_object_status(
        GROUP, VERSION, namespace, PLURAL, "minimal", {"status": status}
    )
    assert written["status"] == status | {"conditions": [condition | {"message": ""}]}
    assert written["metadata"]["generation"] == 1
    with pytest.raises(client.ApiException, match="Duplicate value"):
        objects.patch_namespaced_custom_object_status(
            GROUP, VERSION, namespace, PLURAL, "minimal", {"status": {"conditions": [condition] * 2}}
        )


def _refusal(create: Create, tree: Tree) -> str:
    from kubernetes import client

    with pytest.raises(client.ApiException) as refusal:
        create(tree)
    assert refusal.value.status in {400, 422}
    return str(refusal.value.body)


def _established(definition: Any) -> bool:
    conditions = definition.status.conditions or []
    return any(item.type == "Established" and item.status == "True" for item in conditions)


def _wait_until(holds: Callable[[], bool], timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, "the definition was not established"
        time.sleep(0.1)
