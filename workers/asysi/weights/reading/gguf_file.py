"""Tensors of a GGUF file: dequantised by the package gguf, with stored type, stored bytes and noise."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import numpy as np

from asysi.contract.errors import ConfigError
from asysi.weights.errors import HeaderError
from asysi.weights.reading.dtypes import STORED
from asysi.weights.reading.storage import Bytes, is_remote
from asysi.weights.reading.tensors import DEQUANTISED, STORED_FORM, Array, Coding, Read, Tensor

_PLAIN = {
    "F64": "F64",
    "F32": "F32",
    "F16": "F16",
    "BF16": "BF16",
    "I8": "I8",
    "I16": "I16",
    "I32": "I32",
    "I64": "I64",
}
"""GGUF types that are not quantised, and their names in `STORED`."""
_GRIDS = {
    "Q4_0": 32, "Q4_1": 32, "Q5_0": 32, "Q5_1": 32, "Q8_0": 32, "Q8_1": 32,
    "Q2_K": 16, "Q3_K": 16, "Q4_K": 32, "Q5_K": 32, "Q6_K": 16, "Q8_K": 32,
}  # fmt: skip
"""Types whose elements lie on a uniform grid, and how many neighbours share a grid."""
_SAMPLED = 1 << 16
"""Maximum number of groups whose step is measured."""


def gguf_tensors(path: str, shard: str, metadata: dict[str, Any]) -> list[Tensor]:
    """Return the tensors of a GGUF; the file's own metadata is added to `metadata`.

    Raises:
        ConfigError: it is remote, or the package gguf is missing.
        HeaderError: it is not a complete GGUF file.
    """
    if is_remote(path):
        raise ConfigError(f"{path}: a GGUF is read from a local file only; fetch it first")
    try:
        from gguf import GGUFReader  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(f"{path} needs the package gguf: pip install 'asysi[weights]'") from error
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise HeaderError(f"{shard}: it is not a whole GGUF file ({error}); fetch it again") from error
    for key, one in reader.fields.items():
        with suppress(ValueError, IndexError, UnicodeDecodeError):
            if not key.startswith("tokenizer."):
                metadata[key] = one.contents()
    return [_tensor(one, shard) for one in reader.tensors]


def _tensor(one: Any, shard: str) -> Tensor:
    shape = tuple(int(size) for size in reversed(one.shape))
    if plain := _PLAIN.get(one.tensor_type.name):
        return Tensor(one.name, STORED[plain], shape, shard, "gguf", _plain_read(one, STORED[plain]))
    return _quantised(one, shape, shard)


def _plain_read(one: Any, dtype: np.dtype[np.generic]) -> Read:
    def read(start: int, stop: int, _into: Bytes | None) -> Array:
        part: Array = one.data.view(dtype).reshape(-1)[start:stop]
        return part

    return read


def _quantised(one: Any, shape: tuple[int, ...], shard: str) -> Tensor:
    from gguf import dequantize  # noqa: PLC0415 - the reader has it

    stored = one.tensor_type.name
    raw: Array = np.asarray(one.data).reshape(-1).view(np.uint8)

    def read(start: int, stop: int, _into: Bytes | None) -> Array:
        whole: Array = np.asarray(dequantize(one.data, one.tensor_type), np.float32).reshape(-1)
        return whole[start:stop]

    def parts() -> Iterator[Array]:
        yield raw

    try:  # the only way to find out whether the package can dequantise a type
        block: Array = raw[: one.data.nbytes // max(1, one.data.reshape(-1, one.data.shape[-1]).shape[0])]
        dequantize(block, one.tensor_type)
    except NotImplementedError:
        coding = Coding(stored, raw.nbytes, STORED_FORM)
        note = f"the package gguf does not dequantise {stored}: these are its bytes"
        return Tensor(
            one.name, raw.dtype, (raw.nbytes,), shard, "gguf", _plain_read(one, raw.dtype), True, coding, note
        )
    coding = Coding(
        stored, raw.nbytes, DEQUANTISED, f"gguf {version('gguf')}", parts, grid_noise(_GRIDS.get(stored))
    )
    return Tensor(one.name, STORED["F32"], shape, shard, "gguf", read, False, coding)


def grid_noise(group: int | None) -> Callable[[Array], float | None]:
    """Return a function that computes the noise of rounding to uniform grids shared by `group` neighbours.

    The step of a grid is the smallest distance between two values of its group: among 16 or more values on a
    grid of at most 256 levels, two are nearly always adjacent. The noise is the root mean square of
    step / √12.
    """

    def noise(values: Array) -> float | None:
        if group is None or values.size < group:
            return None
        groups = values[: values.size // group * group].reshape(-1, group)
        groups = np.sort(groups[:: max(1, len(groups) // _SAMPLED)].astype(np.float64), axis=1)
        gaps = np.diff(groups, axis=1)
        gaps[gaps <= 1e-6 * np.abs(groups).max(axis=1, keepdims=True)] = np.inf
        steps = gaps.min(axis=1)
        return float(np.sqrt(np.square(np.where(np.isfinite(steps), steps, 0.0)).mean() / 12))

    return noise
