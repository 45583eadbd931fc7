"""Computes what the report shows about one autoencoder from activations."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asysi.finish import contexts, latents, logits
from asysi.finish.latents import Encoding, Firings, Floats
from asysi.finish.reread_tokens import PointRows, RereadTokens
from asysi.finish.survey import VarianceByPlace, find_outlier_rows
from asysi.report.data import NO_CONTEXT, Browser, ContextText, Features, LayerActivations, LayerRow, Sentence
from asysi.sae.fvu import fvu, why_undefined
from asysi.sae.variants.base import SparseAutoencoder

SHOWN = 10_000
"""Maximum number of latents in the browser, over all layers; keeps the page fast to open."""
NEIGHBOURS = 6
PICKED = 10
DENSE = 0.05
"""Share of tokens above which a latent acts as a bias rather than a feature and is not among the ten best."""
STRONGEST = 3
GROUPS = (10, 5, 5)
"""Number of contexts per latent: strongest, medium, weak."""
BEFORE, AFTER = 12, 8
SENTENCE = (12, 26)
"""Length range of the example sentence in content tokens: meaningful but still easy to follow."""


@dataclass(frozen=True, slots=True)
class MeasureOptions:
    """Parameters of the analysis of one autoencoder."""

    k: int | None
    quantization: str
    """As the spec has it."""
    seed: int
    shown: int
    """Latents to show of this autoencoder."""
    sentence: int | None
    """Document used as the example sentence, or None."""
    unembedding: Tensor | None = None
    """[vocabulary, width] of the model, None where it has none."""
    ranges: NDArray[np.float32] | None = None
    """[2, width] frozen mean and scale of each channel under int8, None where none were frozen."""


@dataclass(frozen=True, slots=True)
class LayerResult:
    """Results of the analysis of one autoencoder."""

    layer: LayerRow
    features: Features
    step: LayerActivations | None


def measure_sae(
    name: str,
    sae: SparseAutoencoder,
    rows: PointRows,
    sheet: RereadTokens,
    asked: MeasureOptions,
    *,
    place: VarianceByPlace | None = None,
) -> LayerResult:
    """Measure one autoencoder on the reread activations; metrics use held-out documents only.

    `rows` has at least one row of a held-out content token: see `measurable`. `place` is the result of
    `find_outlier_rows` for `rows`.
    """
    found = place or find_outlier_rows(rows, sheet)
    data = sheet.content[rows.token]
    held = sheet.held_tokens[rows.token]
    tested = rows.values[data & held]
    reading = latents.read(sae, rows.values[data], held[data])
    fires = latents.counts(reading.firings, sae.W_dec.shape[0], held[data])
    at = np.cumsum(sheet.content) - 1  # of a content token among content tokens
    made = _Measured(
        reading=reading,
        tested=tested,
        held=held[data],
        call=rows.call[data],
        variance=latents.variance(tested),
        energy=latents.energy(tested),
        fires=fires,
        fvu_without=_without(reading, rows.values[data], held[data] & ~found.members[data]),
        spoken=latents.on_tokens(reading.firings, at[rows.token[data]]),
    )
    subject = _Subject(name, sae, sheet, asked)
    step = None if asked.sentence is None else _step(name, made.spoken, sheet, asked.sentence)
    return LayerResult(_layer(subject, rows, made), _features(subject, made), step)


def _without(reading: Encoding, values: Floats, rest: NDArray[np.bool_]) -> float | None:
    kept = values[rest]
    return fvu(float(reading.error[rest].sum()), latents.variance(kept), latents.energy(kept))


def measurable(rows: PointRows, sheet: RereadTokens) -> bool:
    """Return whether there is a finite row of a held-out content token to measure on."""
    return bool((sheet.content & sheet.held_tokens)[rows.token].any())


@dataclass(frozen=True, slots=True)
class _Subject:
    name: str
    sae: SparseAutoencoder
    sheet: RereadTokens
    asked: MeasureOptions


@dataclass(frozen=True, slots=True)
class _Measured:
    """Measurements on the n rows of content tokens, m of which belong to held-out documents."""

    reading: Encoding
    tested: Floats
    """[m, width] activations of the held-out rows."""
    held: NDArray[np.bool_]
    """[n] whether the row's document is held out."""
    call: NDArray[np.int64]
    """[n] index of the module call that produced the row."""
    variance: float
    """Of the held-out rows."""
    energy: float
    """Sum of their squares."""
    fires: NDArray[np.int64]
    """[latents] number of held-out rows on which each latent fires."""
    fvu_without: float | None
    """FVU of the held-out rows without the outlier rows."""
    spoken: Firings
    """Firings by content token instead of by row."""


