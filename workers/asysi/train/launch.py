"""A run from the command line: devices, processes, output folder, report and exit code."""

import json
import logging
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from asysi.contract.errors import ConfigError
from asysi.contract.runtime import Exit

log = logging.getLogger("asysi")
RUN_FILE = "run.json"
"""{config, finished}: the configuration of the run in the folder, and whether it is finished."""
_GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class Launch:
    """The parsed command line."""

    project: Path
    config: str
    settings: Sequence[str]
    devices: Sequence[str]
    """`cpu`, or GPU numbers; one rank each."""
    out: Path
    overwrite: bool = False

    @property
    def command(self) -> str:
        """Command line that repeats the run in the project's folder."""
        words = ["sh", "train.sh", "--gpus", ",".join(self.devices), "--config", self.config]
        for setting in self.settings:
            words += ["--set", setting]
        return shlex.join([*words, "--output", str(self.out)])


def parse_devices(text: str) -> list[str]:
    """Return the devices of `cpu`, `cpu:2` (two processes), or `0,1` (GPUs).

    Raises:
        ConfigError: it is none of these.
    """
    if text == "cpu":
        return ["cpu"]
    if text.startswith("cpu:") and text[4:].isdecimal() and 1 <= int(text[4:]) <= 64:
        return ["cpu"] * int(text[4:])
    numbers = [part.strip() for part in text.split(",")]
    if all(part == "cpu" for part in numbers):
        return numbers
    if not all(part.isdecimal() for part in numbers) or len(set(numbers)) != len(numbers):
        raise ConfigError(f"{text!r} names no devices: write cpu, cpu:2 (two processes), or GPUs such as 0,1")
    return numbers


def launch(asked: Launch) -> int:
    """Run the training in this process, or in one process per device; returns the exit code."""
    prepare_folder(asked)
    if len(asked.devices) == 1 and os.environ.get("WORLD_SIZE", "1") == "1":
        return train(asked, _torch_device(asked.devices[0]))
    if "RANK" in os.environ:  # torchrun, or the loop below
        device = asked.devices[int(os.environ.get("LOCAL_RANK", "0")) % len(asked.devices)]
        return train(asked, _torch_device(device))
    return _spawn(asked)


def measure_baseline(asked: Launch, seeds: Sequence[int]) -> str:
    """Train once per seed and write `baseline.json`; returns a sentence about it.

    Raises:
        ConfigError: a run fails.
    """
    from asysi.train.baseline import write_baseline  # noqa: PLC0415
    from asysi.train.config import load_config  # noqa: PLC0415
    from asysi.train.project import Project  # noqa: PLC0415 - imports torch
    from asysi.train.report import read_report  # noqa: PLC0415

    figures: dict[str, dict[str, float]] = {}
    for seed in seeds:
        out = asked.out / f"seed-{seed}"
        one = replace(asked, settings=[*asked.settings, f"seed={seed}"], out=out)
        code = launch(one)
        if code not in {Exit.OK, Exit.FAILED}:  # failed: an older baseline or a threshold is missed
            raise ConfigError(f"the run with seed {seed} ended with exit code {code}: no baseline is written")
        for name, metric in read_report(out)["metrics"].items():
            figures.setdefault(name, {})[str(seed)] = metric["value"]
    config = load_config(asked.project / asked.config, asked.settings)
    file = asked.project / (config.eval.baseline or "baseline.json")
    data = Project(asked.project, config)
    write_baseline(file, figures, config=config.digest(), test_sha256=data.digest("test"))
    return f"{file}: {', '.join(figures)} over seeds {', '.join(map(str, seeds))}"


def prepare_folder(asked: Launch) -> None:
    """Prepare the folder of the run; an unfinished run in it is continued.

    Raises:
        ConfigError: it holds a finished run.
    """
    if "RANK" in os.environ and os.environ["RANK"] != "0":
        return
    state = _run_state(asked.out)
    if asked.overwrite and state is not None:
        shutil.rmtree(asked.out)
    elif state is not None and state.get("finished"):
        raise ConfigError(
            f"{asked.out} holds a finished run: give --overwrite to replace it, or another --output"
        )
    elif asked.out.exists() and state is None and any(asked.out.iterdir()):
        raise ConfigError(f"{asked.out} exists and is not the folder of a run: give another --output")


