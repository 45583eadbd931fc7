"""The compiled counter of the statistics pass (`native/src/weights.cpp`)."""

from typing import final, type_check_only

import numpy as np
from numpy.typing import NDArray

@type_check_only
class pybind11_type(type):  # noqa: N801 - its name at runtime
    """Metaclass of what pybind11 makes."""

@final
class Counter(metaclass=pybind11_type):
    """Counts the elements of one tensor. Lets other threads run meanwhile; itself belongs to one thread."""

    def halves(self, array: NDArray[np.uint16]) -> None:
        """Count elements of 16 bits by their patterns, [n]."""

    def floats(self, array: NDArray[np.float32], epsilon: float) -> None:
        """Count elements of 32 bits by their upper halves, and sum their moments in float64, [n]."""

    def counts(self) -> NDArray[np.uint64]:
        """Return [65536] how often each pattern, or upper half, was seen."""

    def moments(self) -> tuple[int, float, float, float, float, int, int, int]:
        """Return finite elements, their mean, sum of squares around it, least, most; zeros, near zeros,
        infinities. Of `floats` alone.
        """

@final
class Sums(metaclass=pybind11_type):
    """Sums the moments of one tensor of bfloat16 (as 16-bit patterns) or float32, and counts nothing else."""

    def add(self, array: NDArray[np.uint16] | NDArray[np.float32], epsilon: float) -> None:
        """Add elements, [n]."""

    def moments(self) -> tuple[int, float, float, float, float, int, int, int]:
        """Return the same as `Counter.moments`."""
