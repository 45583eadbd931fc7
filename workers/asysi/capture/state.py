"""State of a hook point and kind that is kept between calls."""

import numpy as np
import torch
from numpy.typing import NDArray

from asysi.bus.packet import Kind, PacketFlag, account_name
from asysi.bus.stream import BlockChannel
from asysi.model.points import HookPoint

_OUTSIDE = {Kind.ACTIVATION: int(PacketFlag.RECOMPUTED), Kind.GRADIENT: 0}
"""Flags of rows seen outside the root's forward pass. Outputs are then recomputed by activation
checkpointing, while gradients are seen for the first time."""


_FLOAT32_BYTES = 4


class HookState:
    """A hook point and kind: its channel into the stream, its packet header, and its known size.

    Args:
        point: the hook point.
        kind: what is captured there.
        channel: its channel into the stream.
        headers: one record per state, filled with the fields that a step's packets share.
        at: index of this state's record.
        device: expected device of the module's outputs; None on the host.
    """

    __slots__ = (
        "_fields",
        "_shown",
        "beside",
        "book",
        "bound",
        "call",
        "calls",
        "calls_expected",
        "calls_in_all",
        "captured",
        "device",
        "flags_outside",
        "header",
        "kind",
        "left_out",
        "name",
        "part",
        "planned",
        "put",
        "row_bytes",
        "unbooked",
        "width",
    )

    def __init__(
        self,
        point: HookPoint,
        kind: Kind,
        channel: BlockChannel,
        headers: NDArray[np.void],
        at: int,
        *,
        device: torch.device | None = None,
    ) -> None:
        self.name, self.kind = account_name(point.path, kind), kind
        self.call = point.call
        self.put, self.book = channel.put, channel.book
        self.flags_outside = _OUTSIDE[kind]
        self.device, self.width = device, point.width
        self.bound: torch.device | None = None
        # Gradients travel in float32, whatever the type of the activation.
        self.row_bytes = point.width * (point.itemsize if kind is Kind.ACTIVATION else _FLOAT32_BYTES)
        self.beside = (0, 0)  # bytes of a row, and of a packet, in a chunk beside `row_bytes`
        self.calls = 0
        self.calls_expected = 1 if point.call is not None else max(1, point.calls)
        self.planned = self.row_bytes, self.calls_expected
        self.left_out = False
        self.calls_in_all = 0
        self.unbooked = 0
        self.header = headers[at : at + 1]
        self.header["account"], self.header["kind"] = channel.account, kind
        # Views of fields: assigning through them is much faster than by field name.
        self.captured, self.part = self.header["captured_ns"], self.header["part"]
        self._fields = [self.header[name] for name in ("call_index", "flags", "width", "parts")]
        self._shown = (0, 0, 0, 0)

    def begin_step(self) -> None:
        """Raise the expected number of calls if the previous step had more."""
        if self.call is None and self.calls > self.calls_expected:
            self.calls_expected = self.calls
        self.calls, self.left_out = 0, False

    def show(self, *values: int) -> None:
        """Write call index, flags, width and number of parts to the header if they changed."""
        if values != self._shown:
            self._shown = values  # type: ignore[assignment]
            for view, value in zip(self._fields, values, strict=True):
                view[0] = value
