"""What a resume refuses, and what it needs nobody to say."""

import importlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from asysi.contract.errors import ConfigError
from asysi.pipeline import BaseOperator, SealError, UnifiedPipeline, WriterConfig

ROWS = 300


class Mark(BaseOperator):
    def __init__(self, word: str = "seen") -> None:
        self.word = word

    def process_item(self, item, ctx=None):
        return {**item, self.word: True}


class StopAt(BaseOperator):
    """Cancels its run at a row, the first time."""

    def __init__(self) -> None:
        self._run: UnifiedPipeline | None = None

    def process_item(self, item, ctx=None):
        if self._run is not None and item["n"] >= ROWS // 2:
            self._run.cancel()
        return item


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(ROWS)))
    return tmp_path


def make(word: str = "seen", **settings: Any) -> UnifiedPipeline:
    settings = {"writer_config": WriterConfig(flush_batch_size=10, flush_interval=0.01), **settings}
    return UnifiedPipeline([Mark(word), StopAt()], "jsonl://in.jsonl", "jsonl://out.jsonl", **settings)


def half() -> None:
    """Run to the middle of the second node."""
    run = make().create("p")
    run.nodes[1].operator._run = run
    assert run.run().status == "canceled"


MIDDLE = Path("tmp/p/1_Mark.jsonl")


def test_an_edited_intermediate_file_is_refused() -> None:
    """§13.2: a file between two nodes that was edited by hand is refused, and the error says where."""
    half()
    text = MIDDLE.read_text()
    MIDDLE.write_text(text.replace('{"n":7,', '{"n":8,'))
    with pytest.raises(SealError, match=r"1_Mark\.jsonl was changed after it had been sealed: its digest is"):
        make().resume("p").run()
    MIDDLE.write_text(text)
    assert make().resume("p").run().status == "completed"


def test_an_intermediate_file_with_a_row_less_is_refused() -> None:
    """§13.2: rows deleted by hand are found by the seal, which says how many there were."""
    half()
    MIDDLE.write_text("".join(MIDDLE.read_text().splitlines(keepends=True)[:-3]))
    with pytest.raises(SealError, match=f"the seal says {ROWS} rows, the file has {ROWS - 3}"):
        make().resume("p").run()


def test_an_edited_output_is_refused() -> None:
    """§13.2: rows that are committed but no longer what they were are refused, with the rows that differ."""
    half()
    out = Path("out.jsonl")
    out.write_text(out.read_text().replace('{"n":7,', '{"n":8,'))
    with pytest.raises(SealError, match=r"was changed after node 2_StopAt.*its rows \d+ to \d+"):
        make().resume("p").run()


def test_a_cut_output_is_refused() -> None:
    """§13.2: an output that is shorter than what is committed is refused, with both sizes."""
    half()
    out = Path("out.jsonl")
    out.write_bytes(out.read_bytes()[:100])
    with pytest.raises(SealError, match=r"was cut: node 2_StopAt has committed \d+ rows.*100 bytes are left"):
        make().resume("p").run()


def test_what_lies_behind_the_committed_rows_is_cut_off() -> None:
    """§14.1: a torn tail, or whole rows that no commit covers, are removed and made again."""
    half()
    with Path("out.jsonl").open("a") as file:
        file.write('{"n": 999, "_i": 999}\n{"n": 10')
    make().resume("p").run()
    assert [json.loads(line)["n"] for line in Path("out.jsonl").read_text().splitlines()] == list(range(ROWS))


def test_an_edited_source_is_refused() -> None:
    """§13.2: the input must be what it was; rows that are not committed may change where that is accepted."""
    run = UnifiedPipeline([StopAt()], "jsonl://in.jsonl", "jsonl://out.jsonl").create("p")
    run.nodes[0].operator._run = run
    run.run()
    text = Path("in.jsonl").read_text()
    again = UnifiedPipeline([StopAt()], "jsonl://in.jsonl", "jsonl://out.jsonl")
    Path("in.jsonl").write_text(text.replace('{"n": 7}', '{"n": 8}'))
    with pytest.raises(SealError, match=r"in\.jsonl is not what it was .*its digest was \w+, it is \w+"):
        again.resume("p")
    with pytest.raises(SealError, match=r"in\.jsonl was changed: node 1_StopAt has committed its rows up to"):
        again.resume("p", accept_changes=True).run()
    Path("in.jsonl").write_text(text.replace(f'{{"n": {ROWS - 1}}}', '{"n": 8}'))
    with pytest.raises(SealError, match=r"go on with --accept-changes"):
        again.resume("p")
    assert again.resume("p", accept_changes=True).run().status == "completed"


def test_a_lost_seal_is_refused() -> None:
    """§12.1: a finished node whose file is gone or unsealed is not silently run again."""
    half()
    Path(f"{MIDDLE}.done").unlink()
    with pytest.raises(SealError, match="has lost its seal or was removed: node 1_Mark had finished it"):
        make().resume("p").run()


def test_a_changed_parameter_is_refused() -> None:
    """§8.2: an operator with another parameter is refused, with old and new value, unless accepted."""
    half()
    with pytest.raises(ConfigError, match=r'operator 1 \(Mark\).*its word was "seen", it is "other"'):
        make("other").resume("p")
    assert make("other").resume("p", accept_changes=True).run().status == "completed"


