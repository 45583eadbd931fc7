"""Generates the CRD from the models: structural, bounded, with defaults and CEL rules."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from asysi.contract import frozen
from asysi.contract.available import BY_PATTERN, missing
from asysi.contract.fields import schema_fields
from asysi.contract.rules import RULES
from asysi.contract.spec import API_VERSION, KIND, Metadata, ScanExperiment, Spec
from asysi.contract.status import Status

Schema = dict[str, Any]

GROUP, VERSION = API_VERSION.split("/")
PLURAL = "scanexperiments"
_KEPT = (
    *("description", "type", "format", "enum", "default", "required", "pattern"),
    *("minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems", "maxProperties"),
)
_MERGED = {
    "inputs": ("claim",),
    "sae.train": ("name",),
    "capture.kinds": (),
    "weights.when": (),
}
"""Lists that server-side apply merges: by the keys of their items, or as sets if they have no keys."""
_COLUMNS = (
    ("Phase", "string", ".status.phase", 0),
    ("Reason", "string", ".status.reason", 0),
    ("Mode", "string", ".spec.mode", 0),
    ("Captured", "integer", ".status.counters.captured", 0),
    ("Dropped", "integer", ".status.counters.dropped", 0),
    ("FVU", "number", ".status.sae.fvu", 0),
    ("Model", "string", ".spec.model.uri", 1),
    ("Attempt", "integer", ".status.attempt", 1),
    ("Node", "string", ".status.node", 1),
    ("Duration", "string", ".status.duration", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
)


def custom_resource_definition() -> Schema:
    """Return the `apiextensions.k8s.io/v1` object that defines ScanExperiment."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["scanx"],
                "categories": ["all"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(*column) for column in _COLUMNS],
                    "schema": {"openAPIV3Schema": _root()},
                }
            ],
        },
    }


def structural(part: type[BaseModel]) -> Schema:
    """Return the structural schema of `part`, without references or `anyOf`, as the API server requires."""
    schema = part.model_json_schema(by_alias=True)
    return _structural(schema, schema.get("$defs", {}))


def _column(name: str, kind: str, path: str, priority: int) -> Schema:
    column: Schema = {"name": name, "type": kind, "jsonPath": path}
    return column | {"priority": priority} if priority else column


def _root() -> Schema:
    spec, status = structural(Spec), structural(Status)
    _explain(spec)
    for rule in RULES:
        part = _part(spec, rule.at)
        part.setdefault("x-kubernetes-validations", []).append({"rule": rule.cel, "message": rule.message})
    for path, keys in _MERGED.items():
        merged = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}
        at(spec, path).update(merged if keys else {"x-kubernetes-list-type": "set"})
    conditions = status["properties"]["conditions"]
    conditions |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    name = structural(Metadata)["properties"]["name"]
    return {
        "description": (ScanExperiment.__doc__ or "").strip(),
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            # A CRD can only restrict the name and generateName in the metadata.
            "metadata": {
                "type": "object",
                "properties": {"name": {key: name[key] for key in ("type", "pattern", "maxLength")}},
            },
            "spec": spec,
            "status": status,
        },
        "x-kubernetes-validations": [
            {
                "rule": rule,
                "message": f"{path} {frozen.MESSAGE}",
                "fieldPath": f".{path}",
                "reason": "FieldValueForbidden",
            }
            for path, rule in frozen.rules()
        ],
    }


def _explain(spec: Schema) -> None:
    """Add what `kubectl explain` does not show to the descriptions: defaults, items, unavailable features."""
    for field in schema_fields(ScanExperiment):
        if field.pattern.startswith("spec."):
            member = at(spec, field.pattern.removeprefix("spec."))
            said = [member.get("description", ""), *_facts(member, field.pattern)]
            member["description"] = " ".join(text for text in said if text)


def _facts(member: Schema, pattern: str) -> Iterator[str]:
    default = member.get("default")
    if default is not None and not isinstance(default, dict) and default != []:
        yield f"Default: {json.dumps(default) if isinstance(default, list) else _plain(default)}."
    if allowed := member.get("items", {}).get("enum"):
        yield f"Items: {', '.join(map(str, allowed))}."
    if absent := missing(BY_PATTERN.get(pattern), choices(member)):
        yield f"Not available yet: {absent.replace('`', '')}."


def _part(spec: Schema, path: str) -> Schema:
    return spec if path == "spec" else at(spec, path.removeprefix("spec."))


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def at(schema: Schema, pattern: str) -> Schema:
    """Return the schema of a field by its path within `schema`, list items as `[]`: `sae.train[].k`."""
    for step in pattern.split("."):
        schema = schema["properties"][step.removesuffix("[]")]
        if step.endswith("[]"):
            schema = schema["items"]
    return schema


def choices(member: Schema) -> list[Any]:
    """Return the allowed values of a field or its list items; empty if the schema does not list them."""
    listed: list[Any] = member.get("items", member).get("enum", [])
    return listed


def _structural(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    node = _resolved(node, definitions)
    schema: Schema = {key: node[key] for key in _KEPT if key in node}
    if node.get("nullable"):
        schema["nullable"] = True
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())
    if "const" in node:
        schema["enum"] = [node["const"]]
    if schema.get("type") == "integer":
        schema["format"] = "int64"
    for bound in ("Minimum", "Maximum"):
        if (
            f"exclusive{bound}" in node
        ):  # a number in JSON Schema 2020, a flag beside the number in OpenAPI 3.0
            schema[bound.lower()], schema[f"exclusive{bound}"] = node[f"exclusive{bound}"], True
    if "items" in node:
        schema["items"] = _structural(node["items"], definitions)
    if schema.get("type") == "object":
        _add_members(schema, node, definitions)
    if "default" in schema:
        schema["default"] = _without_null(schema["default"])
        if schema["default"] is None:
            del schema["default"]
    return schema


def _resolved(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    """Return `node` with its reference and its `anyOf [X, null]` resolved.

    Keys next to a reference take precedence.
    """
    flat = dict(node)
    if "anyOf" in flat:
        choices = [choice for choice in flat.pop("anyOf") if choice.get("type") != "null"]
        if len(choices) != 1:
            raise TypeError(f"a structural schema has no unions: {node}")
        flat = choices[0] | flat | {"nullable": True}
    if "$ref" in flat:
        name = flat.pop("$ref").rsplit("/", 1)[1]
        flat = _resolved(definitions[name], definitions) | flat
    return flat


def _add_members(schema: Schema, node: Mapping[str, Any], definitions: Mapping[str, Any]) -> None:
    if "properties" in node:
        schema["properties"] = {
            name: _structural(member, definitions) for name, member in node["properties"].items()
        }
        return
    # For a mapping with a key pattern, pydantic puts the values here; rules validate the keys.
    values = node.get("additionalProperties", next(iter(node.get("patternProperties", {}).values()), True))
    if values is True:
        schema["x-kubernetes-preserve-unknown-fields"] = True
    elif names := node.get("propertyNames", {}).get("enum"):
        schema["properties"] = {name: _structural(values, definitions) for name in names}
    else:
        schema["additionalProperties"] = _structural(values, definitions)


def _without_null(default: Any) -> Any:
    """Return `default` without null members, which the API server treats as absent.

    The other members stay explicit: the API server validates a default against the rules before filling in
    defaults of its members.
    """
    if isinstance(default, list):
        return [_without_null(item) for item in default]
    if isinstance(default, dict):
        return {key: _without_null(value) for key, value in default.items() if value is not None}
    return default
