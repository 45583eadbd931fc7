"""Describes mistakes in an experiment: what is wrong with a value, and which key was probably meant."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from asysi.contract.fields import Path, part_at, schema_fields
from asysi.contract.quantity import PATTERN
from asysi.contract.rules import Problem
from asysi.contract.spec import LABEL_NAME, LABEL_VALUE, OBJECT_NAME, VARIABLE, ScanExperiment

_KINDS = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping",
}
_PATTERNS = {
    r"^[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?$": "at most 52 of a-z, 0-9 and -, not beginning or ending with -",
    PATTERN: "a memory quantity, like 64Mi or 2Gi",
    r"^[0-9a-f]{64}$": "a SHA-256: 64 digits of 0-9 and a-f",
    OBJECT_NAME: "a name of a-z, 0-9, - and ., such as batch-high",
    VARIABLE: "the name of a variable, like OPENAI_API_KEY",
    LABEL_NAME: "the key of a label, like gpu or example.com/gpu",
    LABEL_VALUE: "the value of a label: letters and digits, between them also -, _ and .",
    r"^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$": "a list of processors, like 0, 0-3 or 1,3",
}


def problem_of(detail: ErrorDetails, root: type[BaseModel] = ScanExperiment) -> Problem:
    """Convert a pydantic error in a tree of `root` to a problem with our own message."""
    path: Path = tuple(step for step in detail["loc"] if step != "[key]")
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown_key(path, root)
    if "[key]" in detail["loc"] and kind == "literal_error":
        return Problem(path, _unknown_of(str(path[-1]), _words(context.get("expected", ""))))
    if kind == "missing":
        return Problem(path, f"is missing{_described(path, root)}")
    if kind == "literal_error":
        return Problem(path, _not_one_of(given, context["expected"]))
    for ending in ("_type", "_parsing"):
        if kind.removesuffix(ending) in _KINDS:
            return Problem(path, f"must be {_KINDS[kind.removesuffix(ending)]}, not {shown(given)}")
    sentence = _SENTENCES.get(kind)
    return Problem(
        path, sentence(given, context) if sentence else f"is wrong: {detail['msg']}, not {shown(given)}"
    )


def unknown_key(path: Path, root: type[BaseModel] = ScanExperiment) -> Problem:
    """Return the problem of an unknown key, with a suggestion."""
    key = str(path[-1])
    part = part_at(root, path[:-1])
    siblings = [info.alias or name for name, info in part.model_fields.items()] if part else []
    elsewhere = [field.pattern for field in schema_fields(root) if field.key == key]
    if elsewhere and not _nearest(key, siblings):
        return Problem(path, f"is not a key here: it belongs to {' or '.join(elsewhere)}")
    return Problem(path, _unknown_of(key, siblings))


def shown(value: Any) -> str:
    """Return a value formatted for error messages, truncated to one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = f"the text {value!r}" if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _unknown_of(key: str, known: list[str]) -> str:
    if near := _nearest(key, known):
        return f"is not a known key: did you mean {near}?"
    return f"is not a known key: the keys here are {', '.join(known)}" if known else "is not a known key"


def _words(expected: str) -> list[str]:
    """Return the words in pydantic's `'a', 'b' or 'c'`."""
    return [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")]


def _nearest(word: str, known: list[str]) -> str | None:
    """Return the known word closest to `word`, ignoring case and underscores."""
    folded = {name.lower(): name for name in known}
    near = get_close_matches(word.lower().replace("_", "").replace("-", ""), folded, n=1, cutoff=0.6)
    return folded[near[0]] if near else None


def _described(path: Path, root: type[BaseModel]) -> str:
    part = part_at(root, path[:-1])
    for name, info in part.model_fields.items() if part else ():
        if path[-1] in {name, info.alias} and info.description:
            return f": {' '.join(info.description.split())}"
    return ""


def _not_one_of(given: Any, expected: str) -> str:
    known = _words(expected)
    near = _nearest(given, known) if isinstance(given, str) else None
    meant = f"; did you mean {near}?" if near else ""
    return f"must be {' or '.join(known)}, not {shown(given)}{meant}"


def _pattern(given: Any, context: Mapping[str, Any]) -> str:
    wanted = _PATTERNS.get(context["pattern"], f"text that matches {context['pattern']}")
    return f"must be {wanted}, not {shown(given)}"


_SENTENCES: dict[str, Callable[[Any, Mapping[str, Any]], str]] = {
    "greater_than": lambda given, context: f"must be more than {context['gt']:g}, not {given}",
    "greater_than_equal": lambda given, context: f"must be at least {context['ge']:g}, not {given}",
    "less_than": lambda given, context: f"must be less than {context['lt']:g}, not {given}",
    "less_than_equal": lambda given, context: f"must be at most {context['le']:g}, not {given}",
    "finite_number": lambda given, _context: f"must be a finite number, not {given}",
    "string_too_short": lambda _given, _context: "must not be empty",
    "string_too_long": lambda given, context: (
        f"has {len(given)} characters, {context['max_length']} are allowed"
    ),
    "too_short": lambda _given, context: f"needs at least {context['min_length']} entry",
    "too_long": lambda _given, context: (
        f"has {context['actual_length']} entries, {context['max_length']} are allowed"
    ),
    "string_pattern_mismatch": _pattern,
    "int_from_float": lambda given, _context: f"must be a whole number, not {given}",
}
