"""Stores: a real S3 server on loopback, Hugging Face's API on loopback, and what goes wrong on the way."""

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import httpx
import pytest
from tests.s3 import s3_server

from asysi.cli import main
from asysi.contract.errors import ConfigError
from asysi.locations import is_remote, local_folder
from asysi.pipeline import UnifiedPipeline

ROWS = 400
SLOW = """
import time
class Slow:
    def process_item(self, item, ctx=None):
        time.sleep(0.005)
        return {"n": item["n"], "twice": 2 * item["n"]}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of an S3 server with the bucket `rows`."""
    with s3_server("rows") as server:
        yield server.url


def environment(endpoint: str, **more: str) -> dict[str, str]:
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    return {**os.environ, **keys, "AWS_ENDPOINT_URL": endpoint, "AWS_MAX_ATTEMPTS": "1", **more}


def fetch(s3: str, path: str) -> bytes | None:
    """Return an object's bytes, None where there is none."""
    code = "import fsspec, sys; sys.stdout.buffer.write(fsspec.filesystem('s3').cat_file(sys.argv[1]))"
    command = [sys.executable, "-c", code, path]
    done = subprocess.run(command, env=environment(s3), capture_output=True, check=False)
    if done.returncode:
        assert b"FileNotFoundError" in done.stderr
        return None
    return done.stdout


def start(verb: str, env: dict[str, str], *flags: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "asysi.cli", "pipeline", verb, "p.yaml", "--plain", *flags]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def write(**fields: Any) -> None:
    Path("slow.py").write_text(SLOW)
    spec = {"pipelineId": "p", "operators": [{"operator": "slow:Slow"}], "writer": {"flushInterval": 0.05}}
    Path("p.yaml").write_text(json.dumps({**spec, **fields}))


def rows(count: int, begin: int = 0) -> bytes:
    return b"".join(json.dumps({"n": n}).encode() + b"\n" for n in range(begin, begin + count))


def durable() -> int:
    try:
        nodes = json.loads(Path("tmp/p/checkpoint.json").read_text())["nodes"]
    except (FileNotFoundError, ValueError):
        return 0
    return int(next(iter(nodes.values()))["source_rows"])


