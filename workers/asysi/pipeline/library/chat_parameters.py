"""The parameters of `Chat`, frozen: request, server, and answer handling."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from asysi.contract.errors import ConfigError
from asysi.pipeline.library.completions import ACCEPTABLE, PRICES

_FIXED = frozenset({"model", "messages", "n", "stream"})
_KEYS = frozenset({"authorization", "api-key", "x-api-key"})


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """How a request is built from a row; see `Chat` for the fields."""

    model: str
    prompt: str | None
    messages: str | None
    system: str | None
    options: dict[str, Any]
    n: int

    def problems(self) -> Iterator[str]:
        """Yield what is wrong, a sentence each."""
        if (self.prompt is None) == (self.messages is None):
            yield "give either prompt or messages"
        if self.n < 1:
            yield "n is 1 or more"
        if not _FIXED.isdisjoint(self.options):
            yield f"options may not have {', '.join(sorted(_FIXED & set(self.options)))}"


@dataclass(frozen=True, slots=True)
class ChatServer:
    """The server, rate limits and retries; see `Chat` for the fields."""

    base_url: str
    api_key_env: str | None
    api_key_file: str | None
    headers: dict[str, str]
    requests_per_minute: float | None
    tokens_per_minute: float | None
    tries: int
    timeout: float
    deadline: float

    @property
    def url(self) -> str:
        """Address of chat completions."""
        return f"{self.base_url.rstrip('/')}/chat/completions"

    @property
    def provider(self) -> str:
        """Host name of the server."""
        return urlsplit(self.base_url).hostname or ""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong, a sentence each."""
        parts = urlsplit(self.base_url)
        if parts.scheme not in {"http", "https"}:
            yield f"base_url {parts.scheme}://… does not start with http:// or https://"
        if parts.password is not None:
            yield "base_url holds a password: pass the key with api_key_env or api_key_file"
        if any(name.lower() in _KEYS for name in self.headers):
            yield "headers hold a key: pass it with api_key_env or api_key_file"
        if self.api_key_env and self.api_key_file:
            yield "give api_key_env or api_key_file, not both"
        if self.tries < 1:
            yield "tries is 1 or more"
        if self.timeout <= 0 or self.deadline <= 0:
            yield "timeout and deadline are above 0"
        if any(pace is not None and pace <= 0 for pace in (self.requests_per_minute, self.tokens_per_minute)):
            yield "requests_per_minute and tokens_per_minute are above 0"

    def secret(self) -> str | None:
        """Return the API key, or None if none is configured.

        Raises:
            ConfigError: it is missing.
        """
        if self.api_key_env is not None:
            found = os.environ.get(self.api_key_env, "").strip()
            if not found:
                raise ConfigError(
                    f"chat: the environment has no {self.api_key_env}, which must contain the API key: set it"
                )
            return found
        if self.api_key_file is not None:
            file = self.api_key_file
            try:
                found = Path(file).read_text().strip()
            except OSError as error:
                raise ConfigError(f"chat: the key's file {file} cannot be read ({error.strerror})") from error
            if not found:
                raise ConfigError(f"chat: the key's file {file} is empty")
            return found
        return None


@dataclass(frozen=True, slots=True)
class ChatAnswers:
    """Answer handling: which are accepted, output fields, prices, cache; see `Chat` for the fields."""

    output: str
    finish: str | None
    prices: dict[str, float]
    accept: list[str]
    share: bool
    cache: str | None

    def problems(self) -> Iterator[str]:
        """Yield what is wrong, a sentence each."""
        if not set(self.prices) <= set(PRICES):
            yield f"prices has {', '.join(self.prices)}: it may have {', '.join(PRICES)}"
        if not set(self.accept) <= set(ACCEPTABLE):
            yield f"accept has {', '.join(self.accept)}: it may have {', '.join(ACCEPTABLE)}"


def refuse_problems(*parts: ChatRequest | ChatServer | ChatAnswers) -> None:
    """Validate the parameters.

    Raises:
        ConfigError: all problems found, one sentence each.
    """
    problems = [f"chat: {problem}" for part in parts for problem in part.problems()]
    if problems:
        raise ConfigError(*problems)


def as_params(*parts: ChatRequest | ChatServer | ChatAnswers) -> dict[str, Any]:
    """Return the fields of all parts by name, as keyword arguments of `Chat`."""
    return {name: getattr(part, name) for part in parts for name in part.__dataclass_fields__}
