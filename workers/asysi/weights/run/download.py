"""Fetches a checkpoint from the hub and verifies every file; verified files are not fetched again."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.files import write_atomic
from asysi.weights.reading.places import LocalPlace
from asysi.weights.reading.shard_files import find_shards
from asysi.weights.run.plan import Done, WorkPlan, WorkStep
from asysi.weights.run.retry import ElsewhereError, NoRevisionError, ask_again
from asysi.weights.tables.export import code_version

log = logging.getLogger("asysi.weights")

PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.gguf")
"""Files that are fetched: weights and their descriptions, never pickles or code."""
RECORD_FILE = ".asysi-download.json"
STEPS = (
    WorkStep(
        "list", "asks {source} for the files, their hashes and the commit", "a commit and hashes are known"
    ),
    WorkStep(
        "fetch",
        "brings what is not verified yet into {folder}, {workers} files at once, and hashes it",
        "every file has the hash that its source says",
    ),
    WorkStep(
        "check",
        "counts shards and bytes and writes {result}",
        "every shard that the index or the numbers in the names promise is there",
    ),
)
_BLOCK = 8 << 20


@dataclass(frozen=True, slots=True)
class Verified:
    """A file with the expected hash, and the stamp that shows whether it has been modified since."""

    size: int
    modified: int
    """Nanoseconds."""
    digest: str
    """`sha256:…` for large files, `git:…` (SHA-1 of a git blob) for small ones; `local:…` (SHA-256) if no
    expected hash is known."""


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
    expected: Mapping[str, str | None] = field(default_factory=dict)
    """Hash of each file according to the source, None if it gives none."""
    source: str = ""
    """Address or folder it came from."""
    notes: tuple[str, ...] = ()
    """Fallbacks that were used."""
    problems: tuple[str, ...] = ()
    """What is missing from the checkpoint."""

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(one.size for one in self.files.values())


@dataclass(frozen=True, slots=True)
class _Request:
    """What to fetch, from where, and the fallbacks."""

    model_id: str
    folder: Path
    revisions: tuple[str | None, ...]
    """Revisions in order of preference; each is used only if all before it are missing."""
    endpoints: tuple[str | None, ...]
    """Endpoints in order of preference."""
    workers: int
    retries: int
    patterns: tuple[str, ...]
    pause: Callable[[float], None]


@dataclass(frozen=True, slots=True)
class _Listing:
    """A model's files according to a source."""

    model_id: str
    revision: str
    expected: Mapping[str, str | None]
    endpoints: tuple[str | None, ...] = ()
    """Endpoints that may still work, starting with the one that answered."""
    source: str = ""
    notes: tuple[str, ...] = ()


def plan_file(folder: Path) -> Path:
    """Return the path of the plan of a download into `folder`: next to the folder."""
    return folder.with_name(f"{folder.name}.plan.json")


def result_file(folder: Path) -> Path:
    """Return the path of the result of a download into `folder`: next to the folder."""
    return folder.with_name(f"{folder.name}.result.json")


def download_model(
    model_id: str,
    local_dir: str | Path,
    revision: str | None = None,
    **options: Any,
) -> str:
    """Fetch a model into `local_dir`, verify it, and return the folder; `options` are those of `download`."""
    return str(download(model_id, Path(local_dir), revision, **options).folder)