def test_a_run_over_s3_that_is_killed_in_its_middle_goes_on(s3: str) -> None:
    """Input and output in S3, `kill -9` half way, resumed: every row once, sealed, nothing half there."""
    httpx.put(f"{s3}/rows/in/a.jsonl", content=rows(ROWS // 2))
    httpx.put(f"{s3}/rows/in/b.jsonl", content=rows(ROWS // 2, ROWS // 2))
    write(inputUri="s3://rows/in/*.jsonl", outputUri="s3://rows/out.jsonl")
    run = start("run", environment(s3))
    until = time.monotonic() + 60
    while not 0 < durable() < ROWS and time.monotonic() < until and run.poll() is None:
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    assert 0 < durable() < ROWS
    assert fetch(s3, "rows/out.jsonl") is None
    again = start("resume", environment(s3))
    said, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    found = [json.loads(line) for line in (fetch(s3, "rows/out.jsonl") or b"").splitlines()]
    assert found == [{"n": n, "twice": 2 * n, "_i": n} for n in range(ROWS)]
    assert json.loads(fetch(s3, "rows/out.jsonl.done") or b"")["rows"] == ROWS
    assert "completed" in said
    assert not list(Path().rglob("s3:*"))


def test_csv_gz_and_parquet_in_s3(s3: str) -> None:
    """Formats and compression follow from endings in a store too."""
    httpx.put(f"{s3}/rows/some.csv", content=b"n,t\n1,a\n2,\n")
    for name, source, out in (("p", "some.csv", "some.parquet"), ("q", "some.parquet", "some.jsonl.gz")):
        everything = [{"operator": "filter", "params": {"where": "true"}}]
        write(
            pipelineId=name,
            inputUri=f"s3://rows/{source}",
            outputUri=f"s3://rows/{out}",
            operators=everything,
        )
        run = start("run", environment(s3))
        said = run.communicate(timeout=60)
        assert run.returncode == 0, said
    found = gzip.decompress(fetch(s3, "rows/some.jsonl.gz") or b"").splitlines()
    rows = [{"n": "1", "t": "a", "_i": 0}, {"n": "2", "t": None, "_i": 1}]
    assert [json.loads(line) for line in found] == rows


def one_sentence(run: "subprocess.Popen[str]") -> str:
    """Return what a refused command says: a line, without a traceback."""
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 2, errors
    said = [line for line in errors.splitlines() if line.strip()]
    assert "Traceback" not in errors
    assert len(said) == 1, errors
    return said[0]


NOBODY = "http://127.0.0.1:9"
WRONG = {
    "endpoint": ({"AWS_ENDPOINT_URL": NOBODY}, "s3://rows/in.jsonl", "its endpoint does not answer"),
    "object": ({}, "s3://rows/nothing.jsonl", "there is no such file"),
    "bucket": ({}, "s3://nowhere/in.jsonl", "there is no such"),
    "ending": (
        {},
        "s3://rows/in",
        "its ending does not say what it holds: write one of jsonl://s3://rows/in",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_goes_wrong_in_a_store_is_one_sentence(s3: str, kind: str) -> None:
    """An endpoint that is down, an object or bucket that is not there: one sentence that says so."""
    more, uri, why = WRONG[kind]
    write(inputUri=uri, outputUri="out.jsonl")
    assert why in one_sentence(start("run", environment(s3) | more))
    assert not Path("s3:").exists()


def test_an_output_whose_endpoint_is_down_is_one_sentence() -> None:
    """A store that cannot be written is said before the first row."""
    Path("in.jsonl").write_bytes(rows(3))
    write(inputUri="in.jsonl", outputUri="s3://rows/out.jsonl")
    assert "its endpoint does not answer" in one_sentence(start("run", environment(NOBODY)))


PACKAGES = [("s3", "s3fs"), ("gs", "gcsfs"), ("hf", "huggingface_hub")]


@pytest.mark.parametrize(("protocol", "package"), PACKAGES)
def test_a_missing_package_is_one_sentence(protocol: str, package: str) -> None:
    """A store whose package is not installed is refused with the command that installs it."""
    write(inputUri=f"{protocol}://rows/in.jsonl", outputUri="out.jsonl")
    begin = f"import sys; sys.modules['{package}'] = None; from asysi.cli import main"
    command = [sys.executable, "-c", f"{begin}; main(['pipeline', 'run', 'p.yaml'])"]
    run = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said = one_sentence(run)
    assert f"{protocol}:// needs a package that is not installed: pip install {package}" in said


@pytest.mark.parametrize("name", ["base_path", "results_dir", "log_dir"])
@pytest.mark.parametrize("kind", [str, Path])
def test_folders_of_a_run_cannot_be_in_a_store(name: str, kind: Any) -> None:
    """Ledger and locks need a disk: a store is refused, never taken for a folder called `s3:`."""
    Path("in.jsonl").write_bytes(rows(3))
    with pytest.raises(ConfigError, match=rf"{name} is s3:/.*give a path"):
        UnifiedPipeline([lambda items: items], "in.jsonl", "out.jsonl", **{name: kind("s3://bucket/x")})
    assert not Path("s3:").exists()


def test_local_folders_are_told_from_stores() -> None:
    """Paths, `file://` and names with colons are local; every other protocol is a store."""
    assert [is_remote(text) for text in ("a/b", "file://a", "s3://a", "a:b/c", "C:\\x")] == [
        False, False, True, False, False,
    ]  # fmt: skip
    assert local_folder("file:///a/b", "output") == Path("/a/b")
    assert local_folder(Path("a:b/c"), "output") == Path("a:b/c")
    with pytest.raises(ConfigError, match="output is hf:/"):
        local_folder(Path("hf://x/y"), "output")


WEIGHTS = [
    ["analyze", "model", "--output", "s3://bucket/out"],
    ["download", "owner/name", "--output", "s3://bucket/models"],
    ["run", "owner/name", "-o", "s3://bucket/out"],
    ["run", "owner/name", "--models", "s3://bucket/models"],
    ["report", "table.csv", "-o", "s3://bucket/report.html"],
]


@pytest.mark.parametrize("arguments", WEIGHTS)
def test_weights_write_no_folder_called_like_a_store(arguments: list[str], capsys: Any) -> None:
    """Outputs of `asysi weights` in a store are refused in one sentence before anything is read."""
    with pytest.raises(SystemExit) as ended:
        main(["weights", *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "is s3://bucket/" in said
    assert "written to a disk; give a path" in said
    assert not Path("s3:").exists()


def test_weights_in_a_store_that_does_not_answer_are_one_sentence() -> None:
    """A checkpoint in S3 whose endpoint is down, or whose package is missing, is one sentence."""
    command = [sys.executable, "-m", "asysi.cli", "weights", "analyze", "s3://bucket/model"]
    run = subprocess.Popen(
        command, env=environment(NOBODY), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert "its endpoint does not answer" in one_sentence(run)


class Hub(BaseHTTPRequestHandler):
    """As much of Hugging Face's API as reading a data set's files needs."""

    files: ClassVar = {"data/train.jsonl": rows(5), "data/test.jsonl": rows(2, 5)}

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        wanted = (
            json.loads(body)["paths"]
            if body.startswith("{")
            else [unquote(part.partition("=")[2]) for part in body.split("&") if part.startswith("paths=")]
        )
        self._send([self._info(path) for path in wanted if path in self.files])

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if "/tree/" in path:
            folder = path.partition("/tree/")[2].partition("/")[2]
            inside = [name for name in self.files if name.startswith(f"{folder}/" if folder else "")]
            parts = {name[len(folder) :].lstrip("/").partition("/")[0] for name in inside if not folder}
            folders = [{"type": "directory", "path": name, "oid": "2" * 40} for name in sorted(parts)]
            self._send(folders or [self._info(name) for name in inside])
        elif "/resolve/" in path:
            name = path.partition("/resolve/")[2].partition("/")[2]
            self._send_file(self.files.get(name))
        elif path.startswith("/api/datasets/owner/set"):
            siblings = [{"rfilename": name} for name in self.files]
            self._send({"id": "owner/set", "sha": "0" * 40, "siblings": siblings, "private": False})
        else:
            self.send_error(404)

    def _info(self, name: str) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(self.files[name]), "oid": "1" * 40}

    def _send_file(self, data: bytes | None) -> None:
        if data is None:
            self.send_error(404)
            return
        asked = self.headers.get("Range", "").partition("=")[2]
        begin, end = 0, len(data)
        if asked:
            first, _, last = asked.partition("-")
            begin, end = int(first), min(len(data), int(last or len(data)) + 1)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        self.send_header("ETag", '"tag"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[begin:end])

    def _send(self, tree: Any) -> None:
        data = json.dumps(tree).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def test_data_sets_of_the_hub_are_read() -> None:
    """`hf://datasets/owner/set/…` is read through huggingface_hub; the whole data set needs a pattern."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(Path("hub").absolute()), "HF_HUB_OFFLINE": "0"}
        env = {**os.environ, **hub}
        write(inputUri="hf://datasets/owner/set/data/*.jsonl", outputUri="out.jsonl")
        run = start("run", env)
        said = run.communicate(timeout=60)
        assert run.returncode == 0, said
        server.shutdown()
    assert [json.loads(line)["n"] for line in Path("out.jsonl").read_text().splitlines()] == [
        5,
        6,
        0,
        1,
        2,
        3,
        4,
    ]
