"""What is left of the document's statements, and the table that says where each is tried."""

import importlib
import inspect
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import asysi.pipeline.streams.row_log
from asysi.pipeline import (
    BaseOperator,
    CsvStream,
    JsonlStream,
    MemoryStream,
    OperatorNode,
    StreamFactory,
    UnifiedNode,
    UnifiedNodePipeline,
    UnifiedPipeline,
    WriterConfig,
)

TABLE = Path(__file__).parents[2] / "docs" / "pipeline-document.md"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Same(BaseOperator):
    def process_item(self, item, ctx=None):
        return item


class Twice(BaseOperator):
    def process_item(self, item, ctx=None):
        return [item, item]


def pipeline(*operators: Any, rows: int = 40, **settings: Any) -> UnifiedPipeline:
    Path("in.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(rows)))
    return UnifiedPipeline(list(operators), "jsonl://in.jsonl", "jsonl://out.jsonl", **settings)


def read(name: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def image(name: str = "p") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"tmp/{name}/runtime.json").read_text())
    return found


def test_the_table_has_every_section_and_every_test_in_it_exists() -> None:
    """Sections 1 to 17 of the document are in the table; each row names tests that exist, or a reason."""
    text = TABLE.read_text()
    assert re.findall(r"^## (\d+)\. ", text, re.MULTILINE) == [str(number) for number in range(1, 18)]
    tests = set()
    for file in Path(__file__).parent.glob("test_*.py"):
        tests |= set(re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named <= tests, sorted(named - tests)
    rows = [line for line in text.splitlines() if re.match(r"\| §\d", line)]
    assert len(rows) > 60
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 3, row
        assert "`test_" in cells[2] or cells[2].startswith("Different: "), row


def test_every_section_named_by_a_test_is_in_the_document() -> None:
    """Tests name sections as §n or §n.m: none is named that the table does not have."""
    known = set(re.findall(r"^\| (§[\d.]+)", TABLE.read_text(), re.MULTILINE))
    known |= {section.partition(".")[0] for section in known}
    for file in Path(__file__).parent.glob("test_*.py"):
        named = set(re.findall(r"§\d+(?:\.\d+)?", file.read_text()))
        assert named - {"§n"} <= known, (file.name, sorted(named - known))


@pytest.mark.parametrize(
    "name",
    [
        *("UnifiedPipeline", "UnifiedNode", "UnifiedNodePipeline", "StreamFactory", "FileStream"),
        *("WriterConfig", "StreamBridge", "BaseOperator", "IOperator", "INodeContext", "OperatorNode"),
        *("ParallelBatchNode", "IPipelineHooks", "DefaultPipelineHooks"),
    ],
)
def test_every_name_of_the_document_can_be_imported(name: str) -> None:
    """§2, §4.2, §5, §7, §10, §11: each class that the document names is in llm_datagen."""
    package = importlib.import_module("llm_datagen")
    assert getattr(package, name) is getattr(importlib.import_module("asysi.pipeline"), name)
    assert name in package.__all__


def test_the_constructor_has_the_documents_parameters_and_defaults() -> None:
    """§2.1: parameters in the document's order, with its defaults."""
    parameters = inspect.signature(UnifiedPipeline).parameters
    assert list(parameters)[:11] == [
        *("operators", "input_uri", "output_uri", "streaming", "parallel_size", "batch_size"),
        *("writer_config", "base_path", "protocol_prefix", "default_protocol", "results_dir"),
    ]
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert (defaults["base_path"], defaults["protocol_prefix"]) == ("tmp", "")
    assert (defaults["default_protocol"], defaults["streaming"]) == ("jsonl://", False)
    assert [*inspect.signature(WriterConfig).parameters][:5] == [
        *("async_mode", "queue_size", "flush_batch_size", "flush_interval", "retry_interval")
    ]


def test_uris_name_their_buses() -> None:
    """§1, §11.1: StreamFactory makes the bus that the protocol names; a path alone is JSON lines."""
    kinds = {"jsonl://a": JsonlStream, "csv://a.csv": CsvStream, "memory://a": MemoryStream}
    for uri, kind in kinds.items():
        assert type(StreamFactory.create(uri)) is kind
    with StreamFactory.create("jsonl://a.jsonl").get_writer() as writer:
        writer.write({"n": 1})
    assert list(StreamFactory.create("jsonl://a.jsonl").get_reader()) == [{"n": 1}]


@pytest.mark.parametrize("streaming", [False, True])
def test_nodes_are_opened_run_and_closed(monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    """§4.1, §4.2: run() calls open, run and close of every node, in that order."""
    calls: list[tuple[str, str]] = []
    for method in ("open", "run", "close"):
        whole = getattr(UnifiedNode, method)

        def told(node: Any, _whole: Any = whole, _method: str = method) -> None:
            calls.append((node.node_id, _method))
            _whole(node)

        monkeypatch.setattr(UnifiedNode, method, told)
    pipeline(Same(), Same(), streaming=streaming).create("p").run()
    for node in ("1_Same", "2_Same"):
        assert [method for name, method in calls if name == node] == ["open", "run", "close"]


def test_nodes_pass_rows_on_while_they_run_only_when_streaming() -> None:
    """§2.1: streaming starts the second node before the first has ended; else it starts after it."""
    for streaming in (False, True):
        began: list[tuple[str, float]] = []

        class Slow(BaseOperator):
            def __init__(self, name: str, began: Any) -> None:
                self.name, self._began = name, began

            def process_item(self, item, ctx=None):
                self._began.append((self.name, time.monotonic()))
                time.sleep(0.01)
                return item

        config = WriterConfig(flush_batch_size=1, flush_interval=0.01, retry_interval=0.01)
        made = pipeline(Slow("a", began), Slow("b", began), streaming=streaming, writer_config=config)
        made.create("p", overwrite=True).run()
        last_of_a = max(at for name, at in began if name == "a")
        first_of_b = min(at for name, at in began if name == "b")
        assert (first_of_b < last_of_a) == streaming


@pytest.mark.parametrize("status", ["running", "failed", "canceled", "created"])
def test_resume_begins_again_from_any_state(status: str) -> None:
    """§3.2: whatever the image says, resume() makes it resuming and run() goes on."""
    pipeline(Same()).create("p")
    path = Path("tmp/p/runtime.json")
    path.write_text(json.dumps({**image(), "status": status, "process": 2**22 + 1}))
    made = UnifiedPipeline([Same()]).resume("p")
    assert (made.status, image()["status"]) == ("resuming", "resuming")
    assert made.run().status == "completed"


def test_resume_takes_settings_and_sizes_from_the_image() -> None:
    """§3.2, §12.2: writer_config, parallel_size and batch_size are those of the image, node by node."""
    config = WriterConfig(queue_size=77, flush_batch_size=7, flush_interval=0.3)
    made = pipeline(Same(), Same(), writer_config=config, parallel_size=3, batch_size=5)
    made.create("p", node_configs=[{"batch_size": 4}])
    again = UnifiedPipeline([Same(), Same()], batch_size=99).resume("p")
    assert [(node.parallel_size, node.batch_size) for node in again.nodes] == [(3, 4), (3, 5)]
    assert all(node.writer_config == config for node in again.nodes)


def test_the_image_holds_topology_uris_and_parameters() -> None:
    """§8.2, §12.2: runtime.json has every node with its URIs, sizes and id, and the pipeline's status."""
    pipeline(Same(), Twice(), batch_size=3).create("p")
    nodes = image()["nodes"]
    assert [node["node_id"] for node in nodes] == ["1_Same", "2_Twice"]
    assert nodes[0]["input_uri"] == "jsonl://in.jsonl"
    assert nodes[0]["output_uri"] == nodes[1]["input_uri"] == "jsonl://tmp/p/1_Same.jsonl"
    assert {node["batch_size"] for node in nodes} == {3}
    assert image()["status"] == "created"


def test_an_unfinished_node_loses_its_seal_and_a_finished_one_keeps_it() -> None:
    """§3.2, §12.1: on resume the seal of a node that goes on is removed, that of one that is done is not."""

    class FailAt(BaseOperator):
        def __init__(self, at: int) -> None:
            self._at = at

        def process_item(self, item, ctx=None):
            if item["n"] == self._at:
                sealed.append(Path("out.jsonl.done").exists())
                raise ValueError("no")
            return item

    sealed: list[bool] = []
    with pytest.raises(Exception, match="no"):
        pipeline(Same(), FailAt(30)).create("p").run()
    first = Path("tmp/p/1_Same.jsonl.done")
    before = first.stat().st_mtime_ns
    Path("out.jsonl.done").write_text('{"rows": 1, "bytes": 1, "digest": "0"}')
    with pytest.raises(Exception, match="no"):
        UnifiedPipeline([Same(), FailAt(30)]).resume("p", accept_changes=True).run()
    assert sealed == [False, False]
    assert not Path("out.jsonl.done").exists()
    assert first.stat().st_mtime_ns == before
    assert UnifiedPipeline([Same(), FailAt(-1)]).resume("p", accept_changes=True).run().status == "completed"
    assert len(read()) == 40


def test_ids_reach_back_through_ten_nodes() -> None:
    """§13.1: after ten operators, three of them 1:N, every id begins with its line's number."""
    operators = [Twice() if place in {2, 5, 9} else Same() for place in range(10)]
    pipeline(*operators, rows=6).create("p").run()
    rows = read()
    assert len(rows) == 6 * 8
    assert all(row["_i"].split("_")[0] == str(row["n"]) for row in rows)
    assert len({row["_i"] for row in rows}) == len(rows)


def test_a_reader_that_waits_is_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """§8.1, §15.1: a reader without new rows says [EOF Retry] in platform.log while it waits."""
    source = StreamFactory.create("jsonl://in.jsonl")

    def slowly() -> None:
        with source.get_writer() as writer:
            writer.write({"n": 0})
            time.sleep(1.5)
            writer.write({"n": 1})

    thread = threading.Thread(target=slowly)
    thread.start()
    while not Path("in.jsonl").exists():
        time.sleep(0.01)
    UnifiedPipeline([Same()], "jsonl://in.jsonl", "jsonl://out.jsonl").create("p").run()
    thread.join()
    assert [row["n"] for row in read()] == [0, 1]
    assert "[EOF Retry]" in Path("logs/platform.log").read_text()


@pytest.mark.parametrize(
    ("parallel", "batch", "writer"),
    [
        (20, 5, {}),
        (2, 100, {}),
        (2, 500, {}),
        (50, 10, {"async_mode": True}),
        (5, 200, {}),
        (1, 1, {"async_mode": True, "flush_batch_size": 500}),
        (1, 1, {"queue_size": 1000}),
    ],
)
def test_recommended_settings_give_the_same_rows(parallel: int, batch: int, writer: dict[str, Any]) -> None:
    """§9, §16: every recommended combination works as it stands."""
    config = WriterConfig(**writer)
    made = pipeline(Twice(), rows=700, parallel_size=parallel, batch_size=batch, writer_config=config)
    made.create("p").run()
    assert [row["_i"] for row in read()] == [f"{n}_{k}" for n in range(700) for k in range(2)]


def test_many_rows_share_a_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """§16: the writer puts many rows on the disk at once: far fewer syncs than rows."""
    syncs = []
    monkeypatch.setattr(asysi.pipeline.streams.row_log, "sync_file", syncs.append)
    pipeline(Same(), rows=5000, writer_config=WriterConfig(flush_batch_size=500)).create("p").run()
    assert 1 <= len(syncs) <= 500


def test_a_node_made_with_its_operator() -> None:
    """§2, §7.1: OperatorNode is a node and its operator in one."""
    Path("in.jsonl").write_text('{"n": 1}\n')
    source = StreamFactory.create("jsonl://in.jsonl")
    source.seal()
    node = OperatorNode("n1", Twice(), batch_size=2)
    node.bind_io(source, StreamFactory.create("jsonl://out.jsonl"))
    UnifiedNodePipeline([node]).create("p").run()
    assert [row["_i"] for row in read()] == ["0_0", "0_1"]
