"""Parts of the training: metrics, augmentation, losses, schedules, drift, compression."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, precision_score
from torch import nn

from asysi.contract.errors import ConfigError
from asysi.train.augmentation import MixUp, RandAugment, RandomTransforms
from asysi.train.batches import BatchContract
from asysi.train.callbacks import linear_cka
from asysi.train.compression import compressed, stored_bytes
from asysi.train.config import Schedule, TensorContract
from asysi.train.factory import instantiated
from asysi.train.loss import CrossEntropy, Distillation
from asysi.train.metrics import METRICS, confusion, intervals, wilson
from asysi.train.model import initialise_kaiming
from asysi.train.schedule import factor

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


@given(PAIRS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_metrics_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    """Each metric of the confusion matrix equals scikit-learn's of the labels."""
    labels, predicted = (np.array(column) for column in zip(*pairs, strict=True))
    matrix = confusion(labels, predicted, 4).astype(float)
    assert METRICS["accuracy"](matrix) == pytest.approx(accuracy_score(labels, predicted))
    assert METRICS["balanced_accuracy"](matrix) == pytest.approx(balanced_accuracy_score(labels, predicted))
    macro = {"average": "macro", "zero_division": 0}
    assert METRICS["macro_f1"](matrix) == pytest.approx(f1_score(labels, predicted, **macro))
    assert METRICS["macro_precision"](matrix) == pytest.approx(precision_score(labels, predicted, **macro))


def test_intervals_cover_what_they_promise() -> None:
    """Of 400 samples of 200 predictions with 90% right, 90 to 99% have 0.9 in their 95% interval."""
    rng = np.random.default_rng(0)
    held = [wilson(int(rng.binomial(200, 0.9)), 200, 0.95) for _ in range(400)]
    assert 0.90 <= np.mean([one.low <= 0.9 <= one.high for one in held]) <= 0.99
    all_right = intervals(np.diag([50, 50]), ["accuracy"], confidence=0.95, resamples=200, seed=0)["accuracy"]
    assert (all_right.value, all_right.high) == (1.0, 1.0)
    assert 0.95 < all_right.low < 0.97  # never certain