def _layer(subject: _Subject, rows: PointRows, made: _Measured) -> LayerRow:
    sae, sheet, asked = subject.sae, subject.sheet, subject.asked
    count, width = sae.W_dec.shape
    data, held = sheet.content[rows.token], sheet.held_tokens[rows.token]
    error = float(made.reading.error.sum())
    rest = latents.squared_error(sae, rows.values[held & ~data])
    everything = rows.values[held]
    floor = latents.squared_difference(
        made.tested, latents.quantised(made.tested, asked.quantization, asked.ranges)
    )
    density = made.fires / max(1, len(made.tested))
    return LayerRow(
        name=subject.name,
        width=width,
        latents=count,
        k=asked.k,
        fvu_content=fvu(error, made.variance, made.energy),
        fvu_undefined=why_undefined(error, made.variance, made.energy),
        fvu_without=made.fvu_without,
        fvu_all=fvu(error + rest, latents.variance(everything), latents.energy(everything)),
        fvu_calls=_by_call(made) if len(rows.calls) > 1 else (),
        l0=float(density.sum()),
        dead=float((made.fires == 0).mean()),
        quantisation_floor=fvu(floor, made.variance, made.energy),
        pca=latents.pca_fvu(rows.values[data & ~held], made.tested, asked.k) if asked.k else None,
        density=latents.density_histogram(density.astype(np.float32)),
    )


def _by_call(made: _Measured) -> tuple[float | None, ...]:
    """Return the FVU of each call's held-out rows."""
    call, error = made.call[made.held], made.reading.error[made.held]
    found = []
    for number in np.unique(made.call):
        mine = made.tested[call == number]
        found.append(fvu(float(error[call == number].sum()), latents.variance(mine), latents.energy(mine)))
    return tuple(found)


def _features(subject: _Subject, made: _Measured) -> Features:
    sae, sheet, asked, firings = subject.sae, subject.sheet, subject.asked, made.spoken
    count = sae.W_dec.shape[0]
    density = made.fires / max(1, len(made.tested))
    varies = why_undefined(0.0, made.variance, made.energy) is None
    explained = made.reading.removal / made.variance if varies else np.zeros(count)
    maximum = latents.maxima(firings, count)
    live = np.flatnonzero(density > 0)
    random = np.random.default_rng(asked.seed).permutation(live)
    specific = live[density[live] <= DENSE] if (density[live] <= DENSE).any() else live
    best = specific[np.argsort(-explained[specific], kind="stable")][:PICKED]
    shown = _shown(np.flatnonzero(maximum > 0), asked.shown, random, best)
    document = sheet.document[sheet.content]
    peaks = contexts.choose(firings, document, shown, GROUPS)
    near, cosines = latents.neighbours(sae.W_dec, shown, NEIGHBOURS)
    return Features(
        layer=subject.name,
        latents=shown.astype(np.uint32),
        density=density[shown].astype(np.float32),
        maximum=maximum[shown],
        explained=explained[shown].astype(np.float32),
        contexts=peaks,
        shades=contexts.shade(
            firings, peaks, shown, document=document, maximum=maximum[shown], window=(BEFORE, AFTER)
        ),
        neighbours=near,
        cosines=cosines,
        random=tuple(int(latent) for latent in np.sort(random[:PICKED])),
        best=tuple(int(latent) for latent in best),
        firings=latents.strengths(firings, shown, maximum),
        **_logits(subject, shown, np.concatenate([best, random])),
    )


