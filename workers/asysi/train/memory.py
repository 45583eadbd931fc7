"""Out of memory: what counts as it, and the next smaller microbatch."""

import torch

_SENTENCES = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out, on an accelerator or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _SENTENCES)


def halved(microbatch: int) -> int | None:
    """Return the next smaller microbatch, None where there is none."""
    return microbatch // 2 or None
