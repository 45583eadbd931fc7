"""The C library's search, and memory that stays for the next block of rows."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi.pipeline.nodes.libc import _SETTINGS, keep_freed_memory, searcher

_PIECES = st.lists(st.sampled_from([b"null", b"nul", b"n", b"\0", b"l", b'":', b"\xff"]), max_size=12)
_FAULTS = """
import resource
from asysi.pipeline.nodes.libc import _SETTINGS, keep_freed_memory
print(keep_freed_memory())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        held = [bytes(1 << 20) for _ in range(4)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
"""Prints the page faults of 50 times four blocks, after the first 50 times."""


@given(_PIECES.map(b"".join))
def test_a_word_is_found_where_python_finds_it(data: bytes) -> None:
    """Also beside zero bytes, and when the word is cut off at the end."""
    assert searcher(b"null")(data) == (b"null" in data)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_blocks_touch_no_new_pages_once_memory_is_kept() -> None:
    """200 MB of blocks fault in fewer pages than two of them have."""
    kept, faults = _run()
    assert kept == "True"
    assert int(faults) < 2 * (1 << 20) // os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_what_somebody_has_set_stays_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever chooses an allocator or its thresholds keeps them."""
    monkeypatch.setenv(name, "131072")
    keep_freed_memory.cache_clear()
    assert not keep_freed_memory()
    keep_freed_memory.cache_clear()


def _run() -> list[str]:
    given = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS], env=given, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()
