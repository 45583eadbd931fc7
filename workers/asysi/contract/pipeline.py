"""The spec of a pipeline: the file that `asysi pipeline run` reads, and the source of its reference page.

What it has in common with `spec.data.pipeline` of an experiment is `asysi.contract.spec.Pipeline`.
"""

from typing import Annotated, Literal

from pydantic import Field

from asysi.contract.spec import Pipeline, PipelineName, Uri


class PipelineFile(Pipeline):
    """A data pipeline: operators over rows, from an input to an output."""

    pipeline_id: PipelineName
    """Name of the pipeline, unique among those that share a `basePath`."""
    input_uri: Uri
    """Where rows come from: `jsonl://`, `csv://` or `parquet://` and a path (also a glob) or any fsspec
    URL."""
    output_uri: Uri
    """Where the last operator's rows go."""
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
