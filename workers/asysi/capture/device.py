"""Rows of tensors on an accelerator: gathered into slots on the model's stream, and copied by a lane.

Nothing here waits for the device, unless the stream has no lane. All device access goes through
`Accelerator`, so that tests can replace it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from asysi.bus.lane import DeviceLane, LaneError, OpenLane
from asysi.bus.packet import Kind, Quantization
from asysi.bus.quantization import Table
from asysi.capture.conversion import CONVERSIONS, WIRE_DTYPES, select_rows
from asysi.capture.failures import DeviceRefusedError
from asysi.capture.slots import BESIDE_BYTES, STEPS_AHEAD, SlotPlan, plan_slots, slot_row_bytes
from asysi.capture.state import HookState

_UPLOADS = STEPS_AHEAD + 1
"""Maximum number of steps whose kept indices can be in flight to the device."""
_DTYPES = {element: int(dtype) for element, dtype in WIRE_DTYPES.items()}
_CONVERTED = {quantization: element for element, quantization in CONVERSIONS.items()}
_GRAPH = (
    "the module runs while a CUDA graph is captured: hooks do not run when the graph is replayed, and its "
    "rows are counted as dropped (error); run the hooked modules without a graph"
)


class Accelerator(Protocol):
    """The torch operations on a device type that capture needs."""

    def runtime(self) -> str:
        """Return the path of the runtime library that this process has loaded."""

    def stream(self, device: torch.device) -> int:
        """Return the handle of the caller's current stream."""

    def capturing(self) -> bool:
        """Return whether the caller's kernels are captured into a graph instead of launched."""

    def allocate(self, size: int, device: torch.device) -> torch.Tensor:
        """Return `size` bytes of device memory, as uint8."""

    def pinned(self, count: int) -> torch.Tensor:
        """Return `count` int64 in host memory that the device can read directly."""

    def upload(self, to: torch.Tensor, source: torch.Tensor, mark: Any) -> Any:
        """Copy pinned memory to the device on the caller's stream; return `mark`, or a new one, set after."""

    def reached(self, mark: Any) -> bool:
        """Return whether the device has reached a mark."""

    def wait(self, device: torch.device, mark: Any) -> None:
        """Make the caller's stream wait for a mark of another stream."""

    def select(
        self,
        out: torch.Tensor,
        source: torch.Tensor,
        index: torch.Tensor,
        beside: torch.Tensor | None = None,
        table: torch.Tensor | None = None,
    ) -> None:
        """Gather rows on the caller's stream, converted to the type of `out`, as `select_rows` does."""


class Cuda:
    """CUDA through torch."""

    def runtime(self) -> str:
        """Return the path of libcudart.

        Raises:
            LaneError: this process has not loaded it.
        """
        torch.cuda.init()  # type: ignore[no-untyped-call]
        found = re.search(r"(/\S*libcudart\S*)", Path("/proc/self/maps").read_text())
        if found is None:
            raise LaneError("torch has loaded no libcudart")
        return found[1]

    def stream(self, device: torch.device) -> int:
        """Return the cudaStream_t of the current stream."""
        return torch.cuda.current_stream(device).cuda_stream

    def capturing(self) -> bool:
        """Return whether the current stream is being captured into a CUDA graph."""
        return torch.cuda.is_current_stream_capturing()

    def allocate(self, size: int, device: torch.device) -> torch.Tensor:
        """Return device memory; raises torch.OutOfMemoryError."""
        return torch.empty(size, dtype=torch.uint8, device=device)

    def pinned(self, count: int) -> torch.Tensor:
        """Return page-locked memory."""
        return torch.empty(count, dtype=torch.int64, pin_memory=True)

    def upload(self, to: torch.Tensor, source: torch.Tensor, mark: Any) -> Any:
        """Copy asynchronously, and record an event after the copy."""
        to.copy_(source, non_blocking=True)
        event = torch.cuda.Event() if mark is None else mark  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(to.device))
        return event

    def reached(self, mark: Any) -> bool:
        """Return whether an event has been reached."""
        return bool(mark.query())

    def wait(self, device: torch.device, mark: Any) -> None:
        """Make the current stream wait for an event."""
        torch.cuda.current_stream(device).wait_event(mark)

    def select(
        self,
        out: torch.Tensor,
        source: torch.Tensor,
        index: torch.Tensor,
        beside: torch.Tensor | None = None,
        table: torch.Tensor | None = None,
    ) -> None:
        """Gather with torch's operators."""
        select_rows(out, source, index, beside, table)


