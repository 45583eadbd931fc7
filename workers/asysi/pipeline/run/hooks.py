"""Hooks: callbacks that report the progress of a run."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

_log = logging.getLogger("asysi.pipeline")


@runtime_checkable
class IPipelineHooks(Protocol):
    """Callbacks of a run, with the pipeline id as first argument. They are called from the run's
    threads, one at a time per node.

    Exceptions raised by a hook are logged and not propagated.
    """

    def on_pipeline_start(self, cid: str, config: Mapping[str, Any]) -> None:
        """Called when the run starts; `config` is its image."""

    def on_pipeline_end(self, cid: str, success: bool, error: BaseException | None = None) -> None:
        """Called when the run ends; a canceled run or one with an exhausted budget has neither success
        nor error.
        """

    def on_node_start(self, cid: str, nid: str, config: Mapping[str, Any]) -> None:
        """Called when a node starts."""

    def on_node_progress(
        self, cid: str, nid: str, curr: int, total: int | None, meta: Mapping[str, Any]
    ) -> None:
        """Called with a node's progress, about once per second and at its end.

        Args:
            cid: pipeline.
            nid: node.
            curr: committed source rows.
            total: total source rows (None: unknown; an estimate if `meta["exact"]` is False).
            meta: `computed`, `durable`, `percent` (0..100 or None), `made`, `dropped`, `dead`, `exact`,
            `seconds`.
        """

    def on_node_end(self, cid: str, nid: str, success: bool, error: BaseException | None = None) -> None:
        """Called when a node ends."""

    def on_node_error(
        self, cid: str, nid: str, error: BaseException, items: Sequence[Any] | None = None
    ) -> None:
        """Called when a node fails; `items` holds the id of the failed row, if any."""

    def on_usage(self, cid: str, nid: str, provider: str, model: str, metrics: Mapping[str, Any]) -> None:
        """Called for every `ctx.report_usage` of an operator."""

    def on_checkpoint(self, cid: str, nid: str, checkpoint: Mapping[str, Any]) -> None:
        """Called with a node's committed progress."""


class DefaultPipelineHooks:
    """Hooks that do nothing; override those you need."""

    def on_pipeline_start(self, cid: str, config: Mapping[str, Any]) -> None:
        """Do nothing."""

    def on_pipeline_end(self, cid: str, success: bool, error: BaseException | None = None) -> None:
        """Do nothing."""

    def on_node_start(self, cid: str, nid: str, config: Mapping[str, Any]) -> None:
        """Do nothing."""

    def on_node_progress(
        self, cid: str, nid: str, curr: int, total: int | None, meta: Mapping[str, Any]
    ) -> None:
        """Do nothing."""

    def on_node_end(self, cid: str, nid: str, success: bool, error: BaseException | None = None) -> None:
        """Do nothing."""

    def on_node_error(
        self, cid: str, nid: str, error: BaseException, items: Sequence[Any] | None = None
    ) -> None:
        """Do nothing."""

    def on_usage(self, cid: str, nid: str, provider: str, model: str, metrics: Mapping[str, Any]) -> None:
        """Do nothing."""

    def on_checkpoint(self, cid: str, nid: str, checkpoint: Mapping[str, Any]) -> None:
        """Do nothing."""


class CompositePipelineHooks:
    """Combines several hooks; all are called even if one raises."""

    def __init__(self, hooks: Sequence[Any]) -> None:
        self._hooks = [hook for hook in hooks if hook is not None]

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Return a function that calls this method of every hook that has it."""
        if not name.startswith("on_"):
            raise AttributeError(name)

        def call(*arguments: Any) -> None:
            for hook in self._hooks:
                method = getattr(hook, name, None)
                if method is None:
                    continue
                try:
                    method(*arguments)
                except Exception:  # noqa: BLE001 - a display must not end a run
                    _log.exception("[Hook] %s.%s raised; the run continues", type(hook).__name__, name)

        return call
