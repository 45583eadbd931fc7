"""Errors that users can act on."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

NO_ROOM = "no room is left in"
"""Prefix of the message of a worker that could not write its results."""


def no_room(folder: Path) -> str:
    """Return the message about a full folder: its size, and what to do."""
    try:
        state = os.statvfs(folder)
        size = f" ({state.f_blocks * state.f_frsize / 2**20:,.0f} MiB in total)"
    except OSError:
        size = ""
    return f"{NO_ROOM} {folder}{size}: free space there; the checkpoints are intact and can be resumed"


class ConfigError(Exception):
    """Invalid configuration or input: exit code 2, not retriable.

    Attributes:
        problems: one complete sentence each: what is wrong, why, and what to do.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


_EXTRAS = {"asysi_operator": "operator", "asysi.train": "train"}
"""Extra that installs the requirements of a package; the others need `workers`."""


def import_lazily(module: str, name: str) -> Any:
    """Import and return `name` of `module`.

    Raises:
        ConfigError: a required package is not installed.
    """
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in {"asysi", "asysi_operator"}:
            raise
        extra = next((extra for part, extra in _EXTRAS.items() if module.startswith(part)), "workers")
        raise ConfigError(
            f"this command needs the package {package}: pip install 'asysi[{extra}]'"
        ) from error
