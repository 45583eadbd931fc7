"""The chart as Helm renders it."""

import copy
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "charts" / "asysi"
Tree = dict[str, Any]

EVERYTHING: Tree = {
    "crds": {"enabled": False},  # 1,500 lines that no value but its own two changes
    "podDisruptionBudget": {"enabled": True},
    "networkPolicy": {"enabled": True},
    "admissionPolicy": {"enabled": True},
    "metrics": {
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboard": {"enabled": True},
    },
}
"""Values that switch everything on that can be."""


def _laid_over(base: Tree, change: Tree) -> Tree:
    """Return `base` with `change` laid over it, key by key."""
    tree = copy.deepcopy(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(tree.get(key), dict)
        tree[key] = _laid_over(tree[key], value) if both else value
    return tree


def _nested(path: str, value: Any) -> Tree:
    """Return values in which `path` is `value`."""
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


@pytest.fixture
def everything() -> Tree:
    """Return values that switch everything on."""
    return copy.deepcopy(EVERYTHING)


@pytest.fixture
def laid_over() -> Callable[[Tree, Tree], Tree]:
    """Return a function that lays one tree over another."""
    return _laid_over


@pytest.fixture
def nested() -> Callable[[str, Any], Tree]:
    """Return a function that makes values in which one path has a value."""
    return _nested


@pytest.fixture(scope="session")
def helm(tool: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return a function that runs `helm template` with values, and returns the finished process."""
    program, folder = tool("helm"), tmp_path_factory.mktemp("values")

    def run(values: Tree, *options: str) -> "subprocess.CompletedProcess[str]":
        file = folder / "values.yaml"
        file.write_text(yaml.safe_dump(values))
        command = [program, "template", "asysi", str(CHART), "--namespace", "watch", "--values", str(file)]
        return subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=60)

    return run


@pytest.fixture(scope="session")
def render(helm: Callable[..., Any]) -> Callable[..., list[Tree]]:
    """Return a function that renders values into objects; what it has rendered once it remembers."""
    known: dict[str, list[Tree]] = {}

    def objects(values: Tree | None = None) -> list[Tree]:
        key = json.dumps(values or {}, sort_keys=True)
        if key not in known:
            done = helm(values or {})
            assert done.returncode == 0, done.stderr
            known[key] = [item for item in yaml.safe_load_all(done.stdout) if item]
        return known[key]

    return objects


@pytest.fixture
def one(render: Callable[..., list[Tree]]) -> Callable[..., Tree]:
    """Return a function that renders values and returns the one object of a kind, by the end of its name."""

    def find(kind: str, values: Tree | None = None, ending: str = "") -> Tree:
        found = [
            item
            for item in render(values)
            if item["kind"] == kind and item["metadata"]["name"].endswith(ending)
        ]
        assert len(found) == 1, f"{len(found)} objects of kind {kind}"
        return found[0]

    return find
