"""The spec of a `ScanExperiment`: the one source of the CRD, the reference page and the help.

The docstring under a field is its only description. A field that is declared here but whose feature does not
exist yet is listed in `asysi.contract.available` and refused by name.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.alias_generators import to_camel

from asysi.contract.quantity import Memory

API_VERSION: Final = "asysi.dev/v1alpha1"
KIND: Final = "ScanExperiment"

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?$", max_length=52)]
"""A DNS label, short enough for the names made from it."""
Glob = Annotated[str, Field(min_length=1, max_length=191)]
Uri = Annotated[str, Field(min_length=1, max_length=1024)]
Short = Annotated[str, Field(min_length=1, max_length=253)]
FreeForm = Annotated[dict[str, Any], Field(max_length=256)]
_SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
OBJECT_NAME = f"^{_SUBDOMAIN}$"
LABEL_NAME = f"^({_SUBDOMAIN}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?$"
LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
ObjectName = Annotated[str, Field(pattern=OBJECT_NAME, max_length=253)]
"""A name as Kubernetes' objects have it."""
LabelName = Annotated[str, Field(pattern=LABEL_NAME, max_length=253)]
"""The key of a label or a taint."""
LabelValue = Annotated[str, Field(pattern=LABEL_VALUE, max_length=63)]
Labels = Annotated[dict[LabelName, LabelValue], Field(max_length=64)]


OutputPath = Annotated[
    str, Field(pattern=r"^(\.|[A-Za-z0-9_][-._A-Za-z0-9]*(/[A-Za-z0-9_][-._A-Za-z0-9]*)*)$", max_length=253)
]
"""A relative path that leads nowhere else: no part of it begins with a dot."""


class Part(BaseModel):
    """A part of the spec: camelCase in files, snake_case in Python, unknown keys refused, never changed.

    Strict, because the API server is: the text "8" is not a number, `yes` is not a count.
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
"""Names that both a Secret's key and an environment variable may have."""


class SecretRef(Part):
    """Names a Secret in the experiment's namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: Annotated[str, Field(pattern=VARIABLE, max_length=253)] | None = None
    """Key within the Secret, which becomes the environment variable of that name; without it every key
    does."""


class Model(Part):
    """The model to watch."""

    uri: Uri
    """Where the model comes from: `hf://owner/name`, `file://folder` (a Hugging Face folder with
    safetensors), `file://model.gguf` (one GGUF file of an architecture that transformers reads; dequantised
    when it is loaded) or `python://package.module:factory` (a function that returns the module, or the module
    and its tokenizer). The function is called without arguments, or with `device=` where it has that
    parameter: `meta` for the model's structure alone, else the device that the model runs on."""
    revision: Short | None = None
    """Git revision of a `hf://` model: a branch, a tag or a commit."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type that the weights are loaded in."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)] | None = None
    """SHA-256 that the weights must have: of the one safetensors or GGUF file, or of the concatenated digests
    of several in the order of their names."""
    tokenizer: Uri | None = None
    """Folder, GGUF file or `hf://` name of the tokenizer when it is not the model's own."""
    secret_ref: SecretRef | None = None
    """Secret with the credentials for the model's source."""


class Tokens(Part):
    """How text becomes tokens, and which tokens are data."""

    text_field: Short = "text"
    """Field of a row that holds its text."""
    context_length: Annotated[int, Field(ge=8, le=1_048_576)] = 128
    """Tokens a sequence holds at most, special tokens included; longer documents are cut."""
    packing: Literal["none", "bucket", "concat"] = "bucket"
    """`none` takes documents in order, `bucket` puts documents of similar length into one batch (less
    padding, same tokens), `concat` joins documents to full sequences with the separator token between
    them."""
    prepend_bos: bool | None = None
    """Whether sequences begin with the BOS token, or CLS where the tokenizer has no BOS; unset does what the
    tokenizer itself does."""
    chat_template: bool = False
    """Whether rows hold `messages` that the tokenizer's chat template turns into text."""
    separator_token: Short | None = None
    """Token between documents under `packing: concat`; unset takes the tokenizer's EOS or SEP token."""
    exclude_tokens: Annotated[list[Short], Field(max_length=64)] = ["special", "padding"]
    """Tokens that are never data: the groups `special` and `padding`, or tokens by their text."""
    special_tokens_in_text: Literal["tokens", "text"] = "tokens"
    """What becomes of text that spells a special token, as `<|endoftext|>` in a page about language models:
    `tokens` reads it as that token, as tokenizers do, so that it is data only where `excludeTokens` says so;
    `text` reads it as ordinary text. Either way it is counted."""
    max_norm_multiple: Annotated[float, Field(gt=1, le=10_000)] | None = None
    """Leaves out tokens whose activation norm exceeds this multiple of the hook point's running median: no
    autoencoder is trained or measured on them. They are counted for each hook point, and the archive keeps
    them. 10 is a usual value where the first position of a sequence holds most of the variance."""


