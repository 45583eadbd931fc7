"""A tensor of a checkpoint: what it is, how it is stored, and how its elements are read."""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asysi.weights.reading.storage import Bytes

Array = NDArray[Any]
Read = Callable[[int, int, Bytes | None], Array]
"""Returns the elements from, up to but without, in one dimension; perhaps in the memory that is given."""


WEIGHTS = "weights"
"""The elements are the weights."""
DEQUANTISED = "dequantised"
"""The elements are what the stored ones stand for."""
STORED_FORM = "stored form, not weights"
"""The elements are codes, scales or zero points of a quantisation that could not be undone."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How a tensor's elements are stored, where that is not as its `dtype`."""

    stored: str
    nbytes: int
    form: str = WEIGHTS
    by: str = ""
    """Package and version that dequantises."""
    parts: Callable[[], Iterator[Array]] | None = None
    """Yields the stored bytes, for the hash; unset where they are the elements."""
    noise: Callable[[Array], float | None] = lambda _values: None
    """Returns the standard deviation of the rounding to the stored form, None where it is not known, from all
    elements in one dimension."""


_kept = threading.local()
_KEPT_BYTES = 8 << 20


@contextmanager
def _scratch(size: int) -> Iterator[Bytes]:
    """Lend memory that the thread keeps: fresh pages cost as much as a pass over them."""
    memory: Bytes | None = getattr(_kept, "memory", None)
    _kept.memory = None  # whoever asks meanwhile gets other memory
    if memory is None or memory.nbytes < size:
        memory = np.empty(size, np.uint8)
    try:
        yield memory
    finally:
        if memory.nbytes <= _KEPT_BYTES:
            _kept.memory = memory


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that can be read."""

    name: str
    dtype: np.dtype[np.generic]
    """Type of the elements as numpy has it, ml_dtypes' for bfloat16 and 8-bit floats."""
    shape: tuple[int, ...]
    file: str
    """File that holds it, relative to the checkpoint."""
    framework: str
    """What wrote it: `pt`, `tf`, `flax`, … as a safetensors file says itself, else the format's name."""
    _read: Read = field(repr=False, compare=False)
    by_range: bool = True
    """Whether a part can be read without the whole, which is decompressed or dequantised otherwise."""
    coding: Coding | None = field(default=None, repr=False, compare=False)
    """How the elements are stored where that is not as `dtype`."""
    note: str = ""
    """What a reader of its figures must know."""

    @property
    def stored(self) -> str:
        """Name of the stored type: `dtype`'s, or that of the quantisation, as `Q4_K`."""
        return self.coding.stored if self.coding else str(self.dtype)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the elements as stored, with their scales."""
        return self.coding.nbytes if self.coding else self.nbytes

    @property
    def form(self) -> str:
        """What the elements are: see `WEIGHTS`, `DEQUANTISED`, `STORED_FORM`."""
        return self.coding.form if self.coding else WEIGHTS

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.size * self.dtype.itemsize

    @property
    def rows(self) -> int:
        """Rows as a matrix: the first dimension; a scalar has one."""
        return self.shape[0] if self.shape else 1

    @property
    def cols(self) -> int:
        """Columns as a matrix: what the other dimensions make together; a vector has one."""
        return math.prod(self.shape[1:])

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return elements in storage order, in one dimension.

        Raises:
            OSError: the file cannot be read any more.
        """
        return self._read(start, self.size if stop is None else stop, None)

    def chunks(self, elements: int) -> Iterator[Array]:
        """Yield all elements in order, at most `elements` at once; the next chunk may overwrite the last."""
        if not self.by_range:
            whole = self.read()
            yield from (whole[start : start + elements] for start in range(0, self.size, elements))
            return
        with _scratch(min(elements, self.size) * self.dtype.itemsize) as memory:
            for start in range(0, self.size, elements):
                yield self._read(start, min(self.size, start + elements), memory)

    def head(self, rows: int) -> "Tensor":
        """Return the first `rows` of the first dimension as a tensor."""
        return replace(self, shape=(rows, *self.shape[1:]), coding=None) if rows != self.rows else self

    def array(self) -> Array:
        """Return the whole tensor in its shape."""
        return self.read().reshape(self.shape)
