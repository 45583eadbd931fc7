"""Nodes and streams by hand, as the document has them: nothing asked for, nothing left behind."""

import functools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from asysi.pipeline import (
    BaseOperator,
    RowError,
    StreamFactory,
    UnifiedNode,
    UnifiedNodePipeline,
    UnifiedPipeline,
    WriterConfig,
)
from asysi.pipeline.operators.functions import takes_one_row

SNIPPET = """
node = UnifiedNode(node_id="custom_node", parallel_size=10, batch_size=20)
node.bind_io(
    input_bus=StreamFactory.create("jsonl://in.jsonl"),
    output_bus=StreamFactory.create("jsonl://out.jsonl")
)
node.set_processor(my_logic_func)
node.run()
"""
"""Section 7.1, as it stands there."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    Path("in.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(50)))
    return here


def read(name: str = "out.jsonl") -> list[Any]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def left() -> set[str]:
    """Return what lies here and in the folder for temporary files."""
    return {path.name for place in (Path(), Path(tempfile.gettempdir())) for path in place.iterdir()}


def node(
    processor: Any, source: str = "jsonl://in.jsonl", out: str = "jsonl://out.jsonl", batch: int = 4
) -> UnifiedNode:
    made = UnifiedNode("n", batch_size=batch)
    made.bind_io(StreamFactory.create(source), StreamFactory.create(out))
    made.set_processor(processor)
    return made


def double(item: dict[str, Any]) -> dict[str, Any]:
    return {"twice": 2 * item["n"]}


def double_many(items: list[dict[str, Any]], ctx: Any = None) -> list[dict[str, Any]]:
    return [{"twice": 2 * item["n"]} for item in items]


@pytest.mark.parametrize("logic", [double, double_many])
def test_the_documents_snippet_runs_as_it_stands(logic: Callable[..., Any]) -> None:
    """§7.1: the example, verbatim, with a function of a row or of a batch, reads the whole file."""
    began = time.monotonic()
    exec(SNIPPET, {"UnifiedNode": UnifiedNode, "StreamFactory": StreamFactory, "my_logic_func": logic})
    assert [row["twice"] for row in read()] == list(range(0, 100, 2))
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("out", ["jsonl://out.jsonl", "csv://out.csv", "parquet://out.parquet"])
def test_a_node_leaves_nothing_but_its_output(out: str) -> None:
    """§11: no tmp/, no logs/, nothing in the folder for temporary files: the output and its seal."""
    node(double, out=out).run()
    name = out.partition("://")[2]
    assert left() == {"in.jsonl", name, f"{name}.done"}


def test_nodes_in_a_pipeline_leave_nothing_but_their_outputs() -> None:
    """§11.2: the same of several nodes, unless a name or a folder is given."""
    first, second = (
        node(double, out="jsonl://middle.jsonl"),
        node(lambda items: items, "jsonl://middle.jsonl"),
    )
    second.node_id = "second"
    UnifiedNodePipeline([first, second]).run()
    assert left() == {
        "in.jsonl",
        *(f"{name}.jsonl{end}" for name in ("middle", "out") for end in ("", ".done")),
    }


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        ({"results_dir": "state"}, {"state", "logs"}),
        ({"base_path": "base"}, {"base", "logs"}),
        ({"log_dir": "diary"}, {"tmp", "diary"}),
    ],
)
def test_a_folder_that_is_asked_for_is_made(asked: dict[str, Any], made: set[str]) -> None:
    """§11: state and log are kept where a folder for them is given."""
    UnifiedNodePipeline([node(double)], **asked).run()
    assert left() == {"in.jsonl", "out.jsonl", "out.jsonl.done", *made}


def test_a_node_may_run_again_and_keeps_computed_rows_when_it_fails() -> None:
    """A failure is raised; rows that wait for another format are not thrown away with the folder."""

    def broken(item: dict[str, Any]) -> dict[str, Any]:
        if item["n"] == 40:
            raise ValueError("no")
        return item

    failing = node(broken, out="csv://out.csv")
    with pytest.raises(RowError):
        failing.run()
    (spool,) = Path(tempfile.gettempdir()).glob("asysi-pipeline-*/spool/*.jsonl")
    assert len(read(str(spool))) == 40
    failing.set_processor(double)
    failing.run()
    assert len(Path("out.csv").read_text().splitlines()) == 51


def annotated_row(x: dict[str, Any]) -> Any:
    return double(x)


def annotated_mapping(x: Mapping[str, Any]) -> Any:
    return {"twice": 2 * x["n"]}


def annotated_batch(x: Sequence[Any], ctx: Any) -> Any:
    return double_many(list(x))


def nameless(x: Any) -> Any:
    return {"twice": 2 * x["n"]}


def nameless_batch(x: Any, ctx: Any) -> Any:
    return [{"twice": 2 * row["n"]} for row in x]


async def waiting(row: Any, ctx: Any) -> Any:
    return {"twice": 2 * row["n"]}


async def waiting_batch(rows: Any) -> Any:
    return double_many(rows)


async def waiting_nameless(x: Any) -> Any:
    return {"twice": 2 * x["n"]}


async def waiting_nameless_batch(x: Any, ctx: Any) -> Any:
    return double_many(x)


@pytest.mark.parametrize(
    "logic",
    [
        *(double, double_many, annotated_row, annotated_mapping, annotated_batch, nameless, nameless_batch),
        *(waiting, waiting_batch, waiting_nameless, waiting_nameless_batch),
        lambda row: {"twice": 2 * row["n"]},
        lambda x: {"twice": 2 * x["n"]},
        lambda x: [{"twice": 2 * row["n"]} for row in x],
        functools.partial(lambda factor, item: {"twice": factor * item["n"]}, 2),
    ],
)
def test_a_function_takes_a_row_or_a_batch(logic: Any) -> None:
    """§7.1: set_processor finds out what a function takes: by annotation, by name, or with the first row."""
    node(logic).run()
    assert [row["twice"] for row in read()] == list(range(0, 100, 2))


def test_a_function_of_a_row_may_drop_and_multiply() -> None:
    """§5.1: what a function of a row returns is what becomes of the row: none, one or several."""
    node(lambda item: [item] * (item["n"] % 3) or None).run()
    assert [row["n"] for row in read()] == [n for n in range(50) for _ in range(n % 3)]


def test_a_function_can_be_told_what_it_takes() -> None:
    """`single` says it, whatever annotation and name say."""
    made = node(double)
    made.set_processor(lambda items: {"twice": 2 * items["n"]}, single=True)
    made.run()
    assert read()[1]["twice"] == 2
    assert takes_one_row(lambda items: items) is False
    assert takes_one_row(lambda x: x) is None


def test_a_function_that_fails_is_a_row_that_fails() -> None:
    """A function that is tried with its first row fails as itself, not as a guess."""
    with pytest.raises(RowError, match=r"row 0: ZeroDivisionError"):
        node(lambda x: {"n": 1 // x["n"]}).run()


def test_a_file_that_another_program_writes_is_waited_for() -> None:
    """§8.1: a file that a program has open for writing is not complete, however long it pauses."""
    code = (
        "import time\nwith open('in.jsonl', 'a') as file:\n    print('', flush=True)\n    time.sleep(1.5)\n"
        "    file.write('{\"n\": 50}\\n')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        source = StreamFactory.create("jsonl://in.jsonl")
        source.patience = 0.5  # type: ignore[attr-defined]
        made = UnifiedNode("n")
        made.bind_io(source, StreamFactory.create("jsonl://out.jsonl"))
        made.set_processor(double)
        made.run()
    assert len(read()) == 51


class Slow(BaseOperator):
    def process_item(self, item, ctx=None):
        time.sleep(0.9 if item["n"] in {20, 21} else 0)
        return item


class Quick(BaseOperator):
    def process_item(self, item, ctx=None):
        return item


def test_the_log_tells_starts_dispatches_and_waiting_readers() -> None:
    """§15.1: platform.log has a line for a node's start and end, dispatched rows, and a reader that waits."""
    config = WriterConfig(flush_interval=0.05, retry_interval=0.05)
    UnifiedPipeline(
        [Slow(), Quick()], "jsonl://in.jsonl", "jsonl://out.jsonl", streaming=True, writer_config=config
    ).create("p").run()
    log = Path("logs/platform.log").read_text()
    for line in (
        "[Node] 1_Slow starts at source row 0: jsonl://in.jsonl -> jsonl://tmp/p/1_Slow.jsonl, parallel",
        "[Node] 2_Quick starts at source row 0: jsonl://tmp/p/1_Slow.jsonl -> jsonl://out.jsonl",
        "[Dispatch] 1_Slow: source rows 0 to ",
        "[EOF Retry] no new rows for ",
        "[Node] 2_Quick is completed: 50 source rows committed, 50 rows made",
    ):
        assert line in log
    assert log.count("[Dispatch]") < 20


def test_the_writing_thread_is_there_in_async_mode_alone() -> None:
    """§6: with async_mode a thread of its own writes; without it, the one that computes."""
    for async_mode in (True, False):
        seen: set[str] = set()

        def look(item: dict[str, Any], *, seen: set[str] = seen) -> dict[str, Any]:
            seen.update(thread.name for thread in threading.enumerate())
            return item

        made = node(look, out=f"jsonl://{async_mode}.jsonl")
        made.writer_config = WriterConfig(async_mode=async_mode)
        made.run()
        assert ("n-writer" in seen) is async_mode


def test_a_single_row_is_written_after_the_interval() -> None:
    """§6: a row does not wait for others longer than flush_interval, however large the batches are."""
    found: list[int] = []

    def wait(item: dict[str, Any]) -> dict[str, Any]:
        deadline = time.monotonic() + 20
        while item["n"] == 1 and not found and time.monotonic() < deadline:
            time.sleep(0.02)
            found.extend([1] * Path("out.jsonl").read_bytes().count(b"\n"))
        return item

    made = node(wait, batch=1)
    made.writer_config = WriterConfig(flush_batch_size=10_000, flush_interval=0.1)
    made.run()
    assert found == [1]
