"""Out-of-memory errors: how to detect them, and the next smaller microbatch."""

import torch

_SENTENCES = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out, on an accelerator or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _SENTENCES)


def halved(microbatch: int) -> int | None:
    """Return the next smaller microbatch, None if there is none."""
    return microbatch // 2 or None
