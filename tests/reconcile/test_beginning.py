"""The operator begins once it knows what there is, and follows it, however long it has to wait."""

import asyncio
import copy
import queue
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("kopf")
pytest.importorskip("kubernetes")

from asysi_operator import controller as controlling
from asysi_operator import watching as room
from asysi_operator.cluster import CHILDREN, EXPERIMENTS, PODS, GoneError, RejectedError, UnavailableError
from asysi_operator.controller import Controller
from asysi_operator.manifests.labels import EXPERIMENT
from asysi_operator.reconcile import OperatorSettings
from asysi_operator.watching import Watches

KINDS = (*CHILDREN, PODS, EXPERIMENTS)
JOBS = CHILDREN[0]


def item(kind, namespace="lab", name="minilm", version=1):
    """Return an object of the experiment minilm, or the experiment itself."""
    metadata = {"namespace": namespace, "name": name, "uid": kind.kind, "resourceVersion": str(version)}
    labels = {} if kind is EXPERIMENTS else {EXPERIMENT: "minilm"}
    return {"kind": kind.kind, "metadata": {**metadata, "labels": labels}}


SPEC = {
    "model": {"uri": "file:///inputs/files/model"},
    "data": {"uri": "jsonl:///inputs/files/text.jsonl"},
    "inputs": [{"claim": "files"}],
    "workload": {"scan": {}},
    "capture": {"hookPoints": ["*"]},
}


class Server:
    """An API server that is away at first, and then lists and says what a test tells it to."""

    def __init__(self, failures=0):
        self.failures, self.asked, self.there = failures, [], {JOBS.kind, EXPERIMENTS.kind}
        self.news = {kind.kind: queue.Queue() for kind in KINDS}
        self.since = []

    def listing(self, kind, namespace):
        """List a kind in two pages, of which one is empty."""
        if self.failures:
            self.failures -= 1
            raise UnavailableError("away")
        self.asked.append((kind.kind, namespace))
        yield iter([item(kind, namespace)] if kind.kind in self.there else []), "5"
        yield iter([]), "6"

    def changes(self, kind, _namespace, version):
        """Bring what a test puts into the queue; an exception is raised, None ends the watch."""
        self.since.append((kind.kind, version))
        while (what := self.news[kind.kind].get(timeout=20)) is not None:
            if isinstance(what, Exception):
                raise what
            yield what


