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


def learning_rate_factor(done: float, warm_up: float, total: float | None) -> float:
    """Return the learning rate factor after `done` rows: 0 <= factor <= 1.

    It rises linearly over `warm_up` rows and decays linearly to 0 at `total` rows; without a total no decay.
    """
    rise = min(1.0, (done + 1) / (warm_up + 1))
    return rise if total is None else min(rise, max(0.0, 1 - done / max(total, 1.0)))
