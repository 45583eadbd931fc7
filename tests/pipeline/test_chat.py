"""The chat operator against servers that misbehave in every way that servers do."""

import asyncio
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi.cli import main
from asysi.contract.errors import ConfigError
from asysi.pipeline import BaseOperator, RowError, StreamFactory, UnifiedPipeline
from asysi.pipeline.library.chat import Chat
from asysi.pipeline.library.pace import MINUTE, RateLimit
from asysi.pipeline.library.waiting import retry_after

KEY = "sk-very-secret-1234"


class Server:
    """Answers each request with the next of a script, and then properly."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.now = self.most = 0
        self.pause = 0.0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                outer.handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.bodies.append(body)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            prompt = body["messages"][-1]["content"]
            step = 400 if "REFUSE" in prompt else self.script.pop(0) if self.script else 200
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.pause)
        with self._lock:
            self.now -= 1
        self._send(handler, body, *(step if isinstance(step, tuple) else (step,)))

    def _send(
        self, handler: Any, body: dict[str, Any], status: Any, text: str = "", more: Any = None
    ) -> None:
        if status == "hang":
            time.sleep(1.5)
            status = "close"
        if status == "close":
            handler.close_connection = True
            return
        data = text.encode() if text else json.dumps(self.answer(body) if status == 200 else {}).encode()
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(more or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    @staticmethod
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        words = body["messages"][-1]["content"].split()
        choices = [
            {"message": {"role": "assistant", "content": f"{words[-1]}!{n}"}, "finish_reason": "stop"}
            for n in range(body.get("n", 1))
        ]
        usage = {"prompt_tokens": len(words), "completion_tokens": 2}
        return {"model": "stub-1", "choices": choices, "usage": usage}


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chat(server: Server, prompt: str = "Say {{ text }}", **settings: Any) -> Chat:
    return Chat("m", prompt, base_url=server.url, **settings)


def pipeline(
    operator: Any, rows: int = 4, texts: list[str] | None = None, **settings: Any
) -> UnifiedPipeline:
    texts = texts or [f"word{n}" for n in range(rows)]
    Path("in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return UnifiedPipeline([operator], "jsonl://in.jsonl", "jsonl://out.jsonl", **settings)


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


def test_each_row_gets_the_answer_to_its_prompt(server: Server) -> None:
    """Templates over the row make the messages, options go along, the answer lands in its field."""
    operator = chat(server, system="Be brief", options={"temperature": 0.5}, output="reply", finish="why")
    pipeline(operator, 3).create("p").run()
    assert [(row["text"], row["reply"], row["why"]) for row in read()] == [
        (f"word{n}", f"word{n}!0", "stop") for n in range(3)
    ]
    assert server.bodies[0]["temperature"] == 0.5
    assert [message["role"] for message in server.bodies[0]["messages"]] == ["system", "user"]


def test_messages_of_the_row_are_sent_as_they_are(server: Server) -> None:
    """A row may bring its conversation."""
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    messages.append({"role": "user", "content": "and now"})
    Path("in.jsonl").write_text(json.dumps({"chat": messages}) + "\n")
    operator = Chat("m", messages="chat", base_url=server.url)
    UnifiedPipeline([operator], "jsonl://in.jsonl", "jsonl://out.jsonl").create("p").run()
    assert server.bodies[0]["messages"] == messages
    assert read()[0]["answer"] == "now!0"


def test_several_answers_become_several_rows(server: Server) -> None:
    """§5.1: with n answers a row becomes n rows with ids of their own, for one paid call."""
    report = pipeline(chat(server, n=3), 2).create("p").run()
    assert [row["_i"] for row in read()] == ["0_0", "0_1", "0_2", "1_0", "1_1", "1_2"]
    assert report.usage["requests"] == 2


def test_usage_and_cost_are_reported(server: Server) -> None:
    """§5.2, §10.1: tokens add up over the run, and prices a million make the cost."""
    report = pipeline(chat(server, prices={"prompt": 1e6, "completion": 5e5}), 4).create("p").run()
    assert report.usage["prompt_tokens"] == 8
    assert report.usage["completion_tokens"] == 8
    assert report.usage["cost"] == 8 + 4


@pytest.mark.parametrize(
    "step",
    [
        (429, "{}", {"Retry-After": "0.05"}),
        500,
        503,
        "close",
        (200, "<html>"),
        (200, '{"choices": []}'),
        (200, '{"object": 1}'),
    ],
)
def test_what_may_pass_is_tried_again(server: Server, step: Any) -> None:
    """429, 5xx, broken connections and answers that are none are tried again, and said in the log."""
    server.script = [step]
    report = pipeline(chat(server), 1).create("p").run()
    assert read()[0]["answer"] == "word0!0"
    assert report.usage["retries"] == 1
    assert Path("logs/platform.log").read_text().count("[Retry]") == 1


def test_a_wait_that_the_server_asks_for_is_kept(server: Server) -> None:
    """After Retry-After nothing is sent earlier."""
    server.script = [(429, "{}", {"Retry-After": "0.4"})]
    began = time.monotonic()
    pipeline(chat(server), 1).create("p").run()
    assert time.monotonic() - began >= 0.4


NOVEMBER = 784111777
"""Sunday, 6 November 1994, 08:49:37 GMT."""


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"retry-after": "7"}, b"", 7),
        ({"retry-after": "1.5"}, b"", 1.5),
        ({"retry-after": " 250ms "}, b"", 0.25),
        ({"retry-after": "6m0s"}, b"", 360),
        ({"retry-after": "1h2m3.5s"}, b"", 3723.5),
        ({"retry-after": "-3"}, b"", 0),
        ({"retry-after": "Sun, 06 Nov 1994 08:50:07 GMT"}, b"", 30),
        ({"retry-after": "Sunday, 06-Nov-94 08:50:07 GMT"}, b"", 30),
        ({"retry-after": "Sun Nov  6 08:50:07 1994"}, b"", 30),
        ({"retry-after": "1994-11-06T08:50:07Z"}, b"", 30),
        ({"retry-after": str(NOVEMBER + 500_000_000)}, b"", None),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:07 GMT"}, b"", 0),
        ({"retry-after-ms": "1200", "retry-after": "9"}, b"", 1.2),
        ({"x-ms-retry-after-ms": "40"}, b"", 0.04),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20ms",
          "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "2s"}, b"", 2),
        ({"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "9s"}, b"", None),
        ({}, b'{"error": {"details": [{"@type": "RetryInfo", "retryDelay": "7s"}]}}', 7),
        ({}, b'{"detail": {"retry_after": 3}}', 3),
        ({}, b'{"error": {"message": "Rate limit. Please try again in 1m20.5s."}}', 80.5),
        ({}, b'{"error": {"message": "Please retry after 10 s"}}', 10),
        ({"retry-after": "soon"}, b"", None),
        ({"retry-after": "nan"}, b"", None),
        ({}, b"", None),
    ],
)  # fmt: skip
def test_retry_after_in_every_spelling(headers: dict[str, str], body: bytes, seconds: float | None) -> None:
    """Seconds, durations, milliseconds, dates in all three forms, limits that are exhausted, and words."""
    found = retry_after(headers, lambda: NOVEMBER, body)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_a_try_has_a_timeout_and_all_of_them_an_end(server: Server) -> None:
    """A server that hangs costs `timeout` a try; after `tries` the row fails and says why."""
    server.script = ["hang"] * 4
    with pytest.raises(RowError, match=r"ChatBusyError: .* did not answer within 0\.2 s"):
        pipeline(chat(server, timeout=0.2, tries=2), 1).create("p").run()
    assert len(server.bodies) == 2


def test_no_try_begins_behind_the_deadline(server: Server) -> None:
    """A wait that would end behind the deadline is not begun."""
    server.script = [(429, "{}", {"Retry-After": "3600"})] * 3
    with pytest.raises(RowError, match="answered 429"):
        pipeline(chat(server, deadline=1.0), 1).create("p").run()
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "step", [401, 403, 404, (429, '{"error": {"code": "insufficient_quota"}}', {"Retry-After": "1"})]
)
def test_what_no_row_survives_ends_the_run(server: Server, step: Any) -> None:
    """Wrong key, no credit, no such model end the run, also where rows may be dead letters."""
    server.script = [step] * 50
    made = pipeline(chat(server), 20, on_error="dead_letter").create("p")
    with pytest.raises(RowError, match="ChatAccessError") as caught:
        made.run()
    assert isinstance(caught.value.__cause__, ConfigError)
    assert len(server.bodies) == 1


def test_a_refused_request_is_its_rows_own_matter(server: Server) -> None:
    """§14.1: a 400 is not tried again; that row becomes a dead letter, the others are answered."""
    texts = ["a", "REFUSE this", "c"]
    report = pipeline(chat(server), texts=texts, on_error="dead_letter", batch_size=3).create("p").run()
    assert [row["text"] for row in read()] == ["a", "c"]
    assert report.dead == 1
    assert len(server.bodies) == 3
    letter = json.loads(Path("tmp/p/dead_letters/1_Chat.jsonl").read_text())
    assert letter["reason"] == "ChatError"


def test_the_key_is_sent_and_stands_nowhere(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key from environment or file goes to the server, and into no file or error."""
    monkeypatch.setenv("STUB_KEY", KEY)
    server.script = [(400, f"no {KEY}"), (429, f"slow {KEY}", {"Retry-After": "0"}), 200]
    operator = chat(server, api_key_env="STUB_KEY")
    pipeline(operator, 2, on_error="dead_letter").create("p").run()
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    Path("key").write_text(f"{KEY}\n")
    pipeline(chat(server, api_key_file="key"), 1).create("q", overwrite=True).run()
    assert server.headers[-1]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"api_key_env": "NO_SUCH_KEY"}, "the environment has no NO_SUCH_KEY"),
        ({"api_key_file": "nowhere"}, "key's file nowhere cannot be read"),
    ],
)
def test_a_missing_key_is_said_before_any_call(server: Server, settings: Any, words: str) -> None:
    """A key that is not where it should be ends the run before anything is sent."""
    with pytest.raises(ConfigError, match=words):
        pipeline(chat(server, **settings)).create("p").run()
    assert server.bodies == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompt": None}, "prompt or messages"),
        ({"messages": "chat"}, "prompt or messages"),
        ({"prompt": "{{ text"}, "template"),
        ({"base_url": "ftp://x"}, "http"),
        ({"base_url": "http://me:secret@x"}, "holds a password"),
        ({"headers": {"Authorization": "Bearer x"}}, "hold a key"),
        ({"options": {"stream": True}}, "may not have stream"),
        ({"prices": {"input": 1}}, "prices has input"),
        ({"n": 0}, "1 or more"),
        ({"timeout": 0}, "above 0"),
    ],
)
def test_wrong_parameters_are_named(settings: dict[str, Any], words: str) -> None:
    """What cannot work is refused when the operator is made."""
    with pytest.raises(ConfigError, match=words):
        Chat("m", **{"prompt": "x", **settings})


