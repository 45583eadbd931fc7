"""The data of the report. Every part is optional; the page states which parts are missing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

NO_CONTEXT = 0xFFFFFFFF
"""Marks entries of `Features.contexts` where a latent has no further context."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers at the top of the page; None if a number is unknown."""

    model: str
    model_detail: str = ""
    tokens_unique: int | None = None
    """Distinct content tokens of the text."""
    tokens_total: int | None = None
    """Content tokens read by the model, over all passes."""
    slowdown: float | None = None
    """Duration of a hooked step divided by that of an unhooked one, minus 1, if measured."""
    hook_share: float | None = None
    """Share of the forward pass spent in hooks, 0..1."""
    rows_seen: int | None = None
    rows_kept: int | None = None
    fvu: float | None = None
    """Mean held-out FVU over content tokens, over hook points."""
    fvu_note: str = ""
    """Note beside `fvu`, such as its value without the few rows that hold most of the variance."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem with the data."""

    level: str
    """fail | warning | unknown."""
    text: str


@dataclass(frozen=True, slots=True)
class HookPointRow:
    """One row of the table of hook points. Shares are 0..1."""

    path: str
    seen: int
    """Rows that passed the hook point."""
    kept: int
    """Rows offered to the consumers."""
    lapped: tuple[tuple[str, float], ...] = ()
    """Share of rows lost by overwriting, by consumer."""
    not_finite: int = 0
    """Rows with NaN or infinity."""
    outlier: str = ""
    """The group of rows that holds most of the variance; "" if there is none."""
    outlier_share: float | None = None
    """Its share of the variance; None if it could not be determined."""
    outlier_rows: float | None = None
    """Its share of the rows."""
    sae: str = ""
    """Human-readable state of its SAE."""
    compared: tuple[int, float, float] | None = None
    """Number of shared held-out rows, the trainer's FVU on them, and the report's FVU on them."""
    flags: tuple[str, ...] = ()
    """Columns with values out of bounds: seen, lapped, finite, outlier, sae, given, compared."""
    given: int | None = None
    """Rows that reached its trainer, the minimum if there are several; None if unknown."""


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One autoencoder: one row of the table of layers. Shares are 0..1."""

    name: str
    """Unique: the hook point's path, prefixed with the trainer if there are several trainers."""
    width: int
    latents: int
    k: int | None = None
    fvu_content: float | None = None
    fvu_all: float | None = None
    l0: float | None = None
    dead: float | None = None
    """Share of latents that never fire on the held-out content tokens."""
    dead_training: float | None = None
    """Share of latents that were dead at the end of training, by the trainer's own window."""
    quantisation_floor: float | None = None
    pca: float | None = None
    """FVU of a PCA with `k` components on the same held-out tokens."""
    density: tuple[int, ...] = ()
    """Histogram of latents by log10 of their firing density, in equal bins from `DENSITY_FROM` to 0."""
    trained: int | None = None
    """Rows trained on."""
    fvu_undefined: str | None = None
    """Why `fvu_content` is None; None if it is not."""
    fvu_calls: tuple[float | None, ...] = ()
    """FVU over content tokens per module call within a forward pass; empty if it is called once."""
    outliers: int = 0
    """Rows excluded from all metrics because of `data.tokens.maxNormMultiple`."""
    spliced: tuple[int, float, float, float] | None = None
    """Number of predicted tokens, and the mean next-token cross-entropy in nats of the unmodified model, with
    the reconstruction in place of the activation, and with zero in its place. None if it was not measured.
    """
    fvu_without: float | None = None
    """FVU over content tokens without the group of rows that holds most of the variance."""


DENSITY_FROM = -4.0
DENSITY_BINS = 32


@dataclass(frozen=True, slots=True)
class Event:
    """An event, `at` seconds after the start of the run."""

    at: float
    text: str
    kind: str = "note"
    """restart | drop | note."""


