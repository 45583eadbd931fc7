"""Values are kept or refused, whatever format they pass through; nothing is changed without a word."""

import datetime
import decimal
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asysi.contract.errors import ConfigError
from asysi.pipeline import BaseOperator, RowError, StreamFactory, UnifiedPipeline
from asysi.pipeline.formats.csv_rows import Dialect, csv_lines, write_csv
from asysi.pipeline.formats.parquet_rows import parquet_lines, write_parquet
from asysi.pipeline.nodes.worker import _WATCHED
from asysi.pipeline.rows import values

HUGE = 123456789012345678901234567890
TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(), parts, max_size=4),
    max_leaves=12,
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_last_of_two_values_of_a_name_counts() -> None:
    """As the page on pipelines says; the others of the row are untouched."""
    assert values.loads(b'{"a": 1, "b": 2, "a": 3}') == {"a": 3, "b": 2}


def through(source: str, out: str, operator: Any = None, name: str = "p", **more: Any) -> Any:
    keep = lambda items: [dict(item) for item in items]  # noqa: E731
    return UnifiedPipeline([operator or keep], source, out, **more).create(name).run()


def read(uri: str) -> list[dict[str, Any]]:
    return list(StreamFactory.create(uri).get_reader())


def rows_of(pieces: Any) -> list[Any]:
    return [values.loads(line) for line in b"".join(pieces).splitlines()]


def write(rows: list[dict[str, Any]], file: str = "in.jsonl") -> None:
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal and of equal types all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return set(one) == set(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) and (
        not isinstance(one, float) or math.copysign(1, one) == math.copysign(1, other)
    )


@given(TREES)
def test_json_keeps_every_value(tree: Any) -> None:
    """Any JSON value, with integers of any size, is the same after it was written and read."""
    assert same(values.loads(values.dumps(tree)), tree)


class Item(BaseOperator):
    def process_item(self, item, ctx=None):
        return {"n": item["n"], "more": item["n"] + 1}


class Batch(BaseOperator):
    def process_batch(self, items, ctx=None):
        return [{"n": item["n"], "more": item["n"] + 1} for item in items]


@pytest.mark.parametrize("operator", [Item, Batch])
@pytest.mark.parametrize("number", [HUGE, -HUGE, 2**64, -(2**63) - 1, 2**64 - 1])
def test_integers_of_any_size_are_kept(operator: Any, number: int) -> None:
    """An integer beyond 64 bits passes through operators, and from one to the next, as it is."""
    write([{"n": number}])
    pipeline = UnifiedPipeline([operator(), operator()], "jsonl://in.jsonl", "jsonl://out.jsonl")
    pipeline.create("p").run()
    assert json.loads(Path("out.jsonl").read_text()) == {"n": number, "more": number + 1, "_i": 0}
    through("jsonl://out.jsonl", "csv://out.csv", name="q")
    assert read("csv://out.csv")[0]["n"] == str(number)


def test_parquet_refuses_integers_that_it_cannot_hold() -> None:
    """A column of integers beyond 64 bits is refused, not rounded."""
    write([{"n": 1}, {"n": HUGE}])
    with pytest.raises(ConfigError, match=rf"row 1 the column n would hold int64, and {HUGE}"):
        through("jsonl://in.jsonl", "parquet://out.parquet")


def test_parquet_refuses_integers_that_a_float_column_would_round() -> None:
    """Where a column has floats too, an integer that no float is equal to is refused."""
    write([{"n": 0.5}, {"n": 2**53 + 1}])
    with pytest.raises(ConfigError, match="rows do not fit into columns of one type"):
        through("jsonl://in.jsonl", "parquet://out.parquet")


class Bad(BaseOperator):
    """Returns a value of its kind for row 1."""

    def __init__(self, value: Any, at: int = 1) -> None:
        self._value, self._at = value, at

    def process_item(self, item, ctx=None):
        return {"n": item["n"], "x": {"y": [self._value]} if item["n"] == self._at else 1.0}


