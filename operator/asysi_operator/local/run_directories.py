"""The directories of a run (rings in shared memory, the rest in a scratch directory) and the name's lock."""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from asysi.contract.errors import ConfigError, no_room
from asysi.contract.quantity import format_bytes
from asysi.contract.runtime import MOUNTS, Env
from asysi.files import is_full

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the rings are in shared memory, in a private directory


class RunDirectories:
    """Directories of one run: a context manager that creates them on entry and removes them on exit.

    While they exist, no other run of this name can start here. A killed runner leaves its directories behind;
    the next run finds them by name and removes them: the lock proves that they are not in use.

    Args:
        name: name of the experiment.
        shared: directory for lock and rings.
        scratch: directory for the rest; None uses the system's.

    Attributes:
        rings: directory of the rings.
        lock: file descriptor of the lock, to be inherited by every process that uses the directories.

    Raises:
        ConfigError: an experiment of this name is running, or the directories cannot be created.
    """

    def __init__(self, name: str, *, shared: Path = SHARED_MEMORY, scratch: Path | None = None) -> None:
        self._name, self._parents = name, (shared, scratch or Path(tempfile.gettempdir()))
        self._lock_file = shared / f"asysi-{name}.lock"
        unique = f"asysi-{name}-{secrets.token_hex(4)}"
        self.rings = self._parents[0] / unique
        self._scratch = self._parents[1] / f"{unique}.scratch"  # the parents may be identical
        self.lock = -1

    def __enter__(self) -> Self:
        self.lock = self._locked()
        try:
            self._remove_stale()
            for folder in (self.rings, self._scratch):
                folder.mkdir(mode=0o700)
            self.fresh()
        except OSError as error:
            self._leave()
            raise ConfigError(f"cannot create the run's folders: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def mounts(self, output: Path) -> dict[Env, Path]:
        """Return the local paths that replace the pod's mounts."""
        return {
            Env.SHM: self.rings,
            Env.OUTPUT: output,
            Env.WORKSPACE: self._scratch / "workspace",
            Env.CONFIG: self._scratch / "config" / MOUNTS[Env.CONFIG].name,
        }

    def termination(self, container: str) -> Path:
        """Return the file for a container's termination message."""
        return self._scratch / "termination" / container

    def fresh(self) -> None:
        """Empty the directories of one pod: rings, workspace and termination messages."""
        for folder in (self.rings, self._scratch / "workspace", self._scratch / "termination"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)

    def write_config(self, files: dict[str, str]) -> None:
        """Write the files of the rendered ConfigMap.

        Raises:
            ConfigError: they cannot be written.
        """
        folder = self._scratch / "config"
        try:
            folder.mkdir(mode=0o700)
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            if is_full(error):
                raise ConfigError(no_room(self._parents[1])) from error
            raise ConfigError(f"the folders of the run cannot be made: {error}") from error

    def _locked(self) -> int:
        while True:
            try:
                lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                raise ConfigError(
                    f"{self._lock_file} cannot be opened ({error.strerror}): an experiment named "
                    f"{self._name} may belong to another user; choose another metadata.name"
                ) from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(lock)
                raise ConfigError(
                    f"experiment {self._name} is running already on this machine: wait for its end, stop it, "
                    "or choose another metadata.name"
                ) from error
            if self._is_current(lock):
                return lock
            os.close(lock)  # the previous run removed the file between open and lock

    def _is_current(self, lock: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(lock), self._lock_file.stat())
        return False

    def _remove_stale(self) -> None:
        ours = re.compile(rf"asysi-{re.escape(self._name)}-[0-9a-f]{{8}}(\.scratch)?")
        for parent in self._parents:
            for folder in parent.glob(f"asysi-{self._name}-*"):
                if ours.fullmatch(folder.name) and folder.lstat().st_uid == os.getuid():
                    shutil.rmtree(folder, ignore_errors=True)

    def _leave(self) -> None:
        for folder in (self.rings, self._scratch):
            shutil.rmtree(folder, ignore_errors=True)
        self._lock_file.unlink(missing_ok=True)  # still locked: never another run's
        os.close(self.lock)


def refuse_small_memory(shared: Path, needed: int) -> None:
    """Reject a shared-memory file system that is too small for the rings.

    Args:
        shared: a directory on it.
        needed: size of the rings in bytes.

    Raises:
        ConfigError: too small; the message shows the calculation.
    """
    state = os.statvfs(shared)
    free, total = state.f_bavail * state.f_frsize, state.f_blocks * state.f_frsize
    if free < needed:
        raise ConfigError(
            f"{shared} is too small for the rings: they need {format_bytes(needed)}, {free // 2**20}Mi of "
            f"{total // 2**20}Mi are free. Lower spec.capture.size or spec.bus.size, or enlarge it "
            "(in a container: --shm-size)"
        )
