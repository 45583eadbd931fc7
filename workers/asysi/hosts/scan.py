"""The scan host: runs the model over the data, forward only, with capture attached. It waits for nobody."""

import gc
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import torch

from asysi.bus.mailbox import CaptureWord
from asysi.bus.pinning import Pinning, cuda_hook
from asysi.bus.states import StreamEnd
from asysi.capture.hooker import ActivationHooker
from asysi.contract.errors import ConfigError, no_room
from asysi.contract.rows import read_rows
from asysi.contract.runtime import CAPTURE_RING, HOST_FOLDER, MODEL_FILE, POINTS_FILE, Container, Exit
from asysi.files import is_full, write_atomic
from asysi.hosts.seen import Beginnings, Seen
from asysi.model.forward import ScannerEngine
from asysi.model.loading import load_model, read_resolved
from asysi.model.points import read_points
from asysi.monitor.process import run_worker
from asysi.monitor.worker import Worker
from asysi.text.reading import Reading, read_data
from asysi.text.tokens import Batches

log = logging.getLogger("asysi")

PROGRESS_FILE = HOST_FOLDER / "progress.json"
"""{attempt, step, attempts, tokens, sequences, opened}: the last step that was run, and that of every attempt
that has run one; the content tokens of all steps so far; the sequences read so far, and those that began with
BOS or CLS.
"""
SEEN_FILE = HOST_FOLDER / "seen.json"
_PROGRESS_SECONDS = 2.0


