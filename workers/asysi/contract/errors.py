"""Errors that a person can act on."""

import os
from pathlib import Path

NO_ROOM = "no room is left in"
"""How the sentence of a worker begins that could not write its results."""


def no_room(folder: Path) -> str:
    """Return the sentence about a full folder: how large it is, and what to do."""
    try:
        state = os.statvfs(folder)
        size = f" ({state.f_blocks * state.f_frsize / 2**20:,.0f} MiB in all)"
    except OSError:
        size = ""
    return f"{NO_ROOM} {folder}{size}: free space there; the checkpoints are intact and can be resumed"


class ConfigError(Exception):
    """Bad configuration or input: exit code 2, trying again cannot help.

    Attributes:
        problems: one complete sentence each, naming the thing, why it is wrong and what to do.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)
