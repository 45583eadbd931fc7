"""`python -m asysi.finish`: waits for the in-band end, then gives the verdict."""

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from asysi.bus.states import ProducerState
from asysi.bus.stream import StreamError
from asysi.contract.errors import ConfigError
from asysi.contract.runtime import (
    ATTEMPTS_FOLDER,
    LEDGER_FILE,
    MODEL_FILE,
    REPORT_FILE,
    VERDICT_FILE,
    WEIGHTS_FOLDER,
    Container,
    Env,
    Exit,
)
from asysi.files import write_atomic
from asysi.finish.budget import ReadProgress
from asysi.finish.ending import (
    RunResult,
    conditions_json,
    evaluate_run,
    ledger_json,
    ledger_of,
    report_of,
    termination_message,
    verdict_json,
)
from asysi.finish.facts import read_records
from asysi.finish.ledger import Ledger
from asysi.finish.status import TokensPerSecond, phase, status_response
from asysi.finish.verdict import Level
from asysi.finish.waiting import WaitResult, wait
from asysi.monitor.process import run_worker
from asysi.monitor.worker import Worker

if TYPE_CHECKING:
    from asysi.finish.analysis import RunAnalysis
    from asysi.model.loading import ResolvedModel

SAY_SECONDS = 5.0
"""Between two lines of the log about a reading."""
log = logging.getLogger("asysi")


def main(worker: Worker) -> int:
    """Wait, balance the ledger, analyse the latents and write the report; return the verdict as exit code."""
    from asysi.finish.rings import FinishedRings  # noqa: PLC0415

    try:
        rings = FinishedRings(worker.experiment.spec, worker.shm)
    except StreamError as error:
        raise ConfigError(
            f"finish cannot read the rings in {worker.shm}: {error}; prepare makes them first"
        ) from error
    pace = TokensPerSecond(time.monotonic)
    said: str | None = None
    ending: RunResult | None = None
    watch = _Watching(worker.health.beat)

    def status() -> dict[str, object]:
        now = rings.snapshot()
        running = now.capture_state is ProducerState.ATTACHED
        tokens_per_second = pace.of(now.host.tokens) if running else pace.last
        conditions = None if ending is None else conditions_json(ending)
        return status_response(
            now, tokens_per_second=tokens_per_second, said=said, conditions=conditions, reading=watch.at
        )

    worker.status = status
    (worker.output / VERDICT_FILE).unlink(missing_ok=True)  # of an earlier attempt
    worker.health.ready()
    _import_ahead()
    outcome = wait(rings.snapshot, worker.health.beat, lambda: worker.stop.terminated)
    if outcome.terminated and not outcome.snapshot.host.steps:
        return Exit.OK
    ledger = ledger_of(outcome, worker.attempt)
    written = ledger_json(ledger, outcome.snapshot, worker.output)
    text = json.dumps(written, indent=1)
    # Written first: if this process is killed later, the next attempt still has these counters.
    write_atomic(worker.output / ATTEMPTS_FOLDER / str(worker.attempt) / LEDGER_FILE, text)
    if outcome.terminated:
        return Exit.OK
    if phase(outcome.snapshot) == "failed":
        said = "failed"
        worker.last_words(termination_message(ledger, outcome.snapshot, None, None))
        return Exit.FAILED
    (worker.output / REPORT_FILE).unlink(missing_ok=True)  # of a run that was stopped early, then resumed
    write_atomic(worker.output / LEDGER_FILE, text)
    ending, uploaded = _judge_and_report(worker, ledger, written, outcome, watch)
    passed = uploaded and ending.level is not Level.FAIL
    said = "complete" if passed else "failed"
    return Exit.OK if passed else Exit.FAILED


