"""What the report shows. Every part may be missing: the page then says so."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

NO_CONTEXT = 0xFFFFFFFF
"""Stands in `Features.contexts` where a latent has no further context."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers of the verdict strip; None where a number is not known."""

    model: str
    model_detail: str = ""
    tokens_unique: int | None = None
    """Distinct content tokens of the text."""
    tokens_total: int | None = None
    """Content tokens the model has read, all passes."""
    slowdown: float | None = None
    """Time of a hooked step over an unhooked one, minus 1, where it was measured."""
    hook_share: float | None = None
    """Share of the forward pass spent in hooks, 0..1."""
    rows_seen: int | None = None
    rows_kept: int | None = None
    fvu: float | None = None
    """Mean held-out FVU over content tokens, over hook points."""
    fvu_note: str = ""
    """What must be known with it: what it is without the few rows that hold most of the variance."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the data that is not as it should be."""

    level: str
    """fail | warning | unknown."""
    text: str


@dataclass(frozen=True, slots=True)
class HookPointRow:
    """A row of the table of what was measured at each hook point. Shares are 0..1."""

    path: str
    seen: int
    """Rows that passed it."""
    kept: int
    """Rows that the consumers were offered."""
    lapped: tuple[tuple[str, float], ...] = ()
    """Share of its rows that each consumer lost."""
    not_finite: int = 0
    """Rows with NaN or infinity."""
    outlier: str = ""
    """The group of rows that holds most of the variance, "" where none stands out."""
    outlier_share: float | None = None
    """Of the variance; None where nobody could look."""
    outlier_rows: float | None = None
    """Of the rows."""
    sae: str = ""
    """What became of its SAE, in words."""
    compared: tuple[int, float, float] | None = None
    """Rows, FVU for the trainer, FVU for the report, on the same held-out rows."""
    flags: tuple[str, ...] = ()
    """Columns that are out of bounds: seen, lapped, finite, outlier, sae, given, compared."""
    given: int | None = None
    """Rows that reached its trainer, the fewest of several; None when unknown."""


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One autoencoder: a row of the table of layers. Shares are 0..1."""

    name: str
    """Unique: the hook point's path, with the trainer before it when there are several."""
    width: int
    latents: int
    k: int | None = None
    fvu_content: float | None = None
    fvu_all: float | None = None
    l0: float | None = None
    dead: float | None = None
    """Share of latents that never fire on the held-out content tokens."""
    dead_training: float | None = None
    """Share of latents dead by the trainer's own window at its end."""
    quantisation_floor: float | None = None
    pca: float | None = None
    """FVU of a PCA with `k` components on the same held-out tokens."""
    density: tuple[int, ...] = ()
    """Latents by log10 of their firing density: equal bins from `DENSITY_FROM` to 0."""
    trained: int | None = None
    """Rows trained on."""
    fvu_undefined: str | None = None
    """Why there is no `fvu_content`, None where there is one."""
    fvu_calls: tuple[float | None, ...] = ()
    """FVU over content tokens of each call of the module in a forward; empty where it is called once."""
    outliers: int = 0
    """Rows that were left out of every figure because of `data.tokens.maxNormMultiple`."""
    spliced: tuple[int, float, float, float] | None = None
    """Tokens predicted, and the mean cross-entropy of the next token in nats: of the model as it is, with the
    reconstruction in place of the activation, and with zero in its place. None where it was not measured.
    """
    fvu_without: float | None = None
    """FVU over content tokens without the group of rows that holds most of the variance."""


