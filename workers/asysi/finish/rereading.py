"""Reads documents again: the same model, the same tokens, and rows taken by the same hooks."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asysi.capture.collector import Collector, Rows
from asysi.capture.hooks import ActivationHooker
from asysi.contract.spec import Data
from asysi.finish.reread_tokens import PointRows, RereadTokens, budget, select
from asysi.finish.token_text import spell
from asysi.model.forward import ScannerEngine
from asysi.model.loading import LoadedModel
from asysi.model.points import HookPoint
from asysi.text.grid import StepTokens
from asysi.text.rows import TextSource
from asysi.text.tokens import Batch, Policy, Sequences, concatenate, make_batch, make_policy, tokenise

DOCUMENTS = 50_000
"""Distinct documents among which finish chooses, from the beginning of the data: it need not read all of a
large set.
"""
BATCH = 32


@dataclass(frozen=True, slots=True)
class Reread:
    """What was read again."""

    sheet: RereadTokens
    activations: dict[str, PointRows]
    """Rows of each hook point that was called."""
    pieces: list[str]
    """Text of every token on the sheet; a leading space means that a new word begins."""
    weight: NDArray[np.float64]
    """[tokens] how many tokens of the run each stands for: training documents were read in every pass."""
    joined: bool = False
    """Whether sequences are cut from joined documents: in the run they were cut elsewhere."""


def read_again(
    loaded: LoadedModel,
    points: list[HookPoint],
    data: Data,
    *,
    passes: int,
    max_samples: int | None,
    seed: int,
    beat: Callable[[], None],
) -> Reread:
    """Run a bounded part of the data, held-out documents first, and return the activations at every hook
    point.

    Raises:
        ConfigError: the data or the token policy is wrong.
    """
    policy = make_policy(data.tokens, loaded.tokenizer)
    documents = list(islice(TextSource(data, max_samples), DOCUMENTS))
    sequences = _sequences(documents, loaded.tokenizer, policy, seed)
    room = budget([(point.width or 1024) * max(1, point.calls) for point in points])
    chosen = select(sequences.lengths, sequences.holdout, room, seed)
    sheet, activations = _run(loaded, points, sequences, chosen, policy=policy, beat=beat)
    weight = _weights(sequences, chosen, passes)
    texts = None
    if policy.packing != "concat":
        by_sample = {document.sample: document.text for document in documents}
        texts = [by_sample[int(sample)] for sample in sheet.rows]
    pieces = spell(loaded.tokenizer, sheet, texts, policy.encoding)
    return Reread(sheet, activations, pieces, weight[sheet.document], joined=texts is None)


def _sequences(documents: Iterable[Any], tokenizer: Any, policy: Policy, seed: int) -> Sequences:
    corpus = tokenise(documents, tokenizer, policy)
    if policy.packing == "concat":
        return concatenate(corpus, policy, np.random.default_rng(seed))
    samples = np.repeat(corpus.samples, corpus.lengths)
    return Sequences(corpus.tokens, samples, corpus.starts[:-1], corpus.starts[1:], corpus.holdout, None)


def _weights(sequences: Sequences, chosen: NDArray[np.int64], passes: int) -> NDArray[np.float64]:
    """Return [chosen] the tokens of the run over the tokens read again, of held-out and of training
    documents.
    """
    weight = np.ones(len(chosen))
    for held, times in ((True, 1), (False, passes)):
        mine = sequences.holdout[chosen] == held
        here = sequences.lengths[chosen][mine].sum()
        if here:
            weight[mine] = times * sequences.lengths[sequences.holdout == held].sum() / here
    return weight


def _run(
    loaded: LoadedModel,
    points: list[HookPoint],
    sequences: Sequences,
    chosen: NDArray[np.int64],
    *,
    policy: Policy,
    beat: Callable[[], None],
) -> tuple[RereadTokens, dict[str, PointRows]]:
    head = int(sequences.bos is not None)
    lengths = sequences.lengths[chosen] + head
    starts = np.concatenate([[0], np.cumsum(lengths)])
    total = int(starts[-1])
    tokens, content = np.zeros(total, np.int64), np.zeros(total, np.bool_)
    collector = Collector()
    engine = ScannerEngine(loaded, points)
    parts: dict[str, list[Rows]] = {point.path: [] for point in points}
    with ActivationHooker(engine.module, points, collector, root=engine.root) as hooker:
        order = np.argsort(lengths, kind="stable")  # documents of like length together: little padding
        for number, first in enumerate(range(0, len(order), BATCH)):
            some = order[first : first + BATCH]
            batch = make_batch(sequences, chosen[some], policy, number, 0)
            flat = np.flatnonzero(batch.present)
            place = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in some])
            tokens[place], content[place] = batch.ids.reshape(-1)[flat], batch.tokens.content[flat]
            hooker.step(_placed(batch, flat, place))
            engine.run(batch)
            for path, rows in collector.take().items():
                parts[path].append(rows)
            beat()
    document = np.repeat(np.arange(len(chosen)), lengths)
    samples = sequences.samples[sequences.starts[chosen]]
    rows_of = {path: joined for path, some in parts.items() if (joined := join_rows(some)) is not None}
    return RereadTokens(tokens, document, content, samples, sequences.holdout[chosen]), rows_of


def _placed(batch: Batch, flat: NDArray[np.int64], place: NDArray[np.int64]) -> StepTokens:
    """Return the step's tokens as capture shall see them: all but padding, named by their place on the
    sheet.
    """
    rows = batch.tokens.rows.copy()
    rows["sample"][flat] = place
    return dataclasses.replace(batch.tokens, rows=rows, content=batch.present.reshape(-1))


def join_rows(parts: list[Rows]) -> PointRows | None:
    """Return the rows of all batches in the order of the sheet, None when there are none.

    Rows of another width than most of them are dropped: no autoencoder takes both.
    """
    dropped = Counter[str]()
    for part in parts:
        dropped.update(part.dropped)
    widths = Counter[int]()
    for part in parts:
        for values in part.values:
            widths[values.shape[1]] += len(values)
    if not widths and not dropped:
        return None
    width = widths.most_common(1)[0][0] if widths else 0
    if other := widths.total() - widths[width]:
        dropped["other_width"] = other
    found = [
        (values, records["sample"].astype(np.int64), np.full(len(values), call))
        for part in parts
        for values, records, call in zip(part.values, part.records, part.calls, strict=True)
        if values.shape[1] == width
    ]
    nothing = [(np.empty((0, width), np.float32), np.empty(0, np.int64), np.empty(0, np.int64))]
    values, token, call = (np.concatenate(column) for column in zip(*(found or nothing), strict=True))
    finite = np.asarray(np.isfinite(values).all(axis=1))
    order = np.lexsort((call, token))
    order = order[finite[order]]
    return PointRows(values[order], token[order], call[order], int((~finite).sum()), dict(dropped))