class Holdout(Part):
    """Documents that are never trained on."""

    share: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Share of the distinct documents that is held out."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of the hash that chooses them: a document's fate depends on its text and this seed alone."""


PipelineName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", max_length=128)]
"""Up to 128 letters, digits, dots, `_` and `-`."""
OnError = Literal["fail", "dead_letter"]
Budget = Annotated[dict[Short, Annotated[float, Field(gt=0, le=1e15)]], Field(max_length=64)]
Few = Annotated[int, Field(ge=1, le=1024)]


class PipelineWriter(Part):
    """How computed rows reach the disk."""

    async_mode: bool = True
    """Whether a thread of its own writes, so that computing goes on meanwhile."""
    queue_size: Annotated[int, Field(ge=1, le=10_000_000)] = 20_000
    """Computed rows that may wait for the disk; beyond it, computing waits."""
    flush_batch_size: Annotated[int, Field(ge=1, le=10_000_000)] = 500
    """Rows gathered before they are written."""
    flush_interval: Annotated[float, Field(gt=0, le=3600)] = 1.0
    """Seconds after which even a single row is written."""
    retry_interval: Annotated[float, Field(gt=0, le=60)] = 0.1
    """Longest time that the writing thread sleeps before it looks at its queue, seconds."""
    fsync: bool = True
    """Whether rows and ledger are on the disk with each commit. Off, they survive a killed process but not a
    lost machine; either way a resume is exact."""


class PipelineNode(Part):
    """One node: an operator and how it runs."""

    operator: Short
    """Name of the operator, or `module:Class`."""
    params: FreeForm = {}
    """Parameters of the operator."""
    name: PipelineName | None = None
    """Name of the node in files, logs and the ledger; unset takes its place and its operator's name."""
    parallel_size: Few | None = None
    """Batches in flight at once, on threads; unset takes the pipeline's."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Source rows in a batch; unset takes the pipeline's."""
    processes: Few | None = None
    """Processes that compute, one reading for all of them; unset takes the pipeline's."""
    output_uri: Uri | None = None
    """Where the node's rows go; unset keeps them in the pipeline's folder. In an experiment a relative path
    begins there too, and the model reads what the last operator writes: JSON lines."""
    on_error: OnError | None = None
    """What becomes of a row that cannot be processed; unset takes the pipeline's."""
    writer: PipelineWriter | None = None
    """How the node writes; unset takes the pipeline's."""


