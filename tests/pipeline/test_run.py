"""Pipelines, nodes and buses as the document describes them; tests name its sections."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from asysi.contract.errors import ConfigError
from asysi.pipeline import (
    BaseOperator,
    DefaultPipelineHooks,
    FileStream,
    RowError,
    StreamFactory,
    UnifiedNode,
    UnifiedNodePipeline,
    UnifiedPipeline,
    WriterConfig,
)

Rows = list[dict[str, Any]]


class Upper(BaseOperator):
    def process_item(self, item, ctx=None):
        return {**item, "text": item["text"].upper()}


class Explode(BaseOperator):
    def __init__(self, times: int = 3) -> None:
        self.times = times

    def process_item(self, item, ctx=None):
        return [{"part": n} for n in range(self.times)]


class Tag(BaseOperator):
    def process_batch(self, items, ctx=None):
        return [{**item, "batch": len(items)} for item in items]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(rows: Rows, name: str = "in.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl://{name}"


def texts(count: int) -> Rows:
    return [{"text": f"row {n}"} for n in range(count)]


def read(name: str = "out.jsonl") -> Rows:
    return [json.loads(line) for line in Path(name).read_bytes().split(b"\n") if line]


def pipeline(*operators: Any, rows: Rows | None = None, **settings: Any) -> UnifiedPipeline:
    source = write(rows if rows is not None else texts(10))
    return UnifiedPipeline(list(operators), source, "jsonl://out.jsonl", **settings)


def test_three_layers_carry_rows_from_input_to_output() -> None:
    """§1, §2: operators are wrapped as nodes between buses, and every row arrives in order."""
    report = pipeline(Upper(), Tag()).create(pipeline_id="p1").run()
    assert [row["text"] for row in read()] == [f"ROW {n}" for n in range(10)]
    assert report.status == "completed"
    assert report.settled == 10


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("batch", [1, 7])
def test_every_way_to_run_gives_the_same_bytes(streaming: bool, parallel: int, batch: int) -> None:
    """§2.1: streaming, parallel_size and writer settings change how long a run takes, not its output."""
    operators = [Upper(), Explode(2), Upper2()]
    pipeline(*operators, rows=texts(300)).create("plain").run()
    expected = Path("out.jsonl").read_bytes()
    for path in Path().glob("out.jsonl*"):
        path.unlink()
    pipeline(
        *operators, rows=texts(300), streaming=streaming, parallel_size=parallel, batch_size=batch
    ).create("other").run()
    assert Path("out.jsonl").read_bytes() == expected


class Upper2(BaseOperator):
    def process_item(self, item, ctx=None):
        return {"part": item["part"] * 2}


def test_processes_give_the_same_bytes() -> None:
    """A single file computed by several processes has the output of one."""
    pipeline(Explode(2), rows=texts(5000)).create("one").run()
    expected = Path("out.jsonl").read_bytes()
    for path in Path().glob("out.jsonl*"):
        path.unlink()
    pipeline(Explode(2), rows=texts(5000), processes=2).create("two").run()
    assert Path("out.jsonl").read_bytes() == expected


def test_paths_between_nodes_follow_from_base_prefix_and_protocol() -> None:
    """§2.1: base_path, protocol_prefix and default_protocol name the intermediates, results_dir the state."""
    settings = {"base_path": "work", "protocol_prefix": "space/", "results_dir": "state"}
    pipeline(Upper(), Tag(), **settings).create("p").run()
    image = json.loads(Path("state/runtime.json").read_text())
    assert image["nodes"][0]["output_uri"] == "jsonl://work/space/p/1_Upper.jsonl"
    assert Path("work/space/p/1_Upper.jsonl").exists()
    assert Path("state/checkpoint.json").exists()


def test_create_overrides_the_constructor_and_single_nodes() -> None:
    """§3.1: what create() is given stands over the constructor, and node_configs over both."""
    made = pipeline(Upper(), Tag(), batch_size=2).create(
        "p", batch_size=5, node_configs=[{"output_uri": "jsonl://middle.jsonl"}, {"batch_size": 4}]
    )
    assert [node.batch_size for node in made.nodes] == [5, 4]
    made.run()
    assert len(read("middle.jsonl")) == 10
    assert [row["batch"] for row in read()] == [4] * 8 + [2] * 2


def test_unknown_settings_name_the_nearest() -> None:
    """§3.1: a misspelt setting of a node is an error that names the right one."""
    with pytest.raises(ConfigError, match="did you mean batch_size"):
        pipeline(Upper(), node_configs=[{"batch_siz": 3}]).create("p")


def test_life_of_a_pipeline_is_told_in_its_image() -> None:
    """§4.1: create() writes runtime.json, run() runs to completed; what is finished does not run again."""
    made = pipeline(Upper()).create("p")
    state = Path("tmp/p/runtime.json")
    assert json.loads(state.read_text())["status"] == "created"
    made.run()
    assert json.loads(state.read_text())["status"] == "completed"
    with pytest.raises(ConfigError, match="call resume"):
        made.run()


def test_cancel_ends_cleanly_and_resume_goes_on() -> None:
    """§4.1, §14.2: cancel() begins nothing new, commits what was begun, and resume() goes on behind it."""
    made = pipeline(rows=texts(400))
    made.create("p", operators=[CancelAt(made, 50)])
    report = made.run()
    done = len(read())
    assert report.status == "canceled"
    assert 50 <= done < 400
    assert not Path("out.jsonl.done").exists()
    again = UnifiedPipeline([CancelAt(None, 50)]).resume("p")
    assert again.run().status == "completed"
    assert [row["_i"] for row in read()] == list(range(400))


class CancelAt(BaseOperator):
    """Cancels its pipeline at a row."""

    def __init__(self, made: UnifiedPipeline | None, at: int) -> None:
        self._made, self.at, self._seen = made, at, 0

    def process_item(self, item, ctx=None):
        self._seen += 1
        if self._made is not None and self._seen == self.at:
            self._made.cancel()
        return item


def test_items_of_a_batch_go_to_threads_when_the_operator_waits() -> None:
    """§5.1: with batch_size > 1, an operator that waits is called for the rows of a batch at once."""
    together = Together()
    pipeline(together, rows=texts(40), batch_size=10).create("p").run()
    assert together.most > 4
    assert [row["_i"] for row in read()] == list(range(40))


class Together(BaseOperator):
    waits = True

    def __init__(self) -> None:
        self._now = self._most = 0
        self._lock = threading.Lock()

    @property
    def most(self) -> int:
        return self._most

    def process_item(self, item, ctx=None):
        with self._lock:
            self._now += 1
            self._most = max(self._most, self._now)
        time.sleep(0.005)
        with self._lock:
            self._now -= 1
        return item


def test_batches_are_the_same_rows_whatever_the_blocks() -> None:
    """§5.1: process_batch gets batch_size rows, and fewer only at the end."""
    pipeline(Tag(), rows=texts(23), batch_size=5).create("p").run()
    assert [row["batch"] for row in read()] == [5] * 20 + [3] * 3


def test_lists_are_laid_out_flat_with_ids_of_their_own() -> None:
    """§5.1, §13.1: rows made of row 1 are 1_0, 1_1; those made of 1_1 are 1_1_0, 1_1_1."""
    pipeline(Explode(2), Explode(2), rows=texts(12)).create("p").run()
    ids = [row["_i"] for row in read()]
    assert ids[4:8] == ["1_0_0", "1_0_1", "1_1_0", "1_1_1"]
    assert len(set(ids)) == 48


def test_none_drops_a_row_and_is_counted() -> None:
    """§5.1: None and an empty list drop a row; the books say how many."""
    report = pipeline(Odd(), rows=texts(10)).create("p").run()
    assert [row["_i"] for row in read()] == [1, 3, 5, 7, 9]
    assert report.nodes["1_Odd"].dropped == 5


class Odd(BaseOperator):
    def process_item(self, item, ctx=None):
        if item["_i"] % 4 == 0:
            return []
        return item if item["_i"] % 2 else None


def test_context_tells_node_takes_usage_and_knows_of_the_end() -> None:
    """§5.2: ctx has node_id, report_usage and is_cancelled."""
    seen = []

    def look(items, ctx):
        seen.append((ctx.node_id, ctx.is_cancelled()))
        ctx.report_usage({"prompt_tokens": 2, "model": "m"})
        return items

    report = pipeline(look).create("p").run()
    assert set(seen) == {("1_look", False)}
    assert report.usage == {"prompt_tokens": 20}


@pytest.mark.parametrize("asynchronous", [True, False])
def test_writer_config_changes_when_rows_are_written(asynchronous: bool) -> None:
    """§6: with async_mode or without, and with any sizes, the same rows arrive."""
    config = WriterConfig(
        asynchronous, queue_size=3, flush_batch_size=4, flush_interval=0.01, retry_interval=0.01
    )
    pipeline(Upper(), rows=texts(100), writer_config=config).create("p").run()
    assert len(read()) == 100
    with pytest.raises(ConfigError, match="queue_size is 0"):
        WriterConfig(queue_size=0)


def test_a_full_queue_makes_computing_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """§6, §15.1: rows that wait never exceed queue_size by more than a block, and the log says so."""
    from asysi.pipeline.streams.row_log import FileLog

    append = FileLog.append
    monkeypatch.setattr(FileLog, "append", lambda log, data: (time.sleep(0.01), append(log, data))[1])
    config = WriterConfig(queue_size=10, flush_batch_size=5, flush_interval=0.01)
    report = pipeline(Upper(), rows=texts(200), writer_config=config).create("p").run()
    assert report.nodes["1_Upper"].waited > 0
    assert "[Backpressure]" in Path("logs/platform.log").read_text()


def test_a_node_runs_without_a_pipeline() -> None:
    """§7.1, §11.2: a node, two buses and a function of (items, ctx) are enough."""
    write(texts(10), "in.jsonl")
    node = UnifiedNode(node_id="custom_node", parallel_size=10, batch_size=20)
    source = StreamFactory.create("jsonl://in.jsonl")
    source.seal()
    node.bind_io(input_bus=source, output_bus=StreamFactory.create("jsonl://out.jsonl"))
    node.set_processor(lambda items, ctx: [{"n": len(item["text"])} for item in items])
    node.run()
    assert len(read()) == 10
    assert Path("out.jsonl.done").exists()


def test_nodes_wired_by_hand_run_in_a_node_pipeline() -> None:
    """§11: UnifiedNodePipeline derives no path: what was bound is what is read and written."""
    write(texts(10), "in.jsonl")
    first, second = UnifiedNode("n1", parallel_size=5, batch_size=10), UnifiedNode("n2")
    source = StreamFactory.create("jsonl://in.jsonl")
    source.seal()
    first.bind_io(source, StreamFactory.create("jsonl://middle.jsonl"))
    second.bind_io(StreamFactory.create("jsonl://middle.jsonl"), StreamFactory.create("jsonl://out.jsonl"))
    for node in (first, second):
        node.set_processor(lambda items, ctx: items)
    UnifiedNodePipeline(nodes=[first, second], streaming=True).create(pipeline_id="bare").run()
    assert [row["_i"] for row in read()] == list(range(10))


def test_an_unsealed_file_that_nobody_writes_is_read_to_its_end() -> None:
    """§7.1, §8.1, §11.2, §12.1, §17.1: a regular file needs no seal() where nobody writes it."""
    write(texts(3), "in.jsonl")
    node = UnifiedNode("n")
    node.bind_io(StreamFactory.create("jsonl://in.jsonl"), StreamFactory.create("jsonl://out.jsonl"))
    node.set_processor(lambda items, ctx: items)
    node.run()
    assert len(read()) == 3


def test_an_unsealed_file_that_a_node_left_is_an_error() -> None:
    """§8.1, §11.2, §12.1, §17.1: rows of a node that did not finish are not taken for all of them."""
    write([{"n": n, "_i": n} for n in range(3)], "in.jsonl")
    node = UnifiedNode("n")
    source = StreamFactory.create("jsonl://in.jsonl")
    source.patience = 0.2  # type: ignore[attr-defined]
    node.bind_io(source, StreamFactory.create("jsonl://out.jsonl"))
    node.set_processor(lambda items, ctx: items)
    with pytest.raises(ConfigError, match=r"in\.jsonl\.done.*call seal\(\)"):
        node.run()


def test_a_reader_waits_for_a_writer_that_pauses() -> None:
    """§8.1: a writer that pauses for over five retries of 0.1 s loses no row: its state is waited on."""
    source = StreamFactory.create("jsonl://in.jsonl")

    def slowly() -> None:
        with source.get_writer() as writer:
            for n in range(4):
                writer.write({"n": n})
                time.sleep(0.4)

    thread = threading.Thread(target=slowly)
    thread.start()
    while not Path("in.jsonl").exists():
        time.sleep(0.01)
    UnifiedPipeline([Nothing()], "jsonl://in.jsonl", "jsonl://out.jsonl").create("p").run()
    thread.join()
    assert [row["n"] for row in read()] == [0, 1, 2, 3]


class Nothing(BaseOperator):
    def process_item(self, item, ctx=None):
        return item


def test_a_protocol_of_ones_own() -> None:
    """§7.2: a FileStream with another place to look and a protocol is a bus like the others."""

    class OssStream(FileStream):
        def locate(self, rest: str) -> str:
            return str(Path("bucket") / rest)

    StreamFactory.register("oss", OssStream)
    Path("bucket").mkdir()
    write(texts(4), "bucket/a.jsonl")
    UnifiedPipeline([Upper()], "oss://a.jsonl", "oss://b.jsonl").create("p").run()
    assert len(read("bucket/b.jsonl")) == 4
    with pytest.raises(ConfigError, match="unknown protocol osss://"):
        StreamFactory.create("osss://x")


def test_hooks_hear_progress_usage_and_the_end() -> None:
    """§10: on_node_progress, on_usage and on_pipeline_end are called with the pipeline's and node's names."""
    heard = []

    class Monitor(DefaultPipelineHooks):
        def on_node_progress(self, cid, nid, curr, total, meta):
            heard.append(("progress", cid, nid, curr, total, meta["percent"]))

        def on_usage(self, cid, nid, provider, model, metrics):
            heard.append(("usage", nid, model, metrics["tokens"]))

        def on_pipeline_end(self, cid, success, error=None):
            heard.append(("end", cid, success))

    def spend(items, ctx):
        ctx.report_usage({"tokens": 1, "model": "m"})
        return items

    pipeline(spend, hooks=Monitor(), batch_size=10).create("p").run()
    assert ("progress", "p", "1_spend", 10, 10, 100.0) in heard
    assert ("usage", "1_spend", "m", 1) in heard
    assert heard[-1] == ("end", "p", True)


def test_a_hook_that_raises_does_not_end_the_run() -> None:
    """§10: watching a run must not change it."""

    class Broken(DefaultPipelineHooks):
        def on_node_end(self, cid, nid, success, error=None):
            raise ValueError("display gone")

    assert pipeline(Upper(), hooks=Broken()).create("p").run().status == "completed"
    assert "[Hook]" in Path("logs/platform.log").read_text()


def test_seals_say_what_a_file_holds() -> None:
    """§12.1: close() puts FILE.done beside the output: rows, bytes, digest and the first and last id."""
    pipeline(Explode(2), rows=texts(5)).create("p").run()
    seal = json.loads(Path("out.jsonl.done").read_text())
    assert (seal["rows"], seal["first"], seal["last"]) == (10, "0_0", "4_1")
    assert seal["bytes"] == Path("out.jsonl").stat().st_size
    assert StreamFactory.create("jsonl://out.jsonl").verify() is not None


def test_roots_are_line_numbers_from_zero() -> None:
    """§13.1: a root's id is its line, empty ones counted; rows that bring ids keep them."""
    Path("in.jsonl").write_text('{"a":1}\n\n{"a":2}')
    UnifiedPipeline([Nothing()], "jsonl://in.jsonl", "jsonl://out.jsonl").create("p").run()
    assert [row["_i"] for row in read()] == [0, 2]
    UnifiedPipeline([Nothing()], "jsonl://out.jsonl", "jsonl://again.jsonl").create("q").run()
    assert [row["_i"] for row in read("again.jsonl")] == [0, 2]


