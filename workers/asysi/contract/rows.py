"""Locates the rows of an experiment: its input, or the output of its pipeline."""

from pathlib import Path, PurePosixPath

from asysi.contract.canonical import canonical_data, digest
from asysi.contract.errors import ConfigError
from asysi.contract.pipeline import PipelineFile
from asysi.contract.runtime import PIPELINE_FOLDER
from asysi.contract.spec import Data, DataPipeline, Pipeline, ScanExperiment

ROWS = "rows.jsonl"
_ELSEWHERE = frozenset(DataPipeline.model_fields) - frozenset(Pipeline.model_fields) | {"budget"}
"""Fields that affect where or how long a pipeline runs but not its rows; changing them allows resuming."""


def pipeline_folder(data: Data) -> PurePosixPath:
    """Return the folder of a pipeline's files in the output, unique for its input and configuration."""
    content = canonical_data(data)["pipeline"]
    made = {key: value for key, value in content.items() if key not in _ELSEWHERE}
    return PIPELINE_FOLDER / digest([data.uri, made])


def read_rows(data: Data, output: Path) -> Data:
    """Return the data with the URI of the rows that the model reads instead of the pipeline's input."""
    return data.model_copy(update={"uri": rows_uri(data, output)})


def rows_uri(data: Data, output: Path) -> str:
    """Return the URI of the rows that the model reads.

    Args:
        data: the spec's data.
        output: folder of the results.

    Raises:
        ConfigError: the last operator does not write JSON Lines.
    """
    if data.pipeline is None:
        return data.uri
    folder, uri = output / pipeline_folder(data), data.pipeline.operators[-1].output_uri
    if uri is None:
        return f"jsonl://{folder / ROWS}"
    if not uri.startswith("jsonl://"):
        raise ConfigError(
            f"spec.data.pipeline.operators[{len(data.pipeline.operators) - 1}].outputUri is {uri}, but the"
            " model reads these rows: give jsonl://, or drop it"
        )
    return _below(uri, folder)


def _below(uri: str, folder: Path) -> str:
    """Return a URI with its relative path resolved against a folder."""
    scheme, _, rest = uri.partition("://")
    return (
        uri if rest.startswith("/") or "://" in rest or scheme == "memory" else f"{scheme}://{folder / rest}"
    )


def pipeline_file(experiment: ScanExperiment, output: Path) -> PipelineFile:
    """Return the experiment's pipeline as a file for `asysi pipeline run`.

    Args:
        experiment: an experiment with a pipeline.
        output: folder of the results.
    """
    data = experiment.spec.data
    assert data is not None
    assert data.pipeline is not None
    folder = output / pipeline_folder(data)
    common = {name: getattr(data.pipeline, name) for name in Pipeline.model_fields}
    common["operators"] = [
        node.model_copy(update={"output_uri": node.output_uri and _below(node.output_uri, folder)})
        for node in data.pipeline.operators
    ]
    return PipelineFile(
        **common,
        pipeline_id=experiment.metadata.name,
        input_uri=data.uri,
        output_uri=rows_uri(data, output),
        base_path=str(folder / "nodes"),
        results_dir=str(folder),
        log_dir=str(folder),
    )