class Pipeline(Part):
    """Operators over rows, and how they run."""

    operators: Annotated[list[PipelineNode], Field(min_length=1, max_length=64)]
    """Nodes in the order in which rows pass them."""
    streaming: bool = False
    """Whether all nodes run at once, each on the rows that the one before has committed."""
    parallel_size: Few = 1
    """Batches in flight at once in each node, on threads: for operators that wait."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 1
    """Source rows in a batch."""
    processes: Few = 1
    """Processes that compute in each node, one reading for all of them: for operators that compute."""
    shards: Few = 1
    """Parts of the input, by byte ranges of its files, each run by a process with a ledger of its own, and
    merged at the end: for inputs so large that even one reader is too slow."""
    writer: PipelineWriter = PipelineWriter()
    """How nodes write."""
    on_error: OnError = "fail"
    """`fail` ends the run at the first row that cannot be processed; `dead_letter` sets such rows aside, for
    `asysi pipeline redrive`."""
    max_dead_letters: Annotated[int, Field(ge=0, le=100_000_000)] = 1000
    """Rows that each node may set aside before the run fails."""
    budget: Budget = {}
    """By name of what operators report (`cost`, `total_tokens`), how much may be spent before the run ends
    cleanly. Of shards, each has its share."""


class DataPipeline(Pipeline):
    """A data pipeline that runs before the experiment: on a cluster in a Job of its own, a pod a shard."""

    parallelism: Few | None = None
    """Shards that run at once on a cluster; unset runs all."""
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    """CPUs of a shard; whole CPUs are pinned on a node that can."""
    memory: Memory = "1Gi"
    """Memory of a shard."""
    secret_refs: Annotated[list[SecretRef], Field(max_length=16)] = []
    """Secrets with the keys of endpoints and stores, as environment variables of the operators. A local run
    takes its own environment."""


class Data(Part):
    """What the model reads."""

    uri: Uri
    """Where the rows are: `jsonl://path`, one JSON object per line; a path, a glob, or any fsspec URL."""
    tokens: Tokens = Tokens()
    """How text becomes tokens, and which tokens are data."""
    holdout: Holdout = Holdout()
    """Documents that are never trained on."""
    pipeline: DataPipeline | None = None
    """A data pipeline over the rows of `uri`: the model reads what it makes of them, which stays in
    `pipeline/` of the output."""


class Input(Part):
    """A volume that the experiment reads from."""

    claim: ObjectName
    """PersistentVolumeClaim that exists; its files stand read-only in `/inputs/<claim>`, where prepare, host
    and finish find them: `file:///inputs/<claim>/model`, `jsonl:///inputs/<claim>/text.jsonl`."""


class Scan(Part):
    """Runs the model over the data, forward only."""

    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Sequences in a step."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Distinct documents to read at most; unset reads all."""
    passes: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Times that the training documents are read; each held-out document is read once, an equal share of them
    in every pass."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of the order of batches and of the token sampling."""
    loss: Annotated[str, Field(max_length=256)] = "none"
    """Loss to differentiate: `none`, `lm`, `module` (the model's own) or
    `python://package.module:function`."""


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
    """What runs the model: exactly one of its fields."""

    scan: Scan | None = None
    """Runs the model over the data, forward only."""
    train: Train | None = None
    """Trains the model of a training project."""
    ppo: FreeForm | None = None
    """Trains the model by PPO."""
    custom: Custom | None = None
    """Runs the user's own program with capture injected."""


class Positions(Part):
    """Which positions of a sequence are captured."""

    mode: Literal["all", "last", "random"] = "all"
    """`all`, the `last` content token of a sequence, or `random` ones."""
    count: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Positions a sequence under `random`."""


class Sampling(Part):
    """How much is kept when consumers are slower than the model."""

    rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the tokens kept at most; the consumers' pace lowers it."""
    min_rate: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Share of the tokens kept at least."""
    unit: Literal["token", "step"] = "token"
    """What is kept or left out as a whole: single tokens, or whole steps."""


class Capture(Part):
    """What is taken out of the model."""

    hook_points: Annotated[list[Glob], Field(min_length=1, max_length=256)]
    """Globs on the paths of `named_modules()`: `*` stops at a dot, `**` crosses dots, `?` is one
    character. TransformerLens' names, like `blocks.*.hook_resid_post`, mean the same modules where `asysi
    check` shows them as an alias. A module that a forward calls several times gives one row per token and
    call; `#n` behind a glob takes the n-th call alone, from 0, as a hook point of its own."""
    parameters: Annotated[list[Glob], Field(max_length=256)] = []
    """Globs on parameters whose gradients are taken."""
    kinds: Annotated[
        list[Literal["activations", "gradients", "parameterGradients"]], Field(min_length=1, max_length=3)
    ] = ["activations"]
    """What is taken at a hook point."""
    positions: Positions = Positions()
    """Which positions of a sequence are captured."""
    sampling: Sampling = Sampling()
    """How much is kept when consumers are slower than the model."""
    quantization: Literal["none", "bf16", "fp8", "int8"] = "bf16"
    """How activations travel on the bus and into the archive; int8 has one scale per row."""
    size: Memory = "64Mi"
    """Memory of the capture ring of a rank; it must hold at least one whole step."""


class Redis(Part):
    """The Redis of CONSUMER mode."""

    url: Uri | None = None
    """Address of a Redis that exists."""
    secret_ref: SecretRef | None = None
    """Secret that holds the address."""
    managed: bool = False
    """Whether the operator runs a Redis for this experiment."""


