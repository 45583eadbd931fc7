"""URIs of rows: a format, a path or fsspec URL, and for some formats options after a `#`.

csv://rows.csv#delimiter=semicolon&encoding=cp1252      s3://bucket/rows.jsonl.gz      rows.parquet
"""

from collections.abc import Collection
from urllib.parse import unquote

from fsspec import available_protocols

from asysi.contract.errors import ConfigError
from asysi.pipeline.formats.compression import ENDINGS

_FORMATS = {
    "csv": (".csv", ".tsv", ".tab"),
    "parquet": (".parquet", ".pq"),
    "jsonl": (".jsonl", ".ndjson", ".json", ".jsonlines"),
}
FORMATS = frozenset(_FORMATS)
"""Formats with their own URI scheme."""
PARQUET_OPTIONS = {"nan": ("null",), "binary": ("base64",), "decimal": ("text",), "duration": ("text",)}
"""Options for Parquet columns that JSON cannot represent, with their values."""


def with_format(uri: str, known: Collection[str]) -> str:
    """Return a URI with a format; for a path or the URL of a store, it is derived from the suffix.

    Args:
        uri: the given URI.
        known: registered stream protocols.

    Raises:
        ConfigError: it is the URL of a store with an unknown suffix.
    """
    protocol, separator, _ = uri.partition("://")
    if separator and (protocol in known or protocol not in available_protocols()):
        return uri
    found = format_of(uri)
    if separator and found is None:
        names = ", ".join(f"{name}://{uri}" for name in ("jsonl", "csv", "parquet"))
        raise ConfigError(f"{uri}: its ending does not say what it holds: write one of {names}")
    return f"{found or 'jsonl'}://{uri}"


def format_of(path: str) -> str | None:
    """Return the format for a file name's suffix, or None; a compression suffix is ignored."""
    name = path.partition("#")[0].lower()
    for ending in ENDINGS:
        name = name.removesuffix(ending)
    return next((kind for kind, endings in _FORMATS.items() if name.endswith(endings)), None)


def split_options(path: str, known: Collection[str], uri: str) -> tuple[str, dict[str, str]]:
    """Split a path and the options after its last `#`; a `#` not followed by `name=` is part of the path.

    Args:
        path: the part after the format.
        known: names of options.
        uri: the URI, for errors.

    Raises:
        ConfigError: an option is unknown.
    """
    rest, separator, text = path.rpartition("#")
    if not separator or "=" not in text:
        return path, {}
    options = {}
    for part in text.split("&"):
        name, _, value = part.partition("=")
        if name not in known:
            raise ConfigError(f"{uri} has no option {name!r}: it has {', '.join(known)}")
        options[name] = unquote(value)
    return rest, options


def location(uri: str) -> str:
    """Return the path or URL in a URI, without format and options."""
    protocol, separator, rest = uri.partition("://")
    path = rest if separator and protocol in FORMATS else uri
    if protocol == "jsonl":
        return path
    kept, separator, text = path.rpartition("#")
    return kept if separator and "=" in text else path
