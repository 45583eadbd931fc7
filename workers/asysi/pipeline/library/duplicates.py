"""Exact and near-duplicate removal.

Both operators process rows in order and keep the first of each group of duplicates. After a restart they
rebuild their state from the rows they had kept.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from asysi.contract.errors import ConfigError
from asysi.pipeline.operators.operator import BaseOperator, Made, Row
from asysi.pipeline.rows import values
from asysi.pipeline.rows.ids import FIELD

_RECENT = 65_536
_SHINGLE = 5
_RESTORED = 4096


class Digests:
    """A set of 128-bit digests at 16 bytes each: sorted runs, and a Python set of the recent ones."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._runs: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]] = []

    def add(self, digests: Sequence[int]) -> list[bool]:
        """Add digests (0 <= d < 2¹²⁸); return whether each was new."""
        known = self._in_runs(digests)
        new = []
        for digest, old in zip(digests, known, strict=True):
            fresh = not old and digest not in self._recent
            new.append(fresh)
            if fresh:
                self._recent.add(digest)
        if len(self._recent) > _RECENT:
            self._settle()
        return new

    def _in_runs(self, digests: Sequence[int]) -> list[bool]:
        if not self._runs:
            return [False] * len(digests)
        high, low = _halves(digests)
        found = np.zeros(len(digests), bool)
        for run_high, run_low in self._runs:
            at, end = np.searchsorted(run_high, high, "left"), np.searchsorted(run_high, high, "right")
            while (look := at < end).any():  # repeats only if the upper 64 bits are equal
                found[look] |= run_low[at[look]] == low[look]
                at = at + 1
        return [bool(known) for known in found]

    def _settle(self) -> None:
        """Turn the recent digests into a run and merge runs of similar size, to keep their number small."""
        self._runs.append(_run(*_halves(list(self._recent))))
        self._recent.clear()
        while len(self._runs) > 1 and len(self._runs[-2][0]) <= 2 * len(self._runs[-1][0]):
            one, other = self._runs.pop(), self._runs.pop()
            self._runs.append(_run(*(np.concatenate(pair) for pair in zip(one, other, strict=True))))


class Deduplicate(BaseOperator):
    """Drops rows that equal an earlier row in the given fields (XXH3-128).

    Memory: 16 bytes per distinct row, twice that while runs are merged.

    Args:
        fields: fields to compare; None: all fields except the id.
        normalize: whether to ignore case and whitespace differences in text.
    """

    ordered = True

    def __init__(self, fields: Sequence[str] | None = None, *, normalize: bool = False) -> None:
        self.fields, self.normalize = list(fields) if fields is not None else None, normalize
        self._seen = Digests()

    def process_batch(self, items: list[Row], ctx: Any = None) -> list[Made]:
        """Return each row, or None for a duplicate.

        Raises:
            KeyError: a row has no such field.
        """
        new = self._seen.add([self._digest(item) for item in items])
        return [item if fresh else None for item, fresh in zip(items, new, strict=True)]

    def restore(self, rows: Iterable[Row]) -> None:
        """Rebuild the state from the rows kept before a restart."""
        self._seen = Digests()
        rows = iter(rows)
        while some := [self._digest(row) for row in islice(rows, _RESTORED)]:
            self._seen.add(some)

    def _digest(self, item: Row) -> int:
        if self.fields is None:
            compared: Any = {name: value for name, value in item.items() if name != FIELD}
        else:
            compared = [item[name] for name in self.fields]
        if self.normalize:
            compared = _normalized(compared)
        digest: int = xxhash.xxh3_128_intdigest(values.canonical(compared))
        return digest


class NearDeduplicate(BaseOperator):
    """Drops rows whose text is similar to an earlier row's, using MinHash and banded LSH (datasketch).

    The similarity of two texts is the Jaccard index of their sets of shingles (`shingle` consecutive words),
    estimated from `permutations` hashes with a standard error of about 1/√permutations. Candidates that share
    a band are compared; a row is dropped if the estimate reaches the threshold.

    Memory: about 3 KB per kept row with 128 permutations.

    Args:
        field: field with the text.
        threshold: similarity from which a row is a duplicate, 0..1.
        permutations: hashes per text, >= 16.
        shingle: words per shingle, >= 1.
        seed: seed of the hashes.
        mark: field for the id of the similar earlier row (or None); if set, no rows are dropped.

    Raises:
        ConfigError: a parameter is out of range.
    """

    ordered = True

    def __init__(
        self,
        field: str = "text",
        threshold: float = 0.8,
        *,
        permutations: int = 128,
        shingle: int = _SHINGLE,
        seed: int = 1,
        mark: str | None = None,
    ) -> None:
        if not 0 < threshold <= 1 or permutations < 16 or shingle < 1:
            raise ConfigError(
                f"near-deduplicate: threshold is {threshold} (needs 0 < threshold <= 1), permutations is "
                f"{permutations} (needs >= 16), shingle is {shingle} (needs >= 1)"
            )
        self.field, self.threshold, self.permutations = field, threshold, permutations
        self.shingle, self.seed, self.mark = shingle, seed, mark
        self._clear()

    def process_batch(self, items: list[Row], ctx: Any = None) -> list[Made]:
        """Return each row, or None for a near-duplicate.

        Raises:
            KeyError: a row has no such field.
        """
        made: list[Made] = []
        for item in items:
            like = self._like(item)
            if self.mark is not None:
                made.append({**item, self.mark: like})
            else:
                made.append(item if like is None else None)
        return made

    def restore(self, rows: Iterable[Row]) -> None:
        """Rebuild the state from the rows kept before a restart."""
        self._clear()
        for row in rows:
            if self.mark is None or row[self.mark] is None:
                self._remember(row[FIELD], self._signature(str(row[self.field])))

    def _clear(self) -> None:
        from datasketch import (  # type: ignore[import-untyped]  # noqa: PLC0415 - brings scipy
            MinHash,
            MinHashLSH,
        )

        self._index = MinHashLSH(self.threshold, self.permutations)
        self._signatures: dict[Any, Any] = {}
        self._empty = MinHash(self.permutations, self.seed, hashfunc=xxhash.xxh32_intdigest)

    def _like(self, item: Row) -> Any:
        """Return the id of the most similar earlier row; if there is none, add this row and return None."""
        signature = self._signature(str(item[self.field]))
        found = [(self._signatures[name].jaccard(signature), name) for name in self._index.query(signature)]
        near = [(likeness, name) for likeness, name in found if likeness >= self.threshold]
        if near:
            return max(near, key=lambda pair: (pair[0], str(pair[1])))[1]
        self._remember(item[FIELD], signature)
        return None

    def _remember(self, identity: Any, signature: Any) -> None:
        self._signatures[identity] = signature
        self._index.insert(identity, signature, check_duplication=False)

    def _signature(self, text: str) -> Any:
        words = text.lower().split()
        count = max(1, len(words) - self.shingle + 1)
        shingles = {" ".join(words[at : at + self.shingle]).encode() for at in range(count)}
        signature = self._empty.copy()
        signature.update_batch(sorted(shingles))
        return signature


def _halves(digests: Sequence[int]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    raw = b"".join(digest.to_bytes(16, "little") for digest in digests)
    pairs = np.frombuffer(raw, "<u8").reshape(-1, 2)
    return pairs[:, 1], pairs[:, 0]


def _run(
    high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    order = np.argsort(high, kind="stable")
    return high[order], low[order]


def _normalized(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(value.casefold().split())
    if isinstance(value, dict):
        return {name: _normalized(part) for name, part in value.items()}
    return [_normalized(part) for part in value] if isinstance(value, list) else value
