"""What each number of the report means: the page embeds these, `docs/report.md` repeats them (a test
compares).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric in plain words."""

    key: str
    name: str
    text: str


DEFINITIONS = (
    Definition(
        "fvu-content",
        "FVU, content tokens",
        "Fraction of variance unexplained: Σ‖x − x̂‖² / Σ‖x − mean(x)‖², where x is an activation and x̂ "
        "what the "
        "autoencoder rebuilds of it. 0% is perfect, 100% is no better than always answering with the "
        "mean. Summed in "
        "float64 over the content tokens of held-out documents, on float32 activations.",
    ),
    Definition(
        "fvu-all",
        "FVU, all tokens",
        "The same over every token of the held-out documents, special tokens included. The autoencoder "
        "never saw "
        "special tokens in training; where a few of them hold most of the variance the two numbers differ"
        " widely.",
    ),
    Definition(
        "l0",
        "L0",
        "Latents that fire for a token, on average over held-out content tokens.",
    ),
    Definition(
        "dead",
        "Dead",
        "Share of latents that fire on none of the held-out content tokens. Below it, in small type, the "
        "share that the "
        "trainer itself held for dead at its end: those silent for its whole window of training rows.",
    ),
    Definition(
        "density",
        "Density",
        "A latent's firing density is the share of held-out content tokens on which it fires. The "
        "sparkline counts "
        "latents by log₁₀ of their density, from 0.01% at the left to 100% at the right.",
    ),
    Definition(
        "floor",
        "Quantisation floor",
        "FVU of the run's quantisation alone: activations go through it once and back, with no "
        "autoencoder. What was "
        "trained on cannot be known better than this.",
    ),
    Definition(
        "pca",
        "PCA at k",
        "FVU of a principal component analysis with as many components as latents fire for a token (k), "
        "fitted on "
        "training documents, measured on the same held-out tokens. An autoencoder that is no better has "
        "found no "
        "structure beyond a linear subspace.",
    ),
    Definition(
        "spliced",
        "Loss spliced",
        "How much the mean cross-entropy of the next content token grows, in nats, when the model goes on "
        "with the reconstruction of content tokens in place of their activations. Recovered is its share of "
        "the way from the loss with zeros in their place to that of the model as it is. Measured on held-out "
        "documents with a budget of its own, spec.finish.spliceTokens: 20,000 tokens unless said otherwise, "
        "over all forwards together, so that it is coarse where there are many autoencoders.",
    ),
    Definition(
        "curve",
        "Training curves",
        "FVU on a fixed sample of held-out rows, training loss (smoothed), L0 and the share of dead latents "
        "over the rows trained on, at counted steps: what a restart undid is not in them. The last point is "
        "measured on the whole evaluation set, the others on a part of it.",
    ),
    Definition(
        "strengths",
        "Firings by activation",
        "How often the latent fires with how much of its maximum, in 16 equal bins, over all content tokens "
        "that were read again. The tallest bar is the fullest bin.",
    ),
    Definition(
        "logits",
        "Raises, lowers",
        "The tokens whose logits the latent moves most, for each unit of its activation: its decoder row "
        "through the model's unembedding, centred over the vocabulary. It is the direct effect alone, "
        "without the final norm and without what later layers make of it, and stands only where the model "
        "has an unembedding of the hook point's width.",
    ),
    Definition(
        "kept",
        "Kept",
        "Rows published to the consumers over rows seen. A row is one token at one hook point. What is "
        "not kept was left "
        "out by the sampling rate or dropped, and both are counted.",
    ),
    Definition(
        "ledger",
        "Ledger",
        "Every row is accounted for at every hop: seen = published + sampled out + dropped, and for each "
        "consumer "
        "published = durable + lapped + rolled back. Lapped rows were overwritten before they were read; "
        "rolled back "
        "rows were read after the last checkpoint of a worker that was killed.",
    ),
    Definition(
        "sound",
        "Is the data sound",
        "The books say that no row went astray; this says whether the rows are worth something. What is "
        "looked at, and from where on it is a warning or a failure, is one table in the documentation of the "
        "report.",
    ),
    Definition(
        "lapped",
        "Lapped",
        "Share of the kept rows that were overwritten in the ring before a consumer had read them, for each "
        "consumer that lost any. What was lapped for the trainer was never trained on.",
    ),
    Definition(
        "given",
        "Given",
        "Rows that reached the trainer, of those that were kept for it, in all attempts: what its "
        "autoencoder was trained and measured on, held-out and unfit rows among them. The others were "
        "overwritten, or lost with a worker that was killed or had no room for its checkpoint.",
    ),
    Definition(
        "outlier",
        "Most variance",
        "The position in the sequence, or the token, that holds the largest share of the variance "
        "Σ‖x − mean(x)‖² of a hook point, over held-out content tokens, and its share of the rows; only "
        "those that hold at least twice their share of the rows are named. Where none holds half, but the "
        "largest 1% of the rows do, these are named. An FVU measured with such rows says how well they are "
        "rebuilt.",
    ),
    Definition(
        "compared",
        "Trainer, report",
        "FVU of the exported autoencoder on the same held-out rows: as the trainer was given them, and as "
        "this page read them again. Both see the same documents and positions, so the two must agree; what "
        "is left is the run's quantisation and rounding.",
    ),
    Definition(
        "hooks",
        "Time in hooks",
        "Share of the model's forward pass that was spent in the capture's hooks, over the whole run. It "
        "is the direct "
        "cost alone; competition for caches and memory bandwidth is not in it.",
    ),
    Definition(
        "tokens",
        "Tokens",
        "Content tokens of the distinct documents, and all content tokens that the model has read: each "
        "pass over the "
        "text counts again.",
    ),
    Definition(
        "sample",
        "Seen against kept",
        "Two distributions of the same property, as shares. Their distance is the total variation: half "
        "the sum of "
        "absolute differences, 0% for equal, 100% for disjoint. Where one side is itself a sample, the "
        "distance that "
        "chance alone would make is estimated from two random halves of it. Token sampling looks at "
        "nothing but the "
        "token's place in the stream; a rate that changes, or dropped steps, favour what was read at "
        "other times.",
    ),
    Definition(
        "rate",
        "Rate, lag, drops",
        "The rate is the share of tokens kept, set by the pace of the consumers. Lag is the unread share "
        "of a "
        "consumer's ring; at 100% it loses rows. Drops are rows that found no room.",
    ),
    Definition(
        "maximum",
        "Maximum",
        "A latent's largest activation on the text that was read again for this page, in the units of the"
        " model's "
        "activations.",
    ),
    Definition(
        "explained",
        "Explains",
        "The FVU that is added, over held-out content tokens, when this latent alone is removed from the "
        "reconstruction. The ten best have the largest among latents that fire on at most 5% of tokens "
        "(denser ones "
        "act like a bias); ten others are drawn at random from all that fire.",
    ),
    Definition(
        "contexts",
        "Contexts",
        "A latent's firings are ranked by activation: the strongest, those nearest the median, and those "
        "nearest the "
        "weakest tenth. No document appears twice for a latent. Shade is activation over the latent's "
        "maximum. The "
        "number is the row of the input; a filled diamond marks held-out documents, the others were "
        "trained on.",
    ),
    Definition(
        "neighbours",
        "Neighbours",
        "Latents whose decoder directions have the largest cosine with this one's.",
    ),
)
"""Every metric, in the order of the page."""
