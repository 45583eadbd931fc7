"""Ownership of an output folder: its identity, its content, and which experiment can continue in it.

Two experiments in one folder would mix their checkpoints, archives and reports without any file showing it.
Therefore a folder belongs to one experiment, identified by namespace, name and a digest of the fields that
determine the content.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asysi.contract import runtime
from asysi.contract.canonical import canonical, digest
from asysi.contract.errors import ConfigError
from asysi.contract.fields import Path as FieldPath
from asysi.contract.frozen import changes
from asysi.contract.spec import ScanExperiment

_ELSEWHERE: tuple[FieldPath, ...] = (
    ("model", "secretRef"),
    ("inputs",),
    *(("data", "pipeline", key) for key in ("parallelism", "cpus", "memory", "secretRefs", "budget")),
    ("capture", "size"),
    ("bus",),
    *(("sae", key) for key in ("enabled", "cpus", "memory", "gpus", "gpuResource")),
    *(("archive", key) for key in ("cpus", "memory", "rotate", "rotateSeconds", "maxSize")),
    ("output",),
    ("finish",),
    ("resources",),
    ("consumers",),
    ("scheduling",),
    ("lifecycle",),
)
"""Fields of the spec that affect where and how an experiment runs, but not the content of its results.
All other fields determine the content."""
_SEGMENT = re.compile(r"attempt-(\d{1,9})-segment-")
_NUMBER = re.compile(r"\d{1,9}")
"""Number of an attempt; packets and file names limit its length."""


class Identity(BaseModel):
    """`identity.json` of an output folder."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    namespace: Annotated[str, Field(max_length=253)]
    name: Annotated[str, Field(max_length=253)]
    digest: Annotated[str, Field(max_length=64)]
    """Digest of the fields that determine the content."""
    uid: Annotated[str, Field(max_length=253)] | None = None
    """UID of the experiment, or else of its Job, assigned by the API server; None in a local run."""
    spec: dict[str, Any] = {}
    """The canonical spec, used to report what changed."""

    def same_content(self, other: "Identity") -> bool:
        """Return whether both have the same name and would produce the same results."""
        return (self.namespace, self.name, self.digest) == (other.namespace, other.name, other.digest)


def identity_of(experiment: ScanExperiment) -> Identity:
    """Return the identity of an experiment's output folder."""
    spec = canonical(experiment)["spec"]
    metadata = experiment.metadata
    return Identity(
        namespace=metadata.namespace,
        name=metadata.name,
        digest=digest(_content(spec)),
        uid=metadata.uid,
        spec=spec,
    )


def _content(spec: Mapping[str, Any]) -> dict[str, Any]:
    content = dict(spec)
    for path in _ELSEWHERE:
        _drop(content, path)
    return content


def _drop(tree: dict[str, Any], path: FieldPath) -> None:
    key = str(path[0])
    if len(path) == 1:
        tree.pop(key, None)
    elif isinstance(tree.get(key), dict):
        tree[key] = dict(tree[key])
        _drop(tree[key], path[1:])


def spec_changes(before: Identity, now: Identity) -> tuple[list[str], list[str]]:
    """Return the paths of the spec that differ: those that determine the content, and the others."""
    every = changes(before.spec, now.spec) if before.spec else []
    content = changes(_content(before.spec), _content(now.spec)) if before.spec else []
    return content, [path for path in every if path not in content]


@dataclass(frozen=True)
class FolderContent:
    """The state of an output folder."""

    identity: Identity | None
    begun: bool
    """Whether the model has run: there are complete or partial results."""
    finished: bool
    """Whether the last file of a run exists and the run was not stopped early."""
    attempts: int
    """Number of the next attempt: greater than any that was allocated or left files."""