def test_calls_of_a_batch_wait_together_on_one_thread() -> None:
    """Coroutine operators have a batch's rows in flight at once, without a thread for each."""
    threads = set()
    barrier = asyncio.Barrier(60)

    class Waiting(BaseOperator):
        async def process_item(self, item: Any, ctx: Any = None) -> Any:
            threads.add(threading.current_thread())
            async with asyncio.timeout(20):
                await barrier.wait()  # passes only when 60 rows wait here
            return item

    pipeline(Waiting(), 120, batch_size=30, parallel_size=2).create("p").run()
    assert len(threads) == 1
    assert len(read()) == 120


def test_a_coroutine_may_take_a_whole_batch() -> None:
    """§5.1: process_batch may be a coroutine function too."""

    async def tag(items: Any, ctx: Any) -> Any:
        await asyncio.sleep(0)
        return [{**item, "batch": len(items)} for item in items]

    pipeline(tag, 5, batch_size=2).create("p").run()
    assert [row["batch"] for row in read()] == [2, 2, 2, 2, 1]


def test_rows_with_the_same_request_share_an_answer(server: Server) -> None:
    """Equal requests are paid for once, also when on their way together; unless told not to."""
    server.pause = 0.02
    report = pipeline(chat(server), texts=["same"] * 6, batch_size=6).create("p").run()
    assert len(server.bodies) == 1
    assert (report.usage["requests"], report.usage["shared_answers"]) == (1, 5)
    report = pipeline(chat(server, share=False), texts=["same"] * 6).create("q", overwrite=True).run()
    assert report.usage["requests"] == 6
    assert len({headers["idempotency-key"] for headers in server.headers}) == 7


