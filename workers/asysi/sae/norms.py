"""Leaves out rows of exceptional norm: in many language models a few tokens hold nearly all variance."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SHIFT = 17
"""Bits of a float32 that a bucket does not tell apart: there are 64 buckets to an octave."""
_BUCKETS = 1 << (31 - _SHIFT)


class RunningMedian:
    """Median of numbers >= 0 over everything seen so far, to 1.6%.

    The numbers are counted in logarithmic buckets: the same stream gives the same median, however it is cut.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(_BUCKETS, dtype=torch.int64)
        """How many numbers fell into each bucket."""

    def add(self, values: NDArray[np.float32]) -> None:
        """Count numbers [n]."""
        buckets = np.minimum(values.view(np.uint32) >> _SHIFT, _BUCKETS - 1)
        self.counts += torch.from_numpy(np.bincount(buckets, minlength=_BUCKETS))

    @property
    def value(self) -> float:
        """The median, linear within its bucket; 0 before the first number."""
        until = np.cumsum(self.counts.numpy())
        if not until[-1]:
            return 0.0
        half = until[-1] / 2
        bucket = int(np.searchsorted(until, half))
        low, high = (np.array([bucket, bucket + 1], np.uint32) << _SHIFT).view(np.float32)
        inside = (half - (until[bucket] - int(self.counts[bucket]))) / int(self.counts[bucket])
        return float(low + inside * (high - low))


def row_norms(rows: Tensor) -> NDArray[np.float32]:
    """Return the L2 norms [n] of rows [n, width], as float32; infinite where they do not fit."""
    return np.asarray(torch.linalg.vector_norm(rows.float(), dim=1).numpy(), np.float32)


class NormFilter:
    """Tells rows whose norm exceeds a multiple of the running median.

    Args:
        multiple: > 1.
    """

    def __init__(self, multiple: float) -> None:
        self.multiple = multiple
        self.median = RunningMedian()

    def within(self, rows: Tensor, finite: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Take the finite ones of rows [n, width] into the median; return which rows do not exceed the limit.

        A row is judged by the median with its own packet in it, so that the first ones are judged too.
        """
        norms = row_norms(rows)
        self.median.add(norms[finite])
        return norms <= self.limit

    @property
    def limit(self) -> float:
        """The largest norm that is kept."""
        return self.multiple * self.median.value
