"""The batch contract: requirements on every batch, checked when it leaves the loader."""

from collections.abc import Mapping

import torch
from torch import Tensor

from asysi.contract.errors import ConfigError
from asysi.train.config import TensorContract


class BatchContract:
    """Names, types, shapes and ranges of a batch's tensors.

    Args:
        tensors: by name, from `contract` in the configuration.

    Raises:
        ConfigError: a type does not exist.
    """

    def __init__(self, tensors: Mapping[str, TensorContract]) -> None:
        self.tensors = dict(tensors)
        self._dtypes: dict[str, torch.dtype] = {}
        for name, tensor in tensors.items():
            dtype = getattr(torch, tensor.dtype, None)
            if not isinstance(dtype, torch.dtype):
                raise ConfigError(f"contract.{name}.dtype: torch has no type {tensor.dtype!r}")
            self._dtypes[name] = dtype

    @property
    def inputs(self) -> list[str]:
        """Names of the tensors that the model's forward takes."""
        return [name for name in self.tensors if name != "labels"]

    def check(self, batch: Mapping[str, Tensor]) -> None:
        """Compare a batch with the contract.

        Raises:
            ConfigError: names, types, shapes or values differ; the message names the tensor.
        """
        if set(batch) != set(self.tensors):
            raise ConfigError(
                f"a batch has {', '.join(sorted(batch))}, but the contract says "
                f"{', '.join(sorted(self.tensors))}"
            )
        size = len(batch["labels"])
        for name, wanted in self.tensors.items():
            tensor = batch[name]
            if tensor.dtype != self._dtypes[name]:
                raise ConfigError(
                    f"{name} of a batch is {tensor.dtype}, but the contract says {wanted.dtype}"
                )
            if not _fits(tensor.shape, (size, *wanted.shape)):
                raise ConfigError(
                    f"{name} of a batch has shape {list(tensor.shape)}, but the contract says "
                    f"{['batch', *wanted.shape]}"
                )
            if wanted.range is not None:
                self._check_range(name, tensor, wanted.range)

    def _check_range(self, name: str, tensor: Tensor, bounds: list[float]) -> None:
        low, high = (float(bound) for bound in torch.aminmax(tensor))
        if not (bounds[0] <= low and high <= bounds[1]):  # false for NaN
            raise ConfigError(
                f"{name} of a batch has values from {low:g} to {high:g}, but the contract says "
                f"{bounds[0]:g} to {bounds[1]:g}"
            )


def _fits(shape: torch.Size, wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        want in (-1, size) for size, want in zip(shape, wanted, strict=True)
    )
