"""The spec of a `ScanExperiment`: the single source of the CRD, the reference page and the help.

The docstring below a field is its only description. Fields whose feature is not implemented yet are listed in
`asysi.contract.available` and rejected by name.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.alias_generators import to_camel

from asysi.contract.quantity import Memory

API_VERSION: Final = "asysi.dev/v1alpha1"
KIND: Final = "ScanExperiment"

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?$", max_length=52)]
"""A DNS label, short enough for the names derived from it."""
Glob = Annotated[str, Field(min_length=1, max_length=191)]
Uri = Annotated[str, Field(min_length=1, max_length=1024)]
Short = Annotated[str, Field(min_length=1, max_length=253)]
FreeForm = Annotated[dict[str, Any], Field(max_length=256)]
_SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
OBJECT_NAME = f"^{_SUBDOMAIN}$"
LABEL_NAME = f"^({_SUBDOMAIN}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?$"
LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
ObjectName = Annotated[str, Field(pattern=OBJECT_NAME, max_length=253)]
"""A Kubernetes object name."""
LabelName = Annotated[str, Field(pattern=LABEL_NAME, max_length=253)]
"""The key of a label or a taint."""
LabelValue = Annotated[str, Field(pattern=LABEL_VALUE, max_length=63)]
Labels = Annotated[dict[LabelName, LabelValue], Field(max_length=64)]


OutputPath = Annotated[
    str, Field(pattern=r"^(\.|[A-Za-z0-9_][-._A-Za-z0-9]*(/[A-Za-z0-9_][-._A-Za-z0-9]*)*)$", max_length=253)
]
"""A relative path that stays within its folder: no component begins with a dot."""


class Part(BaseModel):
    """A part of the spec: camelCase in files, snake_case in Python, rejects unknown keys, immutable.

    Strict, like the API server: the string "8" is not a number, `yes` is not a count.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        validate_default=True,
    )


VARIABLE = r"^[A-Za-z_][-._A-Za-z0-9]*$"
"""Names that are valid both as a key of a Secret and as an environment variable."""


class SecretRef(Part):
    """Reference to a Secret in the experiment's namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: Annotated[str, Field(pattern=VARIABLE, max_length=253)] | None = None
    """Key within the Secret, set as the environment variable of that name; if unset, all keys are set."""


class Model(Part):
    """The model to observe."""

    uri: Uri
    """Location of the model: `hf://owner/name`, `file://folder` (a Hugging Face folder with safetensors),
    `file://model.gguf` (a GGUF file with an architecture supported by transformers; dequantised on loading)
    or `python://package.module:factory` (a function that returns the module, or the module and its
    tokenizer). The function is called without arguments, or with `device=` if it has that parameter: `meta`
    for the model's structure only, otherwise the device on which the model runs."""
    revision: Short | None = None
    """Git revision of a `hf://` model: a branch, a tag or a commit."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the loaded weights."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)] | None = None
    """Expected SHA-256 of the weights: of a single safetensors or GGUF file, or of the concatenated
    hexadecimal digests of several files, sorted by name."""
    tokenizer: Uri | None = None
    """Folder, GGUF file or `hf://` name of the tokenizer; unset uses the model's own."""
    secret_ref: SecretRef | None = None
    """Secret with the credentials for the model's source, such as a key `HF_TOKEN`: set as environment
    variables of prepare, which downloads the model, and of no other container. A local run uses its own
    environment."""


class Tokens(Part):
    """How text is tokenised, and which tokens are data."""

    text_field: Short = "text"
    """Field of a row that contains its text."""
    context_length: Annotated[int, Field(ge=8, le=1_048_576)] = 128
    """Maximum number of tokens per sequence, including special tokens; longer documents are truncated."""
    packing: Literal["none", "bucket", "concat"] = "bucket"
    """`none` reads documents in order, `bucket` batches documents of similar length (less padding, same
    tokens), `concat` concatenates documents into full sequences, with the separator token between
    documents."""
    prepend_bos: bool | None = None
    """Whether sequences begin with the BOS token, or CLS if the tokenizer has no BOS; unset follows the
    tokenizer's default."""
    chat_template: bool = False
    """Whether rows contain `messages` (or another field that `textField` names), a list of `role` and
    `content`, to format with the tokenizer's chat template. It writes the special tokens; none are added."""
    separator_token: Short | None = None
    """Token between documents with `packing: concat`; unset uses the tokenizer's EOS or SEP token."""
    exclude_tokens: Annotated[list[Short], Field(max_length=64)] = ["special", "padding"]
    """Tokens that are never data: the groups `special` and `padding`, or individual tokens by their text."""
    special_tokens_in_text: Literal["tokens", "text"] = "tokens"
    """How to treat text that spells a special token, such as `<|endoftext|>` in a page about language models:
    `tokens` reads it as that token, the default of tokenizers, so that `excludeTokens` decides whether it is
    data; `text` reads it as ordinary text. Occurrences are counted in both cases."""
    max_norm_multiple: Annotated[float, Field(gt=1, le=10_000)] | None = None
    """Excludes tokens whose activation norm exceeds this multiple of the hook point's running median from
    training and evaluation of autoencoders. They are counted per hook point and kept in the archive. 10 is a
    common value if the first position of a sequence holds most of the variance."""


