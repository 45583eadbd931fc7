"""The command line. Nothing heavy is imported before a command needs it: `asysi --help` answers at once."""

import sys
from collections.abc import Sequence

from asysi.cli.commands import app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `asysi` with `arguments`, by default those of the process, and leave with its exit code."""
    app(args=None if arguments is None else list(arguments), prog_name="asysi")


def run_profile() -> None:
    """Run `asys-i-run --config FOLDER/profile.yaml`: `asysi run` with the `base.yaml` beside the profile."""
    main(["run-profile", *sys.argv[1:]])


def kubectl_plugin() -> None:
    """Run `kubectl asysi …`: the verbs of `asysi cluster`."""
    from asysi.cli.groups import door  # noqa: PLC0415 - as every command behind a door

    door("asysi_operator.plugin.commands", "main")()
