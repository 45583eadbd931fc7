"""The rendered environment with the run's directories in place of the pod's mounts. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from asysi.contract.runtime import MOUNTS, Env
from asysi_operator.local.containers import LocalContainer

_OF_THE_IMAGE = {"HOME", "HF_HOME"}
"""Variables that only apply in the pod; a local run uses the user's home and model cache."""


@dataclass(frozen=True)
class Setting:
    """What a cluster would provide to a container when it starts."""

    mounts: Mapping[Env, Path]
    """Local directory or file for each of the contract's mounts."""
    attempt: int
    port: int
    termination: Path


def environment(container: LocalContainer, setting: Setting, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a container's process.

    Secrets are not resolved: their variables come from the user's environment, `inherited`.
    """
    rendered = {
        item["name"]: _localised(item["value"], setting.mounts)
        for item in container.env
        if "value" in item and item["name"] not in _OF_THE_IMAGE
    }
    told = {
        Env.ATTEMPT: str(setting.attempt),
        Env.PORT: str(setting.port),
        Env.TERMINATION: str(setting.termination),
        Env.MEMORY: str(container.memory),
        "ASYSI_BIND": "127.0.0.1",
        "PYTHONUNBUFFERED": "1",
    }
    return {**inherited, **rendered, **{str(name): value for name, value in told.items()}}


def _localised(value: str, mounts: Mapping[Env, Path]) -> str:
    for name, folder in mounts.items():
        if PurePosixPath(value).is_relative_to(MOUNTS[name]):
            return str(folder / PurePosixPath(value).relative_to(MOUNTS[name]))
    return value