@given(st.integers(0, 3), st.integers(0, 30), st.integers(0, 2**31))
def test_augmented_images_stay_images(count: int, magnitude: int, seed: int) -> None:
    """Whatever is drawn, an image keeps type, shape and range; the same seed draws the same."""
    image = torch.randint(256, (1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    first = RandomTransforms(count, magnitude)(image)
    torch.manual_seed(seed)
    assert first.dtype == torch.uint8
    assert first.shape == image.shape
    assert torch.equal(first, RandAugment(num_ops=count, magnitude=magnitude, own=True)(image))
    if not count:
        assert torch.equal(first, image)


def test_mixup_mixes_labels_as_it_mixes_images() -> None:
    """Labels become shares that sum to one, with the weight that images have; token numbers are refused."""
    torch.manual_seed(3)
    images = torch.eye(4).reshape(4, 1, 2, 2)
    mixed = MixUp(num_classes=4, alpha=1.0)({"images": images, "labels": torch.arange(4)})
    assert torch.allclose(mixed["labels"].sum(1), torch.ones(4))
    assert torch.allclose(mixed["labels"], mixed["images"].flatten(1))
    with pytest.raises(ConfigError, match=r"input_ids is torch\.int64 and cannot be mixed"):
        MixUp(4)({"input_ids": torch.ones(4, 2, dtype=torch.int64), "labels": torch.arange(4)})


def test_schedules_rise_and_fall() -> None:
    """The factor rises over the warm-up to 1 and ends at the floor; constant stays at 1."""
    cosine = Schedule(name="cosine", warmup_steps=4, floor=0.1)
    assert [factor(cosine, step, 104) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(cosine, 54, 104) == pytest.approx(0.55)
    assert factor(cosine, 104, 104) == pytest.approx(0.1)
    assert factor(Schedule(name="linear"), 25, 100) == pytest.approx(0.75)
    assert factor(Schedule(name="constant"), 99, 100) == 1.0


def test_distillation_is_between_label_and_teacher() -> None:
    """Weight 0 is the cross-entropy; with weight 1 a model that equals its teacher has no loss."""
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    assert torch.allclose(
        Distillation(weight=0.0)(logits, labels, logits.flip(0)), CrossEntropy()(logits, labels)
    )
    assert float(Distillation(weight=1.0)(logits, labels, logits)) == pytest.approx(0, abs=1e-6)


def test_kaiming_spares_what_is_pretrained() -> None:
    """Weights below a pretrained module stay; the others have the deviation that He et al. give."""
    model = nn.ModuleDict({"kept": nn.Sequential(nn.Linear(4, 4)), "drawn": nn.Linear(400, 300)})
    model["kept"].pretrained = True  # type: ignore[assignment]
    before = model["kept"][0].weight.clone()
    initialise_kaiming(model)
    assert torch.equal(model["kept"][0].weight, before)
    assert float(model["drawn"].weight.detach().std()) == pytest.approx(math.sqrt(2 / 400), rel=0.02)


def test_cka_ignores_rotation_and_scale() -> None:
    """Linear CKA is 1 for rotated and scaled features, near 0 for unrelated ones, 0 for constant ones."""
    torch.manual_seed(0)
    features = torch.randn(300, 6)
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    assert linear_cka(features, 3 * features @ rotation + 1) == pytest.approx(1)
    assert linear_cka(features, torch.randn(300, 6)) < 0.1
    assert linear_cka(features, torch.ones(300, 6)) == 0


def test_compressed_variants_are_smaller_and_close() -> None:
    """int8 takes a quarter and errs by half a step at most; pruning zeroes half; the model is unchanged."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small, size = compressed(model, "int8")
    assert size < 0.32 * stored_bytes(model)
    step = model[0].weight.abs().amax(1, keepdim=True) / 127
    assert bool(((small[0].weight - model[0].weight).abs() <= step / 2 + 1e-7).all())  # type: ignore[index]
    pruned, size = compressed(model, "pruned")
    weights = torch.cat([layer.weight.flatten() for layer in pruned])  # type: ignore[attr-defined]
    assert int((weights == 0).sum()) == len(weights) // 2
    assert size < 0.6 * stored_bytes(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


GOOD = {"images": torch.zeros(2, 1, 8, 8), "labels": torch.zeros(2, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({**GOOD, "more": torch.zeros(2)}, "a batch has images, labels, more, but the contract"),
        ({**GOOD, "images": GOOD["images"].double()}, r"images of a batch is torch\.float64"),
        ({**GOOD, "images": torch.zeros(2, 8, 8)}, r"images of a batch has shape \[2, 8, 8\]"),
        ({**GOOD, "images": torch.zeros(3, 1, 8, 8)}, r"images of a batch has shape \[3, 1, 8, 8\]"),
        ({**GOOD, "images": torch.full((2, 1, 8, 8), 1.5)}, "images of a batch has values from 1.5 to 1.5"),
        ({**GOOD, "images": torch.full((2, 1, 8, 8), math.nan)}, "images of a batch has values from nan"),
    ],
)  # fmt: skip
def test_a_batch_that_breaks_the_contract_is_named(batch: dict[str, torch.Tensor], message: str) -> None:
    """Names, types, shapes, ranges and NaN are found at the loader's edge."""
    contract = BatchContract(
        {
            "images": TensorContract(dtype="float32", shape=[1, 8, 8], range=[-1, 1]),
            "labels": TensorContract(dtype="int64", shape=[], range=[0, 9]),
        }
    )
    contract.check(GOOD)
    with pytest.raises(ConfigError, match=message):
        contract.check(batch)


def test_objects_are_made_by_import_path() -> None:
    """`_target_` names a class, also within parameters; what cannot be imported or made is named."""
    made = instantiated({"_target_": "torch.nn.Sequential"})
    assert isinstance(made, nn.Sequential)
    assert instantiated(None) is None
    inner = instantiated({"_target_": "builtins.dict", "loss": {"_target_": "asysi.train.loss.CrossEntropy"}})
    assert isinstance(inner["loss"], CrossEntropy)
    for config, message in (
        ({"x": 1}, "has no _target_"),
        ({"_target_": "torch.nn.Nothing"}, r"torch\.nn\.Nothing cannot be imported"),
        ({"_target_": "torch.nn.Linear", "width": 3}, r"torch\.nn\.Linear cannot be made with width"),
    ):
        with pytest.raises(ConfigError, match=message):
            instantiated(config)
