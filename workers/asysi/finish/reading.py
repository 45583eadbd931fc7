"""Reads documents again: the same model, the same tokens, plain forward hooks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from asysi.capture.hooker import first_tensor
from asysi.capture.points import HookPoint
from asysi.contract.spec import Data
from asysi.finish.latents import Floats
from asysi.finish.sheet import Sheet, budget, select
from asysi.finish.spelling import spell
from asysi.hosts.model import LoadedModel
from asysi.hosts.scan import ScannerEngine
from asysi.hosts.text import TextSource
from asysi.hosts.tokens import Policy, Sequences, concatenate, make_batch, make_policy, tokenise

DOCUMENTS = 50_000
"""Distinct documents among which finish chooses, from the beginning of the data: it need not read all of a
large set.
"""
BATCH = 32


@dataclass(frozen=True, slots=True)
class Again:
    """What was read again."""

    sheet: Sheet
    activations: dict[str, Floats]
    """[tokens, width] of each hook point, in the order of the sheet."""
    pieces: list[str]
    """Text of every token on the sheet; a leading space means that a new word begins."""
    weight: NDArray[np.float64]
    """[tokens] how many tokens of the run each stands for: training documents were read in every pass."""


def read_again(
    loaded: LoadedModel,
    points: list[HookPoint],
    data: Data,
    *,
    passes: int,
    max_samples: int | None,
    seed: int,
    beat: Callable[[], None],
) -> Again:
    """Run a bounded part of the data, held-out documents first, and return the activations at every hook
    point.

    Raises:
        ConfigError: the data or the token policy is wrong.
    """
    policy = make_policy(data.tokens, loaded.tokenizer)
    documents = list(islice(TextSource(data, max_samples), DOCUMENTS))
    sequences = _sequences(documents, loaded.tokenizer, policy, seed)
    room = budget([point.width or 1024 for point in points])
    chosen = select(sequences.lengths, sequences.holdout, room, seed)
    sheet, activations = _run(loaded, points, sequences, chosen, policy=policy, beat=beat)
    weight = _weights(sequences, chosen, passes)
    texts = None
    if policy.packing != "concat":
        by_sample = {document.sample: document.text for document in documents}
        texts = [by_sample[int(sample)] for sample in sheet.rows]
    return Again(sheet, activations, spell(loaded.tokenizer, sheet, texts), weight[sheet.document])


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
) -> tuple[Sheet, dict[str, Floats]]:
    head = int(sequences.bos is not None)
    lengths = sequences.lengths[chosen] + head
    starts = np.concatenate([[0], np.cumsum(lengths)])
    total = int(starts[-1])
    tokens, content = np.zeros(total, np.int64), np.zeros(total, np.bool_)
    seen: dict[str, torch.Tensor] = {}
    rows: dict[str, Floats] = {}
    engine = ScannerEngine(loaded, points)
    handles = [
        engine.module.get_submodule(point.path).register_forward_hook(partial(_keep, seen, point.path))
        for point in points
    ]
    try:
        order = np.argsort(lengths, kind="stable")  # documents of like length together: little padding
        for number, first in enumerate(range(0, len(order), BATCH)):
            some = order[first : first + BATCH]
            batch = make_batch(sequences, chosen[some], policy, number, 0)
            engine.run(batch)
            present = (
                np.ones(batch.ids.shape, np.bool_) if batch.mask is None else batch.mask.astype(np.bool_)
            )
            flat = np.flatnonzero(present)
            place = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in some])
            tokens[place], content[place] = batch.ids.reshape(-1)[flat], batch.tokens.content[flat]
            for path, output in seen.items():
                values = output.reshape(present.size, -1)[torch.from_numpy(flat)].float().cpu().numpy()
                rows.setdefault(path, np.zeros((total, values.shape[1]), np.float32))[place] = values
            beat()
    finally:
        for handle in handles:
            handle.remove()
    document = np.repeat(np.arange(len(chosen)), lengths)
    samples = sequences.samples[sequences.starts[chosen]]
    return Sheet(tokens, document, content, samples, sequences.holdout[chosen]), rows


def _keep(
    seen: dict[str, torch.Tensor], path: str, _module: torch.nn.Module, _args: Any, output: Any
) -> None:
    seen[path] = first_tensor(output).detach()
