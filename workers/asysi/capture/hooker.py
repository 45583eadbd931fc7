"""Hooks that copy what modules return into the capture ring.

The model must not notice: nothing here blocks, waits or raises into it, and a step costs a few numpy calls
and one copy a hook point. One token mask holds for all hook points of a step and is fixed before anything of
it is seen. A step that does not fit into the ring is left out as a whole.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from time import perf_counter_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.hooks import RemovableHandle

from asysi.bus.mailbox import CaptureWord
from asysi.bus.packet import (
    HEADER_BYTES,
    HEADER_DTYPE,
    MAGIC,
    ROW_DTYPE,
    VERSION,
    Dtype,
    Kind,
    PacketFlag,
    rows_that_fit,
)
from asysi.capture.latency import LatencyHistogram
from asysi.capture.rows import first_tensor, leading_rows, row_shape
from asysi.capture.sampling import keep_mask, keep_step
from asysi.capture.tokens import derive_tokens
from asysi.contract.spec import Sampling
from asysi.model.points import HookPoint
from asysi.text.grid import StepTokens

if TYPE_CHECKING:
    from asysi.capture.collector import Collector
    from asysi_ring import Control, Writer

log = logging.getLogger("asysi")

RING_FULL, MID_STEP, TOO_LARGE, ERROR, NO_TOKEN = 1, 2, 4, 5, 7
"""Numbers in asysi.bus.states.DropReason."""

_SHARD = 0  # the capture ring has one
_DTYPES = {torch.float32: Dtype.FLOAT32, torch.bfloat16: Dtype.BFLOAT16, torch.float16: Dtype.FLOAT16}
_NOTHING = np.empty(0, np.int64)


_Part = tuple[NDArray[np.int64], NDArray[np.void], int]
"""Kept rows that travel in one packet: their indices in the step's grid, their records, their number."""


class _Layout(NamedTuple):
    """How the rows of a tensor of some shape and type lie, worked out once a step."""

    stride: int
    """Bytes of a row."""
    dtype: int
    parts: list[_Part]
    """None when no row fits a chunk."""


