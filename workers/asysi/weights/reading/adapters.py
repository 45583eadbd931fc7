"""LoRA adapters in PEFT's format: a base checkpoint with the adapter's change added, W + (α/r) · B·A.

Hu et al. 2021, section 4.1; with `use_rslora` the factor is α/√r (Kalajdzievski 2023).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asysi.contract.errors import ConfigError
from asysi.weights.errors import AdapterError
from asysi.weights.reading.checkpoint import Checkpoint
from asysi.weights.reading.storage import Bytes
from asysi.weights.reading.tensors import Array, Coding, Tensor

_PART = re.compile(r"^(?P<module>.*)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.\w+)??(?:\.weight)?$")
_SAVED = re.compile(r"\.(?:modules_to_save|original_module)(?:\.\w+)?(?=\.)")
_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class _Low:
    """A low-rank update of one module."""

    a: Tensor
    b: Tensor
    embedding: bool


def merged(base: Checkpoint, adapter: Checkpoint) -> Checkpoint:
    """Return the base with the adapter's change added on read; parts that cannot be added are problems.

    Raises:
        ConfigError: the adapter is not LoRA.
    """
    config = adapter.adapter
    if (kind := str(config.get("peft_type", "LORA")).upper()) != "LORA":
        raise ConfigError(
            f"{adapter.source} is an adapter of type {kind}: only LoRA is compared with its base"
        )
    tensors = dict(base.tensors)
    problems = list(adapter.problems)
    lows, others = _parts(adapter.tensors)
    for module, low in lows.items():
        name = _base_name(module, base.tensors)
        why = _refusal(low, f"{module}.lora_magnitude_vector" in others, base.tensors.get(name or ""))
        if name is None or why:
            problems.append(AdapterError(f"{low.b.file}: {module}: {why}", (name or module,)))
            tensors.pop(name or "", None)
        else:
            tensors[name] = _changed(
                base.tensors[name],
                low,
                _scale(module, low, config),
                flipped=bool(config.get("fan_in_fan_out")),
            )
    for name, tensor in others.items():
        if "lora_" in name:
            if not name.endswith(("lora_magnitude_vector", "lora_magnitude_vector.weight")):
                problems.append(AdapterError(f"{tensor.file}: {name}: its other half is missing", (name,)))
        elif (target := _base_name(_SAVED.sub("", name), base.tensors, suffix="")) is not None:
            tensors[target] = replace(tensor, name=target)
        else:
            tensors[name] = tensor
    return Checkpoint(f"{base.source} + {adapter.source}", tensors, problems, base.files, base.config)


def _parts(tensors: Mapping[str, Tensor]) -> tuple[dict[str, _Low], dict[str, Tensor]]:
    halves: dict[str, dict[str, Tensor]] = {}
    embeddings = set()
    for name, tensor in tensors.items():
        if match := _PART.match(name):
            halves.setdefault(match["module"], {})[match["side"]] = tensor
            if match["embedding"]:
                embeddings.add(match["module"])
    whole = {module: both for module, both in halves.items() if len(both) == 2}
    lows = {module: _Low(both["A"], both["B"], module in embeddings) for module, both in whole.items()}
    used = {one.name for both in whole.values() for one in both.values()}
    return lows, {name.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector"): one
                  for name, one in tensors.items() if name not in used}  # fmt: skip


def _base_name(module: str, base: Mapping[str, Tensor], suffix: str = ".weight") -> str | None:
    """Return the base parameter of an adapter's module: by name, else by the only name with that suffix."""
    name = module.removeprefix(_PREFIX) + suffix
    if name in base:
        return name
    ending = [one for one in base if one.endswith(f".{name}") or name.endswith(f".{one}")]
    return ending[0] if len(ending) == 1 else None


def _refusal(low: _Low, dora: bool, base: Tensor | None) -> str:
    if base is None:
        return "the base has no such parameter"
    if dora:
        return "DoRA scales the sum by a magnitude, which is not computed here"
    rank, inputs, outputs = low.a.shape[0], math.prod(low.a.shape[1:]), low.b.shape[0]
    if low.b.shape[1] != rank:
        return f"A {low.a.shape} and B {low.b.shape} have no common rank"
    if outputs * inputs != base.size or {outputs, inputs} != {base.rows, base.cols}:
        return f"B·A of {outputs} × {inputs} does not fit the base's {base.shape}"
    return ""


def _scale(module: str, low: _Low, config: Mapping[str, Any]) -> float:
    rank = low.a.shape[0]
    alpha = float(config.get("lora_alpha") or rank)
    for key, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _changed(base: Tensor, low: _Low, scale: float, *, flipped: bool) -> Tensor:
    """Return W + scale · B·A in float64, by rows; `flipped` if W is stored with inputs first."""
    flip = low.embedding or low.b.shape[0] != base.rows or (flipped and base.rows == base.cols)

    def change(first: int, last: int) -> NDArray[np.float64]:
        a = low.a.read().reshape(low.a.shape[0], -1).astype(np.float64)
        b = low.b.read().reshape(low.b.shape[:2]).astype(np.float64)
        return scale * (a.T[first:last] @ b.T if flip else b[first:last] @ a)

    def read(start: int, stop: int, _into: Bytes | None) -> Array:
        first, last = start // base.cols, -(-stop // base.cols)
        delta = change(first, last).reshape(-1)[start - first * base.cols : stop - first * base.cols]
        return base.read(start, stop).astype(np.float64) + delta

    return replace(
        base, dtype=np.dtype("<f8"), _read=read, coding=Coding(f"{base.stored} + LoRA", base.stored_bytes)
    )
