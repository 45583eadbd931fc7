"""The train host: trains a project's model with capture attached, and resumes exactly when it is killed.

A step of the capture is an optimiser step; its number is the optimiser's. A step that an earlier attempt has
recorded in its progress, and that this one does again after its checkpoint, is not captured a second time;
the steps of the last two seconds before a kill may be, with another attempt in their packets, and are counted
as repeated. Where memory ran out, the first microbatch of each step is captured.
"""

import logging
from collections.abc import Iterator

import numpy as np
import torch

from asysi.bus.packet import ROW_DTYPE, Reduction, RowFlag
from asysi.capture.gradients import BackwardPass
from asysi.contract.errors import ConfigError
from asysi.contract.runtime import TRAIN_FOLDER, Container, Exit
from asysi.hosts.frame import HostPlan, HostRun, Step, open_host
from asysi.hosts.trainable import open_watched
from asysi.monitor.process import run_worker
from asysi.monitor.worker import Worker
from asysi.text.grid import StepTokens
from asysi.train.callbacks import Callback, History, TrainingRun
from asysi.train.project import Project
from asysi.train.randomness import mixed
from asysi.train.report import make_report
from asysi.train.tensorboard import TensorBoard
from asysi.train.trainer import Stopped, SupervisedTrainer

log = logging.getLogger("asysi")


def main(worker: Worker) -> int:
    """Train the project; returns the exit code."""
    part = worker.experiment.spec.workload.train
    if part is None:
        raise ConfigError("spec.workload.train: the train host needs it")
    with open_host(worker) as host:
        project = open_watched(worker.experiment.spec, worker.output)
        project.make_data()
        out = worker.output / TRAIN_FOLDER
        callbacks: list[Callback] = [History(), *([TensorBoard()] if project.config.tensorboard else [])]
        try:
            trainer = SupervisedTrainer(project, out, device=host.device, callbacks=callbacks)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        samples = len(trainer.train_loader.dataset)
        plan = HostPlan(
            context_length=part.length,
            seed=part.seed,
            steps=trainer.steps,
            tokens=samples * part.length * trainer.epochs,
            corpus={"documents": samples},
        )
        run = host.watch(trainer.model, plan)
        run.pause()
        feed = StepFeed(run, part.length, part.holdout, part.seed, len(trainer.train_loader))
        trainer.callbacks.append(feed)
        try:
            trainer.fit()
        except Stopped:
            return Exit.OK  # what was asked for decides the exit code
        finally:
            feed.close()
        _report(project, worker, trainer)
    return Exit.OK


def _report(project: Project, worker: Worker, trainer: SupervisedTrainer) -> None:
    known = {"steps": trainer.step, "epochs": trainer.epoch, "attempt": worker.attempt}
    command = f"asysi run {worker.experiment.metadata.name}.yaml"
    report = make_report(project, worker.output / TRAIN_FOLDER, command, known, trainer.history)
    for gate in report["gates"]:
        if not gate["passed"]:
            log.warning("%s is %.4f, wanted %s", gate["name"], gate["value"], gate["wanted"])


class StepFeed(Callback):
    """Hands each step of the training to the host's run.

    Args:
        run: of the host.
        length: rows of a sample.
        holdout: share of the samples whose rows are held out.
        seed: of the choice of these.
        epoch_steps: steps of an epoch.
    """

    def __init__(self, run: HostRun, length: int, holdout: float, seed: int, epoch_steps: int) -> None:
        self._run, self._length, self._holdout, self._seed = run, length, holdout, seed
        self._epoch_steps = epoch_steps
        self._next: Step | None = None
        self._steps = run.steps(self._handed())
        self._last = run.first - 1
        self._watching = False
        self._loss_scale = 1.0

    def on_forward(self, trainer: TrainingRun, indices: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
        """Begin a step of the capture, or leave this forward pass out."""
        number = trainer.step
        self._watch(number > self._last)
        if number <= self._last:
            return
        self._last = number
        self._loss_scale = trainer.loss_scale
        self._run.backward(self._backward(trainer, len(indices)))
        self._next = Step(self._tokens(number, indices, batch), number // self._epoch_steps)
        if next(self._steps, None) is None:  # a signal asks for the end
            self._watch(False)

    def on_step_end(self, trainer: TrainingRun, loss: float) -> None:
        """Record a step that the optimiser skipped; stop the training where a signal asks for it."""
        if trainer.loss_scale < self._loss_scale:  # the scaler lowers it after gradients that are not finite
            self._run.skipped(trainer.step - 1)
        if self._run.stopping:
            trainer.stop = int(Exit.TERMINATED)

    def on_evaluation_begin(self, trainer: TrainingRun) -> None:
        """Leave the evaluation out."""
        self._watch(False)

    def close(self) -> None:
        """Record the last step."""
        self._watch(False)
        self._next = None
        next(self._steps, None)

    def _handed(self) -> Iterator[Step]:
        while (step := self._next) is not None:
            yield step

    def _watch(self, wanted: bool) -> None:
        if wanted != self._watching:
            (self._run.go_on if wanted else self._run.pause)()
            self._watching = wanted

    def _backward(self, trainer: TrainingRun, samples: int) -> BackwardPass:
        """Return what is known of the backward pass: only the first microbatch of a step is captured."""
        passes = -(-trainer.global_samples // max(1, samples))
        return BackwardPass(trainer.loss_scale, passes, 0, Reduction.UNKNOWN)

    def _tokens(self, number: int, indices: torch.Tensor, batch: dict[str, torch.Tensor]) -> StepTokens:
        size, length = len(indices), self._length
        rows = np.zeros((size, length), ROW_DTYPE)
        content = np.ones((size, length), np.bool_)
        ids, mask = batch.get("input_ids"), batch.get("attention_mask")
        if ids is not None and ids.shape == (size, length):
            rows["token"] = ids.cpu().numpy()
        elif batch["labels"].ndim == 1:
            rows["token"] = batch["labels"].cpu().numpy()[:, None]
        if mask is not None and mask.shape == (size, length):
            content = mask.cpu().numpy().astype(np.bool_)
        rows["sample"] = indices.numpy()[:, None]
        rows["sequence"] = np.arange(size)[:, None]
        rows["position"] = np.arange(length)
        out = [mixed(self._seed, int(index)) % 10_000 < self._holdout * 10_000 for index in indices]
        rows["flags"][np.array(out)] = RowFlag.HOLDOUT
        return StepTokens(number, size, length, rows.reshape(-1), content.reshape(-1))


if __name__ == "__main__":
    run_worker(Container.HOST, main)
