"""What the C library does better than Python for rows: a search in bytes, and memory kept for the next block.

Where it is not glibc, or has no such function, Python does the search, and memory is left as it is.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of glibc's malloc.h."""
_LARGEST, _KEPT = 32 << 20, 64 << 20
"""Bytes of the largest piece from the heap (glibc takes no more), and of free memory on top of it."""
_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Variables by which somebody has chosen otherwise."""


@cache
def keep_freed_memory() -> bool:
    """Let freed memory stay in the process for the next block of rows; return whether that is so now.

    A block's bytes and its rows are a few hundred kilobytes each. glibc maps pieces of that size from the
    kernel and returns them when they are freed, so that each block touches new pages: zeroed and faulted in
    again, they took more time than the rows. What stays is bounded: blocks in flight are.

    Nothing changes where a variable already says how memory is to be handled.
    """
    if any(os.environ.get(name) for name in _SETTINGS):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    taken = library.mallopt(_MMAP_THRESHOLD, _LARGEST) and library.mallopt(_TRIM_THRESHOLD, _KEPT)
    return bool(taken)


def searcher(word: bytes) -> Callable[[bytes], bool]:
    """Return a function that tells whether bytes hold a word: four times as quick as `in` for short words."""
    try:
        find = ctypes.CDLL(None).memmem
    except AttributeError:
        return lambda data: word in data
    find.restype = ctypes.c_void_p
    find.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t)
    length = len(word)
    return lambda data: find(data, len(data), word, length) is not None
