"""A server that imitates a language model API, for experiments: no model, no network, no cost.

    python stub.py [--port 8000] [--latency 0.05] [--busy 0.02] [--idempotent] [--log calls.jsonl]

It prints the port it listens on. Answers depend only on the request. A share of the requests, chosen by a
seeded generator, gets 429 with Retry-After. Every charged request is written to the log, one per line, when
the answer is ready, even if the caller is gone by then, as real servers do.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import sys
from typing import Any, TextIO

_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}


class Stub:
    """Answers chat completions.

    Args:
        latency: seconds that an answer takes.
        busy: share of requests that are rejected with 429, 0..1.
        retry_after: seconds that a rejected caller is asked to wait.
        seed: seed of the rejections.
        key: API key that callers must send, None for any.
        idempotent: charge once for requests with the same Idempotency-Key.
        log: file for charges, one JSON object per line.
    """

    def __init__(
        self,
        *,
        latency: float = 0.05,
        busy: float = 0.02,
        retry_after: float = 0.1,
        seed: int = 0,
        key: str | None = None,
        idempotent: bool = False,
        log: TextIO | None = None,
    ) -> None:
        self.latency, self.busy, self.retry_after = latency, busy, retry_after
        self.key, self.idempotent, self.log = key, idempotent, log
        self.charged = self.refused = 0
        self._chance = random.Random(seed)  # noqa: S311 - a server's moods are no secret
        self._given: dict[str, asyncio.Task[bytes]] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while (request := await _read(reader)) is not None:
                headers, body = request
                status, answer, more = await self.answer(headers, body)
                writer.write(_response(status, answer, more))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the caller is gone
        finally:
            writer.close()

    async def answer(self, headers: dict[str, str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Return status, body and headers for a request."""
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return 401, b'{"error": {"message": "wrong key", "code": "invalid_api_key"}}', {}
        if self._chance.random() < self.busy:
            self.refused += 1
            return 429, b'{"error": {"message": "slow down"}}', {"Retry-After": f"{self.retry_after:g}"}
        name = headers.get("idempotency-key", "") if self.idempotent else ""
        if name and name in self._given:
            return 200, await asyncio.shield(self._given[name]), {}
        work = asyncio.ensure_future(self._work(body))
        if name:
            self._given[name] = work
        return 200, await asyncio.shield(work), {}

    async def _work(self, body: bytes) -> bytes:
        request = json.loads(body)
        await asyncio.sleep(self.latency)
        answer = completion(request)
        self.charged += 1
        if self.log is not None:
            line = {"request": hashlib.sha256(body).hexdigest(), "usage": answer["usage"]}
            self.log.write(json.dumps(line) + "\n")
            self.log.flush()
        return json.dumps(answer).encode()


def completion(request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a request: words of its last message, as JSON if requested."""
    prompt = str(request["messages"][-1]["content"])
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    words = prompt.split()
    choices = []
    for index in range(request.get("n", 1)):
        text = f"{' '.join(words[:8])} [{digest[index : index + 8]}]"
        if "JSON" in prompt:
            tree = {"title": " ".join(words[:4]), "words": len(words), "tags": sorted(set(words))[:3]}
            text = f"Here you are:\n```json\n{json.dumps(tree)[:-1]},}}\n```"  # models add trailing commas
        choices.append(
            {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        )
    usage = {"prompt_tokens": len(words), "completion_tokens": 12 * len(choices)}
    return {
        "id": f"stub-{digest[:12]}",
        "object": "chat.completion",
        "model": request["model"],
        "choices": choices,
        "usage": {**usage, "total_tokens": sum(usage.values())},
    }


async def _read(reader: asyncio.StreamReader) -> tuple[dict[str, str], bytes] | None:
    """Return headers and body of the next request, None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    lines = head.decode("latin-1").split("\r\n")
    pairs = [line.split(":", 1) for line in lines[1:] if ":" in line]
    headers = {name.strip().lower(): value.strip() for name, value in pairs}
    return headers, await reader.readexactly(int(headers.get("content-length", "0")))


def _response(status: int, body: bytes, more: dict[str, str]) -> bytes:
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **more}
    lines = [
        f"HTTP/1.1 {status} {_REASONS[status]}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def main() -> None:
    """Serve until the process is terminated."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--busy", type=float, default=0.02)
    parser.add_argument("--retry-after", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--key")
    parser.add_argument("--idempotent", action="store_true")
    parser.add_argument("--log", type=argparse.FileType("a"))
    given = vars(parser.parse_args())
    port = given.pop("port")
    server = await asyncio.start_server(Stub(**given).serve, "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
    sys.exit(0)
