"""The status of a `ScanExperiment`, written by the operator."""

from typing import Annotated, Literal

from pydantic import Field

from asysi.contract.spec import Part

Count = Annotated[int, Field(ge=0)]
Time = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
Word = Annotated[str, Field(max_length=253)]


class Condition(Part):
    """A condition, as `metav1.Condition`."""

    type: Annotated[str, Field(min_length=1, max_length=316)]
    """Type of the condition, in CamelCase."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition holds."""
    observed_generation: Count | None = None
    """Generation of the spec for which it was observed."""
    last_transition_time: Time
    """Time of the last change of the status."""
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    """Reason as one CamelCase word."""
    message: Annotated[str, Field(max_length=32_768)] = ""
    """Human-readable reason."""


class RowCounts(Part):
    """Rows over all hook points; a row is one token at one hook point."""

    seen: Count | None = None
    """Rows that passed the hook points."""
    captured: Count | None = None
    """Rows kept by capture."""
    sampled_out: Count | None = None
    """Rows skipped by the sampling rate."""
    dropped: Count | None = None
    """Rows lost for any reason."""
    archived: Count | None = None
    """Rows stored durably in the archive."""
    trained: Count | None = None
    """Rows that SAEs were trained on."""


class SaeStatus(Part):
    """Held-out quality of the SAEs, means over hook points."""

    fvu: float | None = None
    """Fraction of variance unexplained, over content tokens."""
    l0: float | None = None
    """Number of latents that fire per token."""
    dead: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of dead latents."""


class LedgerStatus(Part):
    """Whether the ledger balances."""

    balanced: bool | None = None
    """Whether every equation of the ledger holds."""
    unbalanced: Annotated[list[Word], Field(max_length=64)] = Field(default_factory=list)
    """Equations that do not hold."""


class PipelineStatus(Part):
    """Progress of the pipeline that runs before the experiment."""

    shards: Count | None = None
    """Number of shards."""
    done: Count | None = None
    """Shards that are complete."""
    running: Count | None = None
    """Pods that are running or pending."""
    failed: Count | None = None
    """Failed pods; each shard resumes where its last pod stopped."""


class LastFailure(Part):
    """The most recent failure."""

    container: Word | None = None
    """Container that failed."""
    reason: Word | None = None
    """One CamelCase word: `OOMKilled`, `ImagePullBackOff`, `Unschedulable`, …"""
    message: Annotated[str, Field(max_length=4096)] | None = None
    """Its termination message."""
    exit_code: int | None = None
    """Its exit code."""
    attempt: Count | None = None
    """Attempt in which it happened."""
    time: Time | None = None
    """Time of the failure."""


class Status(Part):
    """Observed state of the experiment."""

    observed_generation: Count | None = None
    """Generation of the spec that this status describes."""
    phase: (
        Literal[
            "Pending",
            "Refused",
            "Suspended",
            "Preparing",
            "Running",
            "Finishing",
            "Terminating",
            "Unknown",
            "Succeeded",
            "Failed",
        ]
        | None
    ) = None
    """Summary of the conditions; informational only."""
    reason: Word | None = None
    """Reason why it does not progress, as one CamelCase word."""
    conditions: Annotated[list[Condition], Field(max_length=32)] = Field(default_factory=list)
    """Conditions, one per type."""
    job: Word | None = None
    """Name of the Job."""
    pod: Word | None = None
    """Name of the current attempt's pod."""
    output: Annotated[str, Field(max_length=512)] | None = None
    """Location of the results: the claim and the folder on it."""
    attempt: Count | None = None
    """Number of the attempt, from 0."""
    node: Word | None = None
    """Node of the current attempt's pod."""
    start_time: Time | None = None
    """Time of the host's first start; the spec is frozen from then on."""
    completion_time: Time | None = None
    """Time when the experiment ended."""
    duration: Word | None = None
    """Duration from the host's first start to the end: `95s`, `2m39s`, `3h4m`."""
    cpu_sets: Annotated[dict[str, Word], Field(max_length=16)] = Field(default_factory=dict)
    """CPUs actually assigned to each container, as in `taskset -c`."""
    pipeline: PipelineStatus | None = None
    """Progress of the pipeline that runs before the experiment."""
    counters: RowCounts | None = None
    """Rows over all hook points."""
    sae: SaeStatus | None = None
    """Held-out quality of the SAEs, means over hook points."""
    ledger: LedgerStatus | None = None
    """Whether the ledger balances."""
    last_failure: LastFailure | None = None
    """The most recent failure; absent once the experiment has succeeded."""
    failures: Annotated[list[LastFailure], Field(max_length=10)] = Field(default_factory=list)
    """Earlier failures, oldest first, including the last one if the experiment has succeeded since."""