def test_changed_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """§8.2: an operator with other code is refused; comments and layout may change."""
    code = "def mark(items):\n    return [{**item, 'seen': %s} for item in items]\n"
    file = Path("marking.py")
    file.write_text(code % "True")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    module = importlib.import_module("marking")

    def run() -> UnifiedPipeline:
        module = importlib.reload(sys.modules["marking"])
        return UnifiedPipeline([module.mark], "jsonl://in.jsonl", "jsonl://out.jsonl", budget={"n": 10})

    try:
        run().create("p")
        file.write_text("# says it\n" + code % "True" + "    # so\n")
        run().resume("p")
        file.write_text(code % "False")
        with pytest.raises(
            ConfigError, match=r"operator 1 \(mark\) is not what it was: its code was changed"
        ):
            run().resume("p")
    finally:
        del sys.modules[module.__name__]


def test_operators_are_made_anew_from_the_image() -> None:
    """§3.2: without operators, resume() makes them from the image: class and parameters."""
    half()
    code = "from asysi.pipeline import UnifiedPipeline; print(UnifiedPipeline().resume('p').run().status)"
    place = str(Path(__file__).parent)
    image = Path("tmp/p/runtime.json")
    image.write_text(image.read_text().replace(f'"{__name__}:', '"test_resume:'))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": place},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "completed\n", done.stderr


def test_the_image_says_what_is_read(caplog: pytest.LogCaptureFixture) -> None:
    """§8.2, §12.2: a resume reads and writes what the image says, whatever the code says now."""
    half()
    elsewhere = UnifiedPipeline([Mark(), StopAt()], "jsonl://other.jsonl", "jsonl://other-out.jsonl")
    elsewhere.resume("p").run()
    assert len(Path("out.jsonl").read_text().splitlines()) == ROWS
    assert "the image's jsonl://in.jsonl stands" in caplog.text
    assert not Path("other-out.jsonl").exists()


def test_one_pipeline_id_runs_once_at_a_time() -> None:
    """§17.3: a second process under the same pipeline_id is refused, with the first one's number."""
    child = os.fork()
    if child == 0:
        run = UnifiedPipeline([_Slow()], "jsonl://in.jsonl", "jsonl://out.jsonl")
        run.create("p").run()
        os._exit(0)
    try:
        deadline = time.monotonic() + 20
        while not Path("out.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        for second in (make().create, make().resume):
            with pytest.raises(ConfigError, match=rf"p is running already \(process {child}\)"):
                second("p")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


class _Slow(BaseOperator):
    def process_item(self, item, ctx=None):
        time.sleep(0.05)
        return item


def test_two_pipelines_do_not_write_one_output() -> None:
    """§17.3: another pipeline_id does not help a run that would write the same file."""
    child = os.fork()
    if child == 0:
        UnifiedPipeline([_Slow()], "jsonl://in.jsonl", "jsonl://out.jsonl").create("one").run()
        os._exit(0)
    try:
        deadline = time.monotonic() + 20
        while not Path("out.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(ConfigError, match=r"out\.jsonl already exists"):
            make().create("two")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_used_pipeline_id_is_refused_with_the_difference() -> None:
    """§17.3: create() under a name that has run says what differs, and overwriting starts anew."""
    half()
    with pytest.raises(ConfigError, match=r"p has run before \(it is canceled\).*batch_size was 1, it is 4"):
        make(batch_size=4).create("p")
    assert make(batch_size=4).create("p", overwrite=True).run().status == "completed"


def test_a_folder_holds_one_pipeline() -> None:
    """§17.3: results_dir of one pipeline is not taken for another."""
    make(results_dir="state").create("p").run()
    with pytest.raises(ConfigError, match="state holds the pipeline p: give q a results_dir of its own"):
        make(results_dir="state").create("q")


def test_a_ledger_of_another_version_is_refused() -> None:
    """A ledger that this version cannot read is refused by its version."""
    half()
    with sqlite3.connect("tmp/p/ledger.sqlite") as base:
        base.execute("UPDATE about SET value = '99' WHERE name = 'format'")
    base.close()
    with pytest.raises(ConfigError, match="has format 99"):
        make().resume("p").run()


def test_what_is_no_ledger_is_refused() -> None:
    """A ledger file that is none is an error that names it."""
    half()
    Path("tmp/p/ledger.sqlite").write_bytes(b"no database at all, but long enough to be taken for one" * 99)
    for suffix in ("-wal", "-shm"):
        Path(f"tmp/p/ledger.sqlite{suffix}").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=r"ledger\.sqlite is not a ledger"):
        make().resume("p").run()


def test_what_is_no_image_is_refused() -> None:
    """A broken runtime.json, and none at all, are errors that name the file or the folder."""
    half()
    Path("tmp/p/runtime.json").write_text("{")
    with pytest.raises(ConfigError, match=r"runtime\.json cannot be read"):
        make().resume("p")
    with pytest.raises(ConfigError, match=r"tmp/q has no runtime\.json"):
        make().resume("q")


def test_checkpoint_tells_what_is_committed() -> None:
    """§2.1: checkpoint.json holds, for each node, the source rows and made rows that are committed."""
    half()
    found = json.loads(Path("tmp/p/checkpoint.json").read_text())
    assert found["pipeline_id"] == "p"
    rows = len(Path("out.jsonl").read_text().splitlines())
    assert found["nodes"] == {
        "1_Mark": {"source_rows": ROWS, "rows_made": ROWS, "dead": 0, "status": "completed"},
        "2_StopAt": {"source_rows": rows, "rows_made": rows, "dead": 0, "status": "canceled"},
    }


def test_the_log_tells_cancel_resume_and_seals() -> None:
    """§15.1: platform.log has a line, with a tag, for the end, the resume and each seal."""
    half()
    make().resume("p").run()
    log = Path("logs/platform.log").read_text()
    for line in (
        "[Cancel] p: cancel()",
        "[Seal] jsonl://tmp/p/1_Mark.jsonl: 300 rows",
        "[Resume] 2_StopAt goes on at source row",
        "p is completed",
    ):
        assert line in log
