"""An operator is its parameters as written, its module and the project's modules that this imports."""

import functools
import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from asysi.cli.commands import app
from asysi.pipeline import BaseOperator
from asysi.pipeline.operators.fingerprint import differences, fingerprint, rebuild
from asysi.pipeline.operators.operator import as_operator
from asysi.pipeline.operators.registry import make_operator

FILES = {
    "marking.py": """
from wording import helpers
from asysi.pipeline import BaseOperator

LIMIT = 3


def short(text):
    return text[:LIMIT]


class Mark(BaseOperator):
    def __init__(self, word="seen", *, strict=True, **more):
        self._word = word

    def process_item(self, item, ctx=None):
        from wording import lazily
        return {**item, self._word: helpers.upper(short(lazily.said(item["text"])))}
""",
    "wording/__init__.py": "",
    "wording/helpers.py": "from . import deep\n\n\ndef upper(text):\n    return deep.up(text)\n",
    "wording/deep.py": "def up(text):\n    return text.upper()\n",
    "wording/lazily.py": "def said(text):\n    return text\n",
    "wording/unused.py": "NOTHING = 1\n",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name, text in FILES.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    forget()
    return tmp_path


def forget() -> None:
    """Let the modules be imported again."""
    for name in [name for name in sys.modules if name.partition(".")[0] in {"marking", "wording"}]:
        del sys.modules[name]
    importlib.invalidate_caches()


def marked(**params: Any) -> dict[str, Any]:
    forget()
    return fingerprint(make_operator("marking:Mark", params))


def edit(name: str, old: str, new: str) -> None:
    assert old in Path(name).read_text()
    Path(name).write_text(Path(name).read_text().replace(old, new))


def test_a_private_parameter_is_compared_as_written() -> None:
    """A parameter kept under a private attribute, or not at all, counts as it was written."""
    assert differences(marked(word="a"), marked(word="b")) == ['its word was "a", it is "b"']
    assert differences(marked(strict=True), marked(strict=False)) == ["its strict was true, it is false"]
    assert differences(marked(other=1), marked(other=2)) == ["its other was 1, it is 2"]
    assert differences(marked(), marked(word="seen")) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("marking.py", "LIMIT = 3", "LIMIT = 4", "its module marking was changed"),
        ("marking.py", "text[:LIMIT]", "text[-LIMIT:]", "its module marking was changed"),
        ("marking.py", "{**item, self", "{**item, 'x': 1, self", "its code was changed"),
        (
            "wording/helpers.py",
            "deep.up(text)",
            "text",
            "the module wording.helpers, which it imports, was changed",
        ),
        ("wording/deep.py", "upper", "lower", "the module wording.deep, which it imports, was changed"),
        (
            "wording/lazily.py",
            "return text",
            "return text + '!'",
            "the module wording.lazily, which it imports",
        ),
        ("wording/__init__.py", "", "X = 1\n", "the module wording, which it imports, was changed"),
    ],
)
def test_a_change_that_rows_may_depend_on_is_named(file: str, old: str, new: str, said: str) -> None:
    """Constants and helpers of the module, and modules of the project: each change is found and named."""
    before = marked()
    edit(file, old, new) if old else Path(file).write_text(new)
    assert [found for found in differences(before, marked()) if said in found]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("marking.py", "\n\nif __name__ == '__main__':\n    print(Mark)\n"),
        ("marking.py", "\n# a remark\n"),
        ("wording/unused.py", "NOTHING = 2\n"),
    ],
)
def test_a_change_that_no_row_depends_on_is_none(file: str, text: str) -> None:
    """Remarks, what runs as a script only, and modules that nobody imports may change."""
    before = marked()
    with Path(file).open("a") as stream:
        stream.write(text)
    assert differences(before, marked()) == []


def test_installed_packages_are_not_looked_at() -> None:
    """An upgrade of a package, or of this one, is not an edit of the project."""
    edit("marking.py", "LIMIT = 3", "import orjson, json, yaml\nLIMIT = 3")
    assert set(marked()["modules"]) == {
        ".",
        *(f"wording{name}" for name in ("", ".deep", ".helpers", ".lazily")),
    }
    assert fingerprint(make_operator("template", {"fields": {"a": "b"}}))["modules"] == {}


