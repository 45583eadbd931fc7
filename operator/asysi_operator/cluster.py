"""All requests to the API server: one verb per method, each with a timeout."""

import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from kubernetes import client, config
from urllib3.exceptions import HTTPError

from asysi.contract.canonical import digest
from asysi.contract.crd import GROUP, PLURAL, VERSION
from asysi.contract.errors import ConfigError
from asysi.contract.spec import API_VERSION, KIND
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import EXPERIMENT, MANAGER
from asysi_operator.metrics import REQUESTS
from asysi_operator.observation import owned
from asysi_operator.reconcile import Action, Apply, name_taken
from asysi_operator.servertime import ServerTime

MESSAGE_LIMIT = 1024
PAGE = "100"
"""Objects per page of a list: parsing a larger page would block the other threads."""
_TIMEOUT = (5.0, 15.0)
"""Connect and read timeout in seconds."""
WATCH_SECONDS = (240, 300)
"""Range of the server-side watch timeout in seconds, randomised so that watches do not restart together."""
_QUIET_SECONDS = 30.0
"""Seconds added to the watch timeout on the client side, in case the server's close is lost."""
_PIECE = 64 * 1024
_NEW = "1"
"""A resource version that no object has: an apply with it can create an object but never update one."""


@dataclass(frozen=True)
class ResourceKind:
    """A resource kind and its API path."""

    kind: str
    group: str
    version: str
    plural: str
    everybodys: bool = False
    """Whether objects without an experiment label matter too: experiments may use other owners' claims."""

    @property
    def api_version(self) -> str:
        """`apiVersion` as in manifests."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def named(self, item: Mapping[str, Any]) -> Manifest:
        """Return an object with `apiVersion` and `kind` set; items of a list lack them."""
        return dict(item) | {"apiVersion": self.api_version, "kind": self.kind}

    @property
    def root(self) -> str:
        """Path prefix."""
        return f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"


EXPERIMENTS = ResourceKind(KIND, GROUP, VERSION, PLURAL)
PODS = ResourceKind("Pod", "", "v1", "pods")
CHILDREN = (
    ResourceKind("Job", "batch", "v1", "jobs"),
    ResourceKind("ConfigMap", "", "v1", "configmaps"),
    ResourceKind("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims", everybodys=True),
    ResourceKind("NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies"),
)
"""Kinds of an experiment's objects, including kinds not currently rendered, so that they can be pruned."""
KINDS = {one.kind: one for one in (EXPERIMENTS, PODS, *CHILDREN)}


class RejectedError(Exception):
    """The API server rejected a write, and a retry will fail until something changes.

    Attributes:
        reason: the API server's reason, or NameTaken.
        message: the explanation, naming the object.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


class UnavailableError(Exception):
    """The API server did not respond, or asked to retry later."""


class GoneError(Exception):
    """The resource version is too old to watch from (410 Gone): list again."""


Change = tuple[str, Manifest]
"""ADDED, MODIFIED, DELETED or BOOKMARK, and the object at that time; a bookmark has only a version."""


class _Place(msgspec.Struct):
    """Metadata of a page, or the part of an object's metadata that shows whether it changed."""

    namespace: str = ""
    name: str = ""
    resourceVersion: str = ""  # noqa: N815 - Kubernetes' name
    more: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct):
    metadata: _Place = msgspec.field(default_factory=_Place)
    items: list[msgspec.Raw] | None = None


class _Item(msgspec.Struct):
    metadata: _Place


_PAGE, _VERSION = msgspec.json.Decoder(_Page), msgspec.json.Decoder(_Item)


