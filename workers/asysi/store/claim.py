"""Ownership of an address in a store: results of two experiments must not mix there."""

from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from asysi.contract.errors import ConfigError
from asysi.contract.identity import FolderContent, Identity, refusal
from asysi.contract.runtime import ARCHIVE_FOLDER, IDENTITY_FILE, REPORT_FILE
from asysi.locations import filesystem, reaching
from asysi.store.results import UploadRecord


def claim_address(own: Identity, folder: Path, address: str, *, resume: bool) -> None:
    """Ensure that the experiment owns an address, and write its identity there.

    An address that the output folder has been uploaded to before stays its own; segments that were deleted
    from it since count as not uploaded. Otherwise the rules of output
    folders hold: an empty address is free, one with results belongs to the experiment that its
    `identity.json` names.

    Args:
        own: the experiment's identity.
        folder: the output folder.
        address: the address, like `s3://bucket/run`.
        resume: whether the user confirms that an earlier owner is gone.

    Raises:
        ConfigError: the store cannot be reached, or the address belongs to another experiment.
    """
    files, path = filesystem(address)
    with reaching(address):
        files.invalidate_cache()
        recorded = _identity(files, path, address)
        begun = recorded is not None or bool(files.exists(path) and files.ls(path))
        finished = bool(files.exists(f"{path}/{REPORT_FILE}"))
        found = FolderContent(recorded, begun=begun, finished=finished, attempts=0)
        record = UploadRecord(folder, address)
        known = record.exists and recorded is not None and recorded.same_content(own)
        if not known and (reason := refusal(own, found, kept=False, resume=resume)):
            raise ConfigError(f"spec.output.uri: {address} {reason}: choose another address, or empty it")
        if recorded != own:
            files.pipe_file(f"{path}/{IDENTITY_FILE}", own.model_dump_json(indent=1).encode() + b"\n")
        record.keep(_segments(files, path))


def _segments(files: Any, path: str) -> set[str]:
    """Return the names of the objects in the archive of an address."""
    try:
        return {PurePosixPath(name).name for name in files.ls(f"{path}/{ARCHIVE_FOLDER}", detail=False)}
    except FileNotFoundError:
        return set()


def _identity(files: Any, path: str, address: str) -> Identity | None:
    try:
        text = files.cat_file(f"{path}/{IDENTITY_FILE}")
    except FileNotFoundError:
        return None
    try:
        return Identity.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(
            f"{address}/{IDENTITY_FILE} cannot be read, so it is unknown whose results these are: "
            f"{str(error).splitlines()[0]}"
        ) from error
