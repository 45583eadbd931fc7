"""Parsing, validation and cost of chat completions. Pure functions of the response bytes."""

from collections.abc import Collection, Mapping
from typing import Any

import orjson

ACCEPTABLE = ("empty", "length", "content_filter")
"""Cases that make an answer a failure unless accepted."""
PRICES = ("prompt", "completion", "cached")
BYTES_A_TOKEN = 3.0
"""Conservative estimate for prompt tokens, corrected by the usage in the answer."""
GUESSED_ANSWER = 256
"""Estimated tokens of an answer without a limit, until its usage is known."""
_MILLION = 1e6


def read(body: bytes) -> dict[str, Any]:
    """Parse a completion.

    Raises:
        ValueError: the bytes are not a completion.
    """
    tree = orjson.loads(body)
    if not isinstance(tree, dict) or not isinstance(tree.get("choices"), list) or not tree["choices"]:
        raise ValueError("it has no choices")
    for choice in tree["choices"]:
        if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
            raise ValueError("a choice has no message")  # noqa: TRY004 - received data, no argument
    return tree


def usage_in(body: bytes) -> dict[str, Any]:
    """Return the usage in a response of any kind; empty if there is none."""
    try:
        usage = orjson.loads(body)["usage"]
    except (ValueError, KeyError, TypeError, IndexError):
        return {}
    return usage if isinstance(usage, dict) else {}


def complaint(tree: Mapping[str, Any], n: int, accept: Collection[str]) -> str | None:
    """Return why a completion is not a valid answer, or None if it is.

    Args:
        tree: the completion.
        n: number of requested answers.
        accept: cases from `ACCEPTABLE` to accept.
    """
    if len(tree["choices"]) < n:
        return f"it has {len(tree['choices'])} of {n} answers"
    for choice in tree["choices"]:
        reason, message = choice.get("finish_reason"), choice["message"]
        if reason in {"length", "content_filter"} and reason not in accept:
            what = "was cut off" if reason == "length" else "was withheld"
            return f"the answer {what} (finish_reason {reason})"
        content = message.get("content")
        if not content and not message.get("tool_calls") and "empty" not in accept and reason not in accept:
            refusal = message.get("refusal")
            return "the answer is empty" + (f": the model refuses ({refusal})" if refusal else "")
    return None


def spent(usage: Mapping[str, Any], prices: Mapping[str, float]) -> dict[str, float]:
    """Return token counts and, given prices, their cost.

    Args:
        usage: usage as reported by the server; prompt tokens include cached ones.
        prices: price per million tokens, by `PRICES`; `cached` defaults to the prompt price.
    """
    prompt, completion, cached = (
        _count(usage, "prompt_tokens"),
        _count(usage, "completion_tokens"),
        _cached(usage),
    )
    found: dict[str, float] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if cached:
        found["cached_tokens"] = cached
    if prices:
        price = prices.get("prompt", 0.0)
        whole = (prompt - cached) * price + cached * prices.get("cached", price)
        found["cost"] = (whole + completion * prices.get("completion", 0.0)) / _MILLION
    return found


def guess(body: bytes, n: int, options: Mapping[str, Any]) -> dict[str, int]:
    """Estimate a request's maximum usage: three bytes per token, plus the maximum answer length."""
    most = options.get("max_completion_tokens") or options.get("max_tokens") or GUESSED_ANSWER
    answer = int(most) if isinstance(most, int | float) else GUESSED_ANSWER
    return {"prompt_tokens": round(len(body) / BYTES_A_TOKEN), "completion_tokens": n * answer}


def _cached(usage: Mapping[str, Any]) -> int:
    """Return the cached prompt tokens, which servers report under different names."""
    details = usage.get("prompt_tokens_details")
    known = _count(details, "cached_tokens") if isinstance(details, Mapping) else 0
    known = known or _count(usage, "prompt_cache_hit_tokens") or _count(usage, "cache_read_input_tokens")
    return min(known, _count(usage, "prompt_tokens"))


def _count(tree: Mapping[str, Any], name: str) -> int:
    value = tree.get(name)
    return int(value) if isinstance(value, int | float) and value > 0 else 0
