"""What a run says of itself is so, and what a message advises leads out."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asysi.contract.errors import ConfigError
from asysi.pipeline import (
    BaseOperator,
    SealError,
    StreamFactory,
    UnifiedPipeline,
    WriterConfig,
)
from asysi.pipeline.run.overview import overview
from asysi.pipeline.run.shards import merge

ROWS, STOP = 4000, 3001
SMALL = WriterConfig(queue_size=100, flush_batch_size=50, flush_interval=0.01)
"""Small blocks, committed often."""


class Three(BaseOperator):
    """Three rows of each, none of every fifth."""

    waits = False

    def process_item(self, item, ctx=None):
        return [{"n": item["n"], "k": k} for k in range(3)] if item["n"] % 5 else None


class Halt(BaseOperator):
    """Ends its run, cleanly or not, at a source row."""

    waits = False

    def __init__(self) -> None:
        self._end: Callable[[], None] | None = None

    def process_item(self, item, ctx=None):
        if self._end is not None and item["n"] == STOP:
            self._end()
            self._end = None
        return item


class Fail(BaseOperator):
    def __init__(self, at: int = -1) -> None:
        self.at = at

    def process_item(self, item, ctx=None):
        ctx.report_usage({"cost": 1})
        if item["n"] == self.at:
            raise ValueError("no")
        return item


class Mixed(BaseOperator):
    """Values of two types in one column, from a row on."""

    def __init__(self, at: int, value: Any) -> None:
        self.at, self.value = at, value

    def process_item(self, item, ctx=None):
        return {**item, "column": self.value if item["n"] >= self.at else 1}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    source(range(40))
    return tmp_path


def source(numbers: Any) -> None:
    Path("in.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in numbers))


def make(*operators: Any, **more: Any) -> UnifiedPipeline:
    settings = {"input_uri": "jsonl://in.jsonl", "output_uri": "jsonl://out.jsonl", **more}
    return UnifiedPipeline(list(operators), **settings)


def in_output() -> int:
    """Return up to which source row the output holds everything that is made of it."""
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    last = rows[-1]
    whole = last["k"] == 2
    return int(last["n"]) + whole


def everything() -> dict[str, bytes]:
    """Return every file here but the lock's and the log's."""
    return {
        str(file): file.read_bytes()
        for file in Path().rglob("*")
        if file.is_file() and file.name not in {".lock", "platform.log"} and "-wal" not in file.name
        if "-shm" not in file.name
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_settled_rows_are_those_that_the_output_holds(streaming: bool) -> None:
    """Nodes that make three rows of one: settled counts every row whose descendants are in the output."""
    source(range(ROWS))
    run = make(Three(), Halt(), streaming=streaming, writer_config=SMALL).create("p")
    run.nodes[1].operator._end = run.cancel
    report = run.run()
    assert report.status == "canceled"
    held = in_output()
    # A source row that becomes none is settled with the next one that is not.
    assert report.settled in {held, held + 1}
    assert ROWS // 2 < report.settled < ROWS
    assert overview(Path("tmp/p"))[0]["settled"] == report.settled


def test_settled_rows_after_a_kill_are_those_that_the_output_holds() -> None:
    """status says the same of a run that was killed, whatever its nodes have committed in one piece."""
    source(range(ROWS))
    child = os.fork()
    if child == 0:
        try:
            run = make(Three(), Halt(), writer_config=SMALL).create("p")
            run.nodes[1].operator._end = lambda: os.kill(os.getpid(), signal.SIGKILL)
            run.run()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    image = overview(Path("tmp/p"))[0]
    rows = image["nodes"][1]["durable"]
    numbers = [n for n in range(ROWS) if n % 5 for _ in range(3)]
    assert image["settled"] in {numbers[rows], numbers[rows] - 1}


def test_settled_rows_of_a_shard_count_from_its_first() -> None:
    """A shard's ids are those of the whole input; what it has settled is of its own part."""
    source(range(ROWS))
    report = make(Three(), Halt(), shard=(1, 2)).create("p").run()
    window = json.loads(next(Path("tmp/p").glob("shard-*/runtime.json")).read_text())["window"]
    assert report.settled == ROWS - window["first_row"]


def broken_output() -> None:
    Path("out.jsonl").write_text(Path("out.jsonl").read_text().replace('"n":7', '"n":8'))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (broken_output, "was changed after node"),
        (lambda: Path("out.jsonl.done").unlink(), "has lost its seal"),
        (lambda: Path("out.jsonl").write_text(""), "was cut"),
        (lambda: Path("in.jsonl").write_text("{}\n"), "is not what it was when the pipeline began"),
        (lambda: None, "is not what it was: its at was"),
    ],
)
def test_a_refused_redrive_changes_nothing(spoil: Callable[[], Any], said: str) -> None:
    """Image, ledger, letters and output are what they were, nothing was computed, and status agrees."""
    make(Fail(at=5), on_error="dead_letter").create("p").run()
    spoil()
    before = everything()
    changed = "its at was" in said
    again = make(Fail(at=-1 if changed else 5), on_error="dead_letter")
    with pytest.raises(ConfigError, match=said):
        again.redrive("p")
    assert everything() == before
    assert overview(Path("tmp/p"))[0]["status"] == "completed"


