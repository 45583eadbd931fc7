"""`asysi pipeline` as people, Jobs and terminals use it."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from asysi.cli.commands import app

ROWS = 200
OPERATORS = '''
import time
from asysi.pipeline import BaseOperator


class Split(BaseOperator):
    """Two rows of each."""

    def __init__(self, bad: int = -1, nap: float = 0.0) -> None:
        self.bad, self.nap = bad, nap

    def process_item(self, item, ctx=None):
        if self.nap > 60:
            open("napping", "w").close()
        time.sleep(self.nap)
        if item["n"] == self.bad:
            raise ValueError("unlucky")
        ctx.report_usage({"cost": 0.5})
        return [{"n": item["n"], "half": half} for half in range(2)]


def keep(items):
    return items
'''
SPEC: dict[str, Any] = {
    "pipelineId": "split",
    "inputUri": "jsonl://./in.jsonl",
    "outputUri": "jsonl://./out.jsonl",
    "operators": [
        {"operator": "splitting:Split", "params": {"nap": 0.0}},
        {"operator": "splitting:keep", "batchSize": 10},
    ],
    "writer": {"flushBatchSize": 20, "flushInterval": 0.05},
}
COMMAND = [sys.executable, "-m", "asysi.cli", "pipeline"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "splitting", raising=False)
    Path("splitting.py").write_text(OPERATORS)
    Path("in.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(ROWS)))
    spec()
    return tmp_path


def spec(name: str = "p.yaml", *, nap: float = 0.0, bad: int = -1, **changes: Any) -> str:
    """Write a pipeline's file and return its name."""
    first = {"operator": "splitting:Split", "params": {"nap": nap, "bad": bad}}
    tree = SPEC | {"operators": [first, *SPEC["operators"][1:]]} | changes
    Path(name).write_text(yaml.safe_dump(tree, sort_keys=False))
    return name


