"""The output directory: what a run finds there, may replace, and restores if it produces nothing."""

import contextlib
import errno
import os
import shutil
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from asysi.contract import runtime, spec
from asysi.contract.errors import ConfigError, no_room
from asysi.contract.identity import ended_early
from asysi_operator.local.events import refuse_busy

_REPLACED = tuple(str(path) for path in runtime.OUTPUTS if path != runtime.PIPELINE_FOLDER)
"""What a new run replaces: everything except a pipeline's rows, which are never recomputed."""
_ASIDE = ".replaced"
"""Subdirectory that holds an older run until the new one has results."""


def output_folder(name: str, chosen: Path | None, output: spec.Output) -> Path:
    """Return the output directory of a local run: the chosen one, the spec's, or `runs/<name>`.

    With a store, it is where results are written before they are uploaded.

    Raises:
        ConfigError: the spec's output is not a local directory.
    """
    if chosen is not None:
        return chosen.absolute()
    if output.uri is None or output.store is not None:
        return Path("runs", output.path or name).absolute()
    parts = urlsplit(output.uri)
    if parts.scheme not in {"", "file"} or (parts.scheme and parts.netloc not in {"", "localhost", "."}):
        raise ConfigError(
            f"spec.output.uri {output.uri} is not a folder on this machine: write file:///folder, or use "
            "--output"
        )
    folder = Path(unquote(parts.path) if parts.scheme else output.uri).absolute()
    return folder / (output.path or ".")


class OutputFolder:
    """The output directory of a run.

    Args:
        folder: its absolute path.

    Raises:
        ConfigError: from `open`, if the directory holds a run or files of other origin, or is not writable.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: list[Path] = []
        self._continues = False

    def open(self, *, overwrite: bool, resume: bool = False) -> None:
        """Create the directory; move an existing run aside if it may be overwritten, or keep it to resume."""
        try:
            self._return_old()
            found = self._found()
            self._refuse(found, overwrite=overwrite, resume=resume)
            self._continues = resume and bool(found)
            self._make()
            if not self._continues:
                self._move_aside()
            (self.folder / runtime.EVENTS_FILE).touch()
            (self.folder / runtime.LOG_FOLDER).mkdir(exist_ok=True)
        except OSError as error:
            self._unmake()
            raise ConfigError(self._unwritable(error)) from error

    @property
    def worth_keeping(self) -> bool:
        """Whether the run has produced something that would be lost with the directory."""
        progress = self.folder / runtime.HOST_FOLDER / "progress.json"
        checkpoints = (self.folder / runtime.CHECKPOINT_FOLDER).glob("*.ckpt")
        return progress.exists() or (self.folder / runtime.LEDGER_FILE).exists() or any(checkpoints)

    @property
    def replaces(self) -> bool:
        """Whether an older run was moved aside."""
        return (self.folder / _ASIDE).exists()

    def write(self, name: PurePosixPath, text: str) -> None:
        """Write a file atomically.

        Raises:
            ConfigError: it cannot be written.
        """
        path = self.folder / name
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            part.rename(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise ConfigError(self._unwritable(error)) from error

    def keep(self) -> None:
        """Delete the older run, which this one has replaced."""
        shutil.rmtree(self.folder / _ASIDE, ignore_errors=True)

    def discard(self) -> None:
        """Restore the directory as it was found; a continued run is left untouched."""
        if self._continues:
            return
        # This run created everything in it; a pipeline's rows are kept, because they are never recomputed.
        if self.folder in self._made and not (self.folder / runtime.PIPELINE_FOLDER).exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._remove_found()
        self._return_old()
        self._unmake()

    def _unwritable(self, error: OSError) -> str:
        if error.errno == errno.ENOSPC:
            return no_room(self.folder)
        reason = error.strerror or str(error)
        return f"the output folder {self.folder} cannot be written ({reason}): choose another with --output"

    def _found(self) -> list[str]:
        return [name for name in _REPLACED if os.path.lexists(self.folder / name)]

    def _refuse(self, found: list[str], *, overwrite: bool, resume: bool) -> None:
        if not found:
            return
        if str(runtime.EVENTS_FILE) not in found:
            raise ConfigError(
                f"{self.folder} holds {', '.join(found)}, but no {runtime.EVENTS_FILE}: they were not "
                "written by a run, so they are not overwritten; choose another folder with --output"
            )
        refuse_busy(self.folder / runtime.EVENTS_FILE)
        if not (overwrite or resume):
            held = "a run that did not finish: continue it with --resume, "
            if ended_early(self.folder):
                held = "a run that was ended early: continue it with --resume, "
            elif str(runtime.REPORT_FILE) in found:
                held = "a finished run: "
            raise ConfigError(
                f"{self.folder} holds {held}replace it with --overwrite, or choose another folder "
                "with --output"
            )

    def _make(self) -> None:
        missing = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir()
            self._made.append(folder)
        witness = self.folder / f".asysi-{os.getpid()}"
        witness.touch()
        witness.unlink()

    def _move_aside(self) -> None:
        found = self._found()
        if found:
            aside = self.folder / _ASIDE
            aside.mkdir()
            for name in found:
                (self.folder / name).rename(aside / name)

    def _return_old(self) -> None:
        """Restore an older run that was moved aside, also by a runner that was killed."""
        aside = self.folder / _ASIDE
        if not aside.is_dir():
            return
        ours = (
            runtime.EVENTS_FILE
        )  # moved first and created first: its location shows which run the files belong to
        if (self.folder / ours).exists() and (aside / ours).exists():
            self._remove_found()
        for entry in aside.iterdir():
            entry.rename(self.folder / entry.name)
        aside.rmdir()

    def _remove_found(self) -> None:
        for name in self._found():
            _remove(self.folder / name)

    def _unmake(self) -> None:
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):  # not empty: someone else has added files
                folder.rmdir()
        self._made = []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
