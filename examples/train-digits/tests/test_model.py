"""The model, with and without labels."""

import inspect

import torch
from train.model import MyModel


def test_the_signature_is_that_of_the_specification() -> None:
    """The model takes these parameters by keyword."""
    assert list(inspect.signature(MyModel.__init__).parameters) == ["self", "num_classes"]
    assert list(inspect.signature(MyModel.forward).parameters) == ["self", "images", "labels"]


def test_labels_add_a_loss_and_change_no_logit() -> None:
    """Without labels the model returns logits alone; with labels the same, and their mean cross-entropy."""
    model, images = MyModel(num_classes=10).eval(), torch.rand(3, 1, 8, 8)
    alone, labels = model(images=images), torch.tensor([1, 2, 3])
    both = model(images=images, labels=labels)
    assert set(alone) == {"logits"}
    assert alone["logits"].shape == (3, 10)
    assert torch.equal(alone["logits"], both["logits"])
    assert torch.allclose(both["loss"], torch.nn.functional.cross_entropy(alone["logits"], labels))
