"""Prints the requirements in pyproject.toml: `requirements.py EXTRA …`.

An image installs these before the code, so that a code change does not reinstall them.
"""

import re
import sys
import tomllib
from pathlib import Path


def requirements(project: dict[str, object], extras: list[str]) -> list[str]:
    """Return the project's requirements and those of the extras; an extra may refer to other extras.

    Raises KeyError if the project has no such extra.
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
