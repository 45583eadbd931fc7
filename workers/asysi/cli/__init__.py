"""The command line. Nothing heavy is imported before a command needs it: `asysi --help` answers at once."""

from collections.abc import Sequence

from asysi.cli.commands import app, profile


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `asysi` with `arguments`, by default those of the process, and leave with its exit code."""
    app(args=None if arguments is None else list(arguments), prog_name="asysi")


def run_profile(arguments: Sequence[str] | None = None) -> None:
    """Run `asys-i-run --config FOLDER/profile.yaml`: `asysi run` with the `base.yaml` beside the profile."""
    profile(args=None if arguments is None else list(arguments), prog_name="asys-i-run")


def kubectl_plugin() -> None:
    """Run `kubectl asysi …`: the verbs of `asysi cluster`."""
    from asysi.cli.groups import door  # noqa: PLC0415 - as every command behind a door

    door("asysi_operator.plugin.commands", "main")()
