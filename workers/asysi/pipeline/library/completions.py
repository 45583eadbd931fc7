"""What a chat completion is, whether it is an answer, and what it cost: pure functions of its bytes."""

from collections.abc import Collection, Mapping
from typing import Any

import orjson

ACCEPTABLE = ("empty", "length", "content_filter")
"""What makes an answer a failure unless it is accepted."""
PRICES = ("prompt", "completion", "cached")
BYTES_A_TOKEN = 3.0
"""A careful guess of a prompt's tokens, put right when the answer says how many they were."""
GUESSED_ANSWER = 256
"""Tokens that an answer is taken to have until then, where nothing bounds it."""
_MILLION = 1e6


def read(body: bytes) -> dict[str, Any]:
    """Return a completion.

    Raises:
        ValueError: the bytes are not one.
    """
    tree = orjson.loads(body)
    if not isinstance(tree, dict) or not isinstance(tree.get("choices"), list) or not tree["choices"]:
        raise ValueError("it has no choices")
    for choice in tree["choices"]:
        if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
            raise ValueError("a choice has no message")  # noqa: TRY004 - of what arrived, not of ours
    return tree


def usage_in(body: bytes) -> dict[str, Any]:
    """Return the usage that an answer names, whatever else it is; empty where it names none."""
    try:
        usage = orjson.loads(body)["usage"]
    except (ValueError, KeyError, TypeError, IndexError):
        return {}
    return usage if isinstance(usage, dict) else {}


def complaint(tree: Mapping[str, Any], n: int, accept: Collection[str]) -> str | None:
    """Return why a completion is not an answer, None where it is one.

    Args:
        tree: the completion.
        n: answers that were asked for.
        accept: of `ACCEPTABLE`, what is an answer all the same.
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
    """Return the tokens of a usage and, where there are prices, their cost.

    Args:
        usage: as the server says it; cached tokens are part of the prompt's.
        prices: for a million tokens, by `PRICES`; `cached` is the prompt's where it is not named.
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
    """Return about what usage a request will have at most: three bytes a token, and its longest answer."""
    most = options.get("max_completion_tokens") or options.get("max_tokens") or GUESSED_ANSWER
    answer = int(most) if isinstance(most, int | float) else GUESSED_ANSWER
    return {"prompt_tokens": round(len(body) / BYTES_A_TOKEN), "completion_tokens": n * answer}


def _cached(usage: Mapping[str, Any]) -> int:
    """Return the tokens of the prompt that the server had in its cache, as servers spell them."""
    details = usage.get("prompt_tokens_details")
    known = _count(details, "cached_tokens") if isinstance(details, Mapping) else 0
    known = known or _count(usage, "prompt_cache_hit_tokens") or _count(usage, "cache_read_input_tokens")
    return min(known, _count(usage, "prompt_tokens"))


def _count(tree: Mapping[str, Any], name: str) -> int:
    value = tree.get(name)
    return int(value) if isinstance(value, int | float) and value > 0 else 0
