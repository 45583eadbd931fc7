"""Checks that sae-lens loads exported SAEs and encodes with them as asysi does.

    python benchmarks/sae_quality/compatibility.py runs/minilm/sae --saelens-python .venv-sae/bin/python

Takes folders with one SAE each, or parent folders. Rows are noisy sums of an SAE's own decoder directions.
Rows for which it is undefined in float32 whether a latent fires are left out and counted: the k-th and
(k+1)-th latents before TopK differ by less than 1e-4, or a preactivation is within 2e-5 of the threshold or
gate at which a latent jumps. Exit code 0 if no latent and no element of a reconstruction differs by
more than 1e-5 of the largest one (or of 1, if all are smaller), otherwise 1.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from asysi.contract.errors import ConfigError
from asysi.sae.export import CONFIG_FILE, load
from asysi.sae.variants.affine import AffineAutoencoder
from asysi.sae.variants.gated import Gated
from asysi.sae.variants.jumprelu import JumpReLU
from asysi.sae.variants.topk import TopK

PEER = Path(__file__).with_name("peer.py")
AIM = 1e-5
TIE = 1e-4
JUMP = 2e-5
ROWS = 2048


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    given = os.environ.get("ASYSI_SAELENS_PYTHON")
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--saelens-python", default=given, required=given is None, help="has sae-lens")
    options = parser.parse_args()
    folders = sorted({file.parent for folder in options.folders for file in folder.rglob(CONFIG_FILE)})
    if not folders:
        sys.exit(
            f"no SAE below {', '.join(map(str, options.folders))}: none of the folders holds a {CONFIG_FILE}"
        )
    try:
        with tempfile.TemporaryDirectory() as work, torch.inference_mode():
            worst = check(folders, options.saelens_python, Path(work))
    except ConfigError as error:
        sys.exit(str(error))
    print(f"{len(folders)} SAEs, largest difference {worst:.1e}, aim <= {AIM:g}")
    return int(not worst <= AIM)


def check(folders: list[Path], python: str, work: Path) -> float:
    """Return the largest difference over all SAEs, relative to the largest latent."""
    jobs, kept = [], []
    for number, folder in enumerate(folders):
        sae = load(folder)
        rows, clear = rows_for(sae)
        save_file({"rows": rows}, work / f"rows-{number}")
        jobs.append(
            {"folder": str(folder), "rows": str(work / f"rows-{number}"), "out": str(work / f"out-{number}")}
        )
        kept.append((sae, rows, clear))
    (work / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [python, PEER, "encode", work / "jobs.json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"sae-lens cannot load them:\n{done.stderr[-3000:]}")
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    worst = 0.0
    for folder, job, answer, (sae, rows, clear) in zip(folders, jobs, answers, kept, strict=True):
        theirs, latents = load_file(job["out"]), sae.encode(rows)
        encoded = difference(theirs["latents"][clear], latents[clear])
        rebuilt = difference(theirs["rebuilt"][clear], sae.decode(latents)[clear])
        worst = max(worst, encoded, rebuilt)
        kind = answer["architecture"] + ("" if answer["k"] is None else f", k {answer['k']}")
        print(f"{folder}: {kind}, latents differ by {encoded:.1e},")
        print(f"  reconstructions by {rebuilt:.1e}; {int((~clear).sum())} of {ROWS} rows too close to tell")
    return worst


def rows_for(sae: AffineAutoencoder) -> tuple[Tensor, Tensor]:
    """Return rows that fire the SAE's latents, and a mask of those for which the fired set is unambiguous."""
    generator = torch.Generator().manual_seed(0)
    share = 2 * sae.k / sae.latents if isinstance(sae, TopK) else 1 / 16
    strength = torch.rand(ROWS, sae.latents, generator=generator)
    strength *= torch.rand(ROWS, sae.latents, generator=generator) < share
    rows = sae.decode(strength * 3)
    rows += 0.1 * rows.std() * torch.randn(rows.shape, generator=generator)
    return rows, clear_rows(sae, sae.preactivations(rows - sae.b_dec))


def clear_rows(sae: AffineAutoencoder, pre: Tensor) -> Tensor:
    """Return a mask [rows] of the preactivations [rows, latents] that no rounding takes across a jump."""
    if isinstance(sae, TopK):
        top = pre.topk(min(sae.k + 1, sae.latents), dim=1).values
        return (top[:, sae.k - 1] - top[:, -1] > TIE) | (sae.k == sae.latents)
    if isinstance(sae, JumpReLU):
        return (pre - sae.threshold.clamp_min(0)).abs().amin(1) > JUMP
    if isinstance(sae, Gated):
        return pre.abs().amin(1) > JUMP
    return torch.ones(len(pre), dtype=torch.bool)


def difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, relative to the largest element or to 1, whichever is larger."""
    return float((one - other).abs().max() / other.abs().max().clamp_min(1))


if __name__ == "__main__":
    sys.exit(main())