def test_a_script_may_call_its_pipeline_otherwise() -> None:
    """Of the script that runs, what the operator needs counts, not how the pipeline is called."""
    script = Path("script.py")
    text = (
        "import json\nfrom asysi.pipeline import BaseOperator\n"
        "from asysi.pipeline.operators.fingerprint import fingerprint\n"
        "TABLE = {}\nTABLE['a'] = 1\nclass Op(BaseOperator):\n    def process_item(self, item, ctx=None):\n"
        "        return {**item, 'a': TABLE['a']}\nbudget = 5\nprint(json.dumps(fingerprint(Op())))\n"
    )

    def run() -> dict[str, Any]:

        done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    script.write_text(text)
    before = run()
    script.write_text(text.replace("budget = 5", "budget = 6"))
    assert differences(before, run()) == []
    script.write_text(text.replace("TABLE['a'] = 1", "TABLE['a'] = 2"))
    assert differences(before, run()) == ["its module __main__ was changed"]


def mark(items: list[dict[str, Any]], ctx: Any, *, word: str) -> list[dict[str, Any]]:
    return [{**item, word: True} for item in items]


class Method:
    def __init__(self, word: str) -> None:
        self._word = word

    def mark(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**item, self._word: True} for item in items]

    def __call__(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.mark(items)


@dataclass
class Fields(BaseOperator):
    _word: str = "seen"


class Holds(BaseOperator):
    def __init__(self, thing: Any) -> None:
        self._thing = thing


@pytest.mark.parametrize(
    "make",
    [
        lambda word: functools.partial(mark, word=word),
        lambda word: Method(word).mark,
        Method,
        lambda word: lambda items: [{**item, word: True} for item in items],
        Fields,
        lambda word: Holds({word}),
        lambda word: Holds(Path(word)),
        lambda word: Holds(Method(word)),
        lambda word: Holds([{"deep": (word,)}]),
        lambda word: Holds(word.encode()),
    ],
)
def test_whatever_an_operator_is_made_of_its_parameters_count(make: Callable[[str], Any]) -> None:
    """Partial functions, methods, objects that can be called, closures, data classes, odd values."""
    one, same, other = (fingerprint(as_operator(make(word))) for word in ("a", "a", "b"))
    assert differences(one, same) == []
    assert differences(one, other)


def test_a_connection_is_no_parameter() -> None:
    """An object that is more than values may be another one on resume."""
    one, other = (fingerprint(Holds(thing)) for thing in (threading.Lock(), None))
    assert differences(one, other) == []


def test_an_operator_is_made_anew_from_what_was_written() -> None:
    """Arguments kept under private names make it anew; what cannot be written down is said."""
    assert rebuild(marked(word="x"))._word == "x"
    with pytest.raises(Exception, match=r"thing cannot be written down.*: resume with the pipeline's file"):
        rebuild(fingerprint(Holds({1})))


def test_the_refusal_names_the_flag_that_accepts() -> None:
    """A changed parameter of the YAML is refused with `--accept-changes`, which works."""
    Path("in.jsonl").write_text("".join(f'{{"n": {n}, "text": "row"}}\n' for n in range(50)))
    tree: dict[str, Any] = {
        "pipelineId": "p",
        "inputUri": "jsonl://./in.jsonl",
        "outputUri": "jsonl://./out.jsonl",
        "budget": {"cost": 5},
        "operators": [{"operator": "paying:Pay", "params": {"word": "a"}}],
    }
    Path("paying.py").write_text(
        "from asysi.pipeline import BaseOperator\nclass Pay(BaseOperator):\n    def __init__(self, word):\n"
        "        self._word = word\n    def process_item(self, item, ctx):\n"
        "        ctx.report_usage({'cost': 1})\n        return {**item, 'word': self._word}\n"
    )

    def asysi(*arguments: str, **params: Any) -> tuple[int, str]:
        changed = {**tree, "budget": {"cost": 100}} if params else tree
        first = {**tree["operators"][0], "params": params or {"word": "a"}}
        Path("p.yaml").write_text(yaml.safe_dump({**changed, "operators": [first]}))
        done = CliRunner().invoke(app, ["pipeline", *arguments])
        return done.exit_code, done.output + str(done.exception or "")

    assert asysi("run", "p.yaml")[0] == 1
    code, said = asysi("resume", "p.yaml", word="b")
    assert code == 2
    assert 'its word was "a", it is "b"' in said
    assert "go on all the same with --accept-changes" in said
    assert asysi("resume", "p.yaml", "--accept-changes", word="b")[0] == 0
    assert os.path.exists("out.jsonl.done")  # noqa: PTH110
