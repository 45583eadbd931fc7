"""Whether a cluster can run an experiment: the contract's rules, and what only holds in a pod. Pure."""

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

FILE_LIMIT = 1_000_000
"""Bytes of an experiment's file: a ConfigMap holds 1 MiB, names and labels included."""
_SCHEMES = ("jsonl://", "file://")
"""Schemes that may stand before a path, in this order."""


def accept(tree: Mapping[str, Any]) -> ScanExperiment:
    """Return the experiment in an object of the API server.

    Raises:
        ConfigError: everything that is wrong with it, a sentence each that names the field.
    """
    experiment = check(tree)
    if problems := list(_problems(experiment)):
        raise ConfigError(*problems)
    return experiment


def notes(experiment: ScanExperiment) -> list[str]:
    """Return what is accepted and has no effect on a cluster, a sentence each."""
    binding = experiment.spec.resources.binding.cpus
    return ["spec.resources.binding is for local runs: here whole CPUs pin."] if binding else []


def _problems(experiment: ScanExperiment) -> Iterator[str]:
    spec = experiment.spec
    yield from _too_large(experiment)
    named, label = spec.scheduling.queue_name, experiment.metadata.labels.get(QUEUE)
    if named and label and named != label:
        yield (
            f"spec.scheduling.queueName is {named}, and the label {QUEUE} is {label}: an experiment waits in "
            "one queue, so drop one of them"
        )
    if spec.output.uri is not None:
        yield (
            "spec.output.uri is a folder of a local run: in a pod results go to a volume, so name its claim "
            "in spec.output.claim, or leave both out"
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
    """Its file is a ConfigMap, and Kubernetes takes none above 1 MiB."""
    document = canonical(experiment)
    size = _bytes(document)
    if size > FILE_LIMIT:
        path, largest = _largest("spec", document["spec"])
        yield (
            f"{path} takes {largest:,} of the experiment's {size:,} bytes, and the ConfigMap that carries it "
            f"to the pods holds {FILE_LIMIT:,}: make it shorter, or put long values into files of a claim"
        )


def _largest(path: str, value: Any) -> tuple[str, int]:
    """Return the innermost field that makes more than half of what is around it, and its bytes."""
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
            f"{field} is {uri}, relative to a folder of the one who wrote it: put the files on a volume, "
            f"name its claim in spec.inputs, and write the path as {mount}/…"
        )
    elif ".." in path.parts:
        yield f"{field} is {uri}, and says .. on its way: write where it leads"
    elif path.is_relative_to(INPUTS) and not (len(path.parts) > 2 and path.parts[2] in claims):
        known = f"there are {', '.join(sorted(claims))}" if claims else "spec.inputs is empty"
        yield f"{field} is {uri}, but no claim of spec.inputs is mounted there: {known}"


def _path(uri: str) -> PurePosixPath | None:
    """Return the path that a URI names, None when it names no path."""
    for scheme in _SCHEMES:
        uri = uri.removeprefix(scheme)
    return None if "://" in uri else PurePosixPath(uri)
