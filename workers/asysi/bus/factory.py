"""The buses of an experiment. What carries its streams is decided here and nowhere else."""

import os
import secrets
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from asysi.bus.plan import CAPTURE_CHUNK, StreamPlan
from asysi.bus.stream import ExperimentBus
from asysi.contract.errors import ConfigError
from asysi.contract.quantity import parse_bytes
from asysi.contract.runtime import BUS_RING, CAPTURE_RING
from asysi.contract.spec import Redis, Spec

if TYPE_CHECKING:
    from asysi.bus.queue import PythonQueueBus
    from asysi.bus.redis_stream import RedisStreamBus

_NAME_FILE = "redis.stream"
"""In the folder of the rings: name of the attempt's stream, which no other run in the same Redis has."""


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

    bus = _queues(spec, shm)
    if stream != CAPTURE_RING:
        return bus
    chunks = parse_bytes(spec.capture.size) // CAPTURE_CHUNK
    return CaptureQueueBus(bus, StreamPlan(CAPTURE_RING, 1, chunks, CAPTURE_CHUNK, (HOOK,), 0, "drop_new"))


def _queues(spec: Spec, shm: Path) -> "PythonQueueBus | RedisStreamBus":
    if spec.bus.redis is None:
        from asysi.bus.queue import PythonQueueBus  # noqa: PLC0415 - not needed in HPC mode

        return PythonQueueBus(shm, last=True)
    from asysi.bus.redis_stream import RedisStreamBus  # noqa: PLC0415 - needs redis-py

    return RedisStreamBus(_address(spec.bus.redis), _name(shm), last=True)


def _address(redis: Redis) -> str:
    if redis.url is not None:
        return redis.url
    variable = (redis.secret_ref.key if redis.secret_ref else None) or "REDIS_URL"
    if not (address := os.environ.get(variable)):
        raise ConfigError(
            f"spec.bus.redis: the address is read from the environment, and {variable} is not set"
        )
    return address


def _name(shm: Path) -> str:
    """Return the name of the attempt's stream; the first process that asks, prepare, makes it up."""
    file = shm / _NAME_FILE
    if not file.exists():
        made = shm / f"{_NAME_FILE}.{secrets.token_hex(8)}"
        made.write_text(f"{shm.name}-{secrets.token_hex(4)}")
        with suppress(FileExistsError):
            os.link(made, file)
        made.unlink()
    return file.read_text()
