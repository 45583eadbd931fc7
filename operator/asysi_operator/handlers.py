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
    for kind in (PODS, *CHILDREN):
        _watch(registry, controller, kind)
    _watch_experiments(registry, controller)
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
        settings.watching.label_selectors[kind.group, kind.version, kind.plural] = EXPERIMENT


def _watch(registry: kopf.OperatorRegistry, controller: Controller, kind: Kind) -> None:
    """An index is filled before any handler runs: no experiment is looked at before its objects are known."""

    async def index(body: kopf.Body, **_: Any) -> None:
        controller.seen(kind.kind, _plain(body, kind))

    async def event(body: kopf.Body, type: str | None, **_: Any) -> None:  # noqa: A002 - kopf's name
        if type == "DELETED":
            controller.seen(kind.kind, _plain(body, kind), gone=True)

    where = (kind.group, kind.version, kind.plural)
    kopf.index(*where, registry=registry, id=f"known_{kind.plural}")(index)
    kopf.on.event(*where, registry=registry, id=f"gone_{kind.plural}")(event)


def _watch_experiments(registry: kopf.OperatorRegistry, controller: Controller) -> None:
    async def event(body: kopf.Body, type: str | None, **_: Any) -> None:  # noqa: A002 - kopf's name
        controller.seen(EXPERIMENTS.kind, _plain(body, EXPERIMENTS), gone=type == "DELETED")

    where = (EXPERIMENTS.group, EXPERIMENTS.version, EXPERIMENTS.plural)
    kopf.on.event(*where, registry=registry, id="experiments")(event)


def _plain(body: kopf.Body, kind: Kind) -> dict[str, Any]:
    """Return an event's object as plain data; a listing's items do not say of which kind they are."""
    return dict(body) | {"kind": kind.kind}
