"""Rereads documents with the same model, the same tokens and the same hooks."""

import dataclasses
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from asysi.capture.collector import Collector, Rows
from asysi.capture.hooks import ActivationHooker
from asysi.contract.quantity import parse_bytes
from asysi.contract.rows import read_rows
from asysi.contract.spec import Data, ScanExperiment
from asysi.contract.workloads import text_of
from asysi.finish.budget import ReadBudget, ReadWatch, Spending
from asysi.finish.reread_tokens import PointRows, RereadTokens, select, tokens_that_fit
from asysi.finish.token_text import token_texts
from asysi.model.forward import ScanRunner
from asysi.model.loading import LoadedModel
from asysi.model.points import HookPoint
from asysi.text.grid import StepTokens
from asysi.text.rows import TextSource
from asysi.text.tokens import Batch, Policy, Sequences, concatenate, make_batch, make_policy, tokenise

DOCUMENTS = 50_000
"""Number of documents at the start of the data from which to choose; avoids reading a large data set."""
SEED = 0
"""Of the order in which documents are read."""
BATCH = 32
"""Documents of a forward at most."""
AT_ONCE = 512
"""Tokens of a forward at most, unless a single document has more: the time is looked at between forwards."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of the text was read, and why no more."""

    tokens: int
    """That ran through the model, special ones included."""
    available: int
    """Of the documents among which was chosen."""
    ended: Literal["all", "tokens", "memory", "seconds"]
    """Everything was read; or the budget of tokens, memory or seconds was spent."""
    seconds: float
    """It took."""
    device: str
    """Type of the device that the model ran on."""


@dataclass(frozen=True, slots=True)
class Reread:
    """The reread text and its activations."""

    sheet: RereadTokens
    activations: dict[str, PointRows]
    """Rows by hook point, for those that were called."""
    pieces: list[str]
    """Text of every token of `sheet`; a leading space marks the start of a word."""
    weight: NDArray[np.float64]
    """[tokens] how many tokens of the run each one represents; training documents were read in every pass."""
    extent: Extent
    joined: bool = False
    """Whether sequences are cut from concatenated documents; the run cut them at other positions."""


def read_again(
    loaded: LoadedModel,
    points: list[HookPoint],
    data: Data,
    *,
    passes: int,
    max_samples: int | None,
    seed: int,
    budget: ReadBudget,
    watch: ReadWatch,
    device: str = "cpu",
) -> Reread:
    """Run the model on a bounded part of the data, held-out documents first; return all activations.

    What is read does not depend on the pace, unless the time is over before all of it is read: then whole
    forwards are missing, drawn at random.

    Args:
        loaded: the model.
        points: hook points that prepare matched.
        data: where the documents are.
        passes: times that the run read the training documents.
        max_samples: distinct documents that the run read at most.
        seed: of the choice.
        budget: what may be spent.
        watch: is told how far it is.
        device: where the model runs.

    Raises:
        ConfigError: the data or the token policy is wrong.
    """
    began, spending = time.monotonic(), Spending("report", budget.seconds, watch)
    policy = make_policy(data.tokens, loaded.tokenizer)
    documents = list(islice(TextSource(data, max_samples, loaded.tokenizer), DOCUMENTS))
    watch.beat()
    sequences = _sequences(documents, loaded.tokenizer, policy, seed)
    watch.beat()
    fitting = tokens_that_fit(
        [(point.width or 1024) * max(1, point.calls) for point in points], budget.memory
    )
    chosen = select(sequences.lengths, sequences.holdout, min(budget.tokens, fitting), seed)
    engine = ScanRunner(loaded, points, device)
    sheet, activations, read = _run(engine, points, sequences, chosen, policy=policy, spending=spending)
    all_read = bool(read.all())
    chosen = chosen[read]
    weight = _weights(sequences, chosen, passes)
    texts = None
    if policy.packing != "concat":
        by_sample = {document.sample: document.text for document in documents}
        texts = [by_sample[int(sample)] for sample in sheet.rows]
    pieces = token_texts(loaded.tokenizer, sheet, texts, policy.encoding)
    limit: Literal["tokens", "memory"] = "memory" if fitting < budget.tokens else "tokens"
    extent = Extent(
        len(sheet.tokens),
        int(sequences.lengths.sum()) + len(sequences.lengths) * int(sequences.bos is not None),
        "seconds" if not all_read else "all" if len(chosen) == len(sequences.lengths) else limit,
        time.monotonic() - began,
        torch.device(device).type,
    )
    return Reread(sheet, activations, pieces, weight[sheet.document], extent, joined=texts is None)