class _Watching:
    """Keeps how far a reading is for `/status`, and says it in the log now and then."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self.beat = beat
        self.at: ReadProgress | None = None
        self._said_at = time.monotonic()

    def show(self, progress: ReadProgress | None) -> None:
        """Note how far a reading is."""
        self.at = progress
        if progress is None or time.monotonic() - self._said_at < SAY_SECONDS:
            return
        self._said_at = time.monotonic()
        left = "" if progress.seconds_left is None else f", about {progress.seconds_left:.0f} s left"
        log.info("%s: read %d of %d tokens%s", progress.what, progress.tokens, progress.tokens_total, left)


def _judge_and_report(
    worker: Worker, ledger: Ledger, written: dict[str, object], outcome: WaitResult, watch: _Watching
) -> tuple[RunResult, bool]:
    """Return the result, and whether everything is where `output.uri` wants it."""
    from asysi.finish.analysis import analyse  # noqa: PLC0415 - torch, once it is needed
    from asysi.report.page import build  # noqa: PLC0415

    began = time.monotonic()
    experiment, output = worker.experiment, worker.output
    gauges = outcome.snapshot.points
    analysis = analyse(experiment, output, worker.workspace, gauges, watch, attempt=worker.attempt)
    if experiment.spec.weights.enabled:
        _analyse_weights(worker, analysis)
    records = read_records(experiment, output)
    ending = evaluate_run(experiment, ledger, outcome, analysis=analysis, records=records, output=output)
    write_atomic(output / VERDICT_FILE, json.dumps(verdict_json(ending), indent=1, allow_nan=False))
    data = report_of(
        experiment,
        ending,
        written=written,
        outcome=outcome,
        analysis=analysis,
        records=records,
        output=output,
    )
    write_atomic(output / REPORT_FILE, build(data))
    if problem := _upload(worker):
        analysis.problems.insert(0, problem)
    worker.last_words(termination_message(ledger, outcome.snapshot, analysis, ending))
    took = time.monotonic() - began
    log.info("%s %s Report and ledger in %s after %.1f s", ending.level.mark, data.verdict, output, took)
    return ending, problem is None


def _upload(worker: Worker) -> str | None:
    if (address := worker.experiment.spec.output.store) is None:
        return None
    from asysi.finish.uploading import upload_run  # noqa: PLC0415 - few experiments have a store

    return upload_run(worker, address)


def _analyse_weights(worker: Worker, analysis: "RunAnalysis") -> None:
    from asysi.model.loading import load_model, read_resolved  # noqa: PLC0415
    from asysi.weights.run.experiment import analyse_weights, sources_of  # noqa: PLC0415

    spec = worker.experiment.spec
    resolved = read_resolved(worker.workspace / MODEL_FILE)
    found = analyse_weights(
        spec.weights,
        sources_of(resolved, worker.output, lambda: load_model(resolved, spec.model.dtype).module),
        worker.output / WEIGHTS_FOLDER,
        memory=int(os.environ.get(Env.MEMORY) or 0) // 2 or None,
        workers=max(1, int(spec.resources.finish.cpus)),
        beat=worker.health.beat,
    )
    analysis.parameters = found.summary
    analysis.problems += [*found.problems, *_replaced(resolved)]


def _replaced(resolved: "ResolvedModel") -> list[str]:
    """Return a message if the files read as `before` are not the ones that prepare verified."""
    from asysi.model.loading import hash_files, weight_files  # noqa: PLC0415

    if resolved.path is None or resolved.sha256 is None:
        return []
    try:
        found = hash_files(weight_files(Path(resolved.path), resolved.uri))
    except (ConfigError, OSError) as error:
        return [f"The model files that the run loaded no longer exist: {error}"]
    if found == resolved.sha256:
        return []
    return [
        f"The files in {resolved.path} were replaced during the run (SHA-256 {resolved.sha256} at its start, "
        f"{found} now): results labelled 'before' describe the current files."
    ]


def _import_ahead() -> None:
    """Import slow dependencies while the host still loads the model; saves two seconds at the end."""
    with suppress(ImportError):
        import transformers.modeling_utils  # noqa: F401, PLC0415


if __name__ == "__main__":
    run_worker(Container.FINISH, main)
