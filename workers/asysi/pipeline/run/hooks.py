"""Where a run tells others how it goes."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

_log = logging.getLogger("asysi.pipeline")


@runtime_checkable
class IPipelineHooks(Protocol):
    """What a run calls, with the pipeline's id first. Calls come from the run's own threads, one at a time a
    node.

    What a hook raises is logged and goes no further.
    """

    def on_pipeline_start(self, cid: str, config: Mapping[str, Any]) -> None:
        """Say that the run begins; `config` is its image."""

    def on_pipeline_end(self, cid: str, success: bool, error: BaseException | None = None) -> None:
        """Say that the run ended; a run that was canceled or spent its budget is no success and has no
        error.
        """

    def on_node_start(self, cid: str, nid: str, config: Mapping[str, Any]) -> None:
        """Say that a node begins."""

    def on_node_progress(
        self, cid: str, nid: str, curr: int, total: int | None, meta: Mapping[str, Any]
    ) -> None:
        """Say how far a node is, about once a second and at its end.

        Args:
            cid: pipeline.
            nid: node.
            curr: source rows whose results are committed.
            total: source rows there are (None: unknown; an estimate where `meta["exact"]` is False).
            meta: `computed`, `durable`, `percent` (0..100 or None), `made`, `dropped`, `dead`, `exact`,
            `seconds`.
        """

    def on_node_end(self, cid: str, nid: str, success: bool, error: BaseException | None = None) -> None:
        """Say that a node ended."""

    def on_node_error(
        self, cid: str, nid: str, error: BaseException, items: Sequence[Any] | None = None
    ) -> None:
        """Say that a node failed; `items` holds the id of the row, where it was one."""

    def on_usage(self, cid: str, nid: str, provider: str, model: str, metrics: Mapping[str, Any]) -> None:
        """Say what an operator reported: once for every `ctx.report_usage`."""

    def on_checkpoint(self, cid: str, nid: str, checkpoint: Mapping[str, Any]) -> None:
        """Say what a node has committed."""


class DefaultPipelineHooks:
    """Hooks that do nothing: override those that matter."""

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
    """Several hooks as one: each is called, whatever the others raise."""

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
                    _log.exception("[Hook] %s.%s raised; the run goes on", type(hook).__name__, name)

        return call
