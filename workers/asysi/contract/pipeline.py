"""The spec of a pipeline: the file that `asysi pipeline run` reads, and the source of its reference page."""

from typing import Annotated, Literal

from pydantic import Field

from asysi.contract.spec import Part, PipelineOperator, Short, Uri

PipelineName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", max_length=128)]
"""Up to 128 letters, digits, dots, `_` and `-`."""
OnError = Literal["fail", "dead_letter"]
Budget = Annotated[dict[Short, Annotated[float, Field(gt=0)]], Field(max_length=64)]
Count = Annotated[int, Field(ge=1, le=1024)]


class Writer(Part):
    """How computed rows reach the disk."""

    async_mode: bool = True
    """Whether a thread of its own writes, so that computing goes on meanwhile."""
    queue_size: Annotated[int, Field(ge=1, le=10_000_000)] = 20_000
    """Computed rows that may wait for the disk; beyond it, computing waits."""
    flush_batch_size: Annotated[int, Field(ge=1, le=10_000_000)] = 500
    """Rows gathered before they are written."""
    flush_interval: Annotated[float, Field(gt=0, le=3600)] = 1.0
    """Seconds after which even a single row is written."""
    retry_interval: Annotated[float, Field(gt=0, le=60)] = 0.1
    """Longest time that the writing thread sleeps before it looks at its queue, seconds."""
    fsync: bool = True
    """Whether rows and ledger are on the disk with each commit. Off, they survive a killed process but not a
    lost machine; either way a resume is exact."""


class PipelineNode(PipelineOperator):
    """One node: an operator and how it runs."""

    name: PipelineName | None = None
    """Name of the node in files, logs and the ledger; unset takes its place and its operator's name."""
    parallel_size: Count | None = None  # type: ignore[assignment]  # a file has it once for all its nodes
    """Batches in flight at once, on threads; unset takes the pipeline's."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = None  # type: ignore[assignment]
    """Source rows in a batch; unset takes the pipeline's."""
    processes: Count | None = None
    """Processes that compute, one reading for all of them; unset takes the pipeline's."""
    on_error: OnError | None = None
    """What becomes of a row that cannot be processed; unset takes the pipeline's."""
    writer: Writer | None = None
    """How the node writes; unset takes the pipeline's."""


class PipelineFile(Part):
    """A data pipeline: operators over rows, from an input to an output."""

    pipeline_id: PipelineName
    """Name of the pipeline, unique among those that share a `basePath`."""
    input_uri: Uri
    """Where rows come from: `jsonl://`, `csv://` or `parquet://` and a path (also a glob) or any fsspec
    URL."""
    output_uri: Uri
    """Where the last operator's rows go."""
    operators: Annotated[list[PipelineNode], Field(min_length=1, max_length=64)]
    """Nodes in the order in which rows pass them."""
    streaming: bool = False
    """Whether all nodes run at once, each on the rows that the one before has committed."""
    parallel_size: Count = 1
    """Batches in flight at once in each node, on threads: for operators that wait."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 1
    """Source rows in a batch."""
    processes: Count = 1
    """Processes that compute in each node, one reading for all of them: for operators that compute."""
    shards: Count = 1
    """Parts of the input, by byte ranges of its files, each run by a process with a ledger of its own, and
    merged at the end: for inputs so large that even one reader is too slow."""
    writer: Writer = Writer()
    """How nodes write."""
    on_error: OnError = "fail"
    """`fail` ends the run at the first row that cannot be processed; `dead_letter` sets such rows aside, for
    `asysi pipeline redrive`."""
    max_dead_letters: Annotated[int, Field(ge=0, le=100_000_000)] = 1000
    """Rows that each node may set aside before the run fails."""
    budget: Budget = {}  # noqa: RUF012 - pydantic copies it
    """By name of what operators report (`cost`, `total_tokens`), how much may be spent before the run ends
    cleanly. Of shards, each has its share."""
    base_path: Uri = "tmp"
    """Folder of everything that has no name of its own."""
    results_dir: Uri | None = None
    """Folder of image, checkpoint and ledger; unset takes the pipeline's name in `basePath`."""
    log_dir: Uri = "logs"
    """Folder of `platform.log`."""
    default_protocol: Literal["jsonl://", "csv://", "parquet://", "memory://"] = "jsonl://"
    """Protocol of the buses between the nodes."""
    protocol_prefix: Annotated[str, Field(max_length=253)] = ""
    """Put before the names of the buses between the nodes."""
