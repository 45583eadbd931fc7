"""No field of the spec is silently ignored: a walk over the whole schema.

Each value of a field is changed in turn, in lists, mappings and optional parts too. The change must show in
the pod or the objects beside it; or, for what the workers read from the ConfigMap, stand in that file while
code of the package that `READ_BY` names reads it; or be named among what has no effect on a cluster; or be
refused by name. There is no list of exceptions.
"""

import ast
import copy
import functools
import itertools
import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, create_model

from asysi.contract import available, loading
from asysi.contract.available import READ_BY, REFUSALS
from asysi.contract.crd import structural
from asysi.contract.errors import ConfigError
from asysi.contract.fields import Path as SpecPath
from asysi.contract.fields import pattern_of, schema_fields, written
from asysi.contract.spec import Capture, ScanExperiment, Spec
from asysi_operator.acceptance import notes, validate
from asysi_operator.manifests import build
from asysi_operator.manifests.labels import SPEC

Tree = dict[str, Any]
BASE: Tree = {
    "metadata": {"name": "minilm"},
    "spec": {
        "model": {"uri": "file:///models/minilm"},
        "data": {"uri": "jsonl:///data/text.jsonl"},
        "workload": {"scan": {}},
        "capture": {"hookPoints": ["*"]},
        "resources": {"prepare": {"memory": "4Gi"}},
    },
}
_WITH_LOSS: Tree = {"workload": {"scan": {"loss": "lm"}}}
COMPANIONS: dict[str, Tree] = {
    "spec.model.revision": {"model": {"uri": "hf://owner/name"}},
    "spec.data.tokens.separatorToken": {"data": {"tokens": {"packing": "concat"}}},
    "spec.scheduling.tolerations[].operator": {"scheduling": {"tolerations": [{"key": "gpu"}]}},
    "spec.scheduling.tolerations[].value": {"scheduling": {"tolerations": [{"key": "gpu"}]}},
    "spec.scheduling.tolerations[].effect": {"scheduling": {"tolerations": [{"key": "gpu"}]}},
    "spec.scheduling.tolerations[].tolerationSeconds": {
        "scheduling": {"tolerations": [{"key": "gpu", "effect": "NoExecute"}]}
    },
    "spec.sae.train[].grid.latents": {"sae": {"train": [{"k": 1}]}},
    "spec.sae.train[].grid.latents[]": {"sae": {"train": [{"k": 1}]}},
    "spec.sae.gpuResource": {"sae": {"gpus": 1}},
    "spec.capture.kinds": {**_WITH_LOSS, "sae": {"enabled": False}},
    "spec.capture.kinds[]": {**_WITH_LOSS, "sae": {"enabled": False}},
    "spec.capture.parameters": {**_WITH_LOSS, "capture": {"kinds": ["activations", "parameterGradients"]}},
    "spec.capture.parameters[]": {**_WITH_LOSS, "capture": {"kinds": ["activations", "parameterGradients"]}},
    "spec.capture.sampling.rate": {"capture": {"sampling": {"minRate": 0.001}}},
}
"""What else must stand in the spec for a field to have a meaning: in the base and in the changed one."""
TEXTS = ("jsonl:///data/other.jsonl", "hf://owner/other", "b-1", "s3://bucket/x")
PATTERNED = (*("5Gi", "6Gi", "96Mi"), *("c" * 64, "d" * 64), *("0", "0-3"), *("b-1", "c"), "example.com/gpu")


def places(schema: Tree, path: SpecPath = ("spec",)) -> Iterator[tuple[SpecPath, Tree]]:
    """Yield each place of a schema where a value can stand, the whole of lists and mappings too."""
    yield path, schema
    for name, member in schema.get("properties", {}).items():
        yield from places(member, (*path, name))
    if "items" in schema:
        yield from places(schema["items"], (*path, 0))
    if "additionalProperties" in schema:
        yield from places(schema["additionalProperties"], (*path, "key"))


