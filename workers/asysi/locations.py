"""Addresses of local files and folders, and of remote fsspec stores (`s3://`, `hf://`, `https://`).

Errors of remote stores are reported as one sentence: a missing package, an endpoint that does not respond, a
missing key. A remote address is never mistaken for a local folder named `s3:`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asysi.contract.errors import ConfigError

_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
}
_HINTS = (
    ("NoCredentialsError", "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ("EndpointConnectionError", "its endpoint does not answer: check AWS_ENDPOINT_URL and the network"),
    ("ConnectTimeoutError", "its endpoint does not answer: check AWS_ENDPOINT_URL and the network"),
    ("ConnectError", "it does not answer: check the address and the network"),
    ("ClientConnectorError", "it does not answer: check the address and the network"),
    ("FileNotFoundError", "there is no such file, folder or bucket"),
    ("PermissionError", "access is denied: check the key and what it may do"),
    ("NoSuchBucket", "there is no such bucket"),
)
_LOST_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+]+):/(?!/)")
"""Matches an address normalised by `Path`: `s3:/bucket`."""
_SHOWN = 200


def is_remote(address: str) -> bool:
    """Return whether an address refers to a remote store rather than a local path."""
    protocol, separator, _ = address.partition("://")
    return bool(separator) and protocol not in {"file", "local"}


def local_folder(address: str | Path, name: str, why: str = "it must be a folder of this machine") -> Path:
    """Return the path of a local folder, optionally given as `file://folder`.

    Args:
        address: the address.
        name: name of the setting, for error messages.
        why: why it cannot be a remote store.

    Raises:
        ConfigError: the address refers to a remote store.
    """
    text = str(address)
    if isinstance(address, Path):
        text = _LOST_SLASH.sub(r"\1://", text, count=1) if _LOST_SLASH.match(text) else text
    if is_remote(text):
        raise ConfigError(f"{name} is {text}: {why}; give a path")
    return Path(text.removeprefix("file://").removeprefix("local://"))


def given(path: Path) -> str | Path:
    """Return a path of the command line, or the address in a store that `Path` took a slash from."""
    text = _LOST_SLASH.sub(r"\1://", str(path), count=1)
    return text if is_remote(text) else path


def filesystem(address: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address, and the path in it.

    Raises:
        ConfigError: the protocol is unknown, or its package is not installed.
    """
    import fsspec  # noqa: PLC0415 - slow to import

    try:
        files, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        protocol = address.partition("://")[0]
        package = _PACKAGES.get(protocol)
        what = f"pip install {package}" if package else str(error)
        raise ConfigError(
            f"{address}: {protocol}:// needs a package that is not installed: {what}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{address}: {error}") from error
    return files, str(path)


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """Convert errors of remote stores to a ConfigError; errors of local files are passed through.

    Raises:
        ConfigError: the store does not respond, denies access, or does not have the file.
    """
    if not is_remote(address):
        yield
        return
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if _is_from_store(error):
            raise ConfigError(f"{address} cannot be reached: {_said(error)}") from error
        raise


def upload(file: Path, address: str) -> None:
    """Upload a finished local file to a store atomically: objects become visible when complete.

    Raises:
        ConfigError: the store cannot be reached, or the uploaded size differs.
    """
    files, path = filesystem(address)
    with reaching(address):
        files.makedirs(files._parent(path), exist_ok=True)
        files.put_file(str(file), path)
        files.invalidate_cache()
        found, sent = files.size(path), file.stat().st_size
    if found != sent:
        raise ConfigError(f"{address} has {found} bytes after {sent} were sent: check the store, and resume")


def _is_from_store(error: BaseException) -> bool:
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError | TimeoutError) or bool(
        modules & {"botocore", "aiobotocore", "aiohttp", "httpx", "huggingface_hub", "requests", "google"}
    )


def _said(error: BaseException) -> str:
    """Return an error message in one line, from the error or its cause."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    names = [kind.__name__ for found in reversed(chain) for kind in type(found).__mro__]
    texts = " ".join(map(str, chain))
    for name, hint in _HINTS:
        if name in names or name in texts:
            return hint
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:_SHOWN]
