"""`python -m asysi.cli.reference` prints the reference page of the command line, generated from the help."""

import sys
from collections.abc import Iterator
from typing import Any

import typer

from asysi.cli.commands import app

_INTRODUCTION = """\
# Command line

<!-- Generated from the commands' help by `python -m asysi.contract.generate`. Do not edit. -->

"""


def cli_page() -> str:
    """Return the reference of all commands as Markdown."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="asysi")
    return _INTRODUCTION + "\n".join(_sections(command, context, "asysi"))


def _sections(command: Any, context: Any, name: str) -> Iterator[str]:
    yield _section(command, name)
    for sub in command.list_commands(context) if hasattr(command, "list_commands") else ():
        found = command.get_command(context, sub)
        if found is not None and not found.hidden:
            yield from _sections(found, context, f"{name} {sub}")


def _section(command: Any, name: str) -> str:
    usage = _usage(command, name)
    text = _help(command.help or "")
    rows = [_row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
    table = "\n".join(["| | |", "| --- | --- |", *rows]) + "\n" if rows else ""
    return f"## {name}\n\n    {usage}\n\n{text}\n\n{table}"


def _usage(command: Any, name: str) -> str:
    pieces = [name, "[OPTIONS]"] + (["COMMAND"] if hasattr(command, "list_commands") else [])
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            metavar = parameter.metavar or parameter.name.upper()
            pieces.append(metavar if parameter.required else f"[{metavar}]")
    return " ".join(pieces)


def _help(text: str) -> str:
    """Return a help text with its preformatted paragraphs (after `\\b`) as code blocks."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.strip("\n").splitlines()
        if lines and lines[0].strip() == "\b":
            code = "\n".join(line.strip() for line in lines[2:])
            paragraphs.append(f"{lines[1].strip()}\n\n```sh\n{code}\n```")
        else:
            paragraphs.append(" ".join(line.strip() for line in lines))
    return "\n\n".join(paragraphs)


def _row(parameter: Any) -> str:
    names = [parameter.metavar or parameter.name.upper()]
    if parameter.param_type_name == "option":
        value = f" {parameter.metavar}" if parameter.metavar and not parameter.is_flag else ""
        names = [f"{name}{value}" for name in (*parameter.opts, *parameter.secondary_opts)]
    text = (getattr(parameter, "help", None) or "").replace("|", "\\|")
    return f"| {', '.join(f'`{name}`' for name in names)} | {text} |".replace("yaml|json", "yaml\\|json")


if __name__ == "__main__":
    sys.stdout.write(cli_page())
