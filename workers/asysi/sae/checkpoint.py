"""Checkpoints: tensors as safetensors, everything else as JSON in the file metadata. No pickle, no code."""

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
HELD, HELD_ORIGIN = "held", "held.origin"
"""Tensor names of a hook point's evaluation set: its rows, and their origins (see `Reservoir`)."""


@dataclass(frozen=True, slots=True)
class TrainerCheckpoint:
    """The state of a trainer."""

    tensors: dict[str, Tensor]
    """Tensors by "hook point/name"."""
    words: dict[str, Any]
    """JSON-serialisable state."""


def write_checkpoint(file: Path, checkpoint: TrainerCheckpoint) -> None:
    """Write the checkpoint atomically; it is durable when this function returns."""
    metadata = {"format": FORMAT, "words": json.dumps(checkpoint.words)}
    write_atomically(file, lambda temporary: save_file(checkpoint.tensors, temporary, metadata))


def read_checkpoint(file: Path) -> TrainerCheckpoint | None:
    """Return the checkpoint; None if there is none.

    Raises:
        ConfigError: the file is not a checkpoint of this format.
    """
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as content:
            metadata = content.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ConfigError(
                    f"{file} is not a checkpoint of format {FORMAT}: remove it, or use another output folder"
                )
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - no mapping
            return TrainerCheckpoint(tensors, json.loads(metadata["words"]))
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise ConfigError(
            f"the checkpoint {file} cannot be read ({error}): remove it, or use another output folder"
        ) from error


def read_held(file: Path, point: str) -> tuple[Tensor, Tensor] | None:
    """Return the evaluation set of a hook point: rows [m, width] and origins [m, 3]; None if it has none.

    Only these tensors are read from the file.

    Raises:
        ConfigError: the file is not a checkpoint of this format.
    """
    try:
        with safe_open(file, framework="pt") as content:
            names = set(content.keys())
            wanted = [f"{point}/{HELD}", f"{point}/{HELD_ORIGIN}"]
            if not names.issuperset(wanted):
                return None
            rows, origin = (content.get_tensor(name) for name in wanted)
            return rows, origin
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"the checkpoint {file} cannot be read ({error})") from error
