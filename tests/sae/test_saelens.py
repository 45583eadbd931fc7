"""What we export, SAELens loads and reads alike; needs a Python that has sae-lens."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asysi.contract.spec import ScanExperiment
from asysi.sae.export import export, metadata_of
from asysi.sae.variants.topk import TopK

ROOT = Path(__file__).parents[2]
CHECK = ROOT / "benchmarks" / "sae_quality" / "compatibility.py"


@pytest.fixture(scope="module")
def saelens(lacking) -> Path:
    """Return a Python that has sae-lens: ASYSI_SAELENS_PYTHON, or the one that `make peers` makes."""
    python = Path(os.environ.get("ASYSI_SAELENS_PYTHON", ROOT / ".venv-sae" / "bin" / "python"))
    if not python.exists():
        lacking(f"{python} is missing: `make peers` makes .venv-sae/bin/python, with sae-lens")
    return python


def _export(folder, minimal, seed):
    generator = torch.Generator().manual_seed(seed)
    sae = TopK(24, 96, 6)
    sae.initialise(torch.randn(24, generator=generator), torch.randn(96, 24, generator=generator))
    sae.b_enc.copy_(torch.randn(96, generator=generator) / 10)
    metadata = metadata_of(ScanExperiment.model_validate(minimal()), {}, "layer.0", None, {"fvu": 0.1})
    export(folder, sae.frozen(0.3, 0.3), metadata)


def _check(folder, saelens):
    command = [sys.executable, CHECK, folder, "--saelens-python", saelens]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


def test_saelens_encodes_identically(tmp_path, minimal, saelens):
    """SAELens loads the folders, and its latents and reconstructions are ours to 1e-5."""
    for seed in (0, 1):
        _export(tmp_path / "topk" / f"layer.{seed}", minimal, seed)
    done = _check(tmp_path, saelens)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("topk, k 6") == 2


def test_the_check_can_fail(tmp_path, saelens):
    """A folder without SAEs is an error, not a success."""
    done = _check(tmp_path, saelens)
    assert done.returncode == 1
    assert "no SAE below" in done.stderr
