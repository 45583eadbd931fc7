"""What a device does fast, and in the same way each time."""

import os
from functools import cache
from pathlib import Path

import torch


@cache
def bfloat16_is_fast(device: str = "cpu") -> bool:
    """Whether a type of device multiplies bfloat16 natively: GPUs, and CPUs with AVX512-BF16 or AMX."""
    if device != "cpu":
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def repeat_exactly() -> None:
    """Let a GPU add in the same order each time, as a resume that is exact needs it. Before its first use.

    An operation that cannot is only warned of: a run is worth more than its repetition.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it begins
    torch.use_deterministic_algorithms(True, warn_only=True)
