"""Buses of every format and place."""

import csv
import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from asysi.contract.errors import ConfigError
from asysi.pipeline import BaseOperator, SealError, StreamFactory, UnifiedPipeline
from asysi.pipeline.formats.compression import compression_of
from asysi.pipeline.rows.ids import child, lineage, root
from asysi.pipeline.streams.row_log import FileLog
from asysi.pipeline.streams.source import CHUNK, FilesFeed, LineSource

Rows = list[dict[str, Any]]


class Keep(BaseOperator):
    def process_item(self, item, ctx=None):
        return item


class Twice(BaseOperator):
    def process_item(self, item, ctx=None):
        return [{"n": item["n"], "half": half} for half in range(2)]


class Late(BaseOperator):
    def process_item(self, item, ctx=None):
        return {**item, "late": "yes"} if item["n"] == 3 else item


class Stop(BaseOperator):
    """Cancels its run at row 50, the first time."""

    def __init__(self) -> None:
        self._run: UnifiedPipeline | None = None

    def process_item(self, item, ctx=None):
        if self._run is not None and int(item["n"]) >= 50:
            self._run.cancel()
        return item


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def store() -> Any:
    """A store that is not a local disk."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def lines(rows: Rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def count(number: int) -> Rows:
    return [{"n": n} for n in range(number)]


def through(source: str, out: str, *operators: Any, name: str = "p", **settings: Any) -> None:
    UnifiedPipeline(list(operators or [Keep()]), source, out, **settings).create(name).run()


def read(uri: str) -> Rows:
    return list(StreamFactory.create(uri).get_reader())


def test_csv_is_read_and_written() -> None:
    """§1, §2.1: csv:// takes the columns from the first line; what is nested is written as JSON."""
    Path("in.csv").write_text('\ufeffname,text\nAda,"one, two\nthree"\nBob,\n', encoding="utf-8")
    through("csv://in.csv", "csv://out.csv")
    with Path("out.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert found == [
        {"name": "Ada", "text": "one, two\nthree", "_i": "0"},
        {"name": "Bob", "text": "", "_i": "1"},
    ]
    through(
        "csv://in.csv", "csv://nested.csv", lambda items: [{"a": [1, {"b": None}]} for _ in items], name="q"
    )
    assert read("csv://nested.csv")[0]["a"] == '[1, {"b": null}]'


def test_parquet_is_read_and_written() -> None:
    """parquet:// keeps types; columns that only some rows have are null elsewhere, ids are text."""
    pq.write_table(
        pyarrow.table({"n": [1, 2, 3], "x": [0.5, None, 2.0], "l": [[1], [], [2, 3]]}), "in.parquet"
    )
    through("parquet://in.parquet", "parquet://out.parquet", Late())
    table = pq.read_table("out.parquet")
    assert table.schema.field("n").type == pyarrow.int64()
    assert table.to_pylist()[2] == {"n": 3, "x": 2.0, "l": [2, 3], "_i": "2", "late": "yes"}
    assert table.column("late").to_pylist() == [None, None, "yes"]


def test_parquet_with_a_column_of_two_types_is_refused() -> None:
    """Rows that no one type of column holds are an error, not a silent conversion."""
    Path("in.jsonl").write_bytes(lines([{"a": 1}, {"a": "one"}]))
    with pytest.raises(ConfigError, match='the column a would hold int64, and "one"'):
        through("jsonl://in.jsonl", "parquet://out.parquet")


@pytest.mark.parametrize("protocol", ["csv", "parquet"])
def test_other_formats_between_nodes_resume_exactly(protocol: str) -> None:
    """§3.2: a canceled run over CSV and Parquet goes on, and its result is that of a run without."""
    Path("in.jsonl").write_bytes(lines(count(100)))

    def make(name: str) -> UnifiedPipeline:
        return UnifiedPipeline(
            [Twice(), Stop()], "jsonl://in.jsonl", f"{protocol}://{name}.{protocol}",
            default_protocol=f"{protocol}://",
        )  # fmt: skip

    make("whole").create("whole").run()
    run = make("out").create("p")
    run.nodes[1].operator._run = run
    assert run.run().status == "canceled"
    assert not Path(f"out.{protocol}").exists()
    assert make("out").resume("p").run().status == "completed"
    assert read(f"{protocol}://out.{protocol}") == read(f"{protocol}://whole.{protocol}")
    assert len(read(f"{protocol}://out.{protocol}")) == 200


