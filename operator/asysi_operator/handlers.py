"""Where kopf's watches end: every event goes to the controller. The only module that knows kopf.

Nothing here leaves a trace on an object: no finalizer, no annotation, and nothing hangs without it.
"""

from typing import Any

import kopf

from asysi_operator.cluster import CHILDREN, EXPERIMENTS, PODS, Kind
from asysi_operator.controller import Controller
from asysi_operator.manifests.labels import EXPERIMENT


def registry_of(controller: Controller) -> kopf.OperatorRegistry:
    """Return the handlers that feed a controller."""
    registry = kopf.OperatorRegistry()

    async def begin(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings)

    async def end(**_: Any) -> None:
        await controller.stop()

    kopf.on.login(registry=registry)(kopf.login_via_client)
    kopf.on.startup(registry=registry)(begin)
    kopf.on.cleanup(registry=registry)(end)
    for kind in (EXPERIMENTS, PODS, *CHILDREN):
        _watch(registry, controller, kind)
    return registry


def configure(settings: kopf.OperatorSettings) -> None:
    """Set what kopf's defaults leave unsuited: deadlines, server-side selection, no events of its own."""
    settings.persistence.finalizer = "asysi.dev/unused"
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.execution.default_backoff = 10
    settings.process.ultimate_exiting_timeout = 10
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.queueing.idle_timeout = 1  # a stop waits for it
    for kind in (PODS, *CHILDREN):
        if kind.everybodys:
            continue
        settings.watching.label_selectors[kind.group, kind.version, kind.plural] = EXPERIMENT


def _watch(registry: kopf.OperatorRegistry, controller: Controller, kind: Kind) -> None:
    """No index of kopf's: with one, each object that is there at the start wakes up for all others."""

    async def event(body: kopf.Body, type: str | None, **_: Any) -> None:  # noqa: A002 - kopf's name
        controller.seen(kind.kind, kind.named(body), gone=type == "DELETED")

    where = (kind.group, kind.version, kind.plural)
    kopf.on.event(*where, registry=registry, id=kind.plural)(event)
