"""The folders of a run, rings in shared memory and the rest in a scratch folder, and the lock of its name."""

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

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the rings live in shared memory; the folder in it is private


class RunDirectories:
    """Folders of one run, made on entering and removed on leaving, whatever happened between.

    While they stand, no other run of this name starts here. A runner that was killed leaves its folders;
    the next run finds them by their name and removes them: the lock proves that nobody uses them.

    Args:
        name: name of the experiment.
        shared: folder for lock and rings.
        scratch: folder for the rest; None takes the system's.

    Attributes:
        rings: folder of the rings.
        lock: file descriptor of the lock, to be inherited by every process that uses the folders.

    Raises:
        ConfigError: an experiment of this name is running, or the folders cannot be made.
    """

    def __init__(self, name: str, *, shared: Path = SHARED_MEMORY, scratch: Path | None = None) -> None:
        self._name, self._parents = name, (shared, scratch or Path(tempfile.gettempdir()))
        self._lock_file = shared / f"asysi-{name}.lock"
        unique = f"asysi-{name}-{secrets.token_hex(4)}"
        self.rings = self._parents[0] / unique
        self._scratch = self._parents[1] / f"{unique}.scratch"  # both parents may be the same
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
            raise ConfigError(f"the folders of the run cannot be made: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def mounts(self, output: Path) -> dict[Env, Path]:
        """Return what stands in the place of the pod's mounts."""
        return {
            Env.SHM: self.rings,
            Env.OUTPUT: output,
            Env.WORKSPACE: self._scratch / "workspace",
            Env.CONFIG: self._scratch / "config" / MOUNTS[Env.CONFIG].name,
        }

    def termination(self, container: str) -> Path:
        """Return the file for a container's last words."""
        return self._scratch / "termination" / container

    def fresh(self) -> None:
        """Empty what belongs to one pod: the rings, the workspace and the last words."""
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
            os.close(lock)  # the run before removed the file between our open and our lock

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
        self._lock_file.unlink(missing_ok=True)  # while it is still held: nobody else's is removed
        os.close(self.lock)


def refuse_small_memory(shared: Path, needed: int) -> None:
    """Refuse a shared memory that cannot hold the rings.

    Args:
        shared: a folder in it.
        needed: bytes of the rings.

    Raises:
        ConfigError: with the arithmetic.
    """
    state = os.statvfs(shared)
    free, total = state.f_bavail * state.f_frsize, state.f_blocks * state.f_frsize
    if free < needed:
        raise ConfigError(
            f"{shared} is too small for the rings: they need {format_bytes(needed)}, {free // 2**20}Mi of "
            f"{total // 2**20}Mi are free. Lower spec.capture.size or spec.bus.size, or enlarge it "
            "(in a container: --shm-size)"
        )