def test_pipelines_may_share_what_was_paid(server: Server) -> None:
    """With one cache a second pipeline pays nothing for the same requests, and books nothing."""
    pipeline(chat(server, cache="paid.sqlite"), 5).create("p").run()
    report = pipeline(chat(server, cache="paid.sqlite"), 5).create("q", overwrite=True).run()
    assert len(server.bodies) == 5
    assert report.usage == {"shared_answers": 5}
    assert [row["answer"] for row in read()] == [f"word{n}!0" for n in range(5)]


def test_a_cache_that_is_none_is_refused(server: Server) -> None:
    """A file that holds no answers is named, and left alone."""
    Path("paid.sqlite").write_text("not a database, but long enough to be looked at" * 40)
    with pytest.raises(ConfigError, match=r"paid\.sqlite holds no answers"):
        pipeline(chat(server, cache="paid.sqlite")).create("p").run()
    assert Path("paid.sqlite").read_text().startswith("not a database")


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_spent_budget_ends_the_run_and_a_larger_one_goes_on(server: Server, parallel: int) -> None:
    """A budget ends a run cleanly, beyond it only calls on their way; nothing is paid twice."""
    server.pause = 0.01
    settings = {"batch_size": 4, "parallel_size": parallel}
    made = pipeline(chat(server), 120, budget={"requests": 20}, **settings).create("p")
    assert made.run().status == "budget_exhausted"
    assert 20 <= len(server.bodies) <= 20 + 2 * 4 * parallel
    assert not Path("out.jsonl.done").exists()
    report = UnifiedPipeline([chat(server)], budget={"requests": 1000}).resume("p").run()
    assert report.status == "completed"
    assert [row["_i"] for row in read()] == list(range(120))
    assert len(server.bodies) == report.usage["requests"] == 120