class BadBatch(Bad):
    def process_batch(self, items, ctx=None):
        return [self.process_item(item) for item in items]

    process_item_too = None


class BadList(Bad):
    def process_item(self, item, ctx=None):
        yield super().process_item(item)


@pytest.mark.parametrize("operator", [Bad, BadBatch, BadList])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), np.array([np.inf])])
def test_nan_and_infinity_are_refused_by_name(operator: Any, value: Any) -> None:
    """NaN and infinity, which JSON writers turn into null, fail their row and name the field."""
    write([{"n": n} for n in range(3)])
    report = through(
        "jsonl://in.jsonl", "jsonl://out.jsonl", operator(value), on_error="dead_letter", batch_size=2
    )
    assert [row["n"] for row in read("jsonl://out.jsonl")] == [0, 2]
    assert report.dead == 1
    letter = json.loads(next(Path("tmp/p/dead_letters").iterdir()).read_text())
    assert letter["reason"] == "LossyValueError"
    assert letter["error"].startswith("x.y[0]")
    assert "which JSON does not have: return None or a finite number" in letter["error"]


@pytest.mark.parametrize(
    "value", [b"bytes", {1: 2}, {"set"}, 1j, np.datetime64("2020-01-01", "ns"), object()]
)
def test_what_json_does_not_have_is_refused(value: Any) -> None:
    """Bytes, sets, complex numbers and their like fail their row."""
    write([{"n": 1}])
    with pytest.raises(RowError, match="LossyValueError"):
        through("jsonl://in.jsonl", "jsonl://out.jsonl", Bad(value))


@pytest.mark.parametrize("nulls", [True, False])
def test_a_late_nan_is_found_however_many_rows_were_sound(nulls: bool) -> None:
    """Once rows are looked at by the block, a NaN in one is still refused, and a null there is kept."""
    last = 3 * _WATCHED

    class Late(BaseOperator):
        def process_item(self, item, ctx=None):
            ctx.report_usage({"calls": 1})
            n = item["n"]
            return {"n": n, "x": math.nan if n == last else None if nulls and n > last - 9 else 0.5}

    write([{"n": n} for n in range(last + 3)])
    report = through("jsonl://in.jsonl", "jsonl://out.jsonl", Late(), on_error="dead_letter")
    found = read("jsonl://out.jsonl")
    assert report.dead == 1
    assert [row["n"] for row in found] == [n for n in range(last + 3) if n != last]
    assert Counter(row["x"] for row in found)[None] == (10 if nulls else 0)
    assert report.usage == {"calls": last + 3}


def test_numpy_and_generators_are_welcome() -> None:
    """numpy's scalars and arrays are their numbers; a generator of rows is a list of rows."""

    class Makes(BaseOperator):
        def process_item(self, item, ctx=None):
            for half in range(2):
                yield {
                    "a": np.float64(0.5),
                    "b": np.int64(2**62),
                    "c": np.bool_(True),
                    "d": np.arange(2),
                    "e": half,
                }

    class MakesBatch(BaseOperator):
        def process_batch(self, items, ctx=None):
            return ({"a": np.uint8(3), "s": np.str_("x"), "h": np.float16(0.5)} for _ in items)

    write([{"n": 0}])
    through("jsonl://in.jsonl", "jsonl://out.jsonl", Makes())
    expected = {"a": 0.5, "b": 2**62, "c": True, "d": [0, 1]}
    assert read("jsonl://out.jsonl") == [{**expected, "e": n, "_i": f"0_{n}"} for n in range(2)]
    through("jsonl://in.jsonl", "jsonl://b.jsonl", MakesBatch(), name="q", batch_size=2)
    assert read("jsonl://b.jsonl") == [{"a": 3, "s": "x", "h": 0.5, "_i": 0}]