class Bus(Part):
    """The ring, or the queue, between hook and consumers."""

    shards: Annotated[int, Field(ge=1, le=64)] = 2
    """Independent rings; a hook point always uses the same one."""
    size: Memory = "128Mi"
    """Memory of all shards together."""
    redis: Redis | None = None
    """The Redis of CONSUMER mode."""


class Buffer(Part):
    """The mixing buffer: rows leave it in random order."""

    batches: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Batches it holds at least."""
    sequences: Annotated[int, Field(ge=1, le=1_048_576)] = 1000
    """Sequences it holds at least; the larger of the two counts."""
    memory: Memory = "256Mi"
    """Memory of all mixing buffers of a trainer; the cap wins over both counts."""


class AuxK(Part):
    """The auxiliary loss that revives dead latents (Gao et al. 2024, arXiv 2406.04093, appendix A.2)."""

    k: Annotated[int, Field(ge=0, le=65_536)] | None = None
    """Dead latents that rebuild the residual; unset takes half the width of the activation; 0 turns it
    off."""
    coefficient: Annotated[float, Field(ge=0, le=1)] = 1 / 32
    """Weight of the auxiliary loss."""
    dead_after: Annotated[int, Field(ge=1)] = 20_000
    """Tokens without firing after which a latent counts as dead."""


class Stop(Part):
    """When training ends before the stream does."""

    tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens trained on at most."""
    fvu: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Held-out FVU at which training ends."""


class SaeTrain(Part):
    """One trainer: a sparse autoencoder for each of its hook points."""

    name: Name = "topk"
    """Name of the trainer and of its folder in the output."""
    hook_points: Annotated[list[Glob], Field(min_length=1, max_length=256)] = ["**"]
    """Globs on the paths of the captured hook points."""
    variant: Literal["topk", "batchtopk", "jumprelu", "gated", "standard", "matryoshka"] = "topk"
    """Kind of autoencoder."""
    latents: Annotated[int, Field(ge=2, le=1_048_576)] = 1024
    """Number of latents."""
    k: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Latents that fire for a token."""
    lr: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak of Adam's learning rate. Unset takes 2e-3 / sqrt(latents / 16384) when the run's length is known,
    for then it falls linearly to 0, and a tenth of that when it is not."""
    batch: Annotated[int, Field(ge=1, le=1_048_576)] = 512
    """Rows in a training step."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of the initial weights and of the mixing buffer."""
    buffer: Buffer = Buffer()
    """The mixing buffer: rows leave it in random order."""
    normalisation: Literal["none", "expectedNorm"] = "expectedNorm"
    """`expectedNorm` scales activations to a mean norm of sqrt(width), estimated on the first tokens, then
    frozen and folded into the weights at export."""
    auxk: AuxK = AuxK()
    """The auxiliary loss that revives dead latents."""
    stop: Stop = Stop()
    """When training ends before the stream does."""
    checkpoint_seconds: Annotated[int, Field(ge=1, le=86_400)] = 15
    """Seconds between checkpoints."""


_RESOURCE = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
ResourceName = Annotated[str, Field(pattern=_RESOURCE, max_length=253)]
"""An extended resource of a cluster's nodes: `nvidia.com/gpu`."""


class Sae(Part):
    """Training of sparse autoencoders on the live stream."""

    enabled: bool = True
    """Whether any are trained; false is the same as `sae: null`, which `kubectl apply` does not pass on."""
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    """CPUs of the container; whole CPUs are pinned on a node that can."""
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
    """Trainers, all fed from one stream."""


class Archive(Part):
    """Writing the stream to `.mscan` files."""

    enabled: bool = True
    """Whether the stream is archived."""
    tensors: bool = True
    """Whether payloads are archived beside the metrics of every row."""
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
    """Whether the parameters are analysed."""
    when: Annotated[list[Literal["before", "after"]], Field(max_length=2)] = ["before", "after"]
    """Whether before the run, after it, or both."""


