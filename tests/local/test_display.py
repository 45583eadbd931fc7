"""What the user sees."""

import io
import json

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from asysi.contract.runtime import Exit
from asysi.contract.telemetry import RunStatus
from asysi_operator.local.attempts import RunOutcome
from asysi_operator.local.display import PlainDisplay, line, measured, panels
from asysi_operator.local.summary import summary
from asysi_operator.local.view import STARTING, ProcessView, View

ANSWER = {
    "phase": "running",
    "progress": {
        "steps": 5, "stepsTotal": 10, "tokens": 50_000, "tokensTotal": 100_000, "pass": 1,
        "tokensPerSecond": 5000.0,
    },
    "rate": 0.625,
    "capture": {"seen": 1000, "published": 600, "sampledOut": 390, "dropped": {"ring_full": 10}},
    "consumers": {"sae": {"lag": 0.25, "lapped": 3, "state": "attached"}},
    "points": [
        {"path": "encoder.layer.0.output", "fvu": 0.125, "l0": 32.0, "dead": 0.5, "trained": 9},
        {"path": "encoder.layer.1.output", "fvu": 0.0, "l0": 0.0, "dead": 0.0, "trained": 0},
    ],
}  # fmt: skip
VIEW = View(
    name="minilm",
    seconds=61,
    processes=(ProcessView("sae", "runs", 1), ProcessView("host", "runs", 0)),
    status=RunStatus.read(json.dumps(ANSWER).encode()),
    notes=("sae was killed on purpose",),
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*ANSWER, "sae", "lag"]), inner)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(list(ANSWER)), JSON))
def test_any_answer_can_be_shown(answer):
    """Whatever JSON object /status answers, both displays draw it."""
    view = View("x", status=RunStatus.read(json.dumps(answer).encode()))
    assert line(view)
    Console(quiet=True).print(panels(view))


@given(st.binary(max_size=50))
def test_what_is_no_answer_is_no_status(body):
    """Bytes that are not JSON object are not a status, and no error."""
    status = RunStatus.read(body)
    assert status is None or status == RunStatus()


def test_both_displays_say_what_matters():
    """Progress, time left, pace, rate, drops, lag, FVU, L0 and restarts are on the screen."""
    console = Console(width=120, file=io.StringIO())
    console.print(panels(VIEW))
    screen = console.file.getvalue()
    common = [
        "minilm",
        "50%",
        "50,000 of 100,000 tokens",
        "5,000 tok/s",
        "0:10 left",
        "0.625",
        "10 ring_full",
        "25%",
    ]
    for text in [*common, "0.125"]:
        assert text in screen
        assert text in line(VIEW)
    for text in ["encoder.layer.0.output", "32.0", "restarts", "sae was killed on purpose"]:
        assert text in screen
    assert "restarts 1" in line(VIEW)


def test_gauges_that_were_never_written_are_unknown():
    """A hook point without a trained row has no FVU, rather than a perfect one."""
    assert measured(VIEW.status)[1].fvu is None


def test_plain_lines_come_at_events_and_not_at_every_look(capsys):
    """Looking a hundred times prints one line; a restart prints another; a note is said once."""
    lines = PlainDisplay(Console(width=300))
    for _ in range(100):
        lines.show(VIEW)
    changed = View("minilm", processes=(ProcessView("sae", "runs", 2),), status=VIEW.status, notes=VIEW.notes)
    lines.show(changed)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3
    assert said.count("sae was killed on purpose") == 1


def test_summary(tmp_path):
    """The end says code, FVU, whether the books balance, what was kept, restarts, and where the report is."""
    totals = {"capture": {"seen": 1000, "published": 600}}
    (tmp_path / "ledger.json").write_text(json.dumps({"balanced": True, "totals": totals}))
    (tmp_path / "report.html").touch()
    text = summary("minilm", RunOutcome(Exit.OK, 1, {"sae": 1}, None), VIEW.status, tmp_path)
    for fact in [
        "finished (exit 0)",
        "0.125 encoder.layer.0.output",
        "balanced",
        "60% of 1,000 rows",
        "sae 1",
    ]:
        assert fact in text
    assert str(tmp_path / "report.html") in text


