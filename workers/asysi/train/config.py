"""`config.yaml` of a training project, checked: everything that decides a run."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asysi.contract.errors import ConfigError
from asysi.contract.loading import Mark, merge, read, sentences, set_value
from asysi.contract.mistakes import problem_of

Target = Annotated[dict[str, Any], Field(min_length=1)]
"""`{_target_: package.module.Name, parameter: value}`; see `asysi.train.factory.instantiated`."""
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]


class ConfigPart(BaseModel):
    """A part of the file: unknown keys are refused, values are never changed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, strict=True
    )


class TensorContract(ConfigPart):
    """What a tensor of a batch must be, the batch dimension left out."""

    dtype: str
    """Name of a torch type, such as float32."""
    shape: list[int]
    """Without the batch dimension; -1 allows any size."""
    range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """Least and greatest value, both allowed."""


class DataSettings(ConfigPart):
    """Where the rows are and how they become batches."""

    train: str
    """Table of the training rows (`.csv` or `.jsonl`), relative to the project."""
    val: str
    """Table of the rows that are evaluated after each epoch and decide which weights are the best."""
    test: str | None = None
    """Table of the rows that the report is about; null takes `val`."""
    make: str | None = None
    """`module:function` of the project that writes the tables when the first of them does not exist."""
    label: str = "label"
    """Column of the label: a class index, or a name from `classes`."""
    dataset: Target
    """The data set; it is given root, processor_config, augmentation_config, train, debug and options."""
    processor: Target
    """Turns a raw row into tensors."""
    augmentation: Target | None = None
    """Changes training samples; null changes none."""
    mixup: Target | None = None
    """Mixes the samples of a training batch; null mixes none."""
    max_missing: Share = 0.05
    """Share of rows that may be dropped because something is missing; beyond it the run is refused."""
    cache_mb: Annotated[int, Field(ge=0, le=1_000_000)] = 256
    """Memory for rows as they were read, in MiB, before augmentation; 0 reads each row every time."""
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Processes that read batches ahead; 0 reads them in the training process."""


class Schedule(ConfigPart):
    """Learning rate over the run, as a factor of the optimiser's own."""

    name: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the factor rises to 1."""
    floor: Share = 0.0
    """Factor at the end of the run."""


class EarlyStopping(ConfigPart):
    """Ends a run that no longer improves."""

    patience: Count
    """Epochs without improvement after which the run ends."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Improvement that counts."""


class Loop(ConfigPart):
    """The training loop."""

    epochs: Count
    """Passes over the training rows."""
    batch_size: Count
    """Samples of an optimiser step, over all ranks: it never changes within a run."""
    microbatch: Count | None = None
    """Samples of a forward pass on one rank at most; null takes as many as the step has. Smaller ones
    accumulate gradients. Halved when memory runs out."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Type of autocast; fp16 scales the loss."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Greatest norm of all gradients together; null does not clip."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the moving average of the weights, which is then what is evaluated; null keeps none."""
    schedule: Schedule = Schedule()
    early_stopping: EarlyStopping | None = None
    monitor: str = "accuracy"
    """Metric that decides which weights are the best; a loss is better when lower."""
    checkpoint_steps: Count = 200
    """Steps between two checkpoints; the end of an epoch has one as well."""
    max_steps: Count | None = None
    """Steps after which the run ends; null runs all epochs."""
    threads: Count | None = None
    """CPU threads of a rank; null takes torch's default. It is part of what makes a run repeatable."""


class Threshold(ConfigPart):
    """A figure that the run must reach, and why that figure."""

    metric: str
    """Name of the metric in the report."""
    min: float | None = None
    """Least value, allowed."""
    max: float | None = None
    """Greatest value, allowed."""
    evidence: Annotated[str, Field(min_length=10)]
    """What was measured, and where, that the figure rests on."""


class EvalSettings(ConfigPart):
    """What is measured when the run is over."""

    metrics: Annotated[list[str], Field(min_length=1)] = ["accuracy", "macro_f1"]
    """Names of `asysi.train.metrics.METRICS`."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Coverage of the confidence intervals."""
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 2000
    """Bootstrap samples behind an interval."""
    worst: Annotated[int, Field(ge=0, le=1000)] = 12
    """Examples with the highest loss in the report."""
    compression: list[Literal["int8", "pruned"]] = []
    """Variants measured beside the model: weights rounded to int8, or half of them set to zero."""
    drift_layers: list[str] = []
    """Modules whose output on a fixed batch is compared between epochs (linear CKA)."""
    thresholds: list[Threshold] = []
    """Figures that the run must reach, or it ends with exit code 1."""


class TrainConfig(ConfigPart):
    """The whole of `config.yaml`."""

    task: Annotated[str, Field(min_length=1, max_length=60)]
    """Name of the task, as the report shows it."""
    classes: Annotated[list[str], Field(min_length=2, max_length=100_000)]
    """Names of the classes, by index."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of initial weights, order, augmentation and dropout."""
    debug: bool = False
    """Reads 64 rows at most, checks every sample against the contract, runs two epochs."""
    data: DataSettings
    contract: Annotated[dict[str, TensorContract], Field(min_length=2)]
    """Tensors of a batch by name; the model's forward takes all of them, `labels` excepted."""
    model: Target
    """The model; it is given num_classes."""
    init: Literal["kaiming", "default"] = "kaiming"
    """Initial weights of layers that the model does not mark as pretrained."""
    loss: Target
    """Called with logits [batch, classes] and labels [batch] or [batch, classes]; returns the mean."""
    optimizer: Target
    """The optimiser; it is given the parameters that require a gradient."""
    train: Loop
    eval: EvalSettings = EvalSettings()
    tensorboard: bool = True
    """Whether scalars are also written for TensorBoard."""

    def digest(self) -> str:
        """Return a SHA-256 over everything in the file."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def load_config(file: Path, settings: Sequence[str] = ()) -> TrainConfig:
    """Return the checked configuration in `file`.

    Args:
        file: a YAML file.
        settings: `path=value` pairs that win over the file, such as `train.epochs=3`.

    Raises:
        ConfigError: everything that is wrong, one sentence each: file, line, path, what, and what to do.
    """
    layers = [read(file), *map(set_value, settings)]
    if problems := [problem for layer in layers for problem in layer.problems]:
        raise ConfigError(*problems)
    tree: Any = {}
    marks: dict[tuple[str | int, ...], Mark] = {}
    for layer in layers:
        tree = merge(tree, layer.tree)
        marks |= layer.marks
    try:
        config = TrainConfig.model_validate(tree)
    except ValidationError as error:
        found = [problem_of(detail, TrainConfig) for detail in error.errors(include_url=False)]
        raise ConfigError(*sentences(found, marks, "the configuration")) from error
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
