"""Describes the limits of a run and how to reproduce it."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import asysi
from asysi.contract.grid import members
from asysi.contract.runtime import EXPERIMENT_FILE
from asysi.contract.spec import SaeTrain, ScanExperiment
from asysi.contract.workloads import text_of
from asysi.finish.rereading import Extent
from asysi.finish.status import HostCounters
from asysi.report.words import count, percent
from asysi.sae.variants import variant

SMALL = 1_000_000
"""Distinct tokens below which the page warns of a small corpus."""
PACKAGES = ("torch", "transformers", "numpy", "safetensors")


def limits(
    experiment: ScanExperiment,
    host: HostCounters,
    seen: Mapping[str, Any],
    *,
    attempt: int,
    tokens: int,
    progress: Mapping[str, Any],
) -> list[tuple[str, str]]:
    """Return label and text of each known limit.

    Args:
        experiment: the experiment.
        host: the capture ring's mailbox.
        seen: contents of `host/seen.json`; may be empty.
        attempt: number of the attempt.
        tokens: content tokens read in all attempts.
        progress: contents of `host/progress.json`; may be empty.
    """
    spec = experiment.spec
    lines = [
        ("Corpus", _corpus(experiment, host, seen, tokens)),
        ("Excluded", _exclusions(experiment, host, seen)),
        ("Sampling", _sampling(experiment, host)),
        ("Seeds", _seeds(experiment)),
    ]
    if seen.get("sequences"):
        lines.insert(2, ("Tokens", _tokens(experiment, seen)))
    if spec.sae is not None:
        lines.append(
            (
                "Autoencoders",
                "; ".join(_trainer(one) for trainer in spec.sae.train for one in members(trainer)),
            )
        )
    if attempt:
        lines.append(
            (
                "Attempts",
                f"{attempt + 1}: rows and tokens are added up, steps and equations are of the last one"
                f"{_repeated(progress)}",
            )
        )
    return [*lines, ("Versions", versions()), ("Machine", machine())]


def _repeated(progress: Mapping[str, Any]) -> str:
    """Return how much two attempts captured, because the first was killed before it recorded it."""
    steps, tokens = progress.get("repeated_steps"), progress.get("repeated_tokens")
    if not isinstance(steps, int) or not isinstance(tokens, int) or steps <= 0:
        return ""
    return (
        f"; {count(steps)} steps with {count(tokens)} tokens were captured by two attempts, so "
        "autoencoders may have trained on their rows twice"
    )


def model_name(uri: str) -> str:
    """Return the model's name: the last meaningful part of its URI."""
    rest = uri.partition("://")[2] or uri
    path = Path(rest).expanduser()
    parts = path.resolve().parts if uri.startswith("file://") else path.parts
    telling = [part for part in parts if part.lower() not in {"model", "models", "weights", "/"}]
    return telling[-1] if telling else uri


def _corpus(experiment: ScanExperiment, host: HostCounters, seen: Mapping[str, Any], tokens: int) -> str:
    data, read = experiment.spec.data, text_of(experiment.spec)
    parts = [data.uri.rpartition("/")[2] or data.uri if data else "no data"]
    if data is not None and data.pipeline is not None:
        parts[0] += f" through {', '.join(node.operator for node in data.pipeline.operators)}"

    def number(key: str) -> str:
        return count(seen.get(key))

    if seen:
        parts.append(
            f"{number('documents')} distinct documents, {number('duplicates')} duplicates removed, "
            f"{number('held_out')} held out; {number('unique_tokens')} distinct content tokens"
        )
    if seen.get("renumbered"):
        parts.append(
            f"{number('renumbered')} documents had a number that an earlier one has; theirs is 2^63 plus "
            "their line"
        )
    passes = read.passes if read else 1
    parts.append(f"{passes} {'pass' if passes == 1 else 'passes'}, {count(tokens)} tokens read")
    if host.interrupted:
        parts.append("ended early by the user")
    if 0 < seen.get("unique_tokens", SMALL) < SMALL:
        parts.append(
            "this is little text: expect latents for its own vocabulary and style, not for language at large"
        )
    return ". ".join(part[:1].upper() + part[1:] if i else part for i, part in enumerate(parts)) + "."


