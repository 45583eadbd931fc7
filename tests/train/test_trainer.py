"""The training loop: what interruptions, memory, ranks and precision may and may not change."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asysi.contract.errors import ConfigError
from asysi.contract.runtime import Exit
from asysi.train.callbacks import Callback, TrainingRun
from asysi.train.checkpoint import LAST
from asysi.train.project import Project
from asysi.train.trainer import Stopped, SupervisedTrainer

KILLS = int(os.environ.get("ASYSI_TRAIN_KILLS", "3"))
"""Points at which a run is killed; `make kill-train` takes 20."""
Opened = Callable[..., Project]


def fitted(project: Project, out: Path, *callbacks: Callback) -> SupervisedTrainer:
    """Return a trainer after its run."""
    trainer = SupervisedTrainer(project, out, callbacks=callbacks)
    trainer.fit()
    return trainer


def same(first: Path, second: Path) -> bool:
    """Return whether two runs ended with bit-identical weights."""
    left, right = load_file(first / LAST), load_file(second / LAST)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class StopAt(Callback):
    """Asks for the end after some steps, as a signal does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: TrainingRun, loss: float) -> None:
        if trainer.step == self.step:
            trainer.stop = int(Exit.TERMINATED)


class RunOutOfMemory(Callback):
    """Raises as an allocator does, once in each of some steps, in the middle of a step's forward passes."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = set(steps)

    def on_forward(self, trainer: TrainingRun, indices: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
        random.random()
        torch.rand(1)
        if trainer.step in self.steps:
            self.steps.remove(trainer.step)
            raise torch.OutOfMemoryError("injected: out of memory")


class Shrink(Callback):
    """Halves the microbatch before some steps, without running out of memory."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps

    def on_step_begin(self, trainer: TrainingRun) -> None:
        if trainer.step in self.steps:
            trainer.microbatch //= 2

    def on_forward(self, trainer: TrainingRun, indices: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
        random.random()
        torch.rand(1)


EVERYTHING = [
    "train.ema_decay=0.9",
    "train.clip_norm=1.0",
    "train.microbatch=5",
    "train.schedule.warmup_steps=4",
    "data.mixup={_target_: train.augmentation.MixUp, alpha: 0.4}",
    "data.augmentation={_target_: train.augmentation.RandAugment, num_ops: 2, magnitude: 9}",
]


@pytest.mark.parametrize("step", [1, 6, 7, 11])
def test_a_stopped_run_resumes_bit_identically(
    project: Opened, tiny: list[str], tmp_path: Path, step: int
) -> None:
    """A run that SIGTERM stops in any step, the end of an epoch included, ends with the same bits."""
    one = project(*tiny, *EVERYTHING)
    fitted(one, tmp_path / "whole")
    with pytest.raises(Stopped) as stopped:
        fitted(one, tmp_path / "parts", StopAt(step))
    assert stopped.value.code == 143
    resumed = fitted(one, tmp_path / "parts")
    assert resumed.step == 12
    assert same(tmp_path / "whole", tmp_path / "parts")
    assert json.dumps(resumed.history)


def test_fp16_and_its_scaler_resume_bit_identically(project: Opened, tiny: list[str], tmp_path: Path) -> None:
    """The loss scale is part of a checkpoint: it starts too high here, so that steps are skipped."""
    one = project(*tiny, "train.amp=fp16")
    fitted(one, tmp_path / "whole")
    with pytest.raises(Stopped):
        fitted(one, tmp_path / "parts", StopAt(5))
    resumed = fitted(one, tmp_path / "parts")
    assert same(tmp_path / "whole", tmp_path / "parts")
    assert resumed.scaler.get_scale() > 0


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_lower_precision_trains(project: Opened, tiny: list[str], tmp_path: Path, amp: str) -> None:
    """Under autocast the loss falls, and the weights stay float32."""
    trainer = fitted(project(*tiny, f"train.amp={amp}", "train.epochs=4"), tmp_path / "run")
    assert trainer.history[-1]["loss"] < 0.8 * trainer.history[0]["loss"]
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def test_out_of_memory_changes_nothing_but_the_microbatch(
    project: Opened, tiny: list[str], tmp_path: Path
) -> None:
    """Where memory runs out the step is repeated as if the microbatch had been smaller from its beginning."""
    one = project(*tiny, *EVERYTHING, "train.microbatch=16")
    steps = set(random.Random(0).sample(range(12), 3))
    injected = fitted(one, tmp_path / "injected", RunOutOfMemory(steps))
    switched = fitted(one, tmp_path / "switched", Shrink(steps))
    assert (injected.out_of_memory, injected.microbatch, switched.microbatch) == (3, 2, 2)
    assert same(tmp_path / "injected", tmp_path / "switched")


def test_out_of_memory_costs_only_rounding(project: Opened, tiny: list[str], tmp_path: Path) -> None:
    """Beside a run that began with the small microbatch the weights differ by rounding: 1e-4 at most."""
    fitted(project(*tiny, "train.microbatch=16"), tmp_path / "injected", RunOutOfMemory({0, 3}))
    fitted(project(*tiny, "train.microbatch=4"), tmp_path / "small")
    left, right = load_file(tmp_path / "injected" / LAST), load_file(tmp_path / "small" / LAST)
    assert max(float((left[name] - right[name]).abs().max()) for name in left) < 1e-4


def test_a_smaller_microbatch_is_kept_by_the_checkpoint(
    project: Opened, tiny: list[str], tmp_path: Path
) -> None:
    """A resumed run does not try the microbatch again that ran out of memory."""
    one = project(*tiny)
    with pytest.raises(Stopped):
        fitted(one, tmp_path / "run", RunOutOfMemory({2}), StopAt(4))
    resumed = SupervisedTrainer(one, tmp_path / "run")
    assert resumed.microbatch == 16
    resumed.resume()
    assert (resumed.microbatch, resumed.out_of_memory) == (8, 1)


def test_a_single_sample_that_does_not_fit_is_an_error(
    project: Opened, tiny: list[str], tmp_path: Path
) -> None:
    """With a microbatch of one there is nothing left to halve: the error is raised."""

    class Always(Callback):
        def on_forward(
            self, trainer: TrainingRun, indices: torch.Tensor, batch: dict[str, torch.Tensor]
        ) -> None:
            raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        fitted(project(*tiny), tmp_path / "run", Always())


def test_an_error_that_is_not_memory_is_raised(project: Opened, tiny: list[str], tmp_path: Path) -> None:
    """Only what says that memory ran out is repeated."""

    class Broken(Callback):
        def on_forward(
            self, trainer: TrainingRun, indices: torch.Tensor, batch: dict[str, torch.Tensor]
        ) -> None:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        fitted(project(*tiny), tmp_path / "run", Broken())


def test_the_cache_changes_no_batch(project: Opened, tiny: list[str], tmp_path: Path) -> None:
    """With the cache, without it, with one that is full, and with worker processes, weights are the same."""
    augment = "data.augmentation={_target_: train.augmentation.RandAugment}"
    for name, settings in {
        "cached": ["data.cache_mb=64"],
        "read": ["data.cache_mb=0"],
        "workers": ["data.cache_mb=0", "data.workers=1"],
    }.items():
        fitted(project(*tiny, augment, "train.epochs=1", *settings), tmp_path / name)
    assert same(tmp_path / "cached", tmp_path / "read")
    assert same(tmp_path / "cached", tmp_path / "workers")


def test_seeds_differ_and_repeat(project: Opened, tiny: list[str], tmp_path: Path) -> None:
    """The same seed gives the same bits, another seed others."""
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        fitted(project(*tiny, f"seed={seed}", "train.epochs=1"), tmp_path / name)
    assert same(tmp_path / "first", tmp_path / "again")
    assert not same(tmp_path / "first", tmp_path / "other")


def test_the_average_of_the_weights_is_what_is_evaluated(
    project: Opened, tiny: list[str], tmp_path: Path
) -> None:
    """With ema_decay the saved weights are the moving average, computed by hand here."""
    seen: list[dict[str, torch.Tensor]] = []

    class Keep(Callback):
        def on_step_end(self, trainer: TrainingRun, loss: float) -> None:
            seen.append({name: value.clone() for name, value in trainer.model.state_dict().items()})

    fitted(project(*tiny, "train.ema_decay=0.75", "train.epochs=1"), tmp_path / "run", Keep())
    average = seen[0]["fc2.weight"]
    for weights in seen[1:]:
        average = 0.75 * average + 0.25 * weights["fc2.weight"]
    torch.testing.assert_close(load_file(tmp_path / "run" / LAST)["fc2.weight"], average)


def test_early_stopping_ends_a_run_that_does_not_improve(
    project: Opened, tiny: list[str], tmp_path: Path
) -> None:
    """After `patience` epochs without improvement the run ends."""
    settings = ["train.early_stopping.patience=2", "optimizer.lr=0.0", "train.epochs=50"]
    trainer = fitted(project(*tiny, *settings), tmp_path / "run")
    assert trainer.epoch == 3
    assert trainer.stale == 2


def test_gradients_are_clipped(project: Opened, tiny: list[str], tmp_path: Path) -> None:
    """With clip_norm no step applies gradients of a greater norm."""
    norms: list[float] = []

    class Norm(Callback):
        def on_step_end(self, trainer: TrainingRun, loss: float) -> None:
            grads = [p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]
            norms.append(float(torch.stack(grads).norm()))

    fitted(project(*tiny, "train.clip_norm=0.01", "train.epochs=1"), tmp_path / "run", Norm())
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


def test_debug_reads_little_and_ends_soon(project: Opened, tiny: list[str], tmp_path: Path) -> None:
    """The debug flag reads at most 64 rows and runs two epochs."""
    trainer = fitted(project(*tiny, "debug=true", "train.epochs=40"), tmp_path / "run")
    assert (len(trainer.train_loader.dataset), trainer.epoch) == (64, 2)


def test_a_checkpoint_of_another_configuration_is_refused(
    project: Opened, tiny: list[str], tmp_path: Path
) -> None:
    """An unfinished run is not continued with other settings, and a damaged checkpoint is named."""
    with pytest.raises(Stopped):
        fitted(project(*tiny), tmp_path / "run", StopAt(2))
    with pytest.raises(ConfigError, match="another configuration"):
        fitted(project(*tiny, "optimizer.lr=0.1"), tmp_path / "run")
    (tmp_path / "run/checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"checkpoint\.pt is damaged"):
        fitted(project(*tiny), tmp_path / "run")


def test_evaluation_does_not_disturb_the_run(project: Opened, tiny: list[str], tmp_path: Path) -> None:
    """What an evaluation draws is given back: more validation rows change no weight."""
    fitted(project(*tiny), tmp_path / "first")
    fitted(project(*tiny, tiny[0].replace("data.train", "data.val")), tmp_path / "second")
    assert same(tmp_path / "first", tmp_path / "second")


def run_command(digits: Path, out: Path, *settings: str, devices: str = "cpu") -> list[str]:
    """Return the command of a run as a process."""
    words = [word for setting in settings for word in ("--set", setting)]
    return [
        *(sys.executable, "-m", "asysi.cli", "train", "run", devices, "--project", str(digits)),
        *("--output", str(out), *words),
    ]


def test_a_killed_run_ends_with_the_same_bits(
    digits: Path, project: Opened, tiny: list[str], tmp_path: Path
) -> None:
    """kill -9 at any moment: the same command continues, and the last weights are bit-identical."""
    from .conftest import FAST

    longer = [*tiny, *EVERYTHING, "train.checkpoint_steps=1", f"train.epochs={3 + KILLS}"]
    settings = [*FAST, *longer]
    fitted(project(*longer), tmp_path / "whole")
    out, draws = tmp_path / "killed", random.Random(1)
    for _ in range(KILLS):
        process = subprocess.Popen(run_command(digits, out, *settings), stderr=subprocess.DEVNULL)
        before = _bytes_of(out / "checkpoint.pt")
        deadline = time.monotonic() + 60
        while _bytes_of(out / "checkpoint.pt") == before and time.monotonic() < deadline:
            if process.poll() is not None:
                break
            time.sleep(0.002)
        time.sleep(draws.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(run_command(digits, out, *settings), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stderr
    assert same(tmp_path / "whole", out)


def _bytes_of(file: Path) -> bytes:
    try:
        return file.stat().st_mtime_ns.to_bytes(16, "little")
    except OSError:
        return b""


def test_sigterm_is_exit_143_and_continues(digits: Path, tiny: list[str], tmp_path: Path) -> None:
    """SIGTERM ends the run after its step with a checkpoint and exit code 143."""
    from .conftest import FAST

    settings = [*FAST, *tiny, "train.epochs=10000", "train.checkpoint_steps=1"]
    out = tmp_path / "run"
    process = subprocess.Popen(run_command(digits, out, *settings), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (out / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "the same command continues" in said


def test_two_ranks_equal_one(digits: Path, project: Opened, tiny: list[str], tmp_path: Path) -> None:
    """Two processes over gloo end with the weights of one that has the same global batch: within 1e-5."""
    from .conftest import FAST

    settings = [*tiny, "train.microbatch=4", "train.batch_size=15"]
    fitted(project(*settings), tmp_path / "one")
    command = run_command(digits, tmp_path / "two", *FAST, *settings, devices="cpu:2")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "two/report.json").read_text())
    assert report["training"]["ranks"] == 2
    left, right = load_file(tmp_path / "one" / LAST), load_file(tmp_path / "two" / LAST)
    assert max(float((left[name] - right[name]).abs().max()) for name in left) < 1e-5
