"""kopf handlers for ScanExperiments: forward events to the controller. The only module that uses kopf.

An experiment's own objects, five times as many, are watched by `watching`: kopf keeps several copies of what
it watches for diffs and progress, which are not used here. Nothing here writes to an object: no finalizer and
no annotation, so that deletion never hangs when the operator is down.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import kopf

from asysi_operator.cluster import EXPERIMENTS
from asysi_operator.controller import Controller


async def watch(
    controller: Controller, namespaces: Sequence[str], begun: asyncio.Event, stop: asyncio.Event
) -> None:
    """Watch experiments until SIGTERM, SIGINT, `stop`, or the failure of a watch.

    Args:
        controller: receives the events.
        namespaces: namespaces to watch; empty means all.
        begun: set once kopf is watching.
        stop: set to stop watching.
    """
    scope: dict[str, Any] = {"namespaces": namespaces} if namespaces else {"clusterwide": True}
    registry = registry_of(controller)
    await kopf.operator(registry=registry, standalone=True, ready_flag=begun, stop_flag=stop, **scope)


def registry_of(controller: Controller) -> kopf.OperatorRegistry:
    """Return the handlers that feed a controller."""
    registry = kopf.OperatorRegistry()

    async def begin(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings)

    async def end(**_: Any) -> None:
        await controller.stop()

    async def event(event: kopf.RawEvent, **_: Any) -> None:
        controller.seen(EXPERIMENTS.kind, EXPERIMENTS.named(event["object"]), gone=event["type"] == "DELETED")

    kopf.on.login(registry=registry)(kopf.login_via_client)
    kopf.on.startup(registry=registry)(begin)
    kopf.on.cleanup(registry=registry)(end)
    where = (EXPERIMENTS.group, EXPERIMENTS.version, EXPERIMENTS.plural)
    kopf.on.event(*where, registry=registry, id=EXPERIMENTS.plural)(event)
    return registry


class NoDiffs(kopf.DiffBaseStorage):
    """Compares no object with an earlier state: to build one copies the whole object at every event."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Return an empty state."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        """Return that no state is known."""

    def store(self, **_: Any) -> None:
        """Keep nothing."""


def configure(settings: kopf.OperatorSettings) -> None:
    """Override kopf's defaults: timeouts, no posted events, no annotations."""
    settings.persistence.finalizer = "asysi.dev/unused"
    settings.persistence.diffbase_storage = NoDiffs()
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.execution.default_backoff = 10
    settings.process.ultimate_exiting_timeout = 10
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.queueing.idle_timeout = 1  # shutdown waits for it
