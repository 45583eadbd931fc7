"""A tensor of a checkpoint: its type and shape, how it is stored, and how its elements are read."""

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
"""Returns the elements from start up to, not including, stop, in one dimension; may use the given memory."""


WEIGHTS = "weights"
"""The elements are the weights."""
DEQUANTISED = "dequantised"
"""The elements are the values that the stored codes represent."""
STORED_FORM = "stored form, not weights"
"""The elements are codes, scales or zero points of a quantisation that could not be undone."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How a tensor's elements are stored, if not as its `dtype`."""

    stored: str
    nbytes: int
    form: str = WEIGHTS
    by: str = ""
    """Package and version that dequantises."""
    parts: Callable[[], Iterator[Array]] | None = None
    """Yields the stored bytes, for the hash; unset if the elements are stored as they are."""
    noise: Callable[[Array], float | None] = lambda _values: None
    """Takes all elements in one dimension; returns the standard deviation of the rounding to the stored form,
    None if it is not known."""


_kept = threading.local()
_KEPT_BYTES = 8 << 20


@contextmanager
def _scratch(size: int) -> Iterator[Bytes]:
    """Lend memory that the thread reuses: fresh pages cost as much as a pass over them."""
    memory: Bytes | None = getattr(_kept, "memory", None)
    _kept.memory = None  # a nested call gets other memory
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
    """Numpy type of the elements; from ml_dtypes for bfloat16 and 8-bit floats."""
    shape: tuple[int, ...]
    file: str
    """File that holds it, relative to the checkpoint."""
    framework: str
    """Framework that wrote it: `pt`, `tf`, `flax`, … from a safetensors header, else the format's name."""
    _read: Read = field(repr=False, compare=False)
    by_range: bool = True
    """Whether a range can be read alone; if not, the whole tensor is decompressed or dequantised."""
    coding: Coding | None = field(default=None, repr=False, compare=False)
    """How the elements are stored, if not as `dtype`."""
    note: str = ""
    """Caveat for readers of its statistics."""

    @property
    def stored(self) -> str:
        """Name of the stored type: that of `dtype`, or of the quantisation, for example `Q4_K`."""
        return self.coding.stored if self.coding else str(self.dtype)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the elements as stored, including their scales."""
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
        """Columns as a matrix: the product of the other dimensions; a vector has one."""
        return math.prod(self.shape[1:])

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return elements in storage order, in one dimension.

        Raises:
            OSError: the file can no longer be read.
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
