"""Runs a module without its weights: token ids are real, activations have no values.

A hollow tensor has a shape, a dtype and a device, but no data. Values that depend only on token ids
(positions, masks) are computed; everything that involves a weight is hollow. A forward pass of any size thus
needs no memory for weights and no time for matrix products, and a token or position out of range of an
embedding is an error as in a real run. Tensors on the meta device would not detect this, and fail where code
reads the values of a mask.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_map

_VALUELESS = frozenset({torch.empty, torch.empty_strided, torch.rand, torch.randn})
_CPU, _META = torch.device("cpu"), torch.device("meta")


class NoRow(IndexError):  # noqa: N818 - as precise as its base
    """An index is out of range of an embedding."""


class MetaInitMode(torch.overrides.TorchFunctionMode):
    """Context in which uninitialised tensors, such as weights, are created on the meta device."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Create uninitialised tensors on the meta device."""
        kwargs = kwargs or {}
        if func in _VALUELESS and kwargs.get("device") is None:
            kwargs = kwargs | {"device": _META}
        return func(*args, **kwargs)


class Hollow(torch.Tensor):
    """A tensor without data that reports the CPU as its device; results computed from one are hollow too.

    Reading a value (`item`, `tolist`, a condition) raises RuntimeError or NotImplementedError.
    """

    shell: torch.Tensor
    """Meta tensor with its shape, strides and dtype."""

    @staticmethod
    def __new__(cls: type["Hollow"], shell: torch.Tensor) -> "Hollow":
        """Return a hollow tensor with the properties of the meta tensor `shell`."""
        made: Hollow = torch.Tensor._make_wrapper_subclass(
            cls, shell.size(), strides=shell.stride(), dtype=shell.dtype, device=_CPU
        )
        made.shell = shell
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Return shape and dtype."""
        return f"Hollow({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return a hollow result; embeddings check their indices if these are known."""
        if func is torch.ops.aten.embedding.default:
            _look_up(args[0], args[1])
        result = func(*tree_map(_shell, args), **tree_map(_shell, kwargs or {}))
        return args[0] if _in_place(func) else tree_map(_filled, result)


def run_hollow(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> None:
    """Run a module's forward pass with hollow parameters; its hooks receive hollow outputs.

    Raises:
        NoRow: a token or position is out of range of an embedding.
        Exception: any error raised by the forward pass, including one caused by reading a missing value.
    """
    state: dict[str, torch.Tensor] = dict(module.named_parameters())
    state |= {name: buffer for name, buffer in module.named_buffers() if buffer.is_meta}
    hollow: dict[str, torch.Tensor] = {
        name: Hollow(value.detach().to(_META)) for name, value in state.items()
    }
    with torch.no_grad():
        torch.func.functional_call(module, hollow, args=(), kwargs=dict(inputs))


def _look_up(weight: torch.Tensor, index: torch.Tensor) -> None:
    if isinstance(index, Hollow) or index.is_meta or not index.numel():
        return
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= weight.shape[0]:
        raise NoRow(f"an embedding of {weight.shape[0]} rows is asked for row {low if low < 0 else high}")


def _in_place(func: Any) -> bool:
    name = func._schema.name.rpartition("::")[2]
    return bool(name.endswith("_") and not name.startswith("_"))


def _shell(value: Any) -> Any:
    if isinstance(value, Hollow):
        return value.shell
    if isinstance(value, torch.Tensor):
        return value.to(_META)
    return _META if isinstance(value, torch.device) else value


def _filled(value: Any) -> Any:
    return Hollow(value) if isinstance(value, torch.Tensor) else value
