"""What the watches have brought, and what they have failed to bring. Pure: no clock, no connection."""

import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.labels import EXPERIMENT, MANAGER
from asysi_operator.manifests.names import OUTPUT
from asysi_operator.observation import holds

Key = tuple[str, str]
"""Namespace and name."""
TOMBSTONES = 4096
"""Objects that have gone and are remembered: an answer that was under way may still speak of them."""
_EXPERIMENT = "ScanExperiment"
_POD = "Pod"
_CLAIM = "PersistentVolumeClaim"
_CLAIMS_OWN = ("namespace", "name", "uid", "resourceVersion", "deletionTimestamp")


@dataclass(frozen=True, slots=True)
class _Kept:
    """An object as it is kept: as compressed text. A Job takes fifty times as much as Python's objects."""

    uid: str
    version: int
    parent: Key | None
    text: bytes
    phase: str = ""
    """Of an experiment."""
    claims: tuple[str, ...] = ()
    """Those that an experiment names or has."""

    @property
    def item(self) -> Manifest:
        found: Manifest = msgspec.json.decode(zlib.decompress(self.text))
        return found


@dataclass
class ObjectCache:
    """Objects by kind and key, as last seen. Whoever asks for one gets a copy."""

    _objects: dict[str, dict[Key, _Kept]] = field(default_factory=dict)
    _by_parent: dict[Key, dict[tuple[str, Key], _Kept]] = field(default_factory=dict)
    _gone: dict[str, int] = field(default_factory=dict)
    """Version at which an object went, by its identity; the oldest are forgotten first."""
    _put_out: dict[Key, list[Manifest]] = field(default_factory=dict)

    def put(self, kind: str, item: Manifest) -> Key | None:
        """Take in an object and return the key of the experiment that it concerns, if it concerns one.

        What is no newer than what is known is passed over, and so is what is older than the object's end.
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
        """Forget an object that has gone and return the key of the experiment that it concerned.

        Another of its name, that has been made since, stays.

        Args:
            kind: what it was.
            item: its last state, or no more than its namespace and name.
        """
        key, uid = key_of(item), _uid(item)
        if uid:
            self._gone[uid] = _version(item)
            while len(self._gone) > TOMBSTONES:
                del self._gone[next(iter(self._gone))]
        known = self._objects.get(kind, {}).get(key)
        parent = parent_of(kind, item)
        if kind == _POD and parent is not None and holds(item, "DisruptionTarget"):
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
        """Whether anything with an experiment's label is there."""
        return key in self._by_parent

    def children(self, key: Key) -> list[Manifest]:
        """Return the objects with an experiment's label, but for its pods."""
        return [kept.item for (kind, _), kept in self._by_parent.get(key, {}).items() if kind != _POD]

    def pods(self, key: Key) -> list[Manifest]:
        """Return the pods with an experiment's label."""
        return [kept.item for (kind, _), kept in self._by_parent.get(key, {}).items() if kind == _POD]

    def put_out(self, key: Key) -> list[Manifest]:
        """Return, once, the pods of an experiment that were put out and have gone since this was last asked.

        Of a lost node's pod that is marked and deleted in one moment nobody would ever learn why it went.
        """
        return self._put_out.pop(key, [])

    def claims(self, key: Key) -> list[Manifest]:
        """Return the claims that an experiment names or has, as far as they are there."""
        known, user = self._objects.get(_CLAIM, {}), self._objects.get(_EXPERIMENT, {}).get(key)
        names = user.claims if user is not None else ()
        return [known[key[0], name].item for name in names if (key[0], name) in known]

    def users(self, claim: Key) -> list[Key]:
        """Return the experiments that name a claim, or have it."""
        known = self._objects.get(_EXPERIMENT, {})
        return [key for key, kept in known.items() if key[0] == claim[0] and claim[1] in kept.claims]

    def unlike(self, kind: str, versions: Mapping[Key, str]) -> dict[Key, str | None]:
        """Return where what is known differs from a listing: key and listed version, None for what has gone.

        A version that is newer than the listing's is none of it: events may overtake a listing.
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
