"""METRICS as an Arrow table or a pandas DataFrame."""

from typing import Any

import numpy as np

from asysi.archive.dataset import MScanDataset, Range
from asysi.archive.format import METRICS_DTYPE
from asysi.bus.packet import Kind, RowFlag
from asysi.contract.errors import ConfigError


def metrics_table(
    dataset: MScanDataset,
    point: str | None = None,
    *,
    steps: Range | None = None,
    samples: Range | None = None,
) -> Any:
    """Return METRICS as a `pyarrow.Table` with one column per field, and `holdout` in place of the flags.

    `hook_point` and `kind` are dictionary-encoded strings. There is one record batch per chunk.

    Args:
        dataset: the archive.
        point: hook point; None selects all.
        steps: range of steps [from, to).
        samples: range of rows of the input [from, to).

    Raises:
        ConfigError: pyarrow is not installed.
        MScanError: the archive is damaged.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError("a table of METRICS needs pyarrow: pip install 'asysi[export]'") from error

    points, kinds = pa.array(dataset.points, pa.string()), pa.array([kind.name.lower() for kind in Kind])
    batches = []
    for records in [*dataset.records(point, steps=steps, samples=samples), np.zeros(0, METRICS_DTYPE)]:
        columns: dict[str, Any] = {
            "hook_point": pa.DictionaryArray.from_arrays(
                pa.array(records["hook_point"].astype("i4")), points
            ),
            "kind": pa.DictionaryArray.from_arrays(pa.array(records["kind"].astype("i4")), kinds),
            "holdout": pa.array((records["flags"] & RowFlag.HOLDOUT) != 0),
        }
        for name in METRICS_DTYPE.names or ():
            if name not in {"hook_point", "kind", "flags"}:
                columns[name] = pa.array(np.ascontiguousarray(records[name]))
        batches.append(pa.RecordBatch.from_pydict(columns))
    return pa.Table.from_batches(batches)


def metrics_frame(
    dataset: MScanDataset,
    point: str | None = None,
    *,
    steps: Range | None = None,
    samples: Range | None = None,
) -> Any:
    """Return METRICS as a `pandas.DataFrame`; see `metrics_table`."""
    return metrics_table(dataset, point, steps=steps, samples=samples).to_pandas()
