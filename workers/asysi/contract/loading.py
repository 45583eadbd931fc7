"""Loads a validated experiment from YAML files, or reports what is wrong, where, and what to do.

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
"""Maximum number of nodes after expanding a file: nested aliases can expand to billions."""
MAX_DEPTH = 64
"""Maximum nesting depth of a file: aliases can be recursive."""
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
"""Other metadata fields written by the API server: allowed but ignored."""
_PATHS: tuple[Path, ...] = (
    ("spec", "model", "uri"),
    ("spec", "model", "tokenizer"),
    ("spec", "data", "uri"),
    ("spec", "output", "uri"),
)
_LOCAL = re.compile(
    r"(?P<scheme>(?:(?:jsonl|csv|parquet|datasets)://)?(?:file://)?)(?P<rest>(?![/~]|[\w:+]+://)(?P<dots>\.\.?(?=/|$))?.*)$"
)
"""A relative path, optionally with a scheme; `./x` and `../x` have dots."""


@dataclass(frozen=True)
class Mark:
    """Location of a value in the input."""

    file: str
    line: int
    """Line number from 1; 0 if there are no lines."""
    layer: int = 0
    """Index of the merged file."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class MarkedTree:
    """One file's tree, and the location of each value."""

    tree: Any
    marks: Mapping[Path, Mark]
    problems: Sequence[str] = field(default=())


def load(files: Sequence[File], settings: Sequence[str] = ()) -> ScanExperiment:
    """Return the experiment merged from `files`; later files take precedence, lists are replaced.

    Args:
        files: YAML files, at least one.
        settings: `path=value` pairs that override every file, such as `spec.workload.scan.passes=2`.

    Raises:
        ConfigError: all problems, one sentence each: file, line, path, what is wrong, and what to do.
    """
    if not files:
        raise ConfigError("no experiment is given: name its YAML file, like `asysi run scan.yaml`")
    layers = [read(file) for file in files] + [set_value(setting) for setting in settings]
    whole = merged([_numbered(layer, number) for number, layer in enumerate(layers)])
    folders = {path: File(mark.file).parent for path, mark in whole.marks.items() if mark.line}
    return check(resolve_paths(whole.tree, folders, File.cwd()), whole.marks)


def merged(layers: Sequence[MarkedTree]) -> MarkedTree:
    """Return the tree merged from `layers`; the last one takes precedence.

    Raises:
        ConfigError: the problems of all layers.
    """
    if problems := [problem for layer in layers for problem in layer.problems]:
        raise ConfigError(*problems)
    tree: Any = {}
    marks: dict[Path, Mark] = {}
    for layer in layers:
        tree = merge(tree, layer.tree)
        marks |= layer.marks
    return MarkedTree(tree, marks)


def _numbered(layer: MarkedTree, number: int) -> MarkedTree:
    marks = {path: replace(mark, layer=number) for path, mark in layer.marks.items()}
    return replace(layer, marks=marks)


def check(tree: Mapping[str, Any], marks: Mapping[Path, Mark] | None = None) -> ScanExperiment:
    """Return the validated experiment in `tree`, the content of a file or an API server object.

    Raises:
        ConfigError: all problems of the experiment, with file and line from `marks`.
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
    """Return `base` merged with `overlay`: mappings are merged key by key, everything else is replaced."""
    if not (isinstance(base, dict) and isinstance(overlay, dict)):
        return overlay
    return base | {key: merge(base[key], value) if key in base else value for key, value in overlay.items()}


def resolve_paths(tree: Any, folders: Mapping[Path, File], here: File) -> Any:
    """Return `tree` with absolute local paths, which are valid in every process.

    Args:
        tree: the experiment.
        folders: folder of the file that contains a value, by the value's path; base of `./` and `../`.
        here: base of all other relative paths.
    """
    for path in _PATHS:
        value = _value_at(tree, path)
        absolute = resolve_path(value, folders.get(path, here), here)
        if absolute != value:
            tree = merge(tree, _nested(path, absolute))
    return tree


def resolve_path(value: Any, folder: File, here: File) -> Any:
    """Return a local path, optionally with a scheme, as an absolute path; return other values unchanged.

    Args:
        value: value in the file.
        folder: base of `./` and `../`.
        here: base of all other relative paths.
    """
    local = _LOCAL.match(value) if isinstance(value, str) else None
    if not local:
        return value
    base = folder if local["dots"] else here
    absolute = os.path.normpath(base.resolve() / local["rest"])  # a final symlink is not resolved
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
    """Return the tree of a YAML text; errors refer to it as `name`. Raises ConfigError like `read`."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            found = "is empty" if node is None else "is not a mapping"
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
    """Safe YAML loader that also parses numbers such as `2e-4`."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


class _Walk:
    """Walks a document's nodes, recording the location of each value and duplicate keys."""

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
    """Validate `tree`; if it is invalid, also validate it without the invalid values for further checks."""
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
    """Return the problems as sentences, sorted by file and line.

    Args:
        problems: the problems.
        marks: location of each value.
        whole: name of the tree, for problems without a path.
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
