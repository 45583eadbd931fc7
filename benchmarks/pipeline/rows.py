"""The rows of the comparison, and an order-independent digest of the output."""

import random
from collections.abc import Iterable
from pathlib import Path

import orjson
import xxhash

WORDS = 28
"""Words per text: about 306 bytes per row."""
MALFORMED = 10
_WHOLE = 1 << 64


def write(folder: Path, rows: int, files: int, seed: int = 1) -> list[Path]:
    """Write the rows into `files` files, and return these; existing files are reused."""
    paths = [folder / f"rows-{rows}-{files}" / f"{index:02d}.jsonl" for index in range(files)]
    if all(path.exists() for path in paths):
        return paths
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    words = [f"word{chance.randrange(10**5)}" for _ in range(5000)]
    broken = set(chance.sample(range(rows), MALFORMED))
    streams = [path.open("wb") for path in paths]
    for number in range(rows):
        row = {"id": str(number), "text": " ".join(chance.choices(words, k=WORDS)), "score": number % 97 / 97}
        line = orjson.dumps(row)
        streams[number * files // rows].write(line[:-9] + b"\n" if number in broken else line + b"\n")
    for stream in streams:
        stream.close()
    return paths


def digest(paths: Iterable[Path]) -> tuple[int, str]:
    """Return the number of rows, and the sum of their hashes."""
    rows = total = 0
    for path in paths:
        with path.open("rb") as stream:
            for line in stream:
                row = orjson.loads(line)
                total += xxhash.xxh3_64_intdigest(f"{row['id']}\n{row['text']}".encode())
                rows += 1
    return rows, f"{total % _WHOLE:016x}"
