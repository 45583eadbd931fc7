"""Checkpoints: tensors as safetensors, everything else as JSON in the file's metadata. No pickle, no code."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from asysi.contract.errors import ConfigError
from asysi.files import write_atomically

FORMAT = "asysi-sae-checkpoint-1"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trainer at one moment."""

    tensors: dict[str, Tensor]
    """By "hook point/name"."""
    words: dict[str, Any]
    """What JSON can hold."""


def write_checkpoint(file: Path, checkpoint: Checkpoint) -> None:
    """Write atomically; the file stands for good when this returns."""
    metadata = {"format": FORMAT, "words": json.dumps(checkpoint.words)}
    write_atomically(file, lambda temporary: save_file(checkpoint.tensors, temporary, metadata))


def read_checkpoint(file: Path) -> Checkpoint | None:
    """Return the checkpoint, None when there is none.

    Raises:
        ConfigError: the file is no checkpoint of this format.
    """
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as content:
            metadata = content.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ConfigError(
                    f"{file} is no checkpoint of format {FORMAT}: remove it, or take another output folder"
                )
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - no mapping
            return Checkpoint(tensors, json.loads(metadata["words"]))
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise ConfigError(
            f"the checkpoint {file} cannot be read ({error}): remove it, or take another output folder"
        ) from error
