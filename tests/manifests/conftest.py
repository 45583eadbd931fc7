"""Experiments to render."""

from collections.abc import Callable
from typing import Any

import pytest

from asysi.contract.spec import ScanExperiment
from asysi_operator.manifests import build

SPEC: dict[str, Any] = {
    "model": {"uri": "file:///models/minilm"},
    "data": {"uri": "jsonl:///data/text.jsonl"},
    "workload": {"scan": {}},
    "capture": {"hookPoints": ["encoder.layer.*.output"]},
}


class Rendered:
    """The rendered objects of an experiment, by kind."""

    def __init__(self, experiment: ScanExperiment) -> None:
        self.objects = build(experiment)
        self.by_kind = {item["kind"]: item for item in self.objects}
        self.job = self.by_kind["Job"]["spec"]
        self.pod = self.job["template"]["spec"]
        self.inits, self.mains = self.pod["initContainers"], self.pod["containers"]
        self.containers = [*self.inits, *self.mains]

    def container(self, name: str) -> dict[str, Any]:
        """Return a container by its name."""
        return next(item for item in self.containers if item["name"] == name)


def changed(spec: dict[str, Any], metadata: dict[str, Any] | None = None) -> ScanExperiment:
    """Return the plain experiment with parts of its spec replaced."""
    document = {"metadata": {"name": "minilm", **(metadata or {})}, "spec": {**SPEC, **spec}}
    return ScanExperiment.model_validate(document)


@pytest.fixture
def experiment() -> Callable[..., ScanExperiment]:
    """Makes an experiment."""
    return changed


@pytest.fixture
def render() -> Callable[..., Rendered]:
    """Renders an experiment, or the plain one with parts of its spec replaced."""

    def make(
        spec: dict[str, Any] | ScanExperiment | None = None, metadata: dict[str, Any] | None = None
    ) -> Rendered:
        return Rendered(spec if isinstance(spec, ScanExperiment) else changed(spec or {}, metadata))

    return make
