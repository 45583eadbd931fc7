"""What of a spec is frozen once its host has started: everything but a few fields of its lifecycle.

Results of two specs in one output would be nobody's results, so a changed experiment is a new one.
"""

from typing import Any, get_args

from pydantic.fields import FieldInfo

from asysi.contract.spec import Lifecycle, ScanExperiment, Spec

MUTABLE = ("suspend", "activeDeadlineSeconds", "ttlSecondsAfterFinished")
"""Fields of `spec.lifecycle` that may change at any time."""
MESSAGE = (
    f"the spec is frozen once its host has started, but for lifecycle.{', lifecycle.'.join(MUTABLE)}: "
    "delete the experiment and create it anew"
)


def frozen_part(experiment: ScanExperiment) -> dict[str, Any]:
    """Return the spec as JSON without what may always change."""
    spec: dict[str, Any] = experiment.spec.model_dump(mode="json", by_alias=True)
    for key in MUTABLE:
        del spec["lifecycle"][key]
    return spec


def rule() -> str:
    """Return the same for the API server: a transition rule of the whole object, in CEL.

    An update's status is ignored there, so what a client sends as status cannot thaw anything.
    """
    spec, lifecycle = Spec.model_fields, Lifecycle.model_fields
    parts = [_same("spec", info.alias or name, info) for name, info in spec.items() if name != "lifecycle"]
    parts += [
        _same("spec.lifecycle", key, info)
        for name, info in lifecycle.items()
        if (key := info.alias or name) not in MUTABLE
    ]
    return f"!has(oldSelf.status) || !has(oldSelf.status.startTime) || ({' && '.join(parts)})"


def _same(part: str, key: str, info: FieldInfo) -> str:
    """A null is to the API server an absent field, so parity comes first where there may be one."""
    now, before = f"self.{part}.{key}", f"oldSelf.{part}.{key}"
    if type(None) not in get_args(info.annotation):
        return f"{now} == {before}"
    return f"has({now}) == has({before}) && (!has({now}) || {now} == {before})"
