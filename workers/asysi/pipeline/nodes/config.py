"""Write settings of a node, and its overrides of the pipeline's settings."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any

from asysi.contract.errors import ConfigError

MAX_THREADS = 1024
"""Maximum number of threads per node."""


@dataclass(frozen=True, slots=True)
class WriterConfig:
    """How computed rows reach the disk.

    Attributes:
        async_mode: write in a separate thread, in parallel with computing.
        queue_size: maximum computed rows waiting to be written, >= 1; beyond it, computing blocks.
        flush_batch_size: rows collected before a write, >= 1.
        flush_interval: seconds after which even a single row is written, > 0.
        retry_interval: maximum seconds that the writer thread sleeps before it checks its queue, > 0.
        fsync: sync rows and ledger to disk with each commit. If off, they survive a killed process but not a
            machine crash; either way, a resume is exact.
    """

    async_mode: bool = True
    queue_size: int = 20_000
    flush_batch_size: int = 500
    flush_interval: float = 1.0
    retry_interval: float = 0.1
    fsync: bool = True

    def __post_init__(self) -> None:
        """Validate the numbers.

        Raises:
            ConfigError: a number is out of range.
        """
        for name in ("queue_size", "flush_batch_size", "flush_interval", "retry_interval"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"WriterConfig.{name} is {getattr(self, name)}: give a number above 0")

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, to be stored in the run state."""
        return asdict(self)

    @classmethod
    def of(cls, value: "WriterConfig | Mapping[str, Any] | None") -> "WriterConfig":
        """Return a config from a config, its fields, or None (the defaults).

        Raises:
            ConfigError: a field is unknown or out of range.
        """
        if isinstance(value, WriterConfig):
            return value
        refuse_unknown("writer_config", value or {}, [field.name for field in fields(cls)])
        return cls(**(value or {}))


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Overrides of the pipeline's settings for one node; None inherits.

    Attributes:
        node_id: name of the node, by default its position and its operator's name.
        output_uri: where its rows are written.
        batch_size: source rows per batch, >= 1.
        parallel_size: batches in flight on threads, >= 1.
        processes: worker processes, >= 1; 1 computes in the main process.
        writer_config: how it writes.
        on_error: `fail` or `dead_letter`.
    """

    node_id: str | None = None
    output_uri: str | None = None
    batch_size: int | None = None
    parallel_size: int | None = None
    processes: int | None = None
    writer_config: WriterConfig | None = None
    on_error: str | None = None

    @classmethod
    def of(cls, value: "NodeConfig | Mapping[str, Any] | None") -> "NodeConfig":
        """Return a config from a config, its fields, or None.

        Raises:
            ConfigError: a field is unknown.
        """
        if isinstance(value, NodeConfig):
            return value
        given = dict(value or {})
        refuse_unknown("node_configs", given, [field.name for field in fields(cls)])
        if given.get("writer_config") is not None:
            given["writer_config"] = WriterConfig.of(given["writer_config"])
        return cls(**given)


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Effective settings of an open node.

    Attributes:
        node_id: name of the node.
        operator: its operator.
        parallel_size: batches computed concurrently on threads, >= 1.
        batch_size: source rows per batch, >= 1.
        processes: worker processes, >= 1; 1 computes in the main process.
        writer_config: how it writes.
        on_error: `fail` or `dead_letter`.
        max_dead_letters: maximum number of dead letters, >= 0.
    """

    node_id: str
    operator: Any
    parallel_size: int
    batch_size: int
    processes: int
    writer_config: WriterConfig
    on_error: str
    max_dead_letters: int

    @property
    def sets_aside(self) -> bool:
        """Whether rows that cannot be processed become dead letters."""
        return self.on_error == "dead_letter"


def refuse_unknown(where: str, given: Mapping[str, Any], known: list[str]) -> None:
    """Reject unknown keys, suggesting the closest known one.

    Raises:
        ConfigError: a key is unknown.
    """
    for key in given:
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise ConfigError(f"{where} has no {key}: {hint}")
