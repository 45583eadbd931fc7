"""An archive replayed by a trainer's packet log gives the same autoencoders, bit for bit, or a refusal."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.packets import as_bfloat16, packet_of, rows_of
from typer.testing import CliRunner

from asysi.archive.measure import measure
from asysi.archive.writer import MScanWriter, SeqInfo
from asysi.bus.packet import RowFlag
from asysi.contract.errors import ConfigError
from asysi.contract.spec import SaeTrain
from asysi.finish.replay import app
from asysi.sae.denormals import flushed_denormals
from asysi.sae.export import WEIGHTS_FILE, export, folder_of
from asysi.sae.trainer import Trainer

POINTS = ("layer.0", "layer.1")
WIDTH, ROWS, STEPS = 16, 32, 60


def packet(sequence, point, step):
    generator = np.random.default_rng([step, *point.encode()])
    values = generator.standard_normal((ROWS, WIDTH)).astype(np.float32)
    rows = rows_of(ROWS, sample=np.arange(ROWS) + ROWS * step, sequence=np.arange(ROWS) // 4)
    rows["flags"][::8] = RowFlag.HOLDOUT
    one = packet_of(as_bfloat16(values), sequence, point, rows=rows, step=step)
    return replace(one, shard=POINTS.index(point))


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A run's output: its archive, the checkpoint of its trainer, and the exported SAEs."""
    output = tmp_path_factory.mktemp("run")
    (output / "archive").mkdir()
    (output / "checkpoints").mkdir()
    config = SaeTrain.model_validate(
        {
            "name": "main",
            "latents": 64,
            "k": 4,
            "batch": 64,
            "buffer": {"batches": 2, "sequences": 8, "memory": "1Mi"},
        }
    )
    spec = {"data": {"uri": "memory://", "tokens": {"maxNormMultiple": 3.0}}, "sae": {"cpus": 1}}
    torch.set_num_threads(1)
    with (
        flushed_denormals(),
        torch.inference_mode(),
        MScanWriter(output / "archive" / "attempt-0000-segment-0000.mscan", {"spec": spec}) as writer,
    ):
        trainer = Trainer(config, output / "checkpoints" / "main.ckpt", 3.0)
        for step in range(STEPS):
            for point in POINTS:
                one = packet(step, point, step)
                writer.append_records(measure(one), SeqInfo(point, one.shard, step, step, WIDTH))
                writer.append_tensor(one, one.shard)
                trainer.receive(one, POINTS, STEPS, one.shard)
                if step == 30:
                    trainer.save(0)  # a checkpoint in the middle changes nothing
        trainer.save(0)
        trainer.end()
        while trainer.train():
            pass
        for point, training in trainer.trainings.items():
            assert training.counts.trained > 500
            scale = training.progress.scale
            export(folder_of(output / "sae" / "main", point), training.sae.frozen(scale, scale), {})
    return output


def run(*arguments):
    return CliRunner().invoke(app, ["replay", *map(str, arguments)])


@pytest.fixture
def copy(live, tmp_path):
    """A run that a test may damage."""
    import shutil

    shutil.copytree(live, tmp_path / "run")
    return tmp_path / "run"


def test_bit_for_bit(live):
    """The replay ends in the checkpoint's tensors and in the exported SAEs, and exits with 0."""
    done = run(live)
    assert done.exit_code == 0, done.output
    assert "120 packets, 3,840 rows, 2 hook points: bit for bit the same" in done.output


def test_missing_packets_are_counted(copy):
    """An archive that lacks packets of the log is refused with their number, and exits with 1."""
    path = copy / "archive" / "attempt-0000-segment-0000.mscan"
    path.unlink()
    with MScanWriter(path, {}) as writer:
        for step in range(STEPS - 7):
            for point in POINTS:
                one = packet(step, point, step)
                writer.append_tensor(one, one.shard)
    done = run(copy)
    assert done.exit_code == 1
    assert "14 of the 120 packets that main consumed are not archived" in done.output
    assert "attempt 0, shard 0, sequence 53" in done.output


def test_another_bit_is_seen(copy):
    """One bit of one row differs from what was trained on: the replay names what came out differently."""
    path = copy / "archive" / "attempt-0000-segment-0000.mscan"
    metadata = json.loads(json.dumps({"spec": {"data": {"tokens": {"maxNormMultiple": 3.0}}}}))
    path.unlink()
    with MScanWriter(path, metadata) as writer:
        for step in range(STEPS):
            for point in POINTS:
                one = packet(step, point, step)
                if (step, point) == (20, "layer.1"):
                    one.payload[3, 5] ^= 1
                writer.append_tensor(one, one.shard)
    done = run(copy)
    assert done.exit_code == 1
    assert "layer.1/parameters differs" in done.output
    assert "layer.0/parameters" not in done.output


def test_another_export_is_seen(copy):
    """An exported SAE that is not the one that was trained is named."""
    from safetensors.torch import load_file

    file = folder_of(copy / "sae" / "main", "layer.0") / WEIGHTS_FILE
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] += 1
    save_file(tensors, file)
    done = run(copy)
    assert done.exit_code == 1
    assert f"{name} differs" in done.output.replace("\n", "")


def test_no_checkpoint(tmp_path):
    """A folder without checkpoints is a mistake of the user, said in a sentence."""
    done = run(tmp_path)
    assert isinstance(done.exception, ConfigError)
    assert "no checkpoint" in str(done.exception)
