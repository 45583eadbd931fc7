"""Startup and liveness probing of one container process, as the kubelet does it. Pure."""

import math
from dataclasses import dataclass, replace
from enum import Enum

from asysi_operator.local.containers import Probe

QUICK = 0.1
"""Seconds between startup probes: a local run need not wait a full period."""


class ProbeVerdict(Enum):
    """Effect of a probe result."""

    NOTHING = "nothing"
    STARTED = "started"
    FAILED = "failed"


@dataclass(frozen=True)
class Watch:
    """Probe state of one container process."""

    startup: Probe | None
    liveness: Probe | None
    due: float
    """When the next probe is due."""
    started: bool
    failures: int = 0
    """Consecutive failures."""

    @property
    def probe(self) -> Probe | None:
        """The active probe: startup until it has passed, then liveness."""
        return self.liveness if self.started else self.startup

    def asks(self, now: float) -> Probe | None:
        """Return the probe that is due at `now`, or None."""
        return self.probe if now >= self.due else None

    def answered(self, good: bool, now: float) -> tuple["Watch", ProbeVerdict]:
        """Record a probe result; after `threshold` consecutive failures the container has failed."""
        probe = self.probe
        if probe is None:
            return self, ProbeVerdict.NOTHING
        if good and not self.started:
            first = now + (self.liveness.period if self.liveness else 0.0)
            return replace(self, started=True, failures=0, due=first), ProbeVerdict.STARTED
        failures = 0 if good else self.failures + 1
        verdict = ProbeVerdict.FAILED if failures >= probe.threshold else ProbeVerdict.NOTHING
        return replace(self, failures=failures, due=now + probe.period), verdict


def watch(startup: Probe | None, liveness: Probe | None, now: float) -> Watch:
    """Return the state of a container started at `now`; without a startup probe it counts as started."""
    first = now + (liveness.period if startup is None and liveness else 0.0)
    return Watch(hastened(startup) if startup else None, liveness, due=first, started=startup is None)


def hastened(probe: Probe) -> Probe:
    """Return the probe with a period of QUICK seconds and the same total time until it fails."""
    if probe.period <= QUICK:
        return probe
    return replace(probe, period=QUICK, threshold=math.ceil(probe.period * probe.threshold / QUICK))
