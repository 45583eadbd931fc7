"""Hooks that copy what modules return into the capture ring.

The model must not notice: nothing here blocks, waits or raises into it, and a step costs a few numpy calls
and one copy a hook point. One token mask holds for all hook points of a step and is fixed before anything of
it is seen. A step that does not fit into the ring is left out as a whole.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from time import perf_counter_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.hooks import RemovableHandle

from asysi.bus.mailbox import CaptureWord
from asysi.bus.packet import HEADER_BYTES, HEADER_DTYPE, MAGIC, ROW_DTYPE, VERSION, Dtype, Kind, PacketFlag
from asysi.capture.latency import LatencyHistogram
from asysi.capture.points import HookPoint, rows_per_chunk
from asysi.capture.sampling import keep_mask, keep_step
from asysi.capture.tokens import StepTokens, derive_tokens
from asysi.contract.spec import Sampling

if TYPE_CHECKING:
    from asysi_ring import Control, Writer

log = logging.getLogger("asysi")

RING_FULL, MID_STEP, TOO_LARGE, ERROR = 1, 2, 4, 5
"""Numbers in asysi.bus.mailbox.DROP_REASONS."""

_SHARD = 0  # the capture ring has one
_DTYPES = {torch.float32: Dtype.FLOAT32, torch.bfloat16: Dtype.BFLOAT16, torch.float16: Dtype.FLOAT16}
_NOTHING = np.empty(0, np.int64)
_Part = tuple[NDArray[np.int64] | None, NDArray[np.void], int]


def first_tensor(output: Any) -> torch.Tensor:
    """Return a module's output, or the first tensor of a tuple, list, mapping or model output.

    Raises:
        TypeError: it holds none.
    """
    if isinstance(output, torch.Tensor):
        return output
    values: Sequence[Any] = ()
    if isinstance(output, Mapping):  # a ModelOutput is one
        values = list(output.values())
    elif isinstance(output, (tuple, list)):
        values = output
    for value in values:
        if isinstance(value, torch.Tensor):
            return value
    raise TypeError(f"the module returns {type(output).__name__}, which holds no tensor")


class _Watch:
    """What one hook point carries from call to call."""

    __slots__ = ("account", "call_index", "calls", "calls_expected", "captured", "flags", "header", "part",
    "parts",
                 "path", "row_bytes", "unbooked", "width")  # fmt: skip

    def __init__(self, path: str, account: int, headers: NDArray[np.void], at: int, row_bytes: int) -> None:
        self.path = path
        self.account = account
        self.row_bytes = row_bytes
        self.calls = 0
        self.calls_expected = 1
        self.unbooked = 0
        self.header = headers[at : at + 1]
        # Views of the fields that change within a step: assigning through them costs a fraction of naming
        # them.
        names = ("captured_ns", "call_index", "flags", "width", "part", "parts")
        self.captured, self.call_index, self.flags, self.width, self.part, self.parts = (
            self.header[name] for name in names
        )


class ActivationHooker:
    """Captures the outputs of modules while it is entered; use as a context manager.

    Args:
        module: the model whose modules the hook points name.
        points: exact hook points, as check() matched them.
        writer: the capture ring's producer.
        control: the capture ring's control file, for the mailbox.
        sampling: bounds of the rate, and whether tokens or whole steps are kept.
        seed: of the token sampling.
        root: the module whose forward is a step, when it is not `module` itself.
        attempt: number of the attempt.
        rank: of this process.

    Raises:
        KeyError: a hook point names no module.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        points: Sequence[HookPoint],
        writer: "Writer",
        control: "Control",
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        root: torch.nn.Module | None = None,
        attempt: int = 0,
        rank: int = 0,
    ) -> None:
        modules = dict(module.named_modules())
        self._hooked = [modules[point.path] for point in points]
        self._root = module if root is None else root
        self._writer, self._control = writer, control
        self._chunk_bytes = writer.chunk_bytes
        self._sampling = sampling or Sampling()
        self._seed = seed
        self._handles: list[RemovableHandle] = []
        self._headers = np.zeros(len(points), HEADER_DTYPE)
        self._headers["magic"], self._headers["version"] = MAGIC, VERSION
        self._headers["header_bytes"], self._headers["kind"] = HEADER_BYTES, Kind.ACTIVATION
        self._headers["attempt"], self._headers["rank"] = attempt, rank
        self._watches = [
            _Watch(point.path, writer.account(point.path), self._headers, at, point.width * point.itemsize)
            for at, point in enumerate(points)
        ]
        self._headers["account"] = [watch.account for watch in self._watches]
        self.latency = LatencyHistogram()
        """Duration of each hook call."""
        self.rate = self._sampling.rate
        """Sampling rate of the step."""
        self.steps = 0
        """Steps begun."""
        self.steps_dropped = 0
        """Whole steps that found no room."""
        self.errors = 0
        """Exceptions that the model never saw."""
        self.capture_ns = 0
        """Time spent in hooks."""
        self.forward_ns = 0
        """Time spent in the root's forward, hooks included."""
        self.tokens_seen = 0
        """Tokens that are data, over all steps."""
        self.tokens_excluded = 0
        """Tokens that are none."""
        self.kept: NDArray[np.int64] = _NOTHING
        """Indices, in the step's grid, of the tokens that were kept; empty when the step was dropped."""
        self._handed: StepTokens | None = None
        self._tokens: StepTokens | None = None
        self._inside = False
        self._room = False
        self._begun_ns = 0
        self._samples = 0
        self._content = 0
        self._kept_count = 0
        self._kept_rows: NDArray[np.void] = np.empty(0, ROW_DTYPE)
        self._parts: dict[int, list[_Part]] = {}
        self._on_device: dict[torch.device, torch.Tensor] = {}
        self._told: set[str] = set()

    def __enter__(self) -> Self:
        self.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def attach(self) -> None:
        """Register the hooks; once they are, does nothing."""
        if self._handles:
            return
        self._handles.append(
            self._root.register_forward_pre_hook(self._begin, prepend=True, with_kwargs=True)
        )
        for module, watch in zip(self._hooked, self._watches, strict=True):
            self._handles.append(module.register_forward_hook(partial(self._seen, watch)))
        self._handles.append(self._root.register_forward_hook(self._end, always_call=True))

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def step(self, tokens: StepTokens) -> None:
        """Say what the next forward of the root will read; without it, its arguments tell."""
        self._handed = tokens

    # -- the three hooks: each is timed, and swallows what goes wrong

    def _begin(self, _module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._begun_ns = started = perf_counter_ns()
        self._inside = True
        try:
            self._open(args, kwargs)
        except Exception as error:  # noqa: BLE001 - the model never sees one
            self._tokens, self.kept = None, _NOTHING
            self._swallow("the start of a step", error)
        self.capture_ns += perf_counter_ns() - started

    def _seen(self, watch: _Watch, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        started = perf_counter_ns()
        try:
            self._capture(watch, output, started)
        except Exception as error:  # noqa: BLE001 - the model never sees one
            self._swallow(watch.path, error)
            self._give_up(watch)
        elapsed = perf_counter_ns() - started
        self.capture_ns += elapsed
        self.latency.add(elapsed)

    def _end(self, _module: torch.nn.Module, _args: Any, _output: Any) -> None:
        started = perf_counter_ns()
        self._inside = False
        self.forward_ns += started - self._begun_ns
        try:
            self._report()
        except Exception as error:  # noqa: BLE001 - the model never sees one
            self._swallow("the end of a step", error)
        self.capture_ns += perf_counter_ns() - started

    # -- a step

    def _open(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Latch the rate, fix the mask, see whether the step fits, and fill what its headers share."""
        handed, self._handed = self._handed, None
        tokens = derive_tokens(args, kwargs, self.steps, self._samples) if handed is None else handed
        content = np.flatnonzero(tokens.content)
        self.rate = self._latch()
        if self._sampling.unit == "step":
            kept = content if keep_step(self._seed, tokens.step, self.rate) else _NOTHING
        else:
            kept = content[keep_mask(self._seed, tokens.step, content.astype(np.uint64), self.rate)]
        self._tokens, self.kept = tokens, kept
        self._content, self._kept_count = len(content), len(kept)
        self._kept_rows = tokens.rows[kept]
        self._parts.clear()
        self._on_device.clear()
        for watch in self._watches:
            watch.calls_expected = max(1, watch.calls)
            watch.calls = 0
        self._room = self._writer.free(_SHARD) >= sum(map(self._chunks_needed, self._watches))
        if not self._room:
            self.steps_dropped += 1
            self.kept = _NOTHING
        self._fill_headers(tokens)
        self.steps += 1
        self._samples += tokens.batch
        self.tokens_seen += self._content
        self.tokens_excluded += len(tokens.content) - self._content

    def _latch(self) -> float:
        """Return the rate that the hook worker last wrote, within the spec's bounds; before that the top."""
        rate = float(self._control.get_float(CaptureWord.RATE))
        if not rate > 0:
            return self._sampling.rate
        return min(max(rate, self._sampling.min_rate), self._sampling.rate)

    def _chunks_needed(self, watch: _Watch) -> int:
        if not self._kept_count:
            return 0
        if not watch.row_bytes:  # a point never seen before counts as small
            return watch.calls_expected
        rows = max(1, rows_per_chunk(watch.row_bytes, self._chunk_bytes))
        return watch.calls_expected * -(-self._kept_count // rows)

    def _fill_headers(self, tokens: StepTokens) -> None:
        headers = self._headers
        headers["step"] = tokens.step
        headers["sampling_rate"] = self.rate
        headers["step_rows"], headers["step_kept"] = self._content, self._kept_count
        headers["batch"], headers["length"] = tokens.batch, tokens.length

    def _report(self) -> None:
        put = self._control.set
        if self.steps == 1:
            put(CaptureWord.STARTED_NS, self._begun_ns)
        put(CaptureWord.STEPS, self.steps)
        put(CaptureWord.STEPS_DROPPED, self.steps_dropped)
        put(CaptureWord.CAPTURE_ERRORS, self.errors)
        put(CaptureWord.TOKENS, self.tokens_seen)
        put(CaptureWord.TOKENS_EXCLUDED, self.tokens_excluded)
        put(CaptureWord.CAPTURE_NS, self.capture_ns)
        put(CaptureWord.FORWARD_NS, self.forward_ns)

    # -- a hook point

    def _capture(self, watch: _Watch, output: Any, now: int) -> None:
        """Book and publish what one call of a module returned."""
        tokens = self._tokens
        if tokens is None:
            return
        call = watch.calls
        watch.calls = call + 1
        kept = self._kept_count
        if left_out := self._content - kept:
            self._writer.book(watch.account, seen=left_out, sampled_out=left_out)
        if not kept:
            return
        if not self._room:
            self._writer.book(watch.account, seen=kept, dropped=kept, reason=RING_FULL)
            return
        watch.unbooked = kept
        watch.captured[0] = now
        watch.call_index[0] = call
        watch.flags[0] = 0 if self._inside else PacketFlag.RECOMPUTED
        self._publish(watch, first_tensor(output), tokens)

    def _publish(self, watch: _Watch, tensor: torch.Tensor, tokens: StepTokens) -> None:
        """Copy the kept rows of `tensor` into the ring, a chunk at a time."""
        width = _row_width(tensor, tokens)
        source, gathered = self._readable(tensor, width)
        dtype = _DTYPES[source.dtype]
        stride = width * dtype.itemsize
        watch.row_bytes = stride
        parts = self._cut(stride)
        if not parts:
            self._drop(watch, TOO_LARGE)
            return
        watch.width[0], watch.parts[0] = width, len(parts)
        address = source.data_ptr()
        for part, (index, rows, count) in enumerate(parts):
            if not self._writer.free(_SHARD):
                self._drop(watch, MID_STEP)
                return
            watch.part[0] = part
            chosen = None if gathered else index
            self._writer.publish_block(_SHARD, watch.header, rows, address, stride, chosen, count, dtype, 0)
            watch.unbooked -= count
            if gathered:
                address += count * stride

    def _readable(self, tensor: torch.Tensor, width: int) -> tuple[torch.Tensor, bool]:
        """Return memory that the ring can read, and whether it holds the kept rows alone.

        That is the tensor itself where it lies in rows on the CPU, else a copy.
        """
        if tensor.dtype not in _DTYPES:
            if not tensor.is_floating_point():
                raise TypeError(f"the module returns {tensor.dtype}, no activation")
            tensor = tensor.detach().float()
        if tensor.device.type == "cpu":
            return (tensor if tensor.is_contiguous() else tensor.detach().contiguous()), False
        # Gathered on the compute stream: no later in-place operation overtakes it. The copy then waits.
        rows = tensor.detach().reshape(-1, width)
        return rows.index_select(0, self._index_on(tensor.device)).cpu(), True

    def _index_on(self, device: torch.device) -> torch.Tensor:
        if device not in self._on_device:
            self._on_device[device] = torch.from_numpy(self.kept).to(device)
        return self._on_device[device]

    def _cut(self, row_bytes: int) -> list[_Part]:
        """Return the step's kept rows in parts that fit a chunk, none when no row fits; cut once a size."""
        parts = self._parts.get(row_bytes)
        if parts is None:
            most = rows_per_chunk(row_bytes, self._chunk_bytes)
            starts = range(0, self._kept_count, most) if most else ()
            ends = [(start, min(start + most, self._kept_count)) for start in starts]
            parts = [(self.kept[a:b], self._kept_rows[a:b], b - a) for a, b in ends]
            self._parts[row_bytes] = parts
        return parts

    # -- what goes wrong

    def _drop(self, watch: _Watch, reason: int) -> None:
        self._writer.book(watch.account, seen=watch.unbooked, dropped=watch.unbooked, reason=reason)
        watch.unbooked = 0

    def _give_up(self, watch: _Watch) -> None:
        """Book the rows of a failed call that are not booked yet."""
        try:
            if watch.unbooked:
                self._drop(watch, ERROR)
        except Exception as error:  # noqa: BLE001 - the model never sees one
            self._swallow(watch.path, error)

    def _swallow(self, where: str, error: Exception) -> None:
        """Count an exception, and log the first of its kind."""
        self.errors += 1
        kind = type(error).__name__
        if kind not in self._told:
            self._told.add(kind)
            log.warning("capture failed at %s, the model goes on: %s: %s", where, kind, error, exc_info=error)


def _row_width(tensor: torch.Tensor, tokens: StepTokens) -> int:
    """Return the elements of `tensor` that belong to one token of the step."""
    grid = tokens.batch * tokens.length
    shape = tensor.shape
    in_grid = len(shape) > 2 and shape[:2] == (tokens.batch, tokens.length)
    in_line = len(shape) > 1 and shape[0] == grid
    if not (in_grid or in_line):
        raise ValueError(
            f"the module returns {list(shape)}: no row for each of {tokens.batch} × {tokens.length} tokens"
        )
    return tensor.numel() // grid
