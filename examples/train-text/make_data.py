"""Write three tables of docstrings of Python's standard library, with the area that each is about."""

import ast
import csv
import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

AREAS = {
    "network": "asyncio email http urllib socket ssl smtplib ftplib imaplib poplib xmlrpc socketserver",
    "numbers": "decimal _pydecimal fractions statistics random numbers calendar datetime _pydatetime",
    "files": "pathlib os shutil tempfile zipfile tarfile gzip bz2 lzma glob fileinput filecmp posixpath",
    "testing": "unittest doctest pdb bdb trace timeit cProfile profile pstats",
    "text": "re string textwrap difflib html json csv xml codecs encodings gettext pprint",
    "types": "typing inspect dataclasses enum abc collections functools contextlib copy weakref operator",
}
SHORTEST, LONGEST = 25, 200
SHARES = (("test", 0.15), ("val", 0.15), ("train", 1.0))


def docstrings(module: str) -> Iterator[str]:
    """Yield the first paragraph of each docstring in a module or package of the standard library."""
    place = Path(sysconfig.get_path("stdlib")) / module
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    for file in files:
        if not file.is_file() or "test" in file.parts[len(place.parts) :]:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = re.sub(r"\s+", " ", (ast.get_docstring(node) or "").split("\n\n")[0]).strip()
                if SHORTEST <= len(text) <= LONGEST:
                    yield text


def main(folder: Path) -> None:
    """Write `data/{train,val,test}.csv`; `train` last, so that the tables are never half there."""
    rows: dict[str, str] = {}
    for area, modules in AREAS.items():
        for module in modules.split():
            for text in docstrings(module):
                rows.setdefault(text, area)
    chosen = sorted(rows.items())
    random.Random(0).shuffle(chosen)  # noqa: S311 - a split, not a secret
    (folder / "data").mkdir(parents=True, exist_ok=True)
    first = 0
    for name, share in SHARES:
        last = min(len(chosen), first + round(share * len(chosen)))
        temporary = folder / f"data/{name}.tmp"
        with temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            writer.writerows(chosen[first:last])
        temporary.replace(folder / f"data/{name}.csv")
        first = last


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
