"""Prints what pyproject.toml asks for: `requirements.py EXTRA …`.

An image installs these before the code, so that a change of the code does not install them again.
"""

import re
import sys
import tomllib
from pathlib import Path


def requirements(project: dict[str, object], extras: list[str]) -> list[str]:
    """Return the project's requirements and those of its extras; an extra may name others of the project.

    Raises KeyError when the project has no such extra.
    """
    optional: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    found: list[str] = list(project["dependencies"])  # type: ignore[call-overload]
    for extra in extras:
        for line in optional[extra]:
            own = re.fullmatch(rf"{project['name']}\[([\w,-]+)\]", line)
            found += requirements(project, own[1].split(",")) if own else [line]
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    content = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    print("\n".join(requirements(content["project"], sys.argv[1:])))
