"""Selects the tokens of a step to keep: a hash of seed, step and token is compared with the rate.

Deterministic on all platforms: 64-bit integer arithmetic, one exact conversion to float64, one comparison.
The hash does not depend on the rate, so a token kept at one rate is also kept at every higher rate.
"""

import numpy as np
from numpy.typing import NDArray

# The golden-ratio increment and the two multipliers of the SplitMix64 finaliser (Steele, Lea, Flood 2014).
_STRIDE = 0x9E3779B97F4A7C15
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_UNIT = 2.0**-53
_ALL = (1 << 64) - 1


def uniform(seed: int, step: int, tokens: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return a number in [0, 1) per token, a pure function of the arguments.

    Args:
        seed: seed of the experiment, >= 0.
        step: number of the step, >= 0.
        tokens: [n] indices of the tokens in the step's batch × length grid.
    """
    key = _mix(np.array([(seed * _STRIDE + 1) & _ALL], np.uint64))
    key = _mix(key ^ np.array([(step * _STRIDE + 1) & _ALL], np.uint64))
    return (_mix(tokens * np.uint64(_STRIDE) + key) >> _S11).astype(np.float64) * _UNIT


def keep_mask(seed: int, step: int, tokens: NDArray[np.uint64], rate: float) -> NDArray[np.bool_]:
    """Return which tokens of a step are kept at `rate` (0..1), as `uniform` defines it."""
    if rate >= 1.0:
        return np.ones(len(tokens), np.bool_)
    return uniform(seed, step, tokens) < rate


def keep_step(seed: int, step: int, rate: float) -> bool:
    """Return whether the whole step is kept at `rate`, decided by its first token."""
    return rate >= 1.0 or bool(uniform(seed, step, np.zeros(1, np.uint64))[0] < rate)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> _S30)) * _FIRST
    values = (values ^ (values >> _S27)) * _SECOND
    return values ^ (values >> _S31)
