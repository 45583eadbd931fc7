"""Parses the retry delay from a server's response, in all common forms."""

import email.utils
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime

import orjson

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_IN_TEXT = re.compile(
    r"(?:try again|retry) (?:in|after) ((?:\d+(?:\.\d+)?(?:ms|h|m|s))+|\d+(?:\.\d+)? ?s)", re.IGNORECASE
)
_MILLISECONDS = ("retry-after-ms", "x-ms-retry-after-ms")
_RESETS = (
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    ("anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset"),
    ("anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("ratelimit-remaining", "ratelimit-reset"),
)
"""Headers with the rest of a limit and the time of its reset."""
_EPOCH = 1e9
"""From this value on, a number is a timestamp, not a duration (2001 in Unix seconds)."""
_LONGEST = 86_400.0
"""Maximum delay in seconds; more than a day is ignored."""


def retry_after(
    headers: Mapping[str, str], now: Callable[[], float] = time.time, body: bytes = b""
) -> float | None:
    """Return the seconds to wait before a retry, or None if the response does not say.

    Supports `Retry-After` (RFC 9110, 10.2.3) in seconds or as a date in any of its three forms, its variants
    in milliseconds, the reset time of an exhausted limit, and delays in the body.

    Args:
        headers: response headers, lower case.
        now: current Unix time in seconds.
        body: response body.
    """
    for name in _MILLISECONDS:
        if (found := _number(headers.get(name, ""))) is not None:
            return _wait(found / 1000)
    if (found := _moment(headers.get("retry-after", ""), now)) is not None:
        return _wait(found)
    waits = [
        wait
        for left, reset in _RESETS
        if headers.get(left, "").strip() in {"0", "0.0"}
        and (wait := _wait(_moment(headers.get(reset, ""), now))) is not None
    ]
    return max(waits) if waits else _wait(_in_body(body, now))


def _wait(seconds: float | None) -> float | None:
    return max(0.0, seconds) if seconds is not None and seconds <= _LONGEST else None


def _moment(text: str, now: Callable[[], float]) -> float | None:
    """Convert a number, a duration or a date to seconds from now."""
    text = text.strip()
    if (number := _number(text)) is not None:
        return number - now() if number >= _EPOCH else number
    if (seconds := _duration(text)) is not None:
        return seconds
    for parse in (email.utils.parsedate_to_datetime, _iso):
        try:
            date = parse(text)
        except (ValueError, TypeError, IndexError):
            continue
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now()
    return None


def _iso(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _duration(text: str) -> float | None:
    """Return the seconds of `1h2m3.5s`, `6m0s`, `20ms`."""
    found = _DURATION.fullmatch(text.replace(" ", ""))
    if not text or found is None:
        return None
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def _in_body(body: bytes, now: Callable[[], float]) -> float | None:
    """Return the delay in an error body: a `retryDelay` or `retry_after` field, or text."""
    try:
        tree = orjson.loads(body)
    except orjson.JSONDecodeError:
        tree = None
    for name, value in _fields(tree):
        if name.lower().replace("_", "") in {"retrydelay", "retryafter", "retryafterseconds"}:
            found = _moment(str(value), now) if isinstance(value, str | int | float) else None
            if found is not None:
                return found
    said = _IN_TEXT.search(body.decode(errors="replace"))
    return _duration(said[1].replace(" ", "")) if said else None


def _fields(tree: object, depth: int = 8) -> Iterator[tuple[str, object]]:
    if depth and isinstance(tree, dict):
        for name, value in tree.items():
            yield str(name), value
            yield from _fields(value, depth - 1)
    elif depth and isinstance(tree, list):
        for value in tree:
            yield from _fields(value, depth - 1)
