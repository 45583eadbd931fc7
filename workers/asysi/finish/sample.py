"""Seen vs. kept: whether the kept rows are distributed like the rows that the model saw."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asysi.finish.rereading import Reread
from asysi.report.data import Comparison, Histogram
from asysi.report.words import count

RECORDS = 60_000
"""Maximum number of archived rows per hook point for the norms, evenly spread over the run."""
BINS = 32


def by_place(seen: Mapping[str, Any]) -> list[Comparison]:
    """Return the host's histograms by sequence length and by position.

    Args:
        seen: contents of `host/seen.json`.
    """
    comparisons = []
    for by, note in (
        ("length", "Content tokens by the length of their sequence. The host counted both sides."),
        ("position", "Content tokens by their position in the sequence. The host counted both sides."),
        (
            "document_position",
            "Content tokens by their position in the document; the last bin holds all further ones. The host "
            "counted both sides.",
        ),
    ):
        table = seen.get(f"by_{by}")
        if table and sum(table["seen"]):
            comparisons.append(Comparison(by.replace("_", " "), note, (_cut(table),)))
    return comparisons


def _cut(table: Mapping[str, list[int]]) -> Histogram:
    """Return the table as a histogram without trailing empty bins; lower bounds become edges."""
    edges, seen, kept = table["edges"], table["seen"], table["kept"]
    used = max(i for i, (a, b) in enumerate(zip(seen, kept, strict=True)) if a or b) + 1
    width = edges[1] - edges[0] if len(edges) > 1 else 1
    return Histogram(
        "",
        tuple(float(edge) for edge in [*edges[:used], edges[used - 1] + width]),
        tuple(seen[:used]),
        tuple(kept[:used]),
    )


def by_norm(again: Reread, archive: Path) -> Comparison | None:
    """Compare the norms of reread rows with those in the archive's METRICS records; None without an archive.

    Raises:
        MScanError: the archive is damaged.
    """
    from asysi.archive.dataset import MScanDataset  # noqa: PLC0415 - needs xxhash, and an archive

    try:
        dataset = MScanDataset(archive, scan=True)
    except FileNotFoundError:
        return None
    content = again.sheet.content
    halves = np.random.default_rng(0).random(len(again.sheet.rows)) < 0.5
    histograms = []
    for path, rows in again.activations.items():
        kept = _archived(dataset, path)
        data = content[rows.token]
        values, token = rows.values[data], rows.token[data]
        if len(kept) and len(values):
            norms = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
            half = halves[again.sheet.document[token]]
            histograms.append(histogram(path, norms, again.weight[token], kept, half))
    note = (
        f"Norm of the activation. Seen: {count(content.sum())} content tokens read again, each document "
        "with the weight it had in the run. Kept: rows of the archive, evenly spread over the run."
    )
    return Comparison("norm", note, tuple(histograms)) if histograms else None


def _archived(dataset: Any, path: str) -> NDArray[np.float64]:
    from asysi.archive.format import ChunkKind  # noqa: PLC0415

    chunks = list(dataset.chunks(ChunkKind.METRICS, path))
    if not chunks:
        return np.empty(0)
    rows = int(np.mean([segment.entries["rows"][chunk] for segment, chunk in chunks[:16]])) or 1
    most = max(1, RECORDS // rows)
    spread = (
        chunks
        if len(chunks) <= most
        else [chunks[i] for i in np.linspace(0, len(chunks) - 1, most).astype(int)]
    )
    norms = np.concatenate([segment.records(chunk)["l2"] for segment, chunk in spread]).astype(np.float64)
    return norms[np.isfinite(norms)]


def histogram(
    name: str,
    seen: NDArray[np.float64],
    weight: NDArray[np.float64],
    kept: NDArray[np.float64],
    halves: NDArray[np.bool_],
) -> Histogram:
    """Return both over equal bins between the 0.5% and 99.5% quantiles; values beyond go to the outer bins.

    `chance` is half the distance of two random halves of `seen`: two halves differ from each other twice as
    much as the whole sample differs from its source. If all values lie within 1% of their size, as after a
    layer norm, the bins span at least 1%: differences between narrower bins would be rounding errors.

    Args:
        name: the hook point.
        seen: [n] values.
        weight: [n] weight of each value.
        kept: [m] values.
        halves: [n] mask of a random half; documents are not split.
    """
    low, high = np.quantile(np.concatenate([seen, kept]), [0.005, 0.995])
    least = 0.01 * max(abs(low), abs(high)) or 1.0
    if high - low < least:
        low = (low + high) / 2 - least / 2 * (1 - 1 / BINS)  # centre a bin on the middle of the values
        high = low + least
    edges = np.linspace(low, high, BINS + 1)

    def count_in(values: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, ...]:
        inside = np.clip(values, edges[0], edges[-1])
        return tuple(np.histogram(inside, edges, weights=counts)[0].tolist())

    one, other = (count_in(seen[half], weight[half]) for half in (halves, ~halves))
    bounds = tuple(edges.tolist())
    return Histogram(
        name,
        bounds,
        count_in(seen, weight),
        count_in(kept, np.ones(len(kept))),
        chance=Histogram("", bounds, one, other).distance / 2,
    )


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in `file`, or an empty one if there is none."""
    found = read_any_json(file)
    return found if isinstance(found, dict) else {}


def read_any_json(file: Path) -> Any:
    """Return the JSON value in `file`, None if there is none."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return None
