"""Compares the FVU of asysi's autoencoders with sae-lens's, on the same tokens in the same order.

    python benchmarks/sae_quality/compare.py --saelens-python .venv-sae/bin/python [--layers 0 2 5]

MiniLM reads the demo's text; activations are kept in bfloat16. One order of batches for both: the stream of
the scan host through our mixing buffer. Both train TopK at the same k, latents, batch and window for dead
latents, warm up over a tenth of the steps and fall linearly to 0 from there (a fall over the last fifth alone
gave sae-lens a worse best FVU). sae-lens gets normalised rows. For both the learning rate is swept with the
first seed, and the best rate of each is taken for the other seeds. One evaluator: ours, float64, on held-out
rows that neither has seen. Writes docs/benchmarks/sae_quality.json and .md; exits with 1 when a ratio exceeds
the aim.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from asysi.bus.packet import RowFlag
from asysi.contract.loading import load as load_experiment
from asysi.contract.quantity import parse_bytes
from asysi.contract.spec import SaeTrain, Stop
from asysi.model.loading import load_model, resolve_model
from asysi.sae.buffer import BufferSize, MixingBuffer
from asysi.sae.evaluation import evaluate
from asysi.sae.export import load as load_sae
from asysi.sae.normalisation import expected_norm_scale
from asysi.sae.training import Training
from asysi.text.reading import read_data

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs" / "benchmarks"
PEER = Path(__file__).with_name("peer.py")
EXAMPLE = ROOT / "examples" / "minilm"
AIM = 1.05
DEMO_POINTS = 6
"""Hook points that share the mixing buffers' memory in the demo."""
PACKET_ROWS = 256
OUR_RATES = (4e-3, 8e-3, 1.2e-2, 1.6e-2)
THEIR_RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)


@dataclass(frozen=True)
class Rows:
    """The rows of one hook point: each token of the text once."""

    train: Tensor
    """[n, width] bfloat16"""
    held_out: Tensor
    """[m, width] bfloat16"""


@dataclass(frozen=True)
class Order:
    """Batches of indices into the training rows."""

    first: Tensor
    """Indices in the buffer when it was first full."""
    batches: list[Tensor]


@dataclass(frozen=True)
class Stream:
    """The training rows in the order in which the host's capture would send them."""

    indices: np.ndarray
    """[rows of all passes]"""
    sequences: np.ndarray
    """[rows of all passes], one number per sequence of each step"""


def main() -> int:
    options = parse()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        work = Path(folder)
        rows, stream = read_text(options)
        results = []
        for layer, own in rows.items():
            row_bytes = own.train.shape[1] * own.train.dtype.itemsize
            orders = {seed: mixed(stream, row_bytes, seed) for seed in options.seeds}
            results.append(compare(Task(options, layer, own, orders, work)))
    report(options, results, time.monotonic() - began)
    return int(any(result["ratio"] > AIM for result in results))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    given = os.environ.get("ASYSI_SAELENS_PYTHON")
    parser.add_argument(
        "--saelens-python", default=given, required=given is None, help="a Python that has sae-lens"
    )
    parser.add_argument("--layers", type=int, nargs="+", default=list(range(6)))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--latents", type=int, default=1024)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


# -- the rows and their order


def read_text(options: argparse.Namespace) -> tuple[dict[int, Rows], Stream]:
    """Run the model once over the demo's text; later passes give the same rows in a different order."""
    subprocess.run([sys.executable, EXAMPLE / "corpus.py"], check=True, stdout=subprocess.DEVNULL)
    spec = load_experiment([EXAMPLE / "scan.yaml"]).spec
    assert spec.data is not None
    assert spec.workload.scan is not None
    loaded = load_model(resolve_model(spec.model), spec.model.dtype)
    scan = spec.workload.scan.model_copy(update={"passes": options.passes})
    batches = read_data(spec.data, scan, loaded.tokenizer).batches
    paths = {layer: f"encoder.layer.{layer}.output" for layer in options.layers}
    modules = dict(loaded.module.named_modules())
    outputs: dict[str, Tensor] = {}
    for path in paths.values():
        modules[path].register_forward_hook(lambda _m, _i, out, path=path: outputs.__setitem__(path, out))
    captured: dict[str, list[Tensor]] = {path: [] for path in paths.values()}
    held: list[np.ndarray] = []
    index: dict[int, int] = {}
    indices: list[int] = []
    sequences: list[np.ndarray] = []
    for batch in batches.from_step(0):
        records = batch.tokens.rows[batch.tokens.content]
        training = (records["flags"] & RowFlag.HOLDOUT) == 0
        keys = ((records["sample"].astype(np.int64) << 20) + records["position"])[training].tolist()
        if batch.pass_number == 0:
            mask = None if batch.mask is None else torch.from_numpy(batch.mask)
            loaded.module(input_ids=torch.from_numpy(batch.ids), attention_mask=mask)
            content = torch.from_numpy(batch.tokens.content)
            for path, parts in captured.items():
                parts.append(outputs[path].flatten(0, 1)[content].bfloat16())
            held.append(~training)
            index |= {key: len(index) + number for number, key in enumerate(keys)}
        indices += [index[key] for key in keys]
        sequences.append((batch.number << 20) + records["sequence"][training].astype(np.int64))
    out = torch.from_numpy(np.concatenate(held))
    whole = {layer: torch.cat(captured[path]) for layer, path in paths.items()}
    rows = {layer: Rows(together[~out], together[out]) for layer, together in whole.items()}
    return rows, Stream(np.array(indices), np.concatenate(sequences))


