"""The status of a `ScanExperiment`: what the operator says about it."""

from typing import Annotated, Literal

from pydantic import Field

from asysi.contract.spec import Part

Count = Annotated[int, Field(ge=0)]
Time = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
Word = Annotated[str, Field(max_length=253)]


class Condition(Part):
    """A condition, as `metav1.Condition`."""

    type: Annotated[str, Field(min_length=1, max_length=316)]
    """What is said, in CamelCase."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    observed_generation: Count | None = None
    """Generation of the spec that it was seen for."""
    last_transition_time: Time
    """When its status last changed."""
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    """Why, in one CamelCase word."""
    message: Annotated[str, Field(max_length=32_768)] = ""
    """Why, in a sentence."""


class RowCounts(Part):
    """Rows at all hook points together: a row is one token at one hook point."""

    seen: Count | None = None
    """Rows that passed the hook points."""
    captured: Count | None = None
    """Rows that capture kept and handed on."""
    sampled_out: Count | None = None
    """Rows left out by the sampling rate."""
    dropped: Count | None = None
    """Rows lost, for whatever reason."""
    archived: Count | None = None
    """Rows durable in the archive."""
    trained: Count | None = None
    """Rows that SAEs were trained on."""


class SaeStatus(Part):
    """Held-out quality of the SAEs, means over hook points."""

    fvu: float | None = None
    """Fraction of variance unexplained, over content tokens."""
    l0: float | None = None
    """Latents that fire for a token."""
    dead: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of latents that are dead."""


class LedgerStatus(Part):
    """Whether the books balance."""

    balanced: bool | None = None
    """Whether every equation of the ledger holds."""
    unbalanced: Annotated[list[Word], Field(max_length=64)] = Field(default_factory=list)
    """Equations that do not."""


class PipelineStatus(Part):
    """How far the pipeline before the experiment is."""

    shards: Count | None = None
    """Shards that there are."""
    done: Count | None = None
    """Shards that are done."""
    running: Count | None = None
    """Pods that run or wait for a node."""
    failed: Count | None = None
    """Pods that have failed; each shard goes on where its last pod ended."""


class LastFailure(Part):
    """The last thing that went wrong."""

    container: Word | None = None
    """Container that failed."""
    reason: Word | None = None
    """One CamelCase word: `OOMKilled`, `ImagePullBackOff`, `Unschedulable`, …"""
    message: Annotated[str, Field(max_length=4096)] | None = None
    """Its last words."""
    exit_code: int | None = None
    """Its exit code."""
    attempt: Count | None = None
    """Attempt in which it happened."""
    time: Time | None = None
    """When it happened."""


class Status(Part):
    """What the operator says about the experiment."""

    observed_generation: Count | None = None
    """Generation of the spec that this status is about."""
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
    """Why it is not where it should be, in one CamelCase word."""
    conditions: Annotated[list[Condition], Field(max_length=32)] = Field(default_factory=list)
    """What is known, one entry a type."""
    job: Word | None = None
    """Name of the Job."""
    pod: Word | None = None
    """Name of the current attempt's pod."""
    output: Annotated[str, Field(max_length=512)] | None = None
    """Where the results are: the claim, and the folder on it."""
    attempt: Count | None = None
    """Number of the attempt, from 0."""
    node: Word | None = None
    """Node of the current attempt's pod."""
    start_time: Time | None = None
    """When the host first started; from then on the spec is frozen."""
    completion_time: Time | None = None
    """When the experiment ended."""
    duration: Word | None = None
    """How long it has run, from the host's first start to the end: `95s`, `2m39s`, `3h4m`."""
    cpu_sets: Annotated[dict[str, Word], Field(max_length=16)] = Field(default_factory=dict)
    """Processors that each container really got, as in `taskset -c`."""
    pipeline: PipelineStatus | None = None
    """How far the pipeline before the experiment is."""
    counters: RowCounts | None = None
    """Rows at all hook points together."""
    sae: SaeStatus | None = None
    """Held-out quality of the SAEs, means over hook points."""
    ledger: LedgerStatus | None = None
    """Whether the books balance."""
    last_failure: LastFailure | None = None
    """The last thing that went wrong; absent once it has succeeded."""
    failures: Annotated[list[LastFailure], Field(max_length=10)] = Field(default_factory=list)
    """What went wrong before, oldest first: others have followed, or the experiment has succeeded since."""
