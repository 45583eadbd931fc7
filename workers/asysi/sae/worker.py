"""The SAE worker: trains on the live stream, writes checkpoints, and exports SAEs."""

import json
import logging
import math
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from asysi.bus.factory import create_data_bus
from asysi.bus.mailbox import CaptureWord, Gauge
from asysi.bus.states import StreamEnd
from asysi.bus.stream import Consumer, StreamControl, StreamError
from asysi.contract.errors import ConfigError
from asysi.contract.runtime import (
    CAPTURE_RING,
    CHECKPOINT_FOLDER,
    MODEL_FILE,
    POINTS_FILE,
    SAE_FOLDER,
    Exit,
)
from asysi.model.devices import device_for
from asysi.model.globs import match_globs
from asysi.monitor.rest import has_ended, idle_until_terminated
from asysi.monitor.worker import Worker
from asysi.sae.denormals import flushed_denormals
from asysi.sae.export import metadata_of
from asysi.sae.processor import repeat_exactly
from asysi.sae.results import write_results
from asysi.sae.trainer import Trainer
from asysi.sae.training import Training

READER = "sae"
"""Name of this worker as a reader of the bus."""
EVALUATE_SECONDS = 5.0
"""Minimum seconds between two intermediate evaluations of the same autoencoder."""
_PULL = 64
_WAIT = 0.1

log = logging.getLogger("asysi")


class SAETrainerWorker:
    """Consumes the bus: every row is either trained on or counted with the reason why not.

    Args:
        worker: context of the process.
        stream: the bus, attached as the reader `sae`.
    """

    def __init__(self, worker: Worker, stream: Consumer) -> None:
        sae = worker.experiment.spec.sae
        if sae is None or not sae.enabled:
            raise ConfigError("spec.sae: there is nothing to train, but the SAE worker was started")
        self._worker, self._stream = worker, stream
        data = worker.experiment.spec.data
        multiple = data.tokens.max_norm_multiple if data else None
        checkpoints = worker.output / CHECKPOINT_FOLDER
        device = device_for(sae.gpus, "spec.sae.gpus")
        self._trainers = [Trainer(c, checkpoints / f"{c.name}.ckpt", multiple, device) for c in sae.train]
        self._points = _captured_points(worker.workspace / POINTS_FILE)
        self._checkpoint_seconds = min(c.checkpoint_seconds for c in sae.train)
        self._saved_at = self._evaluated_at = time.monotonic()
        self._next_evaluated = 0
        self._steps_total = 0
        for number, trainer in enumerate(sae.train):
            if self._points:
                where = f"spec.sae.train[{number}].hookPoints"
                match_globs(trainer.hook_points, list(self._points), where, calls=False)

    def run(self) -> int:
        """Run until the stream ends or SIGTERM arrives; return the exit code."""
        self._resume()
        self._worker.status = self.status
        self._worker.health.ready()
        while not self._worker.stop.terminated:
            self._pull()
            self._evaluate_next()
            end = self._stream.ended()
            if end is not None:
                return self._finish(end)
        return self._leave()

    def status(self) -> dict[str, object]:
        """Return the content of /status."""
        return {
            "trainers": {
                name: {point: training.report() for point, training in trainings.items()}
                for trainer in self._trainers
                for name, trainings in trainer.results().items()
            }
        }

    # The stream

    def _pull(self) -> None:
        """Train on the available packets; a packet is taken only after all trainers received it."""
        for packet in self._stream.pull(_PULL, _WAIT):
            if packet.point not in self._points:
                self._points = {**self._points, **dict.fromkeys(self._stream.points())}
            if not self._steps_total:
                self._steps_total = _steps_total(self._worker)
            for trainer in self._trainers:
                trainer.receive(packet, self._points, self._steps_total, packet.shard)
            self._stream.take()
            self._worker.health.beat()
        self._worker.health.beat()
        if time.monotonic() - self._saved_at >= self._checkpoint_seconds or self._stream.pressed():
            self._checkpoint()

    def _drain(self) -> bool:
        """Train on the buffered rows; return whether none are left, False on SIGTERM."""
        for trainer in self._trainers:
            trainer.end()
        while any(trainer.train() for trainer in self._trainers):
            self._worker.health.beat()
            if self._worker.stop.terminated:
                return False
        return True

    # Checkpoints

    def _resume(self) -> None:
        """Restore the checkpoints and set the durable rows of this attempt in the ring accordingly."""
        found = [trainer.load(self._worker.attempt) for trainer in self._trainers]
        points = {point for trainer in self._trainers for point in trainer.rows}
        self._stream.resume(
            {point: min(trainer.rows.get(point, 0) for trainer in self._trainers) for point in points}
        )
        self._gauge_all()
        if any(found):
            log.info("resumed: %s rows are trained on", f"{self._trained():,}")

    def _checkpoint(self) -> None:
        """Write the checkpoints, then mark their rows as durable.

        A kill in between is harmless: on resume, the checkpoints take precedence.
        """
        began = time.monotonic()
        for trainer in self._trainers:
            trainer.save(self._worker.attempt)
            self._worker.health.beat()
        self._stream.acknowledge()
        self._saved_at = time.monotonic()
        log.info("checkpoint at %s rows, in %.2f s", f"{self._trained():,}", self._saved_at - began)

    def _leave(self) -> int:
        """Checkpoint everything received, after SIGTERM."""
        self._checkpoint()
        return Exit.OK

    # The end

    def _finish(self, end: StreamEnd) -> int:
        """Train on the buffered rows and export; if only the attempt is over, keep them for the next one."""
        # Checkpoint before draining the buffers: a run that was stopped early can be continued from here as
        # if it had not been stopped. If the worker is killed below, its successor repeats the work.
        self._checkpoint()
        if end is StreamEnd.COMPLETE:
            if not self._drain():
                return Exit.OK
            for trainer in self._trainers:
                for training in trainer.trainings.values():
                    training.conclude()
                    self._worker.health.beat()
            self._export()
        self._gauge_all()
        self._stream.finish(end)
        self._say()
        return Exit.OK

    def _export(self) -> None:
        """Write the results of every trainer."""
        model = _json_object(self._worker.workspace / MODEL_FILE)
        began_with_bos = _began_with_bos(self._worker)

        def describe(point: str, numbers: dict[str, Any]) -> dict[str, Any]:
            return metadata_of(
                self._worker.experiment, model, point, self._points.get(point), numbers,
                began_with_bos=began_with_bos,
            )  # fmt: skip

        for trainer in self._trainers:
            write_results(
                trainer,
                self._worker.output / SAE_FOLDER,
                self._worker.attempt,
                describe,
                self._worker.health.beat,
            )

    # Monitoring

    def _evaluate_next(self) -> None:
        """Evaluate the autoencoders in turn, one per call, to keep pauses short."""
        trainings = [
            one for trainer in self._trainers for t in trainer.trainings.values() for one in t.members
        ]
        now = time.monotonic()
        if not trainings or now - self._evaluated_at < EVALUATE_SECONDS / len(trainings):
            return
        self._evaluated_at = now
        self._next_evaluated = (self._next_evaluated + 1) % len(trainings)
        trainings[self._next_evaluated].evaluate(exact=False)
        self._gauge_all()

    def _gauge_all(self) -> None:
        """Publish the metrics of the first trainer of each hook point in the control file."""
        for point in self._stream.points():
            training = next((t.trainings[point] for t in self._trainers if point in t.trainings), None)
            for slot, value in _gauges(training).items():
                self._stream.gauge(point, slot, value)

    def _trained(self) -> int:
        return sum(t.counts.trained for trainer in self._trainers for t in trainer.trainings.values())

    def _say(self) -> None:
        for trainer in self._trainers:
            for point, training in trainer.trainings.items():
                report = training.report()
                log.info(
                    "%s %s: FVU %s on %d held-out rows, trained on %d",
                    trainer.config.name, point, report["fvu"], report["fvu_rows"], report["trained"],
                )  # fmt: skip


