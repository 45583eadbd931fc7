"""Locations of a checkpoint's files: a folder, a file, the hub's cache, or an fsspec address."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from asysi.contract.errors import ConfigError
from asysi.locations import reaching
from asysi.weights.reading.storage import remote

_CACHED = "models--"
_SHOWN = 8


class LocalPlace:
    """A folder or file on this machine."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise ConfigError(f"there is no {path}: give a folder with safetensors, or a file")
        self.path = resolve_cache(path)
        self.single = self.path.name if self.path.is_file() else None

    def names(self) -> list[str]:
        """Return the names of all files, including dangling links."""
        return sorted(file.name for file in self.path.iterdir() if file.is_file() or file.is_symlink())

    def folders(self) -> list[str]:
        """Return the names of all folders."""
        return sorted(one.name for one in self.path.iterdir() if one.is_dir())

    def exists(self, name: str) -> bool:
        """Return whether there is such a file."""
        return (self.path / name).is_file()

    def full(self, name: str) -> str:
        """Return the path of a file."""
        return str(self.path if self.single else self.path / name)

    def text(self, name: str) -> str:
        """Return the text of a file beside the weights."""
        folder = self.path.parent if self.single else self.path
        return (folder / name).read_text(encoding="utf-8")


class RemotePlace:
    """A folder or file behind an fsspec address."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._filesystem, self._path = remote(self.url)
        with reaching(self.url):
            single = self._filesystem.isfile(self._path)
        self.single = PurePosixPath(self._path).name if single else None

    def names(self) -> list[str]:
        """Return the names of all entries."""
        with reaching(self.url):
            found = self._filesystem.ls(self._path, detail=False)
        return sorted(PurePosixPath(str(one)).name for one in found)

    def folders(self) -> list[str]:
        """Return nothing: telling folders from files would take a request per entry."""
        return []

    def exists(self, name: str) -> bool:
        """Return whether there is such a file."""
        return bool(self._filesystem.isfile(f"{self._path}/{name}"))

    def full(self, name: str) -> str:
        """Return the address of a file."""
        return self.url if self.single else f"{self.url}/{name}"

    def text(self, name: str) -> str:
        """Return the text of a file beside the weights."""
        folder = str(PurePosixPath(self._path).parent) if self.single else self._path
        return bytes(self._filesystem.cat_file(f"{folder}/{name}")).decode()


Place = LocalPlace | RemotePlace


def resolve_cache(path: Path, revision: str | None = None) -> Path:
    """Return the snapshot for a folder of the hub's cache (`models--owner--name`), else `path`.

    Args:
        path: any path.
        revision: branch, tag or commit; unset uses `main`, or the only snapshot.

    Raises:
        ConfigError: there is no such snapshot, or there are several and none was chosen.
    """
    if not (path.name.startswith(_CACHED) and (path / "snapshots").is_dir()):
        return path
    there = sorted(one.name for one in (path / "snapshots").iterdir() if one.is_dir())
    reference = path / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    if commit is None and len(there) == 1:
        commit = there[0]
    if commit not in there:
        said = f"revision {revision or 'main'}" if commit else "one revision that is meant"
        raise ConfigError(
            f"{path} is a folder of the hub's cache without {said}: it has {_some(there)}; give the folder "
            "of one, or fetch the model again"
        )
    return path / "snapshots" / commit


def cache_identity(path: Path) -> tuple[str, str] | None:
    """Return the model id and commit of a hub cache path, …/models--owner--name/snapshots/commit."""
    parts = path.absolute().parts
    for number, part in enumerate(parts[:-2]):
        if part.startswith(_CACHED) and parts[number + 1] == "snapshots":
            return part.removeprefix(_CACHED).replace("--", "/"), parts[number + 2]
    return None


def refuse_empty(place: Place) -> ConfigError:
    """Return the error for a folder without weights: what it is instead, and what to pass."""
    names, folders, full = place.names(), place.folders(), place.full("")
    if cached := [one for one in folders if one.startswith(_CACHED)]:
        return ConfigError(f"{full} is the hub's cache of {len(cached)} models: give one, as {_some(cached)}")
    if broken := [name for name in names if not place.exists(name)]:
        return ConfigError(
            f"{full}: {_some(broken)} are links to nothing, so the download did not end; fetch the model "
            "again"
        )
    if "model_index.json" in names:
        return ConfigError(
            f"{full} is a pipeline of several models: give one of its folders, {_some(folders)}"
        )
    if inner := [one for one in folders if isinstance(place, LocalPlace) and _has_weights(place.path / one)]:
        return ConfigError(f"{full} holds no weights itself: give one of its folders, {_some(inner)}")
    return ConfigError(f"{full} holds no safetensors, GGUF or npz: the weights are missing")


def _has_weights(folder: Path) -> bool:
    return any(one.suffix in {".safetensors", ".gguf"} for one in folder.iterdir())


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "none"
