"""Twelve families of models: the page docs/families.md says what a new run finds."""

import importlib.util
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _load():
    spec = importlib.util.spec_from_file_location("scan_families", ROOT / "benchmarks/scan/families.py")
    module = sys.modules["scan_families"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


families = _load()


@cache
def verified(family):
    with families.quiet():
        return families.verify(family)


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.name)
def test_a_family_is_collected_exactly(family):
    """In float32 nothing differs from hooks and autograd; AMP, accumulation and checkpointing come close."""
    found = verified(family)
    assert found.difference == 0
    assert found.called > found.modules / 2
    assert 0 < found.reached <= found.parameters
    for mode, tolerance in families.TOLERANCES.items():
        assert max(found.distances[mode]) <= tolerance, mode
    assert max(found.distances["AMP"]) > 0, "autocast to bfloat16 changes something"


def test_the_page_has_the_table_of_a_new_run():
    """docs/families.md was made by the script as it is, and nothing on it is out of date."""
    page = families.table([verified(family) for family in families.FAMILIES])
    assert (ROOT / "docs/families.md").read_text() == page, "run make families"
    assert "✗" not in page


def test_a_difference_would_be_seen():
    """A missing tensor, another shape and another value are distances, not agreement."""
    import torch

    one = {"a": torch.ones(2, 2)}
    assert families._distance(one, one) == 0
    assert families._distance(one, {"a": torch.ones(2, 2) * 1.5}) == pytest.approx(0.5)
    assert families._distance(one, {}) == float("inf")
    assert families._distance(one, {"a": torch.ones(4)}) == float("inf")
