"""From YAML files to a checked experiment, or to sentences that say what is wrong, where, and what to do.

Relative paths in `model.uri`, `model.tokenizer`, `data.uri` and `output.uri` are relative to the current
folder; those that begin with `./` or `../` are relative to the folder of the file that states them.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as File
from typing import Any

import yaml
from pydantic import ValidationError

from asysi.contract.available import refused
from asysi.contract.errors import ConfigError
from asysi.contract.fields import Path, written
from asysi.contract.mistakes import problem_of, unknown_key
from asysi.contract.rules import Problem, rule_problems
from asysi.contract.spec import ScanExperiment

MAX_NODES = 100_000
"""Nodes a file may expand to: aliases of aliases can stand for billions."""
MAX_DEPTH = 64
"""Levels of a file: an alias can stand for what it is in."""
_KUBERNETES_METADATA = frozenset(
    {
        *(
            "annotations",
            "creationTimestamp",
            "deletionGracePeriodSeconds",
            "deletionTimestamp",
            "finalizers",
        ),
        *("generateName", "generation", "managedFields", "ownerReferences", "resourceVersion", "selfLink"),
    }
)
"""What else an API server writes there: allowed, not read."""
_PATHS: tuple[Path, ...] = (
    ("spec", "model", "uri"),
    ("spec", "model", "tokenizer"),
    ("spec", "data", "uri"),
    ("spec", "output", "uri"),
)
_LOCAL = re.compile(
    r"(?P<scheme>(?:(?:jsonl|csv|parquet)://)?(?:file://)?)(?P<rest>(?![/~]|[\w:+]+://)(?P<dots>\.\.?(?=/|$))?.*)$"
)
"""A relative path, maybe behind a scheme: `./x` and `../x` have dots."""


@dataclass(frozen=True)
class Mark:
    """Where a value was written."""

    file: str
    line: int
    """From 1; 0 when there are no lines."""
    layer: int = 0
    """Which of the merged files it is."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class MarkedTree:
    """One file's tree, and where each of its values stands."""

    tree: Any
    marks: Mapping[Path, Mark]
    problems: Sequence[str] = field(default=())


def load(files: Sequence[File], settings: Sequence[str] = ()) -> ScanExperiment:
    """Return the experiment that `files` describe together; later files win, lists are replaced.

    Args:
        files: YAML files, at least one.
        settings: `path=value` pairs that win over every file, like `spec.workload.scan.passes=2`.

    Raises:
        ConfigError: everything that is wrong, a sentence each: file, line, path, what, and what to do.
    """
    if not files:
        raise ConfigError("no experiment is given: name its YAML file, like `asysi run scan.yaml`")
    layers = [read(file) for file in files] + [set_value(setting) for setting in settings]
    problems = [problem for layer in layers for problem in layer.problems]
    if problems:
        raise ConfigError(*problems)
    return assemble(layers)


def assemble(layers: Sequence[MarkedTree]) -> ScanExperiment:
    """Return the experiment that `layers` make, the last one winning.

    Raises:
        ConfigError: everything that is wrong with it.
    """
    tree: Any = {}
    marks: dict[Path, Mark] = {}
    for number, layer in enumerate(layers):
        tree = merge(tree, layer.tree)
        marks |= {path: replace(mark, layer=number) for path, mark in layer.marks.items()}
    folders = {path: File(mark.file).parent for path, mark in marks.items() if mark.line}
    return check(resolve_paths(tree, folders, File.cwd()), marks)


def check(tree: Mapping[str, Any], marks: Mapping[Path, Mark] | None = None) -> ScanExperiment:
    """Return the experiment in `tree`: what a file holds, or an object of the API server.

    Raises:
        ConfigError: everything that is wrong with it, by `marks` with file and line.
    """
    tree = {key: value for key, value in tree.items() if key != "status"}
    experiment, problems = _validated(tree)
    if experiment is not None:
        known = {problem.path for problem in problems}
        for problem in (*rule_problems(experiment.spec), *refused(experiment)):
            if problem.path not in known:
                problems.append(problem)
                known.add(problem.path)
    problems += _unknown_metadata(tree)
    if problems:
        raise ConfigError(*sentences(problems, marks or {}))
    assert experiment is not None
    return experiment


def merge(base: Any, overlay: Any) -> Any:
    """Return `base` with `overlay` laid over it: mappings merge key by key, everything else is replaced."""
    if not (isinstance(base, dict) and isinstance(overlay, dict)):
        return overlay
    return base | {key: merge(base[key], value) if key in base else value for key, value in overlay.items()}


def resolve_paths(tree: Any, folders: Mapping[Path, File], here: File) -> Any:
    """Return `tree` with its local paths made absolute, so that they mean the same in every process.

    Args:
        tree: the experiment.
        folders: the folder of the file that states a value, by the value's path: where `./` and `../` begin.
        here: where all other relative paths begin.
    """
    for path in _PATHS:
        value = _value_at(tree, path)
        absolute = resolve_path(value, folders.get(path, here), here)
        if absolute != value:
            tree = merge(tree, _nested(path, absolute))
    return tree


def resolve_path(value: Any, folder: File, here: File) -> Any:
    """Return a local path, maybe behind a scheme, made absolute; everything else as it is.

    Args:
        value: what the file says.
        folder: where `./` and `../` begin.
        here: where all other relative paths begin.
    """
    local = _LOCAL.match(value) if isinstance(value, str) else None
    if not local:
        return value
    base = folder if local["dots"] else here
    absolute = os.path.normpath(base.resolve() / local["rest"])  # a link at the end stays a link
    return f"{local['scheme']}{absolute}"


