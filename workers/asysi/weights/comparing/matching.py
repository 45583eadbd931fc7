"""Pairs the tensors of two checkpoints: by name, prefix, GGUF's names, bytes, or values."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from asysi.weights.reading.checkpoint import Checkpoint
from asysi.weights.reading.dtypes import is_float
from asysi.weights.reading.storage import Bytes
from asysi.weights.reading.tensors import Array, Tensor

SAMPLE = 1 << 14
"""Number of leading elements of a tensor used for the correlation."""
LEAST = 256
"""Minimum number of elements for a meaningful correlation."""
SURE, MARGIN = 0.5, 0.25
"""Minimum correlation for two tensors to count as renamed, and the minimum gap to the next best match. The
correlation of unrelated tensors of 256 elements has a standard deviation of about 0.06."""
_DEEPEST = 3
"""Maximum number of name parts in a prefix."""
Names = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor of the first checkpoint and its counterpart in the second; one of them may be missing."""

    first: str | None
    second: str | None
    how: str = ""
    """name | prefix | gguf | hash | correlation; empty if one is missing."""

    @property
    def name(self) -> str:
        """Name in the first checkpoint, or in the second if the first does not have it."""
        return str(self.first or self.second)


def pair_up(
    first: Names,
    second: Names,
    lost: Iterable[str] = (),
    gguf_name: Callable[[str], str | None] | None = None,
) -> list[Pair]:
    """Return every tensor once, in the order of the first checkpoint, then of the second.

    Args:
        first: tensors before.
        second: tensors after.
        lost: names of tensors that could not be read; they are paired only by name.
        gguf_name: returns the GGUF name of a transformers name; unset unless exactly one side is a GGUF.
    """
    unreadable = set(lost)
    found: dict[str, tuple[str, str]] = {name: (name, "name") for name in first if name in second}

    def rest() -> tuple[list[str], list[str]]:
        taken = {name for name, _ in found.values()}
        return (
            [name for name in first if name not in found and name not in unreadable],
            [name for name in second if name not in taken and name not in unreadable],
        )

    if gguf_name is not None:
        found |= _by_gguf(*rest(), gguf_name)
    while pairs := _by_prefix(*rest()):
        found |= pairs
    found |= _by_hash(*rest(), first, second)
    found |= _by_correlation(*rest(), first, second)
    taken = {name for name, _ in found.values()}
    return [
        *(Pair(name, *found.get(name, (None, ""))) for name in first),
        *(Pair(None, name) for name in second if name not in taken),
    ]


def _by_gguf(
    one: list[str], two: list[str], gguf_name: Callable[[str], str | None]
) -> dict[str, tuple[str, str]]:
    forward = {gguf_name(name): name for name in one}
    back = {gguf_name(name): name for name in two}
    return {
        **{name: (back[name], "gguf") for name in one if name in back},
        **{forward[name]: (name, "gguf") for name in two if name in forward},
    }


def _by_prefix(one: list[str], two: list[str]) -> dict[str, tuple[str, str]]:
    """Return pairs that differ by the most common pair of prefixes, for example `bert.` and none."""
    ends: dict[str, list[tuple[str, str]]] = {}
    for name in two:
        for prefix, end in _splits(name):
            ends.setdefault(end, []).append((prefix, name))
    votes = Counter(
        (prefix, other)
        for name in one
        for prefix, end in _splits(name)
        for other, _ in ends.get(end, ())
        if not (prefix and other and prefix.split(".")[-2] == other.split(".")[-2])
    )
    if not votes:
        return {}
    prefix, other = max(votes, key=lambda pair: (votes[pair], -len(pair[0]) - len(pair[1])))
    there = set(two)
    return {
        name: (other + name.removeprefix(prefix), "prefix")
        for name in one
        if name.startswith(prefix) and other + name.removeprefix(prefix) in there
    }


def _splits(name: str) -> list[tuple[str, str]]:
    """Return prefix and rest at each dot; a prefix has no number (it would mix layers), a rest two parts."""
    parts = name.split(".")
    found = [("", name)]
    for depth in range(1, min(_DEEPEST, len(parts) - 2) + 1):
        if re.search(r"\d", parts[depth - 1]):
            break
        found.append((".".join(parts[:depth]) + ".", ".".join(parts[depth:])))
    return found


