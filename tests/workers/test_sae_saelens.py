"""What we export, SAELens loads and reads alike; needs a Python that has sae-lens."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asysi.contract.spec import ScanExperiment
from asysi.sae.export import export, metadata_of
from asysi.sae.model import SparseAutoencoder
from asysi.sae.normalisation import fold

CHECK = Path(__file__).parents[2] / "benchmarks" / "sae_quality" / "compatibility.py"
PYTHON = os.environ.get("ASYSI_SAELENS_PYTHON")

pytestmark = pytest.mark.skipif(
    not PYTHON,
    reason="needs ASYSI_SAELENS_PYTHON, a Python with sae-lens: `make peers` makes .venv-sae/bin/python",
)


def _export(folder, minimal, seed):
    generator = torch.Generator().manual_seed(seed)
    sae = SparseAutoencoder(24, 96, 6)
    sae.initialise(torch.randn(24, generator=generator), torch.randn(96, 24, generator=generator))
    sae.b_enc.copy_(torch.randn(96, generator=generator) / 10)
    metadata = metadata_of(ScanExperiment.model_validate(minimal()), {}, "layer.0", None, {"fvu": 0.1})
    export(folder, fold(sae, 0.3), metadata)


def _check(folder):
    return subprocess.run(
        [sys.executable, CHECK, folder], capture_output=True, text=True, check=False, timeout=200
    )


def test_saelens_encodes_identically(tmp_path, minimal):
    """SAELens loads the folders, and its latents and reconstructions are ours to 1e-5."""
    for seed in (0, 1):
        _export(tmp_path / "topk" / f"layer.{seed}", minimal, seed)
    done = _check(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("topk, k 6") == 2


def test_the_check_can_fail(tmp_path):
    """A folder without SAEs is an error, not a success."""
    done = _check(tmp_path)
    assert done.returncode == 1
    assert "no SAE below" in done.stderr
