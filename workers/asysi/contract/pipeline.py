"""The spec of a pipeline: the file for `asysi pipeline run`, and the source of its reference page.

`asysi.contract.spec.Pipeline` has the fields shared with `spec.data.pipeline` of an experiment.
"""

from typing import Annotated, Literal

from pydantic import Field

from asysi.contract.spec import Pipeline, PipelineName, Uri


class PipelineFile(Pipeline):
    """A data pipeline: operators over rows, from an input to an output."""

    pipeline_id: PipelineName
    """Name of the pipeline, unique among those that share a `basePath`."""
    input_uri: Uri
    """Input rows: `jsonl://`, `csv://` or `parquet://` followed by a path, a glob or any fsspec URL."""
    output_uri: Uri
    """Output of the last operator."""
    base_path: Uri = "tmp"
    """Base folder of all files without an explicit path."""
    results_dir: Uri | None = None
    """Folder of image, checkpoint and ledger; defaults to a folder with the pipeline's name in `basePath`."""
    log_dir: Uri = "logs"
    """Folder of `platform.log`."""
    default_protocol: Literal["jsonl://", "csv://", "parquet://", "memory://"] = "jsonl://"
    """Protocol of the buses between nodes."""
    protocol_prefix: Annotated[str, Field(max_length=253)] = ""
    """Prefix of the names of the buses between nodes."""