def _by_hash(one: list[str], two: list[str], first: Names, second: Names) -> dict[str, tuple[str, str]]:
    """Return pairs of tensors with identical bytes that are unique on both sides."""
    shapes = {first[name].shape for name in one} & {second[name].shape for name in two}
    keys = [
        {name: _content(names[name]) for name in those if names[name].shape in shapes and names[name].size}
        for those, names in ((one, first), (two, second))
    ]
    counts = [Counter(side.values()) for side in keys]
    there = {key: name for name, key in keys[1].items()}
    return {
        name: (there[key], "hash")
        for name, key in keys[0].items()
        if key in there and counts[0][key] == counts[1][key] == 1
    }


def _content(tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
    digest = xxhash.xxh3_128()
    for part in tensor.chunks(1 << 19):
        digest.update(np.ascontiguousarray(part).view(np.uint8).data)
    return str(tensor.dtype), tensor.shape, digest.hexdigest()


def _by_correlation(
    one: list[str], two: list[str], first: Names, second: Names
) -> dict[str, tuple[str, str]]:
    """Return pairs of equal shape whose values correlate, each clearly the best match for the other."""
    found: dict[str, tuple[str, str]] = {}
    shapes = {first[name].shape for name in one if first[name].size >= LEAST and is_float(first[name].dtype)}
    for shape in shapes:
        left = [name for name in one if first[name].shape == shape]
        right = [name for name in two if second[name].shape == shape and is_float(second[name].dtype)]
        if not right:
            continue
        likeness = np.abs(_samples(left, first) @ _samples(right, second).T)
        for row, name in enumerate(left):
            column = int(likeness[row].argmax())
            best = likeness[row, column]
            others = np.concatenate([np.delete(likeness[row], column), np.delete(likeness[:, column], row)])
            if best >= SURE and best - others.max(initial=0.0) >= MARGIN:
                found[name] = (right[column], "correlation")
    return found


def _samples(names: list[str], tensors: Names) -> NDArray[np.float64]:
    """Return the first elements of tensors, [n, elements], centred and of norm 1; zero if all are equal."""
    rows = []
    for name in names:
        x = np.nan_to_num(tensors[name].read(0, min(SAMPLE, tensors[name].size)).astype(np.float64))
        x -= x.mean()
        length = float(np.linalg.norm(x))
        rows.append(x / length if length > 1e-12 * x.size else np.zeros_like(x))
    return np.array(rows)


# -- GGUF against the names and layouts of transformers


def gguf_names(first: Checkpoint, second: Checkpoint) -> Callable[[str], str | None] | None:
    """Return a function that maps a transformers name to its GGUF name.

    None unless exactly one of the two is a GGUF, and its architecture is known.
    """
    said = [one.metadata for one in (first, second) if "general.architecture" in one.metadata]
    if len(said) != 1:
        return None
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map  # noqa: PLC0415 - a GGUF is open, so it is here

    name = str(said[0]["general.architecture"])
    kinds = [kind for kind, known in MODEL_ARCH_NAMES.items() if known == name]
    if not kinds:
        return None
    table = get_tensor_name_map(kinds[0], int(said[0].get(f"{name}.block_count", 512)))

    def named(other: str) -> str | None:
        found: str | None = table.get_name(other, try_suffixes=(".weight", ".bias"))
        return found

    return named


def as_transformers(tensor: Tensor, metadata: Mapping[str, Any]) -> Tensor:
    """Return a GGUF tensor in transformers' row order: llama.cpp permutes the rows of some architectures.

    The permutation is undone by transformers' own GGUF reader.
    """
    try:
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS  # noqa: PLC0415 - an extra
    except ImportError:
        return replace(tensor, note="rows as in the GGUF: without transformers their order is not undone")
    name = str(metadata.get("general.architecture"))
    processor = TENSOR_PROCESSORS.get(name)
    if processor is None:
        return tensor
    heads = metadata.get(f"{name}.attention.head_count")
    config = {
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get(f"{name}.attention.head_count_kv", heads),
        "n_head": heads,
        "hidden_size": metadata.get(f"{name}.embedding_length"),
    }

    def read(start: int, stop: int, _into: Bytes | None) -> Array:
        done = processor(config=config).process(tensor.array(), tensor.name).weights
        flat: Array = np.ascontiguousarray(done).reshape(-1)
        return flat[start:stop]

    return replace(tensor, _read=read, by_range=False)