class Finish(Part):
    """What is looked at once the stream has ended."""

    max_tokens: Annotated[int, Field(ge=256, le=10_000_000)] = 20_000
    """Tokens that the report reads again at most, held-out documents first. Their activations may take a
    quarter of `resources.finish.memory`; that can be less."""
    max_seconds: Annotated[int, Field(ge=1, le=86_400)] = 30
    """Seconds that this reading may take. No forward begins that would end later, and at least one is run;
    the report says how many tokens were read, and why no more."""
    splice_tokens: Annotated[int, Field(ge=0, le=10_000_000)] = 20_000
    """Tokens that may run through a language model, all forwards together, to measure the cross-entropy of
    the next token with each SAE spliced in; 0 measures none."""
    splice_seconds: Annotated[int, Field(ge=1, le=86_400)] = 20
    """Seconds that these forwards may take, on the CPU; fewer documents are read where they would take
    longer."""


class Output(Part):
    """Where results go."""

    uri: Uri | None = None
    """Folder of a local run, plain or as `file://folder`; unset takes `runs/<name>`. In a pod the claim holds
    the results."""
    claim: ObjectName | None = None
    """PersistentVolumeClaim that results are written to; unset makes one, as the next four fields say."""
    size: Memory = "10Gi"
    """Size of the claim that is made when none is given."""
    storage_class_name: ObjectName | None = None
    """StorageClass of the claim that is made; unset takes the cluster's default class."""
    access_modes: Annotated[
        list[Literal["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"]], Field(min_length=1, max_length=3)
    ] = ["ReadWriteOnce"]
    """Access modes of the claim that is made. With `ReadWriteMany` the shards of a pipeline may run on
    several nodes."""
    when_deleted: Literal["Delete", "Retain"] = "Delete"
    """What becomes of the claim that is made when the experiment is deleted: `Delete` removes it with all
    results, `Retain` leaves it. An experiment of the same name that is created later finds a retained claim,
    and never deletes it. May be changed at any time."""
    path: OutputPath | None = None
    """Folder of the results on the claim, `.` for its root. Unset takes the experiment's name on a named
    claim, so that experiments can share it, and the root of the claim that is made. In a local run it is
    below `uri`, or below `runs`."""
    when_full: Literal["stop", "continue"] = "stop"
    """What the model does when there is no room left for results: `stop` ends it with exit code 1,
    `continue` lets it run to its end. Either way the run fails, and what is checkpointed stands."""
    resume: bool = False
    """Whether to continue an unfinished experiment of the same name and content in that folder although it is
    not known to be gone. Not needed for the experiment's own attempts, nor after it was deleted and created
    anew."""
    secret_ref: SecretRef | None = None
    """Secret with the credentials for the output."""


class Resources(Part):
    """What a container gets: request and limit are the same."""

    cpus: Annotated[float, Field(gt=0, le=1024)] = 0.25
    """CPUs; whole CPUs are pinned on a node that can."""
    memory: Memory = "1Gi"
    """Memory limit."""


class HostResources(Resources):
    """What the host gets."""

    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    """CPUs; whole CPUs are pinned on a node that can."""
    memory: Memory = "4Gi"
    """Memory limit."""
    gpus: Annotated[int, Field(ge=0, le=16)] = 0
    """GPUs."""
    shm: Memory = "64Mi"
    """Size of the host's own /dev/shm."""


class HookResources(Resources):
    """What the hook sidecar gets."""

    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    """CPUs; whole CPUs are pinned on a node that can, and as many threads convert rows."""


class PrepareResources(Resources):
    """What the init container gets."""

    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    """CPUs; whole CPUs are pinned on a node that can."""
    memory: Memory = "2Gi"
    """Memory limit; the rings are created here and count towards it."""


class FinishResources(Resources):
    """What the container that writes ledger and report gets."""

    memory: Memory = "2Gi"
    """Memory limit."""


class Binding(Part):
    """Binding of local processes to processors."""

    cpus: dict[
        Literal["host", "hook", "sae", "archiver", "prepare", "finish"],
        Annotated[str, Field(pattern=r"^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$", max_length=64)],
    ] = {}
    """Processors of each container in a local run, as in `taskset -c`: `0`, `0-3`, `1,3`."""
    numa: Annotated[int, Field(ge=0, le=255)] | None = None
    """NUMA node that the rings are bound to."""


