"""Classes of the pipeline stay small enough to be read at once."""

import ast
from collections.abc import Iterator
from pathlib import Path

import asysi.pipeline

LINES, ATTRIBUTES = 300, 20
ROOM = Path(asysi.pipeline.__file__).parent


def test_no_class_is_above_300_lines_or_20_attributes() -> None:
    """No class of asysi.pipeline has more than 300 lines, or more than 20 attributes with its bases'."""
    classes = {node.name: node for file in ROOM.rglob("*.py") for node in classes_of(file.read_text())}
    assert len(classes) > 80
    large = {
        name: (lines_of(node), len(attributes_of(node, classes)))
        for name, node in classes.items()
        if lines_of(node) > LINES or len(attributes_of(node, classes)) > ATTRIBUTES
    }
    assert large == {}


def test_attributes_are_counted_with_those_of_bases_and_fields() -> None:
    """What is assigned to `self` anywhere counts, as do a dataclass's fields and what bases have."""
    text = (
        "class Base:\n    one: int\n    def __init__(self):\n        self.two = self.three = 1\n"
        "class Derived(Base):\n    def method(self):\n        self.four, self.five = 1, 2\n"
        "        self.four += 1\n        other.six = 6\n"
    )
    classes = {node.name: node for node in classes_of(text)}
    assert attributes_of(classes["Base"], classes) == {"one", "two", "three"}
    assert attributes_of(classes["Derived"], classes) == {"one", "two", "three", "four", "five"}
    assert (lines_of(classes["Base"]), lines_of(classes["Derived"])) == (4, 5)


def classes_of(text: str) -> Iterator[ast.ClassDef]:
    """Yield the classes in source."""
    return (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef))


def lines_of(node: ast.ClassDef) -> int:
    """Return how many lines a class has, without its decorators."""
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def attributes_of(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> set[str]:
    """Return the names of an object's attributes: fields, what is assigned to `self`, and those of bases."""
    found = {part.target.id for part in node.body if _is_field(part) and isinstance(part.target, ast.Name)}
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            found |= {part.attr} if isinstance(part.value, ast.Name) and part.value.id == "self" else set()
    for base in node.bases:
        name = base.id if isinstance(base, ast.Name) else ""
        if name in classes and name != node.name:
            found |= attributes_of(classes[name], classes)
    return found


def _is_field(part: ast.stmt) -> bool:
    return isinstance(part, ast.AnnAssign) and "ClassVar" not in ast.unparse(part.annotation)