def samples(schema: Tree) -> list[Any]:
    """Return up to four values of a place and, where it may be null, that."""
    found = [value for value in _candidates(schema) if _fits(value, schema)]
    return [*found[:4], *([None] if schema.get("nullable") else [])]


def _candidates(schema: Tree) -> Iterator[Any]:
    if "enum" in schema:
        yield from schema["enum"]
    elif schema["type"] == "boolean":
        yield from (True, False)
    elif schema["type"] in {"integer", "number"}:
        default = schema.get("default", 1)
        yield from (default + 1, default + 3, default * 0.5, default * 0.3, schema.get("minimum", 0) + 2)
    elif schema["type"] == "string":
        yield from PATTERNED if "pattern" in schema else TEXTS
    elif schema["type"] == "array":
        one, *_more = samples(schema["items"])
        yield from ([one], [one, samples(schema["items"])[-1]], [])
    elif "properties" in schema:
        yield example(schema)
    else:
        yield from ({"b": value} for value in samples(schema.get("additionalProperties", {"type": "string"})))


def _fits(value: Any, schema: Tree) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool) and "enum" not in schema:
        low, high = schema.get("minimum", float("-inf")), schema.get("maximum", float("inf"))
        whole = schema["type"] == "number" or isinstance(value, int)
        return whole and low <= value <= high and not (schema.get("exclusiveMinimum") and value == low)
    if isinstance(value, list):
        return len(value) >= schema.get("minItems", 0)
    return not isinstance(value, str) or "enum" in schema or bool(re.search(schema.get("pattern", ""), value))


def example(schema: Tree) -> Tree:
    """Return a part with what is required of it, and something at least."""
    required = schema.get("required", [])
    return {name: samples(schema["properties"][name])[0] for name in required}


def with_value(tree: Tree, path: SpecPath, value: Any, schema: Tree) -> Tree:
    """Return a tree with a value at a path; the parts above it are made as small as they can be."""
    tree = copy.deepcopy(tree)
    part: Any = tree["spec"]
    for step, after in itertools.pairwise(path[1:]):
        schema = _inside(schema, step)
        empty: Any = [] if isinstance(after, int) else example(schema) if "properties" in schema else {}
        if isinstance(step, int):
            part.extend([empty] if not part else [])
            part = part[0]
        else:
            part = part.setdefault(step, empty)
    last = path[-1]
    if isinstance(last, int):
        part[:] = [value]
    else:
        part[last] = value
    if path[:2] == ("spec", "workload") and len(path) > 2 and path[2] != "scan":
        del tree["spec"]["workload"]["scan"]
    return tree


def _inside(schema: Tree, step: str | int) -> Tree:
    if isinstance(step, int):
        return schema["items"]
    return schema["properties"][step] if "properties" in schema else schema["additionalProperties"]