def download(
    model_id: str,
    folder: Path,
    revision: str | None = None,
    *,
    workers: int = 4,
    retries: int = 5,
    endpoint: str | None = None,
    mirrors: Sequence[str] = (),
    fallback_revisions: Sequence[str] = (),
    offline: bool = False,
    patterns: tuple[str, ...] = PATTERNS,
    log_file: Path | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Download:
    """Fetch and verify a checkpoint; interrupted files resume where they stopped.

    Next to the folder: `<name>.plan.json`, written first and after every step, `<name>.result.json` and a
    log. If nothing could be fetched into a new folder, nothing is left behind.

    Args:
        model_id: `owner/name` on the hub, or a folder on this machine, which is copied.
        folder: where the files go.
        revision: branch, tag or commit; unset uses the main branch.
        workers: files fetched concurrently.
        retries: attempts per endpoint after the first when the network fails.
        endpoint: address of a mirror; unset uses HF_ENDPOINT, or the hub.
        mirrors: addresses tried, in this order, when the endpoint fails permanently or sends unexpected
            bytes. Commit and hashes are those of the first endpoint that answered.
        fallback_revisions: revisions tried, in this order, if `revision` does not exist.
        offline: verify what is there and fetch nothing.
        patterns: globs that select files.
        log_file: log with one line per event; unset writes `download_<time>.log` next to the folder.
        pause: sleeps for a number of seconds between attempts.

    Raises:
        ConfigError: no such model or revision, a file whose hash differs from the hub's, nothing there when
            offline, or no network after all attempts.
    """
    request = _Request(
        model_id,
        folder,
        (revision, *fallback_revisions),
        (endpoint, *mirrors),
        workers,
        retries,
        patterns,
        pause,
    )
    log_to = log_file or folder.parent / f"download_{datetime.now(UTC):%Y%m%dT%H%M%S}.log"
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _logged(log_to):
            return _carried_out(request, _planned(request, offline=offline), offline=offline)
    except Exception:
        _discard_empty(folder, made, [plan_file(folder), *([] if log_file else [log_to])])
        raise


def _planned(request: _Request, *, offline: bool) -> WorkPlan:
    """Write the plan, and remove the result of an earlier download."""
    folder = request.folder
    result_file(folder).unlink(missing_ok=True)
    local = Path(request.model_id).expanduser().is_dir()
    source = request.model_id if local else "the record of the last time" if offline else "the hub"
    head = {
        "goal": f"{request.model_id} in {folder}, every file verified",
        "inputs": {
            "model": request.model_id,
            "revision": request.revisions[0],
            "fallback_revisions": list(request.revisions[1:]),
            "endpoints": [one or os.environ.get("HF_ENDPOINT", "the hub") for one in request.endpoints],
            "device": "none: nothing is computed",
            "precision": "as stored: nothing is converted",
            "files": list(request.patterns),
            "offline": offline,
        },
        "outputs": [str(folder), str(result_file(folder))],
        "fallbacks": [
            f"the network fails: {request.retries} more attempts; what was fetched of a file is kept",
            "an endpoint fails for good, or sends other bytes than promised: the next endpoint",
            "the revision does not exist: the next of fallback_revisions, and a note says so",
        ],
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    words = {
        "source": source,
        "folder": str(folder),
        "workers": str(request.workers),
        "result": result_file(folder).name,
    }
    return WorkPlan(plan_file(folder), head, [step.worded(words) for step in STEPS])


def _carried_out(request: _Request, plan: WorkPlan, *, offline: bool) -> Download:
    began = time.monotonic()
    local = Path(request.model_id).expanduser()
    if local.is_dir():
        listing = plan.carry_out("list", lambda: _listed(_listing_of_folder(local, request)))
        done = plan.carry_out("fetch", lambda: _settled(_copy(local, request, listing)))
    elif offline:
        listing = plan.carry_out("list", lambda: _listed(_listing_of_record(request)))
        done = plan.carry_out("fetch", lambda: _settled(_kept(request, listing)))
    else:
        listing = plan.carry_out("list", lambda: _listed(_listing_of_hub(request)))
        done = plan.carry_out("fetch", lambda: _settled(_fetch(request, listing)))
    done = plan.carry_out("check", lambda: _counted(done, request, time.monotonic() - began))
    log.info(
        "%s %s at %s: %d files, %d bytes, verified, in %.1f s", "fetched" if done.fetched else "kept",
        done.model_id, done.revision, len(done.files), done.size, time.monotonic() - began,
    )  # fmt: skip
    return done


def _listed(listing: _Listing) -> Done[_Listing]:
    said = f"{len(listing.expected)} files at {listing.revision}"
    return Done(listing, note="; ".join([said, *listing.notes]))


def _settled(done: Download) -> Done[Download]:
    state = "done" if done.fetched else "skipped"
    return Done(done, state, "; ".join([f"{len(done.files)} files verified", *done.notes]))


def _counted(done: Download, request: _Request, seconds: float) -> Done[Download]:
    """Count shards, and write the result."""
    expected, problems = _shards(done)
    found = [name for name in expected if name in done.files]
    missing = [name for name in expected if name not in done.files]
    problems = problems or [f"{name} is not there" for name in missing]
    done = replace(done, problems=tuple(problems))
    content = {
        "model_id": done.model_id,
        "requested_revision": request.revisions[0],
        "resolved_revision": done.revision,
        "source": done.source,
        "fetched": done.fetched,
        "shards": {"expected": len(expected), "found": len(found), "missing": missing},
        "bytes": done.size,
        "files": {
            name: {"bytes": one.size, "hash": one.digest, "expected_hash": done.expected.get(name)}
            for name, one in done.files.items()
        },
        "notes": list(done.notes),
        "problems": problems,
        "code_version": code_version(),
        "seconds": round(seconds, 3),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_atomic(result_file(done.folder), json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    for problem in problems:
        log.error("%s", problem)
    note = f"{len(found)} of {len(expected)} shards, {done.size} bytes"
    return Done(done, "failed" if problems else "done", note)


def _shards(done: Download) -> tuple[list[str], list[str]]:
    """Return the expected weight files, and the problems of those present."""
    weights = [name for name in done.files if name.endswith((".safetensors", ".gguf"))]
    try:
        shards = find_shards(LocalPlace(done.folder))
    except ConfigError as error:
        return weights, [str(error)]
    stale = shards.index and not set(shards.index.values()) & done.files.keys()
    promised = {} if stale else dict.fromkeys(shards.index.values())
    return sorted({*promised, *weights}), [problem.listed for problem in shards.problems]


def _discard_empty(folder: Path, made: Sequence[Path], beside: Sequence[Path]) -> None:
    """Remove what a failed download created if nothing was fetched; otherwise keep it, to resume from."""
    if folder not in made or any(_is_worth_keeping(file, folder) for file in folder.rglob("*")):
        return
    shutil.rmtree(folder)
    for file in beside:
        file.unlink(missing_ok=True)
    for parent in made[1:]:
        with suppress(OSError):  # the folder holds something else
            parent.rmdir()


def _is_worth_keeping(file: Path, folder: Path) -> bool:
    """Return whether a file holds bytes of the model, not bookkeeping of huggingface_hub."""
    if not file.is_file() or not file.stat().st_size:
        return False
    return file.relative_to(folder).parts[0] != ".cache" or file.suffix == ".incomplete"


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of the folder's download, empty if there is none."""
    try:
        found = json.loads((folder / RECORD_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _listing_of_hub(request: _Request) -> _Listing:
    """Ask the endpoints, in order, for the first revision that exists."""
    try:
        from huggingface_hub import HfApi  # noqa: PLC0415 - an extra
        from huggingface_hub.utils import filter_repo_objects  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"{request.model_id}: the hub needs the package huggingface-hub: pip install 'asysi[hub]', or "
            "give a folder"
        ) from error
    notes: list[str] = []
    info, endpoint = _first_answer(
        request,
        lambda endpoint, revision: HfApi(endpoint=endpoint).model_info(
            request.model_id, revision=revision, files_metadata=True, timeout=30
        ),
        notes,
    )
    commit = str(info.sha)
    wanted = {
        one.rfilename: _expected(one)
        for one in filter_repo_objects(
            info.siblings, allow_patterns=list(request.patterns), key=lambda one: one.rfilename
        )
    }
    if not wanted:
        raise ConfigError(
            f"{request.model_id} at {commit} holds no safetensors and no GGUF: a pickle is not fetched. "
            "Convert it where you trust it, and give the folder"
        )
    rest = request.endpoints[request.endpoints.index(endpoint) :]
    source = endpoint or os.environ.get("HF_ENDPOINT", "the hub")
    return _Listing(request.model_id, commit, wanted, rest, source, tuple(notes))


def _first_answer(
    request: _Request, ask: Callable[[str | None, str | None], Any], notes: list[str]
) -> tuple[Any, str | None]:
    """Return the first answer and the endpoint that gave it; each fallback is noted.

    Raises:
        ConfigError: no endpoint answered; the message lists every failure.
    """
    failures: list[str] = []
    for endpoint in request.endpoints:
        for revision in request.revisions:
            what = f"asking for {request.model_id}" + (f" at {revision}" if revision else "")
            try:
                found = ask_again(partial(ask, endpoint, revision), what, request.retries, request.pause)
            except NoRevisionError as error:
                failures.append(str(error))
            except ElsewhereError as error:
                failures.append(str(error))
                break
            else:
                if failures:
                    notes.append(
                        f"taken: revision {revision or 'main'} of {endpoint or 'the hub'}, for {failures[0]}"
                    )
                    log.warning("%s", notes[-1])
                return found, endpoint
    raise ConfigError(*dict.fromkeys(failures))


def _fetch(request: _Request, listing: _Listing) -> Download:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - an extra

    folder = request.folder
    known = _known(folder, listing.model_id, listing.revision)
    if listing.expected.keys() <= known.keys():
        files = {name: known[name] for name in listing.expected}
        return _recorded(_downloaded(request, listing, files, fetched=False))
    notes = list(listing.notes)
    for number, endpoint in enumerate(listing.endpoints, 1):
        try:
            ask_again(
                partial(
                    snapshot_download, listing.model_id, revision=listing.revision, local_dir=folder,
                    allow_patterns=sorted(listing.expected), max_workers=request.workers, endpoint=endpoint,
                    etag_timeout=30,
                ),
                f"fetching {listing.model_id}", request.retries, request.pause,
            )  # fmt: skip
            files = {}
            for name, digest in listing.expected.items():
                files[name] = known.get(name) or _verify(folder / name, digest)
                log.info("%s: %d bytes, %s", name, files[name].size, files[name].digest)
        except ElsewhereError as error:
            if number == len(listing.endpoints):
                raise
            notes.append(f"went on with {listing.endpoints[number]}, for {error}")
            log.warning("%s", notes[-1])
        else:
            for name in files:
                (folder / name).with_name(f"{Path(name).name}.corrupt").unlink(missing_ok=True)
            source = endpoint or listing.source
            listing = replace(listing, notes=tuple(notes), source=source)
            return _recorded(_downloaded(request, listing, files, fetched=True))
    raise AssertionError(listing)


def _downloaded(
    request: _Request, listing: _Listing, files: Mapping[str, Verified], *, fetched: bool
) -> Download:
    return Download(
        request.folder, listing.model_id, listing.revision, files, fetched, listing.expected, listing.source,
        listing.notes,
    )  # fmt: skip


def _expected(sibling: Any) -> str | None:
    """Return the hash of a file according to the hub."""
    if sibling.lfs is not None:
        return f"sha256:{sibling.lfs.sha256}"
    return f"git:{sibling.blob_id}" if sibling.blob_id else None


def _verify(file: Path, expected: str | None) -> Verified:
    """Return the file's hash and stamp.

    Raises:
        ConfigError: it is missing, or its hash differs; it is then set aside, so that it is fetched again.
    """
    if not file.is_file():
        raise ElsewhereError(f"{file} did not come; download again, or take another mirror")
    scheme = expected.partition(":")[0] if expected else "local"
    found = f"{scheme}:{_digest(file, scheme)}"
    if expected is not None and found != expected:
        aside = file.with_name(f"{file.name}.corrupt")
        file.replace(aside)
        raise ElsewhereError(
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
    """Return the files that were verified earlier and have not been modified since."""
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


def _listing_of_record(request: _Request) -> _Listing:
    """Return the files recorded by the last download."""
    record = read_record(request.folder)
    if not record or record.get("model_id") != request.model_id:
        raise ConfigError(
            f"{request.model_id} is not in {request.folder}, and offline nothing is fetched: download it "
            "where there is a network"
        )
    expected = {str(name): str(entry["digest"]) for name, entry in record["files"].items()}
    return _Listing(request.model_id, str(record["revision"]), expected, source=RECORD_FILE)


def _kept(request: _Request, listing: _Listing) -> Download:
    """Verify the files that are present."""
    folder = request.folder
    known = _known(folder)
    files = {
        name: known.get(name) or _verify(_present(folder / name), digest)
        for name, digest in listing.expected.items()
    }
    return _recorded(_downloaded(request, listing, files, fetched=False))


def _present(file: Path) -> Path:
    if not file.is_file():
        raise ConfigError(f"{file} is gone, and offline nothing is fetched: download again with a network")
    return file


def _listing_of_folder(source: Path, request: _Request) -> _Listing:
    names = sorted(
        {file.name for pattern in request.patterns for file in source.glob(pattern) if file.is_file()}
    )
    if not any(name.endswith((".safetensors", ".gguf")) for name in names):
        raise ConfigError(f"{source} holds no safetensors and no GGUF: the weights are missing")
    record = read_record(source)
    return _Listing(
        str(record.get("model_id") or request.folder.name),
        str(record.get("revision") or "local"),
        dict.fromkeys(names),
        source=str(source),
    )


def _copy(source: Path, request: _Request, listing: _Listing) -> Download:
    """Copy a local folder and hash the copies; files that are already equal are kept."""
    folder = request.folder
    known = _known(folder)
    files, expected, fetched = {}, {}, False
    for name in listing.expected:
        original, file = source / name, folder / name
        if (
            name in known
            and known[name].size == original.stat().st_size
            and known[name].modified >= original.stat().st_mtime_ns
        ):
            files[name], expected[name] = known[name], known[name].digest
            continue
        fetched = True
        if source.resolve() != folder.resolve():
            partial_file = file.with_name(f".{name}.part")
            try:
                shutil.copyfile(original, partial_file)
                partial_file.replace(file)
            finally:
                partial_file.unlink(missing_ok=True)
        found, expected[name] = (f"local:{_digest(one, 'local')}" for one in (file, original))
        if found != expected[name]:
            raise ConfigError(
                f"{file} is not what {original} is: the source changed while it was copied; try again"
            )
        files[name] = _stamp(file, found)
        log.info("%s: %d bytes, %s", name, files[name].size, found)
    return _recorded(_downloaded(request, replace(listing, expected=expected), files, fetched=fetched))


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
    """Return the folder of a model under `root`: `root/owner/name`, or `root/name` for a local folder."""
    path = Path(model_id).expanduser()
    if path.is_dir():
        telling = [
            part
            for part in path.resolve().parts
            if part.lower() not in {"model", "models", "weights", os.sep}
        ]
        return root / (telling[-1] if telling else "model")
    return root / model_id