class Holdout(Part):
    """Documents that are never trained on."""

    share: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Share of the distinct documents to hold out."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of the hash that selects them; whether a document is held out depends only on its text, the share
    and this seed."""


PipelineName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", max_length=128)]
"""Up to 128 letters, digits, dots, `_` and `-`."""
OnError = Literal["fail", "dead_letter"]
Budget = Annotated[dict[Short, Annotated[float, Field(gt=0, le=1e15)]], Field(max_length=64)]
Few = Annotated[int, Field(ge=1, le=1024)]


class PipelineWriter(Part):
    """How output rows are written to disk."""

    async_mode: bool = True
    """Whether a separate thread writes rows while computation continues."""
    queue_size: Annotated[int, Field(ge=1, le=10_000_000)] = 20_000
    """Maximum number of rows waiting to be written; computation blocks when it is reached."""
    flush_batch_size: Annotated[int, Field(ge=1, le=10_000_000)] = 500
    """Rows to collect before writing."""
    flush_interval: Annotated[float, Field(gt=0, le=3600)] = 1.0
    """Seconds after which fewer rows are written."""
    retry_interval: Annotated[float, Field(gt=0, le=60)] = 0.1
    """Maximum seconds that the writer thread sleeps before checking its queue."""
    fsync: bool = True
    """Whether each commit calls fsync on rows and ledger. If false, they survive a killed process but not a
    machine failure; resuming is exact in both cases."""


class PipelineNode(Part):
    """One node: an operator and how it runs."""

    operator: Short
    """Name of the operator, or `module:Class`."""
    params: FreeForm = {}
    """Parameters of the operator."""
    name: PipelineName | None = None
    """Name of the node in files, logs and the ledger; unset derives it from its index and operator."""
    parallel_size: Few | None = None
    """Batches processed concurrently by threads; unset uses the pipeline's value."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Source rows per batch; unset uses the pipeline's value."""
    processes: Few | None = None
    """Worker processes, fed by one reader; unset uses the pipeline's value."""
    output_uri: Uri | None = None
    """Output of the node; unset keeps its rows in the pipeline's folder. In an experiment, relative paths are
    relative to that folder, and the last operator must write JSON Lines, which the model reads."""
    on_error: OnError | None = None
    """How to handle a row that cannot be processed; unset uses the pipeline's value."""
    writer: PipelineWriter | None = None
    """How the node writes; unset uses the pipeline's value."""


class Pipeline(Part):
    """Operators over rows, and how they run."""

    operators: Annotated[list[PipelineNode], Field(min_length=1, max_length=64)]
    """Nodes in processing order."""
    streaming: bool = False
    """Whether all nodes run concurrently, each on the rows committed by the previous node."""
    parallel_size: Few = 1
    """Batches processed concurrently by threads in each node; for I/O-bound operators."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 1
    """Source rows per batch."""
    processes: Few = 1
    """Worker processes of each node, fed by one reader; for CPU-bound operators."""
    shards: Few = 1
    """Number of shards of the input, split by byte ranges of its files. Each is run by a process with its own
    ledger, and the outputs are merged; for inputs too large for a single reader."""
    writer: PipelineWriter = PipelineWriter()
    """How nodes write."""
    on_error: OnError = "fail"
    """`fail` stops the run at the first row that cannot be processed; `dead_letter` stores such rows for
    `asysi pipeline redrive`."""
    max_dead_letters: Annotated[int, Field(ge=0, le=100_000_000)] = 1000
    """Maximum number of dead letters per node before the run fails."""
    budget: Budget = {}
    """Limits by name of the usage that operators report (`cost`, `total_tokens`); the run stops cleanly when
    one is reached. Limits are divided among shards."""


class DataPipeline(Pipeline):
    """A data pipeline that runs before the experiment; on a cluster in its own Job, one pod per shard."""

    parallelism: Few | None = None
    """Maximum number of shards that run concurrently on a cluster; unset runs all."""
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    """CPUs per shard; whole CPUs are pinned if the node supports it."""
    memory: Memory = "1Gi"
    """Memory per shard."""
    secret_refs: Annotated[list[SecretRef], Field(max_length=16)] = []
    """Secrets with credentials for endpoints and stores, set as environment variables of the operators. A
    local run uses its own environment."""


class Data(Part):
    """The data that the model reads."""

    uri: Uri
    """Location of the rows: `jsonl://` (one JSON object per line), `csv://` or `parquet://` followed by a
    path, a glob or any fsspec URL, as in `csv://s3://bucket/rows.csv`; `datasets://` followed by a folder of
    `Dataset.save_to_disk`; or the URL of a store whose ending says what it holds, as in
    `s3://bucket/rows.parquet`."""
    tokens: Tokens = Tokens()
    """How text is tokenised, and which tokens are data."""
    holdout: Holdout = Holdout()
    """Documents that are never trained on."""
    pipeline: DataPipeline | None = None
    """A data pipeline that processes the rows of `uri`; the model reads its output, which is kept in
    `pipeline/` of the output folder."""


class Input(Part):
    """A volume that the experiment reads from."""

    claim: ObjectName
    """Existing PersistentVolumeClaim, mounted read-only at `/inputs/<claim>` in prepare, host and finish; use
    `file:///inputs/<claim>/model` or `jsonl:///inputs/<claim>/text.jsonl`."""


class Scan(Part):
    """Runs the model over the data."""

    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Sequences per step."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of distinct documents to read; unset reads all."""
    passes: Annotated[int, Field(ge=1, le=10_000)] = 1
    """How many times the training documents are read; each held-out document is read once, with an equal
    share of them in every pass."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of the order of batches and of the token sampling."""
    loss: Annotated[str, Field(max_length=256)] = "none"
    """Loss that is differentiated in each step, for `capture.kinds: [activations, gradients]`. `none` runs
    forward only, and no further than the last hook point needs. `lm` is the mean cross-entropy in nats of the
    next token over all tokens that are not padding; `module` is the loss that the model itself computes from
    `labels` (the tokens, -100 for padding); `python://package.module:function` is called with the output of
    the forward and a dictionary of its inputs, and returns a tensor with one element."""


