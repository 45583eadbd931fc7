"""The definition of a pipeline and the location of its state: created, or loaded from its image."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from asysi.contract.errors import ConfigError
from asysi.locations import local_folder
from asysi.pipeline.nodes.config import WriterConfig
from asysi.pipeline.nodes.node import Node
from asysi.pipeline.operators.fingerprint import fingerprint
from asysi.pipeline.run.blueprint_checks import check_nodes, compare, link
from asysi.pipeline.run.budget import SpendingLimit
from asysi.pipeline.run.names import pipeline_name
from asysi.pipeline.run.platform_log import FILE
from asysi.pipeline.run.results_folder import clear_previous_run, locked
from asysi.pipeline.run.run import LifecycleState
from asysi.pipeline.run.run_state import RUNTIME, read_image
from asysi.pipeline.run.settings import ON_DISK, RunSettings
from asysi.pipeline.run.telemetry import node_image, save, timestamp
from asysi.pipeline.streams import input_files
from asysi.pipeline.streams.completeness import is_complete
from asysi.pipeline.streams.data_streams import FileStream, IDataStream, StreamFactory
from asysi.pipeline.streams.input_files import InputFile
from asysi.pipeline.streams.source import Window

_log = logging.getLogger("asysi.pipeline")


class PipelineBlueprint:
    """Nodes bound to their streams, and their state on disk; see `UnifiedNodePipeline`."""

    def __init__(
        self,
        nodes: Sequence[Node] = (),
        *,
        streaming: bool = False,
        results_dir: str | Path | None = None,
        hooks: Any = None,
        budget: Mapping[str, float] | None = None,
        base_path: str | Path | None = None,
        log_dir: str | Path | None = None,
        progress: bool | None = None,
    ) -> None:
        self.nodes = list(nodes)
        self.streaming = streaming
        self.base_path = local_folder(base_path or "tmp", "base_path", ON_DISK)
        self.pipeline_id = ""
        leaves_state = any(folder is not None for folder in (results_dir, base_path, log_dir))
        self._given = RunSettings.of(results_dir, log_dir, hooks, progress, leaves_state=leaves_state)
        self._budget = SpendingLimit(budget)
        self._status = LifecycleState()
        self._window: Window | None = None
        self._inputs: list[InputFile] | None = None
        self._resume = False
        self._created = ""
        self._prints: list[dict[str, Any]] = []
        self._round = ""
        """Name of the redrive, empty in a normal run."""
        self._operators_dir: Path | None = None
        """Directory for operator state that survives a restart; None: the results folder."""

    @property
    def status(self) -> str:
        """Status: defined, created, resuming, running, completed, canceled, failed, …"""
        return self._status.name

    @property
    def error(self) -> BaseException | None:
        """The error that ended the last run, if it failed."""
        return self._status.error

    @property
    def budget(self) -> dict[str, float]:
        """Limits by name of reported usage."""
        return self._budget.limits

    @property
    def results_dir(self) -> Path:
        """Folder with image, checkpoint and ledger."""
        given = self._given.results_dir
        return given if given is not None else self.base_path / self.pipeline_id

    def has_begun(self) -> bool:
        """Return whether there is something to resume in the results folder."""
        return (self.results_dir / RUNTIME).exists()

    def create(self, pipeline_id: str | None = None, *, overwrite: bool = False) -> Self:
        """Write the blueprint, under the given or a generated name.

        Args:
            pipeline_id: name of the pipeline; letters, digits, `.`, `_` and `-`.
            overwrite: delete the state of an earlier run of this name, and existing outputs.

        Raises:
            ConfigError: the name is in use, an earlier run has left rows (the message names differences), an
                output already exists, or the nodes do not form a pipeline.
        """
        self.pipeline_id = pipeline_name(pipeline_id)
        self._build()
        for node in self.nodes:
            if isinstance(node.output_bus, FileStream):
                node.output_bus.move_spool(self.results_dir / "spool")
        self._check_nodes()
        self._input.static = self._input.static or is_complete(self._input)
        self._prints = self._fingerprints()
        with locked(self.results_dir, self.pipeline_id):
            self._make_room(overwrite)
            self._inputs = input_files.pin(self._input)
            self._status.forget()
            self._resume, self._status.name, self._created = False, "created", timestamp()
            self.save_runtime()
        return self

    def resume(self, pipeline_id: str | None = None, *, accept_changes: bool = False) -> Self:
        """Load the image of a pipeline to continue where it ended; `run()` then starts it.

        The image determines inputs and outputs, whatever arguments this object was created with.

        Args:
            pipeline_id: name of the pipeline; None: the one in `results_dir`.
            accept_changes: resume even if operators changed.

        Raises:
            ConfigError: there is no such pipeline, it is running, or its operators differ.
        """
        self.pipeline_id = pipeline_id or ""
        folder = self.results_dir
        image = read_image(folder)
        if pipeline_id and image["pipeline_id"] != pipeline_id:
            raise ConfigError(
                f"{self.results_dir} holds the pipeline {image['pipeline_id']}, not {pipeline_id}: use "
                "that name, or"
                " another results_dir"
            )
        self._given, self._resume = replace(self._given, results_dir=folder), True
        self.pipeline_id, self._created = str(image["pipeline_id"]), image["created"]
        with locked(self.results_dir, self.pipeline_id):
            self._load(image, accept_changes)
            self._check_nodes()
            self._prints = self._fingerprints()
            if pinned := image.get("inputs"):
                self._inputs = input_files.restore(self._input, pinned, accept=accept_changes)
            self._status.forget()
            self._status.name = "resuming"
            self.save_runtime()
        _log.info("[Resume] %s was %s", self.pipeline_id, image["status"])
        return self

    def get_runtime(self) -> dict[str, Any]:
        """Return the image: the pipeline's definition and status."""
        return {
            "pipeline_id": self.pipeline_id,
            "status": self.status,
            "error": str(self.error) if self.error else None,
            "process": os.getpid(),
            "created": self._created,
            "updated": timestamp(),
            "streaming": self.streaming,
            "budget": self.budget,
            "usage": self._budget.spent(),
            "results_dir": str(self.results_dir),
            **self._blueprint(),
            "inputs": input_files.as_image(self._inputs),
            "new_inputs": list(self._status.new_inputs),
            "nodes": [node_image(node, self._budget.of(node.node_id)) for node in self.nodes],
        }

    def save_runtime(self) -> None:
        """Write `runtime.json` and `checkpoint.json`."""
        save(self.results_dir, self.get_runtime(), self.nodes)

    def _build(self) -> None:
        """Create the nodes, if they are not given."""

    def _blueprint(self) -> dict[str, Any]:
        return {"operators": self._prints}

    def _fingerprints(self) -> list[dict[str, Any]]:
        """Return the operators' fingerprints, taken once: their source files may change during a run."""
        return [fingerprint(node.operator) for node in self.nodes if node.operator is not None]

    def _load(self, image: Mapping[str, Any], accept_changes: bool) -> None:
        """Restore paths and sizes from the image.

        Raises:
            ConfigError: the nodes differ from those of the image.
        """
        names, found = [node["node_id"] for node in image["nodes"]], [node.node_id for node in self.nodes]
        if names != found:
            raise ConfigError(
                f"pipeline {self.pipeline_id} has the nodes {', '.join(names)}, not {', '.join(found)}"
            )
        compare(image, [node.operator for node in self.nodes], accept_changes)
        for node, saved in zip(self.nodes, image["nodes"], strict=True):
            node.bind_io(self._bus(saved["input_uri"]), self._bus(saved["output_uri"]))
            node.parallel_size, node.batch_size = saved["parallel_size"], saved["batch_size"]
            node.writer_config = WriterConfig.of(saved["writer_config"])
        self.streaming = bool(image["streaming"])

    def _bus(self, uri: str) -> IDataStream:
        return StreamFactory.create(uri, self.results_dir / "spool")

    def _check_nodes(self) -> None:
        check_nodes(self.nodes)
        link(self.nodes, streaming=self.streaming)
        input_files.refuse_own_output(self.nodes, self.results_dir, self._writes_besides())

    def _writes_besides(self) -> list[str | None]:
        """Return the files it writes in addition to its nodes' outputs."""
        return [str(self._given.log_dir / FILE)] if self._given.log_dir else []

    @property
    def _input(self) -> IDataStream:
        bus = self.nodes[0].input_bus
        assert bus is not None
        return bus

    def _make_room(self, overwrite: bool) -> None:
        outputs = [node.output_bus for node in self.nodes if node.output_bus]
        clear_previous_run(self.results_dir, self.pipeline_id, outputs, self.get_runtime, overwrite=overwrite)
