"""Measures the loss increase of a language model when an SAE's reconstruction replaces the activation.

For each SAE the same held-out text is read three times: by the unmodified model, with the rows of content
tokens at the hook point replaced by their reconstruction, and with these rows set to zero.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asysi.capture.rows import first_tensor, row_shape
from asysi.finish.budget import ReadBudget, ReadWatch, Spending
from asysi.finish.reread_tokens import RereadTokens
from asysi.sae.variants.base import SparseAutoencoder

LEAST = 128
"""Minimum number of predicted tokens; the result would be noise with fewer."""
AT_ONCE = 256
"""Tokens of a forward: logits over a vocabulary are large, and the time is looked at between forwards."""
_SEED = 0
_WARM_TOKENS = 2


@dataclass(frozen=True, slots=True)
class Spliced:
    """Mean cross-entropy of the next token, in nats, on the same tokens."""

    tokens: int
    """Number of predicted tokens."""
    clean: float
    spliced: float
    zero: float

    @property
    def recovered(self) -> float | None:
        """Share of the loss between zero and clean that the reconstruction recovers; None if undefined."""
        lost = self.zero - self.clean
        return (self.zero - self.spliced) / lost if lost > 0 else None


@dataclass(frozen=True, slots=True)
class Target:
    """An SAE and its hook point."""

    path: str
    sae: SparseAutoencoder
    limit: float | None = None
    """Norm above which rows were excluded from training; such rows are not replaced."""


def why_not(module: torch.nn.Module) -> str | None:
    """Return why the next-token cross-entropy of a model is undefined; None if it is defined."""
    names = [type(module).__name__, *(getattr(getattr(module, "config", None), "architectures", None) or [])]
    if not any(word in name for name in names for word in ("ForCausalLM", "LMHeadModel")):
        return f"{names[0]} does not predict the next token"
    return None


@dataclass(frozen=True, slots=True)
class SpliceResult:
    """What was measured."""

    figures: list[Spliced | None]
    """Of each target, None where there are none."""
    ended: Literal["all", "tokens", "seconds"] = "all"
    """Why some have none: the budget of tokens or of seconds was too small; `all` where it was neither."""


def measure(
    module: torch.nn.Module,
    sheet: RereadTokens,
    targets: Sequence[Target],
    budget: ReadBudget,
    *,
    padding: int,
    watch: ReadWatch,
    clock: Callable[[], float] = time.monotonic,
) -> SpliceResult:
    """Return what each target costs the model.

    All targets are measured on the same documents: as many as the budget allows at the pace of the first
    forward. Where the time is over all the same, the targets that are left have no figure.

    Args:
        module: a causal language model on the CPU.
        sheet: text; only its held-out documents are read.
        targets: SAEs with their hook points.
        budget: tokens and seconds, all forwards together.
        padding: token that fills shorter sequences.
        watch: is told after every forward.
        clock: seconds, monotonic.
    """
    passes = 1 + 2 * len(targets)
    batches = list(_batches(sheet, (budget.tokens - _WARM_TOKENS) // passes if targets else 0, padding))
    nothing: list[Spliced | None] = [None] * len(targets)
    if _predicted(batches) < LEAST:
        return SpliceResult(nothing, "tokens")
    order = np.random.default_rng(_SEED).permutation(len(batches))
    batches = [batches[number] for number in order]
    spending = Spending("cross-entropy", budget.seconds, watch, clock)
    _warm_up(module, batches[0])
    spending.plan(passes * _size(batches))
    clean = _sum(module, batches[:1], spending)
    batches = _within(batches, passes, batches[0].tokens + (spending.pace or math.inf) * spending.left)
    if _predicted(batches) < LEAST:
        return SpliceResult(nothing, "seconds")
    spending.total = passes * _size(batches)
    clean += _sum(module, batches[1:], spending)
    found: list[Spliced | None] = []
    for target in targets:
        if not spending.fits(2 * _size(batches)):
            return SpliceResult(found + nothing[len(found) :], "seconds")
        sums = [clean]
        for sae in (target.sae, None):
            with _replacing(module, target, sae) as state:
                sums.append(_sum(module, batches, spending, state))
        predicted = _predicted(batches)
        losses = [one / predicted for one in sums]
        found.append(Spliced(predicted, *losses) if all(map(math.isfinite, losses)) else None)
    return SpliceResult(found)


def _predicted(batches: Sequence["_Batch"]) -> int:
    return sum(int(batch.counted.sum()) for batch in batches)


def _size(batches: Sequence["_Batch"]) -> int:
    return sum(batch.tokens for batch in batches)


def _within(batches: list["_Batch"], passes: int, tokens: float) -> list["_Batch"]:
    """Return the first batches whose passes read at most so many tokens."""
    read = np.cumsum([passes * batch.tokens for batch in batches])
    return batches[: int(np.searchsorted(read, tokens, side="right"))]


@torch.inference_mode()
def _warm_up(module: torch.nn.Module, batch: "_Batch") -> None:
    """Run as little as can be: the first forward of all reads files and makes room, and tells no pace."""
    module(input_ids=batch.ids[:1, :_WARM_TOKENS], attention_mask=batch.mask[:1, :_WARM_TOKENS])


@dataclass(frozen=True, slots=True)
class _Batch:
    ids: Tensor
    """[batch, length]"""
    mask: Tensor
    """[batch, length]: 1 for tokens, 0 for padding."""
    content: Tensor
    """[batch, length] bool: rows that an SAE can replace."""
    counted: Tensor
    """[batch, length - 1] bool: tokens whose prediction counts, at the index of the preceding token."""

    @property
    def tokens(self) -> int:
        """Tokens that run through the model, padding left out."""
        return int(self.mask.sum())


@dataclass
class _State:
    content: Tensor | None = None


def _batches(sheet: RereadTokens, tokens: int, padding: int) -> Iterator[_Batch]:
    """Yield batches of held-out documents with at most `tokens` tokens in total, shortest first."""
    starts = np.searchsorted(sheet.document, np.arange(len(sheet.rows) + 1))
    lengths = np.diff(starts)
    chosen: list[int] = []
    used = 0
    for document in np.flatnonzero(sheet.held_out & (lengths > 1)).tolist():
        if used + lengths[document] <= tokens:
            chosen.append(document)
            used += int(lengths[document])
    chosen.sort(key=lambda document: int(lengths[document]))
    some: list[int] = []
    for document in chosen:
        if some and (len(some) + 1) * lengths[document] > AT_ONCE:
            yield _batch(sheet, starts, some, padding)
            some = []
        some.append(document)
    if some:
        yield _batch(sheet, starts, some, padding)


def _batch(sheet: RereadTokens, starts: NDArray[np.int64], documents: list[int], padding: int) -> _Batch:
    length = int(max(starts[one + 1] - starts[one] for one in documents))
    ids = np.full((len(documents), length), padding, np.int64)
    mask, content = np.zeros(ids.shape, np.int64), np.zeros(ids.shape, np.bool_)
    for row, one in enumerate(documents):
        part = slice(starts[one], starts[one + 1])
        count = part.stop - part.start
        ids[row, :count], content[row, :count], mask[row, :count] = sheet.tokens[part], sheet.content[part], 1
    kept = torch.from_numpy(content)
    return _Batch(torch.from_numpy(ids), torch.from_numpy(mask), kept, kept[:, 1:])


@torch.inference_mode()
def _sum(
    module: torch.nn.Module, batches: Sequence[_Batch], spending: Spending, state: _State | None = None
) -> float:
    """Return the cross-entropy summed over all tokens that count."""
    total = 0.0
    for batch in batches:
        if state is not None:
            state.content = batch.content
        logits = module(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits[batch.counted].float(), batch.ids[:, 1:][batch.counted], reduction="sum"
        )
        total += float(loss)
        spending.spend(batch.tokens)
    return total


@contextmanager
def _replacing(module: torch.nn.Module, target: Target, sae: SparseAutoencoder | None) -> Iterator[_State]:
    """Replace the rows of content tokens by their reconstruction, or by zero if `sae` is None."""
    state = _State()

    def hook(_module: torch.nn.Module, _args: Any, output: Any) -> Any:
        assert state.content is not None
        found = first_tensor(output)
        batch, length = state.content.shape
        if row_shape(found.shape, batch, length) is None:
            raise ValueError(f"{target.path} returns {list(found.shape)}: no row for each token")
        rows = found.reshape(batch * length, -1)
        chosen = state.content.reshape(-1) & rows.isfinite().all(1)
        if target.limit is not None:
            chosen &= rows.float().norm(dim=1) <= target.limit
        new = rows.clone()
        kept = rows[chosen].float()
        made = torch.zeros_like(kept) if sae is None else sae.forward(kept)
        new[chosen] = made.to(new.dtype)
        return replace_tensor(output, found, new.reshape(found.shape))

    handle = module.get_submodule(target.path).register_forward_hook(hook)
    try:
        yield state
    finally:
        handle.remove()


def replace_tensor(output: Any, old: Tensor, new: Tensor) -> Any:
    """Return a module's output with one of its tensors replaced."""
    if output is old:
        return new
    if isinstance(output, Mapping):
        changed = dict(output)
        key = next(name for name, value in output.items() if value is old)
        changed[key] = new
        return type(output)(**changed)
    values = [new if value is old else value for value in output]
    return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
