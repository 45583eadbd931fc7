"""Definitions of the numbers in the report; the page embeds them, `docs/report.md` repeats them (a test
compares both).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Definition:
    """Human-readable definition of a metric."""

    key: str
    name: str
    text: str


DEFINITIONS = (
    Definition(
        "fvu-content",
        "FVU, content tokens",
        "Fraction of variance unexplained: Σ‖x − x̂‖² / Σ‖x − mean(x)‖², where x is an activation and x̂ "
        "its reconstruction by the autoencoder. 0% is perfect, 100% is no better than always predicting the "
        "mean. Summed in float64 over the content tokens of held-out documents, on float32 activations.",
    ),
    Definition(
        "fvu-all",
        "FVU, all tokens",
        "The same over every token of the held-out documents, including special tokens. The autoencoder "
        "never saw special tokens in training; if a few of them hold most of the variance, the two numbers "
        "differ widely.",
    ),
    Definition(
        "l0",
        "L0",
        "Number of latents that fire for a token, averaged over held-out content tokens.",
    ),
    Definition(
        "dead",
        "Dead",
        "Share of latents that fire on none of the held-out content tokens. Below it, in small type, the "
        "share that was dead at the end of training by the trainer's own criterion: latents that did not "
        "fire for its whole window of training rows.",
    ),
    Definition(
        "density",
        "Density",
        "A latent's firing density is the share of held-out content tokens on which it fires. The sparkline "
        "counts latents by log₁₀ of their density, from 0.01% at the left to 100% at the right.",
    ),
    Definition(
        "floor",
        "Quantisation floor",
        "FVU of the run's quantisation alone: activations are quantised and dequantised, without an "
        "autoencoder. The training data cannot be reconstructed better than this.",
    ),
    Definition(
        "pca",
        "PCA at k",
        "FVU of a principal component analysis with as many components as latents fire for a token (k), "
        "fitted on training documents and measured on the same held-out tokens. An autoencoder that is not "
        "better has found no structure beyond a linear subspace.",
    ),
    Definition(
        "spliced",
        "Loss spliced",
        "Increase of the mean cross-entropy of the next content token, in nats, when the reconstructions of "
        "content tokens replace their activations in the model. Recovered is the share of the loss "
        "difference between zeroed activations and the unmodified model that the reconstruction recovers. "
        "Measured on held-out documents with a separate budget, spec.finish.spliceTokens: by default 20,000 "
        "tokens over all forward passes, so the result is coarse if there are many autoencoders.",
    ),
    Definition(
        "curve",
        "Training curves",
        "FVU on a fixed sample of held-out rows, training loss (smoothed), L0 and the share of dead latents "
        "over the rows trained on, at counted steps: steps undone by a restart are not included. The last "
        "point is measured on the whole evaluation set, the others on a part of it.",
    ),
    Definition(
        "drift",
        "Drift",
        "1 − CKA (linear centred kernel alignment) between the output of a module of the watched model for a "
        "fixed batch before training and after an epoch: 0 if the features are the same up to rotation and "
        "scale. The modules are those of `eval.drift_layers` in the project's configuration.",
    ),
    Definition(
        "strengths",
        "Firings by activation",
        "Histogram of the latent's activations relative to its maximum, in 16 equal bins, over all content "
        "tokens that were reread. The tallest bar is the fullest bin.",
    ),
    Definition(
        "logits",
        "Raises, lowers",
        "The tokens whose logits the latent changes most, per unit of its activation: its decoder row times "
        "the model's unembedding, centred over the vocabulary. This is only the direct effect, without the "
        "final norm and the effect of later layers, and is shown only if the model has an unembedding of "
        "the hook point's width.",
    ),
    Definition(
        "kept",
        "Kept",
        "Rows published to the consumers over rows seen. A row is one token at one hook point. The other "
        "rows were skipped by the sampling rate or dropped, and both are counted.",
    ),
    Definition(
        "ledger",
        "Ledger",
        "Every row is accounted for at every hop: seen = published + sampled out + dropped, and for each "
        "consumer published = durable + lapped + rolled back. Lapped rows were overwritten before they were "
        "read; rolled back rows were read after the last checkpoint of a worker that was killed.",
    ),
    Definition(
        "sound",
        "Is the data sound",
        "The ledger shows that every row is accounted for; this shows whether the rows are usable. The "
        "documentation of the report has one table of all checks, with the limits of each warning and "
        "failure.",
    ),
    Definition(
        "lapped",
        "Lapped",
        "Share of the kept rows that were overwritten in the ring before a consumer read them, for each "
        "consumer that lost any. Rows lapped for the trainer were never trained on.",
    ),
    Definition(
        "given",
        "Given",
        "Rows that reached the trainer, of those kept for it, in all attempts: its autoencoder was trained "
        "and measured on them; held-out and unusable rows are included. The others were overwritten, or "
        "lost with a worker that was killed or had no room for its checkpoint.",
    ),
    Definition(
        "outlier",
        "Most variance",
        "The position in the sequence, or the token, that holds the largest share of the variance Σ‖x − "
        "mean(x)‖² of a hook point, over held-out content tokens, and its share of the rows; only groups "
        "that hold at least twice their share of the rows are shown. If none holds half, but the largest 1% "
        "of the rows do, these are shown. An FVU measured with such rows mostly reflects how well they are "
        "reconstructed.",
    ),
    Definition(
        "compared",
        "Trainer, report",
        "FVU of the exported autoencoder on the same held-out rows: as the trainer received them, and as "
        "recomputed for this page. Both see the same documents and positions, so the two must agree; the "
        "remaining difference is quantisation and rounding.",
    ),
    Definition(
        "hooks",
        "Time in hooks",
        "Share of the model's forward pass spent in the capture hooks, over the whole run. This is only the "
        "direct cost; contention for caches and memory bandwidth is not included.",
    ),
    Definition(
        "tokens",
        "Tokens",
        "Content tokens of the distinct documents, and all content tokens read by the model: each pass over "
        "the text counts again.",
    ),
    Definition(
        "sample",
        "Seen against kept",
        "Two distributions of the same property, as shares. Their distance is the total variation: half the "
        "sum of absolute differences, 0% if equal, 100% if disjoint. If one side is itself a sample, the "
        "distance expected by chance is estimated from two random halves of it. Token sampling depends only "
        "on the token's place in the stream; a changing rate, or dropped steps, favour text read at other "
        "times.",
    ),
    Definition(
        "rate",
        "Rate, lag, drops",
        "The rate is the share of tokens kept, set by the pace of the consumers. Lag is the unread share of "
        "a consumer's ring; at 100% it loses rows. Drops are rows for which there was no room.",
    ),
    Definition(
        "maximum",
        "Maximum",
        "A latent's largest activation on the text reread for this page, in the units of the model's "
        "activations.",
    ),
    Definition(
        "explained",
        "Explains",
        "The increase of the FVU over held-out content tokens if only this latent is removed from the "
        "reconstruction. The ten best have the largest increase among latents that fire on at most 5% of "
        "tokens (denser ones act like a bias); ten others are drawn at random from all that fire.",
    ),
    Definition(
        "contexts",
        "Contexts",
        "A latent's firings are ranked by activation: the strongest, those nearest the median, and those "
        "nearest the weakest tenth. No document appears twice for a latent. Shade is activation over the "
        "latent's maximum. The number is the input row; a filled diamond marks held-out documents, the "
        "others were trained on.",
    ),
    Definition(
        "neighbours",
        "Neighbours",
        "Latents whose decoder directions have the highest cosine similarity with this one's.",
    ),
)
"""Every metric, in the order of the page."""
