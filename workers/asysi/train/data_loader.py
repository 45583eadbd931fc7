"""Data sets over a table, and their batches: dropped rows are counted, and iteration can be resumed."""

import logging
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from asysi.contract.errors import ConfigError
from asysi.train.batches import BatchContract
from asysi.train.factory import instantiated
from asysi.train.randomness import mixed, seeded
from asysi.train.table import Row, Table

log = logging.getLogger("asysi")

DEBUG_ROWS = 64
_MISSING = {"", "nan", "na", "n/a", "null", "none"}


class LabelError(ConfigError, ValueError):
    """A label outside the classes of the data."""


@dataclass(frozen=True)
class DataOptions:
    """Options of a data set besides its processor and augmentation."""

    classes: Sequence[str] = ()
    """Names of the classes, by index; if empty, labels are not read."""
    label: str = "label"
    """Column of the label."""
    max_missing: float = 0.05
    """Share of rows that may be dropped."""
    cache_bytes: int = 0
    """Cache size in bytes for raw rows."""
    seed: int = 0
    """Seed of the augmentation."""


@dataclass
class Dropped:
    """Rows that a data set drops."""

    rows: int = 0
    """Rows of the table."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Dropped rows by reason."""

    @property
    def total(self) -> int:
        """Dropped rows."""
        return sum(self.reasons.values())


class TableDataset(Dataset[dict[str, Tensor]]):
    """Samples from a table. A project's `CustomDataset` defines which columns it reads and how.

    A row with a missing value is dropped with a warning. A label that is not one of the classes is an error.

    Args:
        root: the table; paths in it are relative to its folder.
        processor_config: `instantiated` to an object with `preprocess(data, img_aug)`.
        augmentation_config: `instantiated` to a callable; None disables augmentation.
        train: whether samples are augmented.
        debug: whether to read at most 64 rows and log them.
        options: classes, label column, limits.

    Raises:
        ConfigError: the table cannot be used, or too many of its rows are dropped.
        ValueError: a label is out of range.
    """

    columns: tuple[str, ...] = ()
    """Required columns, without the label."""

    def __init__(  # noqa: PLR0917 - the order is that of the design
        self,
        root: str,
        processor_config: dict[str, Any],
        augmentation_config: dict[str, Any] | None,
        train: bool = False,
        debug: bool = False,
        options: DataOptions | None = None,
    ) -> None:
        self.root = Path(root)
        self.options = options or DataOptions()
        self.processor = instantiated(processor_config)
        self.augmentation = instantiated(augmentation_config) if train else None
        self.train = train
        self.debug = debug
        self.epoch = 0
        """Current pass over the data; part of the augmentation's seed."""
        self.dropped = Dropped()
        self._cache: dict[int, dict[str, Any]] = {}
        self._cached_bytes = 0
        self.load_data()

    # -- what a project overrides

    def missing(self, row: Row) -> str | None:
        """Return why a row cannot be used, or None if it can."""
        return next((f"no {name}" for name in self.columns if is_missing(row.get(name))), None)

    def get_raw_data(self, idx: int) -> dict[str, Any]:
        """Return the raw sample `idx`, before the processor; `label` is its class."""
        row = self.row(idx)
        return {name: row[name] for name in self.columns} | {"label": self.label(idx)}

    # -- common to all data sets

    def load_data(self) -> None:
        """Read the table once, and keep the position and the label of each usable row."""
        wanted = (*self.columns, self.options.label) if self.options.classes else self.columns
        self.table = Table(self.root, wanted)
        self.rows = array("Q")
        self.labels = array("l")
        by_name = {name: number for number, name in enumerate(self.options.classes)}
        for number, (line, row) in enumerate(self.table.scan()):
            self.dropped.rows += 1
            reason = self.missing(row)
            if reason is None and by_name and is_missing(row[self.options.label]):
                reason = f"no {self.options.label}"
            if reason is None:
                self.rows.append(number)
                self.labels.append(self._class(row, by_name, line) if by_name else 0)
            else:
                self._drop(reason, line)
            if self.debug and len(self.rows) >= DEBUG_ROWS:
                break
        self._refuse_few()

    def row(self, idx: int) -> Row:
        """Return the table's row of sample `idx`."""
        return self.table.row(self.rows[idx])

    def label(self, idx: int) -> int:
        """Return the class of sample `idx`."""
        return self.labels[idx]

    def __getitem__(self, idx: int) -> dict[str, Tensor]:
        data = self._raw(idx)
        if self.augmentation is None:
            sample = self.processor.preprocess(data, img_aug=None)
        else:
            with seeded(self.options.seed, self.epoch, idx):
                sample = self.processor.preprocess(data, img_aug=self.augmentation)
        if self.debug:
            log.debug("sample %d: %s", idx, {name: tuple(value.shape) for name, value in sample.items()})
        return dict(sample)

    def __len__(self) -> int:
        return len(self.rows)

    def _raw(self, idx: int) -> dict[str, Any]:
        found = self._cache.get(idx)
        if found is None:
            found = self.get_raw_data(idx)
            size = sum(_bytes_of(value) for value in found.values()) + 400  # of the dictionaries
            if self._cached_bytes + size <= self.options.cache_bytes:
                self._cache[idx] = found
                self._cached_bytes += size
        return dict(found)

    def _class(self, row: Row, by_name: dict[str, int], line: int) -> int:
        text = row[self.options.label].strip()
        if text in by_name:
            return by_name[text]
        where = f"{self.root}:{line}: the label {text!r}"
        try:
            value = float(text)
        except ValueError:
            raise ConfigError(
                f"{where} is neither a number nor a class name: the classes are {_few(list(by_name))}"
            ) from None
        if not value.is_integer() or not 0 <= value < len(by_name):
            message = f"{where} is out of range: labels are whole numbers from 0 to {len(by_name) - 1}"
            log.critical("%s", message)
            raise LabelError(message)
        return int(value)

    def _drop(self, reason: str, line: int) -> None:
        count = self.dropped.reasons[reason] = self.dropped.reasons.get(reason, 0) + 1
        if count <= 3:
            log.warning("%s:%d is dropped: %s", self.root, line, reason)

    def _refuse_few(self) -> None:
        dropped = self.dropped
        if not dropped.rows:
            raise ConfigError(f"{self.root} has no row below its header")
        if dropped.total:
            reasons = ", ".join(f"{count} × {reason}" for reason, count in dropped.reasons.items())
            log.warning("%s: %d of %d rows are dropped: %s", self.root, dropped.total, dropped.rows, reasons)
            if dropped.total > self.options.max_missing * dropped.rows:
                raise ConfigError(
                    f"{self.root}: {dropped.total} of {dropped.rows} rows cannot be used ({reasons}), "
                    f"more than data.max_missing ({self.options.max_missing:.1%}): mend the table or raise it"
                )
        if self.train and len(self.rows) < 2:
            raise ConfigError(f"{self.root} has 1 row that can be used: training needs at least 2")


