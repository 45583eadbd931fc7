"""An S3 server whose parts may be small, and the environment to reach it."""

from collections.abc import Iterator

import pytest
from tests.s3 import S3Server, s3_server

PART = 1 << 14


@pytest.fixture(scope="session")
def running_s3() -> Iterator[S3Server]:
    """A server with the bucket `results`."""
    with s3_server("results", PART) as server:
        yield server


@pytest.fixture
def s3(running_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, reachable from this process and its children."""
    running_s3.reach(monkeypatch)
    return running_s3
