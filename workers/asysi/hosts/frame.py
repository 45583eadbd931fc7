"""The frame of every host's loop: rings, pinned memory, progress, coverage and a clean end.

A host is a module with a `main` like the following. `monitor/process.py` handles signals, endpoints, exit
code and termination message, as for every worker.

    def main(worker: Worker) -> int:
        with open_host(worker) as host:
            loaded = host.load_model()
            run = host.watch(loaded.module, Plan(context_length=128))
            for batch in run.steps(batches_from(run.first)):
                loaded.module(torch.from_numpy(batch.ids))
        return Exit.OK
"""

import gc
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import PurePosixPath
from typing import Protocol, TypeVar

import torch

from asysi.bus.capture_queue import CaptureQueueBus
from asysi.bus.factory import create_data_bus
from asysi.bus.mailbox import CaptureWord, Mailbox
from asysi.bus.packet import kinds_named
from asysi.bus.pinning import Pinning, cuda_hook
from asysi.bus.quantization import WIRE
from asysi.bus.states import StreamEnd
from asysi.bus.stream import DataBus, Producer
from asysi.capture.device import Devices
from asysi.capture.gradients import BackwardPass
from asysi.capture.hooks import KINDS_AT_POINTS, ActivationHooker
from asysi.capture.parameters import wanted_parameters
from asysi.contract.errors import no_room
from asysi.contract.quantity import parse_bytes
from asysi.contract.runtime import (
    CAPTURE_RING,
    HOOK_THREAD,
    HOST_FOLDER,
    MODEL_FILE,
    POINTS_FILE,
    RANGES_FILE,
)
from asysi.contract.workloads import workload_of
from asysi.files import is_full, write_atomic
from asysi.hosts.progress import MARK_FILE, PROGRESS_FILE, HostProgress, StepMark, read_progress
from asysi.hosts.ranges import FrozenRanges
from asysi.hosts.seen import Beginnings, Seen
from asysi.model.devices import device_for
from asysi.model.loading import LoadedModel, load_model, read_resolved
from asysi.model.points import read_points
from asysi.monitor.worker import Worker
from asysi.text.grid import StepTokens

log = logging.getLogger("asysi")

SEEN_FILE = HOST_FOLDER / "seen.json"
"""Counts of the last attempt: see `HostRun.end`."""
_PROGRESS_SECONDS = 2.0
_SKIPPED = 4096


@dataclass(frozen=True, slots=True)
class HostPlan:
    """What a workload knows about its run before the first step."""

    context_length: int
    """Length of the longest sequence in tokens."""
    seed: int = 0
    """Seed of the token sampling."""
    steps: int = 0
    """Steps of the whole run; 0 if unknown."""
    tokens: int = 0
    """Content tokens of the whole run; 0 if unknown."""
    openers: Sequence[int] = ()
    """The tokenizer's BOS and CLS tokens."""
    corpus: Mapping[str, object] = field(default_factory=dict)
    """Statistics of the data, as stored in SEEN_FILE."""


class Steplike(Protocol):
    """Protocol of a step: a `Step`, or a `Batch` of text."""

    @property
    def tokens(self) -> StepTokens:
        """Tokens of the step."""

    @property
    def pass_number(self) -> int:
        """Index of the pass over the data, from 0."""


@dataclass(frozen=True, slots=True)
class Step:
    """Minimal implementation of a step."""

    tokens: StepTokens
    """Tokens of the step."""
    pass_number: int = 0
    """Index of the pass over the data, from 0."""


S = TypeVar("S", bound=Steplike)


@contextmanager
def open_host(worker: Worker) -> Iterator["Host"]:
    """Attach to the capture stream, and close it cleanly where the block ends without an exception.

    From the first line of the block on, the end of this process is seen by the hook worker.

    Raises:
        ConfigError: prepare has left no hook points, or the workload has no host.
        StreamError: there is no capture stream, or another host is attached to it.
    """
    torch.set_num_threads(max(1, int(worker.experiment.spec.resources.host.cpus)))
    bus = capture_bus(worker)
    with closing(bus.producer()) as producer, closing(bus.control()) as control:
        hook = _hook_beside(worker, bus)
        try:
            host = Host(worker, producer, control, hook)
            with host.watching:
                yield host
            host.end()
            producer.end(StreamEnd.ATTEMPT_OVER if worker.stop.terminated else StreamEnd.COMPLETE)
        finally:
            producer.close()
            hook.join()


