"""What a run reads: the files that were there when it began, and never what it writes itself."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import xxhash

from asysi.contract.errors import ConfigError
from asysi.pipeline import (
    BaseOperator,
    SealError,
    StreamFactory,
    UnifiedNode,
    UnifiedNodePipeline,
    UnifiedPipeline,
)


class Halt(BaseOperator):
    """Ends its run at a row."""

    waits = False

    def __init__(self) -> None:
        self._run: UnifiedPipeline | None = None

    def process_item(self, item, ctx=None):
        if self._run is not None and item["n"] == 25:
            self._run.cancel()
        return item


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for part in range(3):
        write(f"part-{part}.jsonl", range(20 * part, 20 * part + 20))
    return tmp_path


def write(name: str, numbers: Any) -> None:
    Path(name).write_text("".join(json.dumps({"n": n}) + "\n" for n in numbers))


def make(
    source: str = "jsonl://./part-*.jsonl", out: str = "jsonl://./out.jsonl", **more: Any
) -> UnifiedPipeline:
    return UnifiedPipeline([Halt()], source, out, **more)


def begin(*arguments: Any, **more: Any) -> None:
    """Run into the second file."""
    run = make(*arguments, **more).create("p")
    run.nodes[0].operator._run = run
    assert run.run().status == "canceled"


def numbers() -> list[int]:
    return [json.loads(line)["n"] for line in Path("out.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("source", "out", "more"),
    [
        ("jsonl://./*.jsonl", "jsonl://./out.jsonl", {}),
        ("jsonl://*.jsonl", "jsonl://{here}/out.jsonl", {}),
        ("jsonl://{here}/*.jsonl", "out.jsonl", {}),
        ("jsonl://file://{here}/*.jsonl", "out.jsonl", {}),
        ("jsonl://part-[0-9].jsonl", "jsonl://part-7.jsonl", {}),
        ("jsonl://part-0.jsonl", "jsonl://./part-0.jsonl", {}),
        ("jsonl://part-0.jsonl", "csv://part-0.jsonl", {}),
        ("jsonl://link/*.jsonl", "jsonl://real/out.jsonl", {}),
        ("jsonl://*.jsonl", "jsonl://out.jsonl", {"shard": (0, 2)}),
        ("jsonl://**/*.jsonl", "jsonl:///elsewhere/out.jsonl", {}),
        ("jsonl://state/dead_letters/*.jsonl", "jsonl:///elsewhere/out.jsonl", {"results_dir": "state"}),
        ("jsonl://*/*.log", "jsonl:///elsewhere/out.jsonl", {}),
        ("jsonl://memory://rows/*.jsonl", "jsonl://memory://rows/out.jsonl", {}),
    ],
)
def test_an_output_that_the_input_matches_is_refused(folder: Path, source: str, out: str, more: Any) -> None:
    """Whatever a run writes would be read again by it, or by its resume: it does not begin."""
    Path("real").mkdir()
    Path("link").symlink_to("real")
    made = make(source.format(here=folder), out.format(here=folder), **more)
    with pytest.raises(ConfigError, match=r"which this pipeline writes|over its own input"):
        made.create("p")
    assert not Path("out.jsonl").exists()


def test_an_output_beside_its_input_is_written() -> None:
    """A pattern that does not match the output may be in the same folder."""
    assert make().create("p").run().status == "completed"
    assert numbers() == list(range(60))


def test_nodes_wired_by_hand_do_not_read_what_they_write() -> None:
    """A node's input may not match its own output, nor that of a node behind it."""
    node = UnifiedNode("n")
    node.set_processor(Halt())
    node.bind_io(StreamFactory.create("jsonl://*.jsonl"), StreamFactory.create("jsonl://out.jsonl"))
    with pytest.raises(ConfigError, match="which this pipeline writes"):
        UnifiedNodePipeline([node]).create("p")


