"""Asks a language model about each row, over the API that OpenAI made common."""

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
from asysi.pipeline.library.client import Call, ChatAnswerError, ChatBusyError, ChatError, Client, Patience
from asysi.pipeline.library.pace import RateLimit
from asysi.pipeline.library.template import template
from asysi.pipeline.operators.operator import BaseOperator, Made, NodeContext, Row
from asysi.pipeline.rows.ids import FIELD

CACHE = "answers.sqlite"
_SHOWN = 300
"""Characters of a server's words in an error."""


class Chat(BaseOperator):
    """Sends a prompt made of each row to a chat model, and puts its answer into the row.

    Calls wait on one thread however many there are: `parallel_size` × `batch_size` at once.

    What is paid for is kept: a request is noted before it is sent, and what arrives is committed to a file
    before it is read, so no answer that arrived is ever paid for again. A kill can lose the calls that are on
    the way just then. They are sent again with the same idempotency key: a server that knows such keys
    charges once; with one that does not, each may be charged once more, and is reported as `unsure_calls`.

    An answer that is empty, was cut off at the longest length or was withheld by a filter fails its row, and
    is never taken from the file for another: `accept` names what is an answer all the same.

    Each call reports `requests`, `prompt_tokens`, `completion_tokens`, `total_tokens` and `cost` when the row
    that paid for it is committed, also if that happens only after a restart, and also if the row failed. Of a
    call that timed out or broke off nobody knows what it cost: its prompt and longest answer are booked, and
    counted in `unsure_calls` and `unsure_tokens`.

    Args:
        model: name of the model.
        prompt: template of the user's message over the row's fields; or
        messages: field of the row that holds a list of messages.
        system: template of a system message before the prompt.
        output: field for the answer.
        base_url: address of the server, without `/chat/completions`.
        api_key_env, api_key_file: environment variable or file with the key; neither: no key is sent.
        options: more fields of the request, as the server knows them (`temperature`, `max_tokens`,
            `response_format`, `seed`).
        n: answers to a request, >= 1; with several, each becomes a row.
        finish: field for the reason why the answer ended, None for none.
        headers: more headers. No key belongs here, as they are stored in the image.
        requests_per_minute, tokens_per_minute: the pace; calls wait for their turn. None: as fast as it goes.
        prices: currency units for a million tokens: `prompt`, `completion`, and `cached` for those of the
            prompt that the server had in its cache; makes `cost`.
        accept: of `empty`, `length` and `content_filter`, what does not fail a row.
        share: whether rows with the same request share one answer; else each row has one of its own.
        cache: file of paid answers, by default in the pipeline's folder; pipelines may share one.
        tries, timeout, deadline: see `Patience`.

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
        """Return what it was made with, by name: that identifies it."""
        return as_params(self._asked, self._server, self._answers)

    async def open(self, ctx: Any) -> None:
        """Read the key and open the file of answers.

        Raises:
            ConfigError: there is no key where it should be.
        """
        server, cache = self._server, self._answers.cache
        secret = server.secret()
        headers = {**server.headers, "Content-Type": "application/json"}
        if secret is not None:
            headers["Authorization"] = f"Bearer {secret}"
        client = Client(
            server.url,
            headers,
            Patience(server.tries, server.timeout, server.deadline),
            requests=RateLimit(server.requests_per_minute) if server.requests_per_minute else None,
            tokens=RateLimit(server.tokens_per_minute) if server.tokens_per_minute else None,
            secret=secret,
        )
        self._open = _Open(client, Answers(Path(cache) if cache else ctx.folder / CACHE), {})

    async def close(self) -> None:
        """Close connections and file."""
        if self._open is not None:
            await self._open.client.close()
            await self._open.answers.close()
        self._open = None

    async def process_item(self, item: Row, ctx: Any = None) -> Made:  # type: ignore[override]
        """Return the row with the model's answer, or a row for each answer.

        Raises:
            ChatError: the server does not answer this request, or not as wanted.
            ConfigError: it answers none like this.
            CanceledError: the run is ending, and the request was not sent.
        """
        ctx = ctx if ctx is not None else NodeContext("chat")
        body = self.request(item)
        # In one redrive per row pays anew: what it had spent before is booked already.
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
        """Return the request that a row makes, as JSON.

        Raises:
            KeyError: the row has no such field as `messages`.
            jinja2.UndefinedError: a template asks for a field that the row does not have.
        """
        if self._asked.messages is not None:
            messages = item[self._asked.messages]
        else:
            messages = [{"role": role, "content": found.render(item)} for role, found in self._templates]
        tree = {"model": self._asked.model, "messages": messages, **self._asked.options}
        return orjson.dumps({**tree, "n": self._asked.n} if self._asked.n > 1 else tree)

    def preview(self, item: Row) -> tuple[list[Row], dict[str, float]]:
        """Return rows as they would be made of a row, without their answers, and what asking would cost.

        Raises:
            KeyError: the row has no such field as `messages`.
            jinja2.UndefinedError: a template asks for a field that the row does not have.
        """
        guessed = completions.guess(self.request(item), self._asked.n, self._asked.options)
        rows = [{**item, self._answers.output: ""} for _ in range(self._asked.n)]
        return rows, {"requests": 1, **completions.spent(guessed, self._answers.prices)}

    def preview_remarks(self) -> list[str]:
        """Return what a preview takes for granted."""
        most = completions.guess(b"", 1, self._asked.options)["completion_tokens"]
        return [
            f"prompts at {completions.BYTES_A_TOKEN:g} bytes a token, answers of {most} tokens; answers that"
            " are kept already cost nothing"
        ]

    async def _answer(self, key: bytes, body: bytes, owner: str, ctx: Any) -> "_Read":
        """Return the answer from the file, from a call that is on its way, or from a new one."""
        opened = self._opened()
        found = opened.answers.find(key)
        if found is not None:
            try:
                return self._judged(found)
            except (
                ChatError
            ):  # arrived, but was not judged before a kill; or was accepted then, and is no more
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
        """Return an answer, read.

        Raises:
            ChatBusyError: it is not a completion: the server is broken.
            ChatAnswerError: it is empty, cut off or withheld, and that is not accepted.
        """
        if not isinstance(answer.body, bytes):  # of an earlier version
            tree, spent = answer.body, answer.body["spent"]
        else:
            try:
                tree = completions.read(answer.body)
            except ValueError as error:
                text = answer.body[:_SHOWN].decode(errors="replace")
                raise ChatBusyError(f"sent no chat completion ({error}): {text!r}") from error
            spent = {**self._paid(answer), "retries": answer.retries}
        if why := completions.complaint(tree, self._asked.n, self._answers.accept):
            raise ChatAnswerError(f"was paid, but {why}: to take it as an answer, name it in accept")
        return _Read(answer.owner, tree, spent)

    def _paid(self, answer: Answer) -> dict[str, float]:
        """Return what an answer that arrived has cost."""
        if not isinstance(answer.body, bytes):
            return dict(answer.body["spent"])
        usage = completions.spent(completions.usage_in(answer.body), self._answers.prices)
        return {**usage, "requests": 1, "unsure_calls": answer.unsure}

    def _opened(self) -> "_Open":
        if self._open is None:
            raise ConfigError("chat: call open(ctx) before rows are processed")
        return self._open

    def _report_failures(self, key: bytes, owner: str, ctx: Any) -> None:
        """Book what this row's failed calls cost, or may have cost."""
        provider = self._server.provider
        for spent in self._opened().answers.failures(key, owner):
            ctx.report_usage({"provider": provider, "model": self._asked.model, **spent})

    def _report(self, answer: "_Read", owner: str, ctx: Any) -> None:
        """Book what the answer cost on the row that paid for it, whenever that row is committed."""
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
    """What an open operator holds: connections, paid answers, and calls on their way by their key."""

    client: Client
    answers: Answers
    flying: "dict[bytes, asyncio.Task[_Read]]"


@dataclass(frozen=True, slots=True)
class _Read:
    """An answer, read: the row that paid for it, the completion, and what it cost."""

    owner: str
    tree: Mapping[str, Any]
    spent: Mapping[str, float]


def _key(url: str, body: bytes, owner: str | None) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in (url.encode(), body, (owner or "").encode()):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
