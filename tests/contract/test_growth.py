"""The schema grows, and nothing that an earlier version has made is disturbed by it.

`tests/golden/first_version.json` was written by the code of the schema's first version: objects, their
digests, what was rendered from them, and the default of every field.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, create_model

from asysi.contract.canonical import FIRST_FIELDS, canonical, digest
from asysi.contract.fields import schema_fields
from asysi.contract.frozen import frozen_part
from asysi.contract.rows import pipeline_folder
from asysi.contract.spec import Data, DataPipeline, Output, Part, SaeTrain, ScanExperiment, Spec
from asysi_operator.manifests.config_map import config_map
from asysi_operator.manifests.labels import rows_digest, spec_digest

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "first_version.json").read_text(encoding="utf-8")
)
EXPERIMENTS: dict[str, Any] = GOLDEN["experiments"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_digests_are_those_of_the_first_version(name: str) -> None:
    """What an operator of the first version wrote into Jobs and folder names is what this one would write."""
    golden = EXPERIMENTS[name]
    experiment = ScanExperiment.model_validate(golden["object"])
    assert spec_digest(experiment) == golden["spec"]
    if "rows" in golden:
        assert rows_digest(experiment) == golden["rows"]
        assert experiment.spec.data is not None
        assert pipeline_folder(experiment.spec.data).name == golden["pipeline"]


@pytest.mark.parametrize("name", [name for name, one in EXPERIMENTS.items() if "objects" in one])
def test_workers_of_the_first_version_can_read_the_file(name: str) -> None:
    """A sidecar of an older Job, restarted after an upgrade, finds no unknown field in its file."""
    golden = EXPERIMENTS[name]
    before = next(one for one in golden["objects"] if one["kind"] == "ConfigMap")
    assert config_map(ScanExperiment.model_validate(golden["object"]))["data"] == before["data"]


def test_a_field_of_the_first_version_keeps_its_place_and_its_default() -> None:
    """Within v1alpha1 fields are only added: none goes, no default changes, none becomes required."""
    fields = {field.pattern: field.info for field in schema_fields(ScanExperiment)}
    assert GOLDEN["defaults"].keys() == FIRST_FIELDS
    assert FIRST_FIELDS - fields.keys() == set()
    for pattern, before in GOLDEN["defaults"].items():
        info = fields[pattern]
        now = "required" if info.is_required() else info.get_default(call_default_factory=True)
        assert _canonical_default(now, pattern) == before, pattern


def _canonical_default(value: Any, pattern: str) -> Any:
    from asysi.contract.canonical import _canonical

    return _canonical(value, pattern, by_alias=True)


def test_a_later_field_is_optional() -> None:
    """A field that came later may be left out: objects from before have no value for it."""
    fields = {field.pattern: field for field in schema_fields(ScanExperiment)}
    owners = {type(None), *(fields[pattern].owner for pattern in FIRST_FIELDS)}
    later = [field for pattern, field in fields.items() if pattern not in FIRST_FIELDS]
    assert [one.pattern for one in later if one.owner in owners and one.info.is_required()] == []


class _Novel(Part):
    level: int = 3


def _grown() -> type[ScanExperiment]:
    """Return the schema as it might be one day: a field more at every level."""

    def more(part: type[Part], **fields: Any) -> type[Part]:
        return create_model(part.__name__, __base__=part, **fields)

    def field(kind: type, default: Any) -> Any:
        return (kind, Field(default=default))

    pipeline = more(DataPipeline, novel=field(str, "a"))
    data = more(Data, pipeline=(pipeline | None, None), novel=field(_Novel, _Novel()))
    train = more(SaeTrain, novel=field(bool, False))
    sae = more(Spec.model_fields["sae"].default.__class__, train=(list[train], [train()]))  # type: ignore[valid-type]
    output = more(Output, novel=field(float, 1.5))
    spec = more(
        Spec,
        data=(data | None, None),
        sae=(sae | None, sae()),
        output=(output, output()),
        novel=field(_Novel, _Novel()),
    )
    return more(ScanExperiment, spec=(spec, ...))  # type: ignore[return-value]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_growth_changes_no_digest(name: str) -> None:
    """Fields that come one day, at their defaults, change neither the digests nor the file that pods read."""
    tree = EXPERIMENTS[name]["object"]
    now, later = ScanExperiment.model_validate(tree), _grown().model_validate(tree)
    assert canonical(later) == canonical(now)
    assert spec_digest(later) == spec_digest(now)
    if "rows" in EXPERIMENTS[name]:
        assert later.spec.data is not None
        assert pipeline_folder(later.spec.data).name == EXPERIMENTS[name]["pipeline"]
        assert rows_digest(later) == EXPERIMENTS[name]["rows"]


@pytest.mark.parametrize(
    "change",
    [
        {"novel": {"level": 4}},
        {"output": {"novel": 2.5}},
        {"sae": {"train": [{"novel": True}]}},
        {"data": {"uri": "jsonl:///text.jsonl", "novel": {"level": 4}}},
    ],
)
def test_a_later_field_that_is_used_counts(change: dict[str, Any]) -> None:
    """A later field with another value than its default is in the digest: the experiment is another one."""
    grown = _grown()
    tree = EXPERIMENTS["minimal"]["object"]
    other = grown.model_validate({**tree, "spec": {**tree["spec"], **change}})
    assert digest(frozen_part(other)) != digest(frozen_part(grown.model_validate(tree)))