def test_a_generator_that_fails_fails_its_row() -> None:
    """A row whose generator raises becomes a dead letter, with nothing of it in the output."""

    def broken(item):
        yield {"n": item["n"]}
        if item["n"] == 1:
            raise ValueError("no more")

    class Makes(BaseOperator):
        def process_item(self, item, ctx=None):
            return broken(item)

    write([{"n": n} for n in range(3)])
    report = through("jsonl://in.jsonl", "jsonl://out.jsonl", Makes(), on_error="dead_letter")
    assert [row["n"] for row in read("jsonl://out.jsonl")] == [0, 2]
    assert report.dead == 1


ODD = {
    "binary": (pyarrow.array([b"\xff\x00"]), "base64", "/wA="),
    "decimal": (pyarrow.array([decimal.Decimal("1.10")]), "text", "1.10"),
    "duration": (pyarrow.array([datetime.timedelta(seconds=90)]), "text", "PT90.000000000S"),
    "list": (pyarrow.array([[b"\x01"]]), None, None),
    "struct": (pyarrow.array([{"part": decimal.Decimal("0.5")}]), None, None),
}


@pytest.mark.parametrize("kind", ODD)
def test_parquet_columns_that_json_does_not_have_are_refused_or_read_as_told(kind: str) -> None:
    """Bytes, decimals and durations are refused before the first row, with the option that reads them."""
    column, way, expected = ODD[kind]
    pq.write_table(pyarrow.table({"n": [1], "x": column}), "in.parquet")
    with pytest.raises(
        ConfigError, match=r"in\.parquet: the column x.* is .*, which JSON does not have"
    ) as caught:
        through("parquet://in.parquet", "jsonl://out.jsonl")
    if way is None:
        return
    assert f"#{kind}={way}" in str(caught.value)
    through(f"parquet://in.parquet#{kind}={way}", "jsonl://told.jsonl", name="q")
    assert read("jsonl://told.jsonl")[0]["x"] == expected


def test_parquet_nan_is_refused_or_null_as_told() -> None:
    """A row of Parquet with NaN fails and says where; `#nan=null` reads it as null."""
    pq.write_table(pyarrow.table({"x": [0.5, math.nan, 1.5]}), "in.parquet")
    report = through("parquet://in.parquet", "jsonl://out.jsonl", on_error="dead_letter")
    assert [row["x"] for row in read("jsonl://out.jsonl")] == [0.5, 1.5]
    assert report.dead == 1
    letter = json.loads(next(Path("tmp/p/dead_letters").iterdir()).read_text())
    where = "row 1: x is nan, which JSON does not have: return None or a finite number"
    assert letter["error"].endswith(f"{where}; read it as null with #nan=null")
    through("parquet://in.parquet#nan=null", "jsonl://told.jsonl", name="q")
    assert [row["x"] for row in read("jsonl://told.jsonl")] == [0.5, None, 1.5]


def test_parquet_times_are_iso_text_to_the_nanosecond() -> None:
    """Dates and times are ISO 8601 text, nanoseconds included."""
    table = pyarrow.table({
        "d": pyarrow.array([datetime.date(2020, 2, 29)]),
        "s": pyarrow.array([1], pyarrow.timestamp("s")),
        "ns": pyarrow.array([1_000_000_001], pyarrow.timestamp("ns")),
    })  # fmt: skip
    pq.write_table(table, "in.parquet")
    through("parquet://in.parquet", "jsonl://out.jsonl")
    row = read("jsonl://out.jsonl")[0]
    assert (row["d"], row["s"], row["ns"]) == (
        "2020-02-29",
        "1970-01-01T00:00:01",
        "1970-01-01T00:00:01.000000001",
    )


def test_columns_of_the_same_name_are_refused() -> None:
    """Two columns of one name would be one field: refused in Parquet and CSV."""
    table = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    pq.write_table(table, "in.parquet")
    Path("in.csv").write_text("a,a\n1,2\n")
    for number, kind in enumerate(("parquet", "csv")):
        with pytest.raises(ConfigError, match="two columns are called 'a'"):
            through(f"{kind}://in.{kind}", f"jsonl://{kind}.jsonl", name=f"p{number}")


