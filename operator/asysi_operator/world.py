"""What the watches have brought, and what they have failed to bring. Pure: no clock, no connection."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import EXPERIMENT, MANAGER
from asysi_operator.manifests.names import OUTPUT
from asysi_operator.observation import holds

Key = tuple[str, str]
"""Namespace and name."""
GRAVES = 4096
"""Objects that have gone and are remembered: an answer that was under way may still speak of them."""
_EXPERIMENT = "ScanExperiment"
_POD = "Pod"
_CLAIM = "PersistentVolumeClaim"
_CLAIMS_OWN = ("namespace", "name", "uid", "resourceVersion", "deletionTimestamp")


@dataclass
class World:
    """Objects by kind and key, as last seen."""

    _objects: dict[str, dict[Key, Manifest]] = field(default_factory=dict)
    _by_parent: dict[Key, dict[tuple[str, Key], Manifest]] = field(default_factory=dict)
    _gone: dict[str, int] = field(default_factory=dict)
    """Version at which an object went, by its identity; the oldest are forgotten first."""
    _put_out: dict[Key, list[Manifest]] = field(default_factory=dict)

    def put(self, kind: str, item: Manifest) -> Key | None:
        """Take in an object and return the key of the experiment that it concerns, if it concerns one.

        What is no newer than what is known is passed over, and so is what is older than the object's end.
        """
        item = _lean(item)
        key = key_of(item)
        known = self._objects.setdefault(kind, {}).get(key)
        if known is not None and _uid(known) == _uid(item) and _version(known) >= _version(item) > 0:
            return None
        if known is not None and _version(known) > _version(item):
            return None
        if _version(item) <= self._gone.get(_uid(item), -1):
            return None
        self._forget(kind, key)
        self._objects[kind][key] = item
        parent = parent_of(kind, item)
        if parent is not None and kind != _EXPERIMENT:
            self._by_parent.setdefault(parent, {})[kind, key] = item
        return parent

    def drop(self, kind: str, item: Manifest) -> Key | None:
        """Forget an object that has gone and return the key of the experiment that it concerned.

        Another of its name, that has been made since, stays.

        Args:
            kind: what it was.
            item: its last state, or no more than its namespace and name.
        """
        key, uid = key_of(item), _uid(item)
        if uid:
            self._gone[uid] = _version(item)
            while len(self._gone) > GRAVES:
                del self._gone[next(iter(self._gone))]
        known = self._objects.get(kind, {}).get(key)
        parent = parent_of(kind, item)
        if kind == _POD and parent is not None and holds(item, "DisruptionTarget"):
            self._put_out.setdefault(parent, []).append(_lean(item))
        if known is None:
            return parent
        if not uid or uid == _uid(known):
            self._forget(kind, key)
        return parent_of(kind, known)

    def _forget(self, kind: str, key: Key) -> None:
        item = self._objects.get(kind, {}).pop(key, None)
        parent = parent_of(kind, item) if item is not None else None
        if parent is not None and kind != _EXPERIMENT:
            siblings = self._by_parent.get(parent, {})
            siblings.pop((kind, key), None)
            if not siblings:
                self._by_parent.pop(parent, None)

    def experiment(self, key: Key) -> Manifest | None:
        """Return an experiment."""
        return self._objects.get(_EXPERIMENT, {}).get(key)

    def experiments(self) -> Iterator[Manifest]:
        """Yield every experiment."""
        yield from self._objects.get(_EXPERIMENT, {}).values()

    def children(self, key: Key) -> list[Manifest]:
        """Return the objects with an experiment's label, but for its pods."""
        return [item for (kind, _), item in self._by_parent.get(key, {}).items() if kind != _POD]

    def pods(self, key: Key) -> list[Manifest]:
        """Return the pods with an experiment's label."""
        return [item for (kind, _), item in self._by_parent.get(key, {}).items() if kind == _POD]

    def put_out(self, key: Key) -> list[Manifest]:
        """Return, once, the pods of an experiment that were put out and have gone since this was last asked.

        Of a lost node's pod that is marked and deleted in one moment nobody would ever learn why it went.
        """
        return self._put_out.pop(key, [])

    def claims(self, key: Key) -> list[Manifest]:
        """Return the claims that an experiment names or has, as far as they are there."""
        known = self._objects.get(_CLAIM, {})
        return [known[key[0], name] for name in self._claim_names(key) if (key[0], name) in known]

    def users(self, claim: Key) -> list[Key]:
        """Return the experiments that name a claim, or have it."""
        return [
            key
            for key in self._objects.get(_EXPERIMENT, {})
            if key[0] == claim[0] and claim[1] in self._claim_names(key)
        ]

    def _claim_names(self, key: Key) -> list[str]:
        spec = (self.experiment(key) or {}).get("spec") or {}
        output = (spec.get("output") or {}).get("claim") or f"{key[1]}{OUTPUT}"
        return [output, *(one.get("claim", "") for one in spec.get("inputs") or ())]

    def unlike(self, kind: str, versions: Mapping[Key, str]) -> dict[Key, str | None]:
        """Return where what is known differs from a listing: key and listed version, None for what has gone.

        A version that is newer than the listing's is none of it: events may overtake a listing.
        """
        known = self._objects.get(kind, {})
        behind: dict[Key, str | None] = {
            key: version
            for key, version in versions.items()
            if key not in known or _version(known[key]) < int(version)
        }
        return behind | {key: None for key in known if key not in versions}


