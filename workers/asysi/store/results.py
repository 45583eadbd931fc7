"""Uploads the results of an output folder to `output.uri`, and keeps count of what is there.

`uploaded.json` of the output folder records the address and the segments that the store holds: written after
each object is complete, so it never names one that is not.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Set
from pathlib import Path
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.contract.runtime import (
    ARCHIVE_FOLDER,
    CHECKPOINT_FOLDER,
    EVENTS_FILE,
    IDENTITY_FILE,
    LOG_FOLDER,
    OUTPUTS,
    PIPELINE_FOLDER,
    REPORT_FILE,
    UPLOADED_FILE,
    UPLOADING_LOCK,
)
from asysi.files import held, write_atomic
from asysi.store.multipart import upload

_KEPT_LOCAL = {
    *(ARCHIVE_FOLDER, CHECKPOINT_FOLDER, EVENTS_FILE, IDENTITY_FILE, LOG_FOLDER, PIPELINE_FOLDER),
    *(REPORT_FILE, UPLOADED_FILE, UPLOADING_LOCK),
}
"""Not uploaded with the results: uploaded otherwise, or only needed to continue the run here."""


def recorded_address(folder: Path) -> str | None:
    """Return the address to which an output folder is uploaded, None if to none."""
    address = (_read_record(folder / UPLOADED_FILE) or {}).get("address")
    return None if address is None else str(address)


def _read_record(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}; delete it to upload again") from error
    return found if isinstance(found, dict) else None


class UploadRecord:
    """The segments of an output folder that its store holds.

    Args:
        folder: the output folder.
        address: the folder's address in the store, like `s3://bucket/run`.
    """

    def __init__(self, folder: Path, address: str) -> None:
        self._file = folder / UPLOADED_FILE
        self._address = address

    @property
    def exists(self) -> bool:
        """Whether the folder has been uploaded to this address, or was about to be."""
        return self._read() is not None

    def segments(self) -> frozenset[str]:
        """Return the names of the segments that the store holds."""
        return frozenset(self._read() or ())

    def add(self, *names: str) -> None:
        """Record segments that the store holds now."""
        self._write({*(self._read() or ()), *names})

    def keep(self, there: Set[str]) -> None:
        """Record that the folder has this address, and drop segments that are no longer there.

        Without this a store that was emptied would be said to hold them, and they would never be sent.
        """
        self._write(self.segments() & there)

    def _write(self, names: Set[str]) -> None:
        found = {"address": self._address, "segments": sorted(names)}
        write_atomic(self._file, json.dumps(found, indent=1) + "\n")

    def _read(self) -> list[str] | None:
        """Return the names; None if there is no record, or one of another address."""
        found = _read_record(self._file)
        if found is None or found.get("address") != self._address:
            return None
        return [str(name) for name in found.get("segments") or ()]


def upload_segments(
    folder: Path,
    address: str,
    segments: Iterable[Path],
    *,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda _bytes: None,
) -> int:
    """Upload closed segments that the store does not hold, in their order; return their number.

    Raises:
        ConfigError: the store cannot be reached.
        StoppedError: `stop` returned true.
    """
    record = UploadRecord(folder, address)
    sent = 0
    with held(folder / UPLOADING_LOCK):  # archiver and finish never send the same segment at once
        there = record.segments()
        for path in segments:
            if path.name in there:
                continue
            try:
                place = f"{address}/{ARCHIVE_FOLDER}/{path.name}"
                upload(path, place, stop=stop, progress=progress)
            except FileNotFoundError:
                continue  # deleted meanwhile to keep to archive.maxSize
            record.add(path.name)
            sent += 1
    return sent


def upload_results(
    folder: Path,
    address: str,
    *,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda _bytes: None,
) -> int:
    """Upload everything else that a finished run leaves, the report last; return the number of files.

    The report in the store therefore means that the rest is there.

    Raises:
        ConfigError: the store cannot be reached.
        StoppedError: `stop` returned true.
    """
    with held(folder / UPLOADING_LOCK):
        files = [*_results(folder), folder / REPORT_FILE]
        for file in files:
            place = f"{address}/{file.relative_to(folder).as_posix()}"
            upload(file, place, stop=stop, progress=progress)
    return len(files)


def _results(folder: Path) -> Iterator[Path]:
    """Yield the result files of an output folder; neither links nor unfinished files."""
    for name in OUTPUTS:
        if name in _KEPT_LOCAL or name.name.startswith("."):
            continue
        top = folder / name
        found = [top] if top.is_file() else sorted(top.rglob("*"))
        for path in found:
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if path.is_file() and not path.is_symlink() and not hidden:
                yield path
