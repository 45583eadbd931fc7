"""An archive as PyTorch datasets: map-style by row number, or iterable, optionally shuffled.

Both return dictionaries: `activation` [width] or [n, width], together with `sample`, `step`, `sequence`,
`position` and `token`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from asysi.archive.dataset import MScanDataset, Range, cut
from asysi.archive.format import ChunkKind
from asysi.bus.packet import ActivationPacket, Dtype, RowFlag

Rows = dict[str, Tensor]
_LINEAGE = ("sample", "sequence", "position", "token")
_SIGNED = {"sample": np.int64, "sequence": np.int64, "position": np.int64, "token": np.int64}
_HELD_CHUNKS = 256
"""Maximum number of cached chunks: views of the file if uncompressed, payloads if compressed."""


class _Chunks:
    """The TENSOR chunks of one hook point, read on demand; reopened in every worker process."""

    def __init__(
        self,
        path: str | Path,
        point: str,
        steps: Range | None,
        samples: Range | None,
        *,
        verify: bool = True,
    ) -> None:
        self._path, self._steps, self._samples, self._verify = path, steps, samples, verify
        self.point = point
        self._open()

    def _open(self) -> None:
        dataset = MScanDataset(self._path, verify=self._verify)
        if self.point not in dataset.points:
            known = ", ".join(dataset.points) or "none"
            raise KeyError(f"{self._path} has no hook point {self.point!r}; it has {known}")
        found = dataset.chunks(ChunkKind.TENSOR, self.point, steps=self._steps, samples=self._samples)
        self._found = list(found)
        self._held: dict[int, list[ActivationPacket]] = {}

    def __getstate__(self) -> dict[str, object]:
        """Omit mapped files, which worker processes open themselves."""
        return {**self.__dict__, "_found": [], "_held": {}}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._found)

    @property
    def filtered(self) -> bool:
        """Whether a chunk may hold rows outside the selection."""
        return self._steps is not None or self._samples is not None

    def rows(self, number: int) -> int:
        """Return the number of rows of a chunk according to the index, including rows not selected."""
        segment, chunk = self._found[number]
        return int(segment.entries["rows"][chunk])

    def packets(self, number: int) -> list[ActivationPacket]:
        """Return the packets of a chunk, reduced to the selected rows.

        Packets of uncompressed chunks are views of the mapped file; they are verified once.
        """
        if number in self._held:
            self._held[number] = self._held.pop(number)
            return self._held[number]
        segment, chunk = self._found[number]
        found = [part for packet in segment.packets(chunk) if (part := self._wanted(packet)) is not None]
        if len(self._held) >= _HELD_CHUNKS:
            del self._held[next(iter(self._held))]
        self._held[number] = found
        return found

    def read(self, number: int) -> Rows:
        """Return the selected rows of a chunk."""
        parts = [to_tensors(packet) for packet in self.packets(number)]
        return _join(parts) if parts else _none()

    def _wanted(self, packet: ActivationPacket) -> ActivationPacket | None:
        step = int(packet.header["step"])
        if self._steps is not None and not self._steps[0] <= step < self._steps[1]:
            return None
        if self._samples is None:
            return packet
        sample = packet.rows["sample"]
        return cut(packet, (sample >= self._samples[0]) & (sample < self._samples[1]))


def to_tensors(packet: ActivationPacket) -> Rows:
    """Return a packet's rows as new tensors; bfloat16, float16 and float32 keep their type."""
    if int(packet.header["dtype"]) == Dtype.BFLOAT16:
        activation = torch.from_numpy(packet.payload.view(np.int16).copy()).view(torch.bfloat16)
    elif packet.scales is None:
        activation = torch.from_numpy(packet.payload.copy())
    else:
        activation = torch.from_numpy(packet.to_float32())
    rows = {"activation": activation}
    for name in _LINEAGE:
        rows[name] = torch.from_numpy(packet.rows[name].astype(_SIGNED[name]))
    rows["step"] = torch.full((len(packet.rows),), int(packet.header["step"]), dtype=torch.int64)
    rows["holdout"] = torch.from_numpy((packet.rows["flags"] & RowFlag.HOLDOUT) != 0)
    return rows


def _join(parts: list[Rows]) -> Rows:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _none() -> Rows:
    return {"activation": torch.empty(0, 0), **{name: torch.empty(0) for name in (*_LINEAGE, "step")}}


