"""Defines which fields of a spec are immutable once its host has started: all but a few.

Results of two different specs must not be mixed in one output, so a changed experiment is a new one.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast, get_args

from pydantic.fields import FieldInfo

from asysi.contract.canonical import canonical
from asysi.contract.fields import Path, part_in, schema_fields, written
from asysi.contract.quantity import same_amount
from asysi.contract.spec import ScanExperiment

MUTABLE = (
    *("lifecycle.suspend", "lifecycle.activeDeadlineSeconds", "lifecycle.ttlSecondsAfterFinished"),
    "output.whenDeleted",
)
"""Fields of the spec that can change at any time, as part and field."""
_THAWED = frozenset(field.partition(".")[0] for field in MUTABLE)
"""Parts of the spec with a mutable field."""
QUANTITIES = frozenset(field.pattern for field in schema_fields(ScanExperiment) if field.quantity)
"""Paths of the fields with memory quantities, list items as `[]`."""
MESSAGE = (
    f"is frozen once the host has started, as all of the spec but {', '.join(MUTABLE)}: "
    "delete the experiment and recreate it"
)


def frozen_part(experiment: ScanExperiment) -> dict[str, Any]:
    """Return the canonical spec of an experiment without its mutable fields."""
    return frozen(canonical(experiment)["spec"])


def frozen(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a canonical spec without its mutable fields."""
    return {
        part: {key: value for key, value in content.items() if f"{part}.{key}" not in MUTABLE}
        if part in _THAWED
        else content
        for part, content in spec.items()
    }


def normalise_quantities(spec: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return `spec` with quantities written as in `before` if they are the same amounts.

    `1Gi` and `1024Mi` are the same amount; a spec that only writes it differently is unchanged.
    """
    return cast("dict[str, Any]", _respelled(spec, before, "spec"))


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the paths that differ between two frozen parts, such as `spec.sae.cpus`."""
    return [written(("spec", *path)) for path in _changes(before, after)]


def rules() -> Iterator[tuple[str, str]]:
    """Yield the path of each immutable part of the spec with its CEL transition rule for the API server.

    The rules apply to the whole object. The API server ignores the status in an update of the spec, so
    clients cannot make fields mutable by sending a status.
    """
    thawed = "!has(oldSelf.status) || !has(oldSelf.status.startTime)"
    for field in schema_fields(ScanExperiment):
        part, _, inner = field.pattern.removeprefix("spec.").partition(".")
        whole = field.pattern.startswith("spec.") and not inner and part not in _THAWED
        single = inner and "." not in inner and part in _THAWED and f"{part}.{inner}" not in MUTABLE
        if whole or single:
            yield field.pattern, f"{thawed} || {_same(field.pattern, field.info)}"


def _respelled(now: Any, before: Any, pattern: str) -> Any:
    if isinstance(now, Mapping) and isinstance(before, Mapping):
        return {
            key: _respelled(value, before[key], f"{pattern}.{key}") if key in before else value
            for key, value in now.items()
        }
    if isinstance(now, list) and isinstance(before, list) and len(now) == len(before):
        return [_respelled(*pair, f"{pattern}[]") for pair in zip(now, before, strict=True)]
    return before if pattern in QUANTITIES and _same_text(now, before) else now


def _same_text(now: Any, before: Any) -> bool:
    return isinstance(now, str) and isinstance(before, str) and same_amount(now, before)


def _changes(before: Any, after: Any) -> Iterator[Path]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in [*before, *(key for key in after if key not in before)]:
            for path in _changes(before.get(key), after.get(key)):
                yield (key, *path)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, pair in enumerate(zip(before, after, strict=True)):
            for path in _changes(*pair):
                yield (index, *path)
    elif before != after:
        yield ()


def _same(path: str, info: FieldInfo) -> str:
    """Return a CEL expression that is true if a field is unchanged; quantities are compared as amounts.

    The API server treats null as absent, so the presence of optional fields is compared first.
    """
    now, before = f"self.{path}", f"oldSelf.{path}"
    optional = type(None) in get_args(info.annotation)
    same = _same_value(path, info, now, before)
    return f"(has({now}) == has({before}) && (!has({now}) || {same}))" if optional else same


def _same_value(path: str, info: FieldInfo, now: str, before: str) -> str:
    if path in QUANTITIES:
        return f"quantity({now}).compareTo(quantity({before})) == 0"
    inside = [one for one in QUANTITIES if one.startswith(f"{path}.") and "[]" not in one]
    part = part_in(info.annotation)[0]
    if not inside or part is None:
        return f"{now} == {before}"
    return " && ".join(
        _same(f"{path}.{member.alias or name}", member) for name, member in part.model_fields.items()
    )
