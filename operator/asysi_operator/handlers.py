"""The kopf operator of ScanExperiments: events go to the controller. The only module that knows kopf.

Objects that an experiment has, which are five times as many, are followed by `watching`: kopf copies what it
watches several times for diffs and progress that are not used here. Nothing here leaves a trace on an object:
no finalizer, no annotation, and nothing hangs without it.
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
    """Watch experiments until SIGTERM, SIGINT or `stop`; a watch that has died ends it too.

    Args:
        controller: takes what happens to experiments.
        namespaces: where; none means everywhere.
        begun: set once kopf watches.
        stop: ends it.
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
    """Set what kopf's defaults leave unsuited: deadlines, no events of its own, no annotations."""
    settings.persistence.finalizer = "asysi.dev/unused"
    settings.persistence.diffbase_storage = NoDiffs()
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.execution.default_backoff = 10
    settings.process.ultimate_exiting_timeout = 10
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.queueing.idle_timeout = 1  # a stop waits for it
