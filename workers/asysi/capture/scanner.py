"""`ScannerEngine`: collects activations and parameter gradients in the process that runs the model.

For notebooks and scripts. Everything is kept in memory and complete: no stream, no sampling, no tokens. For a
model that must not be slowed down use an experiment, which captures with `ActivationHooker`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

import torch

from asysi.capture.rows import first_tensor
from asysi.model.globs import match_globs

Tensors = dict[str, torch.Tensor]
"""Tensors by hook point or by parameter."""


class ScannerEngine:
    """Collects the outputs of modules and the gradients of parameters while it is entered.

    ```python
    with asysi.ScannerEngine(model) as scanner:
        loss = model(input_ids, labels=labels).loss
        loss.backward()
    activations, gradients = scanner.get_collected_data()
    ```

    Of a module that returns several tensors the first one is collected. The second call of a module since the
    context was entered is named `name#1`, the third `name#2`. A call that activation checkpointing repeats
    during the backward pass is counted in `recomputed` and not collected: its output is there already.

    The gradient of a parameter is the sum of what reached it since the context was entered, over all uses of
    the parameter and all backward passes: what `parameter.grad` holds if it was None before. It is the
    gradient of the value that `backward` was called on; a loss that was scaled gives scaled gradients. Under
    `DistributedDataParallel` it is this rank's, before the reduction.

    Args:
        model: the model. It is not changed, apart from hooks while the context is entered.
        hook_points: globs on `named_modules()`: `*` stops at a dot, `**` crosses dots. None hooks every named
            module, without the root; an empty list hooks none.
        parameters: globs on `named_parameters()`. None hooks every parameter with `requires_grad`; an empty
            list hooks none. Those without `requires_grad` are left out.
        device: `cpu` copies tensors to the host's memory, `same` keeps the copies where the tensors are.
        max_bytes: maximum bytes of the collected tensors; None for no limit.
        when_full: what happens to a tensor that exceeds the limit: `raise` raises MemoryError from the
            forward or backward pass, `drop` leaves it out and counts it in `dropped`.

    Raises:
        ConfigError: a glob matches nothing; the message lists the closest names.
        ValueError: none of the selected parameters requires a gradient, or an argument is out of range.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        hook_points: Sequence[str] | None = None,
        parameters: Sequence[str] | None = None,
        device: Literal["cpu", "same"] = "cpu",
        max_bytes: int | None = None,
        when_full: Literal["raise", "drop"] = "raise",
    ) -> None:
        if device not in {"cpu", "same"} or when_full not in {"raise", "drop"}:
            raise ValueError(f"device is {device!r}: cpu or same; when_full is {when_full!r}: raise or drop")
        if max_bytes is not None and max_bytes < 0:
            raise ValueError(f"max_bytes is {max_bytes}, expected 0 or more")
        self._model, self._device = model, device
        self._max_bytes, self._when_full = max_bytes, when_full
        self._modules = _select(hook_points, model.named_modules(remove_duplicate=False), "hook_points")
        self._parameters = _select(parameters, model.named_parameters(remove_duplicate=False), "parameters")
        fixed = [name for name, parameter in self._parameters.items() if not parameter.requires_grad]
        if parameters and len(fixed) == len(self._parameters):
            raise ValueError(
                f"parameters: {', '.join(fixed)} do not require a gradient: call requires_grad_()"
            )
        for name in fixed:
            del self._parameters[name]
        self._gradients_asked_for = bool(parameters)
        self._stack: ExitStack | None = None
        self.clear()

    activations: Tensors
    """Outputs by hook point, `name#n` for further calls, in the order of the calls; detached copies."""
    gradients: Tensors
    """Gradients by parameter, in the order in which they were first computed; detached copies."""
    dropped: Counter[str]
    """Number of tensors left out by `max_bytes`, by hook point or parameter."""
    recomputed: Counter[str]
    """Number of calls repeated during a backward pass, by hook point."""
    without_tensor: Counter[str]
    """Number of calls that returned no tensor, by hook point."""
    collected_bytes: int
    """Bytes of the collected tensors."""

    @property
    def hook_points(self) -> list[str]:
        """Names of the hooked modules; a module with several names has the first selected one."""
        return list(self._modules)

    @property
    def parameters(self) -> list[str]:
        """Names of the hooked parameters; a parameter with several names has the first selected one."""
        return list(self._parameters)

    def __enter__(self) -> Self:
        if self._stack is not None:
            raise RuntimeError("the scanner is already attached to the model")
        self.clear()
        self.attach_hooks()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove_hooks()

    def attach_hooks(self) -> None:
        """Register the hooks; does nothing if they are registered. Entering the context calls this.

        Raises:
            RuntimeError: gradients were asked for, and inference mode computes none.
        """
        if self._stack is not None:
            return
        if self._gradients_asked_for and torch.is_inference_mode_enabled():
            raise RuntimeError("parameters asks for gradients, and torch.inference_mode() computes none")
        with ExitStack() as stack:  # a hook that cannot be registered takes the others with it
            wrap = _uncompiled(self._model)
            for name, module in self._modules.items():
                handle = module.register_forward_hook(wrap(partial(self._returned, name)))
                stack.callback(handle.remove)
            for name, parameter in self._parameters.items():
                hook = parameter.register_hook(partial(self._reached, name))
                stack.callback(hook.remove)
            self._stack = stack.pop_all()

    def remove_hooks(self) -> None:
        """Remove the hooks and keep what was collected. Leaving the context calls this, whatever raised."""
        if self._stack is not None:
            self._stack.close()
            self._stack = None

    def clear(self) -> None:
        """Forget what was collected. Dictionaries that were returned before keep their tensors."""
        self.activations, self.gradients, self.collected_bytes = {}, {}, 0
        self.dropped, self.recomputed, self.without_tensor = Counter(), Counter(), Counter()
        self._calls = dict.fromkeys(self._modules, 0)
        self._partial: set[str] = set()

    def get_collected_data(self) -> tuple[Tensors, Tensors]:
        """Return activations and gradients collected so far, inside the context or after it."""
        return dict(self.activations), dict(self.gradients)

    def _returned(self, name: str, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        """Collect the output of a module call."""
        if torch._C._current_graph_task_id() != -1:  # a backward pass is running: checkpointing
            self.recomputed[name] += 1
            return
        call = self._calls[name]
        self._calls[name] = call + 1
        try:
            tensor = first_tensor(output)
        except TypeError:
            self.without_tensor[name] += 1
            return
        point = f"{name}#{call}" if call else name
        if self._admits(tensor, point):
            self.activations[point] = self._copy(tensor)

    def _reached(self, name: str, gradient: torch.Tensor) -> None:
        """Collect the gradient of a parameter, or add it to that of earlier backward passes."""
        earlier = self.gradients.get(name)
        if earlier is not None:
            with torch.no_grad():
                self.gradients[name] = earlier + gradient.detach().to(earlier.device)
        elif name in self._partial or not self._admits(gradient, name):
            self._partial.add(name)  # what comes later is no complete sum
        else:
            self.gradients[name] = self._copy(gradient)

    def _admits(self, tensor: torch.Tensor, name: str) -> bool:
        """Return whether there is room for a copy of the tensor, and count its bytes."""
        size = _bytes_of(tensor)
        if self._max_bytes is None or self.collected_bytes + size <= self._max_bytes:
            self.collected_bytes += size
            return True
        if self._when_full == "raise":
            raise MemoryError(
                f"{name}: {size} bytes do not fit, {self.collected_bytes} of max_bytes = {self._max_bytes} "
                "are taken: raise it, narrow hook_points or parameters, or set when_full='drop'"
            )
        self.dropped[name] += 1
        return False

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        # Outside inference mode, so that the copy is an ordinary tensor.
        with torch.inference_mode(mode=False), torch.no_grad():
            kept = tensor.detach()
            return kept.clone() if self._device == "same" else kept.to("cpu", copy=True)


def _select(globs: Sequence[str] | None, named: Iterable[tuple[str, Any]], where: str) -> dict[str, Any]:
    """Return the selected objects by name, each once, under its first selected name."""
    things = {name: thing for name, thing in named if name}
    names = list(things)
    if globs is not None:
        names = match_globs(globs, names, where, calls=False)
    first = {id(things[name]): name for name in reversed(names)}
    return {name: things[name] for name in names if first[id(things[name])] == name}


def _uncompiled(model: torch.nn.Module) -> Callable[[Any], Any]:
    """Return a wrapper for hooks: code compiled without them would not call them."""
    if not any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules()
    ):
        return lambda hook: hook
    torch._dynamo.reset()
    return torch.compiler.disable


def _bytes_of(tensor: torch.Tensor) -> int:
    if tensor.layout is torch.strided:
        return tensor.numel() * tensor.element_size()
    if tensor.layout is torch.sparse_coo:
        return _bytes_of(tensor._values()) + _bytes_of(tensor._indices())
    return tensor.numel() * tensor.element_size()