def main(worker: Worker) -> int:
    """Run the SAE worker until the stream ends, then wait for the pod's end; returns the exit code."""
    sae = worker.experiment.spec.sae
    torch.set_num_threads(max(1, int(sae.cpus)) if sae else 1)
    if sae and sae.gpus:
        repeat_exactly()
    with flushed_denormals(), torch.inference_mode():
        stream = create_data_bus(worker.experiment.spec, worker.shm).consumer(
            READER
        )  # keeps the lock until the end
        code = SAETrainerWorker(worker, stream).run()
        return idle_until_terminated(worker) if has_ended(worker) else code


def _capture(worker: Worker) -> StreamControl:
    return create_data_bus(worker.experiment.spec, worker.shm, CAPTURE_RING).control()


def _gauges(training: Training | None) -> dict[Gauge, float]:
    if training is None:
        unknown = dict.fromkeys((Gauge.FVU, Gauge.L0, Gauge.DEAD, Gauge.LOSS), math.nan)
        return unknown | dict.fromkeys((Gauge.TRAINED, Gauge.NOT_FINITE, Gauge.OUTLIERS), 0.0)
    evaluation = training.progress.evaluation
    return {
        Gauge.FVU: evaluation.get("fvu", math.nan),
        Gauge.L0: evaluation.get("l0", training.progress.l0),
        Gauge.DEAD: training.dead_share,
        Gauge.LOSS: training.progress.loss,
        Gauge.TRAINED: float(training.counts.trained),
        Gauge.NOT_FINITE: float(training.counts.not_finite),
        Gauge.OUTLIERS: float(training.counts.outliers),
    }


def _captured_points(file: Path) -> dict[str, str | None]:
    """Return the hook points and their TransformerLens names; empty if prepare's file is not available."""
    try:
        entries = json.loads(file.read_text())
        return {entry["path"]: entry.get("alias") for entry in entries}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _json_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _steps_total(worker: Worker) -> int:
    """Return the steps of the host's whole run; 0 if unknown."""
    try:
        with closing(_capture(worker)) as control:
            return control.get(CaptureWord.STEPS_TOTAL)
    except StreamError:
        return 0


def _began_with_bos(worker: Worker) -> bool | None:
    """Return whether every sequence read by the host began with BOS or CLS; None if only some, or unknown."""
    try:
        with closing(_capture(worker)) as control:
            sequences, opened = (
                control.get(word) for word in (CaptureWord.SEQUENCES, CaptureWord.SEQUENCES_OPENED)
            )
    except StreamError:
        return None
    return {0: False, sequences: True}.get(opened) if sequences else None