DENSITY_FROM = -4.0
DENSITY_BINS = 32


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, at `at` seconds of the run."""

    at: float
    text: str
    kind: str = "note"
    """restart | drop | note."""


@dataclass(frozen=True, slots=True)
class TimelineSection:
    """The run by the second; every series has one value per entry of `at`."""

    at: tuple[float, ...]
    """Seconds since the first line."""
    rate: tuple[float, ...]
    """Sampling rate in force, 0..1."""
    lag: Mapping[str, tuple[float, ...]]
    """Unread share of the ring, 0..1, by reader."""
    dropped: tuple[float, ...]
    """Rows dropped in that second."""
    offered: tuple[float, ...]
    """Rows offered a second."""
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Curve:
    """The course of training of one autoencoder; every series has one value per entry of `trained`."""

    name: str
    """As the `LayerRow` is called."""
    trained: tuple[float, ...]
    """Rows trained on."""
    loss: tuple[float | None, ...]
    """Smoothed training loss."""
    fvu: tuple[float | None, ...]
    """On held-out rows."""
    l0: tuple[float | None, ...]
    dead: tuple[float | None, ...]
    """Share of latents that have not fired for the trainer's window."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Seen against kept over the same bins, as counts; they are compared as shares."""

    name: str
    """Hook point, or "" where all points share it."""
    edges: tuple[float, ...]
    """One more than there are bins."""
    seen: tuple[float, ...]
    kept: tuple[float, ...]
    chance: float | None = None
    """Distance to be expected from the size of the samples alone, where it is known."""

    @property
    def distance(self) -> float:
        """Total variation between the two distributions: 0 the same, 1 disjoint."""
        seen, kept = sum(self.seen), sum(self.kept)
        if not seen or not kept:
            return 1.0 if seen or kept else 0.0
        return 0.5 * sum(abs(a / seen - b / kept) for a, b in zip(self.seen, self.kept, strict=True))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seen against kept by one property of a token."""

    by: str
    """length | position | norm."""
    note: str
    """Where both sides come from, as a sentence."""
    histograms: tuple[Histogram, ...]


@dataclass(frozen=True, slots=True)
class ContextText:
    """The text that contexts are cut from: content tokens only, document after document."""

    vocabulary: tuple[str, ...]
    """Text of each distinct token; a leading space means that a new word begins."""
    tokens: NDArray[np.uint32]
    """[tokens] index into the vocabulary."""
    starts: NDArray[np.uint32]
    """[documents + 1] where each document begins."""
    rows: tuple[int, ...]
    """[documents] row of the input (`_i`)."""
    held_out: NDArray[np.uint8]
    """[documents] 1 for held-out documents."""


@dataclass(frozen=True, slots=True)
class Features:
    """The latents of one layer that the browser shows, L of them."""

    layer: str
    """Name of the `LayerRow`."""
    latents: NDArray[np.uint32]
    """[L] numbers of the latents shown."""
    density: NDArray[np.float32]
    """[L] share of held-out content tokens that fire."""
    maximum: NDArray[np.float32]
    """[L] largest activation on the analysed text."""
    explained: NDArray[np.float32]
    """[L] FVU added on held-out text when the latent alone is removed."""
    contexts: NDArray[np.uint32]
    """[L, top + middle + low] token index of each context's peak, or NO_CONTEXT."""
    shades: NDArray[np.uint8]
    """[L, contexts, before + 1 + after] activation around the peak, 255 = the latent's maximum."""
    neighbours: NDArray[np.uint32]
    """[L, N] latents with the closest decoder directions, closest first."""
    cosines: NDArray[np.float32]
    """[L, N] their cosine similarity."""
    random: tuple[int, ...]
    """Ten live latents drawn at random."""
    best: tuple[int, ...]
    """The ten that explain most among live latents that are not dense."""
    firings: NDArray[np.uint8]
    """[L, FIRING_BINS] how often each fires with how much of its maximum, in equal bins from 0 to 1; 255 is
    the latent's fullest bin.
    """
    logits: NDArray[np.uint32] | None = None
    """[L, 2n] index into `Browser.logit_tokens`: tokens whose logits rise most, then those that fall most;
    NO_CONTEXT where nobody has looked. None without an unembedding.
    """
    logit_values: NDArray[np.float32] | None = None
    """[L, 2n] by how much, for each unit of activation."""


FIRING_BINS = 16


@dataclass(frozen=True, slots=True)
class TimelineStep:
    """The strongest latents of one layer on each token of the prepared sentence."""

    layer: str
    latents: NDArray[np.uint32]
    """[tokens, n]"""
    values: NDArray[np.float32]
    """[tokens, n] activations, largest first; 0 where fewer fire."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A held-out document, prepared to be followed layer by layer."""

    document: int
    """Index of the document in the corpus."""
    steps: tuple[TimelineStep, ...]


@dataclass(frozen=True, slots=True)
class Browser:
    """The feature browser's data."""

    corpus: ContextText
    features: tuple[Features, ...]
    sentence: Sentence | None = None
    before: int = 12
    after: int = 8
    groups: tuple[int, int, int] = (4, 3, 3)
    """Contexts at the top, in the middle and at the low end."""
    seed: int = 0
    held_out_tokens: int = 0
    """Held-out content tokens that the metrics were computed on."""
    logit_tokens: tuple[str, ...] = ()
    """Text of the tokens that `Features.logits` names."""


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything on the page, top to bottom."""

    name: str
    level: str
    """ok | unknown | warning | fail."""
    verdict: str
    """One sentence, or two."""
    figures: Figures
    ledger: Mapping[str, Any] = field(default_factory=dict)
    """As `ledger.json`; empty when there is none."""
    problems: tuple[str, ...] = ()
    """What went wrong with the stream or its books, a sentence each."""
    findings: tuple[Finding, ...] = ()
    """What is not as it should be about the data, the worst first."""
    points: tuple[HookPointRow, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    timeline: TimelineSection | None = None
    curves: tuple[Curve, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    browser: Browser | None = None
    limits: tuple[tuple[str, str], ...] = ()
    """Label and text of each line of "limits and reproduction"."""
    commands: tuple[tuple[str, str], ...] = ()
    """What a command does, and the command."""
    missing: tuple[str, ...] = ()
    """Parts that are not on the page, and why, a sentence each."""
