"""The command line. Heavy modules are imported lazily, so that `asysi --help` is fast."""

from collections.abc import Sequence

from asysi.cli.commands import app, profile


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `asysi` with `arguments`, by default those of the process, and exit with its exit code."""
    app(args=None if arguments is None else list(arguments), prog_name="asysi")


def run_profile(arguments: Sequence[str] | None = None) -> None:
    """Run `asys-i-run --config FOLDER/profile.yaml`: `asysi run` with the `base.yaml` next to the profile."""
    profile(args=None if arguments is None else list(arguments), prog_name="asys-i-run")


def kubectl_plugin() -> None:
    """Run `kubectl asysi …`: the verbs of `asysi cluster`."""
    from asysi.contract.errors import import_lazily  # noqa: PLC0415 - imported lazily like every command

    import_lazily("asysi_operator.plugin.commands", "main")()
