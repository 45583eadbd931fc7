"""The buses of an experiment. What carries its streams is decided here and nowhere else."""

from pathlib import Path, PurePosixPath

from asysi.bus.plan import CAPTURE_CHUNK, StreamPlan
from asysi.bus.stream import ExperimentBus
from asysi.contract.quantity import parse_bytes
from asysi.contract.runtime import BUS_RING, CAPTURE_RING
from asysi.contract.spec import Spec


def create_data_bus(spec: Spec, shm: Path, stream: PurePosixPath = BUS_RING) -> ExperimentBus:
    """Return a stream of an experiment, to which its processes attach.

    Args:
        spec: `mode` decides between the ring in shared memory and queues.
        shm: folder of the rings, or of the queue server.
        stream: BUS_RING, to the consumers, or CAPTURE_RING, from the host to the hook.
    """
    if spec.mode == "HPC":
        from asysi.bus.ring import CppShardedSPMCBus  # noqa: PLC0415 - needs the compiled ring

        return CppShardedSPMCBus(shm / stream)
    from asysi.bus.capture_queue import HOOK, CaptureQueueBus  # noqa: PLC0415 - not needed in HPC mode
    from asysi.bus.queue import PythonQueueBus  # noqa: PLC0415

    bus = PythonQueueBus(shm, last=True)
    if stream != CAPTURE_RING:
        return bus
    chunks = parse_bytes(spec.capture.size) // CAPTURE_CHUNK
    return CaptureQueueBus(bus, StreamPlan(CAPTURE_RING, 1, chunks, CAPTURE_CHUNK, (HOOK,), 0, "drop_new"))
