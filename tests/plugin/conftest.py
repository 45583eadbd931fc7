"""A kubectl that answers from a file and runs `exec` here: a real process, real streams, no cluster."""

import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asysi_operator.plugin.kubectl import Kubectl

Tree = dict[str, Any]

PROGRAM = """#!{python}
import json, os, subprocess, sys
folder = {folder!r}
with open(folder + "/calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
words = [word for word in sys.argv[1:] if not word.startswith(("--kubeconfig", "--context", "--namespace="))]
state = json.load(open(folder + "/state.json"))
verb, rest = words[0], words[1:]
def save(state):  # whole or not at all: others read it meanwhile
    with open(folder + "/state.tmp", "w") as file:
        json.dump(state, file)
    os.replace(folder + "/state.tmp", folder + "/state.json")
for refusal in state["refusals"]:
    if all(word in words for word in refusal["when"]):
        sys.stderr.write(refusal["says"] + "\\n")
        sys.exit(1)
if verb == "exec":
    command = words[words.index("--") + 1:]
    command = [sys.executable if word == "python" else word.replace("/claim", folder + "/claim")
               .replace("/output", folder + "/claim") for word in command]
    if state["cut"]:
        done = subprocess.run(command, stdin=sys.stdin, capture_output=True)
        sys.stdout.buffer.write(done.stdout[:state["cut"]])
        sys.exit(0)
    sys.exit(subprocess.run(command).returncode)
if verb == "create":
    made = json.load(sys.stdin)
    json.dump(made, open(folder + "/made.json", "w"))
    state["objects"].append(made | ({{"status": state["pod_status"]}} if made["kind"] == "Pod" else {{}}))
    save(state)
    print(made["metadata"]["name"])
elif verb == "delete":
    state["objects"] = [one for one in state["objects"] if one["metadata"]["name"] != rest[1]]
    save(state)
elif verb == "get":
    kind = rest[0].partition(".")[0].rstrip("s")
    plain = [word for word in rest[1:] if not word.startswith("-")]
    found = [one for one in state["objects"] if one["kind"].lower() == kind]
    if plain:
        found = [one for one in found if one["metadata"]["name"] == plain[0]]
        if found:
            print(json.dumps(found[0]))
        elif "--ignore-not-found" not in rest:
            sys.stderr.write('Error from server (NotFound): %s "%s" not found\\n' % (kind, plain[0]))
            sys.exit(1)
    else:
        print(json.dumps({{"items": found}}))
elif verb == "config":
    print("lab")
else:
    print("said by kubectl", *words)
"""


class FakeKubectl:
    """What the program answers, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.claim = folder / "claim"
        self.claim.mkdir()
        self.objects: list[Tree] = []
        self.refusals: list[Tree] = []
        self.cut = 0
        """Bytes after which `exec` breaks off without saying so; 0 lets it be."""
        self.pod_status: Tree = {"containerStatuses": [{"name": "files", "state": {"running": {}}}]}
        program = folder / "kubectl"
        program.write_text(PROGRAM.format(python=sys.executable, folder=str(folder)))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self.save()

    def save(self) -> None:
        """Let the program know what has been set."""
        keys = ("objects", "refusals", "cut", "pod_status")
        (self.folder / "state.json").write_text(json.dumps({key: getattr(self, key) for key in keys}))

    @property
    def calls(self) -> list[list[str]]:
        """Arguments of every call so far."""
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def made(self) -> Tree:
        """The object that was made last."""
        return json.loads((self.folder / "made.json").read_text())

    @property
    def kinds_left(self) -> list[str]:
        """Kinds of the objects that are there now."""
        return sorted(one["kind"] for one in json.loads((self.folder / "state.json").read_text())["objects"])

    def client(self) -> Kubectl:
        """Return a client of it."""
        return Kubectl(program=str(self.folder / "kubectl"))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKubectl:
    """A kubectl first on the PATH, with nothing in its cluster."""
    folder = tmp_path / "fake"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return FakeKubectl(folder)


@pytest.fixture
def experiment() -> Callable[..., Tree]:
    """Return a function that makes an experiment as the API server has it."""

    def make(spec: Tree | None = None, **status: Any) -> Tree:
        found: Tree = {
            "apiVersion": "asysi.dev/v1alpha1",
            "kind": "ScanExperiment",
            "metadata": {"name": "minilm", "namespace": "lab", "uid": "e1", "generation": 1},
            "spec": {
                "model": {"uri": "hf://a/b"}, "data": {"uri": "jsonl:///inputs/texts/a.jsonl"},
                "workload": {"scan": {}}, "capture": {"hookPoints": ["*"]}, **(spec or {}),
            },
        }  # fmt: skip
        return found | ({"status": status} if status else {})

    return make
