"""The books and what /status and the last words make of them: pure functions over plain numbers."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi.bus.accounts import Consumed, Produced
from asysi.bus.states import ProducerState, ReaderState
from asysi.finish.analysis import RunAnalysis
from asysi.finish.attempts import Attempt, earlier_attempts, incomplete_attempts, rows_known, total_counts
from asysi.finish.ending import LAST_WORDS, ledger_json, ledger_of, termination_message
from asysi.finish.ledger import AttemptCounts, Equation, as_json, build_ledger, counts_from_json, sum_counts
from asysi.finish.status import (
    HostCounters,
    Snapshot,
    TokensPerSecond,
    TrainerGauges,
    complete,
    phase,
    settled,
    status_response,
)
from asysi.finish.waiting import WaitResult, wait

rows = st.integers(0, 2**48)
names = st.text(min_size=1, max_size=40)


@st.composite
def balanced_books(draw, points=None):
    """Draw books in which every row went somewhere."""
    points = points or draw(st.lists(names, min_size=1, max_size=4, unique=True))
    capture, hook, bus, consumers = {}, {}, {}, {"archiver": {}, "sae": {}}
    for point in points:
        lapped, rolled_back, dropped, published = (draw(rows) for _ in range(4))
        durable = published + dropped
        captured = durable + lapped + rolled_back
        out, full = draw(rows), draw(rows)
        capture[point] = Produced(captured + out + full, captured, out, {"ring_full": full})
        hook[point] = Consumed(durable, lapped, rolled_back)
        bus[point] = Produced(published + dropped, published, 0, {"no_chunk": dropped})
        for consumer in consumers.values():
            kept = draw(st.integers(0, published))
            lost = draw(st.integers(0, published - kept))
            consumer[point] = Consumed(kept, lost, published - kept - lost)
    return AttemptCounts(capture, hook, bus, consumers)


@given(balanced_books())
def test_books_in_which_every_row_went_somewhere_balance(books):
    """Books made row by row from fates balance in every equation: six a hook point with two consumers."""
    ledger = build_ledger(books, attempt=0, complete=True)
    assert ledger.passed
    assert len(ledger.equations) == 6 * len(books.capture)


@given(balanced_books(), st.data())
def test_one_row_astray_breaks_the_ledger(books, data):
    """A single counter that is off by any amount unbalances at least one equation, which names its hook
    point.
    """
    point = data.draw(st.sampled_from(sorted(books.capture)))
    amount = data.draw(st.integers(1, 2**40))
    side = data.draw(st.sampled_from(["capture", "hook", "bus", "sae"]))
    table = books.consumers["sae"] if side == "sae" else getattr(books, side)
    row = table[point]
    counters = [field.name for field in dataclasses.fields(row) if field.name != "dropped"]
    counter = data.draw(st.sampled_from(counters))
    wrong = {**table, point: dataclasses.replace(row, **{counter: getattr(row, counter) + amount})}
    broken = (
        dataclasses.replace(books, consumers={**books.consumers, "sae": wrong})
        if side == "sae"
        else dataclasses.replace(books, **{side: wrong})
    )
    ledger = build_ledger(broken, attempt=0, complete=True)
    assert not ledger.balanced
    assert not ledger.passed
    assert {line.point for line in ledger.unbalanced()} == {point}


@given(balanced_books())
def test_the_written_ledger_repeats_every_equation_with_both_sides(books):
    """ledger.json holds each equation's sides and difference, and totals that are sums over hook points."""
    written = json.loads(json.dumps(as_json(build_ledger(books, attempt=3, complete=True))))
    lines = [line for point in written["points"] for line in point["equations"]]
    assert all(line["left"] - line["right"] == line["difference"] == 0 for line in lines)
    assert written["totals"]["capture"]["seen"] == sum(made.seen for made in books.capture.values())
    assert written["attempt"] == 3
    assert written["balanced"]


def test_a_hook_point_that_only_a_consumer_knows_is_not_forgotten():
    """Rows that a consumer claims for a hook point nobody published unbalance the books."""
    books = AttemptCounts(consumers={"sae": {"ghost": Consumed(durable=7)}})
    assert build_ledger(books, attempt=0, complete=True).unbalanced() == [
        Equation("ghost", "sae", "published = durable + lapped + rolled back", 0, 7)
    ]