def mixed(stream: Stream, row_bytes: int, seed: int) -> Order:
    """Return the order in which the demo's mixing buffer releases the stream's rows."""
    config = SaeTrain()
    buffer = MixingBuffer(1, torch.int64, np.random.default_rng(seed))
    cap = parse_bytes(config.buffer.memory) // DEMO_POINTS // row_bytes - config.batch
    size = BufferSize(config.buffer.batches * config.batch, config.buffer.sequences, cap)
    begins = np.diff(stream.sequences, prepend=-1) != 0
    first, batches = torch.empty(0, dtype=torch.int64), []
    for at in range(0, len(stream.indices), PACKET_ROWS):
        piece = slice(at, at + PACKET_ROWS)
        buffer.add(torch.from_numpy(stream.indices[piece])[:, None], int(begins[piece].sum()), size)
        if buffer.floor is not None and not len(first):
            first = buffer.rows.flatten().clone()
        while (batch := buffer.draw(config.batch)) is not None:
            batches.append(batch.flatten())
    if not len(first):
        first = buffer.rows.flatten().clone()
    batches += [batch.flatten() for batch in buffer.drain(config.batch)]
    return Order(first, batches)


# -- both sides


@dataclass(frozen=True)
class Task:
    """The input for both sides from one layer."""

    options: argparse.Namespace
    layer: int
    rows: Rows
    orders: dict[int, Order]
    """Orders by seed."""
    work: Path


Train = Callable[[Task, list[tuple[float | None, int]]], list[dict]]
"""Trains an autoencoder for each pair of learning rate and seed; returns {fvu, l0, rows_per_second} each."""


def compare(task: Task) -> dict:
    """Sweep both learning rates with the first seed, then run the other seeds at the best of each."""
    save_file({"rows": task.rows.train}, task.work / f"{task.layer}.safetensors")
    ours = best_of(task, OUR_RATES, train_ours)
    theirs = best_of(task, THEIR_RATES, train_theirs)
    default = train_ours(task, [(None, task.options.seeds[0])])[0]["fvu"]
    ratio = ours["mean"] / theirs["mean"]
    print(
        f"layer {task.layer}: ours {ours['mean']:.4f}, sae-lens {theirs['mean']:.4f}, ratio {ratio:.3f}",
        flush=True,
    )
    return {
        "layer": task.layer, "ratio": ratio, "default_rate_fvu": default, "asysi": ours, "sae-lens": theirs,
    }  # fmt: skip


def best_of(task: Task, rates: tuple[float, ...], train: Train) -> dict:
    """Return the sweep, and all seeds at the best learning rate."""
    seeds = task.options.seeds
    sweep = train(task, [(rate, seeds[0]) for rate in rates])
    best = min(range(len(sweep)), key=lambda i: sweep[i]["fvu"])
    runs = [sweep[best], *train(task, [(rates[best], seed) for seed in seeds[1:]])]
    values = [run["fvu"] for run in runs]
    return {
        "sweep": {f"{rate:g}": run["fvu"] for rate, run in zip(rates, sweep, strict=True)},
        "rate": rates[best],
        "seeds": values,
        "mean": float(np.mean(values)),
        "l0": runs[0]["l0"],
        "rows_per_second": float(np.median([run["rows_per_second"] for run in sweep])),
    }


def train_ours(task: Task, pairs: list[tuple[float | None, int]]) -> list[dict]:
    results = []
    rows = task.rows
    for rate, seed in pairs:
        order = task.orders[seed]
        total = sum(len(batch) for batch in order.batches)
        config = SaeTrain(
            latents=task.options.latents, k=task.options.k, lr=rate, seed=seed, stop=Stop(tokens=total)
        )
        training = Training(config, "point", rows.train.shape[1], rows.train.dtype, memory=1 << 30)
        training.begin(rows.train[order.first])
        began = time.perf_counter()
        for batch in order.batches:
            training.learn(rows.train[batch])
        seconds = time.perf_counter() - began
        found = evaluate(training.sae, rows.held_out, training.progress.scale)
        results.append({"fvu": found.fvu, "l0": found.l0, "rows_per_second": total / seconds})
    return results