@pytest.mark.parametrize("ending", ["gz", "zst", "bz2"])
def test_compressed_files_are_read(ending: str) -> None:
    """A compressed file is read by its first bytes, resumed exactly, and written by its name."""
    data = lines(count(100))
    pack = {"gz": gzip.compress, "zst": zstandard.compress, "bz2": __import__("bz2").compress}[ending]
    Path(f"in.jsonl.{ending}").write_bytes(pack(data))
    make = lambda: UnifiedPipeline([Stop()], f"jsonl://in.jsonl.{ending}", "jsonl://out.jsonl")  # noqa: E731
    run = make().create("p")
    run.nodes[0].operator._run = run
    assert run.run().status == "canceled"
    make().resume("p").run()
    assert [row["n"] for row in read("jsonl://out.jsonl")] == list(range(100))
    through("jsonl://out.jsonl", f"jsonl://again.jsonl.{ending}", name="q")
    assert read(f"jsonl://again.jsonl.{ending}") == read("jsonl://out.jsonl")
    assert compression_of(Path(f"again.jsonl.{ending}").read_bytes()) is not None
    assert StreamFactory.create(f"jsonl://again.jsonl.{ending}").verify().rows == 100


def test_any_store_of_fsspec_is_a_bus(store) -> None:
    """A URL of fsspec behind jsonl:// is read and written, with its seal beside it; parquet:// likewise."""
    store.pipe_file("/bucket/in.jsonl", lines(count(100)))
    through("jsonl://memory://bucket/in.jsonl", "jsonl://memory://bucket/out.jsonl")
    assert [row["n"] for row in read("jsonl://memory://bucket/out.jsonl")] == list(range(100))
    seal = json.loads(store.cat_file("/bucket/out.jsonl.done"))
    assert (seal["rows"], seal["bytes"]) == (100, store.size("/bucket/out.jsonl"))
    through("jsonl://memory://bucket/out.jsonl", "parquet://memory://bucket/t.parquet", name="q")
    assert len(read("parquet://memory://bucket/t.parquet")) == 100


def test_a_remote_output_is_resumed_and_appears_whole(store) -> None:
    """An output in a store is not there until it is complete, and a canceled run goes on from its spool."""
    store.pipe_file("/in.jsonl", lines(count(100)))
    make = lambda: UnifiedPipeline([Stop()], "jsonl://memory://in.jsonl", "jsonl://memory://out.jsonl")  # noqa: E731
    run = make().create("p")
    run.nodes[0].operator._run = run
    assert run.run().status == "canceled"
    assert not store.exists("/out.jsonl")
    make().resume("p").run()
    assert [row["n"] for row in read("jsonl://memory://out.jsonl")] == list(range(100))


def test_a_changed_remote_file_is_refused(store) -> None:
    """A sealed file in a store that was changed afterwards is refused by the node that would read it."""
    store.pipe_file("/in.jsonl", lines(count(10)))
    through("jsonl://memory://in.jsonl", "jsonl://memory://out.jsonl")
    store.pipe_file("/out.jsonl", store.cat_file("/out.jsonl").replace(b'"n":3', b'"n":4'))
    with pytest.raises(SealError, match="was changed after it had been sealed"):
        through("jsonl://memory://out.jsonl", "jsonl://again.jsonl", name="q")


def test_a_file_is_read_over_http() -> None:
    """A web server is a source like any other store."""
    data = lines(count(20))

    class Files(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/in.jsonl":
                self.send_error(404)
                return
            begin, end = 0, len(data)
            if asked := self.headers.get("Range", "").partition("=")[2]:
                first, _, last = asked.partition("-")
                begin, end = int(first), min(len(data), int(last or len(data)) + 1)
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(end - begin))
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[begin:end])

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        through(f"jsonl://http://127.0.0.1:{server.server_port}/in.jsonl", "jsonl://out.jsonl")
        server.shutdown()
    assert [row["n"] for row in read("jsonl://out.jsonl")] == list(range(20))


