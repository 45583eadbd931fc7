"""The model, with and without labels."""

import inspect

import torch
from train.model import MyModel


def test_the_signature_is_that_of_the_specification() -> None:
    """The model takes these parameters by keyword."""
    assert list(inspect.signature(MyModel.__init__).parameters)[:2] == ["self", "num_classes"]
    wanted = ["self", "input_ids", "attention_mask", "labels"]
    assert list(inspect.signature(MyModel.forward).parameters) == wanted


def test_labels_add_a_loss_and_padding_changes_nothing() -> None:
    """Labels add their mean cross-entropy; padding tokens change no logit; the encoder is frozen."""
    model = MyModel(num_classes=6).eval()
    ids = torch.randint(1000, 2000, (2, 32))
    mask = (torch.arange(32) < 9).long().repeat(2, 1)
    alone, labels = model(input_ids=ids, attention_mask=mask), torch.tensor([1, 2])
    both = model(input_ids=ids.where(mask.bool(), 0), attention_mask=mask, labels=labels)
    assert set(alone) == {"logits"}
    assert torch.allclose(alone["logits"], both["logits"], atol=1e-5)
    assert torch.allclose(both["loss"], torch.nn.functional.cross_entropy(both["logits"], labels))
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trained == ["head.weight", "head.bias"]
