"""The verdict on the data: facts in, a level with its reason out, by one table that the page repeats."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asysi.finish import agreement, outliers, verdict
from asysi.finish.agreement import HeldOutRows
from asysi.finish.outliers import Outlier
from asysi.finish.reread_tokens import PointRows, RereadTokens, every_token
from asysi.finish.survey import find_outlier_rows
from asysi.finish.verdict import (
    Agreement,
    Facts,
    Level,
    PointFacts,
    SaeFacts,
    VerdictCondition,
    judge,
    ledger_condition,
    overall,
    sentence,
)
from asysi.sae.variants.topk import TopK

DOCS = Path(__file__).parents[2] / "docs" / "report.md"
GOOD = PointFacts(
    "a", seen=100, kept=90, lapped={"sae": 0.0}, outlier=Outlier("position", "position 3", 0.1, 0.02),
    saes=(SaeFacts("topk", exported=True, fvu=0.2, fvu_without=0.21, agreement=Agreement(64, 0.2, 0.205)),),
)  # fmt: skip
RUN = Facts(points=(GOOD,), documents=100, truncated=5, steps=10)


def point(**changes):
    return dataclasses.replace(RUN, points=(GOOD, dataclasses.replace(GOOD, path="b", **changes)))


def sae(**changes):
    return point(saes=(dataclasses.replace(GOOD.saes[0], **changes),))


def test_a_run_with_nothing_to_complain_about_is_sound():
    """No finding: True, Sound."""
    found = judge(RUN)
    assert (found.level, found.findings) == (Level.OK, ())
    assert (found.condition.status, found.condition.reason) == ("True", "Sound")


NAN = float("nan")
CASES = [
    (sae(exported=False, why="no row"), Level.FAIL, "NoResult"),
    (sae(fvu=None, constant=True, why="constant"), Level.FAIL, "NoResult"),
    (sae(finite=False), Level.FAIL, "ExportNotFinite"),
    (sae(agreement=Agreement(64, 0.135, 0.565)), Level.FAIL, "ReportDisagrees"),
    (dataclasses.replace(RUN, problems=("The analysis failed.",)), Level.FAIL, "AnalysisFailed"),
    (point(outlier=Outlier("position", "position 0", 0.96, 0.01)), Level.WARNING, "OutlierShare"),
    (point(lapped={"sae": 0.77, "archiver": 0.0}), Level.WARNING, "RowsLapped"),
    (
        point(kept=100, lapped={"sae": 0.3}, saes=(SaeFacts("topk", exported=True, fvu=0.2, given=70),)),
        Level.WARNING,
        "RowsLapped",
    ),
    (sae(given=80), Level.WARNING, "TrainingMissedRows"),
    (point(not_finite=1), Level.WARNING, "RowsNotFinite"),
    (point(saturated=200), Level.WARNING, "ValuesSaturated"),
    (dataclasses.replace(RUN, truncated=11), Level.WARNING, "DocumentsTruncated"),
    (point(seen=0, saes=()), Level.WARNING, "NeverCalled"),
    (dataclasses.replace(RUN, unknown=("Nobody looked.",)), Level.UNKNOWN, "NotMeasured"),
]


@pytest.mark.parametrize(("facts", "level", "reason"), CASES, ids=[case[2] for case in CASES])
def test_each_kind_of_fault_is_found(facts, level, reason):
    """One fault at one hook point is one finding with its reason, and names the hook point."""
    (finding,) = judge(facts).findings
    assert (finding.level, finding.reason) == (level, reason)
    assert finding.points in {("b",), ()}
    assert judge(facts).condition.status == ("Unknown" if level is Level.UNKNOWN else "False")
    assert not facts.problems or facts.problems[0] in finding.text


@pytest.mark.parametrize(
    "facts",
    [
        point(outlier=Outlier("position", "position 0", 0.5, 0.01)),
        point(lapped={"sae": 0.05}),
        dataclasses.replace(RUN, truncated=10),
        sae(given=86),
        sae(agreement=Agreement(64, 0.001, 0.0109)),
        sae(agreement=Agreement(64, 0.5, 0.5249)),
        dataclasses.replace(point(seen=0, saes=()), steps=0),
    ],
    ids=["outlier", "lapped", "truncated", "given", "absolute", "relative", "no step"],
)
def test_what_is_within_its_bound_is_no_finding(facts):
    """At the bound itself nothing is said."""
    assert judge(facts).findings == ()


def test_rows_that_training_has_missed_are_told_in_numbers():
    """What a trainer was given of the rows kept is said, also where part of the rest was lapped."""
    facts = point(kept=1000, lapped={"sae": 0.1}, saes=(SaeFacts("topk", exported=True, fvu=0.2, given=500),))
    lapped, missed = judge(facts).findings
    assert lapped.reason == "RowsLapped"
    assert missed.text.startswith("At b trainer topk was given 500 of the 1\u202f000 rows kept, 50.0% fewer")


def test_the_worst_comes_first():
    """A failure stands before warnings, a warning before what is not known."""
    facts = dataclasses.replace(sae(finite=False), truncated=50, unknown=("Nobody looked.",))
    assert [one.level for one in judge(facts).findings] == [Level.FAIL, Level.WARNING, Level.UNKNOWN]
    assert "2 more findings" in judge(facts).condition.message


def test_a_run_that_was_ended_before_a_row_came_has_not_failed():
    """Ended early by the user with no row at a hook point: nothing is known of it, rather than wrong."""
    facts = dataclasses.replace(sae(exported=False, why="no row"), interrupted=True)
    nothing = dataclasses.replace(facts, points=(dataclasses.replace(facts.points[1], seen=0),))
    assert judge(nothing).level is Level.UNKNOWN
    assert judge(facts).level is Level.FAIL


def test_the_outlier_is_told_with_the_figure_that_it_hides():
    """The sentence says which rows, how much they hold, FVU with and without them, and what can be done."""
    one = dataclasses.replace(GOOD.saes[0], fvu=0.0004, fvu_without=0.267, agreement=None)
    text = judge(point(outlier=Outlier("position", "position 0", 0.96, 0.009), saes=(one,))).findings[0].text
    for part in ("At b", "position 0", "96.0%", "0.9% of the rows", "0.04%", "26.7%", "maxNormMultiple"):
        assert part in text


def test_the_documentation_repeats_the_table():
    """docs/report.md holds one line for each check, in the order of the table, with its level."""
    lines = [f"| `{one.reason}` | {one.level.word} | {one.when} |" for one in verdict.CHECKS]
    assert "\n".join(lines) in DOCS.read_text()


def test_the_books_have_their_own_verdict():
    """Balanced, unbalanced, cut short, and an attempt whose books are gone are told apart."""
    common = {"rows": 1000, "attempts": 2, "failing": "1 of 6 equations fail."}
    said = [
        ledger_condition(balanced=True, complete=True, without=[], **common),
        ledger_condition(balanced=False, complete=True, without=[0], **common),
        ledger_condition(balanced=True, complete=False, without=[], **common),
        ledger_condition(balanced=True, complete=True, without=[0], **common),
    ]
    assert [(one.status, one.reason) for one in said] == [
        ("True", "Balanced"),
        ("False", "NotBalanced"),
        ("Unknown", "NotEnded"),
        ("Unknown", "AttemptWithoutBooks"),
    ]
    sound = judge(RUN)
    assert [overall(one, sound) for one in said] == [Level.OK, Level.FAIL, Level.FAIL, Level.UNKNOWN]
    assert "attempt 0 saw is not known" in sentence(said[3], sound, interrupted=False)


def test_the_sentence_fits_both_verdicts():
    """The headline never says sound where it is not."""
    good = VerdictCondition("True", "Balanced", "All 9 rows seen are accounted for.")
    assert sentence(good, judge(RUN), interrupted=False) == (
        "The run is complete and its ledger balances (all 9 rows seen are accounted for), "
        "and its data is sound."
    )
    assert "needs attention" in sentence(good, judge(point(not_finite=1)), interrupted=False)
    assert "not sound" in sentence(good, judge(sae(finite=False)), interrupted=True)
    assert sentence(good, judge(RUN), interrupted=True).startswith("The run was ended early")


def rows_with(outlier, *, documents=60, length=10, seed=0):
    """Return plain rows in which the rows of a mask [documents, length] are a hundred times as long."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(documents, length, 8)).astype(np.float32)
    rows[outlier] *= 100
    tokens = rng.integers(10, 500, (documents, length))
    sheet = RereadTokens(
        tokens.reshape(-1), np.repeat(np.arange(documents), length), np.ones(documents * length, np.bool_),
        np.arange(documents, dtype=np.uint64), np.arange(documents) % 2 == 0,
    )  # fmt: skip
    return rows.reshape(-1, 8), sheet