def read_for_report(
    experiment: ScanExperiment,
    output: Path,
    loaded: LoadedModel,
    points: list[HookPoint],
    *,
    watch: ReadWatch,
    device: str = "cpu",
    in_host: bool = False,
) -> Reread:
    """Read again what the report of an experiment is about, within the spec's budget.

    Args:
        experiment: says what is read, and the budget.
        output: the results, where a pipeline's rows are.
        loaded: the model.
        points: hook points that prepare matched.
        watch: is told how far it is.
        device: where the model runs.
        in_host: whether this is the host's container: rows must fit its memory as well as that of finish.

    Raises:
        ConfigError: the data or the token policy is wrong.
        ValueError: the experiment has no text that could be read again.
    """
    spec = experiment.spec
    text = text_of(spec)
    if spec.data is None or text is None:
        raise ValueError("the experiment has no text that could be read again")
    memory, host = parse_bytes(spec.resources.finish.memory), spec.resources.host
    if in_host:
        memory = min(memory, parse_bytes(host.memory) - parse_bytes(host.shm))
    return read_again(
        loaded,
        points,
        read_rows(spec.data, output),
        passes=text.passes,
        max_samples=text.max_samples,
        seed=SEED,
        budget=ReadBudget(spec.finish.max_tokens, spec.finish.max_seconds, memory // 4),
        watch=watch,
        device=device,
    )


def plan_forwards(
    lengths: NDArray[np.int64], held_out: NDArray[np.bool_], seed: int
) -> list[NDArray[np.int64]]:
    """Return the documents of each forward, in the order in which they are run.

    Documents of like length stand together, for little padding. The order is random, so that what was read
    when the time is over is a fair sample; the first forward holds a held-out document if there is one.

    Args:
        lengths: [d] tokens of each document.
        held_out: [d] whether it is held out.
        seed: of the order.
    """
    forwards: list[list[int]] = [[]]
    for document in np.argsort(lengths, kind="stable").tolist():
        some = forwards[-1]
        if some and (len(some) == BATCH or (len(some) + 1) * lengths[document] > AT_ONCE):
            forwards.append([])
        forwards[-1].append(document)
    plan = [np.array(some, np.int64) for some in forwards if some]
    order = np.random.default_rng(seed).permutation(len(plan)).tolist()
    first = next((number for number in order if held_out[plan[number]].any()), None)
    if first is not None:
        order.remove(first)
        order.insert(0, first)
    return [plan[number] for number in order]


def _sequences(documents: Iterable[Any], tokenizer: Any, policy: Policy, seed: int) -> Sequences:
    corpus = tokenise(documents, tokenizer, policy)
    if policy.packing == "concat":
        return concatenate(corpus, policy, np.random.default_rng(seed))
    samples = np.repeat(corpus.samples, corpus.lengths)
    return Sequences(corpus.tokens, samples, corpus.starts[:-1], corpus.starts[1:], corpus.holdout, None)


def _weights(sequences: Sequences, chosen: NDArray[np.int64], passes: int) -> NDArray[np.float64]:
    """Return [chosen] the ratio of tokens in the run to tokens reread, per document class."""
    weight = np.ones(len(chosen))
    for held, times in ((True, 1), (False, passes)):
        mine = sequences.holdout[chosen] == held
        here = sequences.lengths[chosen][mine].sum()
        if here:
            weight[mine] = times * sequences.lengths[sequences.holdout == held].sum() / here
    return weight


def _run(
    engine: ScanRunner,
    points: list[HookPoint],
    sequences: Sequences,
    chosen: NDArray[np.int64],
    *,
    policy: Policy,
    spending: Spending,
) -> tuple[RereadTokens, dict[str, PointRows], NDArray[np.bool_]]:
    """Return the tokens, the rows and which of the chosen sequences were read [chosen]."""
    head = int(sequences.bos is not None)
    lengths = sequences.lengths[chosen] + head
    starts = np.concatenate([[0], np.cumsum(lengths)])
    total = int(starts[-1])
    tokens, content = np.zeros(total, np.int64), np.zeros(total, np.bool_)
    read = np.zeros(len(chosen), np.bool_)
    collector = Collector()
    parts: dict[str, list[Rows]] = {point.path: [] for point in points}
    spending.plan(total)
    with ActivationHooker(engine.module, points, collector, root=engine.root) as hooker:
        for number, some in enumerate(plan_forwards(lengths, sequences.holdout[chosen], SEED)):
            size = int(lengths[some].sum())
            if not spending.fits(size):
                break
            batch = make_batch(sequences, chosen[some], policy, number, 0)
            flat = np.flatnonzero(batch.present)
            place = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in some])
            tokens[place], content[place] = batch.ids.reshape(-1)[flat], batch.tokens.content[flat]
            hooker.step(_placed(batch, flat, place))
            engine.run(batch)
            for path, rows in collector.take().items():
                parts[path].append(rows)
            read[some] = True
            spending.spend(size)
    document = np.repeat(np.arange(len(chosen)), lengths)
    sheet = RereadTokens(
        tokens, document, content, sequences.samples[sequences.starts[chosen]], sequences.holdout[chosen]
    )
    kept = read[document]
    rows_of = {
        path: joined.of(kept) for path, some in parts.items() if (joined := join_rows(some)) is not None
    }
    return sheet.of(read), rows_of, read


def _placed(batch: Batch, flat: NDArray[np.int64], place: NDArray[np.int64]) -> StepTokens:
    """Return the step's tokens for capture: all but padding, identified by their index in the sheet."""
    rows = batch.tokens.rows.copy()
    rows["sample"][flat] = place
    return dataclasses.replace(batch.tokens, rows=rows, content=batch.present.reshape(-1))


def join_rows(parts: list[Rows]) -> PointRows | None:
    """Return the rows of all batches in the order of the sheet; None if there are none.

    Only rows of the most common width are kept: an autoencoder has a single width.
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
