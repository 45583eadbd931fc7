"""The effects: every request to the API server is made here, one verb per method, each with a deadline."""

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
"""Objects in a page of a listing: while a larger one is parsed, nothing else gets its turn."""
_TIMEOUT = (5.0, 15.0)
"""Seconds to connect and to wait for an answer."""
WATCH_SECONDS = (240, 300)
"""Seconds after which the API server ends a watch: so many or so many, lest all begin anew at once."""
_QUIET_SECONDS = 30.0
"""Seconds that a watch may last beyond that, if its end is lost on the way."""
_PIECE = 64 * 1024
_NEW = "1"
"""A version that no object has any more: an apply with it makes an object, and never changes one."""


@dataclass(frozen=True)
class ResourceKind:
    """Where objects of a kind live."""

    kind: str
    group: str
    version: str
    plural: str
    everybodys: bool = False
    """Whether those without an experiment's label matter too: experiments name other people's claims."""

    @property
    def api_version(self) -> str:
        """As it stands in their manifests."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def named(self, item: Mapping[str, Any]) -> Manifest:
        """Return an object that says of which kind it is; a listing's items do not."""
        return dict(item) | {"apiVersion": self.api_version, "kind": self.kind}

    @property
    def root(self) -> str:
        """The beginning of every path to them."""
        return f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"


EXPERIMENTS = ResourceKind(KIND, GROUP, VERSION, PLURAL)
PODS = ResourceKind("Pod", "", "v1", "pods")
CHILDREN = (
    ResourceKind("Job", "batch", "v1", "jobs"),
    ResourceKind("ConfigMap", "", "v1", "configmaps"),
    ResourceKind("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims", everybodys=True),
    ResourceKind("NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies"),
)
"""Kinds that an experiment's objects are of; those that are nowhere rendered could not be pruned."""
KINDS = {one.kind: one for one in (EXPERIMENTS, PODS, *CHILDREN)}


