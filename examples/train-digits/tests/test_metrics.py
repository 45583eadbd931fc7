"""The metrics, against figures computed by hand."""

import numpy as np
from train.metrics import METRICS, intervals


def test_metrics_of_a_known_matrix() -> None:
    """Three of four right: accuracy 3/4, recalls 1 and 1/2, F1 0.8 and 2/3."""
    matrix = np.array([[2, 0], [1, 1]])
    found = intervals(matrix, list(METRICS), confidence=0.95, resamples=500, seed=0)
    assert found["accuracy"].value == 0.75
    assert found["balanced_accuracy"].value == 0.75
    assert abs(found["macro_f1"].value - (0.8 + 2 / 3) / 2) < 1e-12
    assert all(one.low <= one.value <= one.high for one in found.values())
