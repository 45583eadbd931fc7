"""FVU, the fraction of variance unexplained: the shared definition of trainer and report.

FVU = Σ‖x − x̂‖² / Σ‖x − mean(x)‖²    over rows, sums in float64
"""

import math

RESOLUTION = 1e-12
"""Share of Σ‖x‖² up to which Σ‖x − mean(x)‖² counts as rounding error: relative deviations of 1e-6."""

CONSTANT = "the held-out activations are constant: there is no variance to explain"
NOT_TRAINED = "no row with finite activations came to train on"
NO_ROWS = "no held-out row with finite activations was kept"
OVERFLOW = "the sums of squares are not finite"


def fvu(error: float, variance: float, energy: float) -> float | None:
    """Return the fraction of variance unexplained; None if it is undefined (see `why_undefined`).

    Args:
        error: Σ‖x − x̂‖².
        variance: Σ‖x − mean(x)‖².
        energy: Σ‖x‖².
    """
    return None if why_undefined(error, variance, energy) else error / variance


def why_undefined(error: float, variance: float, energy: float) -> str | None:
    """Return why the FVU is undefined; None if it is defined. Arguments as in `fvu`."""
    if not (math.isfinite(error) and math.isfinite(energy)):
        return OVERFLOW
    return CONSTANT if variance <= RESOLUTION * energy else None
