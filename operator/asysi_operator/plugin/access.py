"""Translates kubectl's errors into sentences for the user. Pure."""

import re
from collections.abc import Sequence

_CANNOT = re.compile(
    r'cannot (?P<verb>\S+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]+)")?'
)
_UNREACHABLE = re.compile(
    r"connection refused|was refused|no such host|i/o timeout|context deadline exceeded|unable to connect|"
    r"network is unreachable|TLS handshake",
    re.IGNORECASE,
)
_NO_CRD = re.compile(r"the server doesn't have a resource type \"(scanexperiments|scanx)", re.IGNORECASE)
NOT_INSTALLED = (
    "this cluster does not know ScanExperiments: install the operator with `helm install asysi charts/asysi "
    "--namespace asysi --create-namespace`"
)


class ClusterError(Exception):
    """A request to the cluster, or kubectl itself, failed; the message is a sentence for the user.

    Attributes:
        said: kubectl's output, if any.
        forbidden: whether a permission is missing.
    """

    def __init__(self, message: str, *, said: str = "", forbidden: bool = False) -> None:
        super().__init__(message)
        self.said, self.forbidden = said, forbidden


def refused(said: str, arguments: Sequence[str]) -> ClusterError:
    """Return the error for a failed kubectl call.

    Args:
        said: its standard error.
        arguments: its arguments.
    """
    if missing := _CANNOT.search(said):
        return ClusterError(permission(**missing.groupdict()), said=said, forbidden=True)
    if "Unauthorized" in said or "must be logged in" in said:
        return ClusterError(f"the cluster does not accept these credentials: log in again. {_last(said)}")
    if _NO_CRD.search(said):
        return ClusterError(NOT_INSTALLED)
    if _UNREACHABLE.search(said):
        return ClusterError(f"the API server cannot be reached: {_last(said)}", said=said)
    return ClusterError(f"kubectl {arguments[0]} failed: {_last(said)}", said=said)


def permission(verb: str, resource: str, group: str, namespace: str | None) -> str:
    """Return the message for a missing permission, with a command to check it."""
    full = f"{resource}.{group}" if group else resource
    where = f"in namespace {namespace}" if namespace else "in all namespaces"
    plain, _, sub = full.partition("/")
    check = f"kubectl auth can-i {verb} {plain}{f' --subresource={sub}' if sub else ''}"
    scope = f" --namespace {namespace}" if namespace else " --all-namespaces"
    return (
        f"you may not {verb} {full} {where}: ask for a Role with the verb {verb} on {full} (`{check}{scope}`)"
    )


def _last(said: str) -> str:
    """Return the line with the error, skipping kubectl's warnings and notices."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("Error", "error"))]
    if len(lines) > 1 and lines[-1].startswith("command terminated with exit code"):
        return f"{lines[-2]} ({lines[-1]})"
    return (telling or lines or ["no error output"])[-1]
