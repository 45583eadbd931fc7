"""The pipeline that runs before an experiment: one shard per pod of an Indexed Job, or all shards here.

Each shard keeps its progress in its ledger on the results volume, so that a restarted shard resumes there and
a finished one does nothing. prepare merges the rows of all shards once.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.contract.pipeline import PipelineFile
from asysi.contract.rows import pipeline_file
from asysi.contract.runtime import Container, Exit
from asysi.contract.spec import ScanExperiment
from asysi.files import write_atomic
from asysi.locations import filesystem
from asysi.monitor.process import run_worker
from asysi.monitor.worker import Worker
from asysi.pipeline.formats.uris import location
from asysi.pipeline.run.pipeline_file import build
from asysi.pipeline.run.progress import ProgressLines
from asysi.pipeline.run.shard_processes import run_all
from asysi.pipeline.run.shards import merge
from asysi.pipeline.streams.data_streams import StreamFactory
from asysi.pipeline.streams.open_files import is_locked
from asysi.pipeline.streams.seal import Seal

INPUT_FILE = "input.json"
"""Size and modification time or ETag of the input files when the pipeline first ran."""
RELEASE_SECONDS = 5.0
INDEX = "JOB_COMPLETION_INDEX"
"""Environment variable with a pod's index in an Indexed Job, used as shard number."""


def main(worker: Worker) -> int:
    """Run this pod's shard, or all shards if there is no Job; returns the exit code.

    Raises:
        ConfigError: the pipeline cannot run, or has used up its budget.
        RowError: a row could not be processed.
    """
    spec, index = pipeline_file(worker.experiment, worker.output), os.environ.get(INDEX)
    refuse_changed_input(spec)
    if index is None and spec.shards > 1:
        return run_all(spec.shards, lambda shard: run(spec, shard), Path(str(spec.results_dir)), live=False)
    code = run(spec, int(index or 0))
    # In a pod, only SIGTERM ends a run early, and the next pod resumes it.
    return Exit.TERMINATED if index is not None and code == Exit.INTERRUPTED else code


def run(spec: PipelineFile, index: int) -> int:
    """Run a shard to its end, resuming from its ledger; returns the exit code.

    Raises:
        ConfigError: it cannot run, or has used up its budget.
        RowError: a row could not be processed.
    """
    shard = (index, spec.shards) if spec.shards > 1 else None
    pipeline = build(spec, shard=shard, hooks=ProgressLines(), progress=False)
    pipeline.pipeline_id = spec.pipeline_id
    _await_release(pipeline.results_dir / ".lock")
    if pipeline.has_begun():
        try:
            pipeline.resume(spec.pipeline_id)
        except ConfigError as error:  # a Job cannot be given a flag
            advice = f"in an experiment: undo the change, or delete {pipeline.results_dir} to start over"
            raise ConfigError(*error.problems, advice) from error
    else:
        pipeline.create(spec.pipeline_id)
    report = pipeline.run()
    if report.status == "budget_exhausted":
        spent = ", ".join(f"{name} {report.usage.get(name, 0):g}" for name in spec.budget)
        raise ConfigError(f"spec.data.pipeline.budget is spent ({spent}): raise it to continue")
    return Exit.OK if report.status == "completed" else Exit.INTERRUPTED


def refuse_changed_input(spec: PipelineFile) -> None:
    """Record the state of the input files on the first run, and compare with it on every later one.

    Raises:
        ConfigError: a file has changed or cannot be found.
    """
    note = Path(str(spec.results_dir)) / INPUT_FILE
    try:
        files, pattern = filesystem(location(spec.input_uri))
        paths = sorted(files.glob(pattern)) if any(sign in pattern for sign in "*?[") else [pattern]
        found = {path: _state(files.info(path)) for path in paths}
    except OSError as error:
        raise ConfigError(f"spec.data.uri: {spec.input_uri} cannot be read: {error}") from error
    if not note.exists():
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(note, json.dumps(found, indent=2))
        return
    before = json.loads(note.read_text())
    if changed := sorted(path for path in {*before, *found} if before.get(path) != found.get(path)):
        raise ConfigError(
            f"spec.data.uri: {', '.join(changed[:3])} was changed after the pipeline over it had begun, and"
            f" rows of two inputs would be mixed: undo the change, or delete {note.parent} to start over"
        )


def _await_release(lock: Path) -> None:
    """Wait briefly for the shards of a killed process to exit and release the lock."""
    until = time.monotonic() + RELEASE_SECONDS
    while is_locked(lock) and time.monotonic() < until:
        time.sleep(0.1)


def _state(info: dict[str, Any]) -> list[Any]:
    """Return what identifies a file's version: its size, and its modification time or ETag."""
    tag = next((info[key] for key in ("mtime", "ETag", "etag", "LastModified") if info.get(key)), None)
    return [info.get("size"), tag if isinstance(tag, int | float) else str(tag)]


def settle(experiment: ScanExperiment, output: Path) -> Seal:
    """Merge the rows of all shards and return the seal of the model's input.

    Idempotent: may be called again after a crash.

    Raises:
        ConfigError: the pipeline has not finished, or its rows have been changed.
    """
    spec = pipeline_file(experiment, output)
    folder = Path(str(spec.results_dir))
    if spec.shards > 1:
        return merge(folder)
    seal = StreamFactory.create(spec.output_uri, folder / "spool").verify()
    if seal is None:
        raise ConfigError(f"spec.data.pipeline: {spec.output_uri} has no seal: the pipeline has not finished")
    return seal


if __name__ == "__main__":
    run_worker(Container.PIPELINE, main)
