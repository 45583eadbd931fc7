"""A real S3-compatible server on loopback, for tests of what reads and writes stores."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import botocore.session
import httpx
import pytest
import s3fs

KEY, SECRET = "test-key", "not-to-be-seen-anywhere"


class S3Server:
    """moto's server as a process; it can be stopped and started again, empty, at the same address.

    Args:
        bucket: a bucket that it has.
        least_part: bytes that every part of an upload but the last must have; S3 demands 5 MiB.
    """

    def __init__(self, bucket: str, least_part: int = 5 << 20) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self._port = found.getsockname()[1]
        self.bucket, self._least_part = bucket, least_part
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)]
        environment = {**os.environ, "S3_UPLOAD_PART_MIN_SIZE": str(self._least_part)}
        self._process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 60
        while True:
            assert self._process.poll() is None
            assert time.monotonic() < until
            try:
                answer = httpx.put(f"{self.url}/{self.bucket}")
            except httpx.TransportError:
                time.sleep(0.1)
            else:
                assert answer.status_code == 200
                return

    def stop(self) -> None:
        """Kill it; what it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def get(self, key: str) -> bytes | None:
        """Return an object of the bucket, None if there is none."""
        client = self._client()
        try:
            found: bytes = client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        except client.exceptions.NoSuchKey:
            return None
        return found

    def keys(self, prefix: str) -> set[str]:
        """Return the names of the objects whose names begin with a prefix."""
        listed = self._client().list_objects_v2(Bucket=self.bucket, Prefix=prefix)
        return {one["Key"] for one in listed.get("Contents", ())}

    def _client(self) -> Any:
        return botocore.session.Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )

    def variables(self) -> dict[str, str]:
        """Return the environment variables with which a program reaches it."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_MAX_ATTEMPTS": "1",
        }

    def reach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this process and its children reach it, and no other server that was reached before."""
        for name, value in self.variables().items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def s3_server(bucket: str, least_part: int = 5 << 20) -> Iterator[S3Server]:
    """Yield a running server."""
    server = S3Server(bucket, least_part)
    try:
        server.start()
        yield server
    finally:
        server.stop()
