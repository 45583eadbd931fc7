"""Runs a module without its weights: token numbers are real, activations have no values.

A hollow tensor has a shape, a type and a device, and nothing in it. What is computed from token numbers
alone (positions, masks) is computed; what a weight takes part in is hollow. So a forward of any size takes no
memory for weights and no time for products, and a token or a position that an embedding has no row for is an
error as it is in a real run. Tensors on the meta device do not see it, and fail where a mask is looked at.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_map

_VALUELESS = frozenset({torch.empty, torch.empty_strided, torch.rand, torch.randn})
_CPU, _META = torch.device("cpu"), torch.device("meta")


class NoRow(IndexError):  # noqa: N818 - as precise as its base
    """An embedding was asked for a row that it does not have."""


class Structure(torch.overrides.TorchFunctionMode):
    """While entered, what is made without values is made without memory: weights, not tables of positions."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Put what has no values on the meta device."""
        kwargs = kwargs or {}
        if func in _VALUELESS and kwargs.get("device") is None:
            kwargs = kwargs | {"device": _META}
        return func(*args, **kwargs)


class Hollow(torch.Tensor):
    """A tensor without values, on the CPU as far as it says; what is computed with one is hollow too.

    Asking for a value (`item`, `tolist`, a condition) raises RuntimeError or NotImplementedError.
    """

    shell: torch.Tensor
    """Its shape, strides and type, on the meta device."""

    @staticmethod
    def __new__(cls: type["Hollow"], shell: torch.Tensor) -> "Hollow":
        """Return a hollow tensor like `shell`, which is on the meta device."""
        made: Hollow = torch.Tensor._make_wrapper_subclass(
            cls, shell.size(), strides=shell.stride(), dtype=shell.dtype, device=_CPU
        )
        made.shell = shell
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Return shape and type: there is nothing else to show."""
        return f"Hollow({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return a hollow result; an embedding looks at its indices where they are known."""
        if func is torch.ops.aten.embedding.default:
            _look_up(args[0], args[1])
        result = func(*tree_map(_shell, args), **tree_map(_shell, kwargs or {}))
        return args[0] if _in_place(func) else tree_map(_filled, result)


def run_hollow(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> None:
    """Run a module's forward with hollow parameters; its hooks run too, and see hollow outputs.

    Raises:
        NoRow: a token or a position has no row in an embedding.
        Exception: whatever the forward raises, also because it asks for a value that is not there.
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
