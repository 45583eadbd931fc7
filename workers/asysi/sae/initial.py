"""Initial directions of the decoder."""

import numpy as np
import torch
from torch import Tensor

_RANDOMNESS = 0.7


def directions(centred: Tensor, latents: int, rng: np.random.Generator) -> Tensor:
    """Return initial directions [latents, width] for a decoder of centred rows [n, width].

    They interpolate between centred rows, which are close to the activations, and random directions, which
    prevent latents from sharing a direction and dying.
    """
    random = torch.from_numpy(rng.standard_normal((latents, centred.shape[1]), dtype=np.float32))
    some = centred[torch.arange(latents) % len(centred)]
    return _unit(some) * (1 - _RANDOMNESS) + _unit(random) * _RANDOMNESS


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)
