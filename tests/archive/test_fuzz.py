"""A coverage-guided fuzzer finds no segment that a reader crashes on, or that takes too much memory.

`make mscan-fuzz` runs ten million executions.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.archive.faulty_writer import packet

from asysi.archive.writer import MScanWriter

HERE = Path(__file__).parent
RUNS = int(os.environ.get("ASYSI_MSCAN_FUZZ", "2500"))
MEMORY_MIB = 1024
"""Of the whole process: the interpreter, and twice the largest chunk."""


@pytest.fixture
def corpus(tmp_path):
    """Small segments of every compression, closed and torn; the last byte chooses what is resealed."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for compression in ("none", "zstd", "lz4"):
        path = tmp_path / f"{compression}.mscan"
        with MScanWriter(path, {}, points=[("a", None, 16)], compression=compression) as writer:
            one = packet(0)
            one.payload[:] = 1
            writer.append_tensor(one)
        for closed in (b"\x00", b"\x01"):
            (folder / f"{compression}-{closed.hex()}").write_bytes(path.read_bytes() + closed)
        (folder / f"{compression}-torn").write_bytes(path.read_bytes()[:-300] + b"\x01")
    for path in (HERE / "golden" / "mscan-1.0").glob("*.mscan"):
        (folder / path.name).write_bytes(path.read_bytes() + b"\x01")
    return folder


def test_reader(corpus):
    """Thousands of mutated segments, checksums right or not: data or an MScanError, in bounded memory."""
    done = subprocess.run(
        [
            sys.executable, HERE / "fuzz_reader.py", corpus, f"-runs={RUNS}", "-max_len=16384", "-seed=1",
            "-len_control=0",
            f"-rss_limit_mb={MEMORY_MIB}", "-timeout=20", f"-artifact_prefix={corpus.parent}/",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert f"Done {RUNS} runs" in done.stderr


def test_the_fuzzer_can_fail():
    """The harness sees an exception that is not an MScanError: it is not green whatever happens."""
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import fuzz_reader\n"
        "def broken(*_, **__): raise IndexError('broken')\n"
        "fuzz_reader.segment.read_segment = broken\n"
        "fuzz_reader.run(b'x' * 400)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "IndexError: broken" in done.stderr
