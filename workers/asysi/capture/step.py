"""The current step: its sampling rate, its mask, and the room available for it.

They are fixed at the start of the step and identical for all hook points. A step that does not fit is dropped
as a whole.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from asysi.bus.mailbox import CaptureWord, Mailbox
from asysi.bus.packet import ROW_DTYPE, Dtype, rows_that_fit
from asysi.bus.stream import BlockProducer
from asysi.capture.conversion import WIRE_DTYPES, beside_bytes
from asysi.capture.device import Devices
from asysi.capture.failures import Failures
from asysi.capture.rows import row_shape
from asysi.capture.sampling import keep_mask, keep_step
from asysi.capture.state import HookState
from asysi.contract.spec import Sampling
from asysi.text.grid import StepTokens

DTYPES = {torch.float32: Dtype.FLOAT32, torch.bfloat16: Dtype.BFLOAT16, torch.float16: Dtype.FLOAT16}
"""Dtypes that packets support without conversion."""
_NOTHING = np.empty(0, np.int64)

_Part = tuple[NDArray[np.int64], NDArray[np.void], int]
"""Kept rows of one packet: their indices in the step's grid, their records, their number."""


class Layout(NamedTuple):
    """Layout of the rows of a tensor with a given shape and dtype, computed once per step."""

    stride: int
    """Row size in bytes."""
    beside: tuple[int, int]
    """Bytes of a row, and of a packet, in a chunk beside `stride`: see `beside_bytes`."""
    dtype: int
    parts: list[_Part]
    """Empty if a row does not fit a chunk."""
    width: int
    """Elements of a row."""