class Beside(Protocol):
    """The hook's work, in this process or in another."""

    def check(self) -> None:
        """Raise what has ended it before its time."""

    def join(self) -> None:
        """Wait until it has passed on everything that was captured."""


class _Elsewhere:
    """The hook is another process, which drains the stream by itself."""

    def check(self) -> None:
        """It restarts by itself."""

    def join(self) -> None:
        """It needs no host."""


def _hook_beside(worker: Worker, bus: DataBus) -> Beside:
    """Start the hook in this process, where packets do not leave it."""
    if not isinstance(bus, CaptureQueueBus):
        return _Elsewhere()
    module, _, name = HOOK_THREAD.partition(":")
    beside: Beside = getattr(import_module(module), name)(worker, bus)
    return beside


def capture_bus(worker: Worker) -> DataBus:
    """Return the stream that a host publishes to."""
    return create_data_bus(worker.experiment.spec, worker.shm, CAPTURE_RING)


class Host:
    """A host attached to its pod's rings; created by `open_host`."""

    def __init__(self, worker: Worker, producer: Producer, mailbox: Mailbox, hook: Beside) -> None:
        self._worker, self._producer, self._mailbox, self._hook = worker, producer, mailbox, hook
        self._spec = worker.experiment.spec
        self._workload = workload_of(self._spec)
        self._run: HostRun | None = None
        self.points = read_points(worker.workspace / POINTS_FILE)
        """Hook points, as resolved by prepare."""
        self.device = device_for(self._spec.resources.host.gpus, "spec.resources.host.gpus")
        """Device of the model."""
        self.watching = ExitStack()
        """Contexts active during capture: pinned memory and hooks."""

    def load_model(self) -> LoadedModel:
        """Return the model resolved by prepare, in evaluation mode, with its tokenizer.

        Raises:
            ConfigError: the model cannot be loaded.
        """
        resolved = read_resolved(self._worker.workspace / MODEL_FILE)
        return load_model(resolved, self._spec.model.dtype, self.device)

    def watch(
        self, module: torch.nn.Module, plan: HostPlan, root: torch.nn.Module | None = None
    ) -> "HostRun":
        """Attach hooks to the model and report readiness; steps can follow.

        Args:
            module: the model with the modules of the hook points, on its device.
            plan: plan of the run.
            root: module whose forward pass is a step, if it is not `module` itself.

        Raises:
            ValueError: the plan has no number of steps although the workload's row declares it as known.
        """
        if self._workload.steps_known and not plan.steps:
            raise ValueError("the plan has no steps, but contract/workloads.py says that they are known")
        worker = self._worker
        hooker = ActivationHooker(
            module, self.points, self._producer, self._mailbox,
            kinds=[kind for kind in kinds_named(self._spec.capture.kinds) if kind in KINDS_AT_POINTS],
            parameters=wanted_parameters(self._spec.capture, module),
            sampling=self._spec.capture.sampling, seed=plan.seed, root=root, attempt=worker.attempt,
            devices=self._devices(),
        )  # fmt: skip
        self._run = HostRun(worker, hooker, self._mailbox, plan, self._earlier(), self._hook)
        worker.status = self._run.status
        worker.health.ready()
        gc.collect()
        gc.freeze()  # exclude loaded objects from future garbage collections
        self._pin()
        self.watching.enter_context(hooker)
        return self._run

    def _devices(self) -> Devices:
        """Return what captures from accelerators, within the sizes that the spec gives it."""
        capture = self._spec.capture
        batch, length = self._workload.step_shape(self._spec)
        return Devices(
            self._producer.lane,
            rows=batch * length,
            budget=parse_bytes(capture.size),
            quantization=WIRE[capture.quantization],
        )

    def _pin(self) -> None:
        """Make the stream's memory known to the accelerator's driver, where there are both."""
        memory = self._producer.memory
        if memory is None:
            return
        hook = cuda_hook() if self._spec.resources.host.gpus else None
        pinning = self.watching.enter_context(Pinning(memory, hook))
        if pinning.refused:
            log.warning("the capture ring is not pinned by CUDA, copies are slower: %s", pinning.refused)

    def _earlier(self) -> HostProgress:
        """Return the progress of earlier attempts, as far as this attempt resumes from it."""
        if not self._worker.attempt:
            return HostProgress()
        earlier = read_progress(self._worker.output)
        return earlier if self._workload.resumable else HostProgress(attempts=earlier.attempts)

    def end(self) -> None:
        """Write progress and coverage; called by `open_host`."""
        if self._run is not None:
            self._run.end()