@dataclass
class Silence:
    """Tells a watch that is a moment late from one that is silent: only the latter misses a change twice."""

    _missed: dict[tuple[str, Key], str | None] = field(default_factory=dict)
    lasting: int = 0
    """Audits in a row that found a change which the audit before had already missed."""

    def audited(self, unlike: Mapping[str, Mapping[Key, str | None]]) -> list[tuple[str, Key]]:
        """Take in what an audit found, by kind; return the changes that no watch has brought since."""
        found = {(kind, key): version for kind, keys in unlike.items() for key, version in keys.items()}
        lasting = [at for at, version in found.items() if at in self._missed and self._missed[at] == version]
        self._missed = {at: version for at, version in found.items() if at not in lasting}
        self.lasting = self.lasting + 1 if lasting else 0
        return lasting


def key_of(item: Manifest) -> Key:
    """Return namespace and name of an object."""
    return item["metadata"]["namespace"], item["metadata"]["name"]


def parent_of(kind: str, item: Manifest) -> Key | None:
    """Return the key of the experiment that an object is, or says that it belongs to."""
    if kind == _EXPERIMENT:
        return key_of(item)
    name = (item["metadata"].get("labels") or {}).get(EXPERIMENT)
    return (item["metadata"]["namespace"], name) if name else None


def _lean(item: Manifest) -> Manifest:
    """Return an object without the part that is larger than the rest.

    Of the managed fields stays whose they are beside us and the API server's own controllers.
    """
    kept = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
    if item.get("kind") == _CLAIM and EXPERIMENT not in (kept.get("labels") or {}):
        # Somebody else's: all that matters is whether it is there, and whether it goes.
        return {"kind": _CLAIM, "metadata": {key: kept[key] for key in _CLAIMS_OWN if key in kept}}
    others = [
        entry
        for entry in item["metadata"].get("managedFields") or ()
        if entry.get("manager") != MANAGER and not entry.get("subresource")
    ]
    watched = others and EXPERIMENT in (kept.get("labels") or {}) and item.get("kind") != _POD
    return item | {"metadata": kept | ({"managedFields": others} if watched else {})}


def _version(item: Manifest) -> int:
    version = str(item["metadata"].get("resourceVersion", "0"))
    return int(version) if version.isdecimal() else 0


def _uid(item: Manifest) -> str:
    return str(item["metadata"].get("uid", ""))
