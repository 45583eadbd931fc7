"""`asysi sae train`: an archive trains the SAEs of the live run, bit for bit, also after kill -9."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.finish.test_replay import POINTS, STEPS, WIDTH, packet
from typer.testing import CliRunner

from asysi.archive.measure import measure
from asysi.archive.writer import MScanWriter, SeqInfo
from asysi.contract.errors import ConfigError
from asysi.contract.spec import SaeTrain
from asysi.finish.sae_train import app
from asysi.sae.denormals import flushed_denormals
from asysi.sae.export import WEIGHTS_FILE, folder_of
from asysi.sae.results import write_results
from asysi.sae.trainer import Trainer

ENTRIES = [
    {"name": name, "variant": variant, "latents": 64, "k": 4, "batch": 64, "checkpointSeconds": 1,
     "buffer": {"batches": 2, "sequences": 8, "memory": "1Mi"}}
    for name, variant in (("main", "topk"), ("batch", "batchtopk"))
]  # fmt: skip
SPEC = {
    "model": {"uri": "file:///model"},
    "data": {"uri": "jsonl:///text.jsonl", "tokens": {"maxNormMultiple": 3.0}},
    "workload": {"scan": {}},
    "capture": {"hookPoints": ["layer.*"]},
    "sae": {"cpus": 1, "train": ENTRIES},
}


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A run's output: its archive, and what its trainers left, one of which was replaced in the middle."""
    output = tmp_path_factory.mktemp("run")
    (output / "archive").mkdir()
    torch.set_num_threads(1)
    about = {"experiment": "live", "spec": SPEC}
    with (
        flushed_denormals(),
        torch.inference_mode(),
        MScanWriter(output / "archive" / "attempt-0000-segment-0000.mscan", about) as writer,
    ):
        trainers = [_trainer(output, entry) for entry in ENTRIES]
        for step in range(STEPS):
            for number, point in enumerate(POINTS):
                one = packet(2 * step + number, point, step)
                writer.append_records(measure(one), SeqInfo(point, one.shard, step, step, WIDTH))
                writer.append_tensor(one, one.shard)
                for trainer in trainers:
                    trainer.receive(one, POINTS, STEPS, one.shard)
            if step == 30:
                trainers[0].save(0)
                trainers[0] = _trainer(output, ENTRIES[0])
                trainers[0].load(0)
        for trainer in trainers:
            trainer.end()
            while trainer.train():
                pass
            for training in trainer.trainings.values():
                training.conclude()
            write_results(trainer, output / "sae", 0, lambda *_: {})
    return output


def _trainer(output, entry):
    config = SaeTrain.model_validate(entry)
    return Trainer(config, output / "unused" / f"{config.name}.ckpt", 3.0)


def run(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def weights(output):
    """Return the bytes of every exported SAE, by trainer and hook point."""
    return {
        (entry["name"], point): (folder_of(output / "sae" / entry["name"], point) / WEIGHTS_FILE).read_bytes()
        for entry in ENTRIES
        for point in POINTS
    }


def test_live_equals_offline(live, tmp_path):
    """Without settings those of the run are used, and every SAE has the same bytes and the same metrics."""
    done = run(live, "-o", tmp_path)
    assert done.exit_code == 0, done.output
    assert "batch layer.1: FVU" in done.output
    assert weights(tmp_path) == weights(live)
    for name in ("main", "batch"):
        one, other = (
            json.loads((at / "sae" / name / "training.json").read_text()) for at in (live, tmp_path)
        )
        assert one == other
    metadata = json.loads((folder_of(tmp_path / "sae" / "main", POINTS[0]) / "cfg.json").read_text())[
        "metadata"
    ]
    assert metadata["hook_name"] == POINTS[0]


_KILLED = """
import itertools, os, signal, sys
from asysi.finish import sae_train
from asysi.sae.trainer import Trainer

clock, received, receive = itertools.count(0, 0.05), itertools.count(), Trainer.receive
sae_train.monotonic = lambda: next(clock)  # a checkpoint every 20 packets

def receive_or_die(self, *arguments):
    if next(received) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    receive(self, *arguments)

Trainer.receive = receive_or_die
sae_train.app(["train", *sys.argv[2:]])
"""


def test_kill_9_changes_nothing(live, tmp_path):
    """Killed between two checkpoints and repeated, the command ends with the same bytes."""
    command = [sys.executable, "-c", _KILLED, "130", live, "-o", tmp_path]
    killed = subprocess.run(command, env=os.environ, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "checkpoints" / "main.ckpt").exists()
    assert not (tmp_path / "sae").exists()
    assert run(live, "-o", tmp_path).exit_code == 0
    assert weights(tmp_path) == weights(live)
    assert run(live, "-o", tmp_path).exit_code == 0  # what has ended is only written again
    assert weights(tmp_path) == weights(live)


def test_other_settings_come_from_a_file(live, tmp_path):
    """`--config` and `--set` train something else; other settings in the same folder are refused."""
    file = tmp_path / "sae.yaml"
    file.write_text("{name: wide, latents: 96, k: 3, batch: 64, buffer: {batches: 2, sequences: 8}}")
    done = run(live, "-o", tmp_path, "--config", file, "--set", "k=5", "--set", "hookPoints=[layer.1]")
    assert done.exit_code == 0, done.output
    config = json.loads((folder_of(tmp_path / "sae" / "wide", "layer.1") / "cfg.json").read_text())
    assert (config["k"], config["d_sae"]) == (5, 96)
    assert not folder_of(tmp_path / "sae" / "wide", "layer.0").exists()
    again = run(live, "-o", tmp_path, "--config", file, "--set", "k=6")
    assert isinstance(again.exception, ConfigError)
    assert "other settings (k)" in str(again.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "latent=8"], "latent"),
        (["--set", "latents"], "KEY=VALUE"),
        (["--set", "hookPoints=[layer.7]"], "layer.7"),
        (["--set", "name=same"], "name is 'same' for 2 trainers: give each its own"),
        (["--set", "k=65"], "trainer batch: k is 65, but the trainer has only 64 latents"),
        (["--set", "matryoshka.widths=[32, 16]"], "matryoshka.widths is [32, 16]: give ascending"),
        (
            ["--set", "grid={k: [1, 2, 3, 4, 5], seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]}"],
            "grid has 65 combinations, more than 64",
        ),
        (["--config", "/nowhere.yaml"], "cannot be read"),
    ],
)
def test_mistakes_are_named(live, tmp_path, arguments, said):
    """A mistake in the settings is an error that names it."""
    done = run(live, "-o", tmp_path, *arguments)
    assert isinstance(done.exception, ConfigError)
    assert said in str(done.exception)


def test_autoencoders_of_grids_have_names_of_their_own(live, tmp_path):
    """A member of a grid that would be written over another trainer's autoencoder is refused by name."""
    file = tmp_path / "sae.yaml"
    file.write_text("[{name: a, grid: {k: [32]}}, {name: a-k32}]")
    done = run(live, "-o", tmp_path / "out", "--config", file)
    assert isinstance(done.exception, ConfigError)
    assert "trainer a: name gives an autoencoder the name 'a-k32'" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_what_is_no_archive_is_named(tmp_path):
    """A folder without segments is a mistake of the user."""
    done = run(tmp_path, "-o", tmp_path / "out")
    assert isinstance(done.exception, ConfigError)
    assert Path(tmp_path).name in str(done.exception)