class HostRun:
    """One attempt's way through the steps; `Host.watch` makes it.

    Args:
        worker: this process.
        hooker: what captures.
        mailbox: of the capture stream.
        plan: what is known of the run.
        earlier: what earlier attempts have done.
        hook: what passes on what is captured.
    """

    def __init__(  # noqa: PLR0917 - its collaborators
        self,
        worker: Worker,
        hooker: ActivationHooker,
        mailbox: Mailbox,
        plan: HostPlan,
        earlier: HostProgress,
        hook: Beside,
    ) -> None:
        self._hook = hook
        self._worker, self._hooker, self._mailbox, self._plan = worker, hooker, mailbox, plan
        self._earlier = earlier
        self.first = earlier.next_step
        """First step of this attempt."""
        self._tokens_before = _tokens_before(earlier, plan)
        self._seen = Seen(plan.context_length)
        self._beginnings = Beginnings(plan.openers, earlier.sequences, earlier.opened)
        self._last = self.first - 1
        self._skipped: list[int] = []
        self._skipped_count = 0
        self._mark = StepMark(worker.output / MARK_FILE)
        self._repeated = [earlier.repeated_steps, earlier.repeated_tokens]
        self._passes = 0
        self._begun = self._left = self._full = False
        spec = worker.experiment.spec
        self._ranges: FrozenRanges | None = None
        if spec.resources.host.gpus and WIRE[spec.capture.quantization].by_channel:
            self._ranges = FrozenRanges(worker.output / RANGES_FILE, hooker.freeze)
        mailbox.set(CaptureWord.STEPS_TOTAL, plan.steps)
        mailbox.set(CaptureWord.TOKENS_TOTAL, plan.tokens)
        mailbox.set(CaptureWord.STEPS_BEFORE, self.first)
        mailbox.set(CaptureWord.TOKENS_BEFORE, self._tokens_before)

    def steps(self, steps: Iterable[S]) -> Iterator[S]:
        """Yield each step and count it once the model has run it; stops early on a signal."""
        written = time.monotonic()
        self._refresh_ranges()
        for step in steps:
            if self._worker.stop.requested:
                self._left = True
                break
            self._hook.check()
            self._begin(step)
            yield step
            self._book(step)
            if time.monotonic() - written > _PROGRESS_SECONDS:
                self._write_progress()
                self._refresh_ranges()
                written = time.monotonic()

    def _refresh_ranges(self) -> None:
        if self._ranges is not None:
            self._ranges.refresh()

    @property
    def stopping(self) -> bool:
        """Whether a signal asks the run to end."""
        return self._worker.stop.requested

    def pause(self) -> None:
        """Take the hooks off: forward passes from here on, such as an evaluation's, belong to no step."""
        self._hooker.detach()

    def go_on(self) -> None:
        """Put the hooks back."""
        self._hooker.attach()

    def backward(self, backward: BackwardPass) -> None:
        """Set the properties of the backward passes from here on."""
        self._hooker.backward(backward)

    def skipped(self, step: int) -> None:
        """Record a step whose gradients the optimiser did not use; at most 4,096 numbers are kept."""
        self._skipped_count += 1
        if len(self._skipped) < _SKIPPED:
            self._skipped.append(step)

    def _begin(self, step: Steplike) -> None:
        if not self._begun:
            self._begun = True
            self._write_progress()  # record that this attempt has run
        if step.pass_number + 1 > self._passes:
            self._passes = step.pass_number + 1
            self._mailbox.set(CaptureWord.PASS, step.pass_number)
        self._mark.put(step.tokens.step)
        self._hooker.step(step.tokens)

    def _book(self, step: Steplike) -> None:
        tokens = step.tokens
        self._seen.add(tokens, self._hooker.kept)
        self._beginnings.add(tokens.rows["token"].reshape(tokens.batch, tokens.length))
        self._mailbox.set(CaptureWord.SEQUENCES, self._beginnings.sequences)
        self._mailbox.set(CaptureWord.SEQUENCES_OPENED, self._beginnings.opened)
        self._last = tokens.step
        if tokens.step <= self._mark.last:
            self._repeated[0] += 1
            self._repeated[1] += int(tokens.content.sum())
        self._worker.health.beat()

    def status(self) -> dict[str, object]:
        """Return the content of /status."""
        hooker = self._hooker
        return {
            "step": self._last, "steps": self._plan.steps, "passes": self._passes,
            "tokens": hooker.tokens_seen, "rate": hooker.rate, "steps_dropped": hooker.steps_dropped,
            "capture_errors": hooker.errors, "slots": hooker.slots,
        }  # fmt: skip

    def end(self) -> None:
        """Write the progress of the run and the coverage of this attempt."""
        self._write_progress()
        self._mark.close()
        self._write(SEEN_FILE, self._coverage())
        if self._worker.stop.interrupted and self._left:
            self._mailbox.set(CaptureWord.INTERRUPTED, 1)

    def _coverage(self) -> dict[str, object]:
        hooker = self._hooker
        return {
            "attempt": self._worker.attempt,
            "first_step": self.first,
            "steps": hooker.steps,
            "steps_total": self._plan.steps,
            "steps_dropped": hooker.steps_dropped,
            "passes": self._passes,
            "interrupted": self._left,
            **self._plan.corpus,
            "sequences": self._beginnings.sequences,
            "sequences_opened": self._beginnings.opened,
            "tokens": hooker.tokens_seen,
            "tokens_excluded": hooker.tokens_excluded,
            "capture_errors": hooker.errors,
            "steps_skipped": {"count": self._skipped_count, "steps": self._skipped},
            "calls": hooker.calls,
            "capture_seconds": hooker.capture_ns / 1e9,
            "forward_seconds": hooker.forward_ns / 1e9,
            "hook_latency_seconds": {
                f"p{share:g}": hooker.latency.quantile(share / 100) / 1e9 for share in (50, 90, 99, 99.9)
            },
            **self._seen.to_dict(),
        }

    def _write_progress(self) -> None:
        number = self._worker.attempt
        attempts = {**self._earlier.attempts, **({str(number): self._last} if self._begun else {})}
        progress = {
            "attempt": number,
            "step": self._last,
            "attempts": attempts,
            "tokens": self._tokens_before + self._hooker.tokens_seen,
            "sequences": self._beginnings.sequences,
            "opened": self._beginnings.opened,
            "repeated_steps": self._repeated[0],
            "repeated_tokens": self._repeated[1],
        }
        self._write(PROGRESS_FILE, progress)

    def _write(self, name: PurePosixPath, content: dict[str, object]) -> None:
        """Write a file to the output. If the output is full, `spec.output.whenFull` decides what to do.

        Raises:
            OSError: the file cannot be written and the host must stop.
        """
        try:
            write_atomic(self._worker.output / name, json.dumps(content))
        except OSError as error:
            if not is_full(error) or self._worker.experiment.spec.output.when_full == "stop":
                raise
            if not self._full:
                log.warning("%s; spec.output.whenFull lets the model continue", no_room(self._worker.output))
            self._full = True


def _tokens_before(earlier: HostProgress, plan: HostPlan) -> int:
    """Return the content tokens of earlier attempts, estimated from the steps if they were not counted."""
    if not earlier.next_step or earlier.tokens is not None:
        return earlier.tokens or 0
    return plan.tokens * min(earlier.next_step, plan.steps) // max(1, plan.steps)
