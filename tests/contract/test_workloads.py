"""The table of workloads agrees with the spec, with what is refused, and with the modules there are."""

from importlib.util import find_spec

import pytest

from asysi.contract.available import BY_PATTERN
from asysi.contract.errors import ConfigError
from asysi.contract.runtime import MODULES, Container
from asysi.contract.spec import Spec
from asysi.contract.workloads import PARTS, WORKLOADS, module_of, name_of, part_of, text_of, workload_of


def spec(workload: dict[str, object], **others: object) -> Spec:
    tree = {
        "model": {"uri": "file:///model"},
        "data": {"uri": "jsonl:///rows.jsonl", "tokens": {"contextLength": 24}},
        "workload": workload,
        "capture": {"hookPoints": ["*"]},
    }
    return Spec.model_validate({**tree, **others})


def test_every_part_has_a_host_or_is_refused() -> None:
    """A part of spec.workload without a host is refused by name; one that is not refused has a host."""
    assert set(WORKLOADS) <= set(PARTS)
    refused = {name for name in PARTS if f"spec.workload.{name}" in BY_PATTERN}
    assert set(PARTS) - set(WORKLOADS) <= refused
    assert {name for name in WORKLOADS if name not in refused} == {"scan", "train"}


@pytest.mark.parametrize("module", [row.module for row in WORKLOADS.values() if row.module])
def test_every_host_is_a_module(module: str) -> None:
    """What the table names as a host can be started with `python -m`."""
    assert find_spec(module) is not None


def test_a_scan_is_described_by_its_row() -> None:
    """A scan's steps are batchSize × contextLength, its text can be read again, its module is the host."""
    one = spec({"scan": {"batchSize": 6, "passes": 3}})
    assert (name_of(one), part_of(one)) == ("scan", one.workload.scan)
    assert workload_of(one).step_shape(one) == (6, 24)
    text = text_of(one)
    assert text is not None
    assert (text.batch_size, text.passes, text.max_samples, text.seed) == (6, 3, None, 0)
    assert module_of(Container.HOST, one) == "asysi.hosts.scan"
    assert module_of(Container.FINISH, one) == MODULES[Container.FINISH]


def test_a_custom_workload_names_its_own_program() -> None:
    """The host of a custom workload is not a module of ours, and nothing is known of its text."""
    one = spec({"custom": {"image": "mine", "command": ["x"]}}, data=None)
    assert module_of(Container.HOST, one) is None
    assert text_of(one) is None
    assert workload_of(one).step_shape(one) == (1, 1)


def test_a_workload_without_a_host_is_named() -> None:
    """A part without a row is a mistake of the user's, and the message says which there are."""
    with pytest.raises(ConfigError, match=r"spec\.workload: ppo has no host; use scan or train or custom"):
        workload_of(spec({"ppo": {}}))
