"""Cache of the objects that the watches reported, and detection of missed changes. Pure: no clock, no I/O."""

import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import EXPERIMENT, MANAGER
from asysi_operator.manifests.names import OUTPUT
from asysi_operator.observation import true_condition

Key = tuple[str, str]
"""Namespace and name."""
TOMBSTONES = 4096
"""Number of deleted objects remembered, because a response in flight may still contain one of them."""
_EXPERIMENT = "ScanExperiment"
_POD = "Pod"
_CLAIM = "PersistentVolumeClaim"
_CLAIMS_OWN = ("namespace", "name", "uid", "resourceVersion", "deletionTimestamp")


@dataclass(frozen=True, slots=True)
class _Kept:
    """A cached object, stored as compressed JSON: as Python objects, a Job takes fifty times the memory."""

    uid: str
    version: int
    parent: Key | None
    text: bytes
    phase: str = ""
    """Phase, for experiments only."""
    claims: tuple[str, ...] = ()
    """Claims that an experiment references or owns."""

    @property
    def item(self) -> Manifest:
        found: Manifest = msgspec.json.decode(zlib.decompress(self.text))
        return found


@dataclass
class ObjectCache:
    """Objects by kind and key, as last seen. Every read returns a copy."""

    _objects: dict[str, dict[Key, _Kept]] = field(default_factory=dict)
    _by_parent: dict[Key, dict[tuple[str, Key], _Kept]] = field(default_factory=dict)
    _gone: dict[str, int] = field(default_factory=dict)
    """Resource version at deletion, by UID; the oldest entries are evicted first."""
    _put_out: dict[Key, list[Manifest]] = field(default_factory=dict)

    def put(self, kind: str, item: Manifest) -> Key | None:
        """Store an object and return the key of its experiment, if it has one.

        Versions no newer than the cached one, or than the object's deletion, are ignored.
        """
        key, uid, version = key_of(item), _uid(item), _version(item)
        known = self._objects.setdefault(kind, {}).get(key)
        if known is not None and known.uid == uid and known.version >= version > 0:
            return None
        if known is not None and known.version > version:
            return None
        if version <= self._gone.get(uid, -1):
            return None
        self._forget(kind, key)
        kept = self._objects[kind][key] = _kept(kind, item)
        if kept.parent is not None and kind != _EXPERIMENT:
            self._by_parent.setdefault(kept.parent, {})[kind, key] = kept
        return kept.parent

    def drop(self, kind: str, item: Manifest) -> Key | None:
        """Drop a deleted object and return the key of its experiment, if it had one.

        A newer object of the same name is kept.

        Args:
            kind: kind of the object.
            item: its last state, or at least its namespace and name.
        """
        key, uid = key_of(item), _uid(item)
        if uid:
            self._gone[uid] = _version(item)
            while len(self._gone) > TOMBSTONES:
                del self._gone[next(iter(self._gone))]
        known = self._objects.get(kind, {}).get(key)
        parent = parent_of(kind, item)
        if kind == _POD and parent is not None and true_condition(item, "DisruptionTarget"):
            self._put_out.setdefault(parent, []).append(_lean(item))
        if known is None:
            return parent
        if not uid or uid == known.uid:
            self._forget(kind, key)
        return known.parent

    def _forget(self, kind: str, key: Key) -> None:
        kept = self._objects.get(kind, {}).pop(key, None)
        if kept is not None and kept.parent is not None and kind != _EXPERIMENT:
            siblings = self._by_parent.get(kept.parent, {})
            siblings.pop((kind, key), None)
            if not siblings:
                self._by_parent.pop(kept.parent, None)

    def experiment(self, key: Key) -> Manifest | None:
        """Return an experiment."""
        kept = self._objects.get(_EXPERIMENT, {}).get(key)
        return None if kept is None else kept.item

    def phases(self) -> Counter[str]:
        """Return how many experiments are in each phase."""
        return Counter(kept.phase for kept in self._objects.get(_EXPERIMENT, {}).values())

    def has_children(self, key: Key) -> bool:
        """Whether any object with the experiment's label exists."""
        return key in self._by_parent

    def children(self, key: Key) -> list[Manifest]:
        """Return the objects with the experiment's label, except pods."""
        return [kept.item for (kind, _), kept in self._by_parent.get(key, {}).items() if kind != _POD]

    def pods(self, key: Key) -> list[Manifest]:
        """Return the pods with the experiment's label."""
        return [kept.item for (kind, _), kept in self._by_parent.get(key, {}).items() if kind == _POD]

    def put_out(self, key: Key) -> list[Manifest]:
        """Return and clear the pods of an experiment that were evicted and deleted since the last call.

        Without this, the reason would be lost for a pod on a failed node that is marked and deleted at once.
        """
        return self._put_out.pop(key, [])

    def claims(self, key: Key) -> list[Manifest]:
        """Return the existing claims that an experiment references or owns."""
        known, user = self._objects.get(_CLAIM, {}), self._objects.get(_EXPERIMENT, {}).get(key)
        names = user.claims if user is not None else ()
        return [known[key[0], name].item for name in names if (key[0], name) in known]

    def users(self, claim: Key) -> list[Key]:
        """Return the experiments that reference or own a claim."""
        known = self._objects.get(_EXPERIMENT, {})
        return [key for key, kept in known.items() if key[0] == claim[0] and claim[1] in kept.claims]

    def unlike(self, kind: str, versions: Mapping[Key, str]) -> dict[Key, str | None]:
        """Return where the cache lags a list response: key and listed version, None for deleted objects.

        A cached version newer than the listed one is not a difference: events may overtake a list.
        """
        known = self._objects.get(kind, {})
        behind: dict[Key, str | None] = {
            key: version
            for key, version in versions.items()
            if key not in known or known[key].version < int(version)
        }
        return behind | {key: None for key in known if key not in versions}


