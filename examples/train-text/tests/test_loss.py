"""The loss is the mean cross-entropy."""

import math

import torch
from train.loss import CrossEntropy


def test_equal_logits_cost_the_logarithm_of_the_classes() -> None:
    """Without knowledge the loss is ln(classes), for indices and for shares."""
    logits = torch.zeros(3, 5)
    assert abs(float(CrossEntropy()(logits, torch.tensor([0, 1, 4]))) - math.log(5)) < 1e-6
    assert abs(float(CrossEntropy()(logits, torch.full((3, 5), 0.2))) - math.log(5)) < 1e-6