class AllResources(Part):
    """What each container gets."""

    host: HostResources = HostResources()
    """The model's container."""
    hook: HookResources = HookResources()
    """The hook sidecar."""
    prepare: PrepareResources = PrepareResources()
    """The init container that fetches the model and creates the rings; its memory holds the rings too."""
    finish: FinishResources = FinishResources()
    """The container that writes ledger and report."""
    binding: Binding = Binding()
    """Binding of local processes to processors."""
    workspace: Memory = "50Gi"
    """Disk of the node that the pod's workspace may take, in a pod: models fetched from `hf://` lie there. A
    pod that takes more is evicted."""


class Consumers(Part):
    """The consumers of CONSUMER mode."""

    replicas: Annotated[int, Field(ge=1, le=256)] = 1
    """Pods that share the streams."""


class Toleration(Part):
    """A taint that the pod tolerates, as Kubernetes writes it."""

    key: LabelName | None = None
    """Key of the taint; unset matches every key, with `operator: Exists`."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Whether the value counts."""
    value: LabelValue | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; unset matches all."""
    toleration_seconds: Annotated[int, Field(ge=0)] | None = None
    """Seconds that the pod stays after a NoExecute taint appeared; unset is for ever."""


class Requirement(Part):
    """What a label must be, as Kubernetes writes it."""

    key: LabelName
    """Key of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How the label's value is compared with `values`."""
    values: Annotated[list[LabelValue], Field(max_length=32)] = []
    """Values for `In` and `NotIn`; none for the others."""


class NodeRequirement(Part):
    """What a node's label must be, as Kubernetes writes it."""

    key: LabelName
    """Key of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How the label's value is compared with `values`."""
    values: Annotated[list[LabelValue], Field(max_length=32)] = []
    """Values for `In` and `NotIn`, one integer for `Gt` and `Lt`, none for the others."""


class LabelSelector(Part):
    """Selects pods of the namespace by their labels."""

    match_labels: Labels = {}
    """Labels that a pod must have."""
    match_expressions: Annotated[list[Requirement], Field(max_length=16)] = []
    """What else its labels must be."""


class NodeTerm(Part):
    """Nodes whose labels meet every requirement."""

    match_expressions: Annotated[list[NodeRequirement], Field(min_length=1, max_length=16)]
    """The requirements."""


class PreferredNodes(Part):
    """Nodes that are better than others."""

    weight: Annotated[int, Field(ge=1, le=100)]
    """How much better."""
    preference: NodeTerm
    """Which nodes."""


class RequiredNodes(Part):
    """Nodes that alone will do."""

    node_selector_terms: Annotated[list[NodeTerm], Field(min_length=1, max_length=8)]
    """Terms, one of which a node must meet."""


class NodeAffinity(Part):
    """Which nodes the pod may run on, and which are better."""

    required_during_scheduling_ignored_during_execution: RequiredNodes | None = None
    """Nodes that alone will do."""
    preferred_during_scheduling_ignored_during_execution: Annotated[
        list[PreferredNodes], Field(max_length=8)
    ] = []
    """Nodes that are better than others."""


class PodTerm(Part):
    """Pods of the namespace, and how near counts as near."""

    label_selector: LabelSelector
    """Which pods."""
    topology_key: LabelName
    """Label of nodes: nodes of one value are one place, as `kubernetes.io/hostname`."""


class PreferredPods(Part):
    """Pods whose nearness is better, or worse."""

    weight: Annotated[int, Field(ge=1, le=100)]
    """How much."""
    pod_affinity_term: PodTerm
    """Which pods."""


class PodAffinity(Part):
    """Which pods to be near to, or far from."""

    required_during_scheduling_ignored_during_execution: Annotated[list[PodTerm], Field(max_length=8)] = []
    """What must hold."""
    preferred_during_scheduling_ignored_during_execution: Annotated[
        list[PreferredPods], Field(max_length=8)
    ] = []
    """What is better."""


class Affinity(Part):
    """Nodes and pods that the pod is drawn to or kept from, as Kubernetes writes it."""

    node_affinity: NodeAffinity | None = None
    """Nodes."""
    pod_affinity: PodAffinity | None = None
    """Pods to be near to."""
    pod_anti_affinity: PodAffinity | None = None
    """Pods to be far from."""


