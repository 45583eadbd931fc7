"""Hooks that copy module outputs and their gradients into a stream.

The model must not be affected: nothing here blocks, waits or raises into it, and a step costs a few numpy
calls and one copy per hook point.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.hooks import RemovableHandle

from asysi.bus.mailbox import CaptureWord, LocalMailbox, Mailbox
from asysi.bus.packet import HEADER_BYTES, HEADER_DTYPE, MAGIC, VERSION, Kind, account_name
from asysi.bus.quantization import Table
from asysi.bus.states import DropReason
from asysi.bus.stream import BlockProducer
from asysi.capture.device import Devices
from asysi.capture.failures import Failures
from asysi.capture.gradients import BackwardPass, grad_disabled, unscaled
from asysi.capture.latency import LatencyHistogram
from asysi.capture.parameters import ParameterCapture
from asysi.capture.rows import first_tensor, leading_rows
from asysi.capture.state import HookState
from asysi.capture.step import DTYPES, CaptureStep, Layout
from asysi.capture.tokens import derive_tokens
from asysi.contract.spec import Sampling
from asysi.model.points import HookPoint
from asysi.text.grid import StepTokens

# Plain integers: an enum method call would cost more than the rest of a drop.
_RING_FULL, _MID_STEP, _TOO_LARGE = (
    int(DropReason.RING_FULL),
    int(DropReason.MID_STEP),
    int(DropReason.TOO_LARGE),
)
_ERROR, _NO_TOKEN = int(DropReason.ERROR), int(DropReason.NO_TOKEN)


_UNKNOWN_CALL = -1

Hook = Callable[..., Any]
"""A callable that torch calls before or after a module."""


class ActivationHooker:
    """Captures module outputs while it is entered; use as a context manager.

    Args:
        module: the model that contains the hooked modules.
        points: exact hook points, as matched by check().
        producer: producer of the stream that rows are written to.
        mailbox: provides the last requested rate and receives the counters; None if no other process is
            involved.
        kinds: what is captured at each hook point; each kind has its own account.
        sampling: bounds of the rate, and whether tokens or whole steps are kept.
        seed: seed of the token sampling.
        root: the module whose forward pass is a step, if it is not `module` itself.
        attempt: number of the attempt.
        rank: rank of this process.
        devices: the accelerators that hold tensors; None copies from them while the model waits.
        parameters: parameters whose gradients are measured, by name.

    Raises:
        KeyError: a hook point does not name a module, or a kind cannot be captured.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        points: Sequence[HookPoint],
        producer: BlockProducer,
        mailbox: Mailbox | None = None,
        *,
        kinds: Sequence[Kind] = (Kind.ACTIVATION,),
        sampling: Sampling | None = None,
        seed: int = 0,
        root: torch.nn.Module | None = None,
        attempt: int = 0,
        rank: int = 0,
        devices: Devices | None = None,
        parameters: Mapping[str, torch.nn.Parameter] | None = None,
    ) -> None:
        modules = dict(module.named_modules(remove_duplicate=False))
        self._root = module if root is None else root
        self._mailbox = LocalMailbox() if mailbox is None else mailbox
        self._headers = _headers(len(points) * len(kinds), attempt, rank)
        self._hooked: list[tuple[torch.nn.Module, Kind, HookState]] = []
        for point in points:
            for kind in kinds:
                channel = producer.channel(account_name(point.path, kind))
                place = _device_of(modules[point.module], self._root)
                state = HookState(point, kind, channel, self._headers, len(self._hooked), device=place)
                self._hooked.append((modules[point.module], kind, state))
        self._states = [state for _, _, state in self._hooked]
        self._of_gradients = np.array([state.kind is not Kind.ACTIVATION for state in self._states], np.bool_)
        self._wants_gradients = bool(self._of_gradients.any()) or bool(parameters)
        self._backward = BackwardPass()
        self._on_leaves: list[RemovableHandle] = []
        self._handles: list[RemovableHandle] = []
        self._failures = Failures()
        self._devices = Devices() if devices is None else devices
        self._step = CaptureStep(
            producer, self._devices, mailbox=self._mailbox, sampling=sampling or Sampling(), seed=seed,
            failures=self._failures,
        )  # fmt: skip
        self._parameters = (
            ParameterCapture(parameters, producer, self._failures, attempt=attempt, rank=rank)
            if parameters
            else None
        )
        self._handed: StepTokens | None = None
        self._describe_gradients()
        self._inside = False
        self._begun_ns = 0
        self.latency = LatencyHistogram()
        """Duration of each hook call."""
        self.capture_ns = 0
        """Time spent in hooks."""
        self.forward_ns = 0
        """Time spent in the root's forward pass, including hooks."""

    def __enter__(self) -> Self:
        self.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def attach(self) -> None:
        """Register the hooks; does nothing if they are registered."""
        if self._handles:
            return
        compiled = _is_compiled(self._root)
        if compiled:  # code compiled without the hooks would not call them
            torch._dynamo.reset()
        self._wrap: Callable[[Hook], Hook] = torch.compiler.disable if compiled else _as_it_is
        self._handles.append(
            self._root.register_forward_pre_hook(self._wrap(self._begin), prepend=True, with_kwargs=True)
        )
        for module, kind, state in self._hooked:
            self._handles.append(_REGISTRARS[kind](self, module, state))
        if self._parameters is not None:
            self._handles += self._parameters.attach()
        self._handles.append(self._root.register_forward_hook(self._wrap(self._end), always_call=True))

    def detach(self) -> None:
        """Remove the hooks; rows in flight from a device are still published."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._parameters is not None:
            self._parameters.publish()
        self._failures.tell()

    def close(self) -> None:
        """Remove the hooks, wait for rows in flight from devices, and release device memory."""
        self.detach()
        self._devices.close()

    def step(self, tokens: StepTokens) -> None:
        """Set the tokens of the root's next forward pass; by default they are derived from its arguments."""
        self._handed = tokens

    def freeze(self, point: str, table: Table) -> None:
        """Convert rows of a hook point to int8 on their device, from the next step on.

        Args:
            point: name of the hook point.
            table: [2, width] mean and scale of each channel; ignored if rows have another width.
        """
        for state in self._states:
            if state.name == point and self._step.carries_table(table.shape[1]):
                self._devices.freeze(state, table)

    def backward(self, backward: BackwardPass) -> None:
        """Set the properties of the backward passes from here on; call it before `loss.backward()`."""
        self._backward = backward
        self._describe_gradients()

    # -- results

    @property
    def rate(self) -> float:
        """Sampling rate of the step."""
        return self._step.rate

    @property
    def kept(self) -> NDArray[np.int64]:
        """Indices of the kept tokens in the step's grid; empty if the step was dropped."""
        return self._step.kept

    @property
    def steps(self) -> int:
        """Number of steps started."""
        return self._step.number

    @property
    def steps_dropped(self) -> int:
        """Number of whole steps dropped for lack of room."""
        return self._step.dropped

    @property
    def tokens_seen(self) -> int:
        """Number of content tokens over all steps."""
        return self._step.tokens_seen

    @property
    def tokens_excluded(self) -> int:
        """Number of other tokens over all steps."""
        return self._step.tokens_excluded

    @property
    def errors(self) -> int:
        """Number of suppressed exceptions."""
        return self._failures.count

    @property
    def slots(self) -> dict[str, str]:
        """Memory that capture uses on each device, as text."""
        return {device: str(plan) for device, plan in self._devices.plans.items()}

    @property
    def calls(self) -> dict[str, int]:
        """Number of calls at each hook point over all steps, by account name."""
        return {state.name: state.calls_in_all for state in self._states}

    # -- the hooks: each suppresses exceptions

    def _begin(self, _module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._begun_ns = started = perf_counter_ns()
        self._inside = True
        try:
            self._open(args, kwargs)
        except Exception as error:  # noqa: BLE001 - never reaches the model
            self._step.abandon()
            self._failures.add("the start of a step", error)
        self.capture_ns += perf_counter_ns() - started

    def _seen(self, state: HookState, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        started = perf_counter_ns()
        try:
            if self._step.tokens is not None:
                call = state.calls
                state.calls = call + 1
                self._capture(state, call, output, started)
        except Exception as error:  # noqa: BLE001 - never reaches the model
            self._give_up(state, error)
        elapsed = perf_counter_ns() - started
        self.capture_ns += elapsed
        self.latency.add(elapsed)

    def _expect_gradient(self, state: HookState, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        """Register a hook for the gradient of a module's output, if it requires one."""
        try:
            if self._step.tokens is None:
                return
            call = state.calls
            if self._inside:
                state.calls = call + 1
            else:  # recomputed by reentrant checkpointing, in an order of its own
                call = 0 if call <= 1 else _UNKNOWN_CALL
            if not (tensor := first_tensor(output)).requires_grad:
                return
            if state.call is not None and call not in {state.call, _UNKNOWN_CALL}:
                return  # a hook point of another call
            seen = partial(self._seen_gradient, state, call, self._step.number, [])
            handle = tensor.register_hook(seen)  # type: ignore[no-untyped-call]
            if tensor.is_leaf:  # it outlives the step, and its hooks with it
                self._on_leaves.append(handle)
        except Exception as error:  # noqa: BLE001 - never reaches the model
            self._give_up(state, error)

    def _seen_gradient(
        self, state: HookState, call: int, step: int, seen: list[bool], gradient: torch.Tensor
    ) -> None:
        started = perf_counter_ns()
        try:
            if self._handles:  # otherwise capture has been detached
                self._refuse_unknown(state, call, step, gradient)
                self._refuse_second(state, seen)
                self._capture(state, call, unscaled(gradient, self._backward.loss_scale), started)
        except Exception as error:  # noqa: BLE001 - never reaches the model
            self._give_up(state, error)
        elapsed = perf_counter_ns() - started
        self.capture_ns += elapsed
        self.latency.add(elapsed)

    def _refuse_unknown(self, state: HookState, call: int, step: int, gradient: torch.Tensor) -> None:
        """Reject rows whose tokens or activations are not known: another would be taken for theirs."""
        if step != self._step.number:
            state.unbooked = leading_rows(gradient.shape)
            raise RuntimeError(f"the backward pass of step {step} runs after step {step + 1} has begun")
        if call == _UNKNOWN_CALL:
            state.unbooked = self._step.kept_count
            raise RuntimeError(
                f"the module is called {state.calls} times in a forward pass and recomputed by reentrant "
                "checkpointing, so the calls of its gradients are unknown: use use_reentrant=False"
            )

    def _refuse_second(self, state: HookState, seen: list[bool]) -> None:
        """Reject the gradients of a further backward pass through the same forward pass."""
        if seen:
            state.unbooked = self._step.kept_count
            raise RuntimeError("a second backward pass reaches the step: only the first one is captured")
        seen.append(True)

    def _end(self, _module: torch.nn.Module, _args: Any, _output: Any) -> None:
        started = perf_counter_ns()
        self._inside = False
        self.forward_ns += started - self._begun_ns
        try:
            if self._devices.in_graph:
                self._count_replays()
            self._report()
        except Exception as error:  # noqa: BLE001 - never reaches the model
            self._failures.add("the end of a step", error)
        self._failures.tell()
        self.capture_ns += perf_counter_ns() - started

    # -- a step

    def _open(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Begin a step, and fill the common fields of its packet headers."""
        step = self._step
        while self._on_leaves:
            self._on_leaves.pop().remove()
        self._devices.expect_no_graph()
        handed, self._handed = self._handed, None
        tokens = derive_tokens(args, kwargs, step.number, step.samples) if handed is None else handed
        if self._parameters is not None:  # before the step claims its room
            self._parameters.begin_step(tokens.step)
        self._devices.prepare(self._states, tokens.batch * tokens.length)
        step.open(tokens, self._states)
        headers = self._headers
        headers["step"] = tokens.step
        headers["sampling_rate"] = step.rate
        headers["step_rows"], headers["step_kept"] = step.content, step.kept_count
        headers["batch"], headers["length"] = tokens.batch, tokens.length
        if self._wants_gradients:
            self._expect_backward()

    def _expect_backward(self) -> None:
        """Report, once, a step that cannot have gradients."""
        if why := grad_disabled():
            self._failures.note("gradients", RuntimeError(f"{why}: there are no gradients of such steps"))

    def _describe_gradients(self) -> None:
        """Write the properties of the backward pass to the headers of gradients."""
        for name, value in self._backward._asdict().items():
            self._headers[name][self._of_gradients] = value
        if self._parameters is not None:
            self._parameters.describe(self._backward)

    def _count_replays(self) -> None:
        """Count rows of modules that ran in a CUDA graph in this step: their hooks were not called."""
        step = self._step
        for state in self._devices.in_graph:
            if not state.calls and step.tokens is not None:
                left_out = step.content - step.kept_count
                state.book(seen=left_out, sampled_out=left_out)
                self._drop(state, _ERROR, step.kept_count)

    def _report(self) -> None:
        tell, step = self._mailbox.set, self._step
        if step.number == 1:
            tell(CaptureWord.STARTED_NS, self._begun_ns)
        tell(CaptureWord.STEPS, step.number)
        tell(CaptureWord.STEPS_DROPPED, step.dropped)
        tell(CaptureWord.CAPTURE_ERRORS, self._failures.count)
        tell(CaptureWord.TOKENS, step.tokens_seen)
        tell(CaptureWord.TOKENS_EXCLUDED, step.tokens_excluded)
        tell(CaptureWord.CAPTURE_NS, self.capture_ns)
        tell(CaptureWord.FORWARD_NS, self.forward_ns)

    # -- a hook point: all of this runs between two layers of the model

    def _capture(self, state: HookState, call: int, output: Any, now: int) -> None:
        """Count and publish the output of one module call, or its gradient."""
        if state.call is not None and call != state.call:
            return
        step = self._step
        state.calls_in_all += 1
        state.unbooked = kept = step.kept_count
        tensor = first_tensor(output)
        shape = tensor.shape
        width = step.widths.get(shape)
        if width is None:
            width = step.find_width(shape)
        if not width:
            self._drop(state, _NO_TOKEN, leading_rows(shape))
            return
        if left_out := step.content - kept:
            state.book(seen=left_out, sampled_out=left_out)
        if not kept:
            return
        if not step.fits or state.left_out:
            self._drop(state, _TOO_LARGE if state.left_out else _RING_FULL, kept)
            return
        if tensor.dtype not in DTYPES:
            tensor = _converted(tensor)
        on_host, dtype = tensor.is_cpu, tensor.dtype
        if not on_host:
            dtype = self._devices.wire(state, tensor, width)
        layout = step.layouts.get((shape, dtype)) or step.find_layout(shape, dtype, width)
        state.row_bytes, state.beside = layout.stride, layout.beside
        state.captured[0] = now
        state.show(call, 0 if self._inside else state.flags_outside, width, len(layout.parts))
        if on_host:
            source = tensor if tensor.is_contiguous() else tensor.detach().contiguous()
            self._publish(state, source, layout, gathered=False)
        else:
            self._take(state, tensor, layout, dtype)
        if state.unbooked:
            self._drop(state, _MID_STEP if layout.parts else _TOO_LARGE, state.unbooked)

    def _take(self, state: HookState, tensor: torch.Tensor, layout: Layout, wire: torch.dtype) -> None:
        """Hand the kept rows of a tensor on a device to its lane, if there is room."""
        device = self._devices.find(state, tensor.device)
        if device is None:
            source = self._devices.gather(tensor, layout.width, self._step.kept)
            self._publish(state, source, layout, gathered=True)
            return
        parts = 0
        while parts < len(layout.parts) and self._step.take_chunk():
            parts += 1
        counts = self._step.count_parts(layout)[:parts]
        if parts and device.take(state, tensor, counts, layout.width, wire):
            state.unbooked -= int(counts.sum())

    def _publish(self, state: HookState, source: torch.Tensor, layout: Layout, *, gathered: bool) -> None:
        """Copy the kept rows into the stream, one chunk at a time, while there is room.

        `source` holds all rows of the grid or, if `gathered`, only the kept ones.
        """
        address = source.data_ptr()
        for number, (index, rows, count) in enumerate(layout.parts):
            if not self._step.take_chunk():
                return
            state.part[0] = number
            chosen = None if gathered else index
            state.put(state.header, rows, address, layout.stride, chosen, count, layout.dtype, 0)
            state.unbooked -= count
            if gathered:
                address += count * layout.stride

    def _drop(self, state: HookState, reason: int, rows: int) -> None:
        state.book(seen=rows, dropped=rows, reason=reason)
        state.unbooked = 0

    def _give_up(self, state: HookState, error: Exception) -> None:
        """Count an exception, and count the remaining rows of the failed call as dropped."""
        self._failures.add(state.name, error)
        try:
            if state.unbooked:
                self._drop(state, _ERROR, state.unbooked)
        except Exception as again:  # noqa: BLE001 - never reaches the model
            self._failures.add(state.name, again)


def _on_outputs(hooker: ActivationHooker, module: torch.nn.Module, state: HookState) -> RemovableHandle:
    return module.register_forward_hook(hooker._wrap(partial(hooker._seen, state)))


def _on_gradients(hooker: ActivationHooker, module: torch.nn.Module, state: HookState) -> RemovableHandle:
    return module.register_forward_hook(hooker._wrap(partial(hooker._expect_gradient, state)))


_REGISTRARS: dict[Kind, Callable[[ActivationHooker, torch.nn.Module, HookState], RemovableHandle]] = {
    Kind.ACTIVATION: _on_outputs,
    Kind.GRADIENT: _on_gradients,
}
"""Function that registers the hook for each kind; kinds missing here cannot be captured at a hook point."""
KINDS_AT_POINTS = frozenset(_REGISTRARS)


def _headers(count: int, attempt: int, rank: int) -> NDArray[np.void]:
    """Return one packet header per state, with the constant fields filled in."""
    headers = np.zeros(count, HEADER_DTYPE)
    headers["magic"], headers["version"], headers["header_bytes"] = MAGIC, VERSION, HEADER_BYTES
    headers["attempt"], headers["rank"] = attempt, rank
    return headers


def _is_compiled(root: torch.nn.Module) -> bool:
    """Return whether torch.compile is used in a model, as a wrapper or in place."""
    return any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in root.modules()
    )


def _as_it_is(hook: Hook) -> Hook:
    return hook


def _device_of(module: torch.nn.Module, root: torch.nn.Module) -> torch.device | None:
    """Return the device of a module, judged by its parameters and buffers; None on the host."""
    for one in (module, root):
        for tensor in (*one.parameters(), *one.buffers()):
            return None if tensor.is_cpu or tensor.is_meta else tensor.device
    return None


def _converted(tensor: torch.Tensor) -> torch.Tensor:
    """Return a floating-point tensor with a dtype unsupported by packets as float32."""
    if not tensor.is_floating_point():
        raise TypeError(f"the module returns {tensor.dtype}, which is not a floating-point type")
    return tensor.detach().float()
