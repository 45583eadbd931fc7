"""Augmentation: RandAugment and MixUp. RandAugment is torchvision's if installed, otherwise a built-in one.

All draw from torch's generator, which the loader seeds for each sample.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from asysi.contract.errors import ConfigError

_LEVELS = 31


def RandAugment(num_ops: int = 2, magnitude: int = 9, own: bool = False) -> Callable[[Tensor], Tensor]:  # noqa: N802 - a class in torchvision
    """Return RandAugment for uint8 images [channels, height, width].

    Args:
        num_ops: transformations per sample.
        magnitude: strength from 0 to 30.
        own: whether to use the built-in one even if torchvision is installed.
    """
    if not own and find_spec("torchvision"):
        from torchvision.transforms import v2  # noqa: PLC0415 - optional

        chosen: Callable[[Tensor], Tensor] = v2.RandAugment(num_ops=num_ops, magnitude=magnitude)
        return chosen
    return RandomTransforms(num_ops, magnitude)


class RandomTransforms:
    """RandAugment (Cubuk et al. 2020, arXiv:1909.13719): `num_ops` random transformations of equal strength.

    Args:
        num_ops: transformations per sample.
        magnitude: strength from 0 to 30.

    Raises:
        ValueError: the magnitude is out of range.
    """

    def __init__(self, num_ops: int, magnitude: int) -> None:
        if not 0 <= magnitude < _LEVELS:
            raise ValueError(f"magnitude must be from 0 to {_LEVELS - 1}, not {magnitude}")
        self.num_ops, self.strength = num_ops, magnitude / (_LEVELS - 1)

    def __call__(self, image: Tensor) -> Tensor:
        """Return a transformed copy of a uint8 image [channels, height, width]."""
        changed = image.float()
        for _ in range(self.num_ops):
            number, sign = int(torch.randint(len(_OPERATIONS), ())), 1 - 2 * int(torch.randint(2, ()))
            changed = _OPERATIONS[number](changed, sign * self.strength)
        return changed.round().clamp(0, 255).to(torch.uint8)


class MixUp:
    """Mixes each sample of a batch with another one (Zhang et al. 2018, arXiv:1710.09412).

    Args:
        num_classes: width of the mixed labels.
        alpha: parameter of the beta distribution from which the weight is drawn.

    Raises:
        ValueError: alpha is not positive.
    """

    def __init__(self, num_classes: int, alpha: float = 0.2) -> None:
        if alpha <= 0:
            raise ValueError(f"alpha must be positive, not {alpha}")
        self.num_classes, self.alpha = num_classes, alpha

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a mixed batch: float tensors, and labels as shares [batch, num_classes].

        Raises:
            ConfigError: a tensor does not have a floating-point type, so it cannot be mixed.
        """
        labels = functional.one_hot(batch["labels"], self.num_classes).float()
        weight = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
        partner = torch.randperm(len(labels))
        mixed: dict[str, Tensor] = {}
        for name, tensor in {**batch, "labels": labels}.items():
            if not tensor.is_floating_point():
                raise ConfigError(
                    f"data.mixup: {name} is {tensor.dtype} and cannot be mixed; set mixup to null"
                )
            mixed[name] = weight * tensor + (1 - weight) * tensor[partner]
        return mixed


def _affine(image: Tensor, matrix: list[list[float]]) -> Tensor:
    grid = functional.affine_grid(torch.tensor([matrix]), [1, *image.shape], align_corners=False)
    return functional.grid_sample(image[None], grid, align_corners=False)[0]


def _rotate(image: Tensor, strength: float) -> Tensor:
    angle = torch.tensor(strength * torch.pi / 6)  # 30 degrees at most
    cos, sin = float(angle.cos()), float(angle.sin())
    return _affine(image, [[cos, -sin, 0.0], [sin, cos, 0.0]])


def _contrast(image: Tensor, strength: float) -> Tensor:
    mean = image.mean()
    return (image - mean) * (1 + 0.9 * strength) + mean


_OPERATIONS: tuple[Callable[[Tensor, float], Any], ...] = (
    lambda image, _strength: image,
    _rotate,
    lambda image, strength: _affine(image, [[1.0, 0.3 * strength, 0.0], [0.0, 1.0, 0.0]]),
    lambda image, strength: _affine(image, [[1.0, 0.0, 0.0], [0.3 * strength, 1.0, 0.0]]),
    lambda image, strength: _affine(image, [[1.0, 0.0, 0.9 * strength], [0.0, 1.0, 0.0]]),
    lambda image, strength: _affine(image, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.9 * strength]]),
    lambda image, strength: image * (1 + 0.9 * strength),
    _contrast,
)
"""Identity, rotation, shear and translation along both axes, brightness, contrast."""