def is_missing(value: str | None) -> bool:
    """Return whether a table value counts as missing."""
    return value is None or value.strip().lower() in _MISSING


class BatchLoader:
    """Batches of a data set, in an order that depends only on seed and epoch.

    Each rank reads a contiguous part of each global batch; together the ranks read the same samples as a
    single rank would.

    Args:
        dataset: source of the samples.
        contract: checked for every batch.
        batch_size: samples per global batch.
        seed: seed of the order; None keeps the order of the table.
        rank: rank of this process.
        world: number of ranks.
        workers: processes that prefetch batches.
    """

    def __init__(
        self,
        dataset: TableDataset,
        contract: BatchContract,
        batch_size: int,
        *,
        seed: int | None = None,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ) -> None:
        self.dataset, self.batch_size = dataset, batch_size
        self._contract, self._seed, self._rank, self._world = contract, seed, rank, world
        self._workers = workers

    def __len__(self) -> int:
        """Return the number of batches per epoch; the last one may be smaller."""
        return math.ceil(len(self.dataset) / self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """Return the indices of an epoch, [samples]."""
        if self._seed is None:
            return torch.arange(len(self.dataset))
        generator = torch.Generator().manual_seed(mixed(self._seed, epoch))
        return torch.randperm(len(self.dataset), generator=generator)

    def batches(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Yield this rank's part of each batch of an epoch: indices, and tensors that satisfy the contract.

        A rank without a part of the last batch gets empty indices and no tensors.

        Args:
            epoch: pass over the data, from 0.
            first: batch to start with.

        Raises:
            ConfigError: a batch violates the contract.
        """
        self.dataset.epoch = epoch
        parts = [self._part(part) for part in torch.split(self.order(epoch), self.batch_size)[first:]]
        loader: Any = DataLoader(
            self.dataset,
            batch_sampler=[part.tolist() for part in parts if len(part)],
            num_workers=self._workers,
            generator=torch.Generator(),  # otherwise an iterator draws from the global one
        )
        read = iter(loader)
        for indices in parts:
            batch = next(read) if len(indices) else {}
            if batch:
                self._contract.check(batch)
            yield indices, batch

    def _part(self, batch: Tensor) -> Tensor:
        size = math.ceil(len(batch) / self._world)
        return batch[self._rank * size : (self._rank + 1) * size]


def _bytes_of(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.element_size() * value.nelement() + 100
    if isinstance(value, str | bytes):
        return len(value) + 60
    width, height = getattr(value, "size", (0, 0)) if hasattr(value, "getbands") else (0, 0)
    return int(width) * int(height) * 4 + 100


def _few(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
