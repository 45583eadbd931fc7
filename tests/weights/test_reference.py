"""The pages on weights hold to the code."""

import ast
import csv
import re
from pathlib import Path

import pytest

from asysi.weights import reference, tensor_stats
from asysi.weights.comparing.compare import DIFFERENCE_COLUMNS
from asysi.weights.statistics import parameter_families as families
from asysi.weights.tables.columns import COLUMNS, NAMES
from asysi.weights.tables.export import read_table

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "weights.md").read_text()


def test_reference_page():
    """docs/reference/weights.md is what the code renders; `python -m asysi.weights.reference` makes it."""
    assert (DOCS / "reference" / "weights.md").read_text() == reference.render()


@pytest.mark.parametrize(
    "file", sorted((DOCS / "assets" / "weights").glob("*.csv")), ids=lambda file: file.stem
)
def test_full_tables(file):
    """The full tables have today's columns, and every figure that each row must have."""
    with file.open() as stream:
        assert tuple(next(csv.reader(stream))) == NAMES
    required = [column.name for column in COLUMNS if column.required]
    rows = read_table(file)
    assert rows
    assert not [row["param_name"] for row in rows if any(row[name] is None for name in required)]


def test_every_block_type_has_a_meaning():
    """Every block type of the tables is explained, and nothing else is."""
    assert set(families.MEANINGS) == {*families.BLOCKS, "other"}


def test_columns_and_options_that_the_page_names_exist():
    """What the page calls a column or an option is one."""
    helps = (DOCS / "reference" / "cli.md").read_text()
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE))
    assert len(options) > 4
    assert {option for option in options if f"`{option}" not in helps} == set()
    columns = {*NAMES, *(column.name for column in DIFFERENCE_COLUMNS)}
    named = set(re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)`", PAGE))
    assert named - columns == {"rank_k"}
    assert len(named) > 10


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", PAGE))))
def test_links(link):
    """Every link of the page leads somewhere."""
    assert (DOCS / link).exists()


def test_the_example_in_python():
    """What the page imports is public, and a row has the table's columns under their names."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    imports = ast.parse(code, "weights.md").body[0]
    assert isinstance(imports, ast.ImportFrom)
    exec(ast.unparse(imports), {})
    assert set(tensor_stats(__import__("numpy").ones((3, 2)))) <= set(NAMES)
