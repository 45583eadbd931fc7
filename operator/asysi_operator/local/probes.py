"""Startup and liveness of one life of a container, as the kubelet judges them. Pure."""

import math
from dataclasses import dataclass, replace
from enum import Enum

from asysi_operator.local.containers import Probe

QUICK = 0.1
"""Seconds between questions at start-up: on one machine nobody need wait a whole period."""


class ProbeVerdict(Enum):
    """What an answer led to."""

    NOTHING = "nothing"
    STARTED = "started"
    FAILED = "failed"


@dataclass(frozen=True)
class Watch:
    """Where the judging of one life of a container stands."""

    startup: Probe | None
    liveness: Probe | None
    due: float
    """When the next question is to be asked."""
    started: bool
    failures: int = 0
    """Bad answers in a row."""

    @property
    def probe(self) -> Probe | None:
        """The probe that counts now: startup until it has passed, liveness from then on."""
        return self.liveness if self.started else self.startup

    def asks(self, now: float) -> Probe | None:
        """Return the probe to ask at `now`, or None."""
        return self.probe if now >= self.due else None

    def answered(self, good: bool, now: float) -> tuple["Watch", ProbeVerdict]:
        """Take an answer; after `threshold` bad ones in a row the container has failed."""
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
    """Return the watch over a container started at `now`; without a startup probe it counts as started."""
    first = now + (liveness.period if startup is None and liveness else 0.0)
    return Watch(hastened(startup) if startup else None, liveness, due=first, started=startup is None)


def hastened(probe: Probe) -> Probe:
    """Return the probe asked every QUICK seconds, with the same time until it has failed."""
    if probe.period <= QUICK:
        return probe
    return replace(probe, period=QUICK, threshold=math.ceil(probe.period * probe.threshold / QUICK))
