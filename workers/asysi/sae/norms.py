"""Excludes rows with exceptional norms: in many language models a few tokens hold nearly all variance."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SHIFT = 17
"""Number of low float32 bits ignored by a bucket, which gives 64 buckets per octave."""
_BUCKETS = 1 << (31 - _SHIFT)


class RunningMedian:
    """Running median of numbers >= 0, accurate to 1.6%.

    The numbers are counted in logarithmic buckets, so the median does not depend on how a stream is split.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(_BUCKETS, dtype=torch.int64)
        """Number of values in each bucket."""

    def add(self, values: NDArray[np.float32]) -> None:
        """Add values [n]."""
        buckets = np.minimum(values.view(np.uint32) >> _SHIFT, _BUCKETS - 1)
        self.counts += torch.from_numpy(np.bincount(buckets, minlength=_BUCKETS))

    @property
    def value(self) -> float:
        """The median, interpolated linearly within its bucket; 0 before the first value."""
        until = np.cumsum(self.counts.numpy())
        if not until[-1]:
            return 0.0
        half = until[-1] / 2
        bucket = int(np.searchsorted(until, half))
        low, high = (np.array([bucket, bucket + 1], np.uint32) << _SHIFT).view(np.float32)
        inside = (half - (until[bucket] - int(self.counts[bucket]))) / int(self.counts[bucket])
        return float(low + inside * (high - low))


def row_norms(rows: Tensor) -> NDArray[np.float32]:
    """Return the L2 norms [n] of rows [n, width] as float32; infinite on overflow."""
    return np.asarray(torch.linalg.vector_norm(rows.float(), dim=1).numpy(), np.float32)


class NormFilter:
    """Detects rows whose norm exceeds a multiple of the running median.

    Args:
        multiple: multiple of the median, > 1.
    """

    def __init__(self, multiple: float) -> None:
        self.multiple = multiple
        self.median = RunningMedian()

    def within(self, rows: Tensor, finite: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Add the finite rows of [n, width] to the median; return which rows do not exceed the limit.

        The median includes the rows' own packet, so that the first packet can be filtered too.
        """
        norms = row_norms(rows)
        self.median.add(norms[finite])
        return norms <= self.limit

    @property
    def limit(self) -> float:
        """The maximum norm of rows to keep."""
        return self.multiple * self.median.value
