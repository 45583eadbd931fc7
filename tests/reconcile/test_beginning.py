"""The operator begins once it knows what there is, however long the API server lets it wait."""

import asyncio
from datetime import UTC, datetime

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


class Recorder(Listing):
    """An API server that keeps the status of experiments, and nothing else."""

    version = 1

    def now(self):
        """Return a time."""
        return datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def do(self, action, experiment):
        """Carry out nothing."""
        raise AssertionError("nothing is to be made")

    def announce(self, *_words):
        """Hear no events."""

    def write_status(self, experiment, status):
        """Keep a status."""
        self.version += 1
        metadata = experiment["metadata"] | {"resourceVersion": str(self.version)}
        return experiment | {"metadata": metadata, "status": status}


def test_what_was_written_is_looked_at_once_more(impatient):
    """A look that writes is followed by another, without any event, until one finds nothing to write."""

    async def watched():
        cluster = Recorder(0)
        controller = Controller(cluster, Settings())
        tree = {
            "metadata": {"namespace": "lab", "name": "bad", "uid": "1", "resourceVersion": "1"},
            "spec": {},
        }
        controller.seen(EXPERIMENTS.kind, tree | {"kind": EXPERIMENTS.kind})
        looks = 0
        while controller.work.depth and looks < 9:
            key, _waited = await controller.work.take()
            await controller._one(key)
            controller.work.done(key)
            looks += 1
        return looks, cluster.version

    looks, version = asyncio.run(watched())
    assert version == 2
    assert looks == 2