def test_only_newlines_end_lines() -> None:
    """§1: U+2028, U+0085, form feeds and carriage returns inside text do not split a row."""
    rows = [{"text": "a\u2028b\u2029c\u0085d\x0ce\x1cf\rg"}]
    Path("in.jsonl").write_text(json.dumps(rows[0], ensure_ascii=False) + "\r\n")
    UnifiedPipeline([Nothing()], "jsonl://in.jsonl", "jsonl://out.jsonl").create("p").run()
    assert read() == [{**rows[0], "_i": 0}]


def test_an_error_fails_the_node_and_cancels_the_run() -> None:
    """§14.1: an exception marks the node FAILED, cancels the others; what was finished is committed."""
    made = pipeline(FailAt(60), Nothing(), rows=texts(100), streaming=True, batch_size=1)
    with pytest.raises(RowError, match="node 1_FailAt, row 60: ValueError: no 60"):
        made.create("p").run()
    image = json.loads(Path("tmp/p/runtime.json").read_text())
    assert image["status"] == "failed"
    assert [node["status"] for node in image["nodes"]] == ["failed", "canceled"]
    kept = read("tmp/p/1_FailAt.jsonl")
    assert [row["_i"] for row in kept] == list(range(60))
    assert (
        UnifiedPipeline([FailAt(60, 0), Nothing()]).resume("p", accept_changes=True).run().status
        == "completed"
    )
    assert [row["_i"] for row in read()] == list(range(100))


