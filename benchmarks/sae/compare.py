"""Compares the speed and quality of TopK training with sae-lens, sparsify and dictionary_learning.

    python benchmarks/sae/compare.py --peers-python PYTHON [--activations FILE --name NAME] [--latents 4096]

Without a file the activations are synthetic: sparse positive mixtures of known directions in noise. How well
an autoencoder recovers these is the mean over directions of the largest cosine with a decoder row. The same
rows in the same order, k, latents and batches for all; each learning rate is swept with the first seed, and
the best is taken for the others. One evaluator: ours, in float64, on held-out rows. Every run is a process of
its own, one after the other. Beside them stands the cost of one dense float32 product of a batch with the
encoder, measured after the runs of each library. Prints a table and writes the results as JSON.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from asysi.contract.spec import SaeTrain
from asysi.sae.evaluation import evaluate
from asysi.sae.normalisation import expected_norm_scale
from asysi.sae.training import Training
from asysi.sae.variants.topk import TopK

PEERS = ("saelens", "sparsify", "dictionary_learning")
WIDTH, DIRECTIONS, HELD = 384, 4096, 4096
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--peers-python", default=os.environ.get("ASYSI_SAE_PEERS_PYTHON"))
    parser.add_argument("--peers", nargs="*", default=PEERS)
    parser.add_argument("--activations", type=Path, help="safetensors file")
    parser.add_argument("--name", default="rows", help="tensor [n, width] in that file")
    parser.add_argument("--latents", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("sae-compare.json"))
    options = parser.parse_args()
    if options.job:
        return ours(json.loads(options.job.read_text()))
    if options.peers and not options.peers_python:
        parser.error("--peers-python: a Python with sae-lens, eai-sparsify and dictionary-learning")
    results = []
    with tempfile.TemporaryDirectory() as work:
        truth = prepare(options, Path(work))
        for latents in options.latents:
            for library in ("asysi", *options.peers):
                results.append(measure(options, Path(work), library, latents, truth))
                print(line(results[-1]), flush=True)
    options.out.write_text(json.dumps(results, indent=1))
    return 0


def prepare(options: argparse.Namespace, work: Path) -> Tensor | None:
    """Write normalised training and held-out rows; return the true directions if there are any."""
    need, truth = options.batch * options.steps, None
    if options.activations:
        rows = load_file(options.activations)[options.name].float()
        rows = rows[torch.from_numpy(np.random.default_rng(0).permutation(len(rows)))]
        if len(rows) < HELD + options.batch:
            sys.exit(
                f"{options.activations} has {len(rows):,} rows; at least {HELD + options.batch:,} are needed"
            )
        train = rows[HELD:]
        train = torch.cat([train] * -(-need // len(train)))[:need]
        held = rows[:HELD]
    else:
        generator = torch.Generator().manual_seed(0)
        truth = torch.nn.functional.normalize(torch.randn(DIRECTIONS, WIDTH, generator=generator), dim=1)
        train, held = (mixtures(truth, count, generator) for count in (need, HELD))
    scale = expected_norm_scale(train[:8192])
    save_file({"rows": (train * scale).contiguous()}, work / "train")
    save_file({"rows": (held * scale).contiguous()}, work / "held")
    return truth


def mixtures(directions: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return sparse positive mixtures of directions [n, width], some more frequent than others, in noise."""
    often = 24 / (torch.arange(1, len(directions) + 1).float() ** 0.5)
    often = (often * 24 / often.sum()).clamp_max(0.5)
    rows = torch.empty(count, directions.shape[1])
    for begin in range(0, count, 4096):
        part = rows[begin : begin + 4096]
        size = (len(part), len(directions))
        strength = torch.rand(size, generator=generator) + 0.5
        strength *= torch.rand(size, generator=generator) < often
        part.copy_(strength @ directions + 0.05 * torch.randn(part.shape, generator=generator))
    return rows


def measure(
    options: argparse.Namespace, work: Path, library: str, latents: int, truth: Tensor | None
) -> dict:
    """Sweep the learning rate with the first seed, then train the other seeds at the best one."""
    swept = [one_run(options, work, library, latents, rate, 0, truth) for rate in options.rates]
    best = min(swept, key=lambda result: result["fvu"])
    others = [
        one_run(options, work, library, latents, best["lr"], seed, truth) for seed in range(1, options.seeds)
    ]
    runs = [best, *others]
    mean = {
        name: float(np.mean([one[name] for one in runs]))
        for name in ("fvu", "l0", "dead", "rows_per_second", "peak_mib", "recovered")
        if runs[0][name] is not None
    }
    return {
        "library": library, "latents": latents, "lr": best["lr"], **mean,
        "product_rows_per_second": product(options, latents), "runs": [*swept, *others],
    }  # fmt: skip


