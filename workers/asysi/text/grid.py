"""The tokens of a step, as read by the model and counted by capture."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StepTokens:
    """The batch × length grid of one step, flattened row by row."""

    step: int
    """Number of the step, unique in the experiment."""
    batch: int
    length: int
    rows: NDArray[np.void]
    """[batch · length] of ROW_DTYPE: the origin of each token."""
    content: NDArray[np.bool_]
    """[batch · length]: which tokens are data."""