@pytest.fixture
def impatient(monkeypatch):
    """Take no time between two attempts."""
    monkeypatch.setattr(room, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(room, "LAST_WAIT", 0.001)


async def holds(condition, dead=None):
    """Wait until something holds."""
    async with asyncio.timeout(10):
        while not condition() and not (dead and dead.done()):
            await asyncio.sleep(0.005)


def following(server, namespaces, story):
    """Run a story with a controller that follows a server, then end its watches."""

    async def run():
        controller = Controller(server, OperatorSettings(), namespaces)
        watches = Watches(server, KINDS, namespaces, controller.take, controller.listed)
        dead = watches.start()
        async with asyncio.timeout(10):
            await watches.begun()
        try:
            await story(controller, dead)
        finally:
            dead.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("failures", [0, 3])
def test_everything_is_known_before_anything_is_looked_at(impatient, failures):
    """Every kind of every namespace is listed once, also if the API server is away at first."""
    server = Server(failures)

    async def story(controller, _dead):
        for namespace in ("lab", "shop"):
            assert controller.cache.experiment((namespace, "minilm")) is not None
            assert [one["kind"] for one in controller.cache.children((namespace, "minilm"))] == ["Job"]
        assert controller.work.depth == 2

    following(server, ("lab", "shop"), story)
    kinds = [(kind.kind, namespace) for kind in KINDS for namespace in ("lab", "shop")]
    assert sorted(server.asked) == sorted(kinds)


def test_a_watch_goes_on_where_it_was(impatient):
    """One that breaks off or ends is taken up at the last version that it brought, bookmarks included."""
    server = Server()

    async def story(controller, _dead):
        jobs = server.news[JOBS.kind]
        jobs.put([("ADDED", item(JOBS, name="other", version=8))])
        jobs.put([("BOOKMARK", {"metadata": {"resourceVersion": "12"}})])
        jobs.put(UnavailableError("reset"))
        jobs.put([("DELETED", item(JOBS, name="other", version=14))])
        jobs.put(None)
        await holds(lambda: ("Job", "14") in server.since)
        assert len(controller.cache.children(("lab", "minilm"))) == 1

    following(server, ("lab",), story)
    assert [version for kind, version in server.since if kind == "Job"] == ["5", "12", "14"]


def test_a_version_that_is_too_old_is_followed_by_a_listing(impatient):
    """What went while nobody could tell is not in the new listing, and is forgotten."""
    server = Server()

    async def story(controller, _dead):
        server.there.discard(JOBS.kind)
        server.news[JOBS.kind].put(GoneError())
        await holds(lambda: not controller.cache.children(("lab", "minilm")))
        assert server.asked.count(("Job", "lab")) == 2

    following(server, ("lab",), story)


def test_the_death_of_a_watch_is_that_of_the_operator(impatient):
    """What no watch expects ends it, and is not passed over."""
    server = Server()

    async def story(_controller, dead):
        server.news["Pod"].put(ZeroDivisionError("a mistake"))
        await holds(lambda: False, dead)
        assert isinstance(dead.exception(), ZeroDivisionError)

    following(server, ("lab",), story)


class Recorder(Server):
    """An API server that makes objects and keeps the status of experiments."""

    version = 1

    def __init__(self):
        super().__init__()
        self.log = []

    def now(self):
        """Return a time."""
        return datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def do(self, action, experiment):
        """Make an object."""
        self.version += 1
        made = action.manifest
        self.log.append(made["kind"])
        more = {
            "namespace": experiment["metadata"]["namespace"],
            "uid": f"uid-{self.version}",
            "creationTimestamp": "2026-01-02T03:04:05Z",
        }
        return made | {"metadata": made["metadata"] | more | {"resourceVersion": str(self.version)}}

    def announce(self, *_words):
        """Hear no events."""

    def write_status(self, experiment, status):
        """Keep a status."""
        self.version += 1
        self.log.append("status")
        metadata = experiment["metadata"] | {"resourceVersion": str(self.version)}
        return experiment | {"metadata": metadata, "status": status}


def looked_at(spec):
    """Look at a new experiment while there is reason; return the first writes, all writes, and the looks."""

    async def run():
        cluster = Recorder()
        controller = Controller(cluster, OperatorSettings())
        tree = {
            "apiVersion": "asysi.dev/v1alpha1",
            "kind": EXPERIMENTS.kind,
            "metadata": {"namespace": "lab", "name": "minilm", "uid": "1", "resourceVersion": "1"},
            "spec": spec,
        }
        controller.seen(EXPERIMENTS.kind, tree)
        looks, first = 0, None
        for _time in range(2):
            while controller.work.depth and looks < 9:
                key, _waited = await controller.work.take()
                await controller._one(key)
                controller.work.done(key)
                looks += 1
            first = first or list(cluster.log)
            await asyncio.sleep(0.4)
        return first, cluster.log, looks

    return asyncio.run(run())


def test_what_was_written_is_looked_at_once_more():
    """A status that is written is followed by a look, without any event, until there is nothing to say."""
    _first, log, looks = looked_at({})
    assert log == ["status"]
    assert looks == 2


def test_what_is_made_is_said_a_moment_later():
    """The look that makes objects says nothing; the status follows once, with what has come of them."""
    first, log, looks = looked_at(SPEC)
    assert sorted(first[:-1]) == ["ConfigMap", "NetworkPolicy", "PersistentVolumeClaim"]
    assert first[-1] == "Job"
    assert log == [*first, "status"]
    assert looks == 3


def test_experiments_are_learned_however_long_it_takes(monkeypatch):
    """An API server that is away at first is asked again; then every namespace's experiments are known."""
    monkeypatch.setattr(controlling, "BEGIN_SECONDS", 0.001)
    server = Server(failures=3)
    controller = Controller(server, OperatorSettings(), ("lab", "other"))
    asyncio.run(controller.learn())
    assert server.asked == [("ScanExperiment", "lab"), ("ScanExperiment", "other")]
    assert controller.cache.experiment(("lab", "minilm"))["metadata"]["uid"] == "ScanExperiment"
    assert controller.cache.experiment(("other", "minilm")) is not None


def test_kopfs_events_end_in_the_controller():
    """What kopf brings of an experiment is known, newer states replace older ones, and an end is an end."""
    import kopf

    from asysi_operator.handlers import registry_of

    controller = Controller(Server(), OperatorSettings())
    (handler,) = registry_of(controller)._watching.get_all_handlers()
    body = item(EXPERIMENTS, version=7)
    del body["kind"]

    def bring(what):
        asyncio.run(handler.fn(event=kopf.RawEvent(type=what, object=body)))
        return controller.cache.experiment(("lab", "minilm"))

    assert bring(None)["kind"] == "ScanExperiment"
    body = item(EXPERIMENTS, version=8)
    assert bring("MODIFIED")["metadata"]["resourceVersion"] == "8"
    assert bring("DELETED") is None


def test_kopf_keeps_and_compares_no_states():
    """An event of kopf costs no copy of the object: no earlier state of it is kept or compared."""
    import kopf
    from kopf._cogs.structs.bodies import Body

    from asysi_operator.handlers import configure

    settings, patch = kopf.OperatorSettings(), {}
    configure(settings)
    states, body = settings.persistence.diffbase_storage, Body(item(EXPERIMENTS))
    assert states.build(body=body) == {}
    states.store(body=body, patch=patch, essence={})
    assert (states.fetch(body=body), patch) == (None, {})


def test_a_pod_that_was_put_out_is_said_even_if_the_status_may_not_be_written_yet():
    """The pod is marked and gone while the status, written a moment ago, may not be: it is said later."""
    tree = item(EXPERIMENTS) | {"apiVersion": "asysi.dev/v1alpha1", "spec": SPEC}
    put_out = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "EvictionByEvictionAPI",
        "lastTransitionTime": "2026-01-02T03:04:05Z",
    }

    async def run():
        now = 100.0
        controller = Controller(Recorder(), OperatorSettings(), clock=lambda: now)
        controller.seen(EXPERIMENTS.kind, tree)
        key = ("lab", "minilm")
        for _look in range(3):
            await controller._one(key)
        assert "lastFailure" not in controller.cache.experiment(key)["status"]
        job = next(one for one in controller.cache.children(key) if one["kind"] == "Job")
        pod = item(PODS, name="minilm-0", version=90)
        pod["metadata"]["ownerReferences"] = [{"uid": job["metadata"]["uid"]}]
        pod |= {"spec": {}, "status": {"conditions": [put_out]}}
        controller.seen(PODS.kind, pod, gone=True)
        await controller._one(key)
        now += controlling.SAY_SECONDS
        await controller._one(key)
        return controller.cache.experiment(key)["status"]

    assert asyncio.run(run())["lastFailure"]["reason"] == "EvictionByEvictionAPI"


