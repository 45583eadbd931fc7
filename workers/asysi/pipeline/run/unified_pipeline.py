"""Pipelines of operators from an input to an output; the streams in between are created automatically."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from asysi.contract.errors import ConfigError
from asysi.locations import local_folder
from asysi.pipeline.nodes.config import NodeConfig, WriterConfig, refuse_unknown
from asysi.pipeline.operators.fingerprint import rebuild
from asysi.pipeline.operators.operator import as_operator
from asysi.pipeline.run.blueprint_checks import compare
from asysi.pipeline.run.names import node_name, shard_name, shard_uri
from asysi.pipeline.run.pipeline import UnifiedNode, UnifiedNodePipeline
from asysi.pipeline.run.settings import ON_DISK, PipelineSettings, RunSettings
from asysi.pipeline.run.shards import refuse_foreign, window
from asysi.pipeline.streams.data_streams import IDataStream
from asysi.pipeline.streams.open_files import is_locked
from asysi.pipeline.streams.source import Window

_log = logging.getLogger("asysi.pipeline")


class UnifiedPipeline(UnifiedNodePipeline):
    """Operators from an input to an output; the streams in between are created automatically.

    Args:
        operators: operators or functions over batches, in order.
        input_uri: input: `jsonl://`, `csv://`, `parquet://`, `memory://`, or a custom protocol.
        output_uri: output of the last operator; by default with the others in `base_path`.
        streaming: run all nodes concurrently, each on the committed rows of the previous one.
        parallel_size: batches computed concurrently on threads.
        batch_size: source rows per batch.
        writer_config: how nodes write.
        base_path: folder for everything without an explicit path.
        protocol_prefix: prefix for the names of the intermediate streams.
        default_protocol: protocol of the intermediate streams.
        results_dir: folder with image, checkpoint and ledger, by default the pipeline's id in `base_path`.
        hooks: one or several hooks (`IPipelineHooks`).
        processes: worker processes per node; with more than 1, the rows are split among them.
        on_error: `fail` (the default) ends the run at the first failed row; `dead_letter` sets such rows
            aside.
        max_dead_letters: maximum number of dead letters per node, by default 1000.
        budget: limits by name of reported usage; the run ends cleanly when one is reached. Only this,
            `on_error` and `max_dead_letters` may differ when a run is resumed.
        log_dir: folder of `platform.log`.
        progress: show progress on the terminal; None: if there is one.
        node_configs: overrides for single nodes, in order.
        shard: (i, n): read only part i of n of the input, and add the shard's name to all files written.
    """

    def __init__(  # noqa: PLR0917 - the document's parameters, in its order
        self,
        operators: Sequence[Any] | None = None,
        input_uri: str = "",
        output_uri: str | None = None,
        streaming: bool = False,
        parallel_size: int = 1,
        batch_size: int = 1,
        writer_config: WriterConfig | None = None,
        base_path: str | Path = "tmp",
        protocol_prefix: str = "",
        default_protocol: str = "jsonl://",
        results_dir: str | Path | None = None,
        hooks: Any = None,
        *,
        processes: int = 1,
        on_error: str | None = None,
        max_dead_letters: int | None = None,
        budget: Mapping[str, float] | None = None,
        log_dir: str | Path = "logs",
        progress: bool | None = None,
        node_configs: Sequence[Any] | None = None,
        shard: tuple[int, int] | None = None,
    ) -> None:
        self._asked = PipelineSettings(
            operators,
            input_uri,
            output_uri,
            streaming,
            parallel_size,
            batch_size,
            writer_config,
            base_path,
            protocol_prefix,
            default_protocol,
            results_dir,
            hooks,
            processes,
            on_error,
            max_dead_letters,
            budget,
            log_dir,
            progress,
            node_configs,
            shard,
        )
        super().__init__()
        self._apply()

    def create(self, pipeline_id: str | None = None, *, overwrite: bool = False, **settings: Any) -> Self:
        """Write the blueprint, under the given or a generated name.

        Args:
            pipeline_id: name of the pipeline; letters, digits, `.`, `_` and `-`.
            overwrite: delete the state of an earlier run of this name, and existing outputs.
            settings: constructor arguments to override.

        Raises:
            ConfigError: see `UnifiedNodePipeline.create`; or a setting is unknown or out of range.
        """
        refuse_unknown("create", settings, PipelineSettings.names())
        self._asked = replace(self._asked, **settings)
        self._apply()
        return super().create(pipeline_id, overwrite=overwrite)

    def outline(self, pipeline_id: str) -> Self:
        """Create the nodes bound to their streams without writing anything, for inspection only.

        Raises:
            ConfigError: the nodes do not form a pipeline.
        """
        self.pipeline_id = pipeline_id
        self._build()
        self._check_nodes()
        return self

    def _apply(self) -> None:
        asked = self._asked
        self.streaming = bool(asked.streaming)
        self.base_path = local_folder(asked.base_path, "base_path", ON_DISK)
        self._budget.limits = dict(asked.budget or {})
        self._given = RunSettings.of(
            asked.results_dir, asked.log_dir, asked.hooks, asked.progress, leaves_state=True
        )

    @property
    def results_dir(self) -> Path:
        """Folder with image, checkpoint and ledger."""
        folder = super().results_dir
        return folder / shard_name(self._asked.shard) if self._asked.shard and not self._resume else folder

    def _build(self) -> None:
        asked = self._asked
        operators = [as_operator(operator) for operator in asked.operators or ()]
        if not operators:
            raise ConfigError("a pipeline needs at least one operator")
        if not asked.input_uri:
            raise ConfigError("a pipeline needs an input_uri")
        names = [node_name(index, operator) for index, operator in enumerate(operators, 1)]
        configs = self._configs(names)
        uris = [asked.input_uri]
        for index, (name, config) in enumerate(zip(names, configs, strict=True)):
            final = asked.output_uri if index == len(names) - 1 else None
            uri = config.output_uri or final or self._between(config.node_id or name)
            uris.append(shard_uri(uri, asked.shard))
        self.nodes = [
            self._node(config.node_id or name, operator, config)
            for name, operator, config in zip(names, operators, configs, strict=True)
        ]
        for node, source, out in zip(self.nodes, uris, uris[1:], strict=False):
            node.bind_io(self._bus(source), self._bus(out))
        self._prepare_input()

    def _writes_besides(self) -> list[str | None]:
        merged = self._asked.output_uri  # merged output of shards; each shard writes its own file
        return [*super()._writes_besides(), getattr(self._bus(merged), "url", None) if merged else None]

    def _make_room(self, overwrite: bool) -> None:
        if self._asked.shard and self._asked.output_uri:
            refuse_foreign(self._bus(self._asked.output_uri), self.pipeline_id, overwrite=overwrite)
        super()._make_room(overwrite)

    def _configs(self, names: list[str]) -> list[NodeConfig]:
        """Return a config per node; entries with a known `node_id` apply to that node, others go by
        position.
        """
        given = [NodeConfig.of(value) for value in self._asked.node_configs or ()]
        if len(given) > len(names):
            raise ConfigError(f"node_configs has {len(given)} entries for {len(names)} operators")
        configs = [NodeConfig() for _ in names]
        for index, config in enumerate(given):
            configs[names.index(config.node_id) if config.node_id in names else index] = config
        return configs

    def _node(self, name: str, operator: Any, config: NodeConfig) -> UnifiedNode:
        asked = self._asked
        node = UnifiedNode(
            name,
            config.parallel_size or asked.parallel_size,
            config.batch_size or asked.batch_size,
            processes=config.processes or asked.processes,
            writer_config=WriterConfig.of(config.writer_config or asked.writer_config),
            on_error=config.on_error or asked.error_policy,
            max_dead_letters=asked.dead_letter_limit,
        )
        node.set_processor(operator)
        return node

    def _between(self, node: str) -> str:
        protocol = self._asked.default_protocol
        ending = {"csv://": ".csv", "parquet://": ".parquet", "memory://": ""}.get(protocol, ".jsonl")
        return f"{protocol}{self.base_path}/{self._asked.protocol_prefix}{self.pipeline_id}/{node}{ending}"

    def _prepare_input(self, saved: Mapping[str, Any] | None = None) -> None:
        """Treat an existing file as complete, and fix the window of a shard."""
        bus = self.nodes[0].input_bus
        assert bus is not None
        bus.static = not _is_written(bus)
        self._window = None
        if self._asked.shard:
            if any(getattr(node.operator, "ordered", False) for node in self.nodes):
                raise ConfigError(
                    "an ordered operator (deduplication) cannot run in shards: run it on the merged output"
                )
            self._window = Window(**saved) if saved else window(bus, *self._asked.shard)

    def _blueprint(self) -> dict[str, Any]:
        asked = self._asked
        return {
            **{name: getattr(asked, name) for name in _IN_IMAGE},
            "on_error": asked.error_policy,
            "max_dead_letters": asked.dead_letter_limit,
            "base_path": str(asked.base_path),
            "shard": list(asked.shard) if asked.shard else None,
            "window": asdict(self._window) if self._window else None,
            "writer_config": WriterConfig.of(asked.writer_config).as_dict(),
            **super()._blueprint(),
        }

    def _load(self, image: Mapping[str, Any], accept_changes: bool) -> None:
        asked = self._asked
        operators = asked.operators
        if operators is None:
            operators = [rebuild(saved) for saved in image["operators"]]
        operators = [as_operator(operator) for operator in operators]
        compare(image, operators, accept_changes)
        if asked.input_uri and asked.input_uri != image["input_uri"]:
            _log.warning(
                "[Resume] input_uri is %s: the image's %s stands", asked.input_uri, image["input_uri"]
            )
        on_error = asked.on_error
        configs = self._configs([saved["node_id"] for saved in image["nodes"]])
        limit = image["max_dead_letters"] if asked.max_dead_letters is None else asked.max_dead_letters
        self._asked = replace(
            asked,
            **{name: image[name] for name in (*_IN_IMAGE, "base_path", "streaming")},
            on_error=image["on_error"] if on_error is None else on_error,
            max_dead_letters=limit,
            operators=operators,
            writer_config=WriterConfig.of(image["writer_config"]),
            shard=tuple(image["shard"]) if image["shard"] else None,
        )
        self.streaming, self.base_path = image["streaming"], Path(image["base_path"])
        if asked.budget is None:
            self._budget.limits = dict(image["budget"])
        self.nodes = []
        for saved, operator, wanted in zip(image["nodes"], operators, configs, strict=True):
            config = {
                name: saved[name] for name in ("parallel_size", "batch_size", "processes", "writer_config")
            }
            config["on_error"] = wanted.on_error or on_error or saved["on_error"]
            node = self._node(saved["node_id"], operator, NodeConfig.of(config))
            node.bind_io(self._bus(saved["input_uri"]), self._bus(saved["output_uri"]))
            self.nodes.append(node)
        self._prepare_input(image["window"])


_IN_IMAGE = (
    "input_uri",
    "output_uri",
    "parallel_size",
    "batch_size",
    "processes",
    "protocol_prefix",
    "default_protocol",
)
"""Settings that a resume restores from the image."""


def _is_written(bus: IDataStream) -> bool:
    path = getattr(bus, "local", None)
    return path is not None and path.exists() and is_locked(path)