@dataclass(frozen=True, slots=True)
class TimelineSection:
    """Time series of the run; every series has one value per entry of `at`."""

    at: tuple[float, ...]
    """Seconds since the first line."""
    rate: tuple[float, ...]
    """Sampling rate, 0..1."""
    lag: Mapping[str, tuple[float, ...]]
    """Unread share of the ring, 0..1, by reader."""
    dropped: tuple[float, ...]
    """Rows dropped per second."""
    offered: tuple[float, ...]
    """Rows offered per second."""
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Curve:
    """Training curves of one autoencoder; every series has one value per entry of `trained`."""

    name: str
    """Name of the `LayerRow`."""
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
class EpochSeries:
    """A figure of the watched model's own training, one value per epoch; None if it is no number."""

    name: str
    """Name of the figure, or of the module for drift."""
    values: tuple[float | None, ...]
    drift: bool = False
    """Whether it is 1 - CKA between the module's output now and before training."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of seen and kept over the same bins; they are compared as shares."""

    name: str
    """Hook point, or "" if it applies to all hook points."""
    edges: tuple[float, ...]
    """[bins + 1] bin edges."""
    seen: tuple[float, ...]
    kept: tuple[float, ...]
    chance: float | None = None
    """Distance expected from the sample sizes alone, if known."""

    @property
    def distance(self) -> float:
        """Total variation distance of the two distributions: 0 if equal, 1 if disjoint."""
        seen, kept = sum(self.seen), sum(self.kept)
        if not seen or not kept:
            return 1.0 if seen or kept else 0.0
        return 0.5 * sum(abs(a / seen - b / kept) for a, b in zip(self.seen, self.kept, strict=True))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Distributions of seen and kept tokens by one property."""

    by: str
    """length | position | norm."""
    note: str
    """One sentence about the source of both distributions."""
    histograms: tuple[Histogram, ...]


@dataclass(frozen=True, slots=True)
class ContextText:
    """The text of the contexts: the content tokens of all documents, concatenated."""

    vocabulary: tuple[str, ...]
    """Text of each distinct token; a leading space marks the start of a word."""
    tokens: NDArray[np.uint32]
    """[tokens] index into the vocabulary."""
    starts: NDArray[np.uint32]
    """[documents + 1] where each document begins."""
    rows: tuple[int, ...]
    """[documents] input row (`_i`)."""
    held_out: NDArray[np.uint8]
    """[documents] 1 for held-out documents."""


@dataclass(frozen=True, slots=True)
class Features:
    """The L latents of one layer that the browser shows."""

    layer: str
    """Name of the `LayerRow`."""
    latents: NDArray[np.uint32]
    """[L] indices of the latents shown."""
    density: NDArray[np.float32]
    """[L] share of held-out content tokens on which the latent fires."""
    maximum: NDArray[np.float32]
    """[L] largest activation on the analysed text."""
    explained: NDArray[np.float32]
    """[L] increase of the held-out FVU if only this latent is removed."""
    contexts: NDArray[np.uint32]
    """[L, top + middle + low] token index of each context's peak, or NO_CONTEXT."""
    shades: NDArray[np.uint8]
    """[L, contexts, before + 1 + after] activation around the peak, 255 = the latent's maximum."""
    neighbours: NDArray[np.uint32]
    """[L, N] latents with the closest decoder directions, closest first."""
    cosines: NDArray[np.float32]
    """[L, N] their cosine similarity."""
    random: tuple[int, ...]
    """Ten random live latents."""
    best: tuple[int, ...]
    """The ten live latents that explain most, excluding dense ones."""
    firings: NDArray[np.uint8]
    """[L, FIRING_BINS] histogram of activations relative to the latent's maximum, in equal bins from 0 to 1;
    255 is the latent's fullest bin.
    """
    logits: NDArray[np.uint32] | None = None
    """[L, 2n] index into `Browser.logit_tokens`: tokens whose logits rise most, then those that fall most;
    NO_CONTEXT if not computed. None without an unembedding.
    """
    logit_values: NDArray[np.float32] | None = None
    """[L, 2n] change of the logit per unit of activation."""


FIRING_BINS = 16


@dataclass(frozen=True, slots=True)
class LayerActivations:
    """The strongest latents of one layer for each token of the example sentence."""

    layer: str
    latents: NDArray[np.uint32]
    """[tokens, n]"""
    values: NDArray[np.float32]
    """[tokens, n] activations, largest first; 0 if fewer latents fire."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A held-out document used as an example, with its latents layer by layer."""

    document: int
    """Index of the document in the corpus."""
    steps: tuple[LayerActivations, ...]


@dataclass(frozen=True, slots=True)
class Browser:
    """The feature browser's data."""

    corpus: ContextText
    features: tuple[Features, ...]
    sentence: Sentence | None = None
    before: int = 12
    after: int = 8
    groups: tuple[int, int, int] = (4, 3, 3)
    """Number of strong, medium and weak contexts per latent."""
    seed: int = 0
    held_out_tokens: int = 0
    """Number of held-out content tokens used for the metrics."""
    logit_tokens: tuple[str, ...] = ()
    """Text of the tokens indexed by `Features.logits`."""


@dataclass(frozen=True, slots=True)
class ReportData:
    """All data on the page, in its order."""

    name: str
    level: str
    """ok | unknown | warning | fail."""
    verdict: str
    """One or two sentences."""
    figures: Figures
    ledger: Mapping[str, Any] = field(default_factory=dict)
    """Contents of `ledger.json`; empty if there is none."""
    problems: tuple[str, ...] = ()
    """Problems with the stream or its ledger, one sentence each."""
    findings: tuple[Finding, ...] = ()
    """Problems with the data, the most severe first."""
    points: tuple[HookPointRow, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    timeline: TimelineSection | None = None
    curves: tuple[Curve, ...] = ()
    epochs: tuple[EpochSeries, ...] = ()
    """Training of the watched model; empty if the workload does not train it."""
    comparisons: tuple[Comparison, ...] = ()
    browser: Browser | None = None
    limits: tuple[tuple[str, str], ...] = ()
    """Label and text of each line of "limits and reproduction"."""
    commands: tuple[tuple[str, str], ...] = ()
    """Description and command line of each command."""
    missing: tuple[str, ...] = ()
    """Parts that are missing from the page, with the reason, one sentence each."""