def look(rows, sheet):
    return find_outlier_rows(every_token(rows), sheet)


def test_a_position_that_holds_the_variance_is_named():
    """Position 0 a hundred times as long: it holds nearly all of the variance with a tenth of the rows."""
    mask = np.zeros((60, 10), np.bool_)
    mask[:, 0] = True
    place = look(*rows_with(mask))
    assert place.outlier.name == "position 0"
    assert place.outlier.share > 0.99
    assert place.outlier.rows == pytest.approx(0.1)


def test_a_token_that_holds_the_variance_is_named():
    """A token at any place, a hundred times as long, is named rather than a position."""
    rows, sheet = rows_with(np.zeros((60, 10), np.bool_))
    chosen = np.random.default_rng(1).random(600) < 0.05
    rows[chosen] *= 100
    sheet.tokens[chosen] = 7
    assert look(rows, sheet).outlier.name == "token 7"


def test_a_few_large_rows_are_named_by_their_size():
    """Scattered rows that share neither position nor token are still found."""
    mask = np.zeros((600, 10), np.bool_)
    mask[np.arange(0, 600, 25), np.arange(24) % 10] = True
    found = look(*rows_with(mask, documents=600)).outlier
    assert (found.by, found.share > 0.9) == ("size", True)


def test_ordinary_rows_have_no_outlier():
    """Of plain noise nothing holds more than half, nor of documents with one token each."""
    assert look(*rows_with(np.zeros((60, 10), np.bool_))).outlier.share < 0.5
    assert look(*rows_with(np.zeros((200, 1), np.bool_), documents=200, length=1)).outlier.share < 0.5


