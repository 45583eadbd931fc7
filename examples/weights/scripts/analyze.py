"""Analyse a checkpoint.

python scripts/analyze.py --model_path data/models/minilm --out data/outputs/params.csv --format csv
"""

import argparse
import sys
from pathlib import Path

from asysi.contract.errors import ConfigError
from asysi.weights import Settings
from asysi.weights.run.orchestrator import Job, analyze_into
from asysi.weights.tables.export import FORMATS, format_of


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--model_path", required=True, help="folder or file of safetensors, GGUF or npz")
    options.add_argument(
        "--out", type=Path, default=Path("data/outputs/params.csv"), help="file of the table"
    )
    options.add_argument("--format", choices=FORMATS, help="unset uses the suffix of the file's name")
    options.add_argument("--zero_epsilon", type=float, default=1e-8, help="magnitude that counts as zero")
    options.add_argument("--rank_k", type=int, default=128, help="singular values of the randomized method")
    options.add_argument("--seed", type=int, default=0, help="seed of the randomized method")
    options.add_argument("--workers", type=int, help="tensors analysed concurrently")
    options.add_argument("--model_id", help="name to write into the table")
    chosen = options.parse_args()
    settings = Settings(zero_epsilon=chosen.zero_epsilon, rank_k=chosen.rank_k, seed=chosen.seed)
    try:
        done = analyze_into(
            chosen.model_path,
            Job(
                chosen.out,
                chosen.format or format_of(chosen.out),
                settings,
                model_id=chosen.model_id,
                workers=chosen.workers,
            ),
            say=print,
        )
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    for line in (*done.notes, *done.problems, *done.failures):
        print(line, file=sys.stderr)
    return 0 if done.passed else 1


if __name__ == "__main__":
    sys.exit(main())
