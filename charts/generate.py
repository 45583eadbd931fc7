"""Write what the chart takes from elsewhere: the CRD, and README.md from the comments of values.yaml.

python charts/generate.py            # write
python charts/generate.py --check    # exit 1 when a file differs from its source
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
CHART = ROOT / "charts" / "asysi"
CRD = "asysi.dev_scanexperiments.yaml"
_KEY = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z][\w-]*):")


def documented(text: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the description of each value that a `# --` comment describes, in order.

    A value that is described is a leaf, whatever it holds.
    """
    path: list[tuple[int, str]] = []
    said: str | None = None
    for line in text.splitlines():
        if comment := re.fullmatch(r" *# -- (.*)", line):
            said = comment[1]
        elif key := _KEY.match(line):
            depth = len(key["indent"])
            path = [*(part for part in path if part[0] < depth), (depth, key["key"])]
            if said is not None:
                yield ".".join(name for _, name in path), said
                said = None


def readme(values: str) -> str:
    """Return README.md of the chart."""
    tree = yaml.safe_load(values)
    rows = [
        f"| `{path}` | {description} | `{json.dumps(at(tree, path))}` |"
        for path, description in documented(values)
    ]
    return "\n".join([*_HEAD, *rows, ""])


def at(tree: Any, path: str) -> Any:
    """Return the value at a dotted path; KeyError when there is none."""
    for part in path.split("."):
        tree = tree[part]
    return tree


_HEAD = (
    "# A-Sys-I's chart",
    "",
    "<!-- Made by `python charts/generate.py` from values.yaml. -->",
    "",
    "    helm install asysi charts/asysi --namespace asysi --create-namespace",
    "    helm test asysi --namespace asysi",
    "",
    "Upgrading, uninstalling, monitoring and the alerts' runbooks stand in",
    "[docs/install.md](../../docs/install.md).",
    "",
    "| value | meaning | default |",
    "|---|---|---|",
)


def generated() -> dict[Path, str]:
    """Return each generated file with its content."""
    return {
        CHART / "README.md": readme((CHART / "values.yaml").read_text()),
        CHART / "files" / CRD: (ROOT / "crds" / CRD).read_text(),
    }


def main(arguments: list[str]) -> int:
    """Write or compare the files; returns the exit code."""
    stale = [path for path, text in generated().items() if not path.is_file() or path.read_text() != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)} differs from its source: run python charts/generate.py")
        return 1 if stale else 0
    for path in stale:
        path.write_text(generated()[path])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
