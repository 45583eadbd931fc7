"""The reconcile loop: observe, plan, act, write the status. All decisions are made by pure functions."""

import asyncio
import functools
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field, replace

from asysi.contract.runtime import PORTS, Container
from asysi.contract.telemetry import RunStatus
from asysi_operator import metrics
from asysi_operator.cache import Key, ObjectCache, StaleWatchDetector, key_of
from asysi_operator.cluster import (
    CHILDREN,
    EXPERIMENTS,
    KINDS,
    PODS,
    Change,
    Cluster,
    RejectedError,
    ResourceKind,
    UnavailableError,
)
from asysi_operator.contention import Contests, contested
from asysi_operator.failures import Failure, oddity
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.observation import Observed, is_terminating, rfc3339, state_of
from asysi_operator.reconcile import Action, Apply, OperatorSettings, Plan, concurrent, plan
from asysi_operator.status import announcements, derive, is_urgent, only_counters_changed
from asysi_operator.status_client import fetch_status
from asysi_operator.workqueue import WorkQueue

WORKERS = 8
"""Experiments reconciled concurrently."""
WRITERS = 16
"""Concurrent writes."""
ASK_SECONDS = 5.0
"""Seconds between two status requests to finish, and between two writes of counters."""
ASK_LIMIT = 1.0
"""Seconds after which no further worker is queried, because the status write waits for the responses."""
CPUS_SECONDS = 30.0
"""Seconds between two queries of all workers for their CPU sets."""
GATHER_SECONDS = 0.1
"""Seconds to batch events of an experiment's objects before a reconcile: they arrive in bursts."""
SETTLE_SECONDS = 0.3
"""Seconds from a plan's writes to the status write, so that the new objects have a status of their own."""
SAY_SECONDS = 2.0
"""Seconds between two status writes, unless the status reports an end, a refusal, or an observed edit."""
AUDIT_SECONDS = 30.0
"""Seconds between two audits, which compare the cache with the API server."""
BEGIN_SECONDS = 5.0
"""Seconds between two attempts to start, and between the first audits."""
EVENTS_SECONDS, EVENTS_LATEST = 2.0, 60.0
"""First and maximum delay in seconds between two reads of the events of an unexplained state."""
log = logging.getLogger("asysi.operator")


@dataclass
class ReconcileState:
    """State kept for an experiment between reconciles; losing it costs only a few seconds."""

    said: float = float("-inf")
    """When the status was last written, monotonic."""
    asked: float = float("-inf")
    asked_all: float = float("-inf")
    looked: float = float("-inf")
    """When events were last read."""
    pod: str = ""
    """UID of the pod that `answers` belongs to."""
    answers: dict[str, RunStatus] = field(default_factory=dict)
    odd: str = ""
    looks: int = 0
    """Number of reads of the same oddity's events; the delay grows with it."""
    events: Sequence[Manifest] = ()
    contests: Contests = field(default_factory=Contests)
    put_out: list[Manifest] = field(default_factory=list)
    """Pods that were evicted and deleted, until the status records it."""


@dataclass
class ReconcileResult:
    """Result of one reconcile of an experiment."""

    again: float | None = None
    failed: bool = False
    written: Sequence[Manifest] = ()
    """Objects as the API server returned them: put into the cache at once, before their events arrive."""
    said: bool = False
    """Whether the status was written."""
    recorded: bool = False
    """Whether the recorded status covers all that was observed; False while the write is rate-limited."""