BOOKS = AttemptCounts(
    capture={"a": Produced(100, 80, 15, {"ring_full": 5}), "b": Produced(100, 80, 15, {"crash": 5})},
    hook={"a": Consumed(80), "b": Consumed(80)},
    bus={"a": Produced(80, 80), "b": Produced(80, 80)},
    consumers={"sae": {"a": Consumed(70, 10, 0), "b": Consumed(60, 0, 20)}},
)
ENDED = Snapshot(
    books=BOOKS,
    host=HostCounters(steps=9, steps_total=9, tokens=100, tokens_total=100, rate=0.8, steps_dropped=1),
    capture_state=ProducerState.COMPLETE,
    bus_state=ProducerState.COMPLETE,
    hook_state=ReaderState.FINALISED,
    readers={"sae": ReaderState.FINALISED},
    lag={"hook": 0.0, "sae": 0.25},
    points=(TrainerGauges("a", 0.2, 32.0, float("nan"), 1.0, 60.0),),
)


def test_status_sums_over_hook_points():
    """Counts are sums, reasons keep their names, consumers are listed with hook first, unknown gauges are
    null.
    """
    status = status_response(ENDED, tokens_per_second=12.34)
    assert status["capture"] == {
        "seen": 200, "published": 160, "sampledOut": 30, "dropped": {"ring_full": 5, "crash": 5},
        "stepsDropped": 1, "errors": 0,
    }  # fmt: skip
    assert list(status["consumers"]) == ["hook", "sae"]
    assert status["consumers"]["sae"] == {
        "lag": 0.25, "durable": 130, "lapped": 10, "rolledBack": 20, "state": "finalised",
    }  # fmt: skip
    assert status["points"] == [{"path": "a", "fvu": 0.2, "l0": 32.0, "dead": None, "trained": 60}]
    assert status["progress"]["tokensPerSecond"] == 12.3
    assert status["ledger"]["balanced"]
    json.dumps(status, allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        pytest.param(
            {
                "capture_state": ProducerState.ATTACHED,
                "bus_state": ProducerState.ATTACHED,
                "readers": {"sae": ReaderState.ATTACHED},
                "host": HostCounters(),
            },
            "starting",
            id="no step yet",
        ),
        pytest.param(
            {"capture_state": ProducerState.ATTACHED, "bus_state": ProducerState.ATTACHED},
            "running",
            id="steps",
        ),
        pytest.param({"bus_state": ProducerState.ATTACHED}, "draining", id="host closed"),
        pytest.param({"readers": {"sae": ReaderState.ATTACHED}}, "finishing", id="bus closed"),
        pytest.param({}, "analysing", id="all finalised"),
        pytest.param(
            {"capture_state": ProducerState.GONE, "bus_state": ProducerState.ATTACHED},
            "failed",
            id="host died",
        ),
        pytest.param({"bus_state": ProducerState.ATTEMPT_OVER}, "failed", id="attempt over"),
    ],
)
def test_phase_says_where_the_attempt_stands(changes, word):
    """The phase follows from the rings' states alone."""
    now = dataclasses.replace(ENDED, **{"readers": {"sae": ReaderState.FINALISED}, **changes})
    assert phase(now) == word


def test_an_attempt_that_is_over_is_settled_but_not_complete():
    """Checkpointed consumers behind an attempt that is over end the waiting, not the experiment."""
    over = dataclasses.replace(
        ENDED,
        capture_state=ProducerState.GONE,
        bus_state=ProducerState.ATTEMPT_OVER,
        readers={"sae": ReaderState.CHECKPOINTED},
    )
    assert settled(over)
    assert not complete(over)
    assert not settled(dataclasses.replace(over, readers={"sae": ReaderState.ATTACHED}))
    assert any("host died" in problem for problem in ledger_of(WaitResult(over), 0).problems)


def test_pace_is_tokens_over_seconds_of_the_recent_past():
    """The pace divides what came by the time it took, and forgets what is long ago."""
    now = [0.0]
    pace = TokensPerSecond(lambda: now[0])
    assert pace.of(0) == 0.0
    now[0] = 4.0
    assert pace.of(400) == 100.0
    now[0] = 100.0
    pace.of(400)
    now[0] = 102.0
    assert pace.of(1400) == 500.0


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def waiting(look, clock, **settings):
    """Wait with time that passes only in sleep."""
    return wait(
        look, lambda: None, settings.pop("stop", lambda: False), clock=clock, sleep=clock.sleep, **settings
    )


def test_waiting_goes_on_as_long_as_anything_moves():
    """A run far longer than the patience is waited for while its counters move."""
    clock = Clock()
    running = dataclasses.replace(
        ENDED, capture_state=ProducerState.ATTACHED, bus_state=ProducerState.ATTACHED
    )

    def look():
        return ENDED if clock.now > 1000 else dataclasses.replace(running, motion=(int(clock.now / 3),))

    outcome = waiting(look, clock, patience=5.0)
    assert outcome.snapshot is ENDED
    assert outcome.gave_up is None


def test_waiting_gives_up_when_nothing_moves_and_says_who_is_missing():
    """After the patience the reason names the states of everybody."""
    clock = Clock()
    stuck = dataclasses.replace(ENDED, readers={"sae": ReaderState.GONE})
    outcome = waiting(lambda: stuck, clock, patience=5.0)
    assert clock.now < 10
    assert "nothing moved for 5 s" in outcome.gave_up
    assert "sae is gone" in outcome.gave_up


