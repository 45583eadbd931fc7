"""The training loop: a step is one global batch, regardless of microbatches, ranks and interruptions."""

import logging
import math
import signal
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from asysi.contract.errors import ConfigError
from asysi.contract.runtime import Exit
from asysi.train import checkpoint
from asysi.train.batches import BatchContract
from asysi.train.callbacks import Callback, LayerDrift
from asysi.train.data_loader import BatchLoader
from asysi.train.eval import evaluate
from asysi.train.factory import instantiated
from asysi.train.memory import halved, is_out_of_memory
from asysi.train.model import batch_norms, make_model
from asysi.train.project import Project
from asysi.train.randomness import put_state, seed_all, take_state
from asysi.train.ranks import Ranks
from asysi.train.schedule import factor

log = logging.getLogger("asysi")
_PROBE = 64
"""Samples in the fixed batch on which drift is measured."""
_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
Batch = dict[str, torch.Tensor]


class Stopped(Exception):  # noqa: N818 - not an error
    """The run was asked to stop; a checkpoint is written."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped with exit code {code}")
        self.code = code


class SupervisedTrainer:
    """Trains a project's model. `fit` resumes from the run's checkpoint if there is one.

    Args:
        project: the project to train.
        out: folder of the run.
        device: `cpu`, or a CUDA device.
        ranks: the process group of the run.
        callbacks: called at fixed points of the run.

    Raises:
        ConfigError: data, model or configuration cannot be used.
        ValueError: a label is out of range.
    """

    def __init__(
        self,
        project: Project,
        out: Path,
        *,
        device: str = "cpu",
        ranks: Ranks | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.project, self.config, self.out = project, project.config, out
        self.ranks, self.device, self.callbacks = ranks or Ranks(), device, list(callbacks)
        loop = self.config.train
        if loop.threads:
            torch.set_num_threads(loop.threads)
        seed_all(self.config.seed)
        self.contract = BatchContract(self.config.contract)
        self.train_loader = self._loader("train", train=True)
        self.val_loader = self._loader("val", train=False)
        self.mixup = instantiated(self.config.data.mixup, num_classes=len(self.config.classes))
        self.model: nn.Module = make_model(self.config).to(device)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._trained = trained
        self.optimizer: torch.optim.Optimizer = instantiated(self.config.optimizer, params=trained)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=loop.amp == "fp16")
        self.loss = instantiated(self.config.loss)
        self.ema = self._averaged(loop.ema_decay)
        self.microbatch = min(
            loop.microbatch or loop.batch_size, math.ceil(loop.batch_size / self.ranks.world)
        )
        """Maximum samples per forward pass; halved when memory runs out."""
        self.step = 0
        """Number of completed steps."""
        self.epoch = 0
        """Number of completed epochs."""
        self.batch = 0
        """Number of completed batches in this epoch."""
        self.out_of_memory = 0
        """Number of times memory ran out."""
        self.history: list[dict[str, float]] = []
        """Figures of each epoch."""
        self.best: dict[str, float] = {}
        """Figures of the epoch with the best weights."""
        self.stale = 0
        """Epochs since the best."""
        self.learning_rate = self._rates[0]
        self.stop = 0
        """Exit code with which to stop after this step; 0 continues."""
        self.drift = self._drift()
        self._warn()

    # -- the run

    @property
    def epochs(self) -> int:
        """Number of epochs of the run."""
        return 2 if self.config.debug else self.config.train.epochs

    @property
    def steps(self) -> int:
        """Number of steps of the run, unless it ends early."""
        every = len(self.train_loader) * self.epochs
        return min(every, self.config.train.max_steps or every)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated: the moving average if there is one."""
        return self.model if self.ema is None else self.ema.module

    def fit(self) -> None:
        """Train until the last step.

        Raises:
            Stopped: a signal requested it; the checkpoint is written.
            ConfigError: the checkpoint belongs to another run.
        """
        self.resume()
        self.tell("on_run_begin")
        if self.drift is not None:
            self.drift.on_run_begin(self)
        self.model.train()
        try:
            while self.epoch < self.epochs and self.step < self.steps and not self._exhausted():
                self._run_epoch()
        finally:
            self.tell("on_run_end")
        if self.ranks.first:
            checkpoint.save_weights(self.out / checkpoint.LAST, self.evaluated)

    def _run_epoch(self) -> None:
        for indices, batch in self.train_loader.batches(self.epoch, self.batch):
            if self.step >= self.steps:
                break
            loss = self._step(indices, batch)
            self.step += 1
            self.batch += 1
            self.tell("on_step_end", loss)
            stop = -self.ranks.least(-self.stop) if self.ranks.world > 1 else self.stop
            if stop:
                self.save()
                raise Stopped(stop)
            if self.step % self.config.train.checkpoint_steps == 0 and self.batch < len(self.train_loader):
                self.save()
        self._end_epoch()

    def _end_epoch(self) -> None:
        figures = self._figures()
        self.history.append(figures)
        self.epoch += 1
        self.batch = 0
        if self._improved(figures):
            self.best, self.stale = figures, 0
            if self.ranks.first:
                checkpoint.save_weights(self.out / checkpoint.BEST, self.evaluated)
        else:
            self.stale += 1
        log.info(
            "epoch %d of %d: %s", self.epoch, self.epochs,
            ", ".join(f"{name} {figures[name]:.4f}" for name in ("loss", *self.config.eval.metrics)),
        )  # fmt: skip
        self.tell("on_epoch_end", figures)
        self.save()

    def _figures(self) -> dict[str, float]:
        """Return the figures of the epoch that ends; rank 0 measures them and shares them with all ranks."""
        figures: dict[str, float] = {}
        self.tell("on_evaluation_begin")
        state = take_state()
        if self.ranks.first:
            result = evaluate(self.evaluated, self.val_loader, len(self.config.classes), self.device)
            names = ["loss", *self.config.eval.metrics]
            figures = {"epoch": self.epoch + 1, "step": self.step}
            figures |= {name: result.figure(name) for name in names}
            if self.drift is not None:
                figures |= self.drift.measure(self.model)
        put_state(state)
        self.tell("on_evaluation_end")
        shared = self.ranks.share(figures)
        assert isinstance(shared, dict)
        return shared

    def _improved(self, figures: dict[str, float]) -> bool:
        monitored = self.config.train.monitor
        if not self.best:
            return True
        early = self.config.train.early_stopping
        margin = early.min_delta if early else 0.0
        gain = figures[monitored] - self.best[monitored]
        return -gain > margin if monitored == "loss" else gain > margin

    def _exhausted(self) -> bool:
        early = self.config.train.early_stopping
        if early is None or self.stale < early.patience:
            return False
        log.info("no improvement for %d epochs: the run ends early", self.stale)
        return True

    # -- a step

    def _step(self, indices: torch.Tensor, batch: Batch) -> float:
        """Run a step, halving the microbatch and retrying while memory runs out; returns the mean loss."""
        state = take_state()
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        while True:
            self.tell("on_step_begin")
            loss, needed = self._accumulate(indices, batch)
            agreed = self.ranks.least(needed)
            if agreed == self.microbatch and loss is not None:
                break
            self._shrink(agreed)
            put_state(state)
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])
        self._update()
        return self._mean(loss)

    def _accumulate(self, indices: torch.Tensor, batch: Batch) -> tuple[torch.Tensor | None, int]:
        """Add the gradients of this rank's part of a global batch.

        Returns the summed loss, or None if memory ran out; and the microbatch that this rank needs.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        try:
            mixed = self.mixup(batch) if self.mixup and len(indices) else batch
            for first in range(0, len(indices), self.microbatch):
                part = slice(first, first + self.microbatch)
                total += self._forward(indices[part], {name: value[part] for name, value in mixed.items()})
        except Exception as error:
            smaller = halved(self.microbatch)
            if not is_out_of_memory(error) or smaller is None:
                raise
            return None, smaller
        return total, self.microbatch

    def _forward(self, indices: torch.Tensor, part: Batch) -> torch.Tensor:
        """Run forward and backward for a microbatch; returns its loss, summed over the samples."""
        part = {name: value.to(self.device) for name, value in part.items()}
        self.tell("on_forward", indices, part)
        with self._autocast():
            output = self.model(**{name: part[name] for name in self.contract.inputs})
            loss = self.loss(output["logits"], part["labels"])
        share = len(indices) / self.global_samples
        self.scaler.scale(loss * share).backward()
        total: torch.Tensor = loss.detach() * len(indices)
        return total

    @property
    def loss_scale(self) -> float:
        """Factor of the loss against underflow in float16; 1 without."""
        return float(self.scaler.get_scale())

    @property
    def global_samples(self) -> int:
        """Number of samples of the current step, over all ranks."""
        done = self.batch * self.config.train.batch_size
        return min(self.config.train.batch_size, len(self.train_loader.dataset) - done)

    def _shrink(self, microbatch: int) -> None:
        self.out_of_memory += 1
        log.warning(
            "memory ran out in step %d: the microbatch is halved from %d to %d, the global batch stays %d",
            self.step, self.microbatch, microbatch, self.config.train.batch_size,
        )  # fmt: skip
        self.microbatch = microbatch
        self.optimizer.zero_grad(set_to_none=True)
        if self.device != "cpu":
            torch.cuda.empty_cache()

    def _update(self) -> None:
        self._reduce()
        scale = factor(self.config.train.schedule, self.step, self.steps)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * scale
        self.learning_rate = self._rates[0] * scale
        if self.config.train.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._trained, self.config.train.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def _reduce(self) -> None:
        """Sum the gradients over all ranks; each rank has already divided by the global batch size."""
        if self.ranks.world > 1:
            for parameter in self._trained:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self.ranks.add(parameter.grad for parameter in self._trained if parameter.grad is not None)

    def _mean(self, total: torch.Tensor) -> float:
        self.ranks.add([total])
        return float(total) / self.global_samples

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = _AMP.get(self.config.train.amp)
        return nullcontext() if dtype is None else torch.autocast(torch.device(self.device).type, dtype=dtype)

    # -- checkpoints

    def save(self) -> None:
        """Write all state that the rest of the run depends on."""
        rng = self._all_states()
        if self.ranks.first:
            state = {
                "config": self.config.digest(),
                "world": self.ranks.world,
                "model": checkpoint.kept_state(self.model),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "ema": None if self.ema is None else checkpoint.kept_state(self.ema),
                "rng": rng,
                **{name: getattr(self, name) for name in _KEPT},
            }
            checkpoint.save(self.out / checkpoint.CHECKPOINT, state)
        self.tell("on_checkpoint")

    def resume(self) -> bool:
        """Restore the run's checkpoint; returns whether there is one.

        Raises:
            ConfigError: it is damaged, or belongs to another configuration.
        """
        file = self.out / checkpoint.CHECKPOINT
        if not file.is_file():
            return False
        state = checkpoint.load(file)
        if state["config"] != self.config.digest() or state["world"] != self.ranks.world:
            raise ConfigError(
                f"{self.out} holds an unfinished run of another configuration or number of ranks: "
                "take another --output, or --overwrite"
            )
        checkpoint.put_kept_state(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            checkpoint.put_kept_state(self.ema, state["ema"])
        for name in _KEPT:
            setattr(self, name, state[name])
        put_state(state["rng"][self.ranks.rank])
        log.info("resumed at step %d of %d", self.step, self.steps)
        return True

    def _all_states(self) -> list[Any]:
        mine = take_state()
        if self.ranks.world == 1:
            return [mine]
        gathered: list[Any] = [None] * self.ranks.world
        torch.distributed.all_gather_object(gathered, mine)
        return gathered

    # -- the rest

    def tell(self, joint: str, *values: Any) -> None:
        """Call a method of every callback."""
        for callback in self.callbacks:
            getattr(callback, joint)(self, *values)

    def stop_on_signals(self) -> None:
        """Make SIGTERM and SIGINT stop the run after the current step, with a checkpoint."""
        codes = {signal.SIGTERM: Exit.TERMINATED, signal.SIGINT: Exit.INTERRUPTED}

        def stop(number: int, _frame: Any) -> None:
            self.stop = int(codes[signal.Signals(number)])

        for number in codes:
            signal.signal(number, stop)

    def _loader(self, split: str, *, train: bool) -> BatchLoader:
        ranks = self.ranks if train else Ranks()
        return BatchLoader(
            self.project.dataset(split, train=train), self.contract, self.config.train.batch_size,
            seed=self.config.seed if train else None, rank=ranks.rank, world=ranks.world,
            workers=self.config.data.workers,
        )  # fmt: skip

    def _averaged(self, decay: float | None) -> AveragedModel | None:
        if decay is None:
            return None
        return AveragedModel(
            self.model,
            multi_avg_fn=get_ema_multi_avg_fn(decay),  # type: ignore[no-untyped-call]
            use_buffers=True,
        )

    def _drift(self) -> LayerDrift | None:
        if not self.config.eval.drift_layers:
            return None
        dataset = self.val_loader.dataset
        rows = [dataset[number] for number in range(min(_PROBE, len(dataset)))]
        batch = {
            name: torch.stack([row[name] for row in rows]).to(self.device) for name in self.contract.inputs
        }
        names = dict(self.model.named_modules())
        for layer in self.config.eval.drift_layers:
            if layer not in names:
                known = ", ".join(filter(None, names))
                raise ConfigError(f"eval.drift_layers: the model has no module {layer!r}: take {known}")
        return LayerDrift(self.config.eval.drift_layers, batch)

    def _warn(self) -> None:
        if norms := batch_norms(self.model):
            log.warning(
                "%s use statistics of the microbatch: a smaller one after memory ran out, or more ranks, "
                "changes the result", ", ".join(norms[:5]),
            )  # fmt: skip


_KEPT = ("step", "epoch", "batch", "microbatch", "out_of_memory", "history", "best", "stale")
"""Plain attributes of a trainer that a checkpoint holds."""