class _Upload:
    """A buffer of int64 on the device, and its pinned counterpart on the host."""

    def __init__(self, accelerator: Accelerator, device: torch.device, count: int) -> None:
        self.pinned = accelerator.pinned(count)
        self.on_device = accelerator.allocate(count * 8, device).view(torch.int64)


class _Memory:
    """Memory of one device for capture: slots, and buffers for what is uploaded.

    Args:
        accelerator: the device type.
        device: the device.
        plan: plan of its slots.
        widths: channels of each hook point that may get a table.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        device: torch.device,
        plan: SlotPlan,
        widths: Mapping[HookState, int],
    ) -> None:
        self.slots = [accelerator.allocate(plan.slot_bytes, device) for _ in range(plan.slots)]
        self.indices = [_Upload(accelerator, device, plan.rows) for _ in range(_UPLOADS)]
        # Mean and scale of a channel, two float32, are as large as an int64.
        self.tables = {state: _Upload(accelerator, device, width) for state, width in widths.items()}


class _LoadedTable(NamedTuple):
    """Mean and scale of a hook point's channels, in the lane and on the device."""

    number: int
    """As the lane knows it."""
    on_device: torch.Tensor
    """[2, width]"""


class DeviceCapture:
    """Slots and lane of one device.

    Args:
        accelerator: the device type.
        device: the device.
        plan: plan of its slots.
        memory: allocated for this plan.
        lane: opened for these slots.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        device: torch.device,
        plan: SlotPlan,
        memory: _Memory,
        lane: DeviceLane,
    ) -> None:
        self.lane, self.plan, self.device = lane, plan, device
        self._accelerator, self._memory = accelerator, memory
        # Views for every type that a row can have: creating one costs as much as a kernel launch.
        beside = max(0, plan.slot_bytes - BESIDE_BYTES * plan.rows)
        self._slots = [_views_of(slot, beside) for slot in memory.slots]
        self._beside = [slot[beside:].view(torch.int32) for slot in memory.slots]
        self._addresses = [slot.data_ptr() for slot in memory.slots]
        self._beside_at = beside
        self._arrays = [one.pinned.numpy() for one in memory.indices]
        self._marks: list[Any] = [None] * _UPLOADS
        self._tables: dict[HookState, _LoadedTable] = {}
        self._table_marks: list[Any] = []
        self._steps = 0
        self._kept = 0
        self._index = memory.indices[0].on_device
        self._stream = 0
        self._mark: Any = None
        self._problem = ""

    @property
    def problem(self) -> str:
        """Reason why capture from the device has ended; empty while it works."""
        return self._problem or (self.lane.problem if self.lane.failed else "")

    def has_room(self, calls: int, kept: int) -> bool:
        """Return whether a step fits; True for a failed device, so that other devices keep the step."""
        if self.problem:
            return True
        try:
            mark = self._marks[self._steps % _UPLOADS]
            uploaded = mark is None or self._accelerator.reached(mark)
        except RuntimeError as error:
            self._problem = str(error)
            return True
        return uploaded and kept <= self.plan.rows and self.lane.free() >= min(calls, self.lane.slots)

    def begin_step(self, kept: NDArray[np.int64], records: NDArray[np.void]) -> None:
        """Start the upload of a step's kept indices; `has_room` has ensured that a buffer is free."""
        if self.problem:
            return
        turn = self._steps % _UPLOADS
        self._steps += 1
        self._kept = count = len(kept)
        self._arrays[turn][:count] = kept
        upload = self._memory.indices[turn]
        self._index, pinned = upload.on_device[:count], upload.pinned[:count]
        try:
            if self._table_marks:
                self._await_tables()
            self._mark = self._marks[turn] = self._accelerator.upload(self._index, pinned, self._marks[turn])
            self._stream = self._accelerator.stream(self.device)
        except RuntimeError as error:
            self._problem = str(error)
        self.lane.begin_step(records)

    def load_table(self, state: HookState, table: Table) -> None:
        """Start the upload of a hook point's table, unless its channels were not expected to be so many."""
        upload = self._memory.tables.get(state)
        if upload is None or len(upload.pinned) != table.shape[1] or self.problem:
            return
        upload.pinned.numpy().view(np.float32)[:] = table.ravel()
        try:
            self._table_marks.append(self._accelerator.upload(upload.on_device, upload.pinned, None))
        except RuntimeError as error:
            self._problem = str(error)
            return
        number = self.lane.add_table(np.ascontiguousarray(table))
        self._tables[state] = _LoadedTable(number, upload.on_device.view(torch.float32).view(2, -1))

    def _await_tables(self) -> None:
        """Order the uploads of tables before this step, whose stream need not be theirs."""
        for mark in self._table_marks:
            self._accelerator.wait(self.device, mark)
        self._table_marks = [mark for mark in self._table_marks if not self._accelerator.reached(mark)]

    def has_table(self, state: HookState, width: int) -> bool:
        """Return whether rows of `width` elements of a hook point can be converted by channel."""
        found = self._tables.get(state)
        return found is not None and found.on_device.shape[1] == width

    def take(
        self,
        state: HookState,
        tensor: torch.Tensor,
        counts: NDArray[np.uint32],
        width: int,
        wire: torch.dtype,
    ) -> bool:
        """Gather the kept rows of a tensor into a slot and hand it over; False if no slot is free.

        Args:
            state: the hook point, with the header of the packets.
            tensor: a tensor on the device.
            counts: kept rows of each packet.
            width: elements per row.
            wire: type in which the rows are transferred.

        Raises:
            DeviceRefusedError: the call cannot be captured.
        """
        lane = self.lane
        if problem := self.problem:
            raise DeviceRefusedError(f"capture on {self.device} has ended: {problem}")
        if not lane.free():
            return False
        elements, number = self._kept * width, lane.next()
        slot = self._slots[number][wire]
        if elements > len(slot):
            raise DeviceRefusedError(
                f"{self._kept} rows of {width} elements do not fit a slot of {self.plan.slot_bytes} bytes on "
                f"{self.device}: they are wider than the trial forward of `asysi check` has seen"
            )
        stream = self._accelerator.stream(self.device)
        if stream != self._stream:
            self._accelerator.wait(self.device, self._mark)
        source = tensor.detach().reshape(-1, width)
        out, dtype = slot[:elements].view(-1, width), _DTYPES[tensor.dtype]
        address, header = self._addresses[number], state.header
        if wire is tensor.dtype or wire is torch.bfloat16:
            self._accelerator.select(out, source, self._index)
            quantization = Quantization.NONE if wire is tensor.dtype else Quantization.BF16
            lane.submit(stream, header, counts, address, dtype, quantization)
            return True
        beside, at = self._beside[number][: self._kept], address + self._beside_at
        if wire is torch.int8:
            table = self._tables[state]
            self._accelerator.select(out, source, self._index, beside, table.on_device)
            how = Quantization.INT8_CHANNEL
            lane.submit(stream, header, counts, address, dtype, how, outside=at, table=table.number)
        else:
            self._accelerator.select(out, source, self._index, beside.view(torch.float32))
            lane.submit(stream, header, counts, address, dtype, Quantization.FP8, scales=at)
        return True


