"""Kill a run that pays for its calls, again and again; `test_paid.py` starts it.

One process imports everything and forks a run for each kill. What was noted without an answer when a run was
killed is read from its file of answers: only those calls may be charged twice.
"""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from hashlib import sha256
from pathlib import Path

from forking import attempt

import asysi.pipeline.nodes.node
from asysi.pipeline import UnifiedPipeline, WriterConfig
from asysi.pipeline.library.answers import Answers
from asysi.pipeline.library.chat import CACHE, Chat, _key

ROWS = 96
AT_ONCE = 12
STUB = Path(__file__).parents[2] / "examples" / "pipeline" / "stub.py"
assert asysi.pipeline.nodes.node


class Server:
    """The stub in a process of its own."""

    def __init__(self, log: Path, *flags: str) -> None:
        command = [sys.executable, str(STUB), "--log", str(log), "--retry-after", "0.05", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}/v1"
        self.log = log

    def charged(self) -> Counter[str]:
        return Counter(json.loads(line)["request"] for line in self.log.read_text().splitlines())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def chat(url: str) -> Chat:
    return Chat("stub", "Say {{ text }} once", base_url=url, timeout=5)


def run(folder: Path, url: str) -> dict[str, float]:
    pipeline = UnifiedPipeline(
        [chat(url)],
        input_uri=f"jsonl://{folder}/in.jsonl",
        output_uri=f"jsonl://{folder}/out.jsonl",
        parallel_size=AT_ONCE // 4,
        batch_size=4,
        writer_config=WriterConfig(flush_batch_size=4, flush_interval=0.01, retry_interval=0.01),
        base_path=folder / "tmp",
        log_dir=folder / "logs",
    )
    if (folder / "tmp" / "paid" / "runtime.json").exists():
        pipeline.resume("paid")
    else:
        pipeline.create("paid")
    return pipeline.run().usage


def run_and_note(folder: Path, url: str) -> None:
    usage = run(folder, url)
    (folder / "usage.json").write_text(json.dumps(usage))


def fresh(folder: Path) -> Path:
    folder.mkdir(parents=True)
    with (folder / "in.jsonl").open("w") as file:
        for n in range(ROWS):
            file.write(json.dumps({"text": f"row {n}"}) + "\n")
    return folder


def unsure(folder: Path, url: str) -> list[str]:
    """Return the digests of the requests that are noted without an answer."""
    if not (folder / "tmp" / "paid" / CACHE).exists():
        return []
    answers = Answers(folder / "tmp" / "paid" / CACHE)
    noted = set(answers.unsure())
    operator = chat(url)
    bodies = [operator.request(json.loads(line)) for line in (folder / "in.jsonl").open()]
    return [
        sha256(body).hexdigest() for body in bodies if _key(f"{url}/chat/completions", body, None) in noted
    ]


def main(base: Path, server_kind: str, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    flags = ["--idempotent"] if server_kind == "idempotent" else []
    server = Server(base / "whole.jsonl", *flags)
    whole = fresh(base / "whole")
    began = time.monotonic()
    assert attempt(partial(run_and_note, whole, server.url), None) == 0
    took = time.monotonic() - began
    server.end()
    expected = (whole / "out.jsonl").read_bytes()
    landed = lives = wrong = failed = twice = beyond = unpaid = misbooked = crowded = 0
    while landed < kills:
        folder = fresh(base / f"life-{lives}")
        server = Server(folder / "charged.jsonl", *flags)
        lives += 1
        allowed: Counter[str] = Counter()
        while True:
            delay = chance.choice([chance.uniform(0, took / 2), chance.uniform(0, took)])
            code = attempt(partial(run_and_note, folder, server.url), delay if landed < kills else None)
            landed += code == -signal.SIGKILL
            failed += code not in {0, -signal.SIGKILL}
            if code != -signal.SIGKILL:
                break
            noted = unsure(folder, server.url)
            crowded += len(noted) > AT_ONCE
            allowed.update(noted)
        server.end()
        charged = server.charged()
        wrong += (folder / "out.jsonl").read_bytes() != expected
        twice += sum(count - 1 for count in charged.values())
        beyond += sum(count > 1 + allowed[request] for request, count in charged.items())
        unpaid += len(charged) != ROWS
        misbooked += json.loads((folder / "usage.json").read_text())["requests"] != ROWS
    found = {"kills": landed, "lives": lives, "wrong": wrong, "failed": failed, "twice": twice}
    faults = {"beyond": beyond, "unpaid": unpaid, "misbooked": misbooked, "crowded": crowded}
    print(json.dumps({**found, **faults}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