class RejectedError(Exception):
    """The API server has refused a write, and will again until something changes.

    Attributes:
        reason: the API server's own word, or NameTaken.
        message: why, naming the object.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


class UnavailableError(Exception):
    """The API server did not answer, or asked for patience: try again."""


class GoneError(Exception):
    """The API server no longer knows what has changed since a version: list anew."""


Change = tuple[str, Manifest]
"""ADDED, MODIFIED, DELETED or BOOKMARK, and the object as it was then; a bookmark has a version alone."""


class _Place(msgspec.Struct):
    """Metadata of a page, or as much of an object's as tells whether it has changed."""

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
        """Return the API server's time; the own one before it has ever answered."""
        return self._time.at(time.monotonic()) or datetime.now(UTC)

    def do(self, action: Action, experiment: Manifest) -> Manifest | None:
        """Carry out one action of a plan and return the object as it is now, if it still is.

        Raises:
            RejectedError: the API server says no.
            UnavailableError: it says nothing.
        """
        namespace = experiment["metadata"]["namespace"]
        if isinstance(action, Apply):
            return self._apply(action, namespace, experiment["metadata"]["uid"])
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": action.uid}}
        path = _path(KINDS[action.kind], namespace, action.name)
        # Gone already, or another object of that name: what was to be removed is not there.
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
                    return KINDS[kind].named(there)  # from before it was known here: now it can be compared
                if not owned(there, uid):
                    raise RejectedError("NameTaken", name_taken(kind, name))
        return self._call("PATCH", path, kind, body=manifest, query=_AS_US)

    def write_status(self, experiment: Manifest, status: Manifest) -> Manifest | None:
        """Replace the status of an experiment and return it; None when it has gone or is another by now."""
        metadata = {key: experiment["metadata"][key] for key in ("name", "namespace", "uid")}
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "status": status}
        path = f"{_path(EXPERIMENTS, metadata['namespace'], metadata['name'])}/status"
        return self._call("PATCH", path, KIND, body=body, query=_AS_US, fine=(404, 409))

    def announce(self, experiment: Manifest, level: str, reason: str, message: str, now: str) -> None:
        """Leave an event; the same one twice is one."""
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
        """Return the events about an object, newest state of each."""
        query = {"fieldSelector": f"involvedObject.uid={uid}", "limit": "100"}
        answer = self._call("GET", f"/api/v1/namespaces/{namespace}/events", "Event", query=query) or {}
        return list(answer.get("items") or ())

    def versions(self, kind: ResourceKind, namespace: str | None) -> dict[tuple[str, str], str]:
        """Return the resource version of every object of a kind by namespace and name, metadata alone."""
        pages = self._listed(kind, namespace, _METADATA)
        found = (_VERSION.decode(item).metadata for items, _version in pages for item in items)
        return {(one.namespace, one.name): one.resourceVersion for one in found}

    def listing(self, kind: ResourceKind, namespace: str | None) -> Iterator[tuple[Iterator[Manifest], str]]:
        """Yield every object of a kind, page by page, each with the version at which all this was so.

        Of kinds that are not everybody's only those with an experiment's label.
        """
        for items, version in self._listed(kind, namespace, "application/json"):
            yield (kind.named(msgspec.json.decode(item)) for item in items), version

    def _listed(
        self, kind: ResourceKind, namespace: str | None, accept: str
    ) -> Iterator[tuple[Sequence[msgspec.Raw], str]]:
        """Yield pages whose items are not read yet: a hundred Jobs are 15 MiB of Python's objects."""
        path, query = _all(kind, namespace), {"limit": PAGE, **_selected(kind)}
        while True:
            content = self._ask("GET", path, kind.kind, query=query, accept=accept)
            page = _PAGE.decode(content or b"{}")
            yield page.items or (), page.metadata.resourceVersion
            if not (more := page.metadata.more):
                return
            query["continue"] = more

    def changes(self, kind: ResourceKind, namespace: str | None, version: str) -> Iterator[list[Change]]:
        """Yield what happens to objects of a kind after a version, as it happens, until the watch ends.

        Raises:
            GoneError: the version is too old.
            RejectedError: the API server refuses.
            UnavailableError: it does not answer, or the connection has broken.
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
        """Whether the API server serves experiments; False also when it does not answer."""
        try:
            known = self._call("GET", EXPERIMENTS.root, KIND, fine=(404,)) or {}
        except (UnavailableError, RejectedError):
            return False
        return any(one["name"] == PLURAL for one in known.get("resources") or ())

    def read(self, kind: ResourceKind, namespace: str, name: str) -> Manifest | None:
        """Return an object, None when there is none."""
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
        """Return the answer's body; None for a status among `fine`."""
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
        """Return the beginning of an answer."""
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
    """Yield the lines that each piece of a stream completes, where it completes any."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if lines:
            yield lines


def _change(kind: ResourceKind, line: bytes) -> Change:
    """Return what a line of a watch says; raises GoneError or UnavailableError where it says an error."""
    try:
        told = msgspec.json.decode(line)
        what, item = told["type"], told["object"]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise UnavailableError(f"a watch of {kind.plural} brings what is none of its events") from error
    if what != "ERROR":
        return what, kind.named(item)
    if item.get("code") == 410:
        raise GoneError
    raise UnavailableError(f"a watch of {kind.plural} has ended: {item.get('message')}")


def _failure(status: int, content: bytes, request: str) -> RejectedError | UnavailableError:
    try:
        said: dict[str, Any] = msgspec.json.decode(content)
    except msgspec.DecodeError:
        said = {}
    message = str(said.get("message") or content[:500].decode(errors="replace"))
    if status in {400, 403, 405, 413, 422} or (status == 409 and said.get("reason") != "Conflict"):
        return RejectedError(str(said.get("reason") or f"Status{status}"), message)
    return UnavailableError(f"{request}: {status} {message}")