VERDICT = {
    "level": "warning",
    "conditions": {"LedgerBalanced": {"status": "True", "message": "All 1 000 rows seen are accounted for."}},
    "findings": [{"level": "warning", "reason": "OutlierShare", "text": "Position 0 holds it all."}],
    "points": [
        {"path": "layer.18", "outlier": {"name": "position 0", "share": 0.96},
         "saes": [{"fvu": 0.0004, "fvuWithoutOutlier": 0.267}]},
        {"path": "layer.19", "outlier": None, "saes": [{"fvu": None, "why": "all rows hold NaN"}]},
    ],
}  # fmt: skip


def summed(tmp_path, **verdict):
    """Return the summary of a run that left this verdict, and whose trainer was overrun."""
    whole = {
        "capture": {"seen": 1000, "published": 600},
        "bus": {"published": 600},
        "consumers": {"hook": {"lapped": 0}, "sae": {"lapped": 463}},
    }
    totals = {"capture": {"seen": 10, "published": 5}}
    (tmp_path / "ledger.json").write_text(
        json.dumps({"balanced": True, "totals": totals, "allAttempts": whole})
    )
    if verdict:
        (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    return summary("minilm", RunOutcome(Exit.OK, 1, {}, None), VIEW.status, tmp_path)


def test_the_summary_says_what_is_wrong_with_the_data(tmp_path):
    """A warning is in place of the check mark; FVU comes with what it hides, a missing one with
    its reason; rows of all attempts are summed, lapped shares told.
    """
    text = summed(tmp_path, **VERDICT)
    assert text.startswith("! minilm finished (exit 0)")
    for fact in [
        "0.000 layer.18 (0.267 without position 0)",
        "layer.19: all rows hold NaN",
        "ledger   balanced",
        "! Position 0 holds it all.",
        "60% of 1,000 rows",
        "463 rows (77.2%) for sae",
    ]:
        assert fact in text
    assert summed(tmp_path, **{**VERDICT, "level": "ok", "findings": []}).startswith("✓ minilm")


def test_what_is_not_known_is_said(tmp_path):
    """Books that are gone are not balanced; without a verdict nothing is claimed about the data."""
    gone = {"LedgerBalanced": {"status": "Unknown", "message": "What attempt 0 saw is not known."}}
    text = summed(tmp_path, **{**VERDICT, "level": "unknown", "conditions": gone})
    assert text.startswith("? minilm")
    assert "not known: What attempt 0 saw is not known." in text
    (tmp_path / "verdict.json").unlink()
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "progress.json").touch()
    text = summed(tmp_path)
    assert "data     not known" in text
    assert "✓" not in text


@given(st.dictionaries(st.sampled_from(list(VERDICT)), JSON))
def test_any_verdict_can_be_summed_up(tmp_path_factory, verdict):
    """Whatever JSON is in verdict.json, the summary is drawn."""
    folder = tmp_path_factory.mktemp("any")
    (folder / "verdict.json").write_text(json.dumps({"level": "ok", **verdict}))
    assert summary("x", RunOutcome(Exit.OK, 1, {}, None), STARTING, folder)


COUNTS = JSON | st.sampled_from([0, 7, 10**400, -1, 1e308, float("inf"), float("nan")])
ROWS = st.fixed_dictionaries({}, optional={"seen": COUNTS, "published": COUNTS, "lapped": COUNTS}) | JSON
CONSUMERS = st.dictionaries(st.text(max_size=3), ROWS, max_size=3)
TOTALS = st.fixed_dictionaries({"capture": ROWS, "bus": ROWS, "consumers": CONSUMERS}) | JSON


@given(st.fixed_dictionaries({}, optional={"balanced": JSON, "totals": TOTALS, "allAttempts": TOTALS}))
def test_any_ledger_can_be_summed_up(tmp_path_factory, ledger):
    """Whatever JSON is in ledger.json, also figures beyond numbers, the summary is drawn."""
    folder = tmp_path_factory.mktemp("any")
    (folder / "ledger.json").write_text(json.dumps(ledger))
    assert summary("x", RunOutcome(Exit.OK, 1, {}, None), STARTING, folder)


def test_summary_of_a_failure(tmp_path):
    """A failed run says why, and does not name a report that is not there."""
    text = summary(
        "minilm", RunOutcome(Exit.FAILED, 3, {}, "host ended with exit code 1"), STARTING, tmp_path
    )
    assert "failed (exit 1)" in text
    assert "host ended with exit code 1" in text
    assert "attempts 3" in text
    assert "report" not in text
