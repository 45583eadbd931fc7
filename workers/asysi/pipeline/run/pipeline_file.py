"""Loads a pipeline from its YAML file, or reports what is wrong, where, and what to do.

Relative paths are relative to the current folder; those that start with `./` or `../` are relative to the
folder of the file. `module:Class` is also searched in the file's folder and in the current folder.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from asysi.contract.errors import ConfigError
from asysi.contract.loading import merged, read, resolve_path, sentences, set_value
from asysi.contract.mistakes import problem_of
from asysi.contract.pipeline import PipelineFile
from asysi.contract.spec import PipelineNode, PipelineWriter
from asysi.pipeline.nodes.config import NodeConfig, WriterConfig
from asysi.pipeline.operators.registry import make_operator
from asysi.pipeline.run.unified_pipeline import UnifiedPipeline

_PATHS = ("inputUri", "outputUri", "basePath", "resultsDir", "logDir")
_WHOLE = "a pipeline's file"


def load(file: Path, settings: Sequence[str] = ()) -> PipelineFile:
    """Load a file, with absolute paths.

    Args:
        file: the YAML file.
        settings: `path=value` pairs that override the file, like `batchSize=10`.

    Raises:
        ConfigError: all problems found, one sentence each, with file, line, path and advice.
    """
    whole = merged([read(file), *map(set_value, settings)])
    try:
        return PipelineFile.model_validate(_absolute(whole.tree, file.parent), by_alias=True, by_name=False)
    except ValidationError as error:
        found = [problem_of(detail, PipelineFile) for detail in error.errors(include_url=False)]
        raise ConfigError(*sentences(found, whole.marks, _WHOLE)) from error


def results_dir(spec: PipelineFile) -> Path:
    """Return the folder with image, checkpoint and ledger; for shards, the parent of their folders."""
    return Path(spec.results_dir) if spec.results_dir else Path(spec.base_path) / spec.pipeline_id


def build(
    spec: PipelineFile,
    *,
    shard: tuple[int, int] | None = None,
    hooks: Any = None,
    progress: bool | None = None,
) -> UnifiedPipeline:
    """Return the pipeline of a spec, not created yet.

    Args:
        spec: the loaded file.
        shard: the part of the input to read; each part gets its share of the budget.
        hooks: hooks of the run.
        progress: show progress on the terminal; None: if there is one.

    Raises:
        ConfigError: an operator cannot be created.
    """
    share = shard[1] if shard else 1
    return UnifiedPipeline(
        operators_of(spec),
        input_uri=spec.input_uri,
        output_uri=spec.output_uri,
        streaming=spec.streaming,
        parallel_size=spec.parallel_size,
        batch_size=spec.batch_size,
        writer_config=_writer(spec.writer),
        base_path=spec.base_path,
        protocol_prefix=spec.protocol_prefix,
        default_protocol=spec.default_protocol,
        results_dir=spec.results_dir,
        hooks=hooks,
        processes=spec.processes,
        on_error=spec.on_error,
        max_dead_letters=spec.max_dead_letters,
        budget={name: limit / share for name, limit in spec.budget.items()},
        log_dir=spec.log_dir,
        progress=progress,
        node_configs=[_node(node) for node in spec.operators],
        shard=shard,
    )


def operators_of(spec: PipelineFile) -> list[Any]:
    """Return the operators of a spec.

    Raises:
        ConfigError: one cannot be created; the message says which.
    """
    made, problems = [], []
    for index, node in enumerate(spec.operators):
        try:
            made.append(make_operator(node.operator, node.params))
        except ConfigError as error:
            problems += [f"operators[{index}]: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(*problems)
    return made


def add_search_path(folder: Path) -> None:
    """Add a folder and the current folder to the search path for `module:Class`."""
    for place in (str(Path.cwd()), str(folder.resolve())):
        if place not in sys.path:
            sys.path.insert(0, place)


def _absolute(tree: Any, folder: Path) -> Any:
    """Return the tree with absolute paths, so that it can be resumed from any folder."""
    tree = {"basePath": "tmp", "logDir": "logs", **tree}
    here = Path.cwd()
    for key in _PATHS:
        if key in tree:
            tree[key] = resolve_path(tree[key], folder, here)
    if isinstance(tree.get("operators"), list):
        tree["operators"] = [
            {**node, "outputUri": resolve_path(node["outputUri"], folder, here)}
            if isinstance(node, dict) and "outputUri" in node
            else node
            for node in tree["operators"]
        ]
    return tree


def _node(node: PipelineNode) -> NodeConfig:
    return NodeConfig(
        node_id=node.name,
        output_uri=node.output_uri,
        batch_size=node.batch_size,
        parallel_size=node.parallel_size,
        processes=node.processes,
        writer_config=_writer(node.writer) if node.writer else None,
        on_error=node.on_error,
    )


def _writer(writer: PipelineWriter) -> WriterConfig:
    return WriterConfig(**writer.model_dump())
