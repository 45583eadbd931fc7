"""Startup and liveness of the sidecars. The host has neither: a slow step of a model is not a fault."""

from asysi_operator.manifests.kinds import Manifest

START_SECONDS = 600
"""Seconds that a sidecar has to attach its rings and to load its checkpoint."""


def startup(port: str) -> Manifest:
    """Return the startup probe: asked every second, the next container waits for it."""
    return {
        **_get("/readyz", port),
        "periodSeconds": 1,
        "timeoutSeconds": 5,
        "failureThreshold": START_SECONDS,
    }


def liveness(port: str) -> Manifest:
    """Return the liveness probe; a worker that hangs does not hear SIGTERM either, so its grace is short."""
    return {
        **_get("/livez", port),
        "periodSeconds": 10,
        "timeoutSeconds": 5,
        "failureThreshold": 3,
        "terminationGracePeriodSeconds": 10,
    }


def _get(path: str, port: str) -> Manifest:
    return {"httpGet": {"path": path, "port": port}}
