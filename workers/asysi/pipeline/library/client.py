"""Calls to a server of OpenAI's chat completions: each with its deadline, its retries, its place in line."""

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
"""Characters of a server's words in an error."""
_AGAIN = frozenset({408, 409, 425, 429})
_NEVER = frozenset({401, 402, 403, 404, 405})
_FREE = frozenset({503})
"""Answers of a broken server that tell that it did nothing; others may come after the work was done."""
_SPENT = ("insufficient_quota", "billing_hard_limit_reached")
"""Codes of a 429 that waiting does not cure."""
_LOOK = 0.5
"""Seconds after which a call that waits looks whether the run is ending."""
_log = logging.getLogger("asysi.pipeline")


class ChatError(Exception):
    """The server does not answer this request: the row fails, others may not."""


class ChatBusyError(ChatError):
    """The server was busy, broken or out of reach; raised when the last try has failed.

    Attributes:
        after: seconds that the server asked to wait, None if it did not say.
    """

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class ChatAnswerError(ChatError):
    """The server answered, and was paid, but the answer is empty, cut off or withheld."""


class ChatAccessError(ConfigError):
    """The server refuses every request like this: wrong key, no credit, no such address or model."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call is tried.

    Attributes:
        tries: how often at most, >= 1.
        timeout: seconds that one try may take, > 0.
        deadline: seconds that all tries and the pauses between them may take, > 0.
        pause, longest: the first pause and the longest one where the server names none, seconds; they double,
            with jitter.
    """

    tries: int = 8
    timeout: float = 120.0
    deadline: float = 600.0
    pause: float = 0.5
    longest: float = 30.0


@dataclass(slots=True)
class Call:
    """A call on its way.

    Attributes:
        ending: whether the run is ending: a call that waits then gives up.
        before: called before each try.
        refused: called when a try was refused, so that it cost nothing.
        lost: called when a try brought nothing and may have been paid for; with whether the server was still
            at work on it.
        arrived: called with the body of a success; returns the answer in it, or raises what is wrong with it.
        tokens: what it may take, for the pace.
        tries: how often it was sent.
    """

    ending: Callable[[], bool]
    before: Callable[[], None]
    refused: Callable[[], None]
    lost: Callable[[bool], None]
    arrived: Callable[[bytes], Awaitable[Any]]
    tokens: float = 0.0
    tries: int = field(default=0)


class Client:
    """A connection to one address; belongs to one event loop.

    Args:
        url: where requests are posted.
        headers: what every request carries; may hold a key, so nothing prints it.
        patience: how long a call is tried.
        requests, tokens: pace in requests and in tokens, None for none.
        secret: text that no error may show.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        patience: Patience,
        *,
        requests: RateLimit | None = None,
        tokens: RateLimit | None = None,
        secret: str | None = None,
    ) -> None:
        self._url, self._patience, self._secret = url, patience, secret
        self._requests, self._tokens = requests, tokens
        self._connections = Connections(url, headers, min(10.0, patience.timeout))

    async def post(self, body: bytes, headers: Mapping[str, str], call: Call) -> Any:
        """Return what `call.arrived` makes of the answer to a request.

        Raises:
            ChatError: the server refuses it, or has not answered within the patience.
            ChatAccessError: it refuses every such request.
            CanceledError: the run is ending, and the request was not sent.
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
        """Book tokens that a call took beyond what was estimated (or, if negative, did not take)."""
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
            raise ChatBusyError(self._clean(f"{self._url} broke off ({_said(error)})")) from error
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
            return ChatAccessError(f"{said}. Check key, account, address and model: no request would do")
        if code in _AGAIN or code >= 500:
            return ChatBusyError(said, retry_after(response.headers, body=response.content))
        return ChatError(said)

    def _pause(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.after if isinstance(error, ChatBusyError) else None
        if asked is not None:
            return asked
        most = min(self._patience.longest, self._patience.pause * 2 ** (state.attempt_number - 1))
        return random.uniform(most / 2, most)  # noqa: S311 - spreads load, hides nothing

    def _tell(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        _log.info(
            "[Retry] try %d failed, next in %.2f s: %s", state.attempt_number, state.upcoming_sleep, error
        )

    def _clean(self, text: str) -> str:
        return text.replace(self._secret, "***") if self._secret else text


async def _rest(seconds: float, ending: Callable[[], bool]) -> None:
    """Sleep, and look from time to time whether the run is ending.

    Raises:
        CanceledError: it is.
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