def train_theirs(task: Task, pairs: list[tuple[float | None, int]]) -> list[dict]:
    work, config = task.work, SaeTrain()
    scale = expected_norm_scale(task.rows.train[task.orders[task.options.seeds[0]].first])
    for seed, order in task.orders.items():
        sizes = torch.tensor([len(batch) for batch in order.batches])
        save_file({"indices": torch.cat(order.batches), "sizes": sizes}, work / f"order-{seed}.safetensors")
    jobs = [
        {
            "activations": str(work / f"{task.layer}.safetensors"), "name": "rows",
            "order": str(work / f"order-{seed}.safetensors"), "scale": scale, "lr": rate, "seed": seed,
            "latents": task.options.latents, "k": task.options.k, "warm_up": 0.1, "decay": 1.0,
            "dead_window": -(-config.auxk.dead_after // config.batch), "threads": task.options.threads,
            "out": str(work / f"sae-{task.layer}-{rate:g}-{seed}"),
        }
        for rate, seed in pairs
    ]  # fmt: skip
    results = []
    for job, answer in zip(jobs, ask(task.options.saelens_python, "train", jobs, work), strict=True):
        found = evaluate(load_sae(Path(job["out"])), task.rows.held_out, scale)
        results.append({"fvu": found.fvu, "l0": found.l0, "rows_per_second": answer["rows_per_second"]})
    return results


def ask(python: str, verb: str, jobs: list[dict], work: Path) -> list[dict]:
    """Run the jobs in sae-lens's Python; returns the results."""
    file = work / "jobs.json"
    file.write_text(json.dumps(jobs))
    done = subprocess.run([python, PEER, verb, file], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"sae-lens failed:\n{done.stderr[-3000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


# -- the report


def report(options: argparse.Namespace, results: list[dict], seconds: float) -> None:
    result = {
        "machine": {
            "processor": processor(), "processors": os.cpu_count(), "threads": options.threads,
            "python": platform.python_version(), "torch": version("torch"), "asysi": version_of_asysi(),
            "sae-lens": peer_version(options.saelens_python, "sae-lens"),
            "torch of sae-lens": peer_version(options.saelens_python, "torch"),
        },
        "command": command(options),
        "passes": options.passes, "latents": options.latents, "k": options.k, "batch": SaeTrain().batch,
        "seeds": options.seeds, "seconds": seconds, "layers": results,
    }  # fmt: skip
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "sae_quality.json").write_text(json.dumps(result, indent=1) + "\n")
    text = "\n".join(lines(result))
    (OUT / "sae_quality.md").write_text(text + "\n")
    print(text)


def command(options: argparse.Namespace) -> str:
    """Return the command line, without this machine's path to sae-lens's Python."""
    given = [a.replace(options.saelens_python, "PYTHON-WITH-SAE-LENS") for a in sys.argv[1:]]
    return " ".join(["python", "benchmarks/sae_quality/compare.py", *given])


def lines(result: dict) -> Iterator[str]:
    seeds, machine = len(result["seeds"]), result["machine"]
    yield from (
        "# FVU against sae-lens",
        "",
        f"Made by `{result['command']}`: MiniLM reads the demo's text, TopK with",
        f"{result['latents']} latents, k {result['k']}, batch {result['batch']}, {result['passes']} passes. "
        "Same tokens in the same order, learning rate swept",
        f"for both with the first of {seeds} seeds, one evaluator (float64, held-out rows). Lower is better;",
        f"the aim is a ratio of {AIM} at most.",
        "",
        f"| layer | ours, mean of {seeds} (min – max) | lr | sae-lens {machine['sae-lens']} | lr | ratio "
        "| ours, default lr, first seed | rows/s ours | rows/s sae-lens |",
        "|---|---|---|---|---|---|---|---|---|",
    )
    for layer in result["layers"]:
        own, other = layer["asysi"], layer["sae-lens"]
        yield (
            f"| {layer['layer']} | {spread(own)} | {own['rate']:g} | {spread(other)} | {other['rate']:g} | "
            f"**{layer['ratio']:.3f}** | {layer['default_rate_fvu']:.4f} | {own['rows_per_second']:,.0f} | "
            f"{other['rows_per_second']:,.0f} |"
        )
    yield from ("", "| layer | who | FVU at each learning rate, first seed |", "|---|---|---|")
    for layer in result["layers"]:
        for name in ("asysi", "sae-lens"):
            sweep = ", ".join(f"{rate}: {fvu:.4f}" for rate, fvu in layer[name]["sweep"].items())
            yield f"| {layer['layer']} | {name} | {sweep} |"
    yield ""
    yield f"Rows/s are of training alone, on {machine['threads']} thread(s) of a machine with other work."
    yield ""
    yield f"Machine: {', '.join(f'{key} {value}' for key, value in machine.items())}."
    yield f"The comparison took {result['seconds']:.0f} s."


def spread(side: dict) -> str:
    return f"{side['mean']:.4f} ({min(side['seeds']):.4f} – {max(side['seeds']):.4f})"


def processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    name = next(
        (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), ""
    )
    return name + (" with AVX512-BF16" if "avx512_bf16" in text else "")


def version_of_asysi() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def peer_version(python: str, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
