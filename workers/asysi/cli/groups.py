"""Command groups: one that prints errors as messages, and one that is imported lazily."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from asysi.contract.errors import ConfigError, import_lazily
from asysi.contract.runtime import Exit


class Commands(TyperGroup):
    """The commands of `asysi`: a ConfigError prints its messages and exits with 2, Ctrl-C exits with 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run the given command."""
        with exit_codes():
            return super().invoke(ctx)


class Command(TyperCommand):
    """A program with a single command, with the error handling of `Commands`."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with exit_codes():
            return super().invoke(ctx)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Print the messages of a ConfigError and exit with 2; exit with 130 after Ctrl-C."""
    try:
        yield
    except ConfigError as error:
        for problem in error.problems:
            sys.stderr.write(f"{problem}\n")
        raise typer.Exit(Exit.CONFIG) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(Exit.INTERRUPTED) from error


def deferred(*modules: str) -> type[TyperGroup]:
    """Return a group with the commands of the Typer apps `app` in some modules, imported when asked for."""

    class Deferred(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return list(_commands())

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            return _commands().get(cmd_name)

    def _commands() -> dict[str, Any]:
        groups: list[Any] = [typer.main.get_command(import_lazily(module, "app")) for module in modules]
        return {name: command for group in groups for name, command in getattr(group, "commands", {}).items()}

    return Deferred
