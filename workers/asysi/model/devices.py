"""The device that a container's spec asks for, or why it cannot be had."""

import os

import torch

from asysi.contract.errors import ConfigError


def device_for(gpus: int, field: str) -> str:
    """Return `cpu`, or `cuda` where the spec gives the container a GPU.

    Args:
        gpus: what the spec gives the container.
        field: of the spec, for the message.

    Raises:
        ConfigError: there is no GPU, or torch cannot use it.
    """
    if not gpus:
        return "cpu"
    if torch.version.cuda is None:
        why = f"torch {torch.__version__} is built without CUDA: install a build with it"
    elif not torch.cuda.is_available():
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "torch finds no CUDA device here" + (
            "" if seen is None else f" (CUDA_VISIBLE_DEVICES is {seen!r})"
        )
    else:
        return "cuda"
    raise ConfigError(f"{field}: is {gpus}, but {why}, or set {field} to 0")
