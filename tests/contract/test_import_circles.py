"""No import circle: `make lint` holds it for what lies side by side, this also for packages themselves."""

from collections.abc import Iterable

import grimp
import pytest

PACKAGES = ("asysi", "asysi_operator", "asysi_ring")


def test_no_module_imports_itself_through_others() -> None:
    """No module, a package's `__init__` included, is imported by anything that it imports."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    assert circles({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}) == []


@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        ({"a": ["b"], "b": ["c"], "c": []}, []),
        ({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}, [["a", "b", "c"]]),
        ({"p": ["p.x"], "p.x": ["p"]}, [["p", "p.x"]]),
    ],
)
def test_circles_are_found(imports: dict[str, list[str]], expected: list[list[str]]) -> None:
    """A circle is found, and nothing that only leads to it."""
    assert circles(imports) == expected


def circles(imports: dict[str, Iterable[str]]) -> list[list[str]]:
    """Return the modules that reach themselves, those of one circle together."""
    left = {name: set(targets) & set(imports) for name, targets in imports.items()}
    while ends := [name for name, targets in left.items() if not targets & set(left)]:
        for name in ends:
            del left[name]
    found: dict[frozenset[str], None] = {}
    for name in left:
        reached = _reached(name, left)
        if name in reached:
            found[frozenset(other for other in reached if name in _reached(other, left))] = None
    return [sorted(group) for group in found]


def _reached(name: str, imports: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        for target in imports[waiting.pop()] & set(imports):
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen
