"""Ownership and locking of the output folder.

`identity.json` records the owner. Every worker holds a shared lock next to it until it exits, so the owner
can only change while no worker uses the folder. This includes pods that outlive their deleted experiment, and
pods of another cluster on the same storage.
"""

import fcntl
import logging
import os
import time
from pathlib import Path

from asysi.contract.errors import ConfigError
from asysi.contract.identity import Identity, identity_of, inspect_output, read_identity, refusal
from asysi.contract.runtime import IDENTITY_FILE, MOUNTS, Container, Env
from asysi.files import write_atomic
from asysi.monitor.worker import Worker

LOCK_FILE = ".identity.lock"
EXTRA_SECONDS = 15.0
"""How long to wait, beyond the grace period, for a terminating pod."""
_TICK = 0.2
_TAKING = {Container.PIPELINE, Container.PREPARE}
"""Containers that start first and can take ownership; all others only check it."""
log = logging.getLogger("asysi")


def claim_output(worker: Worker) -> None:
    """Ensure that the experiment owns the output folder, and lock it until this process ends.

    Raises:
        ConfigError: another experiment owns the folder.
    """
    own = own_identity(worker)
    if worker.container in _TAKING:
        _take(worker, own)
    elif worker.output.is_dir():
        _lock(_open(worker.output), fcntl.LOCK_SH)
        recorded = read_identity(worker.output)  # None: created by a version without identities
        if recorded is not None and not _owns(recorded, own):
            raise ConfigError(_sentence(worker, f"has become that of {recorded.namespace}/{recorded.name}"))


def own_identity(worker: Worker) -> Identity:
    """Return the identity of the worker's experiment.

    If the experiment has no uid, the uid of its Job is used: manifests rendered and applied manually also
    form one Job.
    """
    own = identity_of(worker.experiment)
    return own.model_copy(update={"uid": own.uid or os.environ.get(Env.JOB) or None})


def _take(worker: Worker, own: Identity) -> None:
    """Take ownership of the folder."""
    folder = worker.output
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _open(folder)
    until = time.monotonic() + worker.experiment.spec.lifecycle.grace_period_seconds + EXTRA_SECONDS
    while True:
        alone = _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = inspect_output(folder)
        resume = worker.experiment.spec.output.resume
        if reason := refusal(own, found, kept=_kept(worker), resume=resume):
            raise ConfigError(_sentence(worker, reason))
        recorded = found.identity
        if alone:
            if recorded != own:
                write_atomic(folder / IDENTITY_FILE, own.model_dump_json(indent=1) + "\n")
            _lock(descriptor, fcntl.LOCK_SH)
            return
        if recorded is not None and _owns(recorded, own) and _lock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB):
            return
        if time.monotonic() > until:
            raise ConfigError(_sentence(worker, "is in use by workers of another experiment"))
        time.sleep(_TICK)


def _kept(worker: Worker) -> bool:
    """Return whether results without an owner can only be this experiment's own, from an earlier version.

    This is the case in a later attempt of a local run, on the claim created for the experiment, and in the
    root of a named claim if the spec has no folder: the operator keeps such runs from older versions there.
    """
    output = worker.experiment.spec.output
    in_root = worker.output == Path(MOUNTS[Env.OUTPUT])
    return worker.attempt > 0 or (in_root and (output.claim is None or output.path is None))


def _owns(recorded: Identity, own: Identity) -> bool:
    return recorded.same_content(own) and recorded.uid == own.uid


def _open(folder: Path) -> int:
    """Return a file descriptor that stays open until the process exits."""
    return os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _lock(descriptor: int, how: int) -> bool:
    """Lock the file and return whether that succeeded; storage without lock support counts as locked."""
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning(
            "the output folder cannot be locked (%s): it is not protected against a second writer", error
        )
    return True


def _sentence(worker: Worker, reason: str) -> str:
    output = worker.experiment.spec.output
    of_claim = f" on the claim {output.claim}" if output.claim else ""
    return f"the output folder {worker.output}{of_claim} {reason}: choose another with spec.output.path"
