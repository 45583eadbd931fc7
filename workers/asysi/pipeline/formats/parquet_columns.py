"""Checks the column types of a Parquet output while rows are computed, rather than at the end."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.pipeline.formats.parquet_rows import batched, table_of
from asysi.pipeline.rows import values
from asysi.pipeline.rows.ids import FIELD


class ParquetColumns:
    """The columns of a Parquet file to be written.

    Args:
        name: its name in errors.
        rows: file with its rows until it is written.

    Raises:
        ConfigError: pyarrow is not installed.
    """

    def __init__(self, name: str, rows: Path) -> None:
        try:
            import pyarrow  # noqa: PLC0415 - heavy, and only needed here
            import pyarrow.parquet  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(
                f"{name} cannot be written: {error}. Install pyarrow, or write jsonl:// or csv://"
            ) from error
        self._arrow: Any = pyarrow
        self._name, self._rows = name, rows
        self._schema = pyarrow.schema([])

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Check more rows.

        Raises:
            ConfigError: a column's values have no common type; the message names it and the rows' file.
        """
        for batch in batched(rows):
            try:
                schema = table_of(batch).schema
                self._schema = self._unified(self._schema, schema)
            except (self._arrow.ArrowException, OverflowError, TypeError, ValueError) as error:
                raise self._refused(batch, error) from error

    def add_lines(self, data: bytes) -> None:
        """Check more rows, given as JSON lines.

        Raises:
            ConfigError: see `add`.
        """
        if data:
            self.add(map(values.loads, filter(None, data.split(b"\n"))))

    def _unified(self, one: Any, other: Any) -> Any:
        return self._arrow.unify_schemas([one, other], promote_options="permissive")

    def _refused(self, batch: list[dict[str, Any]], error: Exception) -> ConfigError:
        lie = f"Rows computed before it are JSON lines in {self._rows}" if self._rows.exists() else ""
        advice = (
            "let operators return one type for it (then resume with --accept-changes), or write jsonl://"
            " under another pipelineId"
        )
        for row in batch:
            for column, value in row.items():
                if column == FIELD:
                    continue
                try:
                    kind = self._arrow.array([value]).type
                    field = self._arrow.schema([self._arrow.field(column, kind)])
                    self._schema = self._unified(self._schema, field)
                except (self._arrow.ArrowException, OverflowError, TypeError, ValueError):
                    known = self._schema.field(column).type if column in self._schema.names else None
                    what = f"{known}, and {_shown(value)}" if known is not None else _shown(value)
                    return ConfigError(
                        f"{self._name}: rows do not fit into columns of one type: in row {row.get(FIELD)}"
                        f" the column {column} would hold {what}: {advice}. {lie}"
                    )
        return ConfigError(
            f"{self._name}: rows do not fit into columns of one type ({error}): {advice}. {lie}"
        )


def _shown(value: Any) -> str:
    text = values.dumps(value).decode()
    return text if len(text) <= 60 else f"{text[:60]}…"