class Train(Part):
    """Trains the model of a training project, whose folder `model.uri` names: `file://./project`."""

    config: Short = "config.yaml"
    """Configuration of the project, relative to its folder."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Samples of an optimiser step; it takes the place of the configuration's `train.batch_size`."""
    length: Annotated[int, Field(ge=1, le=65_536)] = 1
    """Rows of a sample at a hook point: the tokens of a text, or 1 where a sample is one row."""
    epochs: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Passes over the training rows; unset takes the configuration's `train.epochs`."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of the training and of the token sampling."""
    holdout: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Share of the samples whose rows no SAE is trained on; the model itself is trained on them."""


class Custom(Part):
    """The user's own program with capture injected."""

    image: Short
    """Container image."""
    command: Annotated[list[Short], Field(min_length=1, max_length=64)]
    """Command that starts the program."""


class Workload(Part):
    """The program that runs the model: exactly one of these fields."""

    scan: Scan | None = None
    """Runs the model over the data."""
    train: Train | None = None
    """Trains the model of a training project."""
    ppo: FreeForm | None = None
    """Trains the model with PPO."""
    custom: Custom | None = None
    """Runs the user's own program with capture injected."""


class Positions(Part):
    """Which positions of a sequence are captured."""

    mode: Literal["all", "last", "random"] = "all"
    """`all` positions, the `last` content token of a sequence, or `random` positions."""
    count: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Positions per sequence with `mode: random`."""


class Sampling(Part):
    """How many tokens to keep if consumers are slower than the model."""

    rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Maximum share of tokens to keep; lowered automatically if consumers are too slow."""
    min_rate: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Minimum share of tokens to keep."""
    unit: Literal["token", "step"] = "token"
    """Unit of sampling: individual tokens or whole steps."""


class Capture(Part):
    """What to capture from the model."""

    hook_points: Annotated[list[Glob], Field(min_length=1, max_length=256)]
    """Globs on the paths of `named_modules()`: `*` stops at a dot, `**` crosses dots, `?` is one
    character. TransformerLens names such as `blocks.*.hook_resid_post` can be used if `asysi check` shows
    them as aliases. A module called several times per forward pass produces one row per token and call; `#n`
    after a glob selects only the n-th call, from 0, as a separate hook point."""
    parameters: Annotated[list[Glob], Field(max_length=256)] = []
    """Globs on the names of `named_parameters()`, as for hook points, for `kinds: [..., parameterGradients]`;
    empty takes every parameter that requires a gradient. Each has one record per step: statistics of its
    gradient."""
    kinds: Annotated[
        list[Literal["activations", "gradients", "parameterGradients"]], Field(min_length=1, max_length=3)
    ] = ["activations"]
    """What to capture at a hook point. `gradients` are those of the loss with respect to the activations, for
    the same tokens, in float32 and with any loss scale divided out; they need a loss (`workload.scan.loss`,
    or a workload that trains), and double the rows of a step. Each row that has both gets ⟨a, g⟩ and
    ΔSC = −⟨a − ā, g⟩ in the archive, with the mean ā of all activations so far. `parameterGradients` are
    those of `parameters`."""
    positions: Positions = Positions()
    """Which positions of a sequence are captured."""
    sampling: Sampling = Sampling()
    """How many tokens to keep if consumers are slower than the model."""
    quantization: Literal["none", "bf16", "fp8", "int8"] = "bf16"
    """How activations travel on the bus and into the archive; gradients travel as they are. bf16 is at most
    1/256 of a value off; fp8 (E4M3 with a scale per row) 1/16 of it, or 1/1024 of the scale near 0; int8 half
    a scale of its channel. Under int8 the first 4,096 rows of a hook point travel as bf16, then mean and
    scale of each channel are frozen; values outside that range are stored as its end and counted."""
    size: Memory = "64Mi"
    """Memory of the capture ring per rank; must hold at least one whole step."""


class Redis(Part):
    """The Redis of CONSUMER mode."""

    url: Uri | None = None
    """Address of an existing Redis."""
    secret_ref: SecretRef | None = None
    """Secret with the address."""
    managed: bool = False
    """Whether the operator runs a Redis for this experiment."""


class Bus(Part):
    """The ring or queue between the hook and the consumers."""

    shards: Annotated[int, Field(ge=1, le=64)] = 2
    """Independent rings; a hook point always uses the same one."""
    size: Memory = "128Mi"
    """Total memory of all shards."""
    redis: Redis | None = None
    """The Redis of CONSUMER mode."""


class Buffer(Part):
    """The mixing buffer: rows leave it in random order."""

    batches: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Minimum capacity in batches."""
    sequences: Annotated[int, Field(ge=1, le=1_048_576)] = 1000
    """Minimum capacity in sequences; the larger of the two minimums applies."""
    memory: Memory = "256Mi"
    """Memory limit of all mixing buffers of a trainer; takes precedence over both minimums."""


