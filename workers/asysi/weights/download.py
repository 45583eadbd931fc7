"""Fetches a checkpoint from the hub and verifies every file; what is verified is not fetched again."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.files import write_atomic

log = logging.getLogger("asysi.weights")

PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.gguf")
"""Files that are fetched: weights and what describes them, never pickles or code."""
RECORD_FILE = ".asysi-download.json"
_BLOCK = 8 << 20
_PAUSE = 1.0
"""Seconds before the second attempt; each later pause is twice as long, at most _LONGEST."""
_LONGEST = 30.0


@dataclass(frozen=True, slots=True)
class Verified:
    """A file that has the hash it should have, and how to see whether it was touched since."""

    size: int
    modified: int
    """Nanoseconds."""
    digest: str
    """`sha256:…` of large files, `git:…` (SHA-1 of a git blob) of small ones; `local:…` (SHA-256) where
    nobody says what it should be."""


@dataclass(frozen=True, slots=True)
class Download:
    """A checkpoint on this machine."""

    folder: Path
    model_id: str
    revision: str
    """Commit, or `local`."""
    files: Mapping[str, Verified]
    fetched: bool
    """False when everything was there and verified."""


def download_model(
    model_id: str,
    local_dir: str | Path,
    revision: str | None = None,
    **options: Any,
) -> str:
    """Fetch a model into `local_dir`, verify it, and return the folder. `options` are those of `download`."""
    return str(download(model_id, Path(local_dir), revision, **options).folder)


def download(
    model_id: str,
    folder: Path,
    revision: str | None = None,
    *,
    workers: int = 4,
    retries: int = 5,
    endpoint: str | None = None,
    offline: bool = False,
    patterns: tuple[str, ...] = PATTERNS,
    log_file: Path | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Download:
    """Fetch and verify a checkpoint; interrupted files go on where they ended.

    Args:
        model_id: `owner/name` on the hub, or a folder on this machine, which is copied.
        folder: where the files go.
        revision: branch, tag or commit; unset takes the main branch.
        workers: files at once.
        retries: attempts after the first when the network fails.
        endpoint: address of a mirror; unset takes HF_ENDPOINT, or the hub.
        offline: verify what is there and fetch nothing.
        patterns: globs on the files wanted.
        log_file: what happened, a line each; unset writes `download_<time>.log` beside the folder.
        pause: waits for seconds between attempts.

    Raises:
        ConfigError: no such model or revision, a file with another hash than the hub says, nothing there when
            offline, or no network after all attempts.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _download(
            model_id, folder, revision, workers=workers, retries=retries, endpoint=endpoint, offline=offline,
            patterns=patterns, log_file=log_file, pause=pause,
        )  # fmt: skip
    except Exception:
        _discard_empty(folder, made)
        raise


def _discard_empty(folder: Path, made: Sequence[Path]) -> None:
    """Remove what a failed download made and put nothing in; what was fetched is kept, to go on with."""
    if folder not in made or any(file.is_file() and file.stat().st_size for file in folder.rglob("*")):
        return
    shutil.rmtree(folder)
    for parent in made[1:]:
        with suppress(OSError):  # the log lies there
            parent.rmdir()


def _download(
    model_id: str,
    folder: Path,
    revision: str | None,
    *,
    workers: int,
    retries: int,
    endpoint: str | None,
    offline: bool,
    patterns: tuple[str, ...],
    log_file: Path | None,
    pause: Callable[[float], None],
) -> Download:
    with _logged(log_file or folder.parent / f"download_{datetime.now(UTC):%Y%m%dT%H%M%S}.log"):
        began = time.monotonic()
        if Path(model_id).expanduser().is_dir():
            done = _copy(Path(model_id).expanduser(), folder, patterns)
        elif offline:
            done = _offline(model_id, folder)
        else:
            done = _fetch(
                model_id,
                folder,
                revision,
                workers=workers,
                retries=retries,
                endpoint=endpoint,
                patterns=patterns,
                pause=pause,
            )
        size = sum(one.size for one in done.files.values())
        log.info(
            "%s %s at %s: %d files, %d bytes, verified, in %.1f s", "fetched" if done.fetched else "kept",
            done.model_id, done.revision, len(done.files), size, time.monotonic() - began,
        )  # fmt: skip
        return done


