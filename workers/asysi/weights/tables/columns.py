"""Columns of a table of parameters: those of the original design first, in its order, then the added ones."""

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["text", "integer", "number", "boolean"]
Row = dict[str, Any]
"""A parameter: a value or None for every column."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name, type and meaning, and whether every row has a value."""

    name: str
    kind: Kind
    text: str
    required: bool = False


COLUMNS = (
    Column("model_path", "text", "Where the checkpoint was read.", True),
    Column("model_id", "text", "Name of the model: owner/name where it came from the hub.", True),
    Column("revision", "text", "Commit of the hub, `local` where there is none.", True),
    Column("param_name", "text", "Name of the parameter.", True),
    Column("layer_index", "integer", "Layer counted from 0; empty outside layers."),
    Column("block_type", "text", "What the parameter is: see the table of block types.", True),
    Column("shape", "text", "Shape, as `(384, 1536)`.", True),
    Column("rows", "integer", "First dimension.", True),
    Column("cols", "integer", "Product of the other dimensions; 1 of a vector.", True),
    Column(
        "rank",
        "integer",
        "Singular values above 1e-6 of the largest, not clamped. Empty where the method cannot "
        "know it, and where elements are not finite.",
    ),
    Column("mean", "number", "Mean of the finite elements, summed in float64."),
    Column("std", "number", "Their standard deviation, of the population."),
    Column("var", "number", "Their variance, of the population."),
    Column("sparsity", "number", "Share of all elements with |x| <= zero_epsilon, 0..1.", True),
    Column("dtype", "text", "Type of the stored elements, as `bfloat16`, `Q4_K`, `nf4 bitsandbytes`.", True),
    Column("created_at", "text", "When the row was computed: UTC, ISO 8601.", True),
    Column("device", "text", "What computed it: `cpu`.", True),
    Column(
        "framework",
        "text",
        "What wrote the file, as it says itself (`pt`, …), or `safetensors`, `gguf`, `npz`.",
        True,
    ),
    Column("code_version", "text", "Version of asysi.", True),
    Column("kind", "text", "`weight`, `bias`, or the last part of the name.", True),
    Column("expert", "integer", "Number of the expert."),
    Column("file", "text", "File of the checkpoint that holds it.", True),
    Column(
        "form",
        "text",
        "`weights`; `dequantised`: statistics of the values that the codes represent; or `stored form, not "
        "weights`: statistics of codes, scales or zero points, if no installed package can dequantise them.",
        True,
    ),
    Column("dequantised_by", "text", "Package and version that undid the quantisation."),
    Column("elements", "integer", "Elements.", True),
    Column("bytes", "integer", "Bytes of the elements as stored, with their scales.", True),
    Column("tensor_hash", "text", "XXH3-128 of those bytes; empty with `--stats basic`."),
    Column("zero_epsilon", "number", "The threshold of `sparsity`.", True),
    Column("finite", "integer", "Finite elements.", True),
    Column("nans", "integer", "NaNs.", True),
    Column("infinities", "integer", "Infinities.", True),
    Column("zeros", "integer", "Exact zeros.", True),
    Column("near_zeros", "integer", "Elements with |x| <= zero_epsilon.", True),
    Column(
        "near_zeros_rms",
        "integer",
        "Elements with |x| <= 1e-3 · rms; within a bin of the histogram for types wider than 16 bits.",
    ),
    Column(
        "subnormals",
        "integer",
        "Elements below the smallest normal number of the type, zeros left out.",
    ),
    Column("rms", "number", "Root mean square."),
    Column("min", "number", "Smallest finite element."),
    Column("max", "number", "Largest finite element."),
    Column("q001", "number", "Quantile 0.1 %, linear between order statistics."),
    Column("q01", "number", "Quantile 1 %."),
    Column("q05", "number", "Quantile 5 %."),
    Column("q25", "number", "Quantile 25 %."),
    Column("median", "number", "Quantile 50 %."),
    Column("q75", "number", "Quantile 75 %."),
    Column("q95", "number", "Quantile 95 %."),
    Column("q99", "number", "Quantile 99 %."),
    Column("q999", "number", "Quantile 99.9 %."),
    Column(
        "quantiles_exact",
        "boolean",
        "Whether the quantiles are exact: of types of at most 16 bits; others are within 0.8 %.",
    ),
    Column("frobenius", "number", "Frobenius norm of the finite elements."),
    Column(
        "method",
        "text",
        "How singular values were found: `svd`, `gram`, `randomized`, `vector`, or `none`.",
        True,
    ),
    Column(
        "exact",
        "boolean",
        "Whether all singular values were computed; else they are lower bounds of the largest.",
    ),
    Column("k", "integer", "How many singular values were found."),
    Column("seed", "integer", "Seed of the randomized method."),
    Column("rank_f32tol", "integer", "Singular values above `tolerance`."),
    Column(
        "tolerance",
        "number",
        "σmax · max(rows, cols) · ε of float32: numpy's rule with float32's ε.",
    ),
    Column(
        "rank_noise",
        "integer",
        "Singular values above `noise_floor`: those not explained by rounding to the stored type.",
    ),
    Column(
        "noise_floor", "number", "1.02 · √(mean(ulp²) / 12) · (√rows · column spread + √cols · row spread)."
    ),
    Column("sigma_max", "number", "Largest singular value."),
    Column("sigma_min", "number", "Smallest, where all were computed."),
    Column("top_singular_values", "text", "The 8 largest, as JSON."),
    Column("stable_rank", "number", "‖W‖F² / σmax²; an upper bound where not exact."),
    Column("effective_rank", "number", "exp of the entropy of σ / Σσ."),
    Column("captured_energy", "number", "Share of ‖W‖F² in the singular values found."),
    Column("alpha", "number", "Exponent of a power law at the upper end of the eigenvalues σ²."),
    Column("alpha_ks", "number", "Kolmogorov-Smirnov distance of that fit."),
    Column("alpha_xmin", "number", "Eigenvalue from which it holds."),
    Column("alpha_tail", "integer", "Eigenvalues above that."),
    Column("spectrum", "text", "Up to 48 pairs of number and singular value, as JSON."),
    Column("note", "text", "What could not be computed, and why."),
    Column("seconds", "number", "Time it took.", True),
)

ORIGINAL = 16
"""Number of leading columns that come from the original design."""
NAMES = tuple(column.name for column in COLUMNS)
QUANTILE_NAMES = ("q001", "q01", "q05", "q25", "median", "q75", "q95", "q99", "q999")
"""In the order of `asysi.weights.statistics.streaming_statistics.QUANTILES`."""
