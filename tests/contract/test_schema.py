"""The models describe themselves; what is generated from them is structural and current."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from asysi.contract.crd import at, custom_resource_definition, structural
from asysi.contract.fields import schema_fields
from asysi.contract.generate import difference, generated
from asysi.contract.spec import ScanExperiment, Spec
from asysi.contract.status import Status

ROOT = Path(__file__).parents[2]
Schema = dict[str, Any]
ALL = [*schema_fields(ScanExperiment), *schema_fields(Status, "status.")]
KNOWN = {
    *(
        "description",
        "type",
        "format",
        "enum",
        "default",
        "required",
        "pattern",
        "nullable",
        "items",
        "properties",
    ),
    *(
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "minItems",
        "maxItems",
    ),
    *(
        "maxProperties",
        "additionalProperties",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-validations",
    ),
    *("x-kubernetes-list-type", "x-kubernetes-list-map-keys"),
}
FREE_FORM = {"spec.data.pipeline.operators[].params", "spec.workload.ppo"}


def schemas(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Yield every schema in `schema` with its path."""
    yield path, schema
    for name, member in schema.get("properties", {}).items():
        yield from schemas(member, f"{path}.{name}" if path else name)
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if key in schema:
            yield from schemas(schema[key], f"{path}{mark}")


@pytest.fixture(scope="module")
def root() -> Schema:
    """Return the schema in the definition."""
    (version,) = custom_resource_definition()["spec"]["versions"]
    schema: Schema = version["schema"]["openAPIV3Schema"]
    return schema


@pytest.mark.parametrize("field", ALL, ids=[field.pattern for field in ALL])
def test_every_field_is_described(field: Any) -> None:
    """Each field has a docstring, a sentence; and so has the part it belongs to."""
    assert field.info.description
    assert field.info.description.strip().endswith((".", "…"))
    assert field.owner.__doc__


def test_the_schema_is_structural(root: Schema) -> None:
    """Every schema has a type and only what an API server knows; free form is only where it is meant."""
    for path, schema in schemas(root):
        assert schema.get("type"), path
        assert schema.keys() <= KNOWN, path
        assert not ("properties" in schema and "additionalProperties" in schema), path
        if schema["type"] == "array":
            assert "items" in schema, path
    free = {path for path, schema in schemas(root) if schema.get("x-kubernetes-preserve-unknown-fields")}
    assert free == FREE_FORM


def test_everything_is_bounded(root: Schema) -> None:
    """Lists, mappings and texts have a largest size: rules cost what the largest object costs."""
    for path, schema in schemas(root):
        if path in {"apiVersion", "kind", "metadata", "metadata.name"} or "enum" in schema:
            continue
        if schema["type"] == "array":
            assert "maxItems" in schema, path
        if schema["type"] == "string":
            assert "maxLength" in schema, path
        if "additionalProperties" in schema or "x-kubernetes-preserve-unknown-fields" in schema:
            assert "maxProperties" in schema, path


def test_defaults_agree_with_the_models(root: Schema) -> None:
    """A default in the schema is the model's, nulls left out."""
    found = {
        path: schema["default"]
        for path, schema in schemas(root)
        if "default" in schema and path.startswith("spec.")
    }
    for field in schema_fields(Spec, "spec."):
        default = field.info.get_default()
        if field.info.is_required() or default is None:
            assert field.pattern not in found
        elif hasattr(default, "model_dump"):
            assert found[field.pattern] == default.model_dump(by_alias=True, exclude_none=True)
        elif not field.repeated:
            assert found[field.pattern] == default


def test_columns_lead_somewhere(root: Schema) -> None:
    """The columns of `kubectl get scanx` name fields of the schema."""
    paths = {path for path, _ in schemas(root)} | {"metadata.creationTimestamp"}
    (version,) = custom_resource_definition()["spec"]["versions"]
    columns = version["additionalPrinterColumns"]
    assert {column["jsonPath"].removeprefix(".") for column in columns} <= paths
    names = [column["name"] for column in columns if not column.get("priority")]
    assert names == ["Phase", "Reason", "Mode", "Captured", "Dropped", "FVU", "Duration", "Age"]


def test_unions_are_refused() -> None:
    """A field of two types would not be structural, and is not made so silently."""
    from asysi.contract.spec import Part

    class Loose(Part):
        either: int | str
        """One or the other."""

    with pytest.raises(TypeError, match="no unions"):
        structural(Loose)


def test_generated_files_are_current() -> None:
    """What is committed is what the contract generates."""
    assert difference(ROOT, generated()) == ""


def test_the_check_prints_the_difference(tmp_path: Path) -> None:
    """A file that is missing or differs shows up as a diff with its path."""
    wanted = {Path("a.md"): "one\ntwo\n", Path("b.md"): "same\n"}
    (tmp_path / "a.md").write_text("one\n")
    (tmp_path / "b.md").write_text("same\n")
    assert re.fullmatch(
        r"--- a\.md\n\+\+\+ a\.md \(generated\)\n@@.*@@\n one\n\+two\n", difference(tmp_path, wanted)
    )


def test_the_check_succeeds_as_a_command() -> None:
    """`python -m asysi.contract.generate --check` is silent and leaves with 0 while the files are current."""
    command = [sys.executable, "-m", "asysi.contract.generate", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_examples_in_the_pages_are_valid() -> None:
    """The YAML in the reference page is an experiment that is accepted."""
    from asysi.contract.loading import check

    page = (ROOT / "docs/reference/scanexperiment.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert blocks
    for block in blocks:
        check(yaml.safe_load(block))


def test_explain_shows_defaults_items_and_what_is_missing():
    """`kubectl explain` prints descriptions: what a field is when left out, and what is not available."""
    spec = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][
        "spec"
    ]
    assert at(spec, "capture.positions.mode")["description"].endswith(
        "Default: all. Not available yet: last, random."
    )
    assert at(spec, "sae.train[].k")["description"].endswith("Default: 32.")
    kinds = at(spec, "capture.kinds")["description"]
    assert "Items: activations, gradients, parameterGradients." in kinds
    assert "Not available yet" not in kinds
    assert (
        "Not available yet: every content token is captured"
        in (at(spec, "capture.positions.count")["description"])
    )


def test_lists_that_are_merged_have_keys():
    """Two appliers of inputs or trainers add to each other instead of replacing the list."""
    spec = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][
        "spec"
    ]
    for path, keys in {"inputs": ["claim"], "sae.train": ["name"]}.items():
        listed = at(spec, path)
        assert (listed["x-kubernetes-list-type"], listed["x-kubernetes-list-map-keys"]) == ("map", keys)
        for key in keys:
            member = listed["items"]["properties"][key]
            assert "default" in member or key in listed["items"]["required"]
    assert at(spec, "capture.kinds")["x-kubernetes-list-type"] == "set"
