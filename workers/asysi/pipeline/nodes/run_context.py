"""The part of a run that its nodes need."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from asysi.pipeline.ledger.ledger import RowLedger
from asysi.pipeline.rows.blocks import Result
from asysi.pipeline.streams.source import Window


@dataclass(slots=True)
class RunContext:
    """The part of a run that its nodes need.

    Attributes:
        pipeline_id: name of the pipeline.
        folder: directory for the state of ledger and operators.
        ledger: the ledger.
        stop: set when the run is ending.
        spent: called with (node, result) as soon as a block is computed.
        window: the part of the source that this run reads, for the first node of a shard.
        is_first: whether the node reads the pipeline's input.
        resume: whether the node continues after the ranges committed by an earlier run.
        round: name of the redrive, empty in a normal run.
    """

    pipeline_id: str
    folder: Path
    ledger: RowLedger
    stop: threading.Event = field(default_factory=threading.Event)
    spent: Callable[[str, Result], None] = lambda node, result: None
    window: Window | None = None
    resume: bool = False
    is_first: bool = False
    round: str = ""
