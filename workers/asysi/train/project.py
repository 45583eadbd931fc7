"""A training project: its folder, its configuration, and the objects it describes."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.train.config import TrainConfig, load_config
from asysi.train.data_loader import DataOptions, TableDataset
from asysi.train.factory import imported, instantiated
from asysi.train.table import digest_of

log = logging.getLogger("asysi")
PACKAGE = "train"


@dataclass(frozen=True)
class Project:
    """A folder with `config.yaml` and a package `train`; created by `open_project`."""

    folder: Path
    config: TrainConfig

    def table(self, split: str) -> Path:
        """Return the table of `train`, `val` or `test`; without a test table, that of `val`."""
        data = self.config.data
        named = {"train": data.train, "val": data.val, "test": data.test or data.val}[split]
        return self.folder / named

    def make_data(self) -> None:
        """Write the tables with the project's own function if the first of them does not exist."""
        make = self.config.data.make
        if make is not None and not self.table("train").exists():
            log.info("%s does not exist: %s writes it", self.table("train"), make)
            imported(make)(self.folder)

    def dataset(self, split: str, *, train: bool = False) -> TableDataset:
        """Return the data set of a split.

        Args:
            split: `train`, `val` or `test`.
            train: whether samples are augmented.

        Raises:
            ConfigError: its table cannot be used.
            ValueError: a label is out of range.
        """
        return self.dataset_of(self.table(split), train=train)

    def dataset_of(
        self, table: Path, *, train: bool = False, labels: bool = True, **options: Any
    ) -> TableDataset:
        """Return a data set over any table in the project's format."""
        config, data = self.config, self.config.data
        chosen: dict[str, Any] = {
            "classes": config.classes if labels else (),
            "label": data.label,
            "max_missing": data.max_missing,
            "cache_bytes": data.cache_mb << 20,
            "seed": config.seed,
        }
        made = instantiated(
            data.dataset,
            root=str(table),
            processor_config=data.processor,
            augmentation_config=data.augmentation,
            train=train,
            debug=config.debug,
            options=DataOptions(**chosen | options),
        )
        if not isinstance(made, TableDataset):
            raise ConfigError(f"data.dataset: {type(made).__name__} is not an asysi.train TableDataset")
        return made

    def digest(self, split: str) -> str | None:
        """Return the SHA-256 of the table of a split, None if there is none."""
        return digest_of(self.table(split)) if self.table(split).is_file() else None

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each table, by its path in the project."""
        names = dict.fromkeys([self.config.data.train, self.config.data.val, self.config.data.test])
        return {
            name: digest_of(self.folder / name) for name in names if name and (self.folder / name).is_file()
        }


def open_project(folder: Path, config: str = "config.yaml", settings: Sequence[str] = ()) -> Project:
    """Return the project in a folder, with its modules importable as `train`.

    Args:
        folder: its folder.
        config: its configuration, relative to the folder.
        settings: `path=value` pairs that override the file.

    Raises:
        ConfigError: the configuration is invalid.
    """
    folder = folder.absolute()
    loaded = load_config(folder / config, settings)
    _make_importable(folder)
    return Project(folder, loaded)


def _make_importable(folder: Path) -> None:
    """Put the folder first on `sys.path`, and unload a `train` package of another project."""
    sys.path[:] = [str(folder), *(entry for entry in sys.path if entry != str(folder))]
    known = sys.modules.get(PACKAGE)
    home = Path(getattr(known, "__file__", None) or "/nowhere").parent.parent
    if known is not None and home != folder:
        for name in [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]:
            del sys.modules[name]
