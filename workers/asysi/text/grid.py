"""The tokens of a step, as the model reads them and capture books them."""

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
    """[batch · length] of ROW_DTYPE: where each token comes from."""
    content: NDArray[np.bool_]
    """[batch · length]: which tokens are data."""
