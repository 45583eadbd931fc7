"""The operator begins once it knows what there is, however long the API server lets it wait."""

import asyncio

import pytest

pytest.importorskip("kopf")
pytest.importorskip("kubernetes")

from asysi_operator import controller as room
from asysi_operator.cluster import CHILDREN, EXPERIMENTS, PODS, UnavailableError
from asysi_operator.controller import Controller
from asysi_operator.manifests.labels import EXPERIMENT
from asysi_operator.reconcile import Settings


class Listing:
    """An API server that is away at first and then lists an experiment and its Job."""

    def __init__(self, failures):
        self.failures, self.asked = failures, []

    def everything(self, kind, namespace):
        """List a kind."""
        if self.failures:
            self.failures -= 1
            raise UnavailableError("away")
        self.asked.append((kind.kind, namespace))
        metadata = {"namespace": namespace, "name": "minilm", "uid": kind.kind, "resourceVersion": "1"}
        labels = {} if kind is EXPERIMENTS else {EXPERIMENT: "minilm"}
        found = {"kind": kind.kind, "metadata": {**metadata, "labels": labels}}
        return [found] if kind.kind in {"Job", EXPERIMENTS.kind} else []


@pytest.fixture
def impatient(monkeypatch):
    """Take no time between two attempts."""
    monkeypatch.setattr(room, "BEGIN_SECONDS", 0.0)


@pytest.mark.parametrize("failures", [0, 3])
def test_everything_is_known_before_anything_is_looked_at(impatient, failures):
    """Every kind of every namespace is listed, experiments last, also if the API server is away at first."""
    listing = Listing(failures)
    controller = Controller(listing, Settings(), ("lab", "shop"))
    asyncio.run(controller.learn())
    kinds = [kind.kind for kind in (*CHILDREN, PODS, EXPERIMENTS)]
    assert listing.asked == [(kind, namespace) for kind in kinds for namespace in ("lab", "shop")]
    for namespace in ("lab", "shop"):
        assert controller.world.experiment((namespace, "minilm")) is not None
        assert [one["kind"] for one in controller.world.children((namespace, "minilm"))] == ["Job"]
    assert controller.work.depth == 2
