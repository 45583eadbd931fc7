"""Redis Streams over a unix socket, the server without persistence.

Drop: XADD with MAXLEN. Lossless: XADD, and each reader keeps its position in a key; the producer waits for
the slowest reader and trims entries that all have read.
"""

import os
import subprocess
import time
from pathlib import Path

import redis
import transport
from source import Source
from task import Task
from transport import PATIENCE, StalledError, Use


def client(task: Task) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(Path(task.folder) / "redis.sock"))


class Sender(transport.Sender):
    def __init__(self, task: Task, source: Source, queues: list) -> None:
        path = Path(task.folder) / "redis.sock"
        quiet = ["--port", "0", "--save", "", "--appendonly", "no", "--dir", task.folder]
        command = ["redis-server", "--unixsocket", str(path), *quiet]
        self.server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until = time.monotonic() + PATIENCE
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.01)
        self.redis, self.whole, self.size = client(task), source.memory.whole, task.size
        self.lossless, self.chunks, self.readers = task.guarantee == "lossless", task.chunks, task.readers
        self.sent, self.room = 0, task.chunks

    def push(self, index: int) -> bool:
        at = index * self.size
        message = self.whole[at : at + self.size]
        self.sent += 1
        if not self.lossless:
            self.redis.execute_command("XADD", "s", "MAXLEN", self.chunks, f"0-{self.sent}", "m", message)
            return True
        if self.room == 0:
            self.wait()
        self.room -= 1
        self.redis.execute_command("XADD", "s", f"0-{self.sent}", "m", message)
        return True

    def wait(self) -> None:
        until = time.monotonic() + PATIENCE
        while True:
            places = self.redis.mget([f"place{i}" for i in range(self.readers)])
            slowest = min(int(place or 0) for place in places)
            self.room = self.chunks - (self.sent - 1 - slowest)
            if self.room > 0:
                self.redis.execute_command("XTRIM", "s", "MINID", f"0-{slowest + 1}")
                return
            if time.monotonic() > until:
                raise StalledError
            time.sleep(20e-6)

    def helpers_cpu(self) -> float:
        ticks = Path(f"/proc/{self.server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self.redis.close()
        self.server.terminate()
        self.server.wait()


class Receiver(transport.Receiver):
    def __init__(self, task: Task, reader: int, queues: list) -> None:
        self.redis, self.key, self.place = client(task), f"place{reader}", b"0-0"
        self.limit, self.lossless = task.pins, task.guarantee == "lossless"

    def pull(self, timeout: float, use: Use) -> int:
        wait = ["BLOCK", max(1, int(timeout * 1000))] if timeout else []
        answer = self.redis.execute_command("XREAD", "COUNT", self.limit, *wait, "STREAMS", "s", self.place)
        if not answer:
            return 0
        [entries] = answer.values() if isinstance(answer, dict) else [answer[0][1]]
        entries = entries[0] if isinstance(answer, dict) else entries
        for identity, fields in entries:
            use(fields[b"m"] if isinstance(fields, dict) else fields[1])
            self.place = identity
        if self.lossless:
            self.redis.set(self.key, self.place.partition(b"-")[2])
        return len(entries)

    def close(self) -> None:
        self.redis.close()
