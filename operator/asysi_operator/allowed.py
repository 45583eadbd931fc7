"""What the cluster administrator lets experiments choose. Pure.

The chart's admission policy enforces the same rules in CEL at admission time, but it is optional.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from asysi.contract.quantity import Memory, parse_bytes
from asysi.contract.runtime import Container
from asysi.contract.spec import ScanExperiment, Spec
from asysi_operator.manifests.resources import containers_of, of_container

ANY = ("*",)
Names = Annotated[tuple[str, ...], Field(max_length=256)]
"""Names, or prefixes followed by `*`."""


class Allowed(BaseModel):
    """What experiments may choose; keys as in the chart's value `allowed`."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )

    service_accounts: Names = ()
    """ServiceAccounts that pods may run as, in addition to the namespace's `default`."""
    priority_classes: Names = ANY
    """PriorityClasses."""
    runtime_classes: Names = ANY
    """RuntimeClasses."""
    node_labels: Names = ANY
    """Keys of node labels that node selectors and node affinities may name."""
    taints: Names = ANY
    """Keys of taints that may be tolerated."""
    images: Names = ANY
    """Images of custom workloads."""
    cpus: Annotated[float, Field(gt=0)] | None = None
    """Total CPUs of a pod's containers; None means no limit."""
    memory: Memory | None = None
    """Total memory of a pod's containers; None means no limit."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs per pod; None means no limit."""


def violations(experiment: ScanExperiment, allowed: Allowed) -> list[str]:
    """Return the experiment's choices that are not allowed, one sentence each, naming the field."""
    return list(_trespasses(experiment.spec, allowed))


def _trespasses(spec: Spec, allowed: Allowed) -> Iterator[str]:
    scheduling, custom = spec.scheduling, spec.workload.custom
    yield from _named("serviceAccountName", [scheduling.service_account_name], allowed.service_accounts)
    yield from _named("priorityClassName", [scheduling.priority_class_name], allowed.priority_classes)
    yield from _named("runtimeClassName", [scheduling.runtime_class_name], allowed.runtime_classes)
    yield from _named("nodeSelector", scheduling.node_selector, allowed.node_labels)
    yield from _named("affinity.nodeAffinity", _node_labels(spec), allowed.node_labels)
    # A toleration without a key tolerates every taint.
    yield from _named("tolerations", [one.key or "" for one in scheduling.tolerations], allowed.taints)
    if custom is not None and not _is_allowed(custom.image, allowed.images):
        yield _sentence("spec.workload.custom.image", custom.image, allowed.images)
    yield from _too_much(spec, allowed)


def _named(field: str, chosen: Iterable[str | None], names: Sequence[str]) -> Iterator[str]:
    for name in chosen:
        if name is not None and not _is_allowed(name, names):
            yield _sentence(f"spec.scheduling.{field}", name or "every taint", names)


def _sentence(path: str, name: str, names: Sequence[str]) -> str:
    may = f"only {', '.join(names)} may be used" if names else "none is allowed"
    return f"{path} is {name}, but {may}: ask your cluster administrator"


def _is_allowed(name: str, names: Sequence[str]) -> bool:
    return any(name == one or (one.endswith("*") and name.startswith(one[:-1])) for one in names)


def _node_labels(spec: Spec) -> Iterator[str]:
    nodes = spec.scheduling.affinity.node_affinity if spec.scheduling.affinity else None
    if nodes is None:
        return
    required = nodes.required_during_scheduling_ignored_during_execution
    preferred = nodes.preferred_during_scheduling_ignored_during_execution
    terms = [*(required.node_selector_terms if required else ()), *(one.preference for one in preferred)]
    for term in terms:
        yield from (one.key for one in term.match_expressions)


def _too_much(spec: Spec, allowed: Allowed) -> Iterator[str]:
    running = [one for one in containers_of(spec) if one is not Container.PREPARE]
    pipeline = spec.data is not None and spec.data.pipeline is not None
    pods = {"the pod": running} | ({"a pod of the pipeline": [Container.PIPELINE]} if pipeline else {})
    for pod, containers in pods.items():
        given = [of_container(spec, one) for one in containers]
        cpus, memory = sum(one.cpus for one in given), sum(parse_bytes(one.memory) for one in given)
        if allowed.cpus is not None and cpus > allowed.cpus:
            yield f"the containers of {pod} request {cpus:g} CPUs in total; the limit is {allowed.cpus:g}"
        if allowed.memory is not None and memory > parse_bytes(allowed.memory):
            yield (
                f"the containers of {pod} request {memory / 2**30:.4g}Gi of memory in total; "
                f"the limit is {allowed.memory}"
            )
    host, trainer = spec.resources.host.gpus, spec.sae.gpus if spec.sae else 0
    if allowed.gpus is not None and host + trainer > allowed.gpus:
        asked = f"spec.resources.host.gpus is {host}" + (f" and spec.sae.gpus {trainer}" if trainer else "")
        yield f"{asked}, and {allowed.gpus} is allowed"
