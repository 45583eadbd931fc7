"""Rows of tensors on an accelerator, brought into the host's memory."""

import numpy as np
import torch
from numpy.typing import NDArray


class Devices:
    """Gathers the kept rows of a step where the tensor is, and copies them."""

    def __init__(self) -> None:
        self._kept: dict[torch.device, torch.Tensor] = {}

    def begin_step(self) -> None:
        """Forget the rows of the step before."""
        self._kept.clear()

    def gather(self, tensor: torch.Tensor, width: int, kept: NDArray[np.int64]) -> torch.Tensor:
        """Return the kept rows [len(kept), width] of a tensor, in the host's memory.

        Gathered on the compute stream, so that no later in-place operation overtakes it; the copy then waits.

        Args:
            tensor: on any device, with rows of `width` elements.
            width: elements of a row.
            kept: indices of the rows, the same for every call of a step.
        """
        device = tensor.device
        if device not in self._kept:
            self._kept[device] = torch.from_numpy(kept).to(device)
        return tensor.detach().reshape(-1, width).index_select(0, self._kept[device]).cpu()
