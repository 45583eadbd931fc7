"""Names of pipelines, of their nodes and of their shards."""

import re
import secrets
from datetime import datetime
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.pipeline.operators.operator import name_of


def pipeline_name(given: str | None) -> str:
    """Validate a pipeline id, or generate one.

    Raises:
        ConfigError: it is not a valid name.
    """
    if given is None:
        return f"pipeline-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", given):
        raise ConfigError(
            f"{given!r} is not a valid pipeline_id: use up to 128 letters, digits, dots, _ and -"
        )
    return given


def node_name(index: int, operator: Any) -> str:
    """Return the name of the node at a position, counted from 1."""
    return f"{index}_{re.sub(r'[^A-Za-z0-9_-]', '', name_of(operator)) or 'node'}"


def shard_name(shard: tuple[int, int]) -> str:
    """Return the name of a shard in file names."""
    return f"shard-{shard[0]:05d}-of-{shard[1]:05d}"


def shard_uri(uri: str, shard: tuple[int, int] | None) -> str:
    """Return a URI with the shard's name in it."""
    if not shard:
        return uri
    stem, dot, suffix = uri.rpartition(".")
    return (
        f"{stem}.{shard_name(shard)}.{suffix}" if dot and "/" not in suffix else f"{uri}.{shard_name(shard)}"
    )