def test_events_that_may_not_be_read_or_made_keep_no_status_back():
    """A refusal of the events, which only explain, does not keep the status from being written."""
    tree = item(EXPERIMENTS) | {"apiVersion": "asysi.dev/v1alpha1", "spec": SPEC}

    class Silent(Recorder):
        def now(self):
            return super().now() + timedelta(seconds=60)  # the Job has had no pod for a minute

        def warnings(self, *_about):
            raise RejectedError("Forbidden", "events is forbidden")

        def announce(self, *_words):
            raise RejectedError("Invalid", "the event is invalid")

    async def run():
        now, key = 100.0, ("lab", "minilm")
        cluster = Silent()
        controller = Controller(cluster, OperatorSettings(), clock=lambda: now)
        controller.seen(EXPERIMENTS.kind, tree)
        await controller._one(key)
        await controller._one(key)
        first = controller.cache.experiment(key)["status"]["phase"]
        broken = copy.deepcopy(tree)
        broken["spec"]["model"]["uri"] = "file://./mine"
        cluster.version += 1
        broken["metadata"] |= {"resourceVersion": str(cluster.version), "generation": 2}
        controller.seen(EXPERIMENTS.kind, broken)
        now += controlling.SAY_SECONDS
        await controller._one(key)
        return first, controller.cache.experiment(key)["status"]["phase"]

    assert asyncio.run(run()) == ("Pending", "Refused")
