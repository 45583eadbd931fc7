"""Amounts of memory are compared as amounts, and what is frozen says so to the API server too."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi.contract.canonical import canonical
from asysi.contract.frozen import QUANTITIES, changes, frozen_part, normalise_quantities, rules
from asysi.contract.quantity import parse_bytes, same_amount
from asysi.contract.spec import ScanExperiment

MEBIBYTES = st.integers(1, 4096)


def spelled(mebibytes):
    """Return the ways to write an amount."""
    ways = [f"{mebibytes}Mi", f"{mebibytes * 1024}Ki", str(mebibytes * 2**20)]
    return ways + ([f"{mebibytes // 1024}Gi"] if mebibytes % 1024 == 0 else [])


@given(MEBIBYTES.flatmap(lambda n: st.tuples(*[st.sampled_from(spelled(n))] * 2)))
def test_every_spelling_of_an_amount_is_that_amount(two):
    """Whatever the suffix, equal amounts are the same."""
    assert same_amount(*two)
    assert not same_amount(two[0], str(parse_bytes(two[1]) + 1))
    assert not same_amount(two[0], "not a quantity")


def test_the_quantities_are_known():
    """Every memory field of the schema, also in lists."""
    assert {"spec.sae.memory", "spec.output.size", "spec.sae.train[].buffer.memory"} <= QUANTITIES
    assert "spec.model.uri" not in QUANTITIES


def test_a_spec_that_is_only_spelled_anew_is_unchanged(minimal):
    """Quantities take the spelling that was there; another amount, or a text that looks alike, stays."""
    before = {"sae": {"memory": "2Gi", "train": [{"buffer": {"memory": "1Gi"}}]}, "output": {"size": "10Gi"}}
    now = {
        "sae": {"memory": "2048Mi", "train": [{"buffer": {"memory": "1024Mi"}}]},
        "output": {"size": "11Gi"},
    }
    first, second = (frozen_part(ScanExperiment.model_validate(minimal(one))) for one in (before, now))
    assert changes(first, normalise_quantities(second, first)) == ["spec.output.size"]
    texts = {"model": {"uri": "1024Mi"}}, {"model": {"uri": "1Gi"}}
    assert normalise_quantities(*texts) == texts[0]


def test_respelling_keeps_what_is_new(minimal):
    """A part that was not there before, and lists of another length, are as they are written now."""
    spec = canonical(ScanExperiment.model_validate(minimal()))["spec"]
    assert normalise_quantities(spec, {}) == spec
    assert normalise_quantities(spec, {"sae": None, "inputs": [1]}) == spec


@pytest.mark.parametrize("part", ["spec.sae", "spec.resources", "spec.output", "spec.data"])
def test_the_api_server_compares_amounts(part):
    """The transition rules of a part with an amount ask for the amount, not for the text."""
    rule = " ".join(rule for path, rule in rules() if f"{path}.".startswith(f"{part}."))
    wanted = {one for one in QUANTITIES if one.startswith(f"{part}.") and "[]" not in one}
    for path in wanted:
        assert f"quantity(self.{path}).compareTo(quantity(oldSelf.{path})) == 0" in rule
        assert f"self.{path} == oldSelf.{path}" not in rule
    assert wanted