def test_a_call_that_waits_gives_up_when_the_run_is_canceled(server: Server) -> None:
    """§4.1, §5.2: cancel() does not wait for a Retry-After of an hour; the row is asked again on resume."""
    server.script = [200, (429, "{}", {"Retry-After": "500"})]
    made = pipeline(chat(server), 6, batch_size=3).create("p")

    def cancel() -> None:
        while len(server.bodies) < 3:
            time.sleep(0.01)
        made.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    began = time.monotonic()
    assert made.run().status == "canceled"
    assert time.monotonic() - began < 100
    thread.join()
    assert UnifiedPipeline([chat(server)]).resume("p").run().status == "completed"
    assert [row["_i"] for row in read()] == list(range(6))
    assert len(server.bodies) == 7


def test_pace_and_key_may_change_on_resume_and_the_prompt_may_not(server: Server) -> None:
    """What rows do not depend on may change; what they do depend on is refused by name."""
    made = pipeline(chat(server), 10, budget={"requests": 2}).create("p")
    made.run()
    with pytest.raises(ConfigError, match="its prompt was"):
        UnifiedPipeline([chat(server, "Tell {{ text }}")]).resume("p")
    again = UnifiedPipeline([chat(server, timeout=9, requests_per_minute=6000)], budget={"requests": 100})
    assert again.resume("p").run().status == "completed"


def test_a_call_of_unknown_end_is_counted(server: Server) -> None:
    """A request sent again after a broken connection is reported as one that may have cost twice."""
    server.script = ["close", 503, 200]
    report = pipeline(chat(server), 1).create("p").run()
    assert (report.usage["requests"], report.usage["unsure_calls"]) == (1, 1)


