"""Contention: what others keep changing is put back ever less often, said, and forgotten when it settles."""

import itertools

import pytest

from asysi_operator.contention import FIRST_PATIENCE, LAST_PATIENCE, SETTLED_SECONDS, Contests, contested
from asysi_operator.reconcile import Apply


def _apply(undoes="spec.suspend is changed by flipper", name="minilm"):
    return Apply({"kind": "Job", "metadata": {"name": name}}, exists=True, undoes=undoes)


def _fight(contests, action, seconds):
    """Put an object back whenever it may be, for so many seconds; return when it was."""
    times, now = [], 0.0
    while now < seconds:
        if not contests.wait(action, now):
            contests.undone(action, now)
            times.append(now)
        now += 0.5
    return times


def test_patience_doubles():
    """In an hour an object is put back some twenty times, not a hundred thousand."""
    times = _fight(Contests(), _apply(), 3600)
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert gaps[0] == FIRST_PATIENCE
    assert gaps == sorted(gaps)
    assert gaps[-1] == LAST_PATIENCE
    assert len(times) < 24


def test_it_is_said_and_forgotten():
    """Once is a mistake, three times are a fight; a minute of peace ends it."""
    contests = Contests()
    contests.undone(_apply(), 0.0)
    assert contests.said() is None
    _fight(contests, _apply(), 10)
    assert contests.said() == "Job minilm: spec.suspend is changed by flipper"
    assert contests.settle(contested([_apply()]), 1000.0) is None
    assert contests.said()
    left = contests.settle(contested([]), 20.0)
    assert 0 < left <= SETTLED_SECONDS
    assert contests.settle(contested([]), 20.0 + left) is None
    assert contests.said() is None


@pytest.mark.parametrize("action", [_apply(undoes=None), _apply(name="other")])
def test_news_and_other_objects_do_not_wait(action):
    """An edit of the spec is applied at once, and so is an object that nobody fights over."""
    contests = Contests()
    _fight(contests, _apply(), 100)
    assert contests.wait(action, 100.0) == 0.0