def test_a_glob_reads_files_in_the_order_of_their_names() -> None:
    """Several files are one input, numbered through; a last line without a newline is a row of its own."""
    Path("a.jsonl").write_bytes(lines(count(2)).rstrip())
    Path("b.jsonl").write_bytes(lines(count(2)))
    through("jsonl://[ab].jsonl", "jsonl://out.jsonl")
    assert [(row["_i"], row["n"]) for row in read("jsonl://out.jsonl")] == [(0, 0), (1, 1), (2, 0), (3, 1)]


def test_a_missing_input_is_an_error() -> None:
    """§11.2: an input that is not in its store is an error that says so."""
    with pytest.raises(ConfigError, match="there is no such file"):
        through("jsonl://memory://nowhere.jsonl", "jsonl://out.jsonl")


def test_a_reader_goes_on_when_the_writer_has_closed() -> None:
    """§4.2: a node that is done closes its file; the next one, in mid-read, reads on, and the same file."""
    log = FileLog(Path("a.jsonl"))
    log.open(0)
    log.append(b'{"n":0}\n{"n":1}\n')
    reader = log.reader()
    assert reader.read(0, 8) == b'{"n":0}\n'
    log.close()
    with Path("other").open("wb") as other:  # gets the descriptor that the log gave up
        other.write(b"something else altogether")
        assert reader.read(8, 99) == b'{"n":1}\n'
    reader.close()


def test_memory_between_nodes_leaves_no_file() -> None:
    """§2.1: memory:// between nodes writes nothing, streaming or not."""
    Path("in.jsonl").write_bytes(lines(count(50)))
    for name, streaming in (("a", True), ("b", False)):
        through("jsonl://in.jsonl", f"jsonl://{name}.jsonl", Twice(), Keep(), name=name,
                streaming=streaming, default_protocol="memory://")  # fmt: skip
        assert len(read(f"jsonl://{name}.jsonl")) == 100
        assert not list(Path("tmp", name).glob("*Twice*"))


@given(
    st.lists(st.binary(max_size=40).filter(lambda data: b"\n" not in data), max_size=60), st.integers(1, 50)
)
def test_blocks_are_the_lines_whatever_their_size(tmp_path_factory, texts: list[bytes], limit: int) -> None:
    """However many rows are taken at a time, the blocks together are the file, cut at newlines alone, and
    without its byte order mark.
    """
    file = tmp_path_factory.mktemp("lines") / "f"
    file.write_bytes(b"\n".join(texts))
    expected = file.read_bytes().removeprefix(b"\xef\xbb\xbf") + (b"\n" if texts and texts[-1] else b"")
    if expected and not expected.endswith(b"\n"):
        expected += b"\n"
    source = LineSource(FilesFeed([str(file)]), stored=False)
    source.open(0, 0)
    found = []
    while (block := source.take(limit)) is not None:
        found.append(block)
    source.close()
    assert b"".join(block.data for block in found) == expected
    assert [block.first for block in found] == [sum(b.rows for b in found[:n]) for n in range(len(found))]
    assert all(block.rows == block.data.count(b"\n") <= limit for block in found)


def test_a_line_longer_than_a_block_is_one_row() -> None:
    """A row of several MiB is read whole."""
    Path("in.jsonl").write_bytes(lines([{"n": 0, "text": "x" * (3 * CHUNK)}, {"n": 1}]))
    through("jsonl://in.jsonl", "jsonl://out.jsonl")
    assert [len(row.get("text", "")) for row in read("jsonl://out.jsonl")] == [3 * CHUNK, 0]


@given(st.integers(0, 10**9), st.lists(st.integers(0, 10**4), max_size=5))
def test_ids_tell_their_ancestors(number: int, places: list[int]) -> None:
    """§13.1: an id made through any number of nodes gives back the line and every place on the way."""
    identity: Any = number
    for place in places:
        identity = child(identity, place)
    assert lineage(identity) == (number, *places)
    assert root(identity) == number
    with pytest.raises(ValueError, match="is not a row id"):
        lineage(f"{identity}x")
