"""Adam on one flat vector, and the learning rate schedule."""

import torch
from torch import Tensor


class Adam:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980) on one flat vector, using PyTorch's fused kernel.

    Args:
        size: number of parameters.
        betas: decay of the first and the second moment.
        epsilon: added to the root of the second moment.
        dtype: of the moments.
        device: where parameters and gradient are.
    """

    def __init__(
        self,
        size: int,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 6.25e-10,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.mean = torch.zeros(size, dtype=dtype, device=device)
        """First moment."""
        self.square = torch.zeros(size, dtype=dtype, device=device)
        """Second moment."""
        self.steps = torch.zeros((), dtype=torch.float32, device=device)
        self._betas, self._epsilon = betas, epsilon

    def step(self, parameters: Tensor, gradient: Tensor, lr: float) -> None:
        """Update `parameters` in place."""
        self.steps += 1
        torch._fused_adam_(
            [parameters], [gradient], [self.mean], [self.square], [], [self.steps],
            lr=lr, beta1=self._betas[0], beta2=self._betas[1], weight_decay=0.0, eps=self._epsilon,
            amsgrad=False, maximize=False,
        )  # fmt: skip


def learning_rate_factor(
    done: float, warm_up: float, total: float | None, decay: float | None = None, end: float = 0.0
) -> float:
    """Return the learning rate factor after `done` rows: 0 <= factor <= 1.

    It rises linearly over `warm_up` rows and decays linearly to `end` at `total` rows.

    Args:
        done: rows trained on, >= 0.
        warm_up: rows over which it rises, >= 0.
        total: rows of the whole training; None if unknown, then it does not decay.
        decay: rows over which it decays; None for all of them, 0 for none.
        end: factor at the end, 0..1.
    """
    rise = min(1.0, (done + 1) / (warm_up + 1))
    if total is None or decay == 0:
        return rise
    left = 1 - done / max(total, 1.0) if decay is None else (total - done) / min(decay, max(total, 1.0))
    return min(rise, end + (1 - end) * max(0.0, left))