@dataclass
class StaleWatchDetector:
    """Distinguishes a slow watch from a stalled one: only a stalled watch misses a change in two audits."""

    _missed: dict[tuple[str, Key], str | None] = field(default_factory=dict)
    lasting: int = 0
    """Consecutive audits that found a change already missing in the audit before."""

    def audited(self, unlike: Mapping[str, Mapping[Key, str | None]]) -> list[tuple[str, Key]]:
        """Record an audit's differences by kind; return the changes that the previous audit missed too."""
        found = {(kind, key): version for kind, keys in unlike.items() for key, version in keys.items()}
        lasting = [at for at, version in found.items() if at in self._missed and self._missed[at] == version]
        self._missed = {at: version for at, version in found.items() if at not in lasting}
        self.lasting = self.lasting + 1 if lasting else 0
        return lasting


def key_of(item: Manifest) -> Key:
    """Return an object's namespace and name."""
    return item["metadata"]["namespace"], item["metadata"]["name"]


def parent_of(kind: str, item: Manifest) -> Key | None:
    """Return the key of the experiment that an object is, or is labelled with."""
    if kind == _EXPERIMENT:
        return key_of(item)
    name = (item["metadata"].get("labels") or {}).get(EXPERIMENT)
    return (item["metadata"]["namespace"], name) if name else None


def _kept(kind: str, item: Manifest) -> _Kept:
    lean = _lean(item)
    parent, text = parent_of(kind, item), zlib.compress(msgspec.json.encode(lean), 1)
    if kind != _EXPERIMENT:
        return _Kept(_uid(item), _version(item), parent, text)
    spec, name = item.get("spec") or {}, item["metadata"]["name"]
    output = (spec.get("output") or {}).get("claim") or f"{name}{OUTPUT}"
    claims = dict.fromkeys([output, *(one.get("claim", "") for one in spec.get("inputs") or ())])
    phase = str((item.get("status") or {}).get("phase") or "Pending")
    return _Kept(_uid(item), _version(item), parent, text, phase, tuple(claims))


def _lean(item: Manifest) -> Manifest:
    """Return an object without most of its managed fields, which are larger than the rest.

    Entries of other managers are kept, so that contention can name them; status entries are dropped.
    """
    kept = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
    if item.get("kind") == _CLAIM and EXPERIMENT not in (kept.get("labels") or {}):
        # Not created by us: only its existence and deletion matter.
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