def next_step(output: Path) -> int:
    """Return the step to begin with: behind the last one that an earlier attempt ran."""
    try:
        return int(json.loads((output / PROGRESS_FILE).read_text())["step"]) + 1
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def begun_attempts(output: Path) -> dict[str, int]:
    """Return the last step of each attempt that has run one, as far as it was written down."""
    try:
        record = json.loads((output / PROGRESS_FILE).read_text())
        found = record.get("attempts", {record["attempt"]: record["step"]})
        return {str(number): int(step) for number, step in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def main(worker: Worker) -> int:
    """Run the scan; returns the exit code."""
    from asysi_ring import Control, Writer  # noqa: PLC0415 - needs the compiled ring

    spec = worker.experiment.spec
    scan = spec.workload.scan
    if scan is None or spec.data is None:
        raise ConfigError("spec.workload.scan: the scan host needs a scan and data")
    torch.set_num_threads(max(1, int(spec.resources.host.cpus)))
    folder = str(worker.shm / CAPTURE_RING)
    with Writer(folder) as writer, Control(folder) as control:  # first: whoever dies from here on is seen
        points = read_points(worker.workspace / POINTS_FILE)
        loaded = load_model(read_resolved(worker.workspace / MODEL_FILE), spec.model.dtype)
        engine = ScannerEngine(loaded, points, "cuda" if spec.resources.host.gpus else "cpu")
        reading = read_data(read_rows(spec.data, worker.output), scan, loaded.tokenizer)
        hooker = ActivationHooker(
            engine.module, points, writer, control,
            sampling=spec.capture.sampling, seed=scan.seed, root=engine.root, attempt=worker.attempt,
        )  # fmt: skip
        if reading.spelled.documents:
            log.warning(
                "%d documents spell special tokens (%s); data.tokens.specialTokensInText reads them as %s",
                reading.spelled.documents, ", ".join(reading.spelled.found),
                spec.data.tokens.special_tokens_in_text,
            )  # fmt: skip
        run = _Run(worker, engine, hooker, reading, Seen(spec.data.tokens.context_length))
        control.set(CaptureWord.STEPS_TOTAL, reading.batches.steps)
        control.set(CaptureWord.TOKENS_TOTAL, reading.batches.content_tokens_in_all)
        control.set(CaptureWord.STEPS_BEFORE, run.first)
        control.set(CaptureWord.TOKENS_BEFORE, run.tokens_before)
        worker.status = run.status
        worker.health.ready()
        gc.collect()
        gc.freeze()  # what is loaded stays: no collection walks it again
        with Pinning(writer, cuda_hook() if spec.resources.host.gpus else None) as pinning:
            if pinning.refused:
                log.warning("the capture ring is not known to CUDA, copies are slower: %s", pinning.refused)
            run.all_steps(control.set)
        run.write_seen()
        if run.interrupted:
            control.set(CaptureWord.INTERRUPTED, 1)
        writer.close(StreamEnd.ATTEMPT_OVER if worker.stop.terminated else StreamEnd.COMPLETE)
    return Exit.OK


def _resumed_beginnings(worker: Worker, tokens: list[int]) -> Beginnings:
    """Return the count of sequences that began with one of `tokens`, with what earlier attempts counted."""
    try:
        record = json.loads((worker.output / PROGRESS_FILE).read_text()) if worker.attempt else {}
        return Beginnings(tokens, int(record["sequences"]), int(record["opened"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Beginnings(tokens)


def _tokens_before(output: Path, first: int, batches: Batches) -> int:
    """Return the content tokens of the steps before `first`, as the attempt that ran them has counted; its
    share of all where it has not.
    """
    try:
        return int(json.loads((output / PROGRESS_FILE).read_text())["tokens"]) if first else 0
    except (OSError, ValueError, KeyError, TypeError):
        return batches.content_tokens_in_all * min(first, batches.steps) // max(1, batches.steps)


class _Run:
    """One attempt's way through the steps."""

    def __init__(
        self, worker: Worker, engine: ScannerEngine, hooker: ActivationHooker, reading: Reading, seen: Seen
    ) -> None:
        self._worker, self._engine, self._hooker = worker, engine, hooker
        self._reading, self._seen = reading, seen
        self._beginnings = _resumed_beginnings(worker, reading.openers)
        self.first = next_step(worker.output) if worker.attempt else 0
        """Step that this attempt begins with."""
        self.tokens_before = _tokens_before(worker.output, self.first, reading.batches)
        """Content tokens of the steps before it."""
        self._last = self.first - 1
        self._passes = 0
        self._begun = self._full = False
        self._attempts = begun_attempts(worker.output) if worker.attempt else {}

    def all_steps(self, tell: Callable[[CaptureWord, int], None]) -> None:
        """Run every step that is left, until a signal asks to stop; `tell` writes a word of the mailbox."""
        written = time.monotonic()
        with self._hooker:
            for batch in self._reading.batches.from_step(self.first):
                if self._worker.stop.requested:
                    break
                if not self._begun:
                    self._begun = True
                    self._write_progress()  # whatever happens from here on: this attempt has run
                if batch.pass_number + 1 > self._passes:
                    self._passes = batch.pass_number + 1
                    tell(CaptureWord.PASS, batch.pass_number)
                self._hooker.step(batch.tokens)
                self._engine.run(batch)
                self._seen.add(batch.tokens, self._hooker.kept)
                self._beginnings.add(batch.ids)
                tell(CaptureWord.SEQUENCES, self._beginnings.sequences)
                tell(CaptureWord.SEQUENCES_OPENED, self._beginnings.opened)
                self._last = batch.number
                self._worker.health.beat()
                if time.monotonic() - written > _PROGRESS_SECONDS:
                    self._write_progress()
                    written = time.monotonic()
        self._write_progress()

    @property
    def interrupted(self) -> bool:
        """Whether the user has ended the run before its last step."""
        return self._worker.stop.interrupted and self._left

    @property
    def _left(self) -> bool:
        """Whether there are steps that were not run."""
        return self._last + 1 < self._reading.batches.steps

    def status(self) -> dict[str, object]:
        """Return what /status answers."""
        hooker = self._hooker
        return {
            "step": self._last, "steps": self._reading.batches.steps, "passes": self._passes,
            "tokens": hooker.tokens_seen, "rate": hooker.rate, "steps_dropped": hooker.steps_dropped,
            "capture_errors": hooker.errors,
        }  # fmt: skip

    def write_seen(self) -> None:
        """Write what this attempt saw."""
        hooker, reading = self._hooker, self._reading
        report = {
            "attempt": self._worker.attempt,
            "first_step": self.first,
            "steps": hooker.steps,
            "steps_total": reading.batches.steps,
            "steps_dropped": hooker.steps_dropped,
            "passes": self._passes,
            "interrupted": self._worker.stop.requested and self._left,
            "documents": reading.documents,
            "held_out": reading.held_out,
            "duplicates": reading.duplicates,
            "renumbered": reading.renumbered,
            "truncated": reading.truncated,
            "sequences": self._beginnings.sequences,
            "sequences_opened": self._beginnings.opened,
            "special_tokens_in_text": reading.spelled.to_dict(),
            "unique_tokens": reading.batches.content_tokens,
            "tokens": hooker.tokens_seen,
            "tokens_excluded": hooker.tokens_excluded,
            "capture_errors": hooker.errors,
            "calls": hooker.calls,
            "capture_seconds": hooker.capture_ns / 1e9,
            "forward_seconds": hooker.forward_ns / 1e9,
            "hook_latency_seconds": {
                f"p{share:g}": hooker.latency.quantile(share / 100) / 1e9 for share in (50, 90, 99, 99.9)
            },
            **self._seen.to_dict(),
        }
        self._write(SEEN_FILE, report)

    def _write_progress(self) -> None:
        number = self._worker.attempt
        attempts = {**self._attempts, **({str(number): self._last} if self._begun else {})}
        progress = {
            "attempt": number,
            "step": self._last,
            "attempts": attempts,
            "tokens": self.tokens_before + self._hooker.tokens_seen,
            "sequences": self._beginnings.sequences,
            "opened": self._beginnings.opened,
        }
        self._write(PROGRESS_FILE, progress)

    def _write(self, name: PurePosixPath, content: dict[str, object]) -> None:
        """Write a file of the output. Without room for it the model stops, or not, as the spec says.

        Raises:
            OSError: it cannot be written, and the model is to stop.
        """
        try:
            write_atomic(self._worker.output / name, json.dumps(content))
        except OSError as error:
            if not is_full(error) or self._worker.experiment.spec.output.when_full == "stop":
                raise
            if not self._full:
                log.warning("%s; spec.output.whenFull lets the model go on", no_room(self._worker.output))
            self._full = True


if __name__ == "__main__":
    run_worker(Container.HOST, main)