def asysi(*arguments: str) -> tuple[int, str]:
    """Run a command here; return its exit code and what it says."""
    done = CliRunner().invoke(app, ["pipeline", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def begin(*arguments: str, **more: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more
    )


def until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def committed(file: str = "out.jsonl") -> int:
    return Path(file).read_bytes().count(b"\n") if Path(file).exists() else 0


def expected() -> bytes:
    return b"".join(
        b'{"n":%d,"half":%d,"_i":"%d_%d"}\n' % (n, half, n, half) for n in range(ROWS) for half in range(2)
    )


def test_run_says_how_it_went() -> None:
    """run ends with one line on stdout, exit code 0, and the output beside the file that names it."""
    code, said = asysi("run", "p.yaml")
    assert code == 0, said
    assert "split: completed, 200 source rows settled, 400 rows made, cost 100" in said
    assert Path("out.jsonl").read_bytes() == expected()


def test_plain_lines_tell_progress_without_a_terminal() -> None:
    """Without a terminal, each node has a line at its begin and its end."""
    said = asysi("run", "p.yaml")[1]
    assert "1_Split: begins\n" in said
    assert "2_keep: completed, 400 of 400 rows durable, 400 computed, 400 made" in said


def test_a_terminal_shows_a_table() -> None:
    """On a terminal, a live table shows durable beside computed rows, and the cost."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "run", spec(nap=0.01)],
        stdout=follower,
        stderr=follower,
        env={**os.environ, "COLUMNS": "120", "TERM": "xterm"},
    )
    os.close(follower)
    text = b""
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:  # the terminal is gone with its last process
            break
        if not data:
            break
        text += data
    os.close(leader)
    assert process.wait() == 0
    shown = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", text).decode()
    for word in ("split · running", "durable", "computed", "1_Split", "rows/s", "cost", "split: completed"):
        assert word in shown


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batchSizes": 3}, r"p\.yaml:\d+: batchSizes is not a known key: did you mean batchSize\?"),
        ({"parallelSize": "many"}, r"p\.yaml:\d+: parallelSize must be a whole number, not the text 'many'"),
        ({"onError": "ignore"}, r"onError must be fail or dead_letter, not the text 'ignore'"),
        ({"pipelineId": "a/b"}, r"pipelineId must be text that matches"),
        ({"operators": [{"operator": "splitter"}]}, r"operators\[0\]: there is no operator splitter"),
        ({"operators": [{"operator": "splitting:Splt"}]}, r"splitting has no Splt"),
        ({"operators": [{"operator": "splitting:Split", "params": {"bath": 1}}]}, r"keyword argument 'bath'"),
        ({"inputUri": "nowhere://x"}, r"unknown protocol nowhere://"),
        ({"operators": [{"name": "x"}]}, r"p\.yaml:\d+: operators\[0\]\.operator is missing: Name of the op"),
    ],
)
def test_a_wrong_file_is_code_2(changes: dict[str, Any], said: str) -> None:
    """What is wrong with a file is said with its place and what to do, and the exit code is 2."""
    code, found = asysi("run", spec(**changes))
    assert code == 2
    assert re.search(said, found), found
    assert not Path("tmp").exists() or "nowhere" in said


def test_a_failed_row_is_code_1_and_resume_goes_on() -> None:
    """A row that fails ends the run with its node and id, exit code 1; resume goes on behind what is done."""
    code, said = asysi("run", spec(bad=150))
    assert (code, "node 1_Split, row 150: ValueError: unlucky" in said) == (1, True)
    assert committed("tmp/split/1_Split.jsonl") == 300
    code, said = asysi("resume", spec())
    assert (code, "its bad was 150, it is -1" in said) == (2, True)
    code, said = asysi("resume", "p.yaml", "--accept-changes")
    assert code == 0
    assert "1_Split: begins at row 150" in said
    assert Path("out.jsonl").read_bytes() == expected()


def test_run_again_is_refused_unless_told() -> None:
    """A second run is refused with code 2; --resume lets it go on, --overwrite begin anew."""
    assert asysi("run", "p.yaml")[0] == 0
    code, said = asysi("run", "p.yaml")
    assert (code, "has run before (it is completed)" in said) == (2, True)
    assert asysi("run", "p.yaml", "--resume")[0] == 0
    assert asysi("run", "p.yaml", "--overwrite")[0] == 0
    assert asysi("run", spec("new.yaml", pipelineId="new", outputUri="jsonl://new.jsonl"), "--resume")[0] == 0


def test_a_spent_budget_is_code_1_and_may_be_raised() -> None:
    """A budget ends a run with code 1; resume with a higher one, or from the folder, goes on."""
    code, said = asysi("run", spec(budget={"cost": 20}))
    assert code == 1
    assert "split: budget_exhausted" in said
    assert asysi("resume", "tmp/split")[0] == 1
    assert asysi("resume", spec(budget={"cost": 2000}))[0] == 0
    assert Path("out.jsonl").read_bytes() == expected()


def test_redrive_and_status() -> None:
    """status counts dead letters and money; redrive brings the rows back, and the output is whole."""
    assert asysi("run", spec(onError="dead_letter", bad=150))[0] == 0
    said = asysi("status", "p.yaml")[1]
    assert "split: completed, 200 source rows settled, 1 dead letters\n" in said
    assert "spent: cost 99.5" in said
    code, said = asysi("redrive", spec(), "--accept-changes")
    assert code == 0, said
    assert Path("out.jsonl").read_bytes() == expected()
    image = json.loads(asysi("status", "tmp/split", "--json")[1])
    assert (image["dead"], image["nodes"][1]["made"], image["usage"]) == (0, 400, {"cost": 100})


@pytest.mark.parametrize("how", [{}, {"streaming": True}, {"processes": 2}], ids=str)
def test_ctrl_c_ends_cleanly(how: dict[str, Any]) -> None:
    """§14.2: Ctrl-C commits what was begun and leaves with 130; resume gives the whole output."""
    process = begin("run", spec(nap=0.01, **how), start_new_session=True)
    until(lambda: committed("tmp/split/1_Split.jsonl") >= 40)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert "split: canceled" in said
    image = json.loads(Path("tmp/split/runtime.json").read_text())
    assert image["status"] == "canceled"
    assert image["nodes"][0]["made"] == committed("tmp/split/1_Split.jsonl")
    assert asysi("resume", "tmp/split")[0] == 0
    assert Path("out.jsonl").read_bytes() == expected()


def test_ctrl_c_twice_ends_at_once() -> None:
    """§14.2: a second Ctrl-C does not wait for a row that takes long; a resume is exact all the same."""
    process = begin("run", spec(nap=600))
    until(Path("napping").exists)
    process.send_signal(signal.SIGINT)
    until(lambda: "[Cancel]" in Path("logs/platform.log").read_text())
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert asysi("status", "tmp/split")[1].startswith("split: interrupted")
    assert asysi("resume", spec(), "--accept-changes")[0] == 0
    assert Path("out.jsonl").read_bytes() == expected()


def test_status_follows_a_run_and_knows_when_it_was_killed() -> None:
    """§15.2: status says running with committed rows; after kill -9 it says interrupted."""
    process = begin("run", spec(nap=0.01))
    until(lambda: committed("tmp/split/1_Split.jsonl") >= 40)
    image = json.loads(asysi("status", "p.yaml", "--json")[1])
    assert image["status"] == "running"
    assert image["process"] == process.pid
    assert 0 < image["nodes"][0]["durable"] < ROWS
    process.kill()
    process.communicate()
    assert json.loads(asysi("status", "p.yaml", "--json")[1])["status"] == "interrupted"
    assert asysi("run", "p.yaml", "--resume")[0] == 0
    assert Path("out.jsonl").read_bytes() == expected()


def test_shards_together_are_one_run() -> None:
    """Byte ranges of one file over processes, each with its ledger, merge to the same bytes."""
    code, said = asysi("run", spec(shards=3))
    assert code == 0, said
    assert Path("out.jsonl").read_bytes() == expected()
    parts = [image["settled"] for image in json.loads(asysi("status", "p.yaml", "--json")[1])]
    assert (len(parts), sum(parts)) == (3, ROWS)
    assert min(parts) > ROWS // 4
    assert asysi("run", "p.yaml", "--resume")[0] == 0
    assert asysi("merge", "tmp/split")[0] == 0


def test_a_job_runs_a_shard_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    """--shard takes its index from the pod of an Indexed Job; merge needs all of them."""
    spec()
    for index in ("0", "2", "1"):
        code, said = asysi("merge", "p.yaml")
        assert code == 2
        monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
        assert asysi("run", "p.yaml", "--shard", "3", "--resume")[0] == 0
    assert asysi("merge", "p.yaml")[0] == 0
    assert Path("out.jsonl").read_bytes() == expected()
    code, said = asysi("run", "p.yaml", "--shard", "3/3")
    assert (code, "give I/N with I from 0 to N-1" in said) == (2, True)


def test_an_input_that_grew_between_shards_is_noticed() -> None:
    """A shard keeps its part for good; parts that do not meet, as the input grew between, are not merged."""
    assert asysi("run", spec(budget={"cost": 40}), "--shard", "0/2")[0] == 1
    with Path("in.jsonl").open("a") as file:
        file.write("".join(json.dumps({"n": n}) + "\n" for n in range(50)))
    code, said = asysi("resume", spec(), "--shard", "0/2")
    assert (code, "in.jsonl is not what it was when the pipeline began" in said) == (2, True)
    assert asysi("resume", spec(), "--shard", "0/2", "--accept-changes")[0] == 0
    assert asysi("run", "p.yaml", "--shard", "1/2")[0] == 0
    code, said = asysi("merge", "p.yaml")
    assert code == 2
    assert re.search(r"shard 0 ends at byte \d+ of the input, and shard 1 begins at \d+", said)


def test_shards_with_dead_letters_are_redriven_and_merged_again() -> None:
    """After a redrive of shards, the merged output is that of a run without failures."""
    assert asysi("run", spec(shards=2, onError="dead_letter", bad=150))[0] == 0
    assert committed() == 398
    code, said = asysi("redrive", spec(shards=2), "--accept-changes")
    assert code == 0, said
    assert Path("out.jsonl").read_bytes() == expected()


@pytest.mark.parametrize("how", [{"shards": 2}, {"processes": 2}], ids=str)
def test_a_killed_command_leaves_no_process_behind(how: dict[str, Any]) -> None:
    """kill -9 of the command ends its shards, or what computes for it; a resume gives the same bytes."""
    process = begin("run", spec(nap=0.02, **how))
    until(lambda: sum(map(committed, map(str, Path("tmp/split").rglob("1_Split*.jsonl")))) >= 20)
    crew = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    assert len(crew) >= 2
    until(lambda: not any(map(_lives, crew)))
    assert asysi("resume", spec(**how), "--accept-changes")[0] == 0
    assert Path("out.jsonl").read_bytes() == expected()


def _lives(process: psutil.Process) -> bool:
    """Whether a process runs; one that has ended but was not waited for does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _shards(key: str, wanted: str | None = None) -> list[Any]:
    images = [json.loads(file.read_text()) for file in Path("tmp/split").glob("shard-*/runtime.json")]
    return [image[key] if wanted is None else image[key] == wanted for image in images]


def test_ctrl_c_ends_all_shards_cleanly() -> None:
    """§14.2: Ctrl-C ends every shard cleanly, with 130 for all."""
    process = begin("run", spec(shards=2, nap=0.02), start_new_session=True)
    until(lambda: len(list(Path("tmp/split").glob("shard-*/runtime.json"))) == 2)
    until(lambda: all(_shards("status", "running")))
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert _shards("status") == ["canceled", "canceled"]


def test_a_shard_that_fails_ends_the_others() -> None:
    """A failed row in one shard ends all, with code 1 and the shard's number."""
    assert asysi("run", spec(shards=2, bad=150, nap=0.02))[0] == 1
    assert _shards("status").count("failed") == 1


def test_relative_paths_begin_at_the_file_or_here(tmp_path: Path) -> None:
    """./x is beside the file, x in the current folder; the image has absolute paths."""
    Path("deeper").mkdir()
    Path("deeper/in.jsonl").write_text('{"n": 0}\n')
    Path("deeper/splitting2.py").write_text(OPERATORS)
    Path("deeper/p.yaml").write_text(
        yaml.safe_dump(SPEC).replace("splitting:", "splitting2:").replace("jsonl://./out", "jsonl://out")
    )
    assert asysi("run", "deeper/p.yaml")[0] == 0
    image = json.loads(Path("tmp/split/runtime.json").read_text())
    assert image["input_uri"] == f"jsonl://{tmp_path}/deeper/in.jsonl"
    assert image["output_uri"] == f"jsonl://{tmp_path}/out.jsonl"


def test_help_of_the_group_names_every_command() -> None:
    """`asysi pipeline --help` lists the five commands."""
    said = asysi("--help")[1]
    for name in ("run", "resume", "redrive", "merge", "status"):
        assert re.search(rf"^\W*{name}\b", said, re.M)
