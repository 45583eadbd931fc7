"""Features in the schema that this version does not implement yet: rejected by name, never ignored."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from asysi.contract.fields import Path, pattern_of, schema_fields, values
from asysi.contract.rules import Problem
from asysi.contract.spec import ScanExperiment

Available = Callable[[Any], bool]


@dataclass(frozen=True)
class Refusal:
    """A field, or some of its values, whose feature is not implemented yet."""

    pattern: str
    """Path of the field, list items as `[]`."""
    available: Available | None
    """Returns whether a value is available; None if the field has no effect yet (only its default passes)."""
    advice: str
    """What is missing and what to do instead; continues a sentence that begins with path and value."""

    note: str = ""
    """What the reference page reports as missing, if it is neither the field nor a list of its values."""

    def passes(self, value: Any) -> bool:
        """Return whether `value` is available."""
        return value == _DEFAULTS[self.pattern] if self.available is None else self.available(value)


def refused(experiment: ScanExperiment) -> list[Problem]:
    """Return every use of a feature that is not available yet.

    A part that is rejected as a whole is reported once, not field by field.
    """
    return list(_refused(experiment))


def _refused(experiment: ScanExperiment) -> Iterator[Problem]:
    named: set[Path] = set()
    for path, value in values(experiment):
        if any(path[:length] in named for length in range(1, len(path))):
            continue
        refusal = BY_PATTERN.get(pattern_of(path))
        if refusal is not None and not refusal.passes(value):
            named.add(path)
            yield Problem(path, f"{_subject(refusal, value)}is not available yet: {refusal.advice}")


def _subject(refusal: Refusal, value: Any) -> str:
    """Return the unavailable value as written; "" if the field itself is unavailable."""
    if isinstance(value, list) and refusal.available is not None:
        return f"{', '.join(str(item) for item in value if not refusal.available(item))} "
    return f"{value} " if isinstance(value, str) else ""


def missing(refusal: Refusal | None, choices: Sequence[Any]) -> str:
    """Return what is not available yet for a field: advice, a note, or values; "" if everything is available.

    Args:
        refusal: refusal of the field, or None.
        choices: values that the schema allows; empty if it does not list them.
    """
    if refusal is None:
        return ""
    if refusal.available is None:
        return refusal.advice
    return refusal.note or ", ".join(f"`{value}`" for value in choices if not refusal.available(value))


def _only(*known: Any) -> Available:
    return lambda value: all(item in known for item in (value if isinstance(value, list) else [value]))


def _schemes(*known: str) -> Available:
    return lambda value: value is None or scheme_of(value) in known


def scheme_of(uri: str) -> str:
    """Return the scheme of `uri`: `jsonl` for `jsonl://./text.jsonl`, "" for a plain path."""
    scheme, separator, _rest = uri.partition("://")
    return scheme if separator else ""


STORES = ("file", "s3", "gs", "gcs", "az", "abfs", "hf", "http", "https", "ftp", "sftp")
"""Schemes of fsspec that may hold data without a format before them."""

REFUSALS = (
    Refusal(
        "spec.model.uri",
        _schemes("hf", "file", "python"),
        "models come from hf://owner/name, file://folder or python://package.module:factory",
    ),
    Refusal(
        "spec.model.tokenizer",
        _schemes("hf", "file", ""),
        "tokenizers come from a folder or from hf://owner/name",
    ),
    Refusal(
        "spec.data.uri",
        _schemes("jsonl", "csv", "parquet", "datasets", *STORES),
        "data is read from jsonl://, csv://, parquet:// or datasets://, or from the URL of a store whose "
        "ending says what it holds; rows of memory:// exist in one process, and an experiment has several",
        "`memory://`",
    ),
    Refusal("spec.workload.ppo", None, "use workload.scan; PPO comes with a later version"),
    Refusal(
        "spec.workload.custom",
        None,
        "use workload.scan with a python:// model; custom programs come with a later version",
    ),
    Refusal(
        "spec.workload.scan.loss",
        lambda value: value in {"none", "lm", "module"} or scheme_of(value) == "python",
        "a loss is none, lm, module or python://package.module:function",
        "others",
    ),
    Refusal(
        "spec.capture.positions.mode",
        _only("all"),
        "every content token is captured; use `all` and lower sampling.rate",
    ),
    Refusal("spec.capture.positions.count", None, "every content token is captured; drop it"),
    Refusal("spec.bus.redis.managed", None, "start a Redis yourself and name it in bus.redis.url"),
    Refusal(
        "spec.output.uri",
        _schemes("file", "", "s3"),
        "results are written to a folder, and uploaded to s3://bucket/prefix; copy them after the run",
    ),
    Refusal("spec.resources.binding.numa", None, "start `asysi run` under `numactl --membind`"),
    Refusal(
        "spec.consumers.replicas",
        None,
        "a role has one worker, which restarts in place; drop it",
    ),
)
"""All refusals. A test checks that every field of the schema is listed here, in READ_BY, or in both."""

BY_PATTERN = {refusal.pattern: refusal for refusal in REFUSALS}
"""Refusals by the path of their field."""
_DEFAULTS = {field.pattern: field.info.get_default() for field in schema_fields(ScanExperiment)}

READ_BY = {
    "asysi.model": (
        "spec.model.uri",
        "spec.model.revision",
        "spec.model.sha256",
        "spec.model.tokenizer",
    ),
    "asysi.text": (
        "spec.data.uri",
        "spec.data.tokens.textField",
        "spec.data.tokens.chatTemplate",
        "spec.data.tokens.contextLength",
        "spec.data.tokens.packing",
        "spec.data.tokens.prependBos",
        "spec.data.tokens.separatorToken",
        "spec.data.tokens.excludeTokens",
        "spec.data.tokens.specialTokensInText",
        "spec.data.holdout.share",
        "spec.data.holdout.seed",
        "spec.workload.scan.batchSize",
        "spec.workload.scan.maxSamples",
        "spec.workload.scan.passes",
    ),
    "asysi.hosts": (
        "spec.output.whenFull",
        "spec.model.dtype",
        "spec.workload.scan.seed",
        "spec.workload.scan.loss",
        "spec.workload.train.config",
        "spec.workload.train.batchSize",
        "spec.workload.train.length",
        "spec.workload.train.epochs",
        "spec.workload.train.seed",
        "spec.workload.train.holdout",
        "spec.capture.hookPoints",
        "spec.capture.kinds",
        "spec.capture.parameters",
        "spec.capture.size",
        "spec.bus.shards",
        "spec.bus.size",
    ),
    "asysi.capture": ("spec.capture.sampling.unit",),
    "asysi.hook": (
        "spec.capture.sampling.rate",
        "spec.capture.sampling.minRate",
        "spec.capture.quantization",
    ),
    "asysi.sae": (
        "spec.data.tokens.maxNormMultiple",
        "spec.sae.train[].name",
        "spec.sae.train[].hookPoints",
        "spec.sae.train[].variant",
        "spec.sae.train[].latents",
        "spec.sae.train[].k",
        "spec.sae.train[].lr",
        "spec.sae.train[].batch",
        "spec.sae.train[].seed",
        "spec.sae.train[].buffer.batches",
        "spec.sae.train[].buffer.sequences",
        "spec.sae.train[].buffer.memory",
        "spec.sae.train[].normalisation",
        "spec.sae.train[].auxk.k",
        "spec.sae.train[].auxk.coefficient",
        "spec.sae.train[].auxk.deadAfter",
        "spec.sae.train[].resample.every",
        "spec.sae.train[].resample.scale",
        "spec.sae.train[].schedule.lrWarmUp",
        "spec.sae.train[].schedule.lrDecay",
        "spec.sae.train[].schedule.lrEnd",
        "spec.sae.train[].schedule.sparsityWarmUp",
        "spec.sae.train[].decoder.norm",
        "spec.sae.train[].decoder.project",
        "spec.sae.train[].ema",
        "spec.sae.train[].standard.l1Coefficient",
        "spec.sae.train[].gated.l1Coefficient",
        "spec.sae.train[].batchtopk.topkThresholdLr",
        "spec.sae.train[].matryoshka.widths",
        "spec.sae.train[].matryoshka.topkThresholdLr",
        "spec.sae.train[].jumprelu.initThreshold",
        "spec.sae.train[].jumprelu.bandwidth",
        "spec.sae.train[].jumprelu.sparsityLossMode",
        "spec.sae.train[].jumprelu.l0Coefficient",
        "spec.sae.train[].jumprelu.targetL0",
        "spec.sae.train[].jumprelu.tanhScale",
        "spec.sae.train[].jumprelu.steToInput",
        "spec.sae.train[].jumprelu.preActLossCoefficient",
        "spec.sae.train[].stop.tokens",
        "spec.sae.train[].stop.fvu",
        "spec.sae.train[].checkpointSeconds",
    ),
    "asysi.pipeline": (
        "spec.data.pipeline.operators",
        "spec.data.pipeline.operators[].operator",
        "spec.data.pipeline.operators[].params",
        "spec.data.pipeline.operators[].outputUri",
        "spec.data.pipeline.operators[].name",
        "spec.data.pipeline.operators[].parallelSize",
        "spec.data.pipeline.operators[].batchSize",
        "spec.data.pipeline.operators[].processes",
        "spec.data.pipeline.operators[].onError",
        "spec.data.pipeline.operators[].writer",
        "spec.data.pipeline.operators[].writer.asyncMode",
        "spec.data.pipeline.operators[].writer.queueSize",
        "spec.data.pipeline.operators[].writer.flushBatchSize",
        "spec.data.pipeline.operators[].writer.flushInterval",
        "spec.data.pipeline.operators[].writer.retryInterval",
        "spec.data.pipeline.operators[].writer.fsync",
        "spec.data.pipeline.streaming",
        "spec.data.pipeline.parallelSize",
        "spec.data.pipeline.batchSize",
        "spec.data.pipeline.processes",
        "spec.data.pipeline.writer.asyncMode",
        "spec.data.pipeline.writer.queueSize",
        "spec.data.pipeline.writer.flushBatchSize",
        "spec.data.pipeline.writer.flushInterval",
        "spec.data.pipeline.writer.retryInterval",
        "spec.data.pipeline.writer.fsync",
        "spec.data.pipeline.onError",
        "spec.data.pipeline.maxDeadLetters",
        "spec.data.pipeline.budget",
    ),
    "asysi.finish": (
        "spec.finish.maxTokens",
        "spec.finish.maxSeconds",
        "spec.finish.spliceTokens",
        "spec.finish.spliceSeconds",
        "spec.weights.enabled",
    ),
    "asysi.monitor": ("spec.output.resume",),
    "asysi.weights": ("spec.weights.when",),
    "asysi.archive": (
        "spec.archive.tensors",
        "spec.archive.compression",
        "spec.archive.rotate",
        "spec.archive.rotateSeconds",
        "spec.archive.maxSize",
    ),
    "asysi.contract": (
        "apiVersion",
        "kind",
        "spec.sae.enabled",
        "spec.sae.train[].grid.k",
        "spec.sae.train[].grid.latents",
        "spec.sae.train[].grid.seeds",
    ),
    "asysi_operator.manifests": (
        "spec.model.secretRef.name",
        "spec.model.secretRef.key",
        "metadata.name",
        "metadata.namespace",
        "metadata.labels",
        "metadata.uid",
        "spec.data.pipeline.shards",
        "spec.data.pipeline.parallelism",
        "spec.data.pipeline.cpus",
        "spec.data.pipeline.memory",
        "spec.data.pipeline.secretRefs[].name",
        "spec.data.pipeline.secretRefs[].key",
        "spec.inputs[].claim",
        "spec.archive.enabled",
        "spec.archive.cpus",
        "spec.archive.memory",
        "spec.sae.cpus",
        "spec.sae.memory",
        "spec.sae.gpus",
        "spec.sae.gpuResource",
        "spec.output.claim",
        "spec.output.size",
        "spec.output.path",
        "spec.output.storageClassName",
        "spec.output.accessModes",
        "spec.output.whenDeleted",
        "spec.output.secretRef.name",
        "spec.output.secretRef.key",
        "spec.resources.host.cpus",
        "spec.resources.host.memory",
        "spec.resources.host.gpus",
        "spec.resources.host.shm",
        "spec.resources.hook.cpus",
        "spec.resources.hook.memory",
        "spec.resources.prepare.cpus",
        "spec.resources.prepare.memory",
        "spec.resources.finish.cpus",
        "spec.resources.finish.memory",
        "spec.resources.workspace",
        "spec.scheduling.nodeSelector",
        "spec.scheduling.tolerations",
        "spec.scheduling.priorityClassName",
        "spec.scheduling.runtimeClassName",
        "spec.scheduling.queueName",
        "spec.scheduling.serviceAccountName",
        "spec.scheduling.imagePullSecrets",
        "spec.scheduling.affinity",
        "spec.scheduling.topologySpreadConstraints",
        "spec.lifecycle.suspend",
        "spec.lifecycle.activeDeadlineSeconds",
        "spec.lifecycle.startDeadlineSeconds",
        "spec.lifecycle.maxRestarts",
        "spec.lifecycle.gracePeriodSeconds",
        "spec.lifecycle.ttlSecondsAfterFinished",
    ),
    "asysi_operator.local": ("spec.output.uri", "spec.resources.binding.cpus"),
    "asysi.bus": ("spec.mode", "spec.bus.redis.url", "spec.bus.redis.secretRef"),
}
"""The package that reads each field that has an effect, including parts read as a whole. A test searches that
package for the field's name."""
