"""A trainer of the spec: one autoencoder per hook point, with one checkpoint for all of them."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asysi.bus.packet import ActivationPacket, Dtype, Kind, split_account
from asysi.contract.errors import ConfigError
from asysi.contract.grid import members
from asysi.contract.quantity import parse_bytes
from asysi.contract.spec import SaeTrain
from asysi.model.globs import compile_glob
from asysi.sae.checkpoint import TrainerCheckpoint, read_checkpoint, write_checkpoint
from asysi.sae.sequence import SequenceLog
from asysi.sae.training import Training
from asysi.sae.variants import variant

_KEPT_AS = {
    Dtype.FLOAT32: torch.float32,
    Dtype.BFLOAT16: torch.bfloat16,
    Dtype.FLOAT16: torch.float16,
    Dtype.INT8: torch.bfloat16,
    Dtype.FP8_E4M3: torch.bfloat16,
}
"""What rows are kept as: the stream's own type; int8 and fp8 are read back and become bfloat16."""


class Trainer:
    """Trains the autoencoders of one entry of `spec.sae.train`.

    Args:
        config: the entry.
        file: its checkpoint file.
        max_norm_multiple: multiple of the running median norm above which rows are excluded, or None.
        device: type of the device that it trains on.

    Raises:
        ConfigError: the variant cannot be trained there.
    """

    def __init__(
        self, config: SaeTrain, file: Path, max_norm_multiple: float | None = None, device: str = "cpu"
    ) -> None:
        if device not in variant(config.variant).devices:
            raise ConfigError(
                f"spec.sae.gpus: the variant {config.variant} of the trainer {config.name} is trained on "
                "CPUs only: set spec.sae.gpus to 0, or take another variant"
            )
        self.config, self.file, self.device = config, file, device
        self.configs = members(config)
        """Settings of each autoencoder of a hook point, in the order of `Training.members`."""
        self._max_norm_multiple = max_norm_multiple
        self.trainings: dict[str, Training] = {}
        """Training by hook point."""
        self.rows: dict[str, int] = {}
        """Rows consumed in this attempt, for all hook points; the ledger counts them as durable once they are
        in a checkpoint."""
        self.log = SequenceLog()
        self._globs: list[re.Pattern[str]] = [compile_glob(glob) for glob in config.hook_points]

    def wants(self, point: str) -> bool:
        """Return whether the trainer trains on an account; gradients are never trained on."""
        is_activation = split_account(point)[1] is Kind.ACTIVATION
        return is_activation and any(glob.fullmatch(point) for glob in self._globs)

    def receive(self, packet: ActivationPacket, points: Iterable[str], steps_total: int, shard: int) -> None:
        """Receive a packet's rows, and train once there are enough for a batch.

        When a batch is drawn depends only on the hook point's packets, not on how many were pulled at once,
        so a replay produces the same autoencoder.

        Args:
            packet: the packet; its memory can be overwritten afterwards.
            points: all captured hook points, which share the buffers' memory.
            steps_total: steps of the host's run; 0 if unknown.
            shard: shard that carried the packet.
        """
        header = packet.header
        self.rows[packet.point] = self.rows.get(packet.point, 0) + len(packet.rows)
        self.log.add(int(header["attempt"]), shard, int(header["sequence"]))
        if int(header["kind"]) != Kind.ACTIVATION or not self.wants(packet.point):
            return
        rows, finite = kept_rows(packet)
        training = self.trainings.get(packet.point)
        if training is None:
            memory = self._share(packet.point, rows.shape[1] * rows.dtype.itemsize, points)
            training = self._begin(packet.point, rows.shape[1], rows.dtype, memory)
        if training.sae.d_in != rows.shape[1]:
            raise ConfigError(
                f"{packet.point} returns rows of width {rows.shape[1]}, but its SAE has width "
                f"{training.sae.d_in}: where the module is called with different widths, address one call as "
                f"{packet.point}#0; where the checkpoint {self.file} is of another run, take another output "
                "folder"
            )
        training.progress.steps_total = steps_total
        training.receive(rows, finite, packet.rows, int(header["step"]), int(header["call_index"]))
        while training.train():
            pass

    def train(self) -> int:
        """Train each autoencoder on another buffered batch, after `end`; return the number of rows."""
        return sum(training.train() for training in self.trainings.values())

    def end(self) -> None:
        """Signal that no more rows will arrive."""
        for training in self.trainings.values():
            training.end()

    def results(self) -> dict[str, dict[str, Training]]:
        """Return the training of each autoencoder, by its name and then by hook point."""
        return {
            config.name: {point: one.members[number] for point, one in list(self.trainings.items())}
            for number, config in enumerate(self.configs)
        }

    def save(self, attempt: int) -> None:
        """Write the checkpoint."""
        tensors: dict[str, Tensor] = {}
        points: dict[str, Any] = {}
        for point, training in self.trainings.items():
            state, points[point] = training.state()
            tensors |= {f"{point}/{name}": tensor for name, tensor in state.items()}
        words = {
            "trainer": self.config.model_dump(mode="json"),
            "attempt": attempt,
            "rows": self.rows,
            "log": self.log.ranges,
            "points": points,
        }
        write_checkpoint(self.file, TrainerCheckpoint(tensors, words))

    def load(self, attempt: int) -> bool:
        """Restore the checkpoint; return whether there is one.

        From an earlier attempt's checkpoint, everything is restored except the consumed rows, which belong to
        the rings of that attempt.

        Raises:
            ConfigError: the checkpoint has different settings or cannot be read.
        """
        checkpoint = read_checkpoint(self.file)
        if checkpoint is None:
            return False
        words = checkpoint.words
        differing = _differences(words["trainer"], self.config)
        if differing:
            raise ConfigError(
                f"the checkpoint {self.file} was made with other settings ({', '.join(differing)}): "
                "take another output folder, or remove it"
            )
        for point, state in words["points"].items():
            training = self._begin(point, state["width"], getattr(torch, state["dtype"]), state["memory"])
            prefix = f"{point}/"
            own = {
                name.removeprefix(prefix): value
                for name, value in checkpoint.tensors.items()
                if name.startswith(prefix)
            }
            training.restore(own, state)
        self.log = SequenceLog(words["log"])
        self.rows = dict(words["rows"]) if words["attempt"] == attempt else {}
        return True

    def _begin(self, point: str, width: int, dtype: torch.dtype, memory: int) -> Training:
        self.trainings[point] = Training(
            self.configs[0], point, width, dtype, memory,
            max_norm_multiple=self._max_norm_multiple, device=self.device, followers=self.configs[1:],
        )  # fmt: skip
        return self.trainings[point]

    def _share(self, point: str, row_bytes: int, points: Iterable[str]) -> int:
        """Return the memory limit of a hook point's mixing buffer in bytes."""
        sharing = sum(1 for name in {*points, point} if self.wants(name))
        share = parse_bytes(self.config.buffer.memory) // sharing
        if share < 2 * self.config.batch * row_bytes:
            raise ConfigError(
                f"spec.sae.train[{self.config.name}].buffer.memory: {self.config.buffer.memory} shared by "
                f"{sharing} hook points does not hold two batches of {self.config.batch} rows of {point}: "
                "raise it, or lower batch"
            )
        return share


