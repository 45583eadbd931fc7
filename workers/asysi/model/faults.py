"""Classifies and formats exceptions raised by a model's own code."""

import traceback
from pathlib import Path

import torch

_OF_THE_MACHINE = (MemoryError, OSError, torch.OutOfMemoryError, torch.AcceleratorError)
_SIGNS_OF_THE_MACHINE = ("CUDA", "cuBLAS", "cuDNN", "NCCL", "DefaultCPUAllocator")
_NOT_THE_MODEL = (Path(torch.__file__).parent, Path(__file__).parent.parent)


def is_permanent(error: Exception) -> bool:
    """Return whether the same call would fail again; errors of memory or devices may be transient."""
    return not isinstance(error, _OF_THE_MACHINE) and not any(
        sign in str(error) for sign in _SIGNS_OF_THE_MACHINE
    )


def format_error(error: Exception) -> str:
    """Return an exception as one line: type, message, and the source line in the model's code."""
    first = (str(error).splitlines() or [""])[0][:300]
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(Path(frame.filename).is_relative_to(folder) for folder in _NOT_THE_MODEL)
        and not frame.filename.startswith("<")
    ]
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else text
