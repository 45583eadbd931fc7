"""Rows of text that are not JSON lines: CSV, Parquet, folders of HF `datasets`, rows in this process."""

import json
from collections.abc import Iterator
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.locations import filesystem, reaching
from asysi.pipeline.streams.data_streams import StreamFactory

_BAD = 3
"""Items of the list that stands for a line that is no row: a mark, what is wrong, the line."""


def table_rows(uri: str) -> Iterator[dict[str, Any]]:
    """Yield the rows at `csv://`, `parquet://`, `datasets://` or `memory://`.

    `csv://` and `parquet://` take a path, a glob or any fsspec URL; fields of a CSV file are text. `datasets://`
    is a folder that `Dataset.save_to_disk` of HF `datasets` wrote. `memory://name` are rows that
    `StreamFactory.create("memory://name").get_writer()` wrote in this process.

    Raises:
        ConfigError: there is nothing, or a row cannot be read.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "datasets":
        yield from _dataset_rows(rest)
        return
    stream = StreamFactory.create(uri)
    if not stream.exists():
        where = "are no rows in this process at" if scheme == "memory" else "is no file"
        raise ConfigError(f"there {where} {uri if scheme == 'memory' else rest}")
    stream.static = True
    for row in stream.get_reader():
        if isinstance(row, list) and len(row) == _BAD:
            raise ConfigError(str(row[1]))
        yield row


def _dataset_rows(folder: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a saved dataset: Arrow streams that `state.json` lists in order."""
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError("datasets:// needs pyarrow: pip install 'asysi[export]'") from error
    files, root = filesystem(folder)
    root = root.rstrip("/")
    with reaching(folder):
        if files.exists(f"{root}/dataset_dict.json"):
            splits = json.loads(files.cat_file(f"{root}/dataset_dict.json")).get("splits", [])
            raise ConfigError(
                f"{folder} holds the splits {', '.join(splits)}: name one, like datasets://{folder}/{splits[0]}"
            )
        if not files.exists(f"{root}/state.json"):
            raise ConfigError(
                f"{folder} is not a folder of Dataset.save_to_disk: it has no state.json. For Parquet files "
                f"write parquet://{folder}/*.parquet"
            )
        state = json.loads(files.cat_file(f"{root}/state.json"))
        for part in state["_data_files"]:
            with files.open(f"{root}/{part['filename']}", "rb") as stream:
                for batch in pa.ipc.open_stream(stream):
                    yield from batch.to_pylist()
