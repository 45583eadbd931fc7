"""Where the rows of an experiment are: its input itself, or what its pipeline makes of it."""

from pathlib import Path, PurePosixPath

from asysi.contract.canonical import canonical_data, digest
from asysi.contract.pipeline import PipelineFile
from asysi.contract.runtime import PIPELINE_FOLDER
from asysi.contract.spec import Data, DataPipeline, Pipeline, ScanExperiment

ROWS = "rows.jsonl"
_ELSEWHERE = frozenset(DataPipeline.model_fields) - frozenset(Pipeline.model_fields) | {"budget"}
"""Fields that change where a pipeline runs, or how long it may, but no row: it goes on where it was."""


def pipeline_folder(data: Data) -> PurePosixPath:
    """Return the folder of a pipeline's files below the output. Another input or pipeline has another."""
    content = canonical_data(data)["pipeline"]
    made = {key: value for key, value in content.items() if key not in _ELSEWHERE}
    return PIPELINE_FOLDER / digest([data.uri, made])


def read_rows(data: Data, output: Path) -> Data:
    """Return what the model reads: the data with its rows in the place of the pipeline's input."""
    return data.model_copy(update={"uri": rows_uri(data, output)})


def rows_uri(data: Data, output: Path) -> str:
    """Return the URI of what the model reads.

    Args:
        data: the spec's.
        output: folder of the results.
    """
    return f"jsonl://{output / pipeline_folder(data) / ROWS}" if data.pipeline is not None else data.uri


def pipeline_file(experiment: ScanExperiment, output: Path) -> PipelineFile:
    """Return the experiment's pipeline as `asysi pipeline run` would be given it.

    Args:
        experiment: one with a pipeline.
        output: folder of the results.
    """
    data = experiment.spec.data
    assert data is not None
    assert data.pipeline is not None
    folder = output / pipeline_folder(data)
    common = {name: getattr(data.pipeline, name) for name in Pipeline.model_fields}
    return PipelineFile(
        **common,
        pipeline_id=experiment.metadata.name,
        input_uri=data.uri,
        output_uri=rows_uri(data, output),
        base_path=str(folder / "nodes"),
        results_dir=str(folder),
        log_dir=str(folder),
    )