class AuxK(Part):
    """The auxiliary loss that revives dead latents (Gao et al. 2024, arXiv 2406.04093, appendix A.2)."""

    k: Annotated[int, Field(ge=0, le=65_536)] | None = None
    """Number of dead latents that reconstruct the residual; unset uses half the activation width; 0 disables
    the loss."""
    coefficient: Annotated[float, Field(ge=0, le=1)] = 1 / 32
    """Weight of the auxiliary loss."""
    dead_after: Annotated[int, Field(ge=1)] = 20_000
    """Tokens without firing after which a latent counts as dead."""


class Resample(Part):
    """Resampling of dead latents (Bricken et al. 2023, Towards Monosemanticity, appendix)."""

    every: Annotated[int, Field(ge=1)] | None = None
    """Tokens between two resamplings; unset disables it. A latent that is dead then takes the direction of a
    row of the batch, drawn with a probability proportional to its squared error to the power of two, and
    its optimiser moments are reset."""
    scale: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Norm of its encoder weights, relative to the mean norm of the latents that are alive."""


class Decoder(Part):
    """Constraints of the decoder."""

    norm: Literal["unit", "free"] = "unit"
    """`unit` scales every row of the decoder to norm 1 after each step. Under `free`, penalties weight a
    latent by the norm of its row, and a trained norm is kept in the export."""
    project: bool = True
    """Whether to remove the part of the gradient that the constraint would undo; no effect under `free`."""


class SaeSchedule(Part):
    """Schedules of the learning rate and of the sparsity."""

    lr_warm_up: Annotated[int, Field(ge=0)] | None = None
    """Tokens over which the learning rate rises linearly; unset uses 200 batches, but at most a tenth of the
    run if its length is known."""
    lr_decay: Annotated[int, Field(ge=0)] | None = None
    """Tokens before the end over which the learning rate falls linearly; unset: it falls from the beginning;
    0: it does not fall. No effect while the run's length is unknown."""
    lr_end: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Learning rate at the end, relative to its peak."""
    sparsity_warm_up: Annotated[int, Field(ge=0)] = 0
    """Tokens over which sparsity is introduced linearly: the weight of an L1 or L0 penalty rises from 0, and
    the number of latents that fire falls from the activation width to `k`."""


class StandardSettings(Part):
    """Settings of `variant: standard` (Bricken et al. 2023): ReLU and an L1 penalty."""

    l1_coefficient: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Weight of the sum of a row's latents, each times the norm of its decoder row, against the row's squared
    error; activations have a mean norm of sqrt(width) under `normalisation: expectedNorm`."""


class GatedSettings(Part):
    """Settings of `variant: gated` (Rajamanoharan et al. 2024, arXiv 2404.16014)."""

    l1_coefficient: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Weight of the sum of a row's rectified gates, each times the norm of its decoder row, against the row's
    squared error."""


class BatchTopkSettings(Part):
    """Settings of `variant: batchtopk` (Bussmann et al. 2024, arXiv 2412.06410)."""

    topk_threshold_lr: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Rate of the running mean of the smallest latent that fires in a batch. The mean is the threshold above
    which a latent fires outside of training."""


class MatryoshkaSettings(Part):
    """Settings of `variant: matryoshka`: nested BatchTopK (Bussmann et al. 2025, arXiv 2503.17547)."""

    widths: (
        Annotated[list[Annotated[int, Field(ge=1, le=1_048_576)]], Field(min_length=1, max_length=32)] | None
    ) = None
    """Numbers of latents of the nested autoencoders, ascending, at most `latents`; the whole autoencoder is
    added where it is missing. Unset uses 1/16, 1/8, 1/4 and 1/2 of the latents and all of them."""
    topk_threshold_lr: Annotated[float, Field(gt=0, le=1)] = 0.01
    """As `batchtopk.topkThresholdLr`."""