class FailAt(BaseOperator):
    def __init__(self, at: int, factor: int = 1) -> None:
        self.at, self.factor = at, factor

    def process_item(self, item, ctx=None):
        if self.factor and item["_i"] == self.at:
            raise ValueError(f"no {self.at}")
        return item


def test_the_image_is_alive_while_a_run_goes_on() -> None:
    """§15.2: runtime.json tells computed and durable rows while the run goes on."""
    seen = []

    def look(items, ctx):
        time.sleep(0.03)
        seen.append(json.loads(Path("tmp/p/runtime.json").read_text())["nodes"][0]["computed"])
        return items

    pipeline(look, rows=texts(60)).create("p").run()
    assert max(seen) > 0


def test_durable_progress_never_leads_what_is_committed() -> None:
    """§17.2: curr counts committed rows; what is only computed stands beside it in meta."""
    heard = []

    class Monitor(DefaultPipelineHooks):
        def on_node_progress(self, cid, nid, curr, total, meta):
            heard.append((curr, meta["computed"], len(read())))

    def slow(items, ctx):
        time.sleep(0.02)
        return items

    config = WriterConfig(flush_batch_size=30, flush_interval=60)
    pipeline(slow, rows=texts(80), hooks=Monitor(), writer_config=config).create("p").run()
    assert all(curr <= computed and curr <= rows for curr, computed, rows in heard)
    assert any(curr < computed for curr, computed, _ in heard)


def test_the_package_has_its_old_name() -> None:
    """§7, §11: the document's imports from llm_datagen work."""
    import llm_datagen
    from llm_datagen import StreamFactory as Factory
    from llm_datagen import UnifiedNodePipeline as Pipeline

    assert (Factory, Pipeline) == (StreamFactory, UnifiedNodePipeline)
    assert "UnifiedPipeline" in llm_datagen.__all__
