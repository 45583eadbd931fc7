"""Uploads a finished run to `output.uri`: the segments that the archiver left, then all other results."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from asysi.archive.uploading import segments_to_upload
from asysi.contract.errors import ConfigError
from asysi.contract.identity import read_identity
from asysi.contract.runtime import REPORT_FILE
from asysi.locations import is_remote
from asysi.monitor.worker import Worker
from asysi.store.claim import claim_address
from asysi.store.results import UploadRecord, recorded_address, upload_results, upload_segments
from asysi.store.retrying import until_done

PATIENCE = 600.0
"""Seconds during which failed uploads are repeated."""
_TICK = 0.2
log = logging.getLogger("asysi")


def upload_run(worker: Worker, address: str, *, patience: float = PATIENCE) -> str | None:
    """Upload what the store lacks; return why that failed, as a sentence, or None.

    A thread uploads, so that this one can report that it is alive during a long request.
    """
    stop = threading.Event()
    problems: list[str] = []

    def work() -> None:
        record = UploadRecord(worker.output, address)
        closed, torn = segments_to_upload(worker.output, record.segments())
        upload_segments(worker.output, address, closed, stop=stop.is_set)
        count = upload_results(worker.output, address, stop=stop.is_set)
        log.info("%d segments and %d other files are at %s", len(record.segments()), count, address)
        if torn:
            names = ", ".join(path.name for path in torn[:5])
            problems.append(
                f"{len(torn)} segments without a footer ({names}) are not at {address}: run "
                f"`asysi mscan recover`, then `asysi upload`"
            )

    def run() -> None:
        try:
            if not until_done(work, stop, seconds=patience):
                problems.append(f"The upload to {address} was interrupted: continue it with `asysi upload`")
        except (ConfigError, OSError) as error:
            problems.append(f"The results are not complete at {address}: {error}")
        except Exception as error:
            log.exception("upload failed")
            problems.append(f"The results are not complete at {address}: {type(error).__name__}: {error}")

    thread = threading.Thread(target=run, name="upload", daemon=True)
    thread.start()
    while thread.is_alive():
        worker.health.beat()
        if worker.stop.terminated:
            stop.set()
        thread.join(_TICK)
    for problem in problems:
        log.error("%s", problem)
    return " ".join(problems) or None


def upload_folder(folder: Path, address: str | None) -> None:
    """Upload the results in an output folder, as `asysi upload`.

    Args:
        folder: the output folder of a run that has ended.
        address: its address in a store; None: the one that it was uploaded to before.

    Raises:
        ConfigError: the folder has no results, or the store cannot be reached or belongs to another run.
    """
    own = read_identity(folder)
    if own is None:
        raise ConfigError(f"{folder} is not the output folder of a run: it has no identity.json")
    address = (address or recorded_address(folder) or "").rstrip("/")
    if not is_remote(address):
        what = f"{address} is no address of a store" if address else f"{folder} was never uploaded"
        raise ConfigError(f"{what}: give one like s3://bucket/prefix")
    claim_address(own, folder, address, resume=True)
    record = UploadRecord(folder, address)
    closed, torn = segments_to_upload(folder, record.segments())
    with _progress_bar(closed) as advance:
        sent = upload_segments(folder, address, closed, progress=advance)
    if torn:
        names = ", ".join(path.name for path in torn[:5])
        raise ConfigError(
            f"{names}: without a footer, not uploaded; if the run has ended, run "
            f"`asysi mscan recover {folder}` first"
        )
    if not (folder / REPORT_FILE).exists():
        raise ConfigError(
            f"{sent} segments were uploaded; the other results follow when the run has its {REPORT_FILE}: "
            "continue it with `asysi run --resume`"
        )
    count = upload_results(folder, address)
    sys.stdout.write(f"{address}: {len(record.segments())} segments and {count} other files\n")


@contextmanager
def _progress_bar(files: list[Path]) -> Iterator[Callable[[int], None]]:
    import click  # noqa: PLC0415 - only for the command

    total = sum(path.stat().st_size for path in files)
    with click.progressbar(length=total, label="uploading", file=sys.stderr) as bar:
        yield bar.update