@given(st.integers(0, 2**32), st.integers(2, 80), st.sampled_from([1.0, 1e-20, 1e15]))
def test_the_share_is_what_numpy_says(seed, count, scale):
    """Whatever group is named, its share is its part of the summed squared deviations."""
    rng = np.random.default_rng(seed)
    rows = (rng.standard_t(1, size=(count, 3)) * scale).astype(np.float32)
    found = outliers.find(rows, rng.integers(0, 6, count), rng.integers(0, 6, count))
    away = ((rows - rows.mean(0, dtype=np.float64)) ** 2).sum(1)
    if found is None:
        assert away.sum() == 0
    elif found.outlier.share:
        assert found.outlier.share == pytest.approx(away[found.members].sum() / away.sum())
        assert found.outlier.rows == pytest.approx(found.members.mean(), abs=1 / count)
        assert found.outlier.share >= 2 * found.outlier.rows


def test_rows_that_were_left_out_are_counted():
    """What finish could not read as a number is in no share, and known; no row at all is not a variance."""
    rows, sheet = rows_with(np.zeros((60, 10), np.bool_))
    most = np.arange(5, 600)
    part = PointRows(rows[most], most, np.zeros(len(most), np.int64), not_finite=5)
    place = find_outlier_rows(part, sheet)
    assert (place.not_finite, len(place.members)) == (5, 595)
    none = PointRows(rows[:0], most[:0], most[:0], not_finite=600)
    assert find_outlier_rows(none, sheet).outlier is None


def test_constant_rows_have_no_outlier():
    """Where nothing varies there is no variance to hold."""
    rows, sheet = rows_with(np.zeros((60, 10), np.bool_))
    assert look(np.full_like(rows, 3.7), sheet).outlier is None


def held_rows(rows, sheet, part=slice(None)):
    """Return rows of the sheet as a trainer would hold them."""
    count = len(rows[part])
    position = sheet.position[part].astype(np.uint64)
    return HeldOutRows(rows[part], sheet.rows[sheet.document[part]], position, np.zeros(count, np.uint64))


def an_sae(width=8):
    made = TopK(width, 16, 4)
    made.initialise(torch.zeros(width), torch.randn(16, width, generator=torch.Generator().manual_seed(0)))
    return made


def test_the_same_rows_have_the_same_fvu():
    """Rows that both sides hold agree; other documents of the trainer do not matter."""
    rows, sheet = rows_with(np.zeros((60, 10), np.bool_))
    kept = np.random.default_rng(2).permutation(600)[:200]
    other = np.random.default_rng(3).normal(size=(50, 8)).astype(np.float32) * 9
    held = HeldOutRows(
        np.concatenate([rows[kept], other]),
        np.concatenate([sheet.rows[sheet.document[kept]], np.arange(50, dtype=np.uint64) + 10_000]),
        np.concatenate([sheet.position[kept].astype(np.uint64), np.zeros(50, np.uint64)]),
        np.zeros(250, np.uint64),
    )
    found = agreement.compare(an_sae(), every_token(rows), sheet, held)
    assert found.rows == 200
    assert found.trainer == pytest.approx(found.report)


def test_a_report_that_reads_other_rows_is_caught():
    """Activations changed in place after the hook: the report's FVU is another, which fails the run."""
    rows, sheet = rows_with(np.zeros((60, 10), np.bool_))
    held = held_rows(rows, sheet)
    found = agreement.compare(an_sae(), every_token(np.maximum(rows, 0)), sheet, held)
    assert abs(found.report - found.trainer) > 0.05
    assert judge(sae(agreement=found)).findings[0].reason == "ReportDisagrees"


def test_too_few_shared_rows_are_not_compared():
    """Below ENOUGH shared rows nothing is claimed."""
    rows, sheet = rows_with(np.zeros((60, 10), np.bool_))
    held = held_rows(rows, sheet, slice(0, agreement.ENOUGH - 1))
    assert agreement.compare(an_sae(), every_token(rows), sheet, held) is None


def test_calls_of_a_module_are_compared_each_with_itself():
    """A module called twice: the second call's rows are compared with the second call's."""
    rows, sheet = rows_with(np.zeros((60, 10), np.bool_))
    order = np.repeat(np.arange(600), 2)
    call = np.tile([0, 1], 600)
    both = PointRows(np.where(call[:, None] == 1, -rows[order], rows[order]), order, call)
    second = dataclasses.replace(held_rows(-rows, sheet), call=np.ones(600, np.uint64))
    found = agreement.compare(an_sae(), both, sheet, second)
    assert found.rows == 600
    assert found.report == pytest.approx(found.trainer)