class JumpReluSettings(Part):
    """Settings of `variant: jumprelu` (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

    init_threshold: Annotated[float, Field(ge=0, le=1000)] = 0.01
    """Threshold of every latent at the beginning."""
    bandwidth: Annotated[float, Field(gt=0, le=1000)] = 0.05
    """Width of the window around a threshold in which preactivations contribute to its gradient (a
    straight-through estimator)."""
    sparsity_loss_mode: Literal["step", "tanh", "quadratic"] = "step"
    """Penalty of a row: `step` is its L0; `tanh` the sum of tanh(tanhScale × latent × norm of its decoder
    row); `quadratic` is 2 / targetL0 × (L0 - targetL0)²."""
    l0_coefficient: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Weight of the penalty against a row's squared error."""
    target_l0: Annotated[float, Field(gt=0, le=65_536)] = 32.0
    """Mean number of latents that fire, for `quadratic`."""
    tanh_scale: Annotated[float, Field(gt=0, le=1000)] = 4.0
    """Steepness, for `tanh`."""
    ste_to_input: bool = False
    """Whether the estimator also gives the preactivations, and so the encoder, a gradient."""
    pre_act_loss_coefficient: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight of a penalty on how far dead latents are below their thresholds; 0 disables it."""


class Grid(Part):
    """Several autoencoders instead of one: each combination of the given values. An empty list stands for the
    trainer's own value."""

    k: Annotated[list[Annotated[int, Field(ge=1, le=65_536)]], Field(max_length=16)] = []
    """Values of `k`."""
    latents: Annotated[list[Annotated[int, Field(ge=2, le=1_048_576)]], Field(max_length=16)] = []
    """Values of `latents`."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(max_length=16)] = []
    """Values of `seed`, for the initial weights; the order of the rows always follows the first one."""


class Stop(Part):
    """When to stop training before the end of the stream."""

    tokens: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of tokens to train on."""
    fvu: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Held-out FVU at which training stops."""


class SaeTrain(Part):
    """A trainer with one sparse autoencoder per hook point."""

    name: Name = "topk"
    """Name of the trainer and of its folder in the output."""
    hook_points: Annotated[list[Glob], Field(min_length=1, max_length=256)] = ["**"]
    """Globs on the paths of the captured hook points."""
    variant: Literal["topk", "batchtopk", "jumprelu", "gated", "standard", "matryoshka"] = "topk"
    """Kind of autoencoder; its own settings are in the field of its name."""
    latents: Annotated[int, Field(ge=2, le=1_048_576)] = 1024
    """Number of latents."""
    k: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Number of latents that fire per token: at most with `topk`, on average with `batchtopk` and
    `matryoshka`; no effect with others."""
    lr: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate of Adam. Unset uses 2e-3 / sqrt(latents / 16384) if the run's length is known, as it
    then decays linearly to 0, and a tenth of that otherwise."""
    batch: Annotated[int, Field(ge=1, le=1_048_576)] = 512
    """Rows per training step."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of the initial weights and of the mixing buffer."""
    buffer: Buffer = Buffer()
    """The mixing buffer: rows leave it in random order."""
    normalisation: Literal["none", "expectedNorm"] = "expectedNorm"
    """`expectedNorm` scales activations to a mean norm of sqrt(width); the factor is estimated on the first
    tokens, then frozen, and folded into the weights at export."""
    auxk: AuxK = AuxK()
    """The auxiliary loss that revives dead latents."""
    resample: Resample = Resample()
    """Resampling of dead latents."""
    schedule: SaeSchedule = SaeSchedule()
    """Schedules of the learning rate and of the sparsity."""
    decoder: Decoder = Decoder()
    """Constraints of the decoder."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of a running mean of the parameters, which is then evaluated and exported instead of
    the last ones; unset disables it."""
    standard: StandardSettings = StandardSettings()
    """Settings of `variant: standard`."""
    gated: GatedSettings = GatedSettings()
    """Settings of `variant: gated`."""
    batchtopk: BatchTopkSettings = BatchTopkSettings()
    """Settings of `variant: batchtopk`."""
    jumprelu: JumpReluSettings = JumpReluSettings()
    """Settings of `variant: jumprelu`."""
    matryoshka: MatryoshkaSettings = MatryoshkaSettings()
    """Settings of `variant: matryoshka`."""
    grid: Grid = Grid()
    """Several autoencoders per hook point that share stream, mixing buffer and order of rows. Each has its
    own folder, named after the trainer and its values: `topk-k16-latents1024-seed0`."""
    stop: Stop = Stop()
    """When to stop training before the end of the stream. With a grid, `fvu` must be met by all."""
    checkpoint_seconds: Annotated[int, Field(ge=1, le=86_400)] = 15
    """Seconds between checkpoints."""


_RESOURCE = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
ResourceName = Annotated[str, Field(pattern=_RESOURCE, max_length=253)]
"""An extended resource of a cluster's nodes: `nvidia.com/gpu`."""


class Sae(Part):
    """Training of sparse autoencoders on the live stream."""

    enabled: bool = True
    """Whether to train autoencoders; false is equivalent to `sae: null`, which `kubectl apply` drops."""
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    """CPUs of the container; whole CPUs are pinned if the node supports it."""
    memory: Memory = "3Gi"
    """Memory of the container."""
    gpus: Annotated[int, Field(ge=0, le=1)] = 0
    """GPUs of the container. With 1, autoencoders and optimiser lie on it and products are in bfloat16 with
    float32 weights; buffers stay in `memory`. 0 trains on `cpus`."""
    gpu_resource: ResourceName = "nvidia.com/gpu"
    """Resource that the cluster offers that GPU as: `nvidia.com/gpu` is a whole one that no other container
    has, `nvidia.com/gpu.shared` (time slices, MPS) or `nvidia.com/mig-1g.10gb` a part of one, where the
    cluster's device plugin offers it. A local run takes the first device that it sees."""
    train: Annotated[list[SaeTrain], Field(min_length=1, max_length=16)] = [SaeTrain()]
    """Trainers, all reading the same stream."""


