"""One class name stands for one thing."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_no_two_classes_share_a_name():
    """A class name found by a search leads to one definition, in whichever package it is."""
    places = defaultdict(list)
    for package in ("workers/asysi", "operator/asysi_operator"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert len(places) > 300
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert not twice
