"""Writes the table as CSV, JSONL or Parquet, with the metadata needed to reproduce it."""

import csv
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, distributions, version
from pathlib import Path
from typing import Any, Literal

import asysi
from asysi.contract.errors import ConfigError
from asysi.files import write_atomic, write_atomically
from asysi.weights.errors import WeightsError
from asysi.weights.tables.columns import COLUMNS, Column, Row

Format = Literal["csv", "jsonl", "parquet"]
FORMATS: tuple[Format, ...] = ("csv", "jsonl", "parquet")
META_FILE = "run_meta.json"
ERRORS_FILE = "errors.log"
_PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "ml_dtypes",
    "safetensors",
    "pyarrow",
    "huggingface_hub",
    "gguf",
)


def write_table(rows: Sequence[Row], file: Path, form: Format, columns: Sequence[Column] = COLUMNS) -> Path:
    """Write rows to `file` atomically, and return it.

    Raises:
        ConfigError: the format is Parquet and pyarrow is missing, or there is no such format.
    """
    if form == "csv":
        write_atomically(file, lambda temporary: _write_csv(rows, temporary, columns))
    elif form == "jsonl":
        write_atomic(
            file, "".join(f"{json.dumps(_ordered(row, columns), allow_nan=False)}\n" for row in rows)
        )
    elif form == "parquet":
        write_atomically(file, lambda temporary: _write_parquet(rows, temporary, columns))
    else:
        raise ConfigError(f"{form} is not a table format: take {', '.join(FORMATS)}")
    return file


def read_table(file: Path, columns: Sequence[Column] = COLUMNS) -> list[Row]:
    """Return the rows of a table written by `write_table`; its suffix determines the format.

    Raises:
        ConfigError: it is not such a table.
    """
    try:
        match file.suffix:
            case ".csv":
                with file.open(newline="", encoding="utf-8") as stream:
                    found: Iterable[Mapping[str, Any]] = list(csv.DictReader(stream))
                return [{one.name: _parsed(row[one.name], one) for one in columns} for row in found]
            case ".jsonl":
                with file.open(encoding="utf-8") as stream:
                    return [json.loads(line) for line in stream]
            case ".parquet":
                return _parquet().read_table(file).to_pylist()  # type: ignore[no-any-return]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{file} is not a table of `asysi weights analyze` ({type(error).__name__}: {error})"
        ) from error
    raise ConfigError(f"{file} ends in none of .csv, .jsonl, .parquet")


def is_table_of(file: Path, columns: Sequence[Column]) -> bool:
    """Return whether a table has these columns, judged by its first row."""
    try:
        rows = read_table(file, columns)
    except ConfigError:
        return False
    return bool(rows) and {column.name for column in columns} <= rows[0].keys()


def format_of(file: Path) -> Format:
    """Return the format for the suffix of `file`, CSV by default."""
    return next((form for form in FORMATS if file.suffix == f".{form}"), "csv")


def run_meta(
    *, model_id: str, revision: str, model_path: str, settings: Mapping[str, Any], problems: Sequence[str],
    seconds: float, arguments: Sequence[str] | None = None, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return the content of `run_meta.json`: origin, versions, settings, machine and command line."""
    return {
        "model_id": model_id,
        "revision": revision,
        "model_path": model_path,
        "code_version": code_version(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "dependencies": _dependencies(),
        "device": "cpu",
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "command_line": list(sys.argv if arguments is None else arguments),
        "settings": dict(settings),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "problems": list(problems),
        **more,
    }


def write_meta(meta: Mapping[str, Any], folder: Path) -> Path:
    """Write `run_meta.json` into `folder`."""
    file = folder / META_FILE
    write_atomic(file, json.dumps(meta, indent=1, ensure_ascii=False) + "\n")
    return file


def write_errors(problems: Sequence[WeightsError], folder: Path) -> Path | None:
    """Write `errors.log` into `folder`: one line per problem with time, kind, text and lost tensors.

    Without problems no log is written, and that of an earlier analysis is removed.
    """
    file = folder / ERRORS_FILE
    if not problems:
        file.unlink(missing_ok=True)
        return None
    now = datetime.now(UTC).isoformat(timespec="seconds")
    lines = [
        f"{now} ERROR asysi.weights {type(one).__name__}: {one.problem}"
        + (f" [{', '.join(one.tensors)}]" if one.tensors else "")
        for one in problems
    ]
    write_atomic(file, "".join(f"{line.replace(chr(10), ' ')}\n" for line in lines))
    return file


@cache
def code_version() -> str:
    """Return the version, with the commit if it is known: `0.1.0+g1a2b3c4`, plus `-dirty` if changed."""
    if (git := shutil.which("git")) and (commit := _commit(git, Path(asysi.__file__))):
        return f"{asysi.__version__}+g{commit}"
    with suppress(PackageNotFoundError, ValueError, KeyError, TypeError):
        commit = json.loads(distribution("asysi").read_text("direct_url.json") or "{}")["vcs_info"][
            "commit_id"
        ]
        return f"{asysi.__version__}+g{commit[:12]}"
    return asysi.__version__


def _commit(git: str, file: Path) -> str | None:
    """Return the commit of the repository that tracks `file`, not of one that merely contains its folder."""
    words = (
        ["ls-files", "--error-unmatch", file.name],
        ["describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"],
    )
    said = ""
    for asked in words:
        try:
            done = subprocess.run(  # noqa: S603
                [git, "-C", str(file.parent), *asked], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        said = done.stdout.strip()
    return said


def _dependencies() -> dict[str, str]:
    """Return every installed package and its version, by name."""
    found = {str(one.metadata["Name"]): one.version for one in distributions() if one.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _ordered(row: Row, columns: Sequence[Column]) -> Row:
    return {column.name: row.get(column.name) for column in columns}


def _write_csv(rows: Sequence[Row], file: Path, columns: Sequence[Column]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [column.name for column in columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows(_ordered(row, columns) for row in rows)


def _parsed(text: str, column: Column) -> Any:
    if text == "":
        return None
    match column.kind:
        case "integer":
            return int(text)
        case "number":
            return float(text)
        case "boolean":
            return text == "True"
    return text


def _write_parquet(rows: Sequence[Row], file: Path, columns: Sequence[Column]) -> None:
    parquet = _parquet()
    import pyarrow as pa  # noqa: PLC0415 - an extra

    kinds = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
    schema = pa.schema([pa.field(one.name, kinds[one.kind], metadata={"text": one.text}) for one in columns])
    table = pa.Table.from_pylist([_ordered(row, columns) for row in rows], schema=schema)
    parquet.write_table(table, file, compression="zstd")


def _parquet() -> Any:
    try:
        from pyarrow import parquet  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError("Parquet needs the package pyarrow: pip install 'asysi[export]'") from error
    return parquet
