"""A complete experiment with `asysi run`, from start to report, on the hardware of the machine."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORDS = (
    *(
        "the",
        "a",
        "of",
        "to",
        "and",
        "in",
        "is",
        "that",
        "it",
        "was",
        "for",
        "on",
        "are",
        "as",
        "with",
        "his",
    ),
    *("his", "they", "at", "be", "this", "from", "have", "or", "by", "one", "had", "not"),
)


def write_inputs(folder: Path, documents: int, words: int) -> None:
    """Write a word-level tokenizer, and documents of its words in a seeded random order."""
    import random

    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate(["<pad>", "<eos>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.save_pretrained(folder / "tokenizer")
    chosen = random.Random(0)
    with (folder / "text.jsonl").open("w") as file:
        for _ in range(documents):
            file.write(json.dumps({"text": " ".join(chosen.choices(WORDS, k=words))}) + "\n")


def spec_of(folder: Path, *, small: bool, gpus: int) -> dict[str, Any]:
    """Return the experiment: the outputs of two layers, with a TopK autoencoder on each."""
    ring, cpus = ("32Mi", 1) if small else ("1Gi", 4)
    trainer = {"latents": 64, "k": 8, "batch": 128} if small else {"latents": 8192, "k": 32, "batch": 4096}
    buffer = {"batches": 2, "sequences": 10, "memory": "512Mi"}
    factory = "tiny" if small else "billion"
    return {
        "apiVersion": "asysi.dev/v1alpha1",
        "kind": "ScanExperiment",
        "metadata": {"name": "gpu-benchmark"},
        "spec": {
            "model": {
                "uri": f"python://model:{factory}",
                "tokenizer": str(folder / "tokenizer"),
                "dtype": "bfloat16",
            },
            "data": {
                "uri": f"jsonl://{folder}/text.jsonl",
                "tokens": {"contextLength": 64 if small else 512},
            },
            "workload": {"scan": {"batchSize": 4 if small else 16}},
            "capture": {
                "hookPoints": ["layers.0", "layers.1"] if small else ["layers.5", "layers.10"],
                "size": ring,
            },
            "bus": {"size": ring},
            "archive": {"enabled": False},
            "sae": {"gpus": gpus, "cpus": cpus, "train": [{**trainer, "buffer": buffer}]},
            "resources": {
                "host": {"gpus": gpus, "cpus": cpus, "memory": "4Gi" if small else "24Gi"},
                "hook": {"cpus": cpus},
                "prepare": {"memory": "8Gi"},
                "finish": {"memory": "8Gi"},
            },
            "finish": {"maxTokens": 1000} if small else {},
        },
    }


def run(folder: Path, *, small: bool, gpus: int, timeout: float) -> dict[str, Any]:
    """Run the experiment; return its duration and results."""
    folder.mkdir(parents=True, exist_ok=True)
    write_inputs(folder, documents=60 if small else 6000, words=60 if small else 500)
    file = folder / "scan.yaml"
    file.write_text(json.dumps(spec_of(folder, small=small, gpus=gpus)))
    environment = os.environ | {
        "ASYSI_MODULES": str(HERE), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }  # fmt: skip
    began = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-c", "from asysi.cli import main; main()", "run", file, "--output", folder / "run"],
        capture_output=True, text=True, check=False, timeout=timeout, env=environment, cwd=folder,
    )  # fmt: skip
    took = time.perf_counter() - began
    verdict = _json(folder / "run" / "verdict.json")
    seen = _json(folder / "run" / "host" / "seen.json")
    result = {
        "exit": ran.returncode,
        "seconds from start to report": round(took, 1),
        "report": (folder / "run" / "report.html").is_file(),
        "level": verdict.get("level"),
        "sentence": verdict.get("sentence"),
        "model tokens/s": round(seen.get("tokens", 0) / max(1e-9, seen.get("forward_seconds", 0)), 1),
        "steps dropped": seen.get("steps_dropped"),
        "rows kept": [point["kept"] for point in verdict.get("points", [])],
        "trained": [sae["trained"] for point in verdict.get("points", []) for sae in point["saes"]],
    }
    return result if ran.returncode in (0, 1) else {**result, "failed": (ran.stdout + ran.stderr)[-1500:]}


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}