def kept_rows(packet: ActivationPacket) -> tuple[Tensor, NDArray[np.bool_]]:
    """Return a packet's rows as a new tensor [rows, width] in the storage dtype, and a mask of finite rows.

    Raises:
        ValueError: the packet's dtype is not supported for training.
    """
    dtype = Dtype(int(packet.header["dtype"]))
    if dtype not in _KEPT_AS:
        raise ValueError(f"an SAE cannot be trained on packets of type {dtype.name}")
    if dtype is Dtype.BFLOAT16:
        rows = torch.from_numpy(packet.payload.view(np.int16).copy()).view(torch.bfloat16)
        return rows, ((packet.payload.view(np.uint16) & _EXPONENT) != _EXPONENT).all(1)
    if dtype.itemsize == 1:
        values = packet.to_float32()
        return torch.from_numpy(values).bfloat16(), np.asarray(np.isfinite(values).all(axis=1))
    return torch.from_numpy(packet.payload.copy()), np.isfinite(packet.payload).all(1)


_EXPONENT = np.uint16(0x7F80)
"""bfloat16 exponent bits; all set for infinity and NaN."""


def _differences(old: dict[str, Any], config: SaeTrain) -> list[str]:
    """Return the differing settings, except those that can change between attempts.

    A setting that an older version did not have was the default.
    """
    free = {"checkpoint_seconds", "stop", "hook_points"}
    new, default = config.model_dump(mode="json"), type(config)().model_dump(mode="json")
    return sorted(name for name in new if name not in free and old.get(name, default[name]) != new[name])