class MScanRows(Dataset[Rows]):
    """Map-style dataset of the rows of a hook point, for samplers: rows are read on demand in any order.

    Args:
        path: a segment, a folder of segments, or an output folder.
        point: path of the hook point.
        steps: range of steps [from, to).
        samples: range of rows of the input [from, to).
        verify: whether the checksum of a chunk is verified when its first row is read.

    Raises:
        KeyError: the archive has no such hook point.
        MScanError: a segment cannot be read, now or when one of its rows is requested.
    """

    def __init__(
        self,
        path: str | Path,
        point: str,
        *,
        steps: Range | None = None,
        samples: Range | None = None,
        verify: bool = True,
    ) -> None:
        self._chunks = _Chunks(path, point, steps, samples, verify=verify)
        numbers = range(len(self._chunks))
        exact = self._chunks.filtered
        sizes = [
            sum(len(p.rows) for p in self._chunks.packets(n)) if exact else self._chunks.rows(n)
            for n in numbers
        ]
        self._ends: NDArray[np.int64] = np.cumsum(sizes, dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Rows:
        """Return a row.

        Raises:
            IndexError: there is no such row.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Rows]:
        """Return rows; rows of the same chunk are read together."""
        rows = self.take(np.asarray(indices, np.int64))
        return [{name: column[place] for name, column in rows.items()} for place in range(len(indices))]

    def take(self, numbers: NDArray[np.integer[Any]]) -> Rows:
        """Return rows by their numbers [n], in any order, as one batch.

        Raises:
            IndexError: there is no such row.
        """
        wanted = np.where(numbers < 0, numbers + len(self), numbers).astype(np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows are 0 to {len(self) - 1}, asked for {wanted.min()} to {wanted.max()}")
        order = np.argsort(wanted, kind="stable")
        ordered = wanted[order]
        chunks = np.searchsorted(self._ends, ordered, "right")
        parts = []
        for chunk in np.unique(chunks):
            first = self._ends[chunk - 1] if chunk else 0
            own = ordered[chunks == chunk] - first
            for packet in self._chunks.packets(int(chunk)):
                inside = own[(own >= 0) & (own < len(packet.rows))]
                if len(inside):
                    parts.append(to_tensors(packet.select(inside)))
                own -= len(packet.rows)
        if not parts:
            return _none()
        back = torch.from_numpy(np.argsort(order, kind="stable"))
        return {name: column[back] for name, column in _join(parts).items()}


class MScanStream(IterableDataset[Rows]):
    """Iterable dataset of the rows of a hook point in batches; each worker and rank gets its own chunks.

    Shuffling permutes the chunks, then mixes the rows of `mix` chunks at a time. The same seed and epoch give
    the same order. Use it with `DataLoader(stream, batch_size=None)`.

    Args:
        path: a segment, a folder of segments, or an output folder.
        point: path of the hook point.
        batch: rows per batch; the last batch of a worker may have fewer.
        shuffle: whether to shuffle.
        seed: seed of the order.
        mix: number of chunks whose rows are mixed.
        rank: rank of this process among those that train together.
        ranks: number of these processes.
        steps: range of steps [from, to).
        samples: range of rows of the input [from, to).

    Raises:
        KeyError: the archive has no such hook point.
        MScanError: a segment cannot be read, now or when a chunk of it is reached.
    """

    def __init__(
        self,
        path: str | Path,
        point: str,
        *,
        batch: int = 1024,
        shuffle: bool = False,
        seed: int = 0,
        mix: int = 8,
        rank: int = 0,
        ranks: int = 1,
        steps: Range | None = None,
        samples: Range | None = None,
    ) -> None:
        if batch < 1 or mix < 1 or not 0 <= rank < ranks:
            raise ValueError(f"batch {batch}, mix {mix}, rank {rank} of {ranks}")
        self._chunks = _Chunks(path, point, steps, samples)
        self._batch, self._shuffle, self._seed, self._mix = batch, shuffle, seed, mix
        self._rank, self._ranks = rank, ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose another order; worker processes use it from the next iteration on."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Rows]:
        """Yield batches."""
        worker = get_worker_info()
        here, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        generator = np.random.default_rng([self._seed, self.epoch])
        order = np.arange(len(self._chunks))
        if self._shuffle:
            generator.shuffle(order)
        own = order[self._rank * parts + here :: self._ranks * parts]
        mixing = np.random.default_rng([self._seed, self.epoch, self._rank, here])
        held: list[Rows] = []
        for group in range(0, len(own), self._mix):
            parts_read = [self._chunks.read(int(n)) for n in own[group : group + self._mix]]
            held += [part for part in parts_read if len(part["step"])]
            if not held:
                continue
            rows = _join(held)
            if self._shuffle:
                place = torch.from_numpy(mixing.permutation(len(rows["step"])))
                rows = {name: column[place] for name, column in rows.items()}
            whole = len(rows["step"]) - len(rows["step"]) % self._batch
            for first in range(0, whole, self._batch):
                yield {name: column[first : first + self._batch] for name, column in rows.items()}
            held = [{name: column[whole:] for name, column in rows.items()}]
        if held and len(held[0]["step"]):
            yield held[0]