def test_waiting_is_more_patient_before_the_first_step():
    """A host that loads a large model moves no counter and is waited for."""
    clock = Clock()
    loading = Snapshot(readers={"sae": ReaderState.ATTACHED})
    outcome = waiting(lambda: loading if clock.now < 60 else ENDED, clock, patience=5.0, start_patience=100.0)
    assert outcome.gave_up is None


def test_waiting_ends_at_once_when_terminated():
    """SIGTERM ends the waiting without a verdict."""
    clock = Clock()
    outcome = waiting(Snapshot, clock, stop=lambda: True)
    assert outcome.terminated
    assert clock.now == 0


@given(st.lists(st.text(max_size=400), max_size=80), balanced_books())
def test_last_words_are_json_of_at_most_a_page(problems, books):
    """However much went wrong, the termination message is JSON of at most LAST_WORDS bytes with the totals
    in it.
    """
    snapshot = dataclasses.replace(ENDED, books=books)
    ledger = build_ledger(books, attempt=1, complete=True, problems=problems)
    words = termination_message(ledger, snapshot, RunAnalysis(problems=["the analysis failed"] * 3), None)
    assert len(words.encode()) <= LAST_WORDS
    read = json.loads(words)
    assert read["ledger"]["balanced"]
    assert read["capture"]["seen"] == sum(made.seen for made in books.capture.values())


@given(balanced_books(), balanced_books())
def test_books_are_read_back_and_add_up(one, other):
    """What ledger.json holds is read back as it was; two attempts add up and still balance."""
    for books in (one, other):
        read = counts_from_json(
            json.loads(json.dumps(as_json(build_ledger(books, attempt=0, complete=True))))
        )
        assert as_json(build_ledger(read, attempt=0, complete=True)) == as_json(
            build_ledger(books, attempt=0, complete=True)
        )
    both = sum_counts([one, other])
    assert build_ledger(both, attempt=0, complete=True).balanced
    assert sum(made.seen for made in both.capture.values()) == sum(
        made.seen for books in (one, other) for made in books.capture.values()
    )


def leave(output, number, **changes):
    """Leave an attempt's ledger as its finish would."""
    folder = output / "attempts" / str(number)
    folder.mkdir(parents=True)
    written = {**ledger_json(build_ledger(BOOKS, attempt=0, complete=True), ENDED, output), **changes}
    (folder / "ledger.json").write_text(json.dumps(written))


def test_attempts_are_told_apart_by_what_is_left_of_them(tmp_path):
    """An attempt that ran and left no ledger is without books; one that never ran a step is none."""
    leave(tmp_path, 1)
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "progress.json").write_text('{"attempts": {"0": 7, "1": 9}}')
    found = earlier_attempts(tmp_path, 3)
    assert [(one.number, one.books is None) for one in found] == [(0, True), (1, False)]
    assert incomplete_attempts(found) == [0]
    assert total_counts(found).capture["a"].seen == 100
    assert found[1].steps == 9


def test_rows_under_way_when_an_attempt_was_ended_are_not_called_lost(tmp_path):
    """Books closed while rows moved are not known to the end; closed at rest and open, they are open."""
    leave(tmp_path, 0, balanced=False, settled=False)
    leave(tmp_path, 1, balanced=False)
    one, other = earlier_attempts(tmp_path, 2)
    assert incomplete_attempts([one, other]) == [0]
    assert other.balanced is False


def test_rows_of_books_that_were_never_closed_are_not_vouched_for():
    """A full disk leaves books with rows under way: those are not said to be accounted for."""
    closed, open_ = (
        AttemptCounts(capture={"a": Produced(100, 100)}),
        AttemptCounts(capture={"a": Produced(40, 40)}),
    )
    torn = Attempt(0, open_, balanced=False, settled=False)
    assert rows_known([torn, Attempt(1, closed, balanced=True)]) == 100
    assert rows_known([Attempt(0, None), Attempt(1, closed, balanced=True)]) == 100
    assert rows_known([Attempt(0, open_, balanced=True), Attempt(1, closed, balanced=True)]) == 140


def test_progress_is_that_of_the_run():
    """What earlier attempts have done counts as done; the pace is this attempt's."""
    host = HostCounters(
        steps=3, steps_total=20, tokens=30, tokens_total=200, steps_before=7, tokens_before=70
    )
    progress = status_response(Snapshot(host=host), tokens_per_second=5.0)["progress"]
    assert progress == {
        "steps": 10, "stepsTotal": 20, "tokens": 100, "tokensTotal": 200, "pass": 0, "tokensPerSecond": 5.0,
    }  # fmt: skip
