"""`python -m asysi.finish`: waits for the in-band end, then gives the verdict."""

import json
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from asysi.contract.errors import ConfigError
from asysi.contract.runtime import LEDGER_FILE, MODEL_FILE, REPORT_FILE, WEIGHTS_FOLDER, Container, Env, Exit
from asysi.files import write_atomic
from asysi.finish.ending import ATTEMPTS_FOLDER, last_words, ledger_json, ledger_of, report_of
from asysi.finish.ledger import Ledger
from asysi.finish.status import Pace, phase, shape
from asysi.finish.waiting import Outcome, wait
from asysi.monitor.process import run_worker
from asysi.monitor.worker import Worker

if TYPE_CHECKING:
    from asysi.finish.analysis import Analysis
    from asysi.hosts.model import ResolvedModel

log = logging.getLogger("asysi")


def main(worker: Worker) -> int:
    """Wait, balance the books, look at the latents, write the report; returns the verdict as exit code."""
    from asysi.finish.rings import Rings  # noqa: PLC0415
    from asysi_ring import RingError  # noqa: PLC0415 - needs the compiled ring

    try:
        rings = Rings(worker.shm)
    except (RingError, OSError) as error:
        raise ConfigError(
            f"finish cannot read the rings in {worker.shm}: {error}; prepare makes them first"
        ) from error
    pace = Pace(time.monotonic)
    said: str | None = None

    def status() -> dict[str, object]:
        now = rings.snapshot()
        running = now.capture_state == "attached"
        return shape(now, tokens_per_second=pace.of(now.host.tokens) if running else pace.last, said=said)

    worker.status = status
    worker.health.ready()
    outcome = wait(rings.snapshot, worker.health.beat, lambda: worker.stop.terminated)
    if outcome.terminated:
        return Exit.OK
    ledger = ledger_of(outcome, worker.attempt)
    written = ledger_json(ledger, outcome.snapshot, worker.output)
    if phase(outcome.snapshot) == "failed":
        said = "failed"
        write_atomic(
            worker.output / ATTEMPTS_FOLDER / str(worker.attempt) / LEDGER_FILE, json.dumps(written, indent=1)
        )
        worker.last_words(last_words(ledger, outcome.snapshot, None))
        return Exit.FAILED
    write_atomic(worker.output / LEDGER_FILE, json.dumps(written, indent=1))
    passed = _report(worker, ledger, written, outcome)
    said = "complete" if passed else "failed"
    return Exit.OK if passed else Exit.FAILED


def _report(worker: Worker, ledger: Ledger, written: dict[str, object], outcome: Outcome) -> bool:
    from asysi.finish.analysis import analyse  # noqa: PLC0415 - torch, once it is needed
    from asysi.report.page import build  # noqa: PLC0415

    began = time.monotonic()
    gauges = outcome.snapshot.points
    analysis = analyse(worker.experiment, worker.output, worker.workspace, gauges, worker.health.beat)
    if worker.experiment.spec.weights.enabled:
        _look_at_weights(worker, analysis)
    data = report_of(
        worker.experiment, ledger, written=written, outcome=outcome, analysis=analysis, output=worker.output
    )
    write_atomic(worker.output / REPORT_FILE, build(data))
    worker.last_words(last_words(ledger, outcome.snapshot, analysis))
    log.info("%s Report and ledger in %s after %.1f s", data.verdict, worker.output, time.monotonic() - began)
    return data.passed


def _look_at_weights(worker: Worker, analysis: "Analysis") -> None:
    from asysi.hosts.model import load_model, read_resolved  # noqa: PLC0415
    from asysi.weights.experiment import analyse_weights, sources_of  # noqa: PLC0415

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
    """Return a sentence when the files that were read as `before` are not those that prepare verified."""
    from asysi.hosts.model import hash_files, weight_files  # noqa: PLC0415

    if resolved.path is None or resolved.sha256 is None:
        return []
    try:
        found = hash_files(weight_files(Path(resolved.path), resolved.uri))
    except (ConfigError, OSError) as error:
        return [f"The files that the run loaded are not there any more: {error}"]
    if found == resolved.sha256:
        return []
    return [
        f"The files in {resolved.path} were replaced during the run (SHA-256 {resolved.sha256} at its start, "
        f"{found} now): what is called before is what they hold now."
    ]


if __name__ == "__main__":
    run_worker(Container.FINISH, main)
