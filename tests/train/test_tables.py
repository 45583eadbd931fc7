"""Tables: what is read, what is dropped, and what is refused with which words."""

import csv
import io
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi.contract.errors import ConfigError
from asysi.train.project import Project
from asysi.train.table import Table

Opened = Callable[..., Project]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=12)


@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=20), bom=st.booleans(), crlf=st.booleans())
def test_rows_come_back_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], bom: bool, crlf: bool
) -> None:
    """A row read by its position is the row that was written: quotes, line breaks and unicode included."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n" if crlf else "\n", quoting=csv.QUOTE_ALL)
    writer.writerow(["a", "b"])
    writer.writerows(rows)
    file = tmp_path_factory.mktemp("table") / "t.csv"
    file.write_bytes(b"\xef\xbb\xbf" * bom + stream.getvalue().encode())
    table = Table(file, ("a", "b"))
    scanned = [row for _, row in table.scan()]
    assert [(row["a"], row["b"]) for row in scanned] == rows
    assert [table.row(number) for number in reversed(range(len(table)))] == scanned[::-1]


def test_json_lines_are_a_table(tmp_path: Path) -> None:
    """A JSONL file, such as a pipeline writes, is read as a table of text."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "é\\n", "label": 3}\n\n{"text": null, "label": 1}\n')
    table = Table(file, ("text", "label"))
    assert [row for _, row in table.scan()] == [{"text": "é\n", "label": "3"}, {"text": "", "label": "1"}]
    assert table.row(1) == {"text": "", "label": "1"}


def bad(digits: Path, content: bytes | None, tmp_path: Path) -> str:
    """Write a table of training rows; paths `images/…` of the project are made absolute."""
    file = tmp_path / "bad.csv"
    if content is not None:
        file.write_bytes(content.replace(b"images/", f"{digits}/data/images/".encode()))
    return f"data.train={file}"


ROWS = b"path,label\nimages/0000.png,0\nimages/0001.png,1\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"bad\.csv cannot be read: No such file"),
        (b"", r"bad\.csv is empty: it needs a header and at least one row"),
        (b"path,label\n", r"bad\.csv has no row below its header"),
        (b"file,label\nx,1\n", r"has no column 'path': it has file, label"),
        (b"path,label,path\nx,1,y\n", "a column occurs twice"),
        (ROWS + b"images/0002.png,seven\n", r"bad\.csv:4: the label 'seven' is neither a number nor a class"),
        (ROWS + b"images/0002.png,1.5\n", r"bad\.csv:4: the label '1\.5' is out of range"),
        (ROWS + b"images/0002.png,10\n", r"bad\.csv:4: the label '10' is out of range: .* 0 to 9"),
        (ROWS + b"images/0002.png,-1\n", r"label '-1' is out of range"),
        (ROWS + b"images/0002.png,nan\n", r"1 of 3 rows cannot be used \(1 × no label\)"),
        (ROWS + b"nowhere.png,1\n", r"1 of 3 rows cannot be used \(1 × no such file\)"),
        (ROWS + b"images/0002.png\n", r"bad\.csv:4 has 1 values, but the header has 2"),
        (ROWS + b"\xff\xfe,1\n", r"bad\.csv:4 is not UTF-8 text: byte 0xff"),
        (b"path,label\nimages/0000.png,0\n", r"has 1 row that can be used: training needs at least 2"),
    ],
)  # fmt: skip
def test_a_bad_table_is_refused_in_words(
    project: Opened, digits: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    """Each fault of a table has its own sentence, with file and line."""
    one = project(bad(digits, content, tmp_path))
    with pytest.raises((ConfigError, ValueError), match=message):
        one.dataset("train", train=True)


def test_a_label_out_of_range_is_a_value_error_and_critical(
    project: Opened, digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Label 10 of 10 classes raises ValueError and is logged as CRITICAL."""
    with pytest.raises(ValueError, match="out of range"), caplog.at_level(logging.CRITICAL):
        project(bad(digits, ROWS + b"images/0002.png,10\n", tmp_path)).dataset("train")
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]


def test_missing_rows_are_dropped_counted_and_capped(
    project: Opened, digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows with a missing value are dropped with a warning and counted, up to a share of the rows."""
    lines = b"".join(b"images/%04d.png,%d\n" % (number, number % 10) for number in range(40))
    setting = bad(digits, b"path,label\n" + lines + b"images/0001.png,\n,3\n", tmp_path)
    dataset = project(setting).dataset("train")
    assert (len(dataset), dataset.dropped.rows, dataset.dropped.reasons) == (
        40,
        42,
        {"no label": 1, "no path": 1},
    )
    assert any(record.levelname == "WARNING" and "2 of 42" in record.message for record in caplog.records)
    with pytest.raises(ConfigError, match=r"more than data\.max_missing"):
        project(setting, "data.max_missing=0.01").dataset("train")


def test_a_byte_order_mark_and_unicode_names_are_read(project: Opened, digits: Path, tmp_path: Path) -> None:
    """A BOM is not part of the first column's name, and file names may hold any letters."""
    (tmp_path / "größe 七.png").write_bytes((digits / "data/images/0007.png").read_bytes())
    (tmp_path / "t.csv").write_bytes(
        b"\xef\xbb\xbf" + "path,label\ngröße 七.png,7\ngröße 七.png,7\n".encode()
    )
    dataset = project(f"data.train={tmp_path / 't.csv'}").dataset("train", train=True)
    assert len(dataset) == 2
    assert dataset[1]["images"].shape == (1, 8, 8)


def test_a_bad_table_leaves_nothing_behind(project: Opened, digits: Path, tmp_path: Path) -> None:
    """Training on a table that is refused exits with 2 and writes no file."""
    from asysi.train.launch import Launch, train

    setting = bad(digits, ROWS + b"images/0002.png,10\n", tmp_path)
    asked = Launch(
        digits, "config.yaml", ["tensorboard=false", "train.threads=1", setting], ["cpu"], tmp_path / "run"
    )
    with pytest.raises(ConfigError, match="out of range"):
        train(asked, "cpu")
    assert not (tmp_path / "run").exists()
