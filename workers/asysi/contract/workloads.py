"""The workloads that have a host, and their properties.

A workload consists of a part of `spec.workload`, a row of this table, and a module that runs the model. Code
that depends on the workload must check the row's properties, never the workload's name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from asysi.contract.errors import ConfigError
from asysi.contract.runtime import MODULES, Container
from asysi.contract.spec import Spec, Workload


class ReadsText(Protocol):
    """The part of a workload that reads the documents of `spec.data` in passes."""

    @property
    def batch_size(self) -> int:
        """Sequences per step."""

    @property
    def max_samples(self) -> int | None:
        """Maximum number of distinct documents to read; None reads all."""

    @property
    def passes(self) -> int:
        """How many times the training documents are read."""

    @property
    def seed(self) -> int:
        """Seed of the order of batches and of the token sampling."""


StepShape = Callable[[Spec], tuple[int, int]]


def text_steps(spec: Spec) -> tuple[int, int]:
    """Return the shape of a step that reads `batchSize` sequences of `data.tokens.contextLength` tokens."""
    return part_of(spec).batch_size, spec.data.tokens.context_length if spec.data else 1


def sample_steps(spec: Spec) -> tuple[int, int]:
    """Return the shape of a step that reads `batchSize` samples of `length` rows."""
    part = part_of(spec)
    return part.batch_size, part.length


def unknown_steps(_spec: Spec) -> tuple[int, int]:
    """Return the minimum shape of a step: the number of tokens is only known when the program runs."""
    return 1, 1


@dataclass(frozen=True, slots=True)
class WorkloadRow:
    """Static properties of a workload."""

    module: str | None
    """`python -m` module of its host; None if the spec specifies image and command."""
    resumable: bool
    """Whether a later attempt resumes after the last completed step; otherwise it starts at step 0."""
    rereadable: bool
    """Whether finish can reread the text: the part is a `ReadsText` and requires `spec.data`."""
    steps_known: bool
    """Whether the host knows the number of steps before the first one."""
    step_shape: StepShape
    """[batch, length] of the largest step."""
    examine: str | None = None
    """`module:function` that finds the model and its hook points for `check`; None where the model reads
    tokens, and `check` tries it itself."""


WORKLOADS: dict[str, WorkloadRow] = {
    "scan": WorkloadRow(
        "asysi.hosts.scan", resumable=True, rereadable=True, steps_known=True, step_shape=text_steps
    ),
    "train": WorkloadRow(
        "asysi.hosts.train", resumable=True, rereadable=False, steps_known=True, step_shape=sample_steps,
        examine="asysi.hosts.trainable:examine",
    ),
    "custom": WorkloadRow(
        None, resumable=False, rereadable=False, steps_known=False, step_shape=unknown_steps
    ),
}  # fmt: skip
"""By name of the part in `spec.workload`. `contract/available.py` rejects parts without a row."""

PARTS = {field.alias or name: name for name, field in Workload.model_fields.items()}
"""Attribute name of each part of `spec.workload` by its key in the file, with or without a host."""


def name_of(spec: Spec) -> str:
    """Return the name of the experiment's workload.

    Raises:
        ConfigError: the spec has no workload, or one without a host.
    """
    chosen = next((name for name, field in PARTS.items() if getattr(spec.workload, field) is not None), None)
    if chosen not in WORKLOADS:
        raise ConfigError(f"spec.workload: {chosen or 'nothing'} has no host; use {' or '.join(WORKLOADS)}")
    return chosen


def workload_of(spec: Spec) -> WorkloadRow:
    """Return the row of the experiment's workload.

    Raises:
        ConfigError: the spec has no workload, or one without a host.
    """
    return WORKLOADS[name_of(spec)]


def part_of(spec: Spec) -> Any:
    """Return the part of the spec for the experiment's workload.

    Raises:
        ConfigError: the spec has no workload, or one without a host.
    """
    return getattr(spec.workload, PARTS[name_of(spec)])


def text_of(spec: Spec) -> ReadsText | None:
    """Return how the workload reads text; None if its text cannot be reread.

    Raises:
        ConfigError: the spec has no workload, or one without a host.
    """
    if not workload_of(spec).rereadable:
        return None
    part: ReadsText = part_of(spec)
    return part


def module_of(container: Container, spec: Spec) -> str | None:
    """Return the `python -m` module of a container; None if the host has its own image and command.

    Raises:
        ConfigError: the spec has no workload, or one without a host.
    """
    return workload_of(spec).module if container is Container.HOST else MODULES[container]