def test_a_redrive_before_the_run_changes_nothing() -> None:
    """A pipeline that was only created has nothing to redrive, and can still run."""
    make(Fail()).create("p")
    before = everything()
    with pytest.raises(ConfigError, match="has not run yet: run it first"):
        make(Fail()).redrive("p")
    assert everything() == before
    assert make(Fail()).create("p").run().status == "completed"


def test_a_redrive_that_is_looked_at_first_changes_nothing() -> None:
    """check_redrive refuses what redrive would, and leaves everything as it was."""
    make(Fail(at=5), on_error="dead_letter").create("p").run()
    before = everything()
    make(Fail()).check_redrive("p", accept_changes=True)
    with pytest.raises(ConfigError, match="--accept-changes"):
        make(Fail()).check_redrive("p")
    assert everything() == before
    assert make(Fail()).redrive("p", accept_changes=True).dead == 0


def advised(error: ConfigError) -> str:
    """Return what a refusal says, after checking that it says what to do."""
    text = str(error)
    assert re.search(r"[Rr]estore|[Dd]elete|remove|overwrite|resume|run ", text), text
    return text


@pytest.mark.parametrize(
    "spoil",
    [
        broken_output,
        lambda: Path("out.jsonl.done").unlink(),
        lambda: Path("out.jsonl.done").write_text("?"),
        lambda: Path("out.jsonl").unlink(),
        lambda: Path("tmp/p/ledger.sqlite").write_bytes(b"no database, but long enough for one" * 99),
        lambda: Path("tmp/p/runtime.json").write_text("{"),
        lambda: Path("tmp/p/runtime.json").write_text("[]"),
        lambda: source(range(7)),
    ],
)
def test_starting_over_leads_out_of_every_refusal(spoil: Callable[[], Any]) -> None:
    """Whatever was spoilt: the refusal names `run --overwrite`, and that completes."""
    make(Fail()).create("p").run()
    for suffix in ("-wal", "-shm"):
        Path(f"tmp/p/ledger.sqlite{suffix}").unlink(missing_ok=True)
    spoil()
    with pytest.raises(ConfigError) as refused:
        make(Fail()).resume("p").run()
    assert "run --overwrite" in advised(refused.value)
    assert make(Fail()).create("p", overwrite=True).run().status == "completed"


def test_removing_the_seal_of_a_changed_input_leads_out() -> None:
    """A sealed input that was changed may be read as it is when its seal is removed, as told."""
    StreamFactory.create("jsonl://in.jsonl").seal()
    source(range(41))
    with pytest.raises(SealError) as refused:
        make(Fail()).create("p").run()
    assert "if the change is meant, remove in.jsonl.done" in str(refused.value)
    Path("in.jsonl.done").unlink()
    assert make(Fail()).create("p", overwrite=True).run().nodes["1_Fail"].made == 41


def test_a_merged_output_that_is_deleted_is_merged_again() -> None:
    """Deleting it, as told, leads out, though its seal is still there."""
    for index in range(2):
        make(Fail(), shard=(index, 2)).create("p").run()
    seal = merge(Path("tmp/p"))
    broken_output()
    with pytest.raises(SealError, match="delete it and merge again"):
        merge(Path("tmp/p"))
    Path("out.jsonl").unlink()
    assert merge(Path("tmp/p")) == seal


def test_shards_do_not_run_for_an_output_that_is_there() -> None:
    """What lies where the merged output belongs is refused before the work, or overwritten as told."""
    Path("out.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"out\.jsonl already exists"):
        make(Fail(), shard=(0, 2)).create("p")
    for index in range(2):
        make(Fail(), shard=(index, 2)).create("p", overwrite=True).run()
    assert merge(Path("tmp/p")).rows == 40


@pytest.mark.parametrize("value", ["text", [1], {"a": 1}, True])
def test_parquet_refuses_a_type_when_it_comes_not_at_the_end(value: Any) -> None:
    """The row, the column and both types are named, and where the rows lie that were computed before."""
    source(range(ROWS))
    made = make(Mixed(1000, value), output_uri="parquet://out.parquet", writer_config=SMALL).create("p")
    with pytest.raises(ConfigError) as refused:
        made.run()
    text = str(refused.value)
    assert (
        f"in row 1000 the column column would hold int64, and {json.dumps(value, separators=(',', ':'))}"
        in text
    )
    spool = Path(text.rpartition(" in ")[2])
    held = [json.loads(line)["n"] for line in spool.read_text().splitlines()]
    assert held == list(range(len(held)))
    assert made.nodes[0].progress().computed < 3000
    again = make(Mixed(1000, 2), output_uri="parquet://out.parquet").resume("p", accept_changes=True)
    assert again.run().status == "completed"


def test_parquet_remembers_its_columns_over_a_resume() -> None:
    """Rows that were committed before count: a resume refuses what does not fit to them."""
    source(range(ROWS))
    source(range(ROWS))
    more = {"output_uri": "parquet://out.parquet", "writer_config": SMALL}
    made = make(Mixed(ROWS, 1), Halt(), **more).create("p")
    made.nodes[1].operator._end = made.cancel
    assert made.run().status == "canceled"
    again = make(Mixed(ROWS, 1), Mixed(0, "x"), **more)
    with pytest.raises(ConfigError, match='would hold int64, and "x"'):
        again.resume("p", accept_changes=True).run()
