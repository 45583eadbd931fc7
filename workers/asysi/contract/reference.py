"""Generates the reference page of the spec from the models."""

import json
from collections.abc import Iterator

from pydantic import BaseModel

from asysi.contract.available import BY_PATTERN, missing
from asysi.contract.crd import Schema, at, choices, structural
from asysi.contract.fields import SchemaField, schema_fields
from asysi.contract.pipeline import PipelineFile
from asysi.contract.quantity import PATTERN as MEMORY_PATTERN
from asysi.contract.rules import RULES
from asysi.contract.spec import ScanExperiment
from asysi.contract.status import Status

_INTRODUCTION = """\
# ScanExperiment

<!-- Generated from asysi.contract by `python -m asysi.contract.generate`. Do not edit. -->

One file defines which model to observe, at which hook points, and how to process the activations. The same
file runs as processes on one machine (`asysi run scan.yaml`) and as a pod on a cluster
(`kubectl apply -f scan.yaml`). Minimal example:

```yaml
apiVersion: asysi.dev/v1alpha1
kind: ScanExperiment
metadata: {name: minilm}
spec:
  model: {uri: file://./model}
  data: {uri: jsonl://./text.jsonl}
  workload: {scan: {}}
  capture: {hookPoints: ["encoder.layer.*.output"]}
```

- **Several files**: `asysi run -f base.yaml -f profile.yaml` merges mappings key by key; later files take
  precedence; lists are replaced as a whole; `null` unsets a field.
- **Relative paths** in `model.uri`, `model.tokenizer`, `data.uri` and `output.uri` are relative to the
  current folder; paths that begin with `./` or `../` (`file://./model`) are relative to the folder of the
  file that contains them.
- **Types are strict**, as in the API server: `"8"` is not a number.
- **Unknown keys are errors**; the message suggests the closest known key. Features marked *not available
  yet* are rejected by name, never ignored.
- A **memory quantity** is a number with `Ki`, `Mi`, `Gi` or `Ti` (or `k`, `M`, `G`, `T`).
"""

_PIPELINE = """\
# A pipeline's file

<!-- Generated from asysi.contract by `python -m asysi.contract.generate`. Do not edit. -->

The file for `asysi pipeline run FILE`; `pipeline` below is the file itself.
[The pipeline's page](../pipeline.md) describes its behaviour. Minimal example:

```yaml
pipelineId: clean
inputUri: jsonl://raw.jsonl
outputUri: jsonl://clean.jsonl
operators:
  - {operator: "cleaning:Clean"}
```

- **Relative paths** are relative to the current folder; paths that begin with `./` or `../`
  (`jsonl://./raw.jsonl`) are relative to the folder of the file.
- **Types are strict**, and **unknown keys are errors**; the message suggests the closest known key.
- `--set PATH=VALUE` overrides one field of the file: `--set batchSize=10`, `--set writer.fsync=false`.
"""


def reference_page() -> str:
    """Return the reference of spec and status as Markdown."""
    sections = [_INTRODUCTION, *_parts(ScanExperiment, "")]
    sections.append(f"## Rules between fields\n\n{_rules()}\n")
    sections.append("# Status\n\nThe `status` section of `kubectl get scanx -o yaml`.\n")
    sections += _parts(Status, "status.")
    return "\n".join(sections)


def pipeline_page() -> str:
    """Return the reference of a pipeline file as Markdown."""
    return "\n".join([_PIPELINE, *_parts(PipelineFile, "pipeline.")])


def _parts(root: type[BaseModel], prefix: str) -> Iterator[str]:
    schema = structural(root)
    top = prefix.removesuffix(".")
    if top:
        yield _section(top, root, schema)
    for field in schema_fields(root):
        if field.part is not None:
            suffix = "[]" if field.repeated else ""
            yield _section(
                f"{prefix}{field.pattern}{suffix}", field.part, at(schema, f"{field.pattern}{suffix}")
            )


def _section(path: str, part: type[BaseModel], schema: Schema) -> str:
    own = [field for field in schema_fields(part, f"{path}.") if field.pattern == f"{path}.{field.key}"]
    rows = [
        "| field | type | default | |",
        "| --- | --- | --- | --- |",
        *(_row(field, schema) for field in own),
    ]
    description = " ".join((part.__doc__ or "").split())
    return f"## {path}\n\n{description}\n\n" + "\n".join(rows) + "\n"


def _row(field: SchemaField, schema: Schema) -> str:
    member = schema["properties"][field.key]
    required = field.key in schema.get("required", ())
    default = "**required**" if required else _default(field, member)
    text = member.get("description", "")
    if absent := missing(BY_PATTERN.get(field.pattern), choices(member)):
        text = f"{text} *Not available yet: {absent}.*"
    cells = (f"`{field.key}`", _type(member), default, text)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _type(member: Schema) -> str:
    if "enum" in member:
        return " | ".join(f"`{value}`" for value in member["enum"])
    kind = member["type"]
    if kind == "array":
        return f"list of {_type(member['items'])}, {_range(member, 'Items')}"
    if kind == "object":
        return "part" if "properties" in member else "mapping"
    if member.get("pattern") == MEMORY_PATTERN:
        return "memory quantity"
    bounds = _range(member, "Length") if kind == "string" else _limits(member)
    return f"{kind}, {bounds}" if bounds else kind


def _range(member: Schema, what: str) -> str:
    least, most = member.get(f"min{what}", 0), member.get(f"max{what}")
    unit = " characters" if what == "Length" else ""
    if most is None:
        return ""
    return f"{least}–{most}{unit}" if least else f"at most {most}{unit}"


def _limits(member: Schema) -> str:
    words = []
    if "minimum" in member:
        words.append(f"{'>' if member.get('exclusiveMinimum') else '≥'} {member['minimum']:g}")
    if "maximum" in member:
        words.append(f"{'<' if member.get('exclusiveMaximum') else '≤'} {member['maximum']:.10g}")
    return ", ".join(words)


def _default(field: SchemaField, member: Schema) -> str:
    if field.part is not None and not field.repeated:
        return "its defaults" if "default" in member else ""
    if field.repeated and "default" in member:
        return "one, with its defaults" if member["default"] else "`[]`"
    return f"`{json.dumps(member['default'])}`" if "default" in member else ""


def _rules() -> str:
    return "\n".join(f"- `{rule.at}`: {rule.message}." for rule in RULES)