def read_record(folder: Path) -> dict[str, Any]:
    """Return what was recorded of the folder's download, an empty object when there is nothing."""
    try:
        found = json.loads((folder / RECORD_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _fetch(
    model_id: str, folder: Path, revision: str | None, *, workers: int, retries: int, endpoint: str | None,
    patterns: tuple[str, ...], pause: Callable[[float], None],
) -> Download:  # fmt: skip
    try:
        from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415 - an extra
        from huggingface_hub.utils import filter_repo_objects  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"{model_id}: the hub needs the package huggingface-hub: pip install 'asysi[hub]', or give "
            f"a folder"
        ) from error
    info = _again(
        lambda: HfApi(endpoint=endpoint).model_info(model_id, revision=revision, files_metadata=True,
        timeout=30),
        f"asking for {model_id}", retries, pause,
    )  # fmt: skip
    commit = str(info.sha)
    wanted = {
        one.rfilename: one
        for one in filter_repo_objects(
            info.siblings, allow_patterns=list(patterns), key=lambda one: one.rfilename
        )
    }
    if not wanted:
        raise ConfigError(
            f"{model_id} at {commit} holds no safetensors and no GGUF: a pickle is not fetched. Convert "
            f"it where you "
            "trust it, and give the folder"
        )
    expected = {name: _expected(one) for name, one in wanted.items()}
    known = _known(folder, model_id, commit)
    if expected.keys() <= known.keys():
        return _recorded(
            Download(folder, model_id, commit, {name: known[name] for name in expected}, fetched=False)
        )
    _again(
        lambda: snapshot_download(
            model_id, revision=commit, local_dir=folder, allow_patterns=sorted(wanted), max_workers=workers,
            endpoint=endpoint, etag_timeout=30,
        ),
        f"fetching {model_id}", retries, pause,
    )  # fmt: skip
    files = {}
    for name, digest in expected.items():
        files[name] = known.get(name) or _verify(folder / name, digest)
        log.info("%s: %d bytes, %s", name, files[name].size, files[name].digest)
    return _recorded(Download(folder, model_id, commit, files, fetched=True))


def _expected(sibling: Any) -> str | None:
    """Return the hash that the hub says a file has."""
    if sibling.lfs is not None:
        return f"sha256:{sibling.lfs.sha256}"
    return f"git:{sibling.blob_id}" if sibling.blob_id else None


def _verify(file: Path, expected: str | None) -> Verified:
    """Return the file's hash and stamp.

    Raises:
        ConfigError: it is another than expected; the file is set aside, so that it is fetched anew.
    """
    scheme = expected.partition(":")[0] if expected else "local"
    found = f"{scheme}:{_digest(file, scheme)}"
    if expected is not None and found != expected:
        aside = file.with_name(f"{file.name}.corrupt")
        file.replace(aside)
        raise ConfigError(
            f"{file}: it has {found}, the hub says {expected}; it was set aside as {aside.name}, so "
            f"download again, or "
            "take another mirror"
        )
    return _stamp(file, found)


def _stamp(file: Path, digest: str) -> Verified:
    stat = file.stat()
    return Verified(stat.st_size, stat.st_mtime_ns, digest)


def _digest(file: Path, scheme: str) -> str:
    digest = hashlib.sha1(usedforsecurity=False) if scheme == "git" else hashlib.sha256()
    if scheme == "git":
        digest.update(f"blob {file.stat().st_size}\0".encode())
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _known(folder: Path, model_id: str | None = None, revision: str | None = None) -> dict[str, Verified]:
    """Return the files that were verified earlier and have not been touched since."""
    record = read_record(folder)
    if model_id is not None and (record.get("model_id"), record.get("revision")) != (model_id, revision):
        return {}
    found = {}
    for name, entry in record.get("files", {}).items():
        try:
            stat = (folder / name).stat()
            one = Verified(**entry)
        except (OSError, TypeError):
            continue
        if (stat.st_size, stat.st_mtime_ns) == (one.size, one.modified):
            found[name] = one
    return found


def _recorded(done: Download) -> Download:
    record = {
        "model_id": done.model_id,
        "revision": done.revision,
        "files": {name: asdict(one) for name, one in done.files.items()},
    }
    write_atomic(done.folder / RECORD_FILE, json.dumps(record, indent=1))
    return done


def _offline(model_id: str, folder: Path) -> Download:
    record = read_record(folder)
    if not record or record.get("model_id") != model_id:
        raise ConfigError(
            f"{model_id} is not in {folder}, and offline nothing is fetched: download it where there is "
            f"a network"
        )
    known = _known(folder)
    files = {
        name: known.get(name) or _verify(_present(folder / name), entry["digest"])
        for name, entry in record["files"].items()
    }
    return _recorded(Download(folder, model_id, str(record["revision"]), files, fetched=False))


def _present(file: Path) -> Path:
    if not file.is_file():
        raise ConfigError(f"{file} is gone, and offline nothing is fetched: download again with a network")
    return file


def _copy(source: Path, folder: Path, patterns: tuple[str, ...]) -> Download:
    """Copy a local folder, and hash what was copied; equal files are kept."""
    names = sorted({file.name for pattern in patterns for file in source.glob(pattern) if file.is_file()})
    if not any(name.endswith((".safetensors", ".gguf")) for name in names):
        raise ConfigError(f"{source} holds no safetensors and no GGUF: the weights are missing")
    known = _known(folder)
    files, fetched = {}, False
    for name in names:
        original, file = source / name, folder / name
        if (
            name in known
            and known[name].size == original.stat().st_size
            and known[name].modified >= original.stat().st_mtime_ns
        ):
            files[name] = known[name]
            continue
        fetched = True
        if source.resolve() != folder.resolve():
            partial = file.with_name(f".{name}.part")
            shutil.copyfile(original, partial)
            partial.replace(file)
        found = f"local:{_digest(file, 'local')}"
        if found != f"local:{_digest(original, 'local')}":
            raise ConfigError(
                f"{file} is not what {original} is: the source changed while it was copied; try again"
            )
        files[name] = _stamp(file, found)
        log.info("%s: %d bytes, %s", name, files[name].size, found)
    model_id = str(read_record(source).get("model_id") or folder.name)
    revision = str(read_record(source).get("revision") or "local")
    return _recorded(Download(folder, model_id, revision, files, fetched))


def _again(action: Callable[[], Any], what: str, retries: int, pause: Callable[[float], None]) -> Any:
    """Return what `action` returns; a network that fails is tried again, with growing pauses.

    Raises:
        ConfigError: the hub refuses, or the network has failed at every attempt.
    """
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    for attempt in range(retries + 1):
        try:
            return action()
        except GatedRepoError as error:
            raise ConfigError(
                f"{what}: the model is gated; ask for access and set HF_TOKEN ({error})"
            ) from error
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
            raise ConfigError(f"{what}: the hub has no such model or revision ({error})") from error
        except OfflineModeIsEnabled as error:
            raise ConfigError(f"{what}: HF_HUB_OFFLINE is set; unset it, or take --offline") from error
        except (HfHubHTTPError, OSError, *_network_errors()) as error:
            if attempt == retries or _final(error):
                raise ConfigError(
                    f"{what}: it failed {attempt + 1} times, at last by {type(error).__name__}: "
                    f"{error}. Try later, or "
                    "another --endpoint; what was fetched is kept"
                ) from error
            seconds = min(_LONGEST, _PAUSE * 2**attempt)
            log.warning(
                "%s: attempt %d failed (%s: %s); again in %.0f s",
                what,
                attempt + 1,
                type(error).__name__,
                error,
                seconds,
            )
            pause(seconds)
    raise AssertionError(what)


def _network_errors() -> list[type[Exception]]:
    """Return the errors of the client that huggingface_hub talks through: httpx2, or httpx before 2.0."""
    found: list[type[Exception]] = []
    for name in ("httpx2", "httpx"):
        with suppress(ImportError):
            found.append(import_module(name).HTTPError)
    return found


def _final(error: Exception) -> bool:
    """Return whether trying again cannot help: the disk is full, or the hub refuses for good."""
    import errno  # noqa: PLC0415

    status = getattr(getattr(error, "response", None), "status_code", None)
    return getattr(error, "errno", None) in {errno.ENOSPC, errno.EACCES, errno.EROFS} or status in {
        401,
        403,
        404,
        410,
    }


@contextmanager
def _logged(file: Path) -> Iterator[None]:
    handler = logging.FileHandler(file, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    except Exception as error:
        log.error("%s", error)  # noqa: TRY400 - the caller says where
        raise
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
        handler.close()


def default_folder(root: Path, model_id: str) -> Path:
    """Return where a model belongs below `root`: `root/owner/name`, `root/name` of a local folder."""
    path = Path(model_id).expanduser()
    if path.is_dir():
        telling = [
            part
            for part in path.resolve().parts
            if part.lower() not in {"model", "models", "weights", os.sep}
        ]
        return root / (telling[-1] if telling else "model")
    return root / model_id
