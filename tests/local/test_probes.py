"""The kubelet's judgement of probes, as a state machine without a clock."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from asysi_operator.local.containers import Probe
from asysi_operator.local.probes import QUICK, ProbeVerdict, hastened, watch

PROBE = Probe(path="/livez", period=10.0, timeout=5.0, threshold=3)


def _play(answers, startup, liveness):
    """Answer every question when it is due; return the watch and the verdicts."""
    state, verdicts = watch(startup, liveness, 0.0), []
    for good in answers:
        state, verdict = state.answered(good, state.due)
        verdicts.append(verdict)
        if verdict is ProbeVerdict.FAILED:
            break
    return state, verdicts


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 5))
def test_liveness_fails_exactly_after_threshold_bad_answers_in_a_row(answers, threshold):
    """A container fails at the first run of `threshold` bad answers, and never without one."""
    _, verdicts = _play(answers, None, replace(PROBE, threshold=threshold))
    longest = max((len(run) for run in "".join("b" if not a else "g" for a in answers).split("g")), default=0)
    assert (ProbeVerdict.FAILED in verdicts) == (longest >= threshold)


@given(st.integers(0, 30))
def test_a_slow_start_is_startups_business(bad):
    """Bad answers before the first good one count towards the startup probe's threshold alone."""
    startup = replace(PROBE, period=QUICK, threshold=31)
    state, verdicts = _play([False] * bad + [True, False, False], startup, PROBE)
    assert verdicts[bad] is ProbeVerdict.STARTED
    assert state.failures == 2
    assert ProbeVerdict.FAILED not in verdicts


def test_startup_that_never_passes_fails():
    """The startup probe fails after its threshold, and the container has never started."""
    state, verdicts = _play([False] * 5, replace(PROBE, period=QUICK, threshold=5), None)
    assert verdicts == [ProbeVerdict.NOTHING] * 4 + [ProbeVerdict.FAILED]
    assert not state.started


def test_without_probes_nothing_is_asked():
    """A container without probes counts as started at once and is never asked."""
    state = watch(None, None, 0.0)
    assert state.started
    assert state.asks(1e9) is None


def test_liveness_is_first_asked_a_period_after_the_start():
    """Nobody is asked whether it is alive in the moment in which it has started."""
    state, _ = watch(PROBE, PROBE, 0.0).answered(True, 4.0)
    assert state.asks(13.9) is None
    assert state.asks(14.0) == PROBE


@given(st.floats(0.01, 60), st.integers(1, 600))
def test_hastening_keeps_the_time_to_failure(period, threshold):
    """Asking more often at start-up does not shorten the time that a container has."""
    probe = hastened(replace(PROBE, period=period, threshold=threshold))
    assert probe.period <= max(QUICK, period)
    assert probe.period * probe.threshold >= period * threshold - 1e-6