class CaptureStep:
    """The current step, and totals over all steps.

    Args:
        producer: producer of the stream that rows are written to.
        devices: the accelerators that must also have room.
        mailbox: provides the last requested rate.
        sampling: bounds of the rate, and whether tokens or whole steps are kept.
        seed: seed of the sampling.
        failures: records a hook point that does not fit next to the others.
    """

    def __init__(
        self,
        producer: BlockProducer,
        devices: Devices,
        *,
        mailbox: Mailbox,
        sampling: Sampling,
        seed: int,
        failures: Failures,
    ) -> None:
        self._devices = devices
        self._sampling, self._seed, self._failures = sampling, seed, failures
        self._mailbox = mailbox
        self._free, self._depth, self._packet_bytes = producer.free, producer.depth, producer.packet_bytes
        self.rate = sampling.rate
        """Sampling rate of the step."""
        self.tokens: StepTokens | None = None
        """The step's grid; None if the step could not begin and is not captured."""
        self.kept: NDArray[np.int64] = _NOTHING
        """Indices of the kept tokens in the step's grid; empty if the step is dropped."""
        self.content = 0
        """Number of content tokens of the step."""
        self.kept_count = 0
        """Number of tokens kept by the mask."""
        self.fits = False
        """Whether there is room for the whole step."""
        self.layouts: dict[tuple[torch.Size, torch.dtype], Layout] = {}
        self._counts: dict[int, NDArray[np.uint32]] = {}
        self.widths: dict[torch.Size, int] = {}
        """Elements of a token's row by tensor shape; 0 if the tensor does not have one row per token."""
        self._kept_rows: NDArray[np.void] = np.empty(0, ROW_DTYPE)
        self._room = 0
        self.number = 0
        """Number of steps started."""
        self.dropped = 0
        """Number of whole steps dropped for lack of room."""
        self.samples = 0
        """Number of sequences in all previous steps."""
        self.tokens_seen = 0
        """Number of content tokens over all steps."""
        self.tokens_excluded = 0
        """Number of other tokens over all steps."""

    def open(self, tokens: StepTokens, states: Sequence[HookState]) -> None:
        """Latch the rate, fix the mask, and check whether the step fits."""
        content = np.flatnonzero(tokens.content)
        self.rate = self._latch()
        if self._sampling.unit == "step":
            kept = content if keep_step(self._seed, tokens.step, self.rate) else _NOTHING
        else:
            kept = content[keep_mask(self._seed, tokens.step, content.astype(np.uint64), self.rate)]
        self.tokens, self.kept = tokens, kept
        self.content, self.kept_count = len(content), len(kept)
        self._kept_rows = tokens.rows[kept]
        self.layouts.clear()
        self._counts.clear()
        self.widths.clear()
        self._admit(states)
        self._devices.begin_step(self.kept, self._kept_rows)
        self.number += 1
        self.samples += tokens.batch
        self.tokens_seen += self.content
        self.tokens_excluded += len(tokens.content) - self.content

    def abandon(self) -> None:
        """Capture nothing until the next step begins."""
        self.tokens, self.kept = None, _NOTHING

    def _latch(self) -> float:
        """Return the last requested rate, clamped to the spec's bounds; the maximum if none was requested."""
        rate = self._mailbox.get_float(CaptureWord.RATE)
        if not rate > 0:
            return self._sampling.rate
        return min(max(rate, self._sampling.min_rate), self._sampling.rate)

    # -- room

    def take_chunk(self) -> bool:
        """Return whether a chunk is free; the stream is queried only once its last answer is used up."""
        if self._room <= 0:
            self._room = self._devices.free(self._free)
        self._room -= 1
        return self._room >= 0

    def _admit(self, states: Sequence[HookState]) -> None:
        """Decide whether the step fits, possibly without hook points that exceed their plan."""
        for state in states:
            state.begin_step()
        self._room = self._devices.free(self._free)
        needed = sum(self._chunks_of(state) for state in states)
        self.fits = self._room >= needed
        if needed > self._depth:
            self._leave_out_grown(states, needed)
        self.fits = self.fits and self._devices.has_room(states, self.kept_count)
        if not self.fits:
            self.dropped += 1
            self.kept = _NOTHING

    def _chunks_of(self, state: HookState) -> int:
        return self._chunks(state.row_bytes, state.calls_expected, state.beside)

    def _chunks(self, row_bytes: int, calls: int, beside: tuple[int, int] = (0, 0)) -> int:
        """Return the number of chunks needed for the step's kept rows of `calls` calls."""
        if not self.kept_count:
            return 0
        if not row_bytes:  # a hook point of unknown size counts as small
            return calls
        rows = max(1, rows_that_fit(self._packet_bytes, row_bytes, *beside))
        return calls * -(-self.kept_count // rows)

    def _leave_out_grown(self, states: Sequence[HookState], needed: int) -> None:
        """Exclude hook points that exceed their plan from this step until the others fit.

        Otherwise the step, and all following ones, would never fit and be dropped at every hook point.
        """
        grown = [(self._chunks_of(state) - self._chunks(*state.planned), state) for state in states]
        for excess, state in sorted(grown, key=lambda pair: -pair[0]):
            if needed <= self._depth or excess <= 0:
                break
            state.left_out = True
            size = self._chunks_of(state)
            needed -= size
            self._failures.note(state.name, self._too_large(state, size))
        self.fits = self._room >= needed

    def _too_large(self, state: HookState, chunks: int) -> BufferError:
        return BufferError(
            f"{state.calls_expected} calls with rows of {state.row_bytes} bytes need {chunks} of the "
            f"capture ring's {self._depth} chunks, more than was planned: such steps are left out here "
            "(too_large); raise spec.capture.size"
        )

    # -- layout of rows

    def carries_table(self, width: int) -> bool:
        """Return whether packets of int8 with a table of `width` channels hold the rows that bf16 ones do."""
        by_channel = rows_that_fit(self._packet_bytes, width, *beside_bytes(torch.int8, width))
        return by_channel >= max(1, rows_that_fit(self._packet_bytes, 2 * width))

    def find_width(self, shape: torch.Size) -> int:
        """Return the elements per token of a tensor of this shape; 0 if it has no row per token."""
        assert self.tokens is not None
        row = row_shape(shape, self.tokens.batch, self.tokens.length)
        width = self.widths[shape] = 0 if row is None else prod(row)
        return width

    def find_layout(self, shape: torch.Size, element: torch.dtype, width: int) -> Layout:
        """Compute the layout of the tensor's rows and the split of the kept rows into packets."""
        dtype = WIRE_DTYPES[element]
        stride, beside = width * dtype.itemsize, beside_bytes(element, width)
        most = rows_that_fit(self._packet_bytes, stride, *beside)
        starts = range(0, self.kept_count, most) if most else ()
        ends = [(at, min(at + most, self.kept_count)) for at in starts]
        parts = [(self.kept[a:b], self._kept_rows[a:b], b - a) for a, b in ends]
        layout = self.layouts[shape, element] = Layout(stride, beside, int(dtype), parts, width)
        return layout

    def count_parts(self, layout: Layout) -> NDArray[np.uint32]:
        """Return the number of rows of each part, in the form that a lane expects."""
        most = layout.parts[0][2] if layout.parts else 0
        counts = self._counts.get(most)
        if counts is None:
            counts = self._counts[most] = np.array([part[2] for part in layout.parts], np.uint32)
        return counts