def one_run(  # noqa: PLR0917 - what a run is
    options: argparse.Namespace, work: Path, library: str, latents: int, lr: float, seed: int,
    truth: Tensor | None,
) -> dict:  # fmt: skip
    job = {
        "library": library, "rows": str(work / "train"), "batch": options.batch, "steps": options.steps,
        "k": options.k, "latents": latents, "lr": lr, "seed": seed, "threads": options.threads,
        "out": str(work / "out"),
    }  # fmt: skip
    file = work / "job.json"
    file.write_text(json.dumps(job))
    command = (
        [sys.executable, __file__, "--job", file]
        if library == "asysi"
        else [options.peers_python, Path(__file__).with_name("peer.py"), file]
    )
    environment = {**os.environ, "SPARSIFY_DISABLE_TRITON": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{library} failed:\n{done.stderr[-3000:]}")
    said = json.loads([text for text in done.stdout.splitlines() if text.startswith("{")][-1])
    tensors, held = load_file(job["out"]), load_file(work / "held")["rows"]
    sae = TopK(held.shape[1], latents, options.k)
    for name, tensor in tensors.items():
        getattr(sae, "encoder" if name == "W_enc" else name).copy_(tensor)
    found = evaluate(sae, held)
    dead = 1 - len(torch.cat([sae.activate(part).latent for part in held.split(1024)]).unique()) / latents
    return {**said, "lr": lr, "seed": seed, "fvu": found.fvu, "l0": found.l0, "dead": dead,
            "recovered": recovered(sae, truth)}  # fmt: skip


def recovered(sae: TopK, truth: Tensor | None) -> float | None:
    """Return the mean over true directions of the largest cosine with a decoder row."""
    if truth is None:
        return None
    return float((truth @ torch.nn.functional.normalize(sae.W_dec, dim=1).T).amax(1).mean())


def product(options: argparse.Namespace, latents: int) -> float:
    """Return the rows per second of a dense float32 product of a batch with an encoder."""
    torch.set_num_threads(options.threads)
    x, weights = torch.randn(options.batch, WIDTH), torch.randn(WIDTH, latents)
    x @ weights
    began, times = time.perf_counter(), 5
    for _ in range(times):
        x @ weights
    return times * options.batch / (time.perf_counter() - began)


def ours(job: dict) -> int:
    """Train on the rows in their order, as peer.py does."""
    torch.set_num_threads(job["threads"])
    torch.set_flush_denormal(True)
    rows = load_file(job["rows"])["rows"]
    config = SaeTrain.model_validate({
        "latents": job["latents"], "k": job["k"], "lr": job["lr"], "batch": job["batch"], "seed": job["seed"],
        "normalisation": "none", "stop": {"tokens": job["batch"] * job["steps"]},
    })  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    training = Training(config, "rows", rows.shape[1], torch.float32, 1 << 30)
    began = time.perf_counter()
    with torch.inference_mode():
        training.begin(rows[:8192])
        for step in range(job["steps"]):
            training.learn(rows[step * job["batch"] : (step + 1) * job["batch"]])
    seconds = time.perf_counter() - began
    sae = training.sae
    tensors = {"W_enc": sae.encoder, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, job["out"])
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"rows_per_second": job["steps"] * job["batch"] / seconds, "peak_mib": peak}))
    return 0


def line(result: dict) -> str:
    recovered_ = "" if "recovered" not in result else f", recovered {result['recovered']:.3f}"
    return (
        f"{result['library']:>20} {result['latents']:>6}: {result['rows_per_second']:>8,.0f} rows/s "
        f"(product alone {result['product_rows_per_second']:,.0f}), "
        f"FVU {result['fvu']:.4f} at lr {result['lr']:g}, "
        f"L0 {result['l0']:.1f}, dead {result['dead']:.1%}, {result['peak_mib']:,.0f} MiB{recovered_}"
    )


if __name__ == "__main__":
    sys.exit(main())