class _Watch:
    """What one hook point carries from call to call."""

    __slots__ = (
        "_fields",
        "_shown",
        "account",
        "call",
        "calls",
        "calls_expected",
        "calls_in_all",
        "captured",
        "header",
        "left_out",
        "part",
        "path",
        "planned",
        "row_bytes",
        "unbooked",
    )

    def __init__(self, point: HookPoint, account: int, headers: NDArray[np.void], at: int) -> None:
        self.path = point.path
        self.call = point.call
        self.account = account
        self.row_bytes = point.width * point.itemsize
        self.calls = 0
        self.calls_expected = 1 if point.call is not None else max(1, point.calls)
        self.planned = self.row_bytes, self.calls_expected
        self.left_out = False
        self.calls_in_all = 0
        self.unbooked = 0
        self.header = headers[at : at + 1]
        # Views of fields: assigning through them costs a fraction of naming them.
        self.captured, self.part = self.header["captured_ns"], self.header["part"]
        self._fields = [self.header[name] for name in ("call_index", "flags", "width", "parts")]
        self._shown = (0, 0, 0, 0)

    def show(self, *values: int) -> None:
        """Put call index, flags, width and number of parts into the header, where they mostly stand."""
        if values != self._shown:
            self._shown = values  # type: ignore[assignment]
            for view, value in zip(self._fields, values, strict=True):
                view[0] = value


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
        writer: "Writer | Collector",
        control: "Control | Collector",
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        root: torch.nn.Module | None = None,
        attempt: int = 0,
        rank: int = 0,
    ) -> None:
        modules = dict(module.named_modules(remove_duplicate=False))
        self._hooked = [modules[point.module] for point in points]
        self._root = module if root is None else root
        self._writer, self._control = writer, control
        self._chunk_bytes = writer.chunk_bytes
        self._depth = int(control.geometry()["depth"])
        self._sampling = sampling or Sampling()
        self._seed = seed
        self._handles: list[RemovableHandle] = []
        self._headers = np.zeros(len(points), HEADER_DTYPE)
        self._headers["magic"], self._headers["version"] = MAGIC, VERSION
        self._headers["header_bytes"], self._headers["kind"] = HEADER_BYTES, Kind.ACTIVATION
        self._headers["attempt"], self._headers["rank"] = attempt, rank
        self._watches = [
            _Watch(point, writer.account(point.path), self._headers, at) for at, point in enumerate(points)
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
        self._inside = self._room = False
        self._begun_ns = 0
        self._samples = 0
        self._content = 0
        self._kept_count = 0
        self._kept_rows: NDArray[np.void] = np.empty(0, ROW_DTYPE)
        self._layouts: dict[tuple[torch.Size, torch.dtype], _Layout] = {}
        self._widths: dict[torch.Size, int] = {}
        """Elements in a token's row by shape of the tensor, 0 where it has no row for each token."""
        self._free = 0
        self._on_device: dict[torch.device, torch.Tensor] = {}
        self._told: set[type[Exception] | str] = set()
        self._untold: list[tuple[str, Exception]] = []

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
        self._tell()

    @property
    def calls(self) -> dict[str, int]:
        """Calls of each hook point's module so far, over all steps."""
        return {watch.path: watch.calls_in_all for watch in self._watches}

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
        self._tell()
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
        self._layouts.clear()
        self._widths.clear()
        self._on_device.clear()
        for watch in self._watches:
            if watch.call is None and watch.calls > watch.calls_expected:
                watch.calls_expected = watch.calls
            watch.calls, watch.left_out = 0, False
        self._free = self._writer.free(_SHARD)
        self._room = self._free >= (needed := sum(map(self._chunks_needed, self._watches)))
        if needed > self._depth:
            self._leave_out_grown(needed)
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
        return self._chunks(watch.row_bytes, watch.calls_expected)

    def _chunks(self, row_bytes: int, calls: int) -> int:
        """Return the chunks that the step's kept rows of some calls need."""
        if not self._kept_count:
            return 0
        if not row_bytes:  # a point never seen before counts as small
            return calls
        rows = max(1, rows_that_fit(self._chunk_bytes, row_bytes))
        return calls * -(-self._kept_count // rows)

    def _leave_out_grown(self, needed: int) -> None:
        """Leave out, for this step, hook points that need more than was planned for them, until the others
        fit: a step that can never fit would be dropped at every hook point, and so would all after it.
        """
        grown = [
            (self._chunks_needed(watch) - self._chunks(*watch.planned), watch) for watch in self._watches
        ]
        for excess, watch in sorted(grown, key=lambda pair: -pair[0]):
            if needed <= self._depth or excess <= 0:
                break
            watch.left_out = True
            size = self._chunks_needed(watch)
            needed -= size
            self._note_too_large(watch, size)
        self._room = self._free >= needed

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

    # -- a hook point: everything here runs between two layers of the model

    def _capture(self, watch: _Watch, output: Any, now: int) -> None:
        """Book and publish what one call of a module returned."""
        if self._tokens is None:
            return
        call = watch.calls
        watch.calls = call + 1
        if watch.call is not None and call != watch.call:
            return
        watch.calls_in_all += 1
        watch.unbooked = kept = self._kept_count
        tensor = first_tensor(output)
        shape = tensor.shape
        width = self._widths.get(shape)
        if width is None:
            width = self._widths[shape] = self._row_width(shape)
        if not width:
            self._drop(watch, NO_TOKEN, leading_rows(shape))
            return
        if left_out := self._content - kept:
            self._writer.book(watch.account, seen=left_out, sampled_out=left_out)
        if not kept:
            return
        if not self._room or watch.left_out:
            self._drop(watch, TOO_LARGE if watch.left_out else RING_FULL, kept)
            return
        if tensor.dtype not in _DTYPES:
            tensor = _converted(tensor)
        layout = self._layouts.get((shape, tensor.dtype)) or self._lay_out(tensor, width)
        watch.row_bytes = layout.stride
        watch.captured[0] = now
        flags = 0 if self._inside else int(PacketFlag.RECOMPUTED)
        watch.show(call, flags, width, len(layout.parts))
        if tensor.is_cpu:
            source = tensor if tensor.is_contiguous() else tensor.detach().contiguous()
        else:
            source = self._gathered(tensor, width)
        self._publish(watch, source, layout, gathered=not tensor.is_cpu)
        if watch.unbooked:
            self._drop(watch, MID_STEP if layout.parts else TOO_LARGE, watch.unbooked)

    def _publish(self, watch: _Watch, source: torch.Tensor, layout: _Layout, *, gathered: bool) -> None:
        """Copy the kept rows into the ring, a chunk at a time, while there is room.

        `source` is the whole grid of rows, or, gathered, the kept ones alone.
        """
        address = source.data_ptr()
        for number, (index, rows, count) in enumerate(layout.parts):
            if not self._has_room():
                return
            watch.part[0] = number
            chosen = None if gathered else index
            self._writer.publish_block(
                _SHARD, watch.header, rows, address, layout.stride, chosen, count, layout.dtype, 0
            )
            watch.unbooked -= count
            if gathered:
                address += count * layout.stride

    def _has_room(self) -> bool:
        """Return whether a chunk is free; the ring is asked only when what it said last is used up."""
        if self._free <= 0:
            self._free = self._writer.free(_SHARD)
        self._free -= 1
        return self._free >= 0

    def _row_width(self, shape: torch.Size) -> int:
        """Return the elements of a tensor of this shape that belong to one token of the step, 0 for none."""
        assert self._tokens is not None
        row = row_shape(shape, self._tokens.batch, self._tokens.length)
        return 0 if row is None else prod(row)

    def _lay_out(self, tensor: torch.Tensor, width: int) -> _Layout:
        """Work out how rows of such a tensor lie and how the kept ones are cut."""
        dtype = _DTYPES[tensor.dtype]
        stride = width * dtype.itemsize
        most = rows_that_fit(self._chunk_bytes, stride)
        starts = range(0, self._kept_count, most) if most else ()
        ends = [(at, min(at + most, self._kept_count)) for at in starts]
        parts = [(self.kept[a:b], self._kept_rows[a:b], b - a) for a, b in ends]
        layout = self._layouts[tensor.shape, tensor.dtype] = _Layout(stride, int(dtype), parts)
        return layout

    def _gathered(self, tensor: torch.Tensor, width: int) -> torch.Tensor:
        """Return the kept rows of a tensor on a device, in the host's memory.

        Gathered on the compute stream, so that no later in-place operation overtakes it; the copy then waits.
        """
        device = tensor.device
        if device not in self._on_device:
            self._on_device[device] = torch.from_numpy(self.kept).to(device)
        return tensor.detach().reshape(-1, width).index_select(0, self._on_device[device]).cpu()

    # -- what goes wrong

    def _drop(self, watch: _Watch, reason: int, rows: int) -> None:
        self._writer.book(watch.account, seen=rows, dropped=rows, reason=reason)
        watch.unbooked = 0

    def _give_up(self, watch: _Watch) -> None:
        """Book the rows of a failed call that are not booked yet."""
        try:
            if watch.unbooked:
                self._drop(watch, ERROR, watch.unbooked)
        except Exception as error:  # noqa: BLE001 - the model never sees one
            self._swallow(watch.path, error)

    def _swallow(self, where: str, error: Exception) -> None:
        """Count an exception; the first of its kind is logged once no layer waits for it."""
        self.errors += 1
        if type(error) not in self._told:
            self._told.add(type(error))
            self._untold.append((where, error))

    def _note_too_large(self, watch: _Watch, chunks: int) -> None:
        """Have it logged, once for each hook point, that it does not fit beside the others."""
        if watch.path not in self._told:
            self._told.add(watch.path)
            error = BufferError(
                f"{watch.calls_expected} calls with rows of {watch.row_bytes} bytes need {chunks} of the "
                f"capture ring's {self._depth} chunks, more than was planned: such steps are left out here "
                "(too_large); raise spec.capture.size"
            )
            self._untold.append((watch.path, error))

    def _tell(self) -> None:
        """Log what was swallowed since the last time."""
        while self._untold:
            where, error = self._untold.pop(0)
            kind = type(error).__name__
            log.warning("capture failed at %s, the model goes on: %s: %s", where, kind, error, exc_info=error)


def _converted(tensor: torch.Tensor) -> torch.Tensor:
    """Return a floating-point tensor of a type that packets do not know as float32."""
    if not tensor.is_floating_point():
        raise TypeError(f"the module returns {tensor.dtype}, no activation")
    return tensor.detach().float()
