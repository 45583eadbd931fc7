"""Calls a language model for each row over an OpenAI-compatible chat completions API."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import orjson

from asysi.contract.errors import ConfigError
from asysi.pipeline.library import completions
from asysi.pipeline.library.answers import Answer, Answers
from asysi.pipeline.library.chat_parameters import (
    ChatAnswers,
    ChatRequest,
    ChatServer,
    as_params,
    refuse_problems,
)
from asysi.pipeline.library.client import Call, ChatAnswerError, ChatBusyError, ChatError, Client, RetryPolicy
from asysi.pipeline.library.pace import RateLimit
from asysi.pipeline.library.template import template
from asysi.pipeline.operators.operator import BaseOperator, Made, NodeContext, Row
from asysi.pipeline.rows.ids import FIELD

CACHE = "answers.sqlite"
_SHOWN = 300
"""Characters of a server's response shown in an error."""


class Chat(BaseOperator):
    """Sends a prompt built from each row to a chat model and adds the answer to the row.

    All calls share one event loop thread; `parallel_size` × `batch_size` run concurrently.

    Answers are persistent: a request is recorded before it is sent, and the response is committed to a file
    before it is parsed, so that no received answer is billed again. A kill can lose the calls in flight. They
    are sent again with the same idempotency key: a server that supports such keys charges once; otherwise
    each may be charged once more and is reported as `unsure_calls`.

    An answer that is empty, was truncated at the maximum length or was withheld by a content filter fails its
    row and is never reused for another row; `accept` lists the cases to accept nevertheless.

    Each call reports `requests`, `prompt_tokens`, `completion_tokens`, `total_tokens` and `cost` when the row
    that is charged for it is committed, even after a restart or if the row failed. The cost of a call that
    timed out or was cut off is unknown: its prompt and maximum answer are counted, and reported in
    `unsure_calls` and `unsure_tokens`.

    Args:
        model: name of the model.
        prompt: template of the user message over the row's fields; or
        messages: field of the row that holds a list of messages.
        system: template of a system message before the prompt.
        output: field for the answer.
        base_url: address of the server, without `/chat/completions`.
        api_key_env, api_key_file: environment variable or file with the key; with neither, no key is sent.
        options: additional request fields supported by the server (`temperature`, `max_tokens`,
            `response_format`, `seed`).
        n: answers per request, >= 1; with several, each becomes a row.
        finish: field for the finish reason, None for none.
        headers: additional headers. Don't put a key here: headers are stored in the pipeline's state.
        requests_per_minute, tokens_per_minute: rate limits; None: unlimited.
        prices: currency units per million tokens: `prompt`, `completion`, and `cached` for prompt tokens that
            the server had in its cache; used to compute `cost`.
        accept: which of `empty`, `length` and `content_filter` do not fail a row.
        share: whether rows with identical requests share one answer.
        cache: file of the answer cache, by default in the pipeline's folder; pipelines may share one.
        tries, timeout, deadline: see `RetryPolicy`.

    Raises:
        ConfigError: a parameter is wrong.
    """

    waits = True
    free: ClassVar[frozenset[str]] = frozenset(
        {
            *("api_key_env", "api_key_file", "requests_per_minute", "tokens_per_minute", "prices", "cache"),
            *("tries", "timeout", "deadline", "accept"),
        }
    )

    def __init__(
        self,
        model: str,
        prompt: str | None = None,
        *,
        messages: str | None = None,
        system: str | None = None,
        output: str = "answer",
        base_url: str = "https://api.openai.com/v1",
        api_key_env: str | None = None,
        api_key_file: str | None = None,
        options: Mapping[str, Any] | None = None,
        n: int = 1,
        finish: str | None = None,
        headers: Mapping[str, str] | None = None,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        prices: Mapping[str, float] | None = None,
        accept: Sequence[str] = (),
        share: bool = True,
        cache: str | None = None,
        tries: int = 8,
        timeout: float = 120.0,
        deadline: float = 600.0,
    ) -> None:
        self._asked = ChatRequest(model, prompt, messages, system, dict(options or {}), n)
        self._server = ChatServer(
            base_url,
            api_key_env,
            api_key_file,
            dict(headers or {}),
            requests_per_minute,
            tokens_per_minute,
            tries,
            timeout,
            deadline,
        )
        self._answers = ChatAnswers(output, finish, dict(prices or {}), list(accept), share, cache)
        refuse_problems(self._asked, self._server, self._answers)
        self._templates = [
            (role, template(text))
            for role, text in (("system", system), ("user", prompt))
            if text is not None
        ]
        self._open: _Open | None = None

    def params(self) -> dict[str, Any]:
        """Return the constructor arguments by name, which identify the operator."""
        return as_params(self._asked, self._server, self._answers)

    async def open(self, ctx: Any) -> None:
        """Read the API key and open the answer cache.

        Raises:
            ConfigError: the key is missing.
        """
        server, cache = self._server, self._answers.cache
        secret = server.secret()
        headers = {**server.headers, "Content-Type": "application/json"}
        if secret is not None:
            headers["Authorization"] = f"Bearer {secret}"
        client = Client(
            server.url,
            headers,
            RetryPolicy(server.tries, server.timeout, server.deadline),
            requests=RateLimit(server.requests_per_minute) if server.requests_per_minute else None,
            tokens=RateLimit(server.tokens_per_minute) if server.tokens_per_minute else None,
            secret=secret,
        )
        self._open = _Open(client, Answers(Path(cache) if cache else ctx.folder / CACHE), {})

    async def close(self) -> None:
        """Close the connections and the cache."""
        if self._open is not None:
            await self._open.client.close()
            await self._open.answers.close()
        self._open = None

    async def process_item(self, item: Row, ctx: Any = None) -> Made:  # type: ignore[override]
        """Return the row with the model's answer, or one row per answer.

        Raises:
            ChatError: the server rejects this request, or its answer is not acceptable.
            ConfigError: it rejects all such requests.
            CanceledError: the run is ending and the request was not sent.
        """
        ctx = ctx if ctx is not None else NodeContext("chat")
        body = self.request(item)
        # Each redrive charges a row separately: its earlier usage has already been reported.
        again = f"#{ctx.round}" if ctx.round else ""
        owner = f"{ctx.pipeline_id}/{ctx.node_id}/{item.get(FIELD)}{again}"
        key = _key(self._server.url, body, None if self._answers.share else owner)
        try:
            answer = await self._answer(key, body, owner, ctx)
        except Exception:
            self._report_failures(key, owner, ctx)
            raise
        self._report_failures(key, owner, ctx)
        self._report(answer, owner, ctx)
        rows = [self._row(item, choice) for choice in answer.tree["choices"]]
        return rows[0] if self._asked.n == 1 else rows

    def request(self, item: Row) -> bytes:
        """Return the request for a row, as JSON.

        Raises:
            KeyError: the row lacks the field named by `messages`.
            jinja2.UndefinedError: a template uses a field that the row does not have.
        """
        if self._asked.messages is not None:
            messages = item[self._asked.messages]
        else:
            messages = [{"role": role, "content": found.render(item)} for role, found in self._templates]
        tree = {"model": self._asked.model, "messages": messages, **self._asked.options}
        return orjson.dumps({**tree, "n": self._asked.n} if self._asked.n > 1 else tree)

    def preview(self, item: Row) -> tuple[list[Row], dict[str, float]]:
        """Return the output rows without answers, and the estimated usage of the call.

        Raises:
            KeyError: the row lacks the field named by `messages`.
            jinja2.UndefinedError: a template uses a field that the row does not have.
        """
        guessed = completions.guess(self.request(item), self._asked.n, self._asked.options)
        rows = [{**item, self._answers.output: ""} for _ in range(self._asked.n)]
        return rows, {"requests": 1, **completions.spent(guessed, self._answers.prices)}

    def preview_remarks(self) -> list[str]:
        """Return the assumptions of a preview."""
        most = completions.guess(b"", 1, self._asked.options)["completion_tokens"]
        return [
            f"prompts at {completions.BYTES_A_TOKEN:g} bytes per token, answers of {most} tokens; cached"
            " answers cost nothing"
        ]

    async def _answer(self, key: bytes, body: bytes, owner: str, ctx: Any) -> "_Read":
        """Return the answer from the cache, from a call in flight, or from a new call."""
        opened = self._opened()
        found = opened.answers.find(key)
        if found is not None:
            try:
                return self._judged(found)
            except ChatError:  # arrived but not validated before a kill, or accepted then and no longer
                opened.answers.reject(key, self._paid(found))
        flying = opened.flying.get(key)
        if flying is None:
            flying = opened.flying[key] = asyncio.ensure_future(self._ask(key, body, owner, ctx))
            flying.add_done_callback(lambda _: opened.flying.pop(key))
        return await asyncio.shield(flying)

    async def _ask(self, key: bytes, body: bytes, owner: str, ctx: Any) -> "_Read":
        opened = self._opened()
        guessed = completions.guess(body, self._asked.n, self._asked.options)
        tokens = sum(guessed.values())
        unsure = 0

        def before() -> None:
            nonlocal unsure
            unsure = max(unsure, opened.answers.note(key))

        def lost(at_work: bool) -> None:
            spent: dict[str, float] = {"unsure_calls": 1}
            if at_work:
                spent |= {**completions.spent(guessed, self._answers.prices), "unsure_tokens": tokens}
            opened.answers.lose(key, owner, spent)

        async def arrived(content: bytes) -> _Read:
            nonlocal unsure
            answer, unsure = Answer(owner, content, call.tries - 1, unsure), 0
            await opened.answers.keep(key, answer)
            opened.client.correct((completions.usage_in(content).get("total_tokens") or tokens) - tokens)
            try:
                return self._judged(answer)
            except ChatError:
                opened.answers.reject(key, self._paid(answer))
                raise

        refused = partial(opened.answers.forget, key)
        call = Call(ctx.is_cancelled, before, refused, lost, arrived, float(tokens))
        idempotency = {"Idempotency-Key": f"{opened.answers.salt}-{key.hex()}"}
        read: _Read = await opened.client.post(body, idempotency, call)
        return read

    def _judged(self, answer: Answer) -> "_Read":
        """Parse and validate an answer.

        Raises:
            ChatBusyError: it is not a chat completion: a server error.
            ChatAnswerError: it is empty, truncated or withheld, and that is not accepted.
        """
        if not isinstance(answer.body, bytes):  # stored by an earlier version
            tree, spent = answer.body, answer.body["spent"]
        else:
            try:
                tree = completions.read(answer.body)
            except ValueError as error:
                text = answer.body[:_SHOWN].decode(errors="replace")
                raise ChatBusyError(f"sent no chat completion ({error}): {text!r}") from error
            spent = {**self._paid(answer), "retries": answer.retries}
        if why := completions.complaint(tree, self._asked.n, self._answers.accept):
            raise ChatAnswerError(f"was paid, but {why}: to accept such answers, list it in accept")
        return _Read(answer.owner, tree, spent)

    def _paid(self, answer: Answer) -> dict[str, float]:
        """Return the usage and cost of a received answer."""
        if not isinstance(answer.body, bytes):
            return dict(answer.body["spent"])
        usage = completions.spent(completions.usage_in(answer.body), self._answers.prices)
        return {**usage, "requests": 1, "unsure_calls": answer.unsure}

    def _opened(self) -> "_Open":
        if self._open is None:
            raise ConfigError("chat: call open(ctx) before rows are processed")
        return self._open

    def _report_failures(self, key: bytes, owner: str, ctx: Any) -> None:
        """Report the actual or possible cost of this row's failed calls."""
        provider = self._server.provider
        for spent in self._opened().answers.failures(key, owner):
            ctx.report_usage({"provider": provider, "model": self._asked.model, **spent})

    def _report(self, answer: "_Read", owner: str, ctx: Any) -> None:
        """Report the answer's cost on the row that is charged for it; other rows report a shared answer."""
        provider, model = self._server.provider, answer.tree.get("model", self._asked.model)
        if answer.owner == owner:
            ctx.report_usage({"provider": provider, "model": model, **answer.spent})
        else:
            ctx.report_usage({"provider": provider, "model": model, "shared_answers": 1})

    def _row(self, item: Row, choice: Mapping[str, Any]) -> Row:
        row = {**item, self._answers.output: choice["message"].get("content")}
        if self._answers.finish is not None:
            row[self._answers.finish] = choice.get("finish_reason")
        return row


@dataclass(slots=True)
class _Open:
    """State of an open operator: connections, answer cache, and calls in flight by key."""

    client: Client
    answers: Answers
    flying: "dict[bytes, asyncio.Task[_Read]]"


@dataclass(frozen=True, slots=True)
class _Read:
    """A parsed answer: the row charged for it, the completion, and its cost."""

    owner: str
    tree: Mapping[str, Any]
    spent: Mapping[str, float]


def _key(url: str, body: bytes, owner: str | None) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in (url.encode(), body, (owner or "").encode()):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
