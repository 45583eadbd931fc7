"""Uploads a file to S3 in parts; a later call continues what an interrupted one left.

An object becomes visible with the request that completes it, so no reader ever sees a part of a file. Parts
that already are in the store count only if their MD5 is that of the file's bytes.
"""

import base64
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from asysi.contract.errors import ConfigError
from asysi.locations import filesystem, reaching

PART_BYTES = 8 << 20
"""Bytes of a part; a file up to this size is sent in one request."""
_MAX_PARTS = 10_000
"""Limit of S3."""


class StoppedError(Exception):
    """The upload was asked to stop; the parts that were sent stay in the store for the next call."""


@dataclass(frozen=True)
class _FilePart:
    number: int
    """From 1."""
    body: bytes
    md5: bytes

    @property
    def etag(self) -> str:
        return f'"{self.md5.hex()}"'

    @property
    def digest(self) -> str:
        """Content-MD5, with which the store refuses bytes that changed on the way."""
        return base64.b64encode(self.md5).decode()


def upload(
    file: Path,
    address: str,
    *,
    progress: Callable[[int], None] = lambda _bytes: None,
    stop: Callable[[], bool] = lambda: False,
    part_bytes: int = PART_BYTES,
) -> None:
    """Upload a file that no longer changes to `s3://bucket/key`, unless the object already has its content.

    Args:
        file: the local file.
        address: address of the object.
        progress: called with the number of bytes that have become present in the store.
        stop: called before each request; if true, StoppedError is raised.
        part_bytes: bytes of a part, at least 5 MiB for S3; raised for files of more than 10,000 parts.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: the store cannot be reached, or has other bytes than were sent.
        StoppedError: `stop` returned true.
    """
    files, path = filesystem(address)
    bucket, key, _version = files.split_path(path)
    with file.open("rb") as stream, reaching(address):  # open until the end: it may be deleted meanwhile
        size = os.fstat(stream.fileno()).st_size
        part_bytes = max(part_bytes, -(-size // _MAX_PARTS))
        one = _Object(files, bucket, key, stop)
        if one.holds(size, _etag(stream, part_bytes)):
            progress(size)
        elif size <= part_bytes:
            (part,) = _parts(stream, part_bytes)
            one.put(part)
            progress(size)
        else:
            one.put_parts(_parts(stream, part_bytes), progress)
        found = one.size()
    if found != size:
        raise ConfigError(f"{address} has {found} bytes after {size} were sent: check the store, and resume")


def _parts(stream: BinaryIO, part_bytes: int) -> Iterator[_FilePart]:
    """Yield the parts of a file; an empty file has one empty part."""
    stream.seek(0)
    number = 1
    while (body := stream.read(part_bytes)) or number == 1:
        yield _FilePart(number, body, hashlib.md5(body, usedforsecurity=False).digest())
        number += 1


def _etag(stream: BinaryIO, part_bytes: int) -> str:
    """Return the ETag of S3 without encryption: of one part its MD5, of several the MD5 of their MD5s."""
    digests = [part.md5 for part in _parts(stream, part_bytes)]
    if len(digests) == 1:
        return f'"{digests[0].hex()}"'
    return f'"{hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"'


class _Object:
    """An object of a bucket, by the requests of S3's interface.

    Args:
        files: s3fs's file system; other calls of it would send parts on their own terms, or list a whole
            bucket.
        bucket: name of the bucket.
        key: name of the object in it.
        stop: called before each request that sends data.
    """

    def __init__(self, files: Any, bucket: str, key: str, stop: Callable[[], bool]) -> None:
        self._files, self._stop = files, stop
        self._place = {"Bucket": bucket, "Key": key}

    def size(self) -> int | None:
        """Return the object's size in bytes, None if there is none."""
        found = self._head()
        return None if found is None else int(found["ContentLength"])

    def holds(self, size: int, etag: str) -> bool:
        """Return whether the object has this content; with other ETags, as under encryption, False."""
        found = self._head()
        return found is not None and int(found["ContentLength"]) == size and found.get("ETag") == etag

    def put(self, part: _FilePart) -> None:
        """Send a small file in one request."""
        self._check()
        self._call("put_object", Body=part.body, ContentMD5=part.digest, **self._place)

    def put_parts(self, parts: Iterator[_FilePart], progress: Callable[[int], None]) -> None:
        """Send the missing parts, then complete the object; parts of other uploads of the key are deleted."""
        upload_id, sent = self._unfinished()
        if upload_id is None:
            upload_id = self._call("create_multipart_upload", **self._place)["UploadId"]
        here = {**self._place, "UploadId": upload_id}
        numbers = []
        for part in parts:
            if sent.get(part.number) != (part.etag, len(part.body)):
                self._check()
                self._call(
                    "upload_part", PartNumber=part.number, Body=part.body, ContentMD5=part.digest, **here
                )
            numbers.append(part.number)
            progress(len(part.body))
        self._check()
        found = self._sent(upload_id)  # the store's own ETags: under encryption they are no MD5
        made = [{"PartNumber": number, "ETag": found[number][0]} for number in numbers if number in found]
        self._call("complete_multipart_upload", MultipartUpload={"Parts": made}, **here)

    def _unfinished(self) -> tuple[str | None, dict[int, tuple[str, int]]]:
        """Return the last upload that was begun for the key, and its parts; abort the others."""
        try:
            begun = sorted(self._begun(), key=lambda one: str(one.get("Initiated", "")))
        except PermissionError:  # a key that may only write: what was left stays for the bucket's own rules
            return None, {}
        for one in begun[:-1]:
            self._call("abort_multipart_upload", UploadId=one["UploadId"], **self._place)
        if not begun:
            return None, {}
        last = begun[-1]["UploadId"]
        return last, self._sent(last)

    def _begun(self) -> Iterator[dict[str, Any]]:
        """Yield the uploads of the key that were begun and neither completed nor aborted."""
        bucket, key = self._place["Bucket"], self._place["Key"]
        marker: dict[str, str] = {}
        while True:
            page = self._call("list_multipart_uploads", Bucket=bucket, Prefix=key, **marker)
            yield from (one for one in page.get("Uploads") or () if one["Key"] == key)
            if not page.get("IsTruncated"):
                return
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _sent(self, upload_id: str) -> dict[int, tuple[str, int]]:
        """Return ETag and size of the parts in the store, by number."""
        found: dict[int, tuple[str, int]] = {}
        marker: dict[str, int] = {}
        while True:
            page = self._call("list_parts", UploadId=upload_id, **self._place, **marker)
            for one in page.get("Parts") or ():
                found[int(one["PartNumber"])] = (str(one["ETag"]), int(one["Size"]))
            if not page.get("IsTruncated"):
                return found
            marker = {"PartNumberMarker": int(page["NextPartNumberMarker"])}

    def _head(self) -> dict[str, Any] | None:
        try:
            return dict(self._call("head_object", **self._place))
        except FileNotFoundError:
            return None

    def _check(self) -> None:
        if self._stop():
            raise StoppedError

    def _call(self, request: str, **arguments: object) -> Any:
        return self._files.call_s3(request, **arguments)
