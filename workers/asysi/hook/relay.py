"""Carries captured packets to the bus: quantised while they are copied, each row once, across restarts."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from asysi.bus.bus import shard_of
from asysi.bus.packet import HEADER_DTYPE, ActivationPacket, Dtype, Quantization, parse_packet
from asysi.bus.states import DropReason
from asysi.hook.blocks import Block, RowTooLargeError, conversion, cut, row_bytes

if TYPE_CHECKING:
    from asysi_ring import Control, View, Writer

log = logging.getLogger("asysi")


@dataclass(frozen=True, slots=True)
class Route:
    """Where a hook point's packets go."""

    account: int
    shard: int


class Relay:
    """The way from the capture ring to the bus.

    Args:
        capture: the capture ring, for its table of hook points.
        bus: the producer of the bus.
        wanted: how payloads travel from here on.
        looks: each is shown every captured packet (statistics, counts).
        latency: is told the seconds from capture to publication.
    """

    def __init__(
        self,
        capture: "Control",
        bus: "Writer",
        wanted: Quantization,
        looks: Sequence[Callable[[ActivationPacket], None]],
        latency: Callable[[float], None],
    ) -> None:
        self._capture, self._bus, self._wanted = capture, bus, wanted
        self._looks, self._latency = looks, latency
        self._points: list[str] = []
        self._routes: dict[int, Route] = {}
        self._told: set[str] = set()
        self._header = np.zeros(1, HEADER_DTYPE)

    def forward(self, view: "View") -> None:
        """Publish the packet's rows, in blocks, and let go of its memory.

        Blocks up to the mark that the bus has published are skipped: a predecessor that was killed did them.
        A packet that cannot be read or carried is booked as dropped.
        """
        route = self._route(view.account)
        try:
            packet = parse_packet(memoryview(view), self._points)
            self._publish(packet, view.sequence, route)
        except RowTooLargeError as error:
            self._drop(view, route, DropReason.TOO_LARGE, str(error))
        except ValueError as error:
            self._drop(view, route, DropReason.ERROR, str(error))

    def _route(self, account: int) -> Route:
        if account not in self._routes:
            self._points = self._capture.accounts()
            point = self._points[account]
            self._routes[account] = Route(self._bus.account(point), shard_of(point, self._bus.shards))
        return self._routes[account]

    def _publish(self, packet: ActivationPacket, sequence: int, route: Route) -> None:
        header = self._header
        header[0] = packet.header
        dtype, width = Dtype(int(packet.header["dtype"])), int(packet.header["width"])
        done = conversion(dtype, self._wanted)
        if done is not Quantization.NONE:
            header["quantization"] = done
        header["account"] = route.account
        size = row_bytes(width, dtype, done)
        published = self._bus.source(route.shard)
        for block in cut(sequence, len(packet.rows), size, self._bus.chunk_bytes):
            if block.source > published:
                self._copy(packet, block, route.shard, dtype, done)
        self._latency((time.monotonic_ns() - int(packet.header["captured_ns"])) * 1e-9)
        for look in self._looks:
            look(packet)

    def _copy(
        self, packet: ActivationPacket, block: Block, shard: int, dtype: Dtype, done: Quantization
    ) -> None:
        self._header["source"] = block.source
        stride = packet.payload.strides[0]
        address = packet.payload.__array_interface__["data"][0] + block.start * stride
        rows = packet.rows[block.start : block.stop]
        scales = None if packet.scales is None else packet.scales[block.start : block.stop]
        self._bus.publish_block(
            shard, self._header, rows, address, stride, None, len(rows), dtype, done, scales=scales
        )

    def _drop(self, view: "View", route: Route, reason: DropReason, why: str) -> None:
        mark = (view.sequence << 16) | 0xFFFF  # behind every block of it: a successor books it no second time
        self._bus.book(
            route.account, seen=view.rows, dropped=view.rows, reason=reason, shard=route.shard, source=mark
        )
        if why not in self._told and len(self._told) < 100:
            self._told.add(why)
            log.warning("packet %d of %s is dropped: %s", view.sequence, self._points[view.account], why)
