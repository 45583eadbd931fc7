"""Every field of the schema has an effect or is refused by name."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from asysi.contract.available import READ_BY, REFUSALS, refused
from asysi.contract.errors import ConfigError
from asysi.contract.fields import schema_fields, written
from asysi.contract.loading import check
from asysi.contract.spec import ScanExperiment

Tree = dict[str, Any]
FIELDS = {field.pattern: field for field in schema_fields(ScanExperiment)}
READ = {pattern for patterns in READ_BY.values() for pattern in patterns}
SETTLED = READ | {refusal.pattern for refusal in REFUSALS}

UNAVAILABLE: list[tuple[Tree, str]] = [
    ({"mode": "CONSUMER", "bus": {"redis": {"managed": True}}}, "spec.bus.redis.managed"),
    ({"mode": "CONSUMER", "consumers": {"replicas": 2}}, "spec.consumers.replicas"),
    ({"model": {"uri": "s3://bucket/model"}}, "spec.model.uri s3://bucket/model"),
    ({"model": {"uri": "/model"}}, "spec.model.uri /model"),
    ({"model": {"tokenizer": "s3://t"}}, "spec.model.tokenizer s3://t"),
    ({"data": {"uri": "memory://a"}}, "spec.data.uri memory://a"),
    ({"data": {"uri": "text.jsonl"}}, "spec.data.uri text.jsonl"),
    ({"workload": {"scan": None, "ppo": {"lr": 1}}}, "spec.workload.ppo"),
    ({"workload": {"scan": None, "custom": {"image": "i", "command": ["c"]}}}, "spec.workload.custom"),
    ({"workload": {"scan": {"loss": "mlm"}}}, "spec.workload.scan.loss mlm"),
    ({"capture": {"positions": {"mode": "last"}}}, "spec.capture.positions.mode last"),
    ({"output": {"uri": "gs://bucket"}}, "spec.output.uri gs://bucket"),
    ({"resources": {"binding": {"numa": 0}}}, "spec.resources.binding.numa"),
]


@pytest.mark.parametrize("pattern", [pattern for pattern, field in FIELDS.items() if field.part is None])
def test_every_field_is_settled(pattern: str) -> None:
    """Each field, or the part it lies in, is in the table of readers or among the refusals."""
    steps = pattern.split(".")
    above = {".".join(steps[: n + 1]) for n in range(len(steps))}
    assert (above | {part.removesuffix("[]") for part in above}) & SETTLED


def test_the_tables_name_fields_of_the_schema() -> None:
    """Neither table names what the schema does not have, and no field has two readers."""
    assert FIELDS.keys() >= SETTLED
    assert len(READ) == sum(len(patterns) for patterns in READ_BY.values())


@pytest.mark.parametrize(
    ("package", "pattern"), [(name, one) for name, all_ in READ_BY.items() for one in all_]
)
def test_every_reader_reads_its_field(package: str, pattern: str) -> None:
    """The package that the table names mentions the field: none is quietly ignored."""
    found = find_spec(package)
    assert found is not None
    assert found.submodule_search_locations is not None
    files = [file for folder in found.submodule_search_locations for file in Path(folder).rglob("*.py")]
    name = re.compile(rf"\b{FIELDS[pattern].name}\b")
    assert any(name.search(file.read_text()) for file in files if file.name != "available.py")


@pytest.mark.parametrize(
    ("change", "said"), UNAVAILABLE, ids=[said.replace(" ", "=") for _, said in UNAVAILABLE]
)
def test_what_does_not_exist_yet_is_refused_by_name(
    minimal: Callable[..., Tree], change: Tree, said: str
) -> None:
    """A field or value without a feature behind it is refused in one sentence that says what to do."""
    with pytest.raises(ConfigError) as error:
        check(minimal(change))
    (sentence,) = error.value.problems
    assert sentence.startswith(f"{said} is not available yet: ")


def test_everything_that_is_refused_is_refused(everything: Tree) -> None:
    """An experiment that states every field is refused at each refusal that a part above does not swallow."""
    del everything["spec"]["bus"]["redis"]
    named = {
        re.sub(r"\d+", "", written(one.path)) for one in refused(ScanExperiment.model_validate(everything))
    }
    named.add("spec.bus.redis.managed")  # left out, because the rest is in HPC's words
    known = {"spec.model.uri", "spec.model.tokenizer", "spec.data.uri", "spec.output.uri"}
    workloads = {"spec.workload.ppo", "spec.workload.custom"}
    assert {refusal.pattern for refusal in REFUSALS} - named <= known | workloads


def test_defaults_written_out_are_no_use_of_a_feature(minimal: Callable[..., Tree]) -> None:
    """What the API server fills in is accepted: the defaults of a missing feature ask for nothing."""
    experiment = ScanExperiment.model_validate(minimal())
    assert check(experiment.model_dump(by_alias=True, mode="json")) == experiment