@pytest.mark.parametrize("name", ["part-00.jsonl", "part-1a.jsonl", "part-9.jsonl"])
def test_files_that_come_later_are_said_and_not_read(name: str, capfd: Any) -> None:
    """Before, between or behind the files of a run: a new file does not enter it, and is named."""
    begin()
    write(name, range(900, 920))
    report = make().resume("p").run()
    assert numbers() == list(range(60))
    assert [Path(found).name for found in report.new_inputs] == [name]
    assert f"{name}. Run them under another pipelineId" in Path("logs/platform.log").read_text()
    assert json.loads(Path("tmp/p/runtime.json").read_text())["new_inputs"] == list(report.new_inputs)


def test_a_killed_run_reads_its_own_files_only() -> None:
    """kill -9, new files, resume: rows of the pinned files, each once."""
    child = os.fork()
    if child == 0:
        run = make().create("p")
        run.nodes[0].operator._run = run
        run.cancel = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        run.run()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    write("part-0a.jsonl", range(900, 920))
    assert make().resume("p").run().status == "completed"
    assert numbers() == list(range(60))


def test_the_list_of_files_and_their_digests_is_pinned() -> None:
    """The image names every input file with its size and XXH3-128 from the beginning."""
    make().create("p")
    pinned = json.loads(Path("tmp/p/runtime.json").read_text())["inputs"]
    assert [(Path(file["url"]).name, file["bytes"], file["digest"]) for file in pinned] == [
        (name, Path(name).stat().st_size, xxhash.xxh3_128(Path(name).read_bytes()).hexdigest())
        for name in ("part-0.jsonl", "part-1.jsonl", "part-2.jsonl")
    ]


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_changed_file_is_refused_by_name(part: int) -> None:
    """Read, half read or not read: the file that changed is named; touching one changes nothing."""
    begin()
    name = f"part-{part}.jsonl"
    text = Path(name).read_text()
    Path(name).write_text(text.replace('{"n": ', '{"m": '))
    with pytest.raises(SealError, match=rf"{name} is not what it was .*\n.*--accept-changes"):
        make().resume("p")
    Path(name).unlink()
    with pytest.raises(SealError, match=f"{name} is gone"):
        make().resume("p", accept_changes=True)
    Path(name).write_text(text)
    assert make().resume("p").run().status == "completed"
    assert numbers() == list(range(60))


def test_a_file_that_was_not_read_may_change_when_accepted() -> None:
    """Rows that are not committed may be mended: the resume reads them as they are now."""
    begin()
    write("part-2.jsonl", range(40, 70))
    assert make().resume("p", accept_changes=True).run().status == "completed"
    assert numbers() == list(range(70))


def test_a_file_in_a_store_is_known_by_its_tag() -> None:
    """Stores are not read twice: size and tag tell whether a file is what it was."""
    store = StreamFactory.create("jsonl://memory://in/a.jsonl")
    with store.get_writer() as writer:
        writer.write([{"n": n} for n in range(60)])
    begin("jsonl://memory://in/*.jsonl")
    with store.get_writer() as writer:
        writer.write([{"n": n} for n in range(61)])
    with pytest.raises(SealError, match=r"a\.jsonl is not what it was .*bytes then, \d+ now"):
        make("jsonl://memory://in/*.jsonl").resume("p")


def test_an_input_that_changes_before_the_run_is_refused() -> None:
    """Between create() and run() nothing may change either."""
    made = make().create("p")
    write("part-1.jsonl", range(5))
    with pytest.raises(SealError, match=r"part-1\.jsonl was changed or removed"):
        made.run()


def test_shards_over_different_files_are_not_merged() -> None:
    """A file that came between two shards would be in one of them only."""
    from asysi.pipeline.run.shards import merge

    make(shard=(0, 2)).create("p").run()
    write("part-2.jsonl", range(140, 160))  # as many bytes or more, none of the first shard's rows
    make(shard=(1, 2)).create("p").run()
    with pytest.raises(ConfigError, match=r"the shards have read different input files|ends at byte"):
        merge(Path("tmp/p"))
