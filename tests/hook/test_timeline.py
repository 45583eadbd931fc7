"""The timeline: a line a second."""

import json
from dataclasses import replace

from asysi.bus.states import ReaderState
from asysi.hook.timeline import Restarts, Timeline, timeline_entry
from asysi.hook.totals import ConsumerTotals, RingTotals, StreamTotals

IDLE = ConsumerTotals(
    consumed=[0], position=[0], durable=0, lapped=0, rolled_back=0, lag=0.0, state=ReaderState.ATTACHED
)
CAPTURE = RingTotals(
    seen=0,
    sampled_out=0,
    published=[0],
    dropped={},
    heads=[0],
    depth=10,
    generation=1,
    consumers={"hook": IDLE},
)
BUS = replace(CAPTURE, consumers={"sae": IDLE})
START = StreamTotals(at=10.0, steps=0, capture=CAPTURE, bus=BUS)


def lines(path):
    """Return the file's lines as objects."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_tells_rates_per_second_and_losses():
    """Rows a second are differences over the interval; drops name their ring and reason."""
    hook, sae = replace(IDLE, consumed=[500]), replace(IDLE, consumed=[200, 100], lapped=30, lag=0.5)
    capture = replace(
        CAPTURE,
        seen=1000,
        sampled_out=400,
        published=[500],
        dropped={"ring_full": 100},
        consumers={"hook": hook},
    )
    bus = replace(BUS, published=[300, 180], dropped={"no_chunk": 20}, consumers={"sae": sae})
    after = StreamTotals(at=12.0, steps=4, capture=capture, bus=bus)
    assert timeline_entry(START, after, 0.25) == {
        "rate": 0.25,
        "steps": 4,
        "offered": 450.0,
        "kept": 250.0,
        "consumed": {"hook": 250.0, "sae": 150.0},
        "lag": {"hook": 0.0, "sae": 0.5},
        "dropped": 120,
        "drops": {"ring_full": 100, "bus_no_chunk": 20},
        "lapped": {"hook": 0, "sae": 30},
    }


def test_a_restart_is_seen_once():
    """Gone, then attached, is one restart; the hook's own are its generations."""
    restarts = Restarts({})
    gone = replace(START, bus=replace(BUS, consumers={"sae": replace(IDLE, state=ReaderState.GONE)}))
    for totals in (START, gone, gone, START, START, gone, START):
        restarts.observe(totals)
    restarts.observe(replace(START, bus=replace(BUS, generation=3)))
    assert restarts.counts == {"hook": 2, "sae": 2}


def test_the_timeline_goes_on_after_a_kill_and_in_the_next_attempt(tmp_path):
    """A torn last line is cut off, time goes on from the first, restarts are counted by attempt."""
    path = tmp_path / "timeline.jsonl"
    first = Timeline(path, attempt=0)
    first.restarts.counts["sae"] = 2
    first.append({"rate": 1.0})
    first.close()
    began = lines(path)[0]["time"]
    path.write_text(path.read_text() + '{"t": 1.0, "ra')
    second = Timeline(path, attempt=0)
    assert second.restarts.counts == {"sae": 2}
    second.append({"rate": 0.5})
    second.close()
    third = Timeline(path, attempt=1)
    third.append({"rate": 0.25})
    third.close()
    assert [line["rate"] for line in lines(path)] == [1.0, 0.5, 0.25]
    assert [line["attempt"] for line in lines(path)] == [0, 0, 1]
    assert [line["restarts"] for line in lines(path)] == [{"sae": 2}, {"sae": 2}, {}]
    assert all(abs(line["time"] - line["t"] - began) < 0.002 for line in lines(path))
