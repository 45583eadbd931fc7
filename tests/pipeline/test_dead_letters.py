"""Rows that cannot be processed, and money that must not be overspent."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from asysi.contract.errors import ConfigError
from asysi.pipeline import BaseOperator, RowError, TooManyDeadLettersError, UnifiedPipeline, WriterConfig
from asysi.pipeline.ledger.ledger import RowLedger
from asysi.pipeline.run import redrive as redriving

ROWS = 120


class Split(BaseOperator):
    """Three rows of each; fails for some, costs 1 each."""

    def __init__(self, bad: tuple[int, ...] = ()) -> None:
        self.bad = list(bad)

    def process_item(self, item, ctx=None):
        if item["n"] % 10 in self.bad:
            raise ValueError(f"no {item['n']}")
        ctx.report_usage({"cost": 1, "model": "m"})
        return [{"n": item["n"], "part": part} for part in range(3)]


class Check(BaseOperator):
    """Fails for one part of some rows."""

    def __init__(self, bad: tuple[int, ...] = ()) -> None:
        self.bad = list(bad)

    def process_item(self, item, ctx=None):
        if item["n"] % 7 in self.bad and item["part"] == 1:
            raise KeyError(f"part of {item['n']}")
        return item


class First(BaseOperator):
    """Keeps the first row of each colour: it remembers what it saw."""

    ordered = True

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def process_item(self, item, ctx=None):
        colour = item["n"] % 20
        if colour in self._seen:
            return None
        self._seen.add(colour)
        return item

    def restore(self, rows):
        self._seen = {row["n"] % 20 for row in rows}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(ROWS)))
    return tmp_path


def make(split=(), check=(), out="out", **settings: Any) -> UnifiedPipeline:
    settings = {"on_error": "dead_letter", **settings}
    return UnifiedPipeline(
        [Split(split), Check(check)], "jsonl://in.jsonl", f"jsonl://{out}.jsonl", **settings
    )


def whole() -> bytes:
    """The output of a run in which nothing fails."""
    make(out="whole", results_dir="whole").create("whole").run()
    return Path("whole.jsonl").read_bytes()


def letters(node: str) -> list[dict[str, Any]]:
    file = Path("tmp/p/dead_letters") / f"{node}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_bad_rows_are_set_aside_with_reason_and_line() -> None:
    """§14.1: with on_error dead_letter the run goes on; the row, its id, node and reason are kept."""
    report = make((3,), (2,)).create("p").run()
    assert report.status == "completed"
    assert report.dead == len(letters("1_Split")) + len(letters("2_Check"))
    assert letters("1_Split")[0] == {
        "_i": "3", "node": "1_Split", "row": 3, "reason": "ValueError", "error": "no 3", "tries": 1,
        "line": '{"n": 3}',
    }  # fmt: skip
    assert letters("2_Check")[0]["_i"] == "2_1"
    assert "[Dead Letter] 1_Split row 3: ValueError: no 3" in Path("logs/platform.log").read_text()


def test_lines_that_are_no_rows_are_dead_letters_too() -> None:
    """§14.1: broken JSON, and JSON that is not an object, are set aside with their very bytes."""
    Path("in.jsonl").write_bytes(b'{"n": 1}\n{"n": 2\n[3]\n\xff\n{"n": 4}\n')
    report = make().create("p").run()
    assert [(row["_i"], row["reason"]) for row in letters("1_Split")] == [
        ("1", "BadRowError"),
        ("2", "BadRowError"),
        ("3", "BadRowError"),
    ]
    assert report.nodes["2_Check"].made == 6


@pytest.mark.parametrize("batch", [1, 8])
def test_more_dead_letters_than_allowed_fail_the_run(batch: int) -> None:
    """§14.1: max_dead_letters is a cap; a resume with a higher one goes on behind what is committed."""
    with pytest.raises(TooManyDeadLettersError, match="more than max_dead_letters=5"):
        make((3,), max_dead_letters=5, batch_size=batch).create("p").run()
    report = make((3,), max_dead_letters=12).resume("p").run()
    assert report.status == "completed"
    assert report.nodes["1_Split"].dead == 12


def test_a_failed_run_may_be_resumed_with_dead_letters() -> None:
    """§14.1: a run that a bad row failed can go on by setting it aside, without an edit of its image."""
    with pytest.raises(RowError, match="row 3"):
        make((3,), on_error="fail").create("p").run()
    assert make((3,)).resume("p").run().dead == 12


def test_a_budget_ends_a_run_cleanly() -> None:
    """§5.2: when a budget is spent nothing new is begun, and a resume with a higher one goes on there."""
    report = make(budget={"cost": 30}).create("p").run()
    assert report.status == "budget_exhausted"
    assert 30 <= report.usage["cost"] < ROWS
    again = make(budget={"cost": 30}).resume("p").run()
    assert (again.status, again.usage) == ("budget_exhausted", report.usage)
    assert "[Budget]" in Path("logs/platform.log").read_text()
    report = make(budget={"cost": 1000}).resume("p").run()
    assert (report.status, report.usage) == ("completed", {"cost": ROWS})
    assert Path("out.jsonl").read_bytes() == whole()


def test_redriven_rows_take_their_places() -> None:
    """Redriven rows have the ids that they would have had: the output is that of a run without failures."""
    expected = whole()
    make((3, 4), (2, 5)).create("p").run()
    report = make((4,), (2,)).redrive("p", accept_changes=True)
    assert report.dead > 0
    assert {row["tries"] for row in letters("1_Split")} == {2}
    report = make().redrive("p", accept_changes=True)
    assert (report.status, report.dead, report.usage) == ("completed", 0, {"cost": ROWS})
    assert Path("out.jsonl").read_bytes() == expected
    seal = json.loads(Path("out.jsonl.done").read_text())
    assert (seal["rows"], seal["first"], seal["last"]) == (360, "0_0", "119_2")
    assert not list(Path("tmp/p/dead_letters").iterdir())
    assert make().resume("p").run().status == "completed"


def test_a_redrive_of_nothing_changes_nothing() -> None:
    """A second redrive finds no letters and leaves the output as it is."""
    make((3,)).create("p").run()
    make().redrive("p", accept_changes=True)
    before = Path("out.jsonl").stat().st_mtime_ns
    assert make().redrive("p").status == "completed"
    assert Path("out.jsonl").stat().st_mtime_ns == before


def test_lines_that_are_no_rows_stay_dead() -> None:
    """A redrive cannot mend a line that is not a row: it stays a dead letter, tried once more."""
    Path("in.jsonl").write_text('{"n": 1}\n{"n": 2\n')
    make((1,)).create("p").run()
    assert make().redrive("p", accept_changes=True).dead == 1
    assert [(row["_i"], row["tries"]) for row in letters("1_Split")] == [("1", 2)]


def test_an_operator_with_a_memory_knows_the_output_in_a_redrive() -> None:
    """Deduplication does not let a redriven row in that the output has already."""

    def operators(bad):
        return [Split(bad), Check(), First()]

    def pipeline(bad):
        return UnifiedPipeline(
            operators(bad), "jsonl://in.jsonl", "jsonl://out.jsonl", on_error="dead_letter"
        )

    pipeline((3,)).create("p").run()
    report = pipeline(()).redrive("p", accept_changes=True)
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert sorted(row["n"] % 20 for row in rows) == list(range(20))
    assert report.nodes["3_First"].made == 20


def test_a_pipeline_that_is_not_done_is_not_redriven() -> None:
    """Dead letters are redriven when the run itself is completed, and the error says to resume it."""
    make((3,), budget={"cost": 30}).create("p").run()
    with pytest.raises(ConfigError, match="is not done: resume it"):
        make().redrive("p", accept_changes=True)


def test_a_redrive_within_a_budget_can_be_gone_on_with() -> None:
    """A redrive spends what the budget leaves, ends cleanly, and goes on when there is more."""
    expected = whole()
    settings = {"writer_config": WriterConfig(queue_size=1)}
    make((3, 4, 5), **settings).create("p", budget={"cost": 1000}).run()
    report = make(budget={"cost": 90}, **settings).redrive("p", accept_changes=True)
    assert (report.status, report.dead) == ("budget_exhausted", 36)
    report = make(budget={"cost": 1000}, **settings).redrive("p")
    assert (report.dead, report.usage["cost"]) == (0, ROWS)
    assert Path("out.jsonl").read_bytes() == expected


@pytest.mark.parametrize("place", range(7))
def test_a_killed_redrive_merges_once(place: int) -> None:
    """Wherever kill -9 ends a redrive, the next one leaves every row in the output once."""
    expected = whole()
    make((3,), (2,)).create("p").run()
    child = os.fork()
    if child == 0:
        _die_at(place)
        make().redrive("p", accept_changes=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert make().redrive("p", accept_changes=True).dead == 0
    assert Path("out.jsonl").read_bytes() == expected
    assert make().resume("p").run().status == "completed"


def _die_at(place: int) -> None:
    """Kill this process at one of the steps of a redrive."""

    def dying(function, *, after: bool):
        def call(*arguments, **named):
            result = function(*arguments, **named) if after else None
            os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    if place < 3:
        name = ("_run", "_merge", "finish_merge")[place]
        first = getattr(redriving, name)
        if name == "finish_merge":  # the second call: the first looks for one that was begun

            def second(*arguments):
                redriving.finish_merge = dying(first, after=False)
                return first(*arguments)

            redriving.finish_merge = second
        else:
            setattr(redriving, name, dying(first, after=name == "_run"))
    elif place == 3:
        redriving._merged = dying(redriving._merged, after=True)
    elif place == 4:
        RowLedger.redriven = dying(RowLedger.redriven, after=True)
    elif place == 5:
        Path.replace = _dying_replace(Path.replace)
    else:
        shutil.rmtree = dying(shutil.rmtree, after=False)


def _dying_replace(replace):
    def call(path, target):
        done = replace(path, target)
        if str(path).endswith(".redriven"):
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    return call
