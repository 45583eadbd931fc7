"""Startup and liveness probes of the sidecars. The host has none: a slow model step is not a fault."""

from asysi_operator.manifests.kinds import Manifest

START_SECONDS = 600
"""Seconds for a sidecar to attach its rings and load its checkpoint."""


def startup(port: str) -> Manifest:
    """Return the startup probe: run every second, because the next container waits for it."""
    return {
        **_get("/readyz", port),
        "periodSeconds": 1,
        "timeoutSeconds": 5,
        "failureThreshold": START_SECONDS,
    }


def liveness(port: str) -> Manifest:
    """Return the liveness probe; its grace period is short, because a hung worker ignores SIGTERM too."""
    return {
        **_get("/livez", port),
        "periodSeconds": 10,
        "timeoutSeconds": 5,
        "failureThreshold": 3,
        "terminationGracePeriodSeconds": 10,
    }


def _get(path: str, port: str) -> Manifest:
    return {"httpGet": {"path": path, "port": port}}