class Archive(Part):
    """Writing the stream to `.mscan` files."""

    enabled: bool = True
    """Whether to archive the stream."""
    tensors: bool = True
    """Whether to archive payloads in addition to the metrics of every row."""
    compression: Literal["none", "zstd", "lz4"] = "none"
    """Compression of chunks: lz4 is faster, zstd smaller. Bytes of 16 and 32-bit activations are shuffled
    first."""
    rotate: Memory = "1Gi"
    """Size at which a segment is closed and the next begun."""
    rotate_seconds: Annotated[int, Field(ge=1, le=86_400)] | None = None
    """Age at which a segment is closed and the next begun; unset: only the size counts."""
    max_size: Memory | None = None
    """Disk space of the archive: beyond it the oldest closed segments are deleted, and their rows counted in
    `archive/retired.json`. The newest closed segment always stays, beside the one that is being written.
    Unset keeps everything."""
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    """CPUs of the container; whole CPUs are pinned on a node that can."""
    memory: Memory = "1Gi"
    """Memory of the container."""


class Weights(Part):
    """Analysis of the parameters."""

    enabled: bool = False
    """Whether to analyse the parameters."""
    when: Annotated[list[Literal["before", "after"]], Field(max_length=2)] = ["before", "after"]
    """When to analyse them: before the run, after it, or both."""


class Finish(Part):
    """Analysis after the stream has ended."""

    max_tokens: Annotated[int, Field(ge=256, le=10_000_000)] = 20_000
    """Tokens that the report reads again at most, of the first 50,000 distinct documents, held-out documents
    first. It reads fewer if `maxSeconds` is over before, if these documents have no more, or if their
    activations would take more than a quarter of `resources.finish.memory` (where the host's GPU reads: of
    `resources.host.memory` without `shm`, if that is less). The report says what ended the reading."""
    max_seconds: Annotated[int, Field(ge=1, le=86_400)] = 30
    """Seconds that this reading may take. No forward begins that would end later, and at least one is run;
    the report says how many tokens were read, and why no more."""
    splice_tokens: Annotated[int, Field(ge=0, le=10_000_000)] = 20_000
    """Maximum number of tokens, over all forward passes of a language model, for measuring the next-token
    cross-entropy with each SAE spliced in; 0 disables the measurement."""
    splice_seconds: Annotated[int, Field(ge=1, le=86_400)] = 20
    """Seconds that these forwards may take, on the CPU; fewer documents are read where they would take
    longer."""


class Output(Part):
    """Where to write the results."""

    uri: Uri | None = None
    """Folder of a local run, as a path or `file://folder`; unset uses `runs/<name>`. In a pod, results are
    written to the claim. With `s3://bucket/prefix` they are written to `runs/<name>` or to the claim first,
    and uploaded from there: segments of the archive as soon as they are closed, the rest at the end."""
    claim: ObjectName | None = None
    """Existing PersistentVolumeClaim for the results; unset creates one according to the next four fields."""
    size: Memory = "10Gi"
    """Size of the created claim."""
    storage_class_name: ObjectName | None = None
    """StorageClass of the created claim; unset uses the cluster's default class."""
    access_modes: Annotated[
        list[Literal["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"]], Field(min_length=1, max_length=3)
    ] = ["ReadWriteOnce"]
    """Access modes of the created claim. With `ReadWriteMany`, the shards of a pipeline can run on several
    nodes."""
    when_deleted: Literal["Delete", "Retain"] = "Delete"
    """What happens to the created claim when the experiment is deleted: `Delete` deletes it with all results,
    `Retain` keeps it. An experiment created later with the same name reuses a retained claim and never
    deletes it. Can be changed at any time."""
    path: OutputPath | None = None
    """Folder of the results on the claim, `.` for its root. Unset uses the experiment's name on a named
    claim, so that experiments can share it, and the root of a created claim. In a local run it is relative
    to `uri`, or to `runs`."""
    when_full: Literal["stop", "continue"] = "stop"
    """What the host does when there is no space left for results: `stop` exits with code 1, `continue` runs
    to the end. In both cases the run fails, and existing checkpoints are kept."""
    resume: bool = False
    """Whether to continue an unfinished experiment with the same name and content in that folder although it
    might still be running. Not needed for the experiment's own attempts, or after it was deleted and
    recreated."""
    secret_ref: SecretRef | None = None
    """Secret with the credentials for the store of `uri`, as environment variables like `AWS_ACCESS_KEY_ID`
    and `AWS_SECRET_ACCESS_KEY`, for the containers that upload. A local run uses its own environment."""

    @property
    def store(self) -> str | None:
        """Address in a store to which results are uploaded; None if they stay in a folder."""
        protocol, separator, _ = (self.uri or "").partition("://")
        return (self.uri or "").rstrip("/") if separator and protocol != "file" else None


class Resources(Part):
    """Resources of a container; requests equal limits."""

    cpus: Annotated[float, Field(gt=0, le=1024)] = 0.25
    """CPUs; whole CPUs are pinned if the node supports it."""
    memory: Memory = "1Gi"
    """Memory limit."""


