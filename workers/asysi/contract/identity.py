"""Whose an output folder is: its identity, what is in it, and who may go on there.

Two experiments in one folder would mix their checkpoints, archives and reports, and no file would show it. So
a folder belongs to one experiment: to its namespace, its name and the digest of what decides the content.
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
"""Fields of the spec that change where and with what an experiment runs, but not what its results are of.
A field that is not named here decides the content."""
_SEGMENT = re.compile(r"attempt-(\d{1,9})-segment-")
_NUMBER = re.compile(r"\d{1,9}")
"""An attempt's: packets and file names have room for no more."""


class Identity(BaseModel):
    """`identity.json` of an output folder."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    namespace: Annotated[str, Field(max_length=253)]
    name: Annotated[str, Field(max_length=253)]
    digest: Annotated[str, Field(max_length=64)]
    """Of what decides the content."""
    uid: Annotated[str, Field(max_length=253)] | None = None
    """Given by the API server, to the experiment or else to its Job; None where none has."""
    spec: dict[str, Any] = {}
    """The canonical spec, to say what has changed."""

    def same_content(self, other: "Identity") -> bool:
        """Whether both are of one name and would have the same results."""
        return (self.namespace, self.name, self.digest) == (other.namespace, other.name, other.digest)


def identity_of(experiment: ScanExperiment) -> Identity:
    """Return the identity that the output folder of an experiment has."""
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
    """Return the paths of the spec that differ: those that decide the content, and the others."""
    every = changes(before.spec, now.spec) if before.spec else []
    content = changes(_content(before.spec), _content(now.spec)) if before.spec else []
    return content, [path for path in every if path not in content]


@dataclass(frozen=True)
class FolderContent:
    """What is in an output folder."""

    identity: Identity | None
    begun: bool
    """Whether the model has run: there are results, whole or in part."""
    finished: bool
    """Whether the last file that a run writes is there, and the run was not ended early."""
    attempts: int
    """Number of the next attempt: above all that were taken, or that left something."""


def look(folder: Path) -> FolderContent:
    """Return what is in an output folder.

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
    """Return whether the user has ended the run in a folder before all of its text was read."""
    try:
        ledger = json.loads((folder / runtime.LEDGER_FILE).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(ledger, dict) and ledger.get("interrupted") is True


def read_identity(folder: Path) -> Identity | None:
    """Return the identity of a folder, None where there is none.

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
    """Yield the numbers that were taken, whether or not anything came of the attempt."""
    for file in (folder / runtime.ATTEMPTS_FOLDER).glob("*"):
        if _NUMBER.fullmatch(file.name):
            yield int(file.name)


def _attempts(folder: Path) -> Iterator[int]:
    """Yield the numbers of the attempts that have left something."""
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
    """Return why an experiment may not write into a folder, as the rest of a sentence; None when it may.

    Names are unique in a namespace. So where the API server has given this experiment, or its Job, its uid,
    another uid of the same name is gone: nobody has to be asked. Without a uid, as in a local run, nothing is
    known about the owner.

    Args:
        own: the experiment's identity.
        found: what is in the folder.
        kept: whether results that name no owner can only be the experiment's own.
        resume: whether the user says that the owner is gone.
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
    """Return the folder of an experiment's results on the volume: a named claim may have several users."""
    output = experiment.spec.output
    if output.path is not None:
        return PurePosixPath(output.path)
    return PurePosixPath(experiment.metadata.name if output.claim else "")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