class TopologySpread(Part):
    """How pods spread over places, as Kubernetes writes it."""

    max_skew: Annotated[int, Field(ge=1, le=1000)]
    """Pods by which the fullest place may exceed the emptiest."""
    topology_key: LabelName
    """Label of nodes: nodes of one value are one place."""
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    """Whether the pod then waits."""
    label_selector: LabelSelector
    """Pods that are counted."""


class ObjectRef(Part):
    """Names an object in the experiment's namespace."""

    name: ObjectName
    """Name of the object."""


class Scheduling(Part):
    """Where the pod may run, and as whom."""

    node_selector: Labels = {}
    """Labels that the node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = []
    """Taints that the pod tolerates."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pod."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pod."""
    queue_name: Annotated[str, Field(pattern=OBJECT_NAME, max_length=63)] | None = None
    """Kueue's LocalQueue. Kueue's own label `kueue.x-k8s.io/queue-name` on the experiment says the same."""
    service_account_name: ObjectName | None = None
    """ServiceAccount of the pods, for the workload identity of a cloud; the operator's settings must allow
    it. Pods mount no token of the API either way. Unset takes the namespace's `default`."""
    image_pull_secrets: Annotated[list[ObjectRef], Field(max_length=16)] = []
    """Secrets with which the node fetches images."""
    affinity: Affinity | None = None
    """Nodes and pods that the pod is drawn to or kept from."""
    topology_spread_constraints: Annotated[list[TopologySpread], Field(max_length=8)] = []
    """How pods spread over zones or nodes."""


class Lifecycle(Part):
    """Deadlines, restarts and cleaning up."""

    suspend: bool = False
    """Whether the experiment waits."""
    active_deadline_seconds: Annotated[int, Field(ge=1)] | None = None
    """Seconds after which a running experiment fails; a pipeline before it has as many of its own."""
    start_deadline_seconds: Annotated[int, Field(ge=1)] | None = None
    """Seconds after which an experiment that has not started fails."""
    max_restarts: Annotated[int, Field(ge=0, le=100)] = 2
    """New attempts after the host has died."""
    grace_period_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """Seconds that the workers have to write their checkpoints after SIGTERM."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0)] | None = None
    """Seconds after which what a finished experiment ran with is removed: Jobs, pods, configuration, network
    policies. The experiment, its status and its claim stay; unset keeps everything."""


class Spec(Part):
    """What to watch, where, and what to do with what is seen."""

    mode: Literal["HPC", "CONSUMER"] = "HPC"
    """`HPC`: shared-memory ring on one node. `CONSUMER`: pure Python and queues."""
    model: Model
    """The model to watch."""
    data: Data | None = None
    """What the model reads."""
    inputs: Annotated[list[Input], Field(max_length=16)] = []
    """Volumes of the cluster that hold the model or the data. A local run takes files where they are; one
    with inputs needs their folders below /inputs."""
    workload: Workload
    """What runs the model: exactly one of its fields."""
    capture: Capture
    """What is taken out of the model."""
    bus: Bus = Bus()
    """The ring, or the queue, between hook and consumers."""
    sae: Sae | None = Sae()
    """Training of sparse autoencoders; null trains none."""
    archive: Archive = Archive()
    """Writing the stream to `.mscan` files."""
    weights: Weights = Weights()
    """Analysis of the parameters."""
    finish: Finish = Finish()
    """What is looked at once the stream has ended."""
    output: Output = Output()
    """Where results go."""
    resources: AllResources = AllResources()
    """What each container gets."""
    consumers: Consumers = Consumers()
    """The consumers of CONSUMER mode."""
    scheduling: Scheduling = Scheduling()
    """Where the pod may run."""
    lifecycle: Lifecycle = Lifecycle()
    """Deadlines, restarts and cleaning up."""

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
    """Labels, passed on to everything made for the experiment; on pods behind the prefix `label.asysi.dev/`,
    so that no Service that selects by them finds those."""
    uid: Short | None = None
    """Identity given by the API server."""


class ScanExperiment(Part):
    """An experiment: one file says which model to watch, where, and what to do with what is seen."""

    api_version: Literal["asysi.dev/v1alpha1"] = API_VERSION
    """Version of this schema."""
    kind: Literal["ScanExperiment"] = KIND
    """Kind of the object."""
    metadata: Metadata
    """The experiment's name and labels."""
    spec: Spec
    """What to watch, where, and what to do with what is seen."""
