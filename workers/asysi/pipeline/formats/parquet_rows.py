"""Parquet files as JSON lines and back; columns that JSON cannot represent need an option.

Dates and times are ISO 8601 text; maps with text keys are objects. Bytes, decimals and durations have no
counterpart in JSON: options specify how to read them.
"""

import base64
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.pipeline.formats.csv_rows import with_number
from asysi.pipeline.formats.uris import PARQUET_OPTIONS
from asysi.pipeline.rows import values
from asysi.pipeline.rows.blocks import bad_line
from asysi.pipeline.rows.ids import FIELD

_READ_ROWS, _WRITTEN_ROWS = 4096, 8192
_PIECE = 1 << 18


def parquet_lines(stream: Any, name: str, options: dict[str, str]) -> Iterator[bytes]:
    """Yield a Parquet file's rows as JSON lines, in pieces.

    Args:
        stream: the file.
        name: its name in errors.
        options: how to read values that JSON cannot represent.

    Raises:
        ConfigError: it is not Parquet, or a column's type has no JSON counterpart and no option.
    """
    import pyarrow.parquet  # noqa: PLC0415 - heavy, and only needed here

    try:
        file = pyarrow.parquet.ParquetFile(stream)
        casts = _checked(file.schema_arrow, name, options)
        yield from _pieces(_rows(file, casts, name, options))
    except pyarrow.ArrowException as error:
        raise ConfigError(f"{name} cannot be read as Parquet: {error}") from error


def _rows(file: Any, casts: set[str], name: str, options: dict[str, str]) -> Iterator[bytes]:
    number = 0
    for batch in file.iter_batches(_READ_ROWS):
        for row in _cast(batch, casts).to_pylist(maps_as_pydicts="strict"):
            with_number(row)
            if options:
                row = _read_as(row, options)  # noqa: PLW2901 - the converted row
            try:
                yield values.dumps(row)
            except (values.LossyValueError, TypeError) as error:
                where = f"{name}, row {number}: {error}; read it as null with #nan=null"
                yield bad_line(where, json.dumps(row, default=str).encode())
            number += 1