def laid_over(base: Any, change: Any) -> Any:
    """Return a tree with another one laid over it."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return copy.deepcopy(change)
    return {**base, **{key: laid_over(base.get(key), value) for key, value in change.items()}}


def rendered(tree: Tree) -> tuple[ScanExperiment, str, str]:
    """Return the experiment, the objects beside the ConfigMap, and the ConfigMap.

    The digest of the spec is taken out: it changes with every field, and changes nothing.
    """
    experiment = validate(tree)
    objects = build(experiment)
    for item in objects:
        if item["kind"] == "Job":
            del item["spec"]["template"]["metadata"]["annotations"][SPEC]
    cluster = [item for item in objects if item["kind"] != "ConfigMap"]
    return experiment, json.dumps(cluster), json.dumps([o for o in objects if o["kind"] == "ConfigMap"])


def fates(trees: list[Tree], path: SpecPath) -> set[str]:
    """Return what becomes of any two values at a path: seen, file, noted, refused, or what is wrong."""
    accepted: list[tuple[ScanExperiment, str, str]] = []
    found = set()
    for tree in trees:
        try:
            one = rendered(tree)
        except ConfigError as error:
            found.add("refused" if _named(path, error.problems) else f"refused without its name: {error}")
        else:
            accepted += [one] if one[0] not in [known[0] for known in accepted] else []
    return found | {_difference(*two, path) for two in itertools.combinations(accepted, 2)}


def _difference(
    one: tuple[ScanExperiment, str, str], other: tuple[ScanExperiment, str, str], path: SpecPath
) -> str:
    if one[1] != other[1]:
        return "seen"
    above = [written(path[:length]) for length in range(3, len(path) + 1)]
    if any(name in note for name in above for experiment in (one, other) for note in notes(experiment[0])):
        return "noted"
    return "file" if one[2] != other[2] else "nothing that is rendered has changed"


def _named(path: SpecPath, problems: list[str]) -> bool:
    """Whether a sentence is about the field or a part that it lies in, or names it."""
    above = {written(path[:length]) for length in range(2, len(path) + 1)}
    key = re.compile(rf"\b{path[-1]}\b")
    return any(line.split(" ")[0] in above or key.search(line) for line in problems)


@functools.cache
def _read_in(package: str) -> frozenset[str]:
    """Return the attributes that the code of a package reads."""
    found = find_spec(package)
    assert found is not None
    assert found.submodule_search_locations is not None
    files = [file for folder in found.submodule_search_locations for file in Path(folder).rglob("*.py")]
    trees = [ast.parse(file.read_text()) for file in files if file.name not in {"available.py", "spec.py"}]
    nodes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return frozenset(node.attr for node in nodes if isinstance(node.ctx, ast.Load))


def complaint(path: SpecPath, found: set[str]) -> str | None:
    """Return what is wrong with the fates of a field's values, None when it is not ignored."""
    pattern = pattern_of(path).removesuffix("[]").removesuffix(".key")
    if bad := found - {"seen", "file", "noted", "refused"}:
        return min(bad)
    if not found:
        return "none of its samples is another value"
    if found == {"refused"} and not _is_refused(path):
        return "every other value of it is refused, but the field is not among the refusals"
    if "file" not in found:
        return None
    package = next((name for name, patterns in READ_BY.items() if pattern in patterns), None)
    if package is None or not package.startswith("asysi."):
        return f"only the ConfigMap changes, and no worker is said to read it ({package})"
    name = next(field.name for field in schema_fields(ScanExperiment) if field.pattern == pattern)
    return None if name in _read_in(package) else f"{package} never reads .{name}"


LOCAL = {"spec.mode", "spec.bus.redis"}
"""Fields of local runs, which the operator refuses by name."""


def _is_refused(path: SpecPath) -> bool:
    """Whether the field, or a part that it lies in, is refused."""
    known = {refusal.pattern for refusal in REFUSALS} | LOCAL
    return any(pattern_of(path[:length]).removesuffix("[]") in known for length in range(1, len(path) + 1))


def judged(path: SpecPath, schema: Tree, root: Tree) -> str | None:
    """Return what is wrong with a place of the schema."""
    base = laid_over(BASE, {"spec": COMPANIONS.get(pattern_of(path), {})})
    trees = [with_value(base, path, value, root) for value in samples(schema)]
    if not isinstance(path[-1], int):
        trees.append(_without(trees[0], path))
    found = fates(trees, path)
    if "properties" in schema.get("items", schema) and not found - {"refused", "seen", "file", "noted"}:
        return None  # its members are judged one by one
    return complaint(path, found)


def _without(tree: Tree, path: SpecPath) -> Tree:
    """Return a tree in which nothing stands at a path: the default, or what the base has."""
    tree = copy.deepcopy(tree)
    part, known = tree, BASE
    for step in path[:-1]:
        part = part[step]
        known = known.get(step, {}) if isinstance(known, dict) else {}
    del part[path[-1]]
    if isinstance(known, dict) and path[-1] in known:
        part[path[-1]] = known[path[-1]]
    return tree


ROOT = structural(Spec)
PLACES = [(path, schema) for path, schema in places(ROOT) if path != ("spec",)]