class Cluster:
    """Speaks to one API server; its methods may be called from several threads.

    Raises:
        ConfigError: neither a pod's service account nor a kubeconfig says which one.
    """

    def __init__(self, connections: int = 8) -> None:
        try:
            config.load_incluster_config()  # type: ignore[no-untyped-call]
        except config.ConfigException:
            try:
                config.load_kube_config()  # type: ignore[no-untyped-call]
            except config.ConfigException as error:
                raise ConfigError(
                    f"this is not a pod with a service account, and no kubeconfig says which cluster: {error}"
                ) from error
        configuration = client.Configuration.get_default_copy()
        configuration.connection_pool_maxsize = connections
        self._api = client.ApiClient(configuration)
        self._time = ServerTime()

    def now(self) -> datetime:
        """Return the API server's time, or the local time before its first response."""
        return self._time.at(time.monotonic()) or datetime.now(UTC)

    def do(self, action: Action, experiment: Manifest) -> Manifest | None:
        """Execute one action of a plan and return the resulting object, if it still exists.

        Raises:
            RejectedError: the API server rejected the request.
            UnavailableError: it did not respond.
        """
        namespace = experiment["metadata"]["namespace"]
        if isinstance(action, Apply):
            return self._apply(action, namespace, experiment["metadata"]["uid"])
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": action.uid}}
        path = _path(KINDS[action.kind], namespace, action.name)
        # Already deleted, or replaced by another object of that name: there is nothing left to remove.
        left = self._call("DELETE", path, action.kind, body=body, fine=(404, 409))
        return left if left and "deletionTimestamp" in left.get("metadata", {}) else None

    def _apply(self, action: Apply, namespace: str, uid: str) -> Manifest | None:
        manifest = action.manifest
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        path = _path(KINDS[kind], namespace, name)
        if not action.exists:
            first = manifest | {"metadata": manifest["metadata"] | {"resourceVersion": _NEW}}
            made = self._call("PATCH", path, kind, body=first, query=_AS_US, fine=(409,))
            if made is not None:
                return made
            there = self._call("GET", path, kind, fine=(404,))
            if there is not None:
                if EXPERIMENT in (there["metadata"].get("labels") or {}):
                    return KINDS[kind].named(there)  # not in the cache yet: compared in the next reconcile
                if not owned(there, uid):
                    raise RejectedError("NameTaken", name_taken(kind, name))
        return self._call("PATCH", path, kind, body=manifest, query=_AS_US)

    def write_status(self, experiment: Manifest, status: Manifest) -> Manifest | None:
        """Replace an experiment's status and return it; None if the experiment was deleted or replaced."""
        metadata = {key: experiment["metadata"][key] for key in ("name", "namespace", "uid")}
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "status": status}
        path = f"{_path(EXPERIMENTS, metadata['namespace'], metadata['name'])}/status"
        return self._call("PATCH", path, KIND, body=body, query=_AS_US, fine=(404, 409))

    def announce(self, experiment: Manifest, level: str, reason: str, message: str, now: str) -> None:
        """Create an event; an identical event is created only once."""
        about = experiment["metadata"]
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{about['name']}.{digest([about['uid'], level, reason, message])}",
                "namespace": about["namespace"],
            },
            "involvedObject": {
                **{key: about[key] for key in ("name", "namespace", "uid")},
                "apiVersion": API_VERSION,
                "kind": KIND,
            },
            "type": level,
            "reason": reason,
            "message": message[:MESSAGE_LIMIT],
            "source": {"component": MANAGER},
            "reportingComponent": MANAGER,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        path = f"/api/v1/namespaces/{about['namespace']}/events"
        self._call("POST", path, "Event", body=body, fine=(404, 409, 403))

    def warnings(self, namespace: str, uid: str) -> list[Manifest]:
        """Return the events about an object."""
        query = {"fieldSelector": f"involvedObject.uid={uid}", "limit": "100"}
        answer = self._call("GET", f"/api/v1/namespaces/{namespace}/events", "Event", query=query) or {}
        return list(answer.get("items") or ())

    def versions(self, kind: ResourceKind, namespace: str | None) -> dict[tuple[str, str], str]:
        """Return the resource version of every object of a kind, by namespace and name (metadata only)."""
        pages = self._listed(kind, namespace, _METADATA)
        found = (_VERSION.decode(item).metadata for items, _version in pages for item in items)
        return {(one.namespace, one.name): one.resourceVersion for one in found}

    def listing(self, kind: ResourceKind, namespace: str | None) -> Iterator[tuple[Iterator[Manifest], str]]:
        """Yield every object of a kind, page by page, each page with the list's resource version.

        Unless the kind has `everybodys` set, only objects with an experiment label are listed.
        """
        for items, version in self._listed(kind, namespace, "application/json"):
            yield (kind.named(msgspec.json.decode(item)) for item in items), version

    def _listed(
        self, kind: ResourceKind, namespace: str | None, accept: str
    ) -> Iterator[tuple[Sequence[msgspec.Raw], str]]:
        """Yield pages with undecoded items: a hundred Jobs take 15 MiB as Python objects."""
        path, query = _all(kind, namespace), {"limit": PAGE, **_selected(kind)}
        while True:
            content = self._ask("GET", path, kind.kind, query=query, accept=accept)
            page = _PAGE.decode(content or b"{}")
            yield page.items or (), page.metadata.resourceVersion
            if not (more := page.metadata.more):
                return
            query["continue"] = more

    def changes(self, kind: ResourceKind, namespace: str | None, version: str) -> Iterator[list[Change]]:
        """Watch objects of a kind from a resource version on; yield changes until the watch ends.

        Raises:
            GoneError: the version is too old.
            RejectedError: the API server rejected the request.
            UnavailableError: it did not respond, or the connection broke.
        """
        path, seconds = _all(kind, namespace), random.randint(*WATCH_SECONDS)  # noqa: S311 - no secret
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
            **_selected(kind),
        }
        timeout = (_TIMEOUT[0], seconds + _QUIET_SECONDS)
        response = self._send("WATCH", path, kind.kind, query=query, timeout=timeout)
        try:
            if response.status == 410:
                raise GoneError
            if response.status >= 300:
                raise _failure(response.status, response.read(), f"WATCH {path}")
            for lines in _lines(response.response.stream(_PIECE)):
                yield [_change(kind, line) for line in lines]
        except (HTTPError, OSError) as error:
            raise UnavailableError(f"WATCH {path}: {error}") from error
        finally:
            response.response.close()

    def knows_experiments(self) -> bool:
        """Whether the API server serves ScanExperiments; also False if it does not respond."""
        try:
            known = self._call("GET", EXPERIMENTS.root, KIND, fine=(404,)) or {}
        except (UnavailableError, RejectedError):
            return False
        return any(one["name"] == PLURAL for one in known.get("resources") or ())

    def read(self, kind: ResourceKind, namespace: str, name: str) -> Manifest | None:
        """Return an object, or None if it does not exist."""
        found = self._call("GET", _path(kind, namespace, name), kind.kind, fine=(404,))
        return kind.named(found) if found else None

    def _call(
        self,
        method: str,
        path: str,
        kind: str,
        *,
        body: Manifest | None = None,
        query: Mapping[str, str] | None = None,
        fine: Sequence[int] = (),
    ) -> Manifest | None:
        """Return the decoded response body; None for a status code in `fine`."""
        content = self._ask(method, path, kind, body=body, query=query, fine=fine)
        if content is None:
            return None
        parsed: Manifest = msgspec.json.decode(content)
        return parsed

    def _ask(
        self,
        method: str,
        path: str,
        kind: str,
        *,
        body: Manifest | None = None,
        query: Mapping[str, str] | None = None,
        fine: Sequence[int] = (),
        accept: str = "application/json",
    ) -> bytes | None:
        response = self._send(method, path, kind, body=body, query=query, accept=accept)
        try:
            status, content = int(response.status), bytes(response.read())
        except (HTTPError, OSError) as error:
            raise UnavailableError(f"{method} {path}: {error}") from error
        if status < 300:
            return content
        if status in fine:
            return None
        raise _failure(status, content, f"{method} {path}")

    def _send(
        self,
        method: str,
        path: str,
        kind: str,
        *,
        body: Manifest | None = None,
        query: Mapping[str, str] | None = None,
        accept: str = "application/json",
        timeout: tuple[float, float] = _TIMEOUT,
    ) -> Any:
        """Send a request and return the response with its body unread."""
        headers = {
            "Accept": accept,
            "Content-Type": "application/apply-patch+yaml" if method == "PATCH" else "application/json",
        }
        request = self._api.param_serialize(
            "GET" if method == "WATCH" else method, path,
            query_params=list((query or {}).items()), header_params=headers,
            body=msgspec.json.encode(body) if method == "PATCH" else body, auth_settings=["BearerToken"],
        )  # fmt: skip
        try:
            answer = self._api.call_api(*request, _request_timeout=timeout)
        except (HTTPError, client.ApiException, OSError) as error:
            REQUESTS.labels(method, kind, "none").inc()
            raise UnavailableError(f"{method} {path}: {error}") from error
        self._time.heard(answer.getheaders().get("Date"), time.monotonic())  # type: ignore[no-untyped-call]
        REQUESTS.labels(method, kind, str(answer.status)).inc()
        return answer