class HostResources(Resources):
    """Resources of the host."""

    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    """CPUs; whole CPUs are pinned if the node supports it."""
    memory: Memory = "4Gi"
    """Memory limit."""
    gpus: Annotated[int, Field(ge=0, le=16)] = 0
    """GPUs."""
    shm: Memory = "64Mi"
    """Size of the host's own /dev/shm."""


class HookResources(Resources):
    """Resources of the hook sidecar."""

    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    """CPUs; whole CPUs are pinned on a node that can, and as many threads convert rows."""


class PrepareResources(Resources):
    """Resources of the init container."""

    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    """CPUs; whole CPUs are pinned if the node supports it."""
    memory: Memory = "2Gi"
    """Memory limit; includes the rings, which are created here."""


class FinishResources(Resources):
    """Resources of the container that writes the ledger and the report."""

    memory: Memory = "2Gi"
    """Memory limit."""


class Binding(Part):
    """Binding of local processes to CPUs."""

    cpus: dict[
        Literal["host", "hook", "sae", "archiver", "prepare", "finish"],
        Annotated[str, Field(pattern=r"^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$", max_length=64)],
    ] = {}
    """CPUs of each container in a local run, as in `taskset -c`: `0`, `0-3`, `1,3`."""
    numa: Annotated[int, Field(ge=0, le=255)] | None = None
    """NUMA node that the rings are bound to."""


class AllResources(Part):
    """Resources of each container."""

    host: HostResources = HostResources()
    """The model's container."""
    hook: HookResources = HookResources()
    """The hook sidecar."""
    prepare: PrepareResources = PrepareResources()
    """The init container that downloads the model and creates the rings; its memory includes the rings."""
    finish: FinishResources = FinishResources()
    """The container that writes the ledger and the report."""
    binding: Binding = Binding()
    """Binding of local processes to CPUs."""
    workspace: Memory = "50Gi"
    """Limit of the node's disk space for the pod's workspace, which stores models downloaded from `hf://`. A
    pod that exceeds it is evicted."""


class Consumers(Part):
    """The consumers of CONSUMER mode."""

    replicas: Annotated[int, Field(ge=1, le=256)] = 1
    """Number of pods that share the streams."""


class Toleration(Part):
    """A toleration of the pod, as in Kubernetes."""

    key: LabelName | None = None
    """Key of the taint; unset matches every key, with `operator: Exists`."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Relationship of key and value: `Exists` matches any value."""
    value: LabelValue | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; unset matches all."""
    toleration_seconds: Annotated[int, Field(ge=0)] | None = None
    """Seconds that the pod stays bound after a NoExecute taint is added; unset means forever."""


class Requirement(Part):
    """A requirement on a label, as in Kubernetes."""

    key: LabelName
    """Key of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How the label's value is compared with `values`."""
    values: Annotated[list[LabelValue], Field(max_length=32)] = []
    """Values for `In` and `NotIn`; none for the others."""


class NodeRequirement(Part):
    """A requirement on a node's label, as in Kubernetes."""

    key: LabelName
    """Key of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How the label's value is compared with `values`."""
    values: Annotated[list[LabelValue], Field(max_length=32)] = []
    """Values for `In` and `NotIn`, one integer for `Gt` and `Lt`, none for the others."""


class LabelSelector(Part):
    """Selects pods in the namespace by their labels."""

    match_labels: Labels = {}
    """Labels that a pod must have."""
    match_expressions: Annotated[list[Requirement], Field(max_length=16)] = []
    """Further requirements on its labels."""


class NodeTerm(Part):
    """Nodes whose labels meet every requirement."""

    match_expressions: Annotated[list[NodeRequirement], Field(min_length=1, max_length=16)]
    """The requirements."""


class PreferredNodes(Part):
    """Preferred nodes."""

    weight: Annotated[int, Field(ge=1, le=100)]
    """Weight of the preference."""
    preference: NodeTerm
    """The preferred nodes."""


class RequiredNodes(Part):
    """Required nodes."""

    node_selector_terms: Annotated[list[NodeTerm], Field(min_length=1, max_length=8)]
    """Terms of which a node must match at least one."""


class NodeAffinity(Part):
    """Nodes on which the pod can run, and preferred nodes."""

    required_during_scheduling_ignored_during_execution: RequiredNodes | None = None
    """Nodes on which the pod can run."""
    preferred_during_scheduling_ignored_during_execution: Annotated[
        list[PreferredNodes], Field(max_length=8)
    ] = []
    """Preferred nodes."""


class PodTerm(Part):
    """Pods in the namespace, and the topology domain that they share."""

    label_selector: LabelSelector
    """The pods."""
    topology_key: LabelName
    """Node label such as `kubernetes.io/hostname`; nodes with the same value form one topology domain."""


class PreferredPods(Part):
    """Pods to prefer being close to, or away from."""

    weight: Annotated[int, Field(ge=1, le=100)]
    """Weight of the preference."""
    pod_affinity_term: PodTerm
    """The pods."""


class PodAffinity(Part):
    """Pods to be scheduled close to, or away from."""

    required_during_scheduling_ignored_during_execution: Annotated[list[PodTerm], Field(max_length=8)] = []
    """Terms that must be met."""
    preferred_during_scheduling_ignored_during_execution: Annotated[
        list[PreferredPods], Field(max_length=8)
    ] = []
    """Terms that should be met."""