def train(asked: Launch, device: str) -> int:
    """Train, evaluate and report; returns the exit code.

    Raises:
        ConfigError: configuration or data cannot be used.
    """
    from asysi.files import write_atomic  # noqa: PLC0415
    from asysi.train import ranks as joining  # noqa: PLC0415
    from asysi.train.callbacks import History  # noqa: PLC0415
    from asysi.train.project import open_project  # noqa: PLC0415 - imports torch
    from asysi.train.report import explain, make_report, print_lines  # noqa: PLC0415
    from asysi.train.tensorboard import TensorBoard  # noqa: PLC0415
    from asysi.train.trainer import Stopped, SupervisedTrainer  # noqa: PLC0415

    project = open_project(asked.project, asked.config, asked.settings)
    ranks = joining.join(device)
    try:
        if ranks.first:
            project.make_data()
        ranks.least(0)  # the others wait for the tables
        callbacks = [History(), *([TensorBoard()] if project.config.tensorboard else [])]
        trainer = SupervisedTrainer(project, asked.out, device=device, ranks=ranks, callbacks=callbacks)
        if ranks.first:
            write_atomic(
                asked.out / RUN_FILE, json.dumps({"config": project.config.digest(), "finished": False})
            )
        trainer.stop_on_signals()
        began = time.monotonic()
        try:
            trainer.fit()
        except Stopped as stopped:
            log.info("stopped in step %d; the same command continues", trainer.step)
            return stopped.code
        if not ranks.first:
            return Exit.OK
        known = {
            "steps": trainer.step, "epochs": trainer.epoch, "ranks": ranks.world, "device": device,
            "seconds_of_this_process": round(time.monotonic() - began, 1),
            "microbatch": trainer.microbatch, "out_of_memory": trainer.out_of_memory,
            "train_rows": trainer.train_loader.dataset.dropped.rows,
            "train_dropped": trainer.train_loader.dataset.dropped.reasons,
        }  # fmt: skip
        report = make_report(project, asked.out, asked.command, known, trainer.history)
        write_atomic(asked.out / RUN_FILE, json.dumps({"config": project.config.digest(), "finished": True}))
        print_lines([*explain(report), f"report: {asked.out / 'report.html'}"])
        return Exit.OK if report["passed"] else Exit.FAILED
    except ValueError as error:
        raise ConfigError(str(error)) from error
    finally:
        joining.leave(ranks)


def _torch_device(name: str) -> str:
    """Return the torch name of a device.

    Raises:
        ConfigError: there is no such GPU.
    """
    if name == "cpu":
        return "cpu"
    import torch  # noqa: PLC0415 - heavy

    count = torch.cuda.device_count()
    if int(name) >= count:
        raise ConfigError(f"there is no GPU {name}: this machine has {count}; take cpu")
    torch.cuda.set_device(int(name))
    return f"cuda:{name}"


def _run_state(out: Path) -> dict[str, object] | None:
    try:
        found = json.loads((out / RUN_FILE).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _spawn(asked: Launch) -> int:
    """Run one process per device; if one fails, stop the others. Returns the first non-zero exit code."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--config", asked.config, "--output", str(asked.out), "--project", str(asked.project)]
    for setting in asked.settings:
        words += ["--set", setting]
    command = [sys.executable, "-m", "asysi.cli", "train", "run", "--gpus", ",".join(asked.devices), *words]
    common = {"WORLD_SIZE": str(len(asked.devices)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(  # noqa: S603 - our own command line
            command, env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(len(asked.devices))
    ]

    def forward(number: int, _frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)
    return _wait(processes)


def _wait(processes: "list[subprocess.Popen[bytes]]") -> int:
    while all(process.poll() in {None, 0} for process in processes):
        if all(process.poll() == 0 for process in processes):
            return Exit.OK
        time.sleep(0.1)
    deadline = time.monotonic() + _GRACE_SECONDS
    failed = next(process.returncode for process in processes if process.returncode)
    if failed not in {Exit.TERMINATED, Exit.INTERRUPTED, Exit.FAILED, Exit.CONFIG}:
        log.error("a rank ended with %d: the others are ended too", failed)
    for process in processes:
        if failed not in {Exit.TERMINATED, Exit.INTERRUPTED}:
            process.terminate()
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return failed if failed > 0 else Exit.FAILED
