"""Calls to a model server that takes 50 ms per call, compared with the ideal for their concurrency.

python calls.py WHO IN_FLIGHT CALLS URL FOLDER
"""

import asyncio
import json
import resource
import sys
import time
from pathlib import Path


def ours(at_once: int, calls: int, url: str, folder: Path) -> float:
    """The chat operator, fully durable: one thread per ten calls, all calls on one event loop."""
    from asysi.pipeline import UnifiedNode, UnifiedPipeline
    from asysi.pipeline.library.chat import Chat

    assert UnifiedNode
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps({"text": f"question {n}"}) + "\n" for n in range(calls)))
    batch = 5 if at_once > 20 else 1
    made = UnifiedPipeline(
        [Chat("stub", "Answer {{ text }}", base_url=url)],
        f"jsonl://{source}",
        f"jsonl://{folder}/out.jsonl",
        parallel_size=at_once // batch,
        batch_size=batch,
        base_path=folder / "tmp",
        log_dir=folder / "logs",
        progress=False,
    )
    began = time.monotonic()
    report = made.create("calls").run()
    assert report.usage["requests"] == calls
    return time.monotonic() - began


def bare(at_once: int, calls: int, url: str, folder: Path) -> float:
    """Plain httpx: no cache, no output; a 429 is retried."""
    import httpx

    tls = httpx.create_ssl_context(verify=False)  # one for all, because loading certificates is slow
    address = f"{url}/chat/completions"

    async def all_calls() -> None:
        numbers = iter(range(calls))

        async def caller() -> None:
            async with httpx.AsyncClient(verify=tls) as client:
                for n in numbers:
                    message = {"role": "user", "content": f"Answer question {n}"}
                    body = {"model": "stub", "messages": [message]}
                    while (found := await client.post(address, json=body)).status_code == 429:
                        await asyncio.sleep(float(found.headers["retry-after"]))
                    found.raise_for_status()

        await asyncio.gather(*(caller() for _ in range(at_once)))

    began = time.monotonic()
    asyncio.run(all_calls())
    return time.monotonic() - began


if __name__ == "__main__":
    who, in_flight, count, address, place = sys.argv[1:]
    seconds = {"ours": ours, "bare": bare}[who](int(in_flight), int(count), address, Path(place))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"seconds": seconds, "processor": used.ru_utime + used.ru_stime}))