class Affinity(Part):
    """Affinity of the pod to nodes and other pods, as in Kubernetes."""

    node_affinity: NodeAffinity | None = None
    """Affinity to nodes."""
    pod_affinity: PodAffinity | None = None
    """Pods to be scheduled close to."""
    pod_anti_affinity: PodAffinity | None = None
    """Pods to be scheduled away from."""


class TopologySpread(Part):
    """How pods spread over topology domains, as in Kubernetes."""

    max_skew: Annotated[int, Field(ge=1, le=1000)]
    """Maximum difference in the number of pods between two topology domains."""
    topology_key: LabelName
    """Node label; nodes with the same value form one topology domain."""
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    """What to do with a pod that does not satisfy the constraint."""
    label_selector: LabelSelector
    """Pods that are counted."""


class ObjectRef(Part):
    """Reference to an object in the experiment's namespace."""

    name: ObjectName
    """Name of the object."""


class Scheduling(Part):
    """Scheduling constraints and identity of the pod."""

    node_selector: Labels = {}
    """Labels that the node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = []
    """Taints that the pod tolerates."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pod."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pod."""
    queue_name: Annotated[str, Field(pattern=OBJECT_NAME, max_length=63)] | None = None
    """LocalQueue of Kueue; equivalent to the label `kueue.x-k8s.io/queue-name` on the experiment."""
    service_account_name: ObjectName | None = None
    """ServiceAccount of the pods, for workload identity in a cloud; must be allowed in the operator's
    settings. Pods never mount an API token. Unset uses the namespace's `default`."""
    image_pull_secrets: Annotated[list[ObjectRef], Field(max_length=16)] = []
    """Secrets for pulling images."""
    affinity: Affinity | None = None
    """Affinity of the pod to nodes and other pods."""
    topology_spread_constraints: Annotated[list[TopologySpread], Field(max_length=8)] = []
    """How pods spread over zones or nodes."""


class Lifecycle(Part):
    """Deadlines, restarts and cleanup."""

    suspend: bool = False
    """Whether the experiment is suspended."""
    active_deadline_seconds: Annotated[int, Field(ge=1)] | None = None
    """Seconds after which a running experiment fails; a preceding pipeline has the same deadline of its
    own."""
    start_deadline_seconds: Annotated[int, Field(ge=1)] | None = None
    """Seconds after which an experiment that has not started fails."""
    max_restarts: Annotated[int, Field(ge=0, le=100)] = 2
    """Maximum number of new attempts after the host has died."""
    grace_period_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """Seconds for the workers to write their checkpoints after SIGTERM."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0)] | None = None
    """Seconds after which the resources of a finished experiment are deleted: Jobs, pods, configuration,
    network policies. The experiment, its status and its claim are kept; unset keeps everything."""


class Spec(Part):
    """The model to observe, the hook points, and how to process the activations."""

    mode: Literal["HPC", "CONSUMER"] = "HPC"
    """`HPC`: shared-memory ring on one node. `CONSUMER`: pure Python and queues."""
    model: Model
    """The model to observe."""
    data: Data | None = None
    """The data that the model reads."""
    inputs: Annotated[list[Input], Field(max_length=16)] = []
    """Volumes of the cluster with the model or the data. A local run reads files in place; if it has inputs,
    their folders must exist in /inputs."""
    workload: Workload
    """The program that runs the model: exactly one of its fields."""
    capture: Capture
    """What to capture from the model."""
    bus: Bus = Bus()
    """The ring or queue between the hook and the consumers."""
    sae: Sae | None = Sae()
    """Training of sparse autoencoders; null disables it."""
    archive: Archive = Archive()
    """Writing the stream to `.mscan` files."""
    weights: Weights = Weights()
    """Analysis of the parameters."""
    finish: Finish = Finish()
    """Analysis after the stream has ended."""
    output: Output = Output()
    """Where to write the results."""
    resources: AllResources = AllResources()
    """Resources of each container."""
    consumers: Consumers = Consumers()
    """The consumers of CONSUMER mode."""
    scheduling: Scheduling = Scheduling()
    """Scheduling constraints of the pod."""
    lifecycle: Lifecycle = Lifecycle()
    """Deadlines, restarts and cleanup."""

    @field_validator("sae")
    @classmethod
    def _disabled_is_absent(cls, sae: Sae | None) -> Sae | None:
        return sae if sae is not None and sae.enabled else None


class Metadata(Part):
    """The experiment's name and labels."""

    model_config = ConfigDict(extra="ignore")

    name: Name
    """Name of the experiment."""
    namespace: Name = "default"
    """Namespace of the experiment."""
    labels: Labels = {}
    """Labels, copied to all objects created for the experiment; on pods with the prefix `label.asysi.dev/`,
    so that Services that select by these labels do not match the pods."""
    uid: Short | None = None
    """UID assigned by the API server."""


class ScanExperiment(Part):
    """An experiment: the model to observe, the hook points, and how to process the activations."""

    api_version: Literal["asysi.dev/v1alpha1"] = API_VERSION
    """Version of this schema."""
    kind: Literal["ScanExperiment"] = KIND
    """Kind of the object."""
    metadata: Metadata
    """The experiment's name and labels."""
    spec: Spec
    """The model to observe, the hook points, and how to process the activations."""
