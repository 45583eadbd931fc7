"""Client for a chat completions server, with deadlines, retries and rate limits."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tenacity

from asysi.contract.errors import ConfigError
from asysi.pipeline.library.connections import BROKEN_OFF, CONNECT_ERRORS, Connections, Response
from asysi.pipeline.library.pace import RateLimit
from asysi.pipeline.library.waiting import retry_after
from asysi.pipeline.operators.operator import CanceledError

_SHOWN = 300
"""Characters of a server's response shown in an error."""
_AGAIN = frozenset({408, 409, 425, 429})
_NEVER = frozenset({401, 402, 403, 404, 405})
_FREE = frozenset({503})
"""Server errors that mean that no work was done; others may be sent after the work was done."""
_SPENT = ("insufficient_quota", "billing_hard_limit_reached")
"""Codes of a 429 that retrying does not resolve."""
_LOOK = 0.5
"""Seconds between checks of a waiting call whether the run is ending."""
_log = logging.getLogger("asysi.pipeline")


class ChatError(Exception):
    """The server rejects this request: the row fails; other rows may succeed."""


class ChatBusyError(ChatError):
    """The server was busy, broken or unreachable; raised after the last attempt has failed.

    Attributes:
        after: seconds that the server asked to wait, None if not given.
    """

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class ChatAnswerError(ChatError):
    """The server answered and the call was billed, but the answer is empty, truncated or withheld."""


class ChatAccessError(ConfigError):
    """The server rejects all such requests: wrong key, no credit, unknown address or model."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Retry policy of a call.

    Attributes:
        tries: maximum number of attempts, >= 1.
        timeout: seconds per attempt, > 0.
        deadline: seconds for all attempts including pauses, > 0.
        pause, longest: first and maximum back-off in seconds if the server gives none; exponential, with
            jitter.
    """

    tries: int = 8
    timeout: float = 120.0
    deadline: float = 600.0
    pause: float = 0.5
    longest: float = 30.0


@dataclass(slots=True)
class Call:
    """A call in progress.

    Attributes:
        ending: returns whether the run is ending; a waiting call then gives up.
        before: called before each attempt.
        refused: called if an attempt was rejected and therefore not billed.
        lost: called if an attempt gave no response and may have been billed; the argument says whether the
            server may still have been processing it.
        arrived: called with the body of a successful response; returns the answer or raises if invalid.
        tokens: estimated tokens, for the rate limit.
        tries: number of attempts so far.
    """

    ending: Callable[[], bool]
    before: Callable[[], None]
    refused: Callable[[], None]
    lost: Callable[[bool], None]
    arrived: Callable[[bytes], Awaitable[Any]]
    tokens: float = 0.0
    tries: int = field(default=0)


class Client:
    """Client for one URL; use from one event loop only.

    Args:
        url: URL to post requests to.
        headers: headers of every request; may contain a key, so they are never logged.
        patience: retry policy.
        requests, tokens: rate limits for requests and tokens, None for no limit.
        secret: text to redact from errors.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        patience: RetryPolicy,
        *,
        requests: RateLimit | None = None,
        tokens: RateLimit | None = None,
        secret: str | None = None,
    ) -> None:
        self._url, self._patience, self._secret = url, patience, secret
        self._requests, self._tokens = requests, tokens
        self._connections = Connections(url, headers, min(10.0, patience.timeout))

    async def post(self, body: bytes, headers: Mapping[str, str], call: Call) -> Any:
        """Send a request and return the result of `call.arrived`.

        Raises:
            ChatError: the server rejects it, or all attempts failed.
            ChatAccessError: the server rejects all such requests.
            CanceledError: the run is ending and the request was not sent.
        """
        patience = self._patience
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(patience.tries) | tenacity.stop_before_delay(patience.deadline),
            wait=self._pause,
            retry=tenacity.retry_if_exception_type(ChatBusyError),
            sleep=lambda seconds: _rest(seconds, call.ending),
            before_sleep=self._tell,
            reraise=True,
        )
        return await retrying(self._try, body, headers, call)

    def correct(self, tokens: float) -> None:
        """Correct the rate limit by the difference between actual and estimated tokens of a call."""
        if self._tokens is not None:
            self._tokens.correct(tokens)

    async def close(self) -> None:
        """Close the connections."""
        await self._connections.close()

    async def _try(self, body: bytes, headers: Mapping[str, str], call: Call) -> Any:
        await _rest(self._turn(call), call.ending)
        call.before()
        call.tries += 1
        try:
            async with asyncio.timeout(self._patience.timeout):
                response = await self._connections.post(body, headers)
        except CONNECT_ERRORS as error:
            call.refused()
            raise ChatBusyError(self._clean(f"{self._url} cannot be reached ({_said(error)})")) from error
        except TimeoutError as error:
            call.lost(True)
            message = f"{self._url} did not answer within {self._patience.timeout:g} s"
            raise ChatBusyError(message) from error
        except BROKEN_OFF as error:
            call.lost(True)
            raise ChatBusyError(self._clean(f"{self._url} closed the connection ({_said(error)})")) from error
        if not 200 <= response.status < 300:
            if response.status in _FREE or response.status < 500:
                call.refused()
            else:
                call.lost(False)
            raise self._error(response)
        try:
            return await call.arrived(response.content)
        except ChatError as error:
            raise type(error)(self._clean(f"{self._url} {error}")) from error

    def _turn(self, call: Call) -> float:
        waits = [0.0]
        if self._requests is not None:
            waits.append(self._requests.reserve())
        if self._tokens is not None:
            waits.append(self._tokens.reserve(call.tokens))
        return max(waits)

    def _error(self, response: Response) -> Exception:
        code = response.status
        said = self._clean(f"{self._url} answered {code}: {response.text[:_SHOWN]!r}")
        if code in _NEVER or (code == 429 and any(word in response.text for word in _SPENT)):
            return ChatAccessError(f"{said}. Check key, account, address and model: all requests would fail")
        if code in _AGAIN or code >= 500:
            return ChatBusyError(said, retry_after(response.headers, body=response.content))
        return ChatError(said)

    def _pause(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.after if isinstance(error, ChatBusyError) else None
        if asked is not None:
            return asked
        most = min(self._patience.longest, self._patience.pause * 2 ** (state.attempt_number - 1))
        return random.uniform(most / 2, most)  # noqa: S311 - jitter, not cryptography

    def _tell(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        _log.info(
            "[Retry] attempt %d failed, next in %.2f s: %s", state.attempt_number, state.upcoming_sleep, error
        )

    def _clean(self, text: str) -> str:
        return text.replace(self._secret, "***") if self._secret else text


async def _rest(seconds: float, ending: Callable[[], bool]) -> None:
    """Sleep, checking periodically whether the run is ending.

    Raises:
        CanceledError: the run is ending.
    """
    until = time.monotonic() + seconds
    while True:
        if ending():
            raise CanceledError("the run is ending")
        left = until - time.monotonic()
        if left <= 0:
            return
        await asyncio.sleep(min(left, _LOOK))


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