class Controller:
    """Holds the cache and reconciles experiments. The watches call `seen`, `take` and `listed`.

    Args:
        cluster: client of the API server.
        settings: the operator's settings.
        namespaces: namespaces to watch; empty means all.
        audit_seconds: seconds between two audits.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: OperatorSettings,
        namespaces: Sequence[str] = (),
        audit_seconds: float = AUDIT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cache, self.work, self.stale_watches = ObjectCache(), WorkQueue(), StaleWatchDetector()
        self._cluster, self._settings, self.namespaces = cluster, settings, namespaces
        self._audit_seconds, self._clock = audit_seconds, clock
        self._memories: dict[Key, ReconcileState] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._writers = futures.ThreadPoolExecutor(WRITERS, "write")
        self.beat = clock()
        """When the event loop last ran its heartbeat."""

    def seen(self, kind: str, item: Manifest, *, gone: bool = False) -> None:
        """Handle a watch event: update the cache and queue the experiment it belongs to."""
        metrics.EVENT_AGE.set_to_current_time()
        key = self.cache.drop(kind, item) if gone else self.cache.put(kind, item)
        if key is not None and kind == EXPERIMENTS.kind:
            self.work.add(key, urgent=not self.cache.has_children(key))
        elif key is not None:
            self.work.later(key, GATHER_SECONDS)
        if KINDS[kind].everybodys:
            for user in self.cache.users(key_of(item)):
                self.work.add(user)

    async def take(self, kind: ResourceKind, changes: Sequence[Change]) -> None:
        """Handle a batch of changes from a watch."""
        for what, item in changes:
            self.seen(kind.kind, item, gone=what == "DELETED")

    async def listed(self, kind: ResourceKind, namespace: str | None, there: Mapping[Key, str]) -> None:
        """Drop cached objects missing from a list: they were deleted while no watch was running."""
        for key, version in self.cache.unlike(kind.kind, there).items():
            if version is None and namespace in {None, key[0]}:
                self.seen(kind.kind, {"metadata": {"namespace": key[0], "name": key[1]}}, gone=True)

    async def learn(self) -> None:
        """Load the existing experiments: kopf delivers them too, but does not signal when it is done."""
        for namespace in self.namespaces or (None,):
            for item in await self._experiments(namespace):
                self.seen(EXPERIMENTS.kind, item)

    async def _experiments(self, namespace: str | None) -> list[Manifest]:
        def read() -> list[Manifest]:
            return [item for page, _ in self._cluster.listing(EXPERIMENTS, namespace) for item in page]

        while True:
            try:
                return await asyncio.to_thread(read)
            except (UnavailableError, RejectedError) as error:
                log.warning("cannot start: %s", error)
                await asyncio.sleep(BEGIN_SECONDS)

    def start(self) -> None:
        """Start the loops; call once the cache is filled."""
        metrics.AUDIT.set_to_current_time()
        loops = [self._worker() for _ in range(WORKERS)]
        self._tasks = [asyncio.create_task(loop) for loop in (*loops, self._audits(), self._beats())]

    async def stop(self) -> None:
        """Stop after the reconciles in progress."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def ill(self) -> str | None:
        """What is wrong with the operator itself, or None."""
        if self._clock() - self.beat > 30:
            return "the event loop has been blocked for 30 s"
        if self.stale_watches.lasting >= 2:
            return "the watches have stalled: two consecutive audits found changes that no watch reported"
        if self._tasks and any(task.done() for task in self._tasks):
            return "a loop of the operator has ended"
        return None

    async def _worker(self) -> None:
        while True:
            key, waited = await self.work.take()
            metrics.WAITED.observe(waited)
            metrics.QUEUE.set(self.work.depth)
            try:
                await self._one(key)
            except Exception as error:  # one experiment's failure must not affect the others
                metrics.ERRORS.labels(type(error).__name__).inc()
                seconds = self.work.failed(key)
                said = str(error) if isinstance(error, UnavailableError) else ""
                log.warning(
                    "%s/%s: %s; retrying in %.1f s",
                    *key,
                    said or type(error).__name__,
                    seconds,
                    exc_info=not said,
                )
            finally:
                self.work.done(key)

    async def _one(self, key: Key) -> None:
        experiment = self.cache.experiment(key)
        if experiment is None:
            self._memories.pop(key, None)
            self.cache.put_out(key)
            self.work.forget(key)
            return
        memory = self._memories.setdefault(key, ReconcileState())
        memory.put_out += self.cache.put_out(key)
        observed = Observed(
            experiment,
            self._cluster.now(),
            tuple(self.cache.children(key)),
            tuple(self.cache.pods(key)),
            put_out=tuple(memory.put_out),
            claims=tuple(self.cache.claims(key)),
        )
        with metrics.RECONCILES.time():
            result = await asyncio.to_thread(functools.partial(self._reconcile, observed, memory))
        if result.recorded:
            memory.put_out.clear()
        for item in result.written:
            self.cache.put(item["kind"], item)
        if result.said:
            self.work.add(key)  # reconcile until the status is stable: a recorded end may require action
        if result.failed:
            self.work.failed(key)
        else:
            self.work.succeeded(key)
        if result.again is not None:
            self.work.later(key, max(0.1, result.again))

    def _reconcile(self, observed: Observed, memory: ReconcileState) -> ReconcileResult:
        """Reconcile one experiment; runs in a worker thread."""
        if is_terminating(observed.experiment):
            return ReconcileResult()
        decided = plan(observed, self._settings)
        written, trouble, patience = self._act(observed, decided, memory.contests)
        if written and trouble is None:
            return ReconcileResult(SETTLE_SECONDS, written=written)
        waits = [patience, self._ask(observed, memory), self._explain(observed.stage, memory)]
        observed = replace(
            observed,
            children=(*written, *_others(observed.children, written)),
            answers=memory.answers,
            events=memory.events,
        )
        derived = derive(observed, decided, trouble=trouble, contended=memory.contests.said())
        said, wait = self._say(observed, derived.status, memory)
        known = [one for one in (*waits, wait, derived.again, decided.again) if one is not None]
        return ReconcileResult(
            min(known, default=None),
            failed=trouble is not None,
            written=[*written, *said],
            said=bool(said),
            recorded=wait is None,
        )

    def _act(
        self, observed: Observed, decided: Plan, contests: Contests
    ) -> tuple[list[Manifest], Failure | None, float | None]:
        """Execute a plan up to the first rejected write.

        Returns:
            The objects written, the failure that stopped the plan, and the seconds until the next revert of
            a contended object.
        """
        written: list[Manifest] = []
        waits = [contests.settle(contested(decided.actions), self._clock())]
        trouble = Failure("NameTaken", decided.blocked) if decided.blocked else None
        # While other experiments wait, concurrent writes would only delay theirs.
        busy = self.work.depth > 0
        for group in [[one] for one in decided.actions] if busy else concurrent(decided.actions):
            due = []
            for action in group:
                if isinstance(action, Apply):
                    if wait := contests.wait(action, self._clock()):
                        waits.append(wait)
                        continue
                    contests.undone(action, self._clock())
                    waits.append(contests.wait(action, self._clock()) or None)
                due.append(action)
            items, refused = self._write(due, observed.experiment)
            written += [item for item in items if not _same(item, observed.children)]
            if refused is not None:
                metrics.ERRORS.labels(refused.reason).inc()
                trouble = Failure(refused.reason, refused.message)
                break
        return written, trouble, min((one for one in waits if one is not None), default=None)

    def _write(
        self, actions: Sequence[Action], experiment: Manifest
    ) -> tuple[list[Manifest], RejectedError | None]:
        """Execute actions concurrently; return the resulting objects and the first rejection.

        Raises:
            UnavailableError: the API server did not respond to one of them; none is still in flight.
        """
        # The first is made by this thread: to hand a single write over would cost more than to prepare it.
        others = [self._writers.submit(self._do, action, experiment) for action in actions[1:]]
        try:
            found = [self._do(action, experiment) for action in actions[:1]]
        finally:
            futures.wait(others)
        found += [one.result() for one in others]
        refused = next((one for one in found if isinstance(one, RejectedError)), None)
        return [one for one in found if isinstance(one, dict)], refused

    def _do(self, action: Action, experiment: Manifest) -> Manifest | RejectedError | None:
        """Carry out an action; its refusal is returned, for others of its group may have succeeded."""
        try:
            return self._cluster.do(action, experiment)
        except RejectedError as error:
            return error

    def _ask(self, observed: Observed, memory: ReconcileState) -> float | None:
        """Query the status of the pod's workers if due; returns the seconds until the next query."""
        pod, now = observed.pod, self._clock()
        uid = pod["metadata"]["uid"] if pod else ""
        if uid != memory.pod:
            memory.pod, memory.answers = uid, {}
            memory.asked = memory.asked_all = float("-inf")
        address = (pod or {}).get("status", {}).get("podIP")
        if pod is None or is_terminating(pod) or not address or state_of(pod, "finish")[0] != "running":
            return None
        if now - memory.asked >= ASK_SECONDS:
            everybody = now - memory.asked_all >= CPUS_SECONDS or "finish" not in memory.answers
            others = [one for one in PORTS if one is not Container.FINISH]
            for container in (Container.FINISH, *(others if everybody else ())):
                late = self._clock() - now > ASK_LIMIT
                if late or state_of(pod, container)[0] != "running":
                    continue
                if (answer := fetch_status(address, PORTS[container])) is not None:
                    memory.answers[str(container)] = answer
            memory.asked = now
            memory.asked_all = now if everybody else memory.asked_all
        return max(0.0, memory.asked + ASK_SECONDS - now)

    def _explain(self, observed: Observed, memory: ReconcileState) -> float | None:
        """Read the events of an unexplained state, with back-off; returns the seconds until the next read."""
        odd, now = oddity(observed), self._clock()
        if odd is None:
            return None
        if odd.due:
            return odd.due
        if str(odd) != memory.odd:
            memory.odd, memory.looks, memory.looked, memory.events = str(odd), 0, float("-inf"), ()
        wait = min(EVENTS_LATEST, EVENTS_SECONDS * 2.0**memory.looks)
        if now - memory.looked >= wait:
            memory.looked, memory.looks = now, min(memory.looks + 1, 8)
            try:
                memory.events = self._cluster.warnings(observed.experiment["metadata"]["namespace"], odd.uid)
            except RejectedError as error:  # they only explain: the status is written without them
                memory.events = ()
                log.warning("events of %s are not read: %s", observed.name, error)
        return wait

    def _say(
        self, observed: Observed, status: Manifest, memory: ReconcileState
    ) -> tuple[list[Manifest], float | None]:
        """Write a changed status, rate-limited; returns what was written and the seconds left to wait."""
        before, now = observed.status, self._clock()
        if status == before:
            return [], None
        counts = only_counters_changed(before, status)
        patience = ASK_SECONDS if counts else 0.0 if is_urgent(before, status) else SAY_SECONDS
        if now - memory.said < patience:
            return [], memory.said + patience - now
        for level, reason, message in announcements(observed.name, before, status):
            try:
                self._cluster.announce(observed.experiment, level, reason, message, rfc3339(observed.now))
            except RejectedError as error:  # the status says the same
                log.warning("the event %s of %s is not made: %s", reason, observed.name, error)
        answer = self._cluster.write_status(observed.experiment, status)
        memory.said = self._clock()
        metrics.SAID.labels("counters" if counts else "state").inc()
        return [answer] if answer and not _same(answer, [observed.experiment]) else [], None

    async def _beats(self) -> None:
        while True:
            self.beat = self._clock()
            metrics.EXPERIMENTS.clear()
            for phase, count in self.cache.phases().items():
                metrics.EXPERIMENTS.labels(phase).set(count)
            await asyncio.sleep(1)

    async def _audits(self) -> None:
        # Early at first: only an audit notices an object deleted between a list and the start of its watch.
        for seconds in itertools.chain((BEGIN_SECONDS,) * 2, itertools.repeat(self._audit_seconds)):
            await asyncio.sleep(min(seconds, self._audit_seconds))
            try:
                await self.audit()
            except (UnavailableError, RejectedError) as error:
                log.warning("audit failed: %s", error)

    async def audit(self) -> None:
        """Compare the cache with the API server and repair what the watches missed."""
        unlike = {}
        for kind in (EXPERIMENTS, PODS, *CHILDREN):
            versions: dict[Key, str] = {}
            for namespace in self.namespaces or (None,):
                versions |= await asyncio.to_thread(self._cluster.versions, kind, namespace)
            unlike[kind.kind] = self.cache.unlike(kind.kind, versions)
        for name, key in self.stale_watches.audited(unlike):
            metrics.MISSED.labels(name).inc()
            log.warning("no watch reported the last change of %s %s/%s", name, *key)
            item = await asyncio.to_thread(self._cluster.read, KINDS[name], *key)
            self.seen(name, item or {"metadata": {"namespace": key[0], "name": key[1]}}, gone=item is None)
        metrics.AUDIT.set_to_current_time()


def _same(answer: Manifest, known: Sequence[Manifest]) -> bool:
    """Whether a write was a no-op: the returned resource version was already known."""
    return any(
        one["metadata"].get("uid") == answer["metadata"].get("uid")
        and one["metadata"].get("resourceVersion") == answer["metadata"].get("resourceVersion")
        for one in known
    )


def _others(children: Sequence[Manifest], written: Sequence[Manifest]) -> list[Manifest]:
    new = {(item["kind"], item["metadata"]["name"]) for item in written}
    return [item for item in children if (item["kind"], item["metadata"]["name"]) not in new]