def read(file: File) -> MarkedTree:
    """Return the tree of a YAML file.

    Raises:
        ConfigError: the file cannot be read, is not YAML (with line and column), or is not a single mapping.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
        ) from error
    return parse(text, str(file))


def parse(text: str, name: str) -> MarkedTree:
    """Return the tree of a YAML text; `name` is what errors call it. Raises ConfigError as `read` does."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            found = "is empty" if node is None else "holds no mapping"
            raise ConfigError(f"{name} {found}: an experiment has `metadata:` and `spec:`")
        walk = _Walk(name)
        walk.marks[()] = Mark(name, 1)
        walk.mapping(node, ())
        return MarkedTree(
            loader.construct_document(node) if not walk.problems else {}, walk.marks, walk.problems
        )
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{where}: this is not YAML: {what}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{name}: this is not YAML: {' '.join(str(error).split())}") from error


def set_value(setting: str) -> MarkedTree:
    """Return the layer of one `path=value`; the value is YAML.

    Raises:
        ConfigError: there is no `=`, or the value is not YAML.
    """
    key, separator, text = setting.partition("=")
    if not separator or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise ConfigError(f"--set {setting}: write path=value, like spec.workload.scan.passes=2")
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {setting}: not valid YAML: {' '.join(str(error).split())}") from error
    path = tuple(key.split("."))
    mark = Mark(f"--set {setting}", 0)
    return MarkedTree(_nested(path, value), {path[: length + 1]: mark for length in range(len(path))})


class _Loader(yaml.SafeLoader):
    """YAML's safe types, with numbers as everybody writes them: `2e-4` is one."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


class _Walk:
    """Goes through a document's nodes: notes where each value stands, and the keys that stand there twice."""

    def __init__(self, name: str) -> None:
        self.marks: dict[Path, Mark] = {}
        self.problems: list[str] = []
        self._name = name
        self._nodes = 0

    def mapping(self, node: yaml.MappingNode, path: Path) -> None:
        seen: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    self._below(merged, path)
                continue
            if key_node.tag != "tag:yaml.org,2002:str":
                self._problem(
                    key_node, f"{written(path) or 'the document'} has a key that is not a string: quote it"
                )
                continue
            key = key_node.value
            if key in seen:
                first = seen[key].start_mark.line + 1
                self._problem(
                    key_node, f"{written((*path, key))} is given twice, first in line {first}: keep one"
                )
            seen[key] = key_node
            self.marks[(*path, key)] = self._mark(key_node)
            self._below(value, (*path, key))

    def _below(self, node: yaml.Node, path: Path) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise ConfigError(f"{self._name} expands to more than {MAX_NODES} values: its aliases multiply")
        if len(path) > MAX_DEPTH:
            raise ConfigError(f"{self._name} nests deeper than {MAX_DEPTH} levels at {written(path[:8])}…")
        if isinstance(node, yaml.MappingNode):
            self.mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.marks[(*path, index)] = self._mark(item)
                self._below(item, (*path, index))

    def _mark(self, node: yaml.Node) -> Mark:
        return Mark(self._name, node.start_mark.line + 1)

    def _problem(self, node: yaml.Node, text: str) -> None:
        self.problems.append(f"{self._mark(node)}: {text}")


def _validated(tree: Mapping[str, Any]) -> tuple[ScanExperiment | None, list[Problem]]:
    """Validate `tree`; when it is wrong, also what is left without the wrong values, to check that too."""
    try:
        return ScanExperiment.model_validate(tree, by_alias=True, by_name=False), []
    except ValidationError as error:
        problems = [problem_of(detail) for detail in error.errors(include_url=False)]
    for problem in problems:
        tree = _without(tree, problem.path)
    try:
        return ScanExperiment.model_validate(tree, by_alias=True, by_name=False), problems
    except ValidationError:
        return None, problems


def _unknown_metadata(tree: Mapping[str, Any]) -> list[Problem]:
    metadata = tree.get("metadata")
    if not isinstance(metadata, dict):
        return []
    known = _KUBERNETES_METADATA | {"name", "namespace", "labels", "uid"}
    return [unknown_key(("metadata", key)) for key in metadata if key not in known]


def sentences(
    problems: Sequence[Problem], marks: Mapping[Path, Mark], whole: str = "the experiment"
) -> list[str]:
    """Return the problems as sentences, in the order of the files and of the lines in them.

    Args:
        problems: what is wrong.
        marks: where each value stands.
        whole: what the tree is called where no value of it is meant.
    """
    placed: list[tuple[int, int, str]] = []
    for problem in problems:
        mark = next(
            (marks[problem.path[:n]] for n in range(len(problem.path), -1, -1) if problem.path[:n] in marks),
            None,
        )
        text = f"{written(problem.path) or whole} {problem.text}"
        placed.append((mark.layer, mark.line, f"{mark}: {text}") if mark else (-1, 0, text))
    return [text for _file, _line, text in sorted(placed, key=lambda entry: entry[:2])]


def _value_at(tree: Any, path: Path) -> Any:
    for step in path:
        tree = tree.get(step) if isinstance(tree, dict) else None
    return tree


def _nested(path: Path, value: Any) -> Any:
    for step in reversed(path):
        value = {step: value}
    return value


def _without(tree: Any, path: Path) -> Any:
    """Return `tree` without the value at `path`; a list of mappings keeps all its indices."""
    step, rest = path[0], path[1:]
    if isinstance(tree, list) and isinstance(step, int) and step < len(tree):
        if rest:
            return [_without(item, rest) if index == step else item for index, item in enumerate(tree)]
        return [item for index, item in enumerate(tree) if index != step or isinstance(item, dict)]
    if isinstance(tree, dict) and step in tree:
        return (
            tree | {step: _without(tree[step], rest)}
            if rest
            else {k: v for k, v in tree.items() if k != step}
        )
    return tree