def test_the_pace_is_kept(server: Server) -> None:
    """`requests_per_minute` spreads calls: 40 at 1,830 a minute take 1/3 of a second at least."""
    began = time.monotonic()
    pipeline(chat(server, requests_per_minute=1830), 40, batch_size=40).create("p").run()
    assert time.monotonic() - began >= (40 - 31) / 30


@given(st.floats(1, 500), st.lists(st.tuples(st.floats(0, 20), st.floats(0.1, 3)), min_size=1, max_size=200))
def test_no_minute_has_more_than_its_rate(rate: float, calls: list[tuple[float, float]]) -> None:
    """Whenever calls come, no minute that begins with one has more units than allowed, but for it."""
    now = 0.0
    pace = RateLimit(rate, lambda: now)
    sent = []
    for gap, units in calls:
        now += gap
        sent.append((now + pace.reserve(units), units))
    for index, (begin, units) in enumerate(sent):
        others = sum(more for at, more in sent[index + 1 :] if begin <= at < begin + MINUTE - 1e-6)
        assert others <= rate + units + max(more for _, more in sent)


def test_tokens_that_were_not_taken_are_given_back() -> None:
    """The pace in tokens follows what calls took, not what they were guessed to take."""
    pace = RateLimit(6100, lambda: 0.0)
    pace.reserve(1000)
    pace.correct(-900)
    assert pace.reserve(1) == pytest.approx(1.0)
    pace.correct(1000)
    assert pace.reserve(1) == pytest.approx(11.01)


def test_memory_buses_carry_answers_too(server: Server) -> None:
    """§1: the operator works on any bus, streaming."""
    source = StreamFactory.create("memory://questions")
    with source.get_writer() as writer:
        writer.write([{"text": "one"}, {"text": "two"}])
    made = UnifiedPipeline(
        [chat(server), chat(server, output="more")], "memory://questions", "jsonl://out.jsonl"
    )
    made.create("p", streaming=True, default_protocol="memory://").run()
    assert [(row["answer"], row["more"]) for row in read()] == [("one!0",) * 2, ("two!0",) * 2]
    assert len(server.bodies) == 2


def answer(content: Any = "yes", reason: str = "stop", **more: Any) -> tuple[int, str]:
    """Return a paid answer as a step of a script."""
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": reason}
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    return 200, json.dumps({"model": "stub-1", "choices": [choice], "usage": usage, **more})


PRICES = {"prompt": 1e6, "completion": 1e6}
UNWANTED = {
    "empty": answer(""),
    "null": answer(None),
    "length": answer("half an ans", "length"),
    "content_filter": answer("", "content_filter"),
}


@pytest.mark.parametrize("kind", UNWANTED)
def test_an_unwanted_answer_fails_is_booked_and_never_cached(server: Server, kind: str) -> None:
    """Empty, cut off and withheld answers fail their row, cost what they cost, and are asked for again."""
    server.script = [UNWANTED[kind], 200, UNWANTED[kind]]
    made = pipeline(chat(server, prices=PRICES), 2, on_error="dead_letter").create("p")
    report = made.run()
    assert report.dead == 1
    assert [row["text"] for row in read()] == ["word1"]
    letter = json.loads(Path("tmp/p/dead_letters/1_Chat.jsonl").read_text())
    assert letter["reason"] == "ChatAnswerError"
    assert "was paid, but the answer" in letter["error"]
    assert (report.usage["cost"], report.usage["requests"]) == (15 + 4, 2)
    again = made.redrive("p")
    assert (again.dead, len(server.bodies)) == (1, 3)
    assert (again.usage["cost"], again.usage["requests"]) == (15 + 4 + 15, 3)
    last = made.redrive("p")
    assert (last.dead, len(server.bodies)) == (0, 4)
    assert last.usage["cost"] == 15 + 4 + 15 + 4
    assert [row["answer"] for row in read()] == ["word0!0", "word1!0"]