def _exclusions(experiment: ScanExperiment, host: HostCounters, seen: Mapping[str, Any]) -> str:
    data = experiment.spec.data
    named = ", ".join(data.tokens.exclude_tokens) if data else ""
    cut = f" Documents are cut at {data.tokens.context_length} tokens" if data else ""
    if cut and seen.get("truncated") is not None and seen.get("documents"):
        share = percent(seen["truncated"] / seen["documents"])
        cut += f": {count(seen['truncated'])} of {count(seen['documents'])} were ({share})"
    cut += "." if cut else ""
    return f"{count(host.tokens_excluded)} tokens that are never data ({named or 'none named'}).{cut}"


def _tokens(experiment: ScanExperiment, seen: Mapping[str, Any]) -> str:
    """Describe how sequences began and how special tokens in the text were handled."""
    sequences, opened = int(seen["sequences"]), int(seen.get("sequences_opened", 0))
    how = {0: "None", sequences: "All"}.get(opened, f"{count(opened)}")
    parts = [f"{how} of {count(sequences)} sequences began with the tokenizer's BOS or CLS token."]
    spelled = seen.get("special_tokens_in_text") or {}
    if spelled.get("documents"):
        data = experiment.spec.data
        names, way = ", ".join(spelled["found"]), data.tokens.special_tokens_in_text if data else "tokens"
        parts.append(
            f"{count(spelled['documents'])} documents spell special tokens ({names}), "
            f"which were read as {way}."
        )
    return " ".join(parts)


def _sampling(experiment: ScanExperiment, host: HostCounters) -> str:
    capture, sampling = experiment.spec.capture, experiment.spec.capture.sampling
    return (
        f"Rate between {sampling.min_rate:g} and {sampling.rate:g}, by {sampling.unit}; "
        f"{count(host.steps_dropped)} of {count(host.steps)} steps dropped. "
        f"Activations travel as {capture.quantization}."
    )


def _seeds(experiment: ScanExperiment) -> str:
    spec, read = experiment.spec, text_of(experiment.spec)
    seeds = {
        "order and sampling": read.seed if read else None,
        "hold-out": spec.data.holdout.seed if spec.data else None,
        **{
            f"autoencoder {trainer.name}": trainer.seed
            for trainer in ([one for t in spec.sae.train for one in members(t)] if spec.sae else [])
        },
        "this page": 0,
    }
    return ", ".join(f"{name} {seed}" for name, seed in seeds.items() if seed is not None)


def read_again(extent: Extent) -> str:
    """Return how much text the figures on latents come from, and why it is no more."""
    memory = "spec.resources.finish.memory"
    if extent.device == "cuda":
        memory += " (or of spec.resources.host.memory without shm, if that is less)"
    why = {
        "all": "that is all of it",
        "tokens": "spec.finish.maxTokens allows no more",
        "memory": f"a quarter of {memory} holds no more activations",
        "seconds": "spec.finish.maxSeconds was over",
    }[extent.ended]
    where = "the host's GPU" if extent.device == "cuda" else "the CPU"
    return (
        f"{count(extent.tokens)} of {count(extent.available)} tokens, held-out documents first, in "
        f"{extent.seconds:.1f} s on {where}: {why}."
    )


def _trainer(trainer: SaeTrain) -> str:
    rate = f"lr {trainer.lr:g}" if trainer.lr else "lr by width"
    size = f"{count(trainer.latents)} latents, {variant(trainer.variant).describe(trainer)}"
    return f"{trainer.name}: {trainer.variant}, {size}, {rate}, batch {count(trainer.batch)}"


def versions() -> str:
    """Return the versions of the installed packages."""
    found = [f"{name} {_version(name)}" for name in PACKAGES]
    return ", ".join([f"asysi {asysi.__version__}", *found, f"Python {platform.python_version()}"])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def machine() -> str:
    """Return processor, number of cores, memory and kernel."""
    import psutil  # noqa: PLC0415 - used once

    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} × {_processor()}, {memory:.0f} GiB, {platform.system()} {platform.release()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commands(experiment: ScanExperiment, exports: list[str]) -> list[tuple[str, str]]:
    """Return description and command line of each command, to be run in the output folder."""
    lines = [
        (
            "Run it again, from this folder",
            f"asysi run {EXPERIMENT_FILE} --output ../{experiment.metadata.name}-again",
        )
    ]
    if experiment.spec.archive.enabled:
        lines.append(("Check every byte of the archive", "asysi mscan verify ."))
    if exports:
        folder = exports[0]
        lines.append(
            (
                "Use an autoencoder",
                f"python -c 'from sae_lens import SAE; print(SAE.load_from_disk(\"{folder}\"))'",
            )
        )
    return lines
