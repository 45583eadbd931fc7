"""Asks a language model about each row, over the API that OpenAI made common."""

import asyncio
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import orjson

from asysi.contract.errors import ConfigError
from asysi.pipeline.ids import FIELD
from asysi.pipeline.library.answers import Answer, Answers
from asysi.pipeline.library.client import Call, Client, Patience
from asysi.pipeline.library.pace import Pace
from asysi.pipeline.library.template import template
from asysi.pipeline.operators import BaseOperator, Made, NodeContext, Row

CACHE = "answers.sqlite"
_FIXED = frozenset({"model", "messages", "n", "stream"})
_BYTES_A_TOKEN = 3.0
"""A careful guess for the pace, put right when the answer says how many tokens it took."""
_GUESSED_ANSWER = 256
"""Tokens that an answer is taken to have until then, where nothing bounds it."""
_MILLION = 1e6


class Chat(BaseOperator):
    """Sends a prompt made of each row to a chat model, and puts its answer into the row.

    Calls wait on one thread however many there are: `parallel_size` × `batch_size` at once.

    What is paid for is kept: a request is noted before it is sent, and its answer is committed to a file
    before it is used, so no answer that arrived is ever paid for again. A kill can lose the calls that are on
    the way just then. They are sent again with the same idempotency key: a server that knows such keys
    charges once; with one that does not, each may be charged once more, and is reported as `unsure_calls`.

    Each call reports `requests`, `prompt_tokens`, `completion_tokens`, `total_tokens` and `cost` when the row
    that paid for it is committed, also if that happens only after a restart.

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
        prices: currency units for a million tokens: `prompt` and `completion`; makes `cost`.
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
            *("tries", "timeout", "deadline"),
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
        share: bool = True,
        cache: str | None = None,
        tries: int = 8,
        timeout: float = 120.0,
        deadline: float = 600.0,
    ) -> None:
        self.model, self.prompt, self.messages, self.system, self.output = (
            model,
            prompt,
            messages,
            system,
            output,
        )
        self.base_url, self.api_key_env, self.api_key_file = base_url, api_key_env, api_key_file
        self.options, self.n, self.finish, self.headers = dict(options or {}), n, finish, dict(headers or {})
        self.requests_per_minute, self.tokens_per_minute = requests_per_minute, tokens_per_minute
        self.prices, self.share, self.cache = dict(prices or {}), share, cache
        self.tries, self.timeout, self.deadline = tries, timeout, deadline
        self._check()
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._templates = [
            (role, template(text))
            for role, text in (("system", system), ("user", prompt))
            if text is not None
        ]
        self._open: _Open | None = None

    async def open(self, ctx: Any) -> None:
        """Read the key and open the file of answers.

        Raises:
            ConfigError: there is no key where it should be.
        """
        secret = _secret(self.api_key_env, self.api_key_file)
        headers = {**self.headers, "Content-Type": "application/json"}
        if secret is not None:
            headers["Authorization"] = f"Bearer {secret}"
        client = Client(
            self._url,
            headers,
            Patience(self.tries, self.timeout, self.deadline),
            requests=Pace(self.requests_per_minute) if self.requests_per_minute else None,
            tokens=Pace(self.tokens_per_minute) if self.tokens_per_minute else None,
            secret=secret,
        )
        self._open = _Open(client, Answers(Path(self.cache) if self.cache else ctx.folder / CACHE), {})

    async def close(self) -> None:
        """Close connections and file."""
        if self._open is not None:
            await self._open.client.close()
            await self._open.answers.close()
        self._open = None

    async def process_item(self, item: Row, ctx: Any = None) -> Made:  # type: ignore[override]
        """Return the row with the model's answer, or a row for each answer.

        Raises:
            ChatError: the server does not answer this request.
            ConfigError: it answers none like this.
            CanceledError: the run is ending, and the request was not sent.
        """
        ctx = ctx if ctx is not None else NodeContext("chat")
        body = self.request(item)
        owner = f"{ctx.pipeline_id}/{ctx.node_id}/{item.get(FIELD)}"
        answer = await self._answer(body, owner, ctx)
        self._report(answer, owner, ctx)
        rows = [self._row(item, choice) for choice in answer.tree["choices"]]
        return rows[0] if self.n == 1 else rows

    def request(self, item: Row) -> bytes:
        """Return the request that a row makes, as JSON.

        Raises:
            KeyError: the row has no such field as `messages`.
            jinja2.UndefinedError: a template asks for a field that the row does not have.
        """
        if self.messages is not None:
            messages = item[self.messages]
        else:
            messages = [{"role": role, "content": found.render(item)} for role, found in self._templates]
        tree = {"model": self.model, "messages": messages, **self.options}
        return orjson.dumps({**tree, "n": self.n} if self.n > 1 else tree)

    def _check(self) -> None:
        parts = urlsplit(self.base_url)
        problems = [
            problem
            for wrong, problem in (
                ((self.prompt is None) == (self.messages is None), "give either prompt or messages"),
                (
                    parts.scheme not in {"http", "https"},
                    f"base_url {parts.scheme}://… begins with no http(s)://",
                ),
                (
                    parts.password is not None,
                    "base_url holds a password: name the key by api_key_env or _file",
                ),
                (
                    any(name.lower() in {"authorization", "api-key", "x-api-key"} for name in self.headers),
                    "headers hold a key: name it by api_key_env or api_key_file",
                ),
                (bool(self.api_key_env and self.api_key_file), "give api_key_env or api_key_file, not both"),
                (self.n < 1 or self.tries < 1, "n and tries are 1 or more"),
                (self.timeout <= 0 or self.deadline <= 0, "timeout and deadline are above 0"),
                (
                    any(
                        pace is not None and pace <= 0
                        for pace in (self.requests_per_minute, self.tokens_per_minute)
                    ),
                    "requests_per_minute and tokens_per_minute are above 0",
                ),
                (
                    not set(self.prices) <= {"prompt", "completion"},
                    f"prices has {', '.join(self.prices)}: it may have prompt and completion",
                ),
                (
                    not _FIXED.isdisjoint(self.options),
                    f"options may not have {', '.join(sorted(_FIXED & set(self.options)))}",
                ),
            )
            if wrong
        ]
        if problems:
            raise ConfigError(*(f"chat: {problem}" for problem in problems))

    async def _answer(self, body: bytes, owner: str, ctx: Any) -> Answer:
        """Return the answer from the file, from a call that is on its way, or from a new one."""
        opened = self._opened()
        key = _key(self._url, body, None if self.share else owner)
        found = opened.answers.find(key)
        if found is not None:
            return found
        flying = opened.flying.get(key)
        if flying is None:
            flying = opened.flying[key] = asyncio.ensure_future(self._ask(key, body, owner, ctx))
            flying.add_done_callback(lambda _: opened.flying.pop(key))
        return await asyncio.shield(flying)

    async def _ask(self, key: bytes, body: bytes, owner: str, ctx: Any) -> Answer:
        opened = self._opened()
        unsure = 0

        def before() -> None:
            nonlocal unsure
            unsure = max(unsure, opened.answers.note(key))

        guess = len(body) / _BYTES_A_TOKEN + self.n * float(self.options.get("max_tokens") or _GUESSED_ANSWER)
        call = Call(ctx.is_cancelled, before, lambda: opened.answers.forget(key), guess)
        idempotency = {"Idempotency-Key": f"{opened.answers.salt}-{key.hex()}"}
        tree = await opened.client.post(body, idempotency, call)
        usage = tree.get("usage") or {}
        opened.client.correct(float(usage.get("total_tokens") or guess) - guess)
        spent = {**self._spent(usage), "requests": 1, "retries": call.tries - 1, "unsure_calls": unsure}
        kept = {"choices": tree["choices"], "model": tree.get("model", self.model), "spent": spent}
        answer = Answer(owner, kept)
        await opened.answers.keep(key, answer)
        return answer

    def _opened(self) -> "_Open":
        if self._open is None:
            raise ConfigError("chat: call open(ctx) before rows are processed")
        return self._open

    def _spent(self, usage: Mapping[str, Any]) -> dict[str, float]:
        prompt, completion = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        spent: dict[str, float] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        if self.prices:
            price, reply = self.prices.get("prompt", 0.0), self.prices.get("completion", 0.0)
            spent["cost"] = (prompt * price + completion * reply) / _MILLION
        return spent

    def _report(self, answer: Answer, owner: str, ctx: Any) -> None:
        """Book what the answer cost on the row that paid for it, whenever that row is committed."""
        provider = urlsplit(self.base_url).hostname or ""
        if answer.owner == owner:
            ctx.report_usage({"provider": provider, "model": answer.tree["model"], **answer.tree["spent"]})
        else:
            ctx.report_usage({"provider": provider, "model": answer.tree["model"], "shared_answers": 1})

    def _row(self, item: Row, choice: Mapping[str, Any]) -> Row:
        row = {**item, self.output: choice["message"].get("content")}
        if self.finish is not None:
            row[self.finish] = choice.get("finish_reason")
        return row


@dataclass(slots=True)
class _Open:
    """What an open operator holds: connections, paid answers, and calls on their way by their key."""

    client: Client
    answers: Answers
    flying: "dict[bytes, asyncio.Task[Answer]]"


def _key(url: str, body: bytes, owner: str | None) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in (url.encode(), body, (owner or "").encode()):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _secret(variable: str | None, file: str | None) -> str | None:
    """Return the key, None where none is wanted.

    Raises:
        ConfigError: it is not there.
    """
    if variable is not None:
        found = os.environ.get(variable, "").strip()
        if not found:
            raise ConfigError(f"chat: the environment has no {variable}, which should hold the key: set it")
        return found
    if file is not None:
        try:
            found = Path(file).read_text().strip()
        except OSError as error:
            raise ConfigError(f"chat: the key's file {file} cannot be read ({error.strerror})") from error
        if not found:
            raise ConfigError(f"chat: the key's file {file} is empty")
        return found
    return None
