"""The workloads that have a host, and what the rest of the system must know of each.

A workload is a part of `spec.workload`, a row of this table, and a module that runs the model. Whoever treats
workloads differently asks the row; nobody asks for a workload by its name.
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
        """Sequences in a step."""

    @property
    def max_samples(self) -> int | None:
        """Distinct documents to read at most; None reads all."""

    @property
    def passes(self) -> int:
        """Times that the training documents are read."""

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
    """Return the least shape of a step: how many tokens it holds is known when the program runs."""
    return 1, 1


@dataclass(frozen=True, slots=True)
class WorkloadRow:
    """What is known of a workload before it runs."""

    module: str | None
    """`python -m` of its host; None where the part of the spec names image and command."""
    resumable: bool
    """Whether a later attempt continues behind the last step; otherwise it begins with step 0."""
    rereadable: bool
    """Whether finish can read the text again: the part is a `ReadsText`, and needs `spec.data`."""
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
"""By name of the part below `spec.workload`. A part without a row is refused in `contract/available.py`."""

PARTS = {field.alias or name: name for name, field in Workload.model_fields.items()}
"""Parts of `spec.workload`, with a host or without: as the file writes them, and their attribute."""


def name_of(spec: Spec) -> str:
    """Return the name of the experiment's workload.

    Raises:
        ConfigError: the spec names none, or one that has no host.
    """
    chosen = next((name for name, field in PARTS.items() if getattr(spec.workload, field) is not None), None)
    if chosen not in WORKLOADS:
        raise ConfigError(f"spec.workload: {chosen or 'nothing'} has no host; take {' or '.join(WORKLOADS)}")
    return chosen


def workload_of(spec: Spec) -> WorkloadRow:
    """Return the row of the experiment's workload.

    Raises:
        ConfigError: the spec names none, or one that has no host.
    """
    return WORKLOADS[name_of(spec)]


def part_of(spec: Spec) -> Any:
    """Return the part of the spec that is about the experiment's workload.

    Raises:
        ConfigError: the spec names none, or one that has no host.
    """
    return getattr(spec.workload, PARTS[name_of(spec)])


def text_of(spec: Spec) -> ReadsText | None:
    """Return how the workload reads text, None where its text cannot be read again.

    Raises:
        ConfigError: the spec names no workload, or one that has no host.
    """
    if not workload_of(spec).rereadable:
        return None
    part: ReadsText = part_of(spec)
    return part


def module_of(container: Container, spec: Spec) -> str | None:
    """Return `python -m` of a container, None where the workload's own image and command are the host.

    Raises:
        ConfigError: the spec names no workload, or one that has no host.
    """
    return workload_of(spec).module if container is Container.HOST else MODULES[container]