_AS_US = {"fieldManager": MANAGER, "force": "true"}
_METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


def _path(kind: ResourceKind, namespace: str, name: str) -> str:
    return f"{kind.root}/namespaces/{namespace}/{kind.plural}/{name}"


def _all(kind: ResourceKind, namespace: str | None) -> str:
    return f"{kind.root}/namespaces/{namespace}/{kind.plural}" if namespace else f"{kind.root}/{kind.plural}"


def _selected(kind: ResourceKind) -> dict[str, str]:
    return {} if kind is EXPERIMENTS or kind.everybodys else {"labelSelector": EXPERIMENT}


def _lines(pieces: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the complete lines of a stream, grouped by the chunk that completed them."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if lines:
            yield lines


def _change(kind: ResourceKind, line: bytes) -> Change:
    """Decode one line of a watch; raises GoneError or UnavailableError for an error event."""
    try:
        told = msgspec.json.decode(line)
        what, item = told["type"], told["object"]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise UnavailableError(f"invalid event from the watch on {kind.plural}") from error
    if what != "ERROR":
        return what, kind.named(item)
    if item.get("code") == 410:
        raise GoneError
    raise UnavailableError(f"the watch on {kind.plural} ended: {item.get('message')}")


def _failure(status: int, content: bytes, request: str) -> RejectedError | UnavailableError:
    try:
        said: dict[str, Any] = msgspec.json.decode(content)
    except msgspec.DecodeError:
        said = {}
    message = str(said.get("message") or content[:500].decode(errors="replace"))
    if status in {400, 403, 405, 413, 422} or (status == 409 and said.get("reason") != "Conflict"):
        return RejectedError(str(said.get("reason") or f"Status{status}"), message)
    return UnavailableError(f"{request}: {status} {message}")
