"""The output folder: what a run finds there, may remove, and leaves when nothing came of it."""

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
"""What a new run replaces: all but the rows of a pipeline, which are never made twice."""
_ASIDE = ".replaced"
"""Where an older run waits until the new one has something to show."""


def output_folder(name: str, chosen: Path | None, output: spec.Output) -> Path:
    """Return the output folder of a local run: the one chosen, the spec's, or `runs/<name>`.

    Raises:
        ConfigError: the spec's output is not a local folder.
    """
    if chosen is not None:
        return chosen.absolute()
    if output.uri is None:
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
    """The output folder of a run.

    Args:
        folder: its absolute path.

    Raises:
        ConfigError: from `open`, when the folder holds a run, belongs to somebody else, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: list[Path] = []
        self._continues = False

    def open(self, *, overwrite: bool, resume: bool = False) -> None:
        """Make the folder, or move the run in it aside when it may be overwritten, or leave it to go on."""
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
        """Whether the run has come so far that something would be lost with the folder."""
        progress = self.folder / runtime.HOST_FOLDER / "progress.json"
        checkpoints = (self.folder / runtime.CHECKPOINT_FOLDER).glob("*.ckpt")
        return progress.exists() or (self.folder / runtime.LEDGER_FILE).exists() or any(checkpoints)

    @property
    def replaces(self) -> bool:
        """Whether an older run was moved aside."""
        return (self.folder / _ASIDE).exists()

    def write(self, name: PurePosixPath, text: str) -> None:
        """Write a file, whole or not at all.

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
        """Let the older run go: this one has taken its place."""
        shutil.rmtree(self.folder / _ASIDE, ignore_errors=True)

    def discard(self) -> None:
        """Leave the place as it was found; of a run that was continued, everything stays."""
        if self._continues:
            return
        # Whatever is in it, this run has made it; what a pipeline has made is never made twice.
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
                f"{self.folder} holds {', '.join(found)}, but no {runtime.EVENTS_FILE}: no run made "
                "them, so none will touch them; choose another folder with --output"
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
        """Bring an older run back, also one that a killed runner had moved aside."""
        aside = self.folder / _ASIDE
        if not aside.is_dir():
            return
        ours = (
            runtime.EVENTS_FILE
        )  # first to be moved, first to be made: where it stands tells which run is whose
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
            with contextlib.suppress(OSError):  # somebody has put something into it
                folder.rmdir()
        self._made = []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
