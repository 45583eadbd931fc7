"""The canonical form of a spec, used for digests and read by pods. Extending the schema does not change it.

It always contains the fields of the schema's first version, and later fields only if they differ from their
defaults. An upgrade therefore changes neither the digest nor the file of an experiment that uses no new
field: a Job created by an older operator is still the desired one, its workers can read the file without
knowing the new fields, and a rollback works.
"""

import hashlib
import json
from functools import cache
from typing import Any, cast

from pydantic import BaseModel

from asysi.contract.spec import Data, ScanExperiment

_FIRST = """
.: apiVersion kind metadata spec
metadata: name namespace labels uid
spec: mode model data inputs workload capture bus sae archive weights output resources consumers scheduling
spec: lifecycle
spec.model: uri revision dtype sha256 tokenizer secretRef
spec.model.secretRef: name key
spec.data: uri tokens holdout pipeline
spec.data.tokens: textField contextLength packing prependBos chatTemplate separatorToken excludeTokens
spec.data.tokens: maxNormMultiple
spec.data.holdout: share seed
spec.data.pipeline: operators streaming parallelSize batchSize processes shards writer onError maxDeadLetters
spec.data.pipeline: budget parallelism cpus memory secretRefs
spec.data.pipeline.operators[]: operator params name parallelSize batchSize processes outputUri onError writer
spec.data.pipeline.operators[].writer: asyncMode queueSize flushBatchSize flushInterval retryInterval fsync
spec.data.pipeline.writer: asyncMode queueSize flushBatchSize flushInterval retryInterval fsync
spec.data.pipeline.secretRefs[]: name key
spec.inputs[]: claim
spec.workload: scan train ppo custom
spec.workload.scan: batchSize maxSamples passes seed loss
spec.workload.custom: image command
spec.capture: hookPoints parameters kinds positions sampling quantization size
spec.capture.positions: mode count
spec.capture.sampling: rate minRate unit
spec.bus: shards size redis
spec.bus.redis: url secretRef managed
spec.bus.redis.secretRef: name key
spec.sae: enabled cpus memory train
spec.sae.train[]: name hookPoints variant latents k lr batch seed buffer normalisation auxk stop
spec.sae.train[]: checkpointSeconds
spec.sae.train[].buffer: batches sequences memory
spec.sae.train[].auxk: k coefficient deadAfter
spec.sae.train[].stop: tokens fvu
spec.archive: enabled tensors compression rotate cpus memory
spec.weights: enabled when
spec.output: uri claim size secretRef
spec.output.secretRef: name key
spec.resources: host hook prepare finish binding
spec.resources.host: cpus memory gpus shm
spec.resources.hook: cpus memory
spec.resources.prepare: cpus memory
spec.resources.finish: cpus memory
spec.resources.binding: cpus numa
spec.consumers: replicas
spec.scheduling: nodeSelector tolerations priorityClassName runtimeClassName queueName
spec.scheduling.tolerations[]: key operator value effect tolerationSeconds
spec.lifecycle: suspend activeDeadlineSeconds startDeadlineSeconds maxRestarts gracePeriodSeconds
spec.lifecycle: ttlSecondsAfterFinished
"""
FIRST_FIELDS = frozenset(
    f"{part}.{key}".lstrip(".")
    for part, _, keys in (line.partition(": ") for line in _FIRST.strip().splitlines())
    for key in keys.split()
)
"""Paths of the fields in the first version of v1alpha1, list items as `[]`. Must never change."""


def canonical(experiment: ScanExperiment) -> dict[str, Any]:
    """Return the experiment as JSON, keys as in files."""
    return cast("dict[str, Any]", _canonical(experiment, "", by_alias=True))


def canonical_data(data: Data) -> dict[str, Any]:
    """Return the data section as JSON, keys as in Python; determines the name of a pipeline's folder."""
    return cast("dict[str, Any]", _canonical(data, "spec.data", by_alias=False))


def digest(value: Any) -> str:
    """Return a digest of a JSON value, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _canonical(value: Any, pattern: str, *, by_alias: bool) -> Any:
    if isinstance(value, list):
        return [_canonical(item, f"{pattern}[]", by_alias=by_alias) for item in value]
    if not isinstance(value, BaseModel):
        return value
    content = {}
    for name, info in type(value).model_fields.items():
        if info.exclude:
            continue
        alias = info.alias or name
        path, held = f"{pattern}.{alias}".removeprefix("."), getattr(value, name)
        if path not in FIRST_FIELDS and not info.is_required() and held == _default(type(value), name):
            continue
        content[alias if by_alias else name] = _canonical(held, path, by_alias=by_alias)
    return content


@cache
def _default(model: type[BaseModel], name: str) -> Any:
    """Return a field's default, for comparison only; cached because creating one makes a deep copy."""
    return model.model_fields[name].get_default(call_default_factory=True)
