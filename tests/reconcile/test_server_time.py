"""The API server's time, whatever the operator's own clock shows."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from hypothesis import given
from hypothesis import strategies as st

from asysi_operator.servertime import ServerTime

NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)


def _date(moment):
    return format_datetime(moment.replace(microsecond=0), usegmt=True)


@given(gaps=st.lists(st.floats(0.01, 100), min_size=1, max_size=30), latency=st.floats(0, 0.5))
def test_it_is_right_to_two_seconds_and_never_goes_back(gaps, latency):
    """However the answers come, the time told is the server's, and a later moment has a later time."""
    clock, before = ServerTime(), None
    at = 1e5
    for gap in gaps:
        at += gap
        truth = NOON + timedelta(seconds=at)
        clock.heard(_date(truth - timedelta(seconds=latency)), at)
        told = clock.at(at)
        assert abs((told - truth).total_seconds()) <= 2.5
        assert before is None or told > before
        before = told


def test_a_server_whose_clock_is_set_is_followed():
    """An hour's jump of the server's clock is taken over with the next answer."""
    clock = ServerTime()
    clock.heard(_date(NOON), 10.0)
    clock.heard(_date(NOON + timedelta(hours=1)), 11.0)
    assert abs((clock.at(11.0) - NOON - timedelta(hours=1)).total_seconds()) <= 1


def test_nonsense_says_nothing():
    """A header that is missing or no date leaves what is known."""
    clock = ServerTime()
    for nonsense in (None, "", "yesterday", "Fri, 99 Nov 2026 99:00:00 GMT", "2026"):
        clock.heard(nonsense, 1.0)
    assert clock.at(1.0) is None