@pytest.mark.parametrize(
    ("kind", "accept"),
    [("empty", "empty"), ("null", "empty"), ("length", "length"), ("content_filter", "content_filter")],
)
def test_an_unwanted_answer_may_be_accepted(server: Server, kind: str, accept: str) -> None:
    """`accept` takes such an answer as it is; one that was paid before is found without another call."""
    server.script = [UNWANTED[kind]]
    report = pipeline(chat(server, accept=[accept], finish="why"), 1).create("p").run()
    assert read()[0]["answer"] == json.loads(UNWANTED[kind][1])["choices"][0]["message"]["content"]
    assert (report.usage["requests"], len(server.bodies)) == (1, 1)
    with pytest.raises(ConfigError, match="accept has short: it may have empty, length, content_filter"):
        chat(server, accept=["short"])


def test_tool_calls_are_an_answer(server: Server) -> None:
    """An answer of tool calls alone is not empty."""
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    choice = {"message": message, "finish_reason": "tool_calls"}
    server.script = [(200, json.dumps({"choices": [choice], "usage": {}}))]
    assert pipeline(chat(server), 1).create("p").run().dead == 0


def test_rejected_answers_are_booked_before_the_one_that_counts(server: Server) -> None:
    """A 200 that is not a completion is paid all the same: its usage counts, also against the budget."""
    broken = (200, json.dumps({"choices": [], "usage": {"prompt_tokens": 40, "completion_tokens": 0}}))
    server.script = [broken, broken, 200]
    report = pipeline(chat(server, prices=PRICES), 3, budget={"cost": 50}).create("p").run()
    assert report.status == "budget_exhausted"
    assert report.usage["cost"] == 80 + 4
    assert report.usage["retries"] == 2


def test_calls_that_time_out_are_booked_as_what_they_may_cost(server: Server) -> None:
    """A row whose calls all timed out is a dead letter, and prompt and longest answer of each are booked."""
    server.script = ["hang"] * 2
    operator = chat(server, timeout=0.2, tries=2, prices=PRICES, options={"max_tokens": 100})
    report = pipeline(operator, 1, on_error="dead_letter").create("p").run()
    assert report.dead == 1
    body = len(json.dumps(server.bodies[0], separators=(",", ":")))
    guessed = 2 * (round(body / 3) + 100)
    assert report.usage["cost"] == report.usage["total_tokens"] == report.usage["unsure_tokens"] == guessed
    assert report.usage["unsure_calls"] == 2
    assert "requests" not in report.usage


def test_what_arrived_is_kept_before_it_is_read(server: Server) -> None:
    """A process that dies while it reads an answer has the answer: it is neither lost nor paid again."""
    child = os.fork()
    if child == 0:
        Chat._judged = lambda *_: os._exit(9)  # type: ignore[assignment, method-assign]
        pipeline(chat(server, prices=PRICES), 1).create("p").run()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(server.bodies) == 1
    report = pipeline(chat(server, prices=PRICES), 1).resume("p").run()
    assert (len(server.bodies), report.usage["requests"], report.usage["cost"]) == (1, 1, 4)
    assert read()[0]["answer"] == "word0!0"


def test_a_failed_row_is_booked_once_though_the_run_ends_on_it(server: Server) -> None:
    """Where the first failure ends the run, a resume books the failed call with the row, and once."""
    server.script = [200, UNWANTED["length"]]
    with pytest.raises(RowError, match="ChatAnswerError"):
        pipeline(chat(server, prices=PRICES), 3).create("p").run()
    report = pipeline(chat(server, prices=PRICES), 3).resume("p").run()
    assert report.usage["cost"] == 3 * 4 + 15
    assert len(server.bodies) == 4


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 8}},
        {"prompt_tokens": 10, "completion_tokens": 1, "prompt_cache_hit_tokens": 8},
        {"prompt_tokens": 10, "completion_tokens": 1, "cache_read_input_tokens": 8},
    ],
)
def test_cached_tokens_have_their_price(server: Server, usage: dict[str, Any]) -> None:
    """Tokens of the prompt that the server had in its cache cost `cached`, however it spells them."""
    server.script = [answer(usage=usage)]
    prices = {"prompt": 1e6, "cached": 1e5, "completion": 1e6}
    report = pipeline(chat(server, prices=prices), 1).create("p").run()
    assert (report.usage["cost"], report.usage["cached_tokens"]) == (pytest.approx(2 + 0.8 + 1), 8)