def test_ids_with_leading_zeros_stay_text() -> None:
    """CSV `007` is the text 007, as an id and elsewhere; `7` is the number that it was written as."""
    Path("in.csv").write_text("_i,code\n007,007\n7,7\n٣,x\n")
    through("csv://in.csv", "jsonl://out.jsonl")
    assert [(row["_i"], row["code"]) for row in read("jsonl://out.jsonl")] == [
        ("007", "007"),
        (7, "7"),
        ("٣", "x"),
    ]


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
CELLS = st.none() | TEXTS


@given(
    st.lists(st.fixed_dictionaries({"a": CELLS, 'b,\n"': CELLS, "c": TEXTS.filter(bool)}), max_size=20),
    st.sampled_from([",", "\t", ";", "|"]),
    st.sampled_from(["utf-8", "utf-16", "utf-8-sig"]),
)
def test_csv_keeps_every_text_and_null(tmp_path_factory, rows, delimiter: str, encoding: str) -> None:
    """Texts of any characters, empty ones and nulls are the same after CSV, in any dialect."""
    file = tmp_path_factory.mktemp("csv") / "f.csv"
    dialect = Dialect(delimiter, encoding)
    if not rows:
        return
    write_csv(lambda: iter(rows), file, "f.csv", dialect)
    assert rows_of(csv_lines(iter([file.read_bytes()]), "f.csv", dialect)) == rows


TYPED = st.fixed_dictionaries({
    "i": st.none() | st.integers(-(2**63), 2**63 - 1),
    "f": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    "b": st.none() | st.booleans(),
    "t": CELLS,
    "l": st.none() | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    "d": st.none() | st.fixed_dictionaries({"x": st.none() | TEXTS, "y": st.none() | st.floats(-1e9, 1e9)}),
    "n": st.none(),
})  # fmt: skip


@given(st.lists(TYPED, min_size=1, max_size=8))
@settings(deadline=None)
def test_jsonl_csv_and_parquet_hold_the_same_rows(tmp_path_factory, rows: list[dict[str, Any]]) -> None:
    """Parquet gives every typed row back as it was; CSV gives its texts, and the JSON of the rest."""
    base = tmp_path_factory.mktemp("rows")
    write_parquet(lambda: iter(rows), base / "f.parquet", "f.parquet")
    with (base / "f.parquet").open("rb") as stream:
        found = rows_of(parquet_lines(stream, "f.parquet", {}))
    assert len(found) == len(rows)
    assert all(map(same, found, rows))
    dialect = Dialect()
    write_csv(lambda: iter(found), base / "f.csv", "f.csv", dialect)
    texts = rows_of(csv_lines(iter([(base / "f.csv").read_bytes()]), "f.csv", dialect))
    back = [
        {name: text if name == "t" or text is None else json.loads(text) for name, text in row.items()}
        for row in texts
    ]
    assert all(map(same, back, rows))


MIXED = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
)


@given(st.lists(st.fixed_dictionaries({"x": MIXED}), min_size=1, max_size=6))
@settings(deadline=None)
def test_a_mixed_column_is_kept_or_refused(tmp_path_factory, rows: list[dict[str, Any]]) -> None:
    """Whatever a column mixes, Parquet gives back equal values, or nothing is written."""
    file = tmp_path_factory.mktemp("mixed") / "f.parquet"
    try:
        write_parquet(lambda: iter(rows), file, "f.parquet")
    except ConfigError:
        return
    with file.open("rb") as stream:
        lines = b"".join(parquet_lines(stream, "f.parquet", {})).splitlines()
    for line, row in zip(lines, rows, strict=True):
        if isinstance(row["x"], float) and math.isinf(row["x"]):
            assert b"bad line" in line
        else:
            found = values.loads(line)["x"]
            assert found == row["x"]
            assert isinstance(found, bool) == isinstance(row["x"], bool)
