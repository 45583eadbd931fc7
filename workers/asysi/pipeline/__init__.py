"""The data pipeline: operators over rows, with exactly-once processing across kills and restarts.

    pipeline = UnifiedPipeline([Clean()], input_uri="jsonl://in.jsonl", output_uri="jsonl://out.jsonl")
    pipeline.create(pipeline_id="clean-v1")
    pipeline.run()

Heavy modules are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asysi.pipeline.nodes.config import NodeConfig, WriterConfig
    from asysi.pipeline.nodes.counters import Progress
    from asysi.pipeline.nodes.lifecycle import TooManyDeadLettersError
    from asysi.pipeline.operators.operator import (
        BaseOperator,
        CanceledError,
        FunctionOperator,
        INodeContext,
        IOperator,
        NodeContext,
    )
    from asysi.pipeline.rows.blocks import RowError
    from asysi.pipeline.run.hooks import CompositePipelineHooks, DefaultPipelineHooks, IPipelineHooks
    from asysi.pipeline.run.pipeline import OperatorNode, ParallelBatchNode, UnifiedNode, UnifiedNodePipeline
    from asysi.pipeline.run.telemetry import Report
    from asysi.pipeline.run.unified_pipeline import UnifiedPipeline
    from asysi.pipeline.streams.data_streams import (
        CsvStream,
        FileStream,
        IDataStream,
        JsonlStream,
        MemoryStream,
        ParquetStream,
        StreamBridge,
        StreamFactory,
    )
    from asysi.pipeline.streams.seal import Seal, SealError

_PLACES = {
    "asysi.pipeline.nodes.config": ("NodeConfig", "WriterConfig"),
    "asysi.pipeline.run.hooks": ("CompositePipelineHooks", "DefaultPipelineHooks", "IPipelineHooks"),
    "asysi.pipeline.nodes.counters": ("Progress",),
    "asysi.pipeline.nodes.lifecycle": ("TooManyDeadLettersError",),
    "asysi.pipeline.operators.operator": (
        "BaseOperator",
        "CanceledError",
        "FunctionOperator",
        "INodeContext",
        "IOperator",
        "NodeContext",
    ),
    "asysi.pipeline.run.pipeline": (
        "OperatorNode",
        "ParallelBatchNode",
        "UnifiedNode",
        "UnifiedNodePipeline",
    ),
    "asysi.pipeline.run.telemetry": ("Report",),
    "asysi.pipeline.run.unified_pipeline": ("UnifiedPipeline",),
    "asysi.pipeline.streams.seal": ("Seal", "SealError"),
    "asysi.pipeline.streams.data_streams": (
        "CsvStream",
        "FileStream",
        "IDataStream",
        "JsonlStream",
        "MemoryStream",
        "ParquetStream",
        "StreamBridge",
        "StreamFactory",
    ),
    "asysi.pipeline.nodes.worker": ("RowError",),
}
_WHERE = {name: module for module, names in _PLACES.items() for name in names}
__all__ = [
    "BaseOperator",
    "CanceledError",
    "CompositePipelineHooks",
    "CsvStream",
    "DefaultPipelineHooks",
    "FileStream",
    "FunctionOperator",
    "IDataStream",
    "INodeContext",
    "IOperator",
    "IPipelineHooks",
    "JsonlStream",
    "MemoryStream",
    "NodeConfig",
    "NodeContext",
    "OperatorNode",
    "ParallelBatchNode",
    "ParquetStream",
    "Progress",
    "Report",
    "RowError",
    "Seal",
    "SealError",
    "StreamBridge",
    "StreamFactory",
    "TooManyDeadLettersError",
    "UnifiedNode",
    "UnifiedNodePipeline",
    "UnifiedPipeline",
    "WriterConfig",
]


def __getattr__(name: str) -> Any:
    """Import a name on first use."""
    if name not in _WHERE:
        raise AttributeError(f"asysi.pipeline has no {name}")
    return getattr(import_module(_WHERE[name]), name)