@pytest.mark.parametrize(("path", "schema"), PLACES, ids=[pattern_of(path) for path, _ in PLACES])
def test_no_field_is_ignored(path, schema):
    """Another value shows where it has to, or is refused by its name."""
    assert judged(path, schema, ROOT) is None


@pytest.mark.parametrize(
    ("field", "known", "said"),
    [
        ((int, Field(0, ge=0)), None, "no worker is said to read it"),
        ((int, Field(0, ge=0)), "asysi.hook", "asysi.hook never reads .novel"),
        ((int, Field(0, ge=0, exclude=True)), "asysi.hook", "nothing that is rendered has changed"),
    ],
    ids=["a field without a reader", "a reader that does not read", "a field that goes nowhere"],
)
def test_a_new_field_that_goes_nowhere_is_found(monkeypatch, field, known, said):
    """The walk itself: a field added to the schema fails it until somebody reads it."""
    capture = create_model("Capture", __base__=Capture, novel=field)
    spec = create_model("Spec", __base__=Spec, capture=(capture, ...))
    mutant = create_model("ScanExperiment", __base__=ScanExperiment, spec=(spec, ...))
    monkeypatch.setattr(loading, "ScanExperiment", mutant)
    monkeypatch.setitem(available.READ_BY, "asysi.hook", (*READ_BY["asysi.hook"], "spec.capture.novel"))
    if known is None:
        monkeypatch.setitem(available.READ_BY, "asysi.hook", ())
    monkeypatch.setitem(globals(), "ScanExperiment", mutant)
    root = structural(spec)
    found = judged(("spec", "capture", "novel"), root["properties"]["capture"]["properties"]["novel"], root)
    assert said in str(found)


@pytest.mark.parametrize(
    ("key", "value"), [("name", "other"), ("namespace", "lab"), ("labels", {"team": "x"}), ("uid", "1-2-3")]
)
def test_metadata_is_seen(key, value):
    """What the contract reads of the metadata changes the objects."""
    changed = copy.deepcopy(BASE)
    changed["metadata"][key] = value
    assert rendered(changed)[1] != rendered(BASE)[1]


memory = st.integers(5, 64).map(lambda size: f"{size}Gi")
cpus = st.floats(0.0001, 1024)
resources = st.fixed_dictionaries({}, optional={"cpus": cpus, "memory": memory})
specs = st.fixed_dictionaries(
    {
        "resources": st.fixed_dictionaries(
            {"prepare": st.just({"memory": "16Gi"})},
            optional=dict.fromkeys(("host", "hook", "finish"), resources),
        ),
        "sae": st.none() | resources,
        "archive": st.fixed_dictionaries(
            {"enabled": st.booleans()}, optional={"cpus": cpus, "memory": memory}
        ),
        "bus": st.fixed_dictionaries({}, optional={"shards": st.integers(1, 64), "size": st.just("1Gi")}),
        "lifecycle": st.fixed_dictionaries(
            {}, optional={"maxRestarts": st.integers(0, 100), "gracePeriodSeconds": st.integers(1, 3600)}
        ),
    }
)


@given(specs)
def test_any_pod_is_guaranteed_and_the_same_each_time(spec):
    """Whatever the numbers: requests equal limits, no CPU quantity is zero, twice rendered is the same."""
    document = {"metadata": BASE["metadata"], "spec": {**BASE["spec"], **spec}}
    experiment = ScanExperiment.model_validate(document)
    objects = build(experiment)
    assert json.dumps(objects) == json.dumps(build(experiment))
    pod = objects[-1]["spec"]["template"]["spec"]
    for item in [*pod["initContainers"], *pod["containers"]]:
        asked, limit = item["resources"]["requests"], item["resources"]["limits"]
        assert all(asked[key] == limit[key] for key in limit if key != "ephemeral-storage")
        assert item["resources"]["limits"]["cpu"] not in {"0", "0m"}
        threads = next(v["value"] for v in item["env"] if v["name"] == "OMP_NUM_THREADS")
        assert 1 <= int(threads) <= 1024