def _views_of(slot: torch.Tensor, beside: int) -> dict[torch.dtype, torch.Tensor]:
    """Return the elements of a slot by their type; `beside`: where those of one byte end."""
    return {dtype: slot[: beside if dtype.itemsize == 1 else len(slot)].view(dtype) for dtype in _DTYPES}


class Devices:
    """The accelerators that a model's tensors lie on.

    Args:
        open_lane: opens the stream's lane from a device; None where it has none: rows are then copied while
            the model waits.
        rows: of the largest step; 0: of the first one.
        budget: bytes of device memory that slots for more than one step may take; None: any number.
        quantization: what the stream is to carry: activations are converted on their device where its lane
            takes them, to int8 by channel only with the tables that `freeze` gives. INT8, with a scale per
            row, is not converted.
        accelerator: the kind of device.
    """

    def __init__(
        self,
        open_lane: OpenLane | None = None,
        *,
        rows: int = 0,
        budget: int | None = None,
        quantization: Quantization = Quantization.NONE,
        accelerator: Accelerator | None = None,
    ) -> None:
        self._open_lane, self._rows, self._budget = open_lane, rows, budget
        self._quantization, self._converted = quantization, _CONVERTED.get(quantization)
        self._frozen: dict[HookState, Table] = {}
        self._accelerator = Cuda() if accelerator is None else accelerator
        self._captures: dict[torch.device, DeviceCapture] = {}
        self._refused: dict[torch.device, str] = {}
        self._unplanned: set[torch.device] = set()
        self._kept: dict[torch.device, torch.Tensor] = {}
        self.in_graph: set[HookState] = set()
        """Hook points whose module runs in a CUDA graph."""

    @property
    def plans(self) -> dict[str, SlotPlan]:
        """Slot plans by device."""
        return {str(device): one.plan for device, one in self._captures.items()}

    # -- a step

    def expect_no_graph(self) -> None:
        """Reject a step whose kernels are captured into a CUDA graph: querying the device would break it.

        Raises:
            DeviceRefusedError: the step is captured into a graph.
        """
        if self._captures and self._accelerator.capturing():
            raise DeviceRefusedError(_GRAPH)

    def prepare(self, states: Sequence[HookState], rows: int) -> None:
        """Allocate slots on every device that has none, before the step and not between two layers."""
        if self._open_lane is None:
            return
        wanted = {state.device for state in states if state.device is not None} | self._unplanned
        for device in wanted - self._captures.keys() - self._refused.keys():
            if device.type != "cuda":
                continue
            if self._accelerator.capturing():
                raise DeviceRefusedError(_GRAPH)
            mine = [state for state in states if state.device == device]
            calls = [(state.calls_expected, self._row_bytes(state)) for state in mine]
            self._open(device, plan_slots(calls, max(self._rows, rows), self._budget), mine)
        self._unplanned.clear()
        if self._frozen:
            self._load_tables()

    def freeze(self, state: HookState, table: Table) -> None:
        """Give the table [2, width] of a hook point's channels, which is uploaded before the next step."""
        self._frozen[state] = table

    def _load_tables(self) -> None:
        for state in list(self._frozen):
            place = state.device if state.bound is None else state.bound
            one = None if place is None else self._captures.get(place)
            if one is not None:
                one.load_table(state, self._frozen.pop(state))

    def free(self, ask: Callable[[], int]) -> int:
        """Return how many packets the stream can accept beyond those in flight; `ask` queries the stream."""
        unclaimed = 0
        # Read before querying the stream, so that the result is never too large.
        for one in self._captures.values():
            unclaimed += one.lane.unclaimed()
        return ask() - unclaimed

    def has_room(self, states: Sequence[HookState], kept: int) -> bool:
        """Return whether every device has slots for a step that keeps `kept` rows."""
        for device, one in self._captures.items():
            mine = (state for state in states if state.device == device and not state.left_out)
            if not one.has_room(sum(state.calls_expected for state in mine), kept):
                return False
        return True

    def begin_step(self, kept: NDArray[np.int64], records: NDArray[np.void]) -> None:
        """Send the kept indices of a step to all devices."""
        self._kept.clear()
        if len(kept):
            for one in self._captures.values():
                one.begin_step(kept, records)

    # -- a call

    def wire(self, state: HookState, tensor: torch.Tensor, width: int) -> torch.dtype:
        """Return the type that rows of a tensor on a device travel in: what the hook worker would make of it.

        As there (`asysi.hook.blocks.conversion`), gradients stay as they are, and so do two bytes an element
        under BF16. Without a table for rows of this width the hook worker converts by channel.
        """
        wanted, dtype = self._converted, tensor.dtype
        if wanted is None or state.kind is not Kind.ACTIVATION:
            return dtype
        one = self._captures.get(tensor.device)
        if one is None or (wanted is torch.bfloat16 and dtype is not torch.float32):
            return dtype
        return dtype if wanted is torch.int8 and not one.has_table(state, width) else wanted

    def find(self, state: HookState, device: torch.device) -> DeviceCapture | None:
        """Return the capture of a device; None if rows are copied while the model waits.

        Raises:
            DeviceRefusedError: the call cannot be captured.
        """
        one = self._captures.get(device)
        if one is None:
            if self._open_lane is None or device.type != "cuda":
                return None
            if device not in self._refused:
                self._unplanned.add(device)
                state.device = device
            why = self._refused.get(device, "no module was expected there; the next step is captured")
            raise DeviceRefusedError(f"capture leaves out {device}: {why}")
        if self._accelerator.capturing():
            self.in_graph.add(state)
            raise DeviceRefusedError(_GRAPH)
        if state.bound is not device:
            self._bind(state, device)
        return one

    def gather(self, tensor: torch.Tensor, width: int, kept: NDArray[np.int64]) -> torch.Tensor:
        """Return the kept rows [len(kept), width] of a tensor in host memory.

        The gather runs on the compute stream, before any later in-place operation; the copy is synchronous.

        Args:
            tensor: tensor on any device, with rows of `width` elements.
            width: elements per row.
            kept: indices of the rows, identical for every call of a step.
        """
        device = tensor.device
        if device not in self._kept:
            self._kept[device] = torch.from_numpy(kept).to(device)
        return tensor.detach().reshape(-1, width).index_select(0, self._kept[device]).cpu()

    def close(self) -> None:
        """Publish the rows in flight, and release the slots."""
        for one in self._captures.values():
            one.lane.stop()
        self._captures.clear()
        self._refused.clear()

    # --

    @staticmethod
    def _bind(state: HookState, device: torch.device) -> None:
        """Bind a hook point to one device, so that its packets keep their order."""
        if state.bound is not None and state.bound != device:
            raise DeviceRefusedError(_moved(state, device))
        state.bound = state.device = device

        def refuse(*_: object) -> bool:
            raise DeviceRefusedError(_moved(state, torch.device("cpu")))

        state.put = refuse

    def _row_bytes(self, state: HookState) -> int:
        if state.kind is not Kind.ACTIVATION or not state.width:
            return state.row_bytes
        return slot_row_bytes(state.width, state.row_bytes // state.width, self._quantization)

    def _widths(self, states: Sequence[HookState]) -> dict[HookState, int]:
        """Return the channels of the hook points that may get a table."""
        if self._converted is not torch.int8:
            return {}
        return {state: state.width for state in states if state.kind is Kind.ACTIVATION and state.width}

    def _open(self, device: torch.device, plan: SlotPlan, states: Sequence[HookState]) -> None:
        """Allocate memory and start the lane; if memory is short, try smaller plans."""
        assert self._open_lane is not None
        why, trying = "", plan if plan.slots else None
        while trying is not None:
            try:
                with torch.inference_mode(False):  # else steps outside this mode could not write slots
                    memory = _Memory(self._accelerator, device, trying, self._widths(states))
                lane = self._open_lane(device.index or 0, trying.slots, self._accelerator.runtime())
            except torch.OutOfMemoryError as error:
                why = f"no memory for {trying}: {str(error).splitlines()[0]}"
                trying = trying.smaller()
                continue
            except (LaneError, RuntimeError) as error:
                why = str(error)
                break
            if lane is None:
                self._open_lane = None
            else:
                self._captures[device] = DeviceCapture(self._accelerator, device, trying, memory, lane)
            return
        self._refused[device] = why


def _moved(state: HookState, device: torch.device) -> str:
    return (
        f"the module returns a tensor on {device}, after others on {state.bound}: packets of a hook point "
        "would lose their order"
    )
