"""How a node writes, and what one node may have different from its pipeline."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any

from asysi.contract.errors import ConfigError

MAX_THREADS = 1024
"""Threads that compute the rows of one node, at most."""


@dataclass(frozen=True, slots=True)
class WriterConfig:
    """How computed rows reach the disk.

    Attributes:
        async_mode: write on a thread of its own, so that computing goes on meanwhile.
        queue_size: computed rows that may wait for the disk, >= 1; beyond it, computing waits.
        flush_batch_size: rows gathered before they are written, >= 1.
        flush_interval: seconds after which even a single row is written, > 0.
        retry_interval: longest time that the writing thread sleeps before it looks at its queue, seconds, >
        0.
        fsync: put rows and ledger on the disk with each commit. Off, they survive a killed process but
            not a lost machine; either way a resume is exact.
    """

    async_mode: bool = True
    queue_size: int = 20_000
    flush_batch_size: int = 500
    flush_interval: float = 1.0
    retry_interval: float = 0.1
    fsync: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: a number is out of its range.
        """
        for name in ("queue_size", "flush_batch_size", "flush_interval", "retry_interval"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"WriterConfig.{name} is {getattr(self, name)}: give a number above 0")

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for the image."""
        return asdict(self)

    @classmethod
    def of(cls, value: "WriterConfig | Mapping[str, Any] | None") -> "WriterConfig":
        """Return a config from a config, its fields, or nothing (the defaults).

        Raises:
            ConfigError: a field is unknown or out of its range.
        """
        if isinstance(value, WriterConfig):
            return value
        refuse_unknown("writer_config", value or {}, [field.name for field in fields(cls)])
        return cls(**(value or {}))


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What one node has different from its pipeline; None keeps what the pipeline has.

    Attributes:
        node_id: name of the node, by default its place and its operator's name.
        output_uri: where its rows go.
        batch_size: source rows in a batch, >= 1.
        parallel_size: batches in flight at once on threads, >= 1.
        processes: processes that compute, >= 1; 1 computes in this one.
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
        """Return a config from a config, its fields, or nothing.

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
    """What a node runs with, once it is open.

    Attributes:
        node_id: name of the node.
        operator: what it does.
        parallel_size: batches computed at once, on threads, >= 1.
        batch_size: source rows in a batch, >= 1.
        processes: processes that compute, >= 1; 1 computes in this one.
        writer_config: how it writes.
        on_error: `fail` or `dead_letter`.
        max_dead_letters: rows that may be set aside, >= 0.
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
    """Refuse keys that are not known, naming the nearest that is.

    Raises:
        ConfigError: there is such a key.
    """
    for key in given:
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise ConfigError(f"{where} has no {key}: {hint}")