def _pieces(lines: Iterator[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= _PIECE:
            yield b"\n".join([*held, b""])
            held, size = [], 0
    if held:
        yield b"\n".join([*held, b""])


def _checked(schema: Any, name: str, options: dict[str, str]) -> set[str]:
    """Return the columns to convert to text, after rejecting unsupported ones."""
    problems = [
        f"{name}: the column {path} is {kind}, which JSON does not have: {advice}"
        for field in schema
        for path, kind, advice in _misfits(field.type, field.name, options)
    ]
    if len(set(schema.names)) < len(schema.names):
        twice = next(column for column in schema.names if schema.names.count(column) > 1)
        problems.append(f"{name}: two columns are called {twice!r}: give each a name of its own")
    if problems:
        raise ConfigError(*problems)
    return {field.name for field in schema if _is_nanosecond(field.type)}


def _misfits(kind: Any, path: str, options: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield path, type and advice for each part of a column that cannot be read."""
    import pyarrow.types as of  # noqa: PLC0415

    if of.is_dictionary(kind):
        yield from _misfits(kind.value_type, path, options)
    elif of.is_struct(kind):
        for index in range(kind.num_fields):
            part = kind.field(index)
            yield from _misfits(part.type, f"{path}.{part.name}", options)
    elif of.is_map(kind):
        if not (of.is_string(kind.key_type) or of.is_large_string(kind.key_type)):
            yield path, str(kind), "only maps from text can be read; cast it where the file is written"
        yield from _misfits(kind.item_type, f"{path}{{}}", options)
    elif hasattr(kind, "value_type"):
        yield from _misfits(kind.value_type, f"{path}[]", options)
    elif option := _option_for(kind):
        if option not in options:
            as_what = PARQUET_OPTIONS[option][0]
            yield (
                path,
                str(kind),
                f"read it as {as_what} with #{option}={as_what}, or leave it out of the file",
            )
    elif not _is_known(kind):
        yield path, str(kind), "cast it where the file is written"


def _option_for(kind: Any) -> str | None:
    import pyarrow.types as of  # noqa: PLC0415

    if (
        of.is_binary(kind)
        or of.is_large_binary(kind)
        or of.is_fixed_size_binary(kind)
        or of.is_binary_view(kind)
    ):
        return "binary"
    if of.is_decimal(kind):
        return "decimal"
    return "duration" if of.is_duration(kind) else None


def _is_known(kind: Any) -> bool:
    import pyarrow.types as of  # noqa: PLC0415

    tests = (of.is_null, of.is_boolean, of.is_integer, of.is_floating, of.is_string, of.is_large_string,
             of.is_string_view, of.is_date, of.is_timestamp, of.is_time)  # fmt: skip
    return any(test(kind) for test in tests)


def _is_nanosecond(kind: Any) -> bool:
    import pyarrow.types as of  # noqa: PLC0415

    return bool((of.is_timestamp(kind) or of.is_time64(kind) or of.is_duration(kind)) and kind.unit == "ns")


def _cast(batch: Any, columns: set[str]) -> Any:
    """Convert nanosecond columns, which Python's datetime cannot represent, to ISO 8601 text."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.compute as pc  # noqa: PLC0415

    for index, field in enumerate(batch.schema):
        if field.name not in columns:
            continue
        if pa.types.is_duration(field.type):
            counts = batch.column(index).cast(pa.int64()).to_pylist()
            text = pa.array(list(map(_nanoseconds, counts)), pa.string())
        else:
            text = pc.cast(batch.column(index), pa.string())
            if pa.types.is_timestamp(field.type):
                text = pc.replace_substring(text, " ", "T", max_replacements=1)
        batch = batch.set_column(index, field.name, text)
    return batch


def _nanoseconds(value: int | None) -> str | None:
    if value is None:
        return None
    sign, value = ("-", -value) if value < 0 else ("", value)
    return f"{sign}PT{value // 10**9}.{value % 10**9:09d}S"


def _read_as(value: Any, options: dict[str, str]) -> Any:
    """Convert values that JSON cannot represent, according to the options."""
    from datetime import timedelta  # noqa: PLC0415
    from decimal import Decimal  # noqa: PLC0415

    found = value
    if isinstance(value, dict):
        found = {name: _read_as(part, options) for name, part in value.items()}
    elif isinstance(value, list):
        found = [_read_as(part, options) for part in value]
    elif isinstance(value, float) and "nan" in options:
        found = value if math.isfinite(value) else None
    elif isinstance(value, bytes):
        found = base64.b64encode(value).decode()
    elif isinstance(value, Decimal):
        found = format(value, "f")
    elif isinstance(value, timedelta):
        found = _nanoseconds(value // timedelta(microseconds=1) * 1000)
    return found


def write_parquet(rows: Callable[[], Iterable[dict[str, Any]]], file: Path, name: str) -> None:
    """Write rows with the union of their columns and types; ids are text, because of ids like `10_0`.

    Args:
        rows: returns the rows; may be called more than once.
        file: output file.
        name: its name in errors.

    Raises:
        ConfigError: a column's values have no common lossless type.
    """
    import pyarrow  # noqa: PLC0415 - heavy, and only needed here
    import pyarrow.parquet  # noqa: PLC0415

    def tables(schema: Any = None) -> Iterator[Any]:
        for batch in batched(rows()):
            yield table_of(batch, schema)

    try:
        schema = pyarrow.schema([])
        for table in tables():
            schema = pyarrow.unify_schemas([schema, table.schema], promote_options="permissive")
        with pyarrow.parquet.ParquetWriter(file, schema) as writer:
            for table in tables(schema):
                writer.write_table(table)
    except (pyarrow.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise ConfigError(f"{name}: rows do not fit into columns of one type ({error})") from error


def table_of(rows: list[dict[str, Any]], schema: Any = None) -> Any:
    """Return rows as an Arrow table; ids are text, because of ids like `10_0`.

    Raises:
        ArrowException, OverflowError, TypeError, ValueError: a column's values have no common type.
    """
    import pyarrow  # noqa: PLC0415

    rows = _complete(list(map(_text_id, rows)), schema)
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    for column in table.schema:
        _refuse_booleans(column.type, [row.get(column.name) for row in rows], column.name)
    return table


def batched(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield rows in batches."""
    stream = iter(rows)
    while batch := list(islice(stream, _WRITTEN_ROWS)):
        yield batch


def _refuse_booleans(kind: Any, found: list[Any], path: str) -> None:
    """Reject booleans in a numeric column, which Arrow would convert to numbers.

    Raises:
        TypeError: there is one; the message names the column.
    """
    import pyarrow.types as of  # noqa: PLC0415

    if of.is_floating(kind) or of.is_integer(kind):
        if bool in set(map(type, found)):
            raise TypeError(f"{path} has both numbers and booleans")
    elif of.is_struct(kind):
        for index in range(kind.num_fields):
            name = kind.field(index).name
            inner = [value.get(name) for value in found if value is not None]
            _refuse_booleans(kind.field(index).type, inner, f"{path}.{name}")
    elif of.is_list(kind):
        inner = [part for value in found if value is not None for part in value]
        _refuse_booleans(kind.value_type, inner, f"{path}[]")


def _text_id(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, FIELD: str(row[FIELD])} if FIELD in row else row


def _complete(rows: Sequence[dict[str, Any]], schema: Any) -> list[dict[str, Any]]:
    """Add all columns to the first row of a batch, because pyarrow takes the columns from it."""
    names = (
        list(schema.names)
        if schema is not None
        else list(dict.fromkeys(name for row in rows for name in row))
    )
    return [{**dict.fromkeys(names), **rows[0]}, *rows[1:]] if rows else []
