"""The data pipeline: operators over rows, exactly once, however often it is killed.

    pipeline = UnifiedPipeline([Clean()], input_uri="jsonl://in.jsonl", output_uri="jsonl://out.jsonl")
    pipeline.create(pipeline_id="clean-v1")
    pipeline.run()

Nothing heavy is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asysi.pipeline.config import NodeConfig, WriterConfig
    from asysi.pipeline.hooks import CompositePipelineHooks, DefaultPipelineHooks, IPipelineHooks
    from asysi.pipeline.node import (
        OperatorNode,
        ParallelBatchNode,
        Progress,
        TooManyDeadLettersError,
        UnifiedNode,
    )
    from asysi.pipeline.operators import (
        BaseOperator,
        CanceledError,
        FunctionOperator,
        INodeContext,
        IOperator,
        NodeContext,
    )
    from asysi.pipeline.pipeline import Report, UnifiedNodePipeline, UnifiedPipeline
    from asysi.pipeline.seal import Seal, SealError
    from asysi.pipeline.streams import (
        CsvStream,
        FileStream,
        IDataStream,
        JsonlStream,
        MemoryStream,
        ParquetStream,
        StreamBridge,
        StreamFactory,
    )
    from asysi.pipeline.work import RowError

_PLACES = {
    "asysi.pipeline.config": ("NodeConfig", "WriterConfig"),
    "asysi.pipeline.hooks": ("CompositePipelineHooks", "DefaultPipelineHooks", "IPipelineHooks"),
    "asysi.pipeline.node": (
        "OperatorNode",
        "ParallelBatchNode",
        "Progress",
        "TooManyDeadLettersError",
        "UnifiedNode",
    ),
    "asysi.pipeline.operators": (
        "BaseOperator",
        "CanceledError",
        "FunctionOperator",
        "INodeContext",
        "IOperator",
        "NodeContext",
    ),
    "asysi.pipeline.pipeline": ("Report", "UnifiedNodePipeline", "UnifiedPipeline"),
    "asysi.pipeline.seal": ("Seal", "SealError"),
    "asysi.pipeline.streams": (
        "CsvStream",
        "FileStream",
        "IDataStream",
        "JsonlStream",
        "MemoryStream",
        "ParquetStream",
        "StreamBridge",
        "StreamFactory",
    ),
    "asysi.pipeline.work": ("RowError",),
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
    """Import a name when it is first asked for."""
    if name not in _WHERE:
        raise AttributeError(f"asysi.pipeline has no {name}")
    return getattr(import_module(_WHERE[name]), name)
