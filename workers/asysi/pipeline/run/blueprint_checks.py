"""Checks that nodes form a pipeline, and compares it with an earlier image."""

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from asysi.contract.errors import ConfigError
from asysi.pipeline.nodes.node import Node
from asysi.pipeline.operators.fingerprint import differences, fingerprint
from asysi.pipeline.streams.row_log import MemoryLog
from asysi.pipeline.streams.seal import START_OVER

_MEMORY_KEPT = 64 << 20
"""Capacity in bytes of a `memory://` stream between two streaming nodes."""
_log = logging.getLogger("asysi.pipeline")


def check_nodes(nodes: Sequence[Node]) -> None:
    """Reject nodes that do not form a pipeline.

    Raises:
        ConfigError: there are none, two share a name or an output, or one lacks its operator or a stream.
    """
    names = [node.node_id for node in nodes]
    if not names:
        raise ConfigError("a pipeline needs at least one node")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two nodes are called {name}: give each its own node_id")
    for node in nodes:
        if node.operator is None or node.input_bus is None or node.output_bus is None:
            missing = "set_processor" if node.operator is None else "bind_io"
            raise ConfigError(f"node {node.node_id} is not ready: call {missing}")
    outputs = [node.output_bus.uri for node in nodes if node.output_bus]
    first = nodes[0].input_bus
    for uri in outputs:
        if outputs.count(uri) > 1 or (first is not None and uri == first.uri):
            raise ConfigError(
                f"{uri} would be written by two nodes, or over its own input: give each an output_uri"
            )


def link(nodes: Sequence[Node], *, streaming: bool) -> None:
    """Connect each node to the stream object that the previous node writes."""
    for before, node in pairwise(nodes):
        assert before.output_bus is not None
        assert node.input_bus is not None
        assert node.output_bus is not None
        if before.output_bus.uri == node.input_bus.uri:
            node.bind_io(before.output_bus, node.output_bus)
            before.output_bus.bound = True
            log = before.output_bus.log()
            if isinstance(log, MemoryLog):
                log.keep = _MEMORY_KEPT if streaming else None


def compare(image: Mapping[str, Any], operators: Sequence[Any], accept: bool) -> None:
    """Reject operators that differ from those of an image.

    Raises:
        ConfigError: they differ; the message says how.
    """
    saved = image["operators"]
    if len(saved) != len(operators):
        raise ConfigError(f"pipeline {image['pipeline_id']} has {len(saved)} operators, not {len(operators)}")
    problems = [
        f"operator {index} ({before['name']}) is not what it was: {'; '.join(found)}"
        for index, (before, operator) in enumerate(zip(saved, operators, strict=True), 1)
        if (found := differences(before, fingerprint(operator)))
    ]
    if problems and not accept:
        raise ConfigError(
            *problems,
            f"rows made before and after would not belong together: undo the change, {START_OVER}, or go on"
            " all the same with --accept-changes (in Python accept_changes=True)",
        )
    for problem in problems:
        _log.warning("[Resume] %s", problem)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe the differences between an image and an earlier one."""
    names = (
        "input_uri",
        "output_uri",
        "streaming",
        "parallel_size",
        "batch_size",
        "processes",
        "on_error",
        "shard",
    )
    found = [
        f"{name} was {before.get(name)}, it is {now.get(name)}"
        for name in names
        if before.get(name) != now.get(name)
    ]
    old, new = before.get("operators", []), now.get("operators", [])
    if len(old) != len(new):
        return [*found, f"it had {len(old)} operators, it has {len(new)}"]
    for index, (was, is_now) in enumerate(zip(old, new, strict=True), 1):
        found += [f"operator {index}: {difference}" for difference in differences(was, is_now)]
    return found
