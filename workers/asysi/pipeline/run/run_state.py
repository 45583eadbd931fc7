"""`runtime.json`, the definition and status of a pipeline, read by tools and `resume`; `checkpoint.json`."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.files import write_atomically
from asysi.pipeline.streams.seal import START_OVER

RUNTIME = "runtime.json"
CHECKPOINT = "checkpoint.json"
LIVE = frozenset({"running", "canceling", "resuming", "redriving"})
"""States of a pipeline with a live process."""


def write_live(file: Path, tree: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically, without fsync, because it is written every second."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n")
    temporary.replace(file)


def read_image(folder: Path) -> dict[str, Any]:
    """Return the image in a results folder.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    file = folder / RUNTIME
    try:
        tree = json.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{folder} has no {RUNTIME}: no pipeline was created there") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error}): restore it, or {START_OVER}") from error
    if not isinstance(tree, dict) or "pipeline_id" not in tree or "nodes" not in tree:
        raise ConfigError(f"{file} is not an image of a pipeline: restore it, or {START_OVER}")
    return tree


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Restore image and checkpoint if the block raises."""
    files = {file: file.read_bytes() for file in (folder / RUNTIME, folder / CHECKPOINT) if file.exists()}
    try:
        yield
    except BaseException:
        for file, data in files.items():
            write_atomically(file, partial(_fill, data=data))
        raise


def _fill(file: Path, data: bytes) -> None:
    file.write_bytes(data)


def alive(image: Mapping[str, Any]) -> int | None:
    """Return the PID of the process that runs the pipeline according to its image, or None."""
    process = image.get("process")
    if not isinstance(process, int) or image.get("status") not in LIVE:
        return None
    try:
        os.kill(process, 0)
    except OSError:
        return None
    return process