def _logits(subject: _Subject, shown: NDArray[np.int64], first: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return the tokens whose logits each shown latent changes most; listed latents come first."""
    if subject.asked.unembedding is None:
        return {}
    kept = np.concatenate([first, shown])
    _, at = np.unique(kept, return_index=True)
    order = kept[np.sort(at)]
    order = order[np.isin(order, shown)]
    found = logits.top_and_bottom_tokens(
        subject.sae.W_dec[torch.from_numpy(order)], subject.asked.unembedding
    )
    if found is None:
        return {}
    tokens = np.full((len(shown), found.tokens.shape[1]), NO_CONTEXT, np.uint32)
    values = np.zeros(tokens.shape, np.float32)
    place = np.searchsorted(shown, order[: len(found.tokens)])
    tokens[place], values[place] = found.tokens, found.values
    return {"logits": tokens, "logit_values": values}


def _shown(
    fired: NDArray[np.int64], most: int, random: NDArray[np.int64], best: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return every latent that fired, or if there are too many, a random subset with the listed ones."""
    if len(fired) <= most:
        return fired
    kept = np.concatenate([best, random])
    _, first = np.unique(kept, return_index=True)
    return np.sort(kept[np.sort(first)][:most])


def _step(name: str, firings: Firings, sheet: RereadTokens, document: int) -> LayerActivations:
    tokens = np.flatnonzero(sheet.document[sheet.content] == document)
    return LayerActivations(name, *latents.strongest(firings, tokens, STRONGEST))


def sentence_of(sheet: RereadTokens, seed: int) -> int | None:
    """Choose a random held-out document as the example, of a readable length if possible."""
    lengths = np.bincount(sheet.document[sheet.content], minlength=len(sheet.rows))
    held = np.flatnonzero(sheet.held_out & (lengths > 0))
    if not len(held):
        return None
    readable = held[(lengths[held] >= SENTENCE[0]) & (lengths[held] <= SENTENCE[1])]
    pool = readable if len(readable) else held[np.argsort(lengths[held], kind="stable")][:1]
    return int(np.random.default_rng(seed).choice(pool))


def browser(
    looked: list[LayerResult],
    sheet: RereadTokens,
    pieces: Sequence[str],
    seed: int,
    spell: Callable[[NDArray[np.int64]], dict[int, str]] = lambda _tokens: {},
) -> Browser:
    """Combine the autoencoders and the text into the browser's data.

    Args:
        looked: results of every autoencoder.
        sheet: the text on which they were measured.
        pieces: text of every token of the sheet; a leading space marks the start of a word.
        seed: seed of the random choices.
        spell: maps token ids to their text.
    """
    content = sheet.content
    spoken = [pieces[int(i)] for i in np.flatnonzero(content)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(spoken))}
    lengths = np.bincount(sheet.document[content], minlength=len(sheet.rows))
    corpus = ContextText(
        vocabulary=tuple(vocabulary),
        tokens=np.array([vocabulary[piece] for piece in spoken], np.uint32),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint32),
        rows=tuple(int(row) for row in sheet.rows),
        held_out=sheet.held_out.astype(np.uint8),
    )
    document = sentence_of(sheet, seed)
    steps = tuple(one.step for one in looked if one.step is not None)
    features, logit_tokens = _name_logits([one.features for one in looked], spell)
    return Browser(
        corpus=corpus,
        features=features,
        logit_tokens=logit_tokens,
        sentence=None if document is None or not steps else Sentence(document, steps),
        before=BEFORE,
        after=AFTER,
        groups=GROUPS,
        seed=seed,
        held_out_tokens=int((sheet.held_tokens & content).sum()),
    )


def _name_logits(
    features: list[Features], spell: Callable[[NDArray[np.int64]], dict[int, str]]
) -> tuple[tuple[Features, ...], tuple[str, ...]]:
    """Return the features with logit tokens renumbered to those that occur, and the text of these tokens."""
    used = [one.logits[one.logits != NO_CONTEXT] for one in features if one.logits is not None]
    numbers = np.unique(np.concatenate(used)).astype(np.int64) if used else np.empty(0, np.int64)
    text = spell(numbers)
    named = tuple(
        one
        if one.logits is None
        else dataclasses.replace(
            one,
            logits=np.where(
                one.logits == NO_CONTEXT, NO_CONTEXT, np.searchsorted(numbers, one.logits)
            ).astype(np.uint32),
        )
        for one in features
    )
    return named, tuple(text.get(int(number), f"token {number}") for number in numbers)
