"""The data set: a table with the columns `path` and `label`."""

from pathlib import Path
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.train.data_loader import TableDataset
from asysi.train.processor import open_image
from asysi.train.table import Row


class CustomDataset(TableDataset):
    """Images that a table lists; a path is relative to the table's folder."""

    columns = ("path",)

    def load_data(self) -> None:
        """Read the table, and open each file once: one that is not an image is missing data."""
        self._faults: dict[str, str | None] = {}
        super().load_data()

    def missing(self, row: Row) -> str | None:
        """Return why a row cannot be used, or None if it can."""
        return super().missing(row) or self._fault(row["path"])

    def get_raw_data(self, idx: int) -> dict[str, Any]:
        """Return `image` and `label`."""
        return {"image": open_image(self._file(self.row(idx)["path"])), "label": self.label(idx)}

    def _fault(self, path: str) -> str | None:
        if path not in self._faults:
            try:
                open_image(self._file(path))
                self._faults[path] = None
            except ConfigError as error:
                self._faults[path] = "no such file" if not self._file(path).exists() else str(error)
        return self._faults[path]

    def _file(self, path: str) -> Path:
        return self.root.parent / path