def inspect_output(folder: Path) -> FolderContent:
    """Return the state of an output folder.

    Raises:
        ConfigError: its identity cannot be read.
    """
    numbers = list(_attempts(folder))
    known = (runtime.LEDGER_FILE, runtime.REPORT_FILE, runtime.HOST_FOLDER / "progress.json")
    files = (runtime.CHECKPOINT_FOLDER / "*.ckpt", runtime.SAE_FOLDER / "*")
    begun = bool(numbers) or any((folder / one).exists() for one in known)
    return FolderContent(
        identity=read_identity(folder),
        begun=begun or any(any(folder.glob(str(pattern))) for pattern in files),
        finished=(folder / runtime.REPORT_FILE).exists() and not ended_early(folder),
        attempts=max((*numbers, *_prepared(folder)), default=-1) + 1,
    )


def ended_early(folder: Path) -> bool:
    """Return whether the user stopped the run in a folder before all of its text was read."""
    try:
        ledger = json.loads((folder / runtime.LEDGER_FILE).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(ledger, dict) and ledger.get("interrupted") is True


def read_identity(folder: Path) -> Identity | None:
    """Return the identity of a folder; None if it has none.

    Raises:
        ConfigError: the file cannot be read.
    """
    file = folder / runtime.IDENTITY_FILE
    try:
        return Identity.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"{file} cannot be read, so it is unknown whose results these are: {_first_line(error)}"
        ) from error


def _prepared(folder: Path) -> Iterator[int]:
    """Yield all allocated attempt numbers, whether or not the attempt left files."""
    for file in (folder / runtime.ATTEMPTS_FOLDER).glob("*"):
        if _NUMBER.fullmatch(file.name):
            yield int(file.name)


def _attempts(folder: Path) -> Iterator[int]:
    """Yield the numbers of the attempts that left files."""
    for file in (folder / runtime.ARCHIVE_FOLDER).glob("*.mscan*"):
        if found := _SEGMENT.search(file.name):
            yield int(found[1])
    for file in (folder / runtime.ATTEMPTS_FOLDER).glob(f"*/{runtime.LEDGER_FILE}"):
        if _NUMBER.fullmatch(file.parent.name):
            yield int(file.parent.name)
    try:
        yield int(json.loads((folder / runtime.HOST_FOLDER / "progress.json").read_bytes())["attempt"])
    except (OSError, ValueError, KeyError, TypeError):
        return


def refusal(own: Identity, found: FolderContent, *, kept: bool, resume: bool) -> str | None:
    """Return why an experiment must not write into a folder, as the rest of a sentence; None if it can.

    Names are unique within a namespace. If this experiment or its Job has a uid from the API server, an owner
    with the same name and another uid no longer exists, so no confirmation is needed. Without a uid, as in a
    local run, nothing is known about the owner.

    Args:
        own: the experiment's identity.
        found: state of the folder.
        kept: whether results without an owner can only be this experiment's own.
        resume: whether the user confirms that the owner is gone.
    """
    recorded = found.identity
    if recorded is None:
        taken = found.begun and not kept and not (resume and not found.finished)
        return f"holds results, and no {runtime.IDENTITY_FILE} says whose they are" if taken else None
    mine = own.uid is not None and recorded.uid == own.uid
    whose = f"holds the results of experiment {recorded.namespace}/{recorded.name}"
    if not recorded.same_content(own):
        return None if mine and not found.begun else f"{whose}{_difference(recorded, own)}"
    nobodys = own.uid is None and recorded.uid is None
    if mine or (nobodys and (kept or not found.begun)):
        return None
    if found.finished:
        return f"{whose}, which is finished"
    gone = resume or (own.uid is not None and recorded.uid is not None)
    return (
        None if gone else f"{whose}, which is not finished and may still run (if not, set spec.output.resume)"
    )


def _difference(recorded: Identity, own: Identity) -> str:
    if (own.namespace, own.name) != (recorded.namespace, recorded.name):
        return ""
    content, _ = spec_changes(recorded, own)
    return f" with another {', '.join(content[:5]) or 'spec'}"


def output_path(experiment: ScanExperiment) -> PurePosixPath:
    """Return the folder of an experiment's results on the volume; experiments can share a named claim."""
    output = experiment.spec.output
    if output.path is not None:
        return PurePosixPath(output.path)
    return PurePosixPath(experiment.metadata.name if output.claim else "")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
