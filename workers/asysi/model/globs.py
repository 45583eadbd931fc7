"""Globs on the dotted paths of `named_modules()`.

`*` matches any characters except a dot, `**` any characters, `?` one character except a dot. All other
characters match themselves, and the whole path must match: `encoder.layer.*.output` is the output of each
layer and not `encoder.layer.0.attention.output`. `#n` after a glob selects one call of a module within a
forward pass. Known TransformerLens names are matched like paths.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher

from asysi.contract.errors import ConfigError

_WILDCARDS = {"**": r".*", "*": r"[^.]*", "?": r"[^.]"}
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def compile_glob(glob: str) -> re.Pattern[str]:
    """Return the regular expression equivalent to `glob`, to be used with `fullmatch`."""
    parts = re.split(r"(\*\*|\*|\?)", glob)
    return re.compile("".join(_WILDCARDS.get(part, re.escape(part)) for part in parts))


def match_glob(glob: str, names: Iterable[str]) -> list[str]:
    """Return the names that match `glob`, in order. The root (the empty name) never matches."""
    pattern = compile_glob(glob)
    return [name for name in names if name and pattern.fullmatch(name)]


def match_globs(
    globs: Sequence[str],
    names: Sequence[str],
    where: str = "spec.capture.hookPoints",
    aliases: Mapping[str, str] | None = None,
    *,
    calls: bool = True,
    what: str = "module",
) -> list[str]:
    """Return the names that match any of `globs`, in the order of `names`, without duplicates.

    `glob#n` selects the n-th call (from 0) of the matching modules: their names are returned with `#n`, after
    the name for all calls. A glob that matches no path is matched against the aliases; if several paths share
    an alias, the first one is used.

    Args:
        globs: patterns; each must match something.
        names: dotted paths to match against.
        where: path of the globs in the spec, for error messages.
        aliases: TransformerLens names by path.
        calls: whether `#n` selects a call; otherwise `#` is an ordinary character.
        what: kind of thing that is named, for error messages.

    Raises:
        ConfigError: a glob matches nothing; the message lists the closest names.
    """
    first: dict[str, str] = {}
    for name in names:
        if alias := (aliases or {}).get(name):
            first.setdefault(alias, name)
    matched: dict[str, set[int]] = {}
    problems: list[str] = []
    for position, glob in enumerate(globs):
        path, call = split_call(glob) if calls else (glob, None)
        found = match_glob(glob, names)
        for name in found:
            matched.setdefault(name, set()).add(_ALL_CALLS)
        if not found and call is not None:
            found = match_glob(path, names)
            for name in found:
                matched.setdefault(name, set()).add(call)
        if not found:
            found = [first[alias] for alias in match_glob(path, first)]
            for name in found:
                matched.setdefault(name, set()).add(_ALL_CALLS if call is None else call)
        if not found:
            hint = _hint(glob, [*names, *first], what)
            problems.append(f"{where}[{position}]: {glob!r} matches no {what} of the model{hint}")
    if problems:
        raise ConfigError(*problems)
    return [
        name if call == _ALL_CALLS else f"{name}#{call}"
        for name in dict.fromkeys(names)
        for call in sorted(matched.get(name, ()))
    ]


_ALL_CALLS = -1


def match_parameters(globs: Sequence[str], names: Mapping[str, int]) -> list[str]:
    """Return the parameters that match any of `globs`; one with several names (tied weights) is named once.

    Args:
        globs: patterns; each must match something. None at all match every name.
        names: an identity of each parameter by name, in the model's order.

    Raises:
        ConfigError: a glob matches nothing.
    """
    where = "spec.capture.parameters"
    found = match_globs(globs or ["**"], list(names), where, calls=False, what="parameter")
    first: dict[int, str] = {}
    for name in found:
        first.setdefault(names[name], name)
    return list(first.values())


def split_call(name: str) -> tuple[str, int | None]:
    """Split a hook point's name or glob into path and call: `layers.0#2` is the third call of `layers.0`."""
    path, sign, number = name.rpartition("#")
    return (path, int(number)) if sign and number.isascii() and number.isdigit() else (name, None)


def near_names(glob: str, names: Iterable[str], limit: int = 5) -> list[str]:
    """Return up to `limit` names similar to `glob`, closest first, one per group differing only in numbers.

    From each group the name with the same numbers as `glob` is preferred, otherwise the first.
    """
    first: dict[str, str] = {}
    wanted, numbers = _NUMBER.sub("*", glob), _NUMBER.findall(glob)
    for name in filter(None, names):
        folded = _NUMBER.sub("*", name)
        if folded not in first or _NUMBER.findall(name) == numbers:
            first[folded] = name
    scored = ((SequenceMatcher(None, wanted, folded).ratio(), name) for folded, name in first.items())
    best = sorted((pair for pair in scored if pair[0] > 0.4), key=lambda pair: (-pair[0], pair[1]))
    return [name for _, name in best[:limit]]


def _hint(glob: str, names: Sequence[str], what: str) -> str:
    near = near_names(glob, names)
    if near:
        return "; closest are " + ", ".join(near)
    first = [name for name in names if name][:5]
    none = "; it has no submodules" if what == "module" else f"; it has no {what}s"
    return f"; its {what}s begin with " + ", ".join(first) if first else none
