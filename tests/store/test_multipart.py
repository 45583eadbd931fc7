"""Files in an S3 store: a reader sees the whole object or none, whatever was killed on the way."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.s3 import S3Server

from asysi.contract.errors import ConfigError
from asysi.locations import filesystem
from asysi.store.multipart import StoppedError, upload

PART = 1 << 14
PARTS = 6
KILLS = int(os.environ.get("ASYSI_STORE_KILLS", "3"))
"""Kills during the upload of a file; `make mscan-faults` runs many."""
CHILD = """
import json, os, signal, sys
from pathlib import Path
from asysi.store import multipart
file, address, kill_at, part, log = sys.argv[1:]
requests = []
real = multipart._Object._call
def call(self, request, **arguments):
    if len(requests) == int(kill_at):
        os.kill(os.getpid(), signal.SIGKILL)
    requests.append(request)
    with open(log, "a") as out:
        out.write(json.dumps([request, arguments.get("PartNumber")]) + "\\n")
    return real(self, request, **arguments)
multipart._Object._call = call
multipart.upload(Path(file), address, part_bytes=int(part))
"""


def send(file: Path, address: str, log: Path, kill_at: int = -1) -> int:
    """Upload in a process of its own that kills itself before a request; return its exit code."""
    log.unlink(missing_ok=True)
    command = [sys.executable, "-c", CHILD, str(file), address, str(kill_at), str(PART), str(log)]
    return subprocess.run(command, check=False).returncode


def sent(log: Path) -> list[int]:
    """Return the numbers of the parts whose request was begun."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [number for request, number in lines if request == "upload_part"]


def unfinished(address: str) -> list[str]:
    """Return the keys of uploads that were begun and neither completed nor aborted."""
    files, path = filesystem(address)
    return [one["Key"] for one in files.list_multipart_uploads(path.partition("/")[0])]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of six parts."""
    path = tmp_path / "segment"
    path.write_bytes(random.Random(0).randbytes(PARTS * PART - 5))
    return path


def test_killed_at_any_request(s3: S3Server, file: Path, tmp_path: Path) -> None:
    """`kill -9` before any request: nothing is visible, and the next process sends only the missing parts."""
    log = tmp_path / "log"
    address = "s3://results/killed/segment"
    held: set[int] = set()
    generator = random.Random(1)
    for _ in range(KILLS):
        assert send(file, address, log, generator.randrange(1, PARTS)) == -9
        assert not held & set(sent(log))
        held |= set(sent(log))
        visible = s3.get("killed/segment")
        assert visible in {None, file.read_bytes()}
        if visible:  # begin another upload
            assert held == set(range(1, PARTS + 1))
            httpx.delete(f"{s3.url}/results/killed/segment")
            held.clear()
    assert held
    assert send(file, address, log) == 0
    assert not held & set(sent(log))
    assert held | set(sent(log)) == set(range(1, PARTS + 1))
    assert s3.get("killed/segment") == file.read_bytes()
    assert "killed/segment" not in unfinished(address)
    assert send(file, address, log) == 0
    assert sent(log) == []


def test_sizes(s3: S3Server, tmp_path: Path) -> None:
    """An empty file, one byte, whole parts and one byte more arrive as they are."""
    file = tmp_path / "file"
    for size in (0, 1, PART, PART + 1, 3 * PART):
        file.write_bytes(random.Random(size).randbytes(size))
        seen: list[int] = []
        upload(file, f"s3://results/sizes/{size}", part_bytes=PART, progress=seen.append)
        files, path = filesystem(f"s3://results/sizes/{size}")
        assert files.cat_file(path) == file.read_bytes()
        assert sum(seen) == size


def test_stopped(s3: S3Server, file: Path) -> None:
    """An upload that is asked to stop leaves its parts, which the next one does not send again."""
    address = "s3://results/stopped"
    seen: list[int] = []
    with pytest.raises(StoppedError):
        upload(file, address, part_bytes=PART, progress=seen.append, stop=lambda: len(seen) >= 4)
    assert s3.get("stopped") is None
    files, _ = filesystem(address)
    before = files.call_s3("list_multipart_uploads", Bucket="results", Prefix="stopped")["Uploads"]
    upload(file, address, part_bytes=PART)
    assert s3.get("stopped") == file.read_bytes()
    assert len(before) == 1
    assert "stopped" not in unfinished(address)


def test_foreign_parts_do_not_count(s3: S3Server, file: Path) -> None:
    """Parts of another content, and uploads of the same key that were given up, never become the object."""
    address = "s3://results/foreign"
    files, _ = filesystem(address)
    place = {"Bucket": "results", "Key": "foreign"}
    for _ in range(2):
        begun = files.call_s3("create_multipart_upload", **place)["UploadId"]
        files.call_s3("upload_part", UploadId=begun, PartNumber=2, Body=b"\0" * PART, **place)
    upload(file, address, part_bytes=PART)
    assert s3.get("foreign") == file.read_bytes()
    assert "foreign" not in unfinished(address)


def test_another_object_is_replaced(s3: S3Server, file: Path) -> None:
    """An object of the same size with other bytes is sent again."""
    httpx.put(f"{s3.url}/results/replaced", content=bytes(file.stat().st_size))
    upload(file, "s3://results/replaced", part_bytes=PART)
    assert s3.get("replaced") == file.read_bytes()


def test_no_bucket(s3: S3Server, file: Path) -> None:
    """A store without that bucket is one sentence."""
    with pytest.raises(ConfigError, match="s3://nowhere/x cannot be reached: there is no such"):
        upload(file, "s3://nowhere/x", part_bytes=PART)
