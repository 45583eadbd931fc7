"""`config.yaml` of a training project, validated: all settings that determine a run."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asysi.contract.errors import ConfigError
from asysi.contract.loading import merged, read, sentences, set_value
from asysi.contract.mistakes import problem_of

Target = Annotated[dict[str, Any], Field(min_length=1)]
"""`{_target_: package.module.Name, parameter: value}`; see `asysi.train.factory.instantiated`."""
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]


class ConfigPart(BaseModel):
    """A section of the file: unknown keys are rejected, values are not coerced, instances are frozen."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, strict=True
    )


class TensorContract(ConfigPart):
    """Requirements on a tensor of a batch, without the batch dimension."""

    dtype: str
    """Name of a torch type, such as float32."""
    shape: list[int]
    """Without the batch dimension; -1 allows any size."""
    range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """Minimum and maximum value, both inclusive."""


class DataSettings(ConfigPart):
    """The data tables, and how their rows become batches."""

    train: str
    """Table of the training rows (`.csv` or `.jsonl`), relative to the project."""
    val: str
    """Table of the rows evaluated after each epoch to select the best weights."""
    test: str | None = None
    """Table of the rows evaluated in the report; null uses `val`."""
    make: str | None = None
    """`module:function` of the project that writes the tables when the first of them does not exist."""
    label: str = "label"
    """Column of the label: a class index, or a name from `classes`."""
    dataset: Target
    """The data set; called with root, processor_config, augmentation_config, train, debug and options."""
    processor: Target
    """Turns a raw row into tensors."""
    augmentation: Target | None = None
    """Augments training samples; null disables it."""
    mixup: Target | None = None
    """Mixes the samples of a training batch; null disables it."""
    max_missing: Share = 0.05
    """Maximum share of rows dropped for missing values; above it the run is rejected."""
    cache_mb: Annotated[int, Field(ge=0, le=1_000_000)] = 256
    """Cache for raw rows before augmentation, in MiB; 0 reads each row every time."""
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Processes that prefetch batches; 0 reads them in the training process."""


class Schedule(ConfigPart):
    """Learning rate over the run, as a factor on the optimiser's learning rate."""

    name: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the factor rises to 1."""
    floor: Share = 0.0
    """Factor at the end of the run."""


class EarlyStopping(ConfigPart):
    """Stops a run that no longer improves."""

    patience: Count
    """Epochs without improvement after which the run ends."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Minimum change that counts as an improvement."""


class Loop(ConfigPart):
    """The training loop."""

    epochs: Count
    """Passes over the training rows."""
    batch_size: Count
    """Samples per optimiser step over all ranks; it never changes within a run."""
    microbatch: Count | None = None
    """Maximum samples per forward pass on one rank; null uses all samples of the step. With a smaller value,
    gradients are accumulated. Halved when memory runs out."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Autocast type; fp16 uses loss scaling."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Maximum norm over all gradients together; null disables clipping."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the moving average of the weights, which is then evaluated; null disables it."""
    schedule: Schedule = Schedule()
    early_stopping: EarlyStopping | None = None
    monitor: str = "accuracy"
    """Metric that selects the best weights; for a loss, lower is better."""
    checkpoint_steps: Count = 200
    """Steps between two checkpoints; one is also written at the end of every epoch."""
    max_steps: Count | None = None
    """Steps after which the run ends; null runs all epochs."""
    threads: Count | None = None
    """CPU threads per rank; null uses torch's default. Reproducing a run requires the same number."""


class Threshold(ConfigPart):
    """A value that a metric of the run must reach, with the evidence for it."""

    metric: str
    """Name of the metric in the report."""
    min: float | None = None
    """Minimum value, inclusive."""
    max: float | None = None
    """Maximum value, inclusive."""
    evidence: Annotated[str, Field(min_length=10)]
    """The measurement on which the threshold is based."""


class EvalSettings(ConfigPart):
    """The evaluation at the end of the run."""

    metrics: Annotated[list[str], Field(min_length=1)] = ["accuracy", "macro_f1"]
    """Names from `asysi.train.metrics.METRICS`."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Coverage of the confidence intervals."""
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 2000
    """Bootstrap samples per interval."""
    worst: Annotated[int, Field(ge=0, le=1000)] = 12
    """Number of examples with the highest loss in the report."""
    compression: list[Literal["int8", "pruned"]] = []
    """Compressed variants to evaluate as well: weights rounded to int8, or half of them set to zero."""
    baseline: str | None = "baseline.json"
    """File with the figures that a run is compared with, relative to the project; null: no comparison."""
    drift_layers: list[str] = []
    """Modules whose output on a fixed batch is compared between epochs (linear CKA)."""
    thresholds: list[Threshold] = []
    """Thresholds that the run must reach; otherwise it ends with exit code 1."""


class TrainConfig(ConfigPart):
    """The complete `config.yaml`."""

    task: Annotated[str, Field(min_length=1, max_length=60)]
    """Name of the task, shown in the report."""
    classes: Annotated[list[str], Field(min_length=2, max_length=100_000)]
    """Names of the classes, by index."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of initial weights, order, augmentation and dropout."""
    debug: bool = False
    """Read at most 64 rows, check every sample against the contract, and run two epochs."""
    data: DataSettings
    contract: Annotated[dict[str, TensorContract], Field(min_length=2)]
    """Tensors of a batch by name; the model's forward takes all of them except `labels`."""
    model: Target
    """The model; called with num_classes."""
    init: Literal["kaiming", "default"] = "kaiming"
    """Initialisation of layers that the model does not mark as pretrained."""
    loss: Target
    """Called with logits [batch, classes] and labels [batch] or [batch, classes]; returns the mean."""
    optimizer: Target
    """The optimiser; called with the parameters that require a gradient."""
    train: Loop
    eval: EvalSettings = EvalSettings()
    tensorboard: bool = True
    """Whether scalars are also written for TensorBoard."""

    def digest(self) -> str:
        """Return the SHA-256 of the whole configuration."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def load_config(file: Path, settings: Sequence[str] = ()) -> TrainConfig:
    """Return the validated configuration in `file`.

    Args:
        file: a YAML file.
        settings: `path=value` pairs that override the file, such as `train.epochs=3`.

    Raises:
        ConfigError: with one sentence per problem: file, line, path, what is wrong, and what to do.
    """
    whole = merged([read(file), *map(set_value, settings)])
    try:
        config = TrainConfig.model_validate(whole.tree)
    except ValidationError as error:
        found = [problem_of(detail, TrainConfig) for detail in error.errors(include_url=False)]
        raise ConfigError(*sentences(found, whole.marks, "the configuration")) from error
    if problems := list(_problems(config)):
        raise ConfigError(*(f"{file}: {problem}" for problem in problems))
    return config


def _problems(config: TrainConfig) -> Iterator[str]:
    if "labels" not in config.contract:
        yield "contract.labels is missing: a batch needs labels"
    if len(set(config.classes)) != len(config.classes):
        yield "classes has a name twice"
    monitored = config.train.monitor
    if monitored != "loss" and monitored not in config.eval.metrics:
        yield f"train.monitor is {monitored!r}, which eval.metrics does not list: add it there, or take loss"
    for number, threshold in enumerate(config.eval.thresholds):
        if threshold.min is None and threshold.max is None:
            yield f"eval.thresholds[{number}] has neither min nor max"
