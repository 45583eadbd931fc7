"""Whether a cluster can run an experiment: the contract's rules plus those specific to pods. Pure."""

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from asysi.contract.canonical import canonical
from asysi.contract.errors import ConfigError
from asysi.contract.loading import check
from asysi.contract.runtime import INPUTS
from asysi.contract.spec import ScanExperiment
from asysi_operator.manifests.labels import QUEUE
from asysi_operator.manifests.modes import refuse_mode

FILE_LIMIT = 1_000_000
"""Maximum bytes of an experiment's file: a ConfigMap holds 1 MiB, names and labels included."""
_SCHEMES = ("jsonl://", "csv://", "parquet://", "datasets://", "file://")
"""Schemes that may prefix a path, in this order."""


def validate(tree: Mapping[str, Any]) -> ScanExperiment:
    """Validate a ScanExperiment object from the API server and return the experiment.

    Raises:
        ConfigError: all problems found, one sentence each, naming the field.
    """
    experiment = check(tree)
    if problems := list(_problems(experiment)):
        raise ConfigError(*problems)
    return experiment


def notes(experiment: ScanExperiment) -> list[str]:
    """Return the fields that are accepted but have no effect on a cluster, one sentence each."""
    binding = experiment.spec.resources.binding.cpus
    return ["spec.resources.binding applies to local runs; on a cluster, whole CPUs pin."] if binding else []


def _problems(experiment: ScanExperiment) -> Iterator[str]:
    spec = experiment.spec
    if problem := refuse_mode(spec):
        yield problem
    yield from _too_large(experiment)
    named, label = spec.scheduling.queue_name, experiment.metadata.labels.get(QUEUE)
    if named and label and named != label:
        yield (
            f"spec.scheduling.queueName is {named}, but the label {QUEUE} is {label}: an experiment waits in "
            "one queue, so remove one of them"
        )
    if spec.output.uri is not None and spec.output.store is None:
        yield (
            "spec.output.uri is a directory for local runs; in a pod, results go to a volume: name its claim "
            "in spec.output.claim, or omit both; s3://bucket/prefix also uploads them"
        )
    uris = {
        "spec.model.uri": spec.model.uri,
        "spec.model.tokenizer": spec.model.tokenizer,
        "spec.data.uri": spec.data.uri if spec.data else None,
    }
    claims = {one.claim for one in spec.inputs}
    for field, uri in uris.items():
        if uri is not None and (path := _path(uri)) is not None:
            yield from _unreachable(field, uri, path, claims)


def _too_large(experiment: ScanExperiment) -> Iterator[str]:
    """Check the experiment's size: its file is stored in a ConfigMap, which Kubernetes limits to 1 MiB."""
    document = canonical(experiment)
    size = _bytes(document)
    if size > FILE_LIMIT:
        path, largest = _largest("spec", document["spec"])
        yield (
            f"{path} takes {largest:,} of the experiment's {size:,} bytes, but the ConfigMap that carries it "
            f"to the pods holds {FILE_LIMIT:,}: shorten it, or put long values into files on a claim"
        )


def _largest(path: str, value: Any) -> tuple[str, int]:
    """Return the innermost field that takes up more than half of its parent, and its size in bytes."""
    inside = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    )
    sizes = {key: (member, _bytes(member)) for key, member in inside}
    if sizes:
        key, (member, size) = max(sizes.items(), key=lambda item: item[1][1])
        if size * 2 > _bytes(value):
            return _largest(f"{path}[{key}]" if isinstance(value, list) else f"{path}.{key}", member)
    return path, _bytes(value)


def _bytes(value: Any) -> int:
    return len(json.dumps(value, indent=2, ensure_ascii=False).encode())


def _unreachable(field: str, uri: str, path: PurePosixPath, claims: set[str]) -> Iterator[str]:
    mount = f"{INPUTS}/<claim>"
    if not path.is_absolute():
        yield (
            f"{field} is {uri}, a relative path, which a pod cannot resolve: put the files on a volume, "
            f"name its claim in spec.inputs, and write the path as {mount}/…"
        )
    elif ".." in path.parts:
        yield f"{field} is {uri}, which contains ..: write the resolved path"
    elif path.is_relative_to(INPUTS) and not (len(path.parts) > 2 and path.parts[2] in claims):
        known = f"mounted claims: {', '.join(sorted(claims))}" if claims else "spec.inputs is empty"
        yield f"{field} is {uri}, but no claim of spec.inputs is mounted there: {known}"


def _path(uri: str) -> PurePosixPath | None:
    """Return the path in a URI, or None if the URI is not a path."""
    for scheme in _SCHEMES:
        uri = uri.removeprefix(scheme)
    return None if "://" in uri else PurePosixPath(uri)
