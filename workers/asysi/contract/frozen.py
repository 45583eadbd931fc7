"""What of a spec is frozen once its host has started: everything but a few fields of its lifecycle.

Results of two specs in one output would be nobody's results, so a changed experiment is a new one.
"""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic.fields import FieldInfo

from asysi.contract.canonical import canonical
from asysi.contract.fields import Path, written
from asysi.contract.spec import Lifecycle, ScanExperiment, Spec

MUTABLE = ("suspend", "activeDeadlineSeconds", "ttlSecondsAfterFinished")
"""Fields of `spec.lifecycle` that may change at any time."""
MESSAGE = (
    f"is frozen once the host has started, as all of the spec but lifecycle.{', lifecycle.'.join(MUTABLE)}: "
    "delete the experiment and create it anew"
)


def frozen_part(experiment: ScanExperiment) -> dict[str, Any]:
    """Return the spec in its canonical form without what may always change."""
    return frozen(canonical(experiment)["spec"])


def frozen(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec in its canonical form without what may always change."""
    lifecycle = {key: value for key, value in spec["lifecycle"].items() if key not in MUTABLE}
    return {**spec, "lifecycle": lifecycle}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the paths of what differs between two frozen parts, such as `spec.sae.cpus`."""
    return [written(("spec", *path)) for path in _changes(before, after)]


def rules() -> Iterator[tuple[str, str]]:
    """Yield for each part of the spec its path, and the same for the API server: a transition rule in CEL.

    They are rules of the whole object. An update's status is ignored there, so what a client sends as status
    cannot thaw anything.
    """
    thawed = "!has(oldSelf.status) || !has(oldSelf.status.startTime)"
    for name, info in Spec.model_fields.items():
        if (key := info.alias or name) != "lifecycle":
            yield f"spec.{key}", f"{thawed} || {_same('spec', key, info)}"
    for name, info in Lifecycle.model_fields.items():
        if (key := info.alias or name) not in MUTABLE:
            yield f"spec.lifecycle.{key}", f"{thawed} || {_same('spec.lifecycle', key, info)}"


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


def _same(part: str, key: str, info: FieldInfo) -> str:
    """A null is to the API server an absent field, so parity comes first where there may be one."""
    now, before = f"self.{part}.{key}", f"oldSelf.{part}.{key}"
    if type(None) not in get_args(info.annotation):
        return f"{now} == {before}"
    return f"(has({now}) == has({before}) && (!has({now}) || {now} == {before}))"
