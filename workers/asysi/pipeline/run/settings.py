"""Settings of pipelines, frozen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from asysi.locations import local_folder
from asysi.pipeline.nodes.config import WriterConfig
from asysi.pipeline.run.hooks import CompositePipelineHooks

ON_DISK = (
    "ledger, locks and rows on their way need a disk of this machine; inputs and outputs may be in a store"
)
ON_ERROR, MAX_DEAD_LETTERS = "fail", 1000
"""Default error policy and dead-letter limit."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Locations of a pipeline's state, and its hooks.

    Attributes:
        results_dir: folder with image, checkpoint and ledger; None: the pipeline's id in its base path.
        log_dir: folder of `platform.log`; None: it is not written.
        hooks: hooks of the run.
        progress: show progress on the terminal; None: if there is one.
        leaves_state: whether to keep the state after a run without `create()`.
    """

    results_dir: Path | None
    log_dir: Path | None
    hooks: CompositePipelineHooks
    progress: bool | None
    leaves_state: bool

    @classmethod
    def of(
        cls,
        results_dir: str | Path | None,
        log_dir: str | Path | None,
        hooks: Any,
        progress: bool | None,
        *,
        leaves_state: bool,
    ) -> "RunSettings":
        """Create settings from user arguments.

        Raises:
            ConfigError: a folder is not on a local disk.
        """
        return cls(
            None if results_dir is None else local_folder(results_dir, "results_dir", ON_DISK),
            local_folder(log_dir or "logs", "log_dir"),
            CompositePipelineHooks(list(hooks) if isinstance(hooks, list | tuple) else [hooks]),
            progress,
            leaves_state,
        )


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """The arguments of `UnifiedPipeline`; see its docstring."""

    operators: Sequence[Any] | None
    input_uri: str
    output_uri: str | None
    streaming: bool
    parallel_size: int
    batch_size: int
    writer_config: WriterConfig | Mapping[str, Any] | None
    base_path: str | Path
    protocol_prefix: str
    default_protocol: str
    results_dir: str | Path | None
    hooks: Any
    processes: int
    on_error: str | None
    max_dead_letters: int | None
    budget: Mapping[str, float] | None
    log_dir: str | Path
    progress: bool | None
    node_configs: Sequence[Any] | None
    shard: tuple[int, int] | None

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of all settings."""
        return [field.name for field in fields(cls)]

    @property
    def error_policy(self) -> str:
        """How to handle failed rows: `fail` or `dead_letter`."""
        return self.on_error or ON_ERROR

    @property
    def dead_letter_limit(self) -> int:
        """Maximum number of dead letters per node."""
        return MAX_DEAD_LETTERS if self.max_dead_letters is None else self.max_dead_letters
