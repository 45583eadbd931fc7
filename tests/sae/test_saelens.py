"""What we export, SAELens loads and reads alike; needs a Python that has sae-lens."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from asysi.contract.spec import SaeTrain, ScanExperiment
from asysi.contract.variants import VARIANTS
from asysi.sae.export import export, metadata_of
from asysi.sae.variants import variant

ROOT = Path(__file__).parents[2]
CHECK = ROOT / "benchmarks" / "sae_quality" / "compatibility.py"


@pytest.fixture(scope="module")
def saelens(lacking) -> Path:
    """Return a Python that has sae-lens: ASYSI_SAELENS_PYTHON, or the one that `make peers` makes."""
    python = Path(os.environ.get("ASYSI_SAELENS_PYTHON", ROOT / ".venv-sae" / "bin" / "python"))
    if not python.exists():
        lacking(f"{python} is missing: `make peers` makes .venv-sae/bin/python, with sae-lens")
    return python


def _export(folder, minimal, name, seed):
    generator = torch.Generator().manual_seed(seed)
    entry = SaeTrain.model_validate(
        {"variant": name, "latents": 96, "k": 6, "jumprelu": {"initThreshold": 0.4}}
    )
    sae = variant(name).from_spec(entry, 24, 24)
    sae.initialise(torch.randn(24, generator=generator), torch.randn(96, 24, generator=generator))
    for bias in (*sae.biases, *sae.factors):
        getattr(sae, bias).add_(torch.randn(96, generator=generator) / 10)
    for tensor in sae.state.values():
        tensor.fill_(0.5)
    metadata = metadata_of(ScanExperiment.model_validate(minimal()), {}, "layer.0", None, {"fvu": 0.1})
    export(folder, sae.frozen(0.3, 0.3), metadata)


def _check(folder, saelens):
    command = [sys.executable, CHECK, folder, "--saelens-python", saelens]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


def test_saelens_encodes_identically(tmp_path, minimal, saelens):
    """SAELens loads the exports of every variant, and its latents and reconstructions are ours to 1e-5."""
    for name in VARIANTS:
        for seed in (0, 1):
            _export(tmp_path / name / f"layer.{seed}", minimal, name, seed)
    done = _check(tmp_path, saelens)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = re.findall(r"^\S+: (.*), latents", done.stdout, re.MULTILINE)
    assert Counter(kinds) == {"topk, k 6": 2, "jumprelu": 6, "gated": 2, "standard": 2}
    left_out = [int(number) for number in re.findall(r"(\d+) of 2048 rows too close", done.stdout)]
    assert max(left_out) < 512


def test_the_check_can_fail(tmp_path, saelens):
    """A folder without SAEs is an error, not a success."""
    done = _check(tmp_path, saelens)
    assert done.returncode == 1
    assert "no SAE below" in done.stderr