def test_answers_of_an_earlier_version_are_found(server: Server) -> None:
    """A file of answers as it was written before is read: nothing of it is paid again."""
    import sqlite3

    pipeline(chat(server, prices=PRICES), 1).create("p").run()
    base = sqlite3.connect("tmp/p/answers.sqlite")
    ((key, owner, body),) = base.execute("SELECT key, owner, body FROM bodies").fetchall()
    tree = json.loads(body)
    old = {"choices": tree["choices"], "model": "stub-1", "spent": {"requests": 1, "cost": 4.0}}
    base.execute("DELETE FROM bodies")
    base.execute("INSERT INTO answers VALUES (?, ?, ?)", (key, owner, json.dumps(old)))
    base.commit()
    base.close()
    operator = chat(server, prices=PRICES, cache="tmp/p/answers.sqlite")
    Path("out.jsonl").unlink()
    Path("out.jsonl.done").unlink()
    report = pipeline(operator, 1).create("q").run()
    assert len(server.bodies) == 1
    assert report.usage == {"shared_answers": 1}


def test_a_dry_run_shows_what_would_be_paid_and_pays_nothing(server: Server, capsys: Any) -> None:
    """Files, columns, calls and expected cost are shown; nobody is asked, and nothing is written."""
    rows = [{"text": f"word{n}", "score": n} for n in range(1000)]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("p.yaml").write_text(f"""
pipelineId: p
inputUri: jsonl://in.jsonl
outputUri: jsonl://out.jsonl
budget: {{cost: 1}}
operators:
  - {{operator: filter, params: {{where: "score % 2 == 0"}}}}
  - operator: chat
    params:
      {{model: m, prompt: "Say {{{{ text }}}}", baseUrl: "{server.url}", options: {{max_tokens: 100}}, n: 2,
       prices: {{prompt: 1000, completion: 1000}}}}
  - {{operator: extract, params: {{schema: {{type: object}}}}}}
  - {{operator: template, params: {{fields: {{t: "{{{{ title }}}}"}}}}}}
""")
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(["pipeline", "run", "p.yaml", "--dry-run"])
    said = capsys.readouterr().out
    assert not ended.value.code
    assert server.bodies == []
    assert sorted(Path().rglob("*")) == before
    size = Path("in.jsonl").stat().st_size
    assert f"1 file, {size:,} bytes, about " in said
    assert "columns: text (text), score (integer), _i (integer)" in said
    calls = int(re.search(r"Chat: about (\d+) rows, requests", said)[1])
    assert 480 <= calls <= 530
    tokens = calls * (200 + 25)
    cost = float(re.search(r"expected in all: .*cost ([\d.]+)", said)[1])
    assert cost == pytest.approx(tokens * 1000 / 1e6, rel=0.1)
    assert "the budget of cost 1 will end the run before it is done" in said
    assert "Extract: about" in said
    assert "not tried: taken to make one row of each" in said
    assert "not known for 200 of 200 sampled rows" in said


def test_a_dry_run_shows_rows_that_would_fail(server: Server, capsys: Any) -> None:
    """A prompt that asks for a field that rows do not have is seen before anything is paid."""
    Path("in.jsonl").write_text('{"text": "a"}\n{"other": "b"}\n')
    Path("p.yaml").write_text(f"""
pipelineId: p
inputUri: jsonl://in.jsonl
outputUri: jsonl://out.jsonl
operators: [{{operator: chat, params: {{model: m, prompt: "Say {{{{ text }}}}", baseUrl: "{server.url}"}}}}]
""")
    with pytest.raises(SystemExit):
        main(["pipeline", "run", "p.yaml", "--dry-run"])
    said = capsys.readouterr().out
    assert "1 of 2 sampled rows would fail, the first: row 1: UndefinedError: 'text' is undefined" in said
    assert "no cost, as no prices are given" in said
