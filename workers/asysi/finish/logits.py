"""The tokens that a latent promotes and suppresses: its decoder row times the model's unembedding."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asysi.finish.latents import Floats

EACH = 6
"""Number of tokens shown at each end."""
MULTIPLICATIONS = 4 * 10**11
"""Limit per autoencoder; beyond it, only the first latents get their tokens."""
_AT_ONCE = 1 << 24


@dataclass(frozen=True, slots=True)
class Logits:
    """The most promoted and most suppressed tokens of the first m latents."""

    tokens: NDArray[np.int64]
    """[m, 2 · EACH]: those whose logits rise most, highest first, then those that fall most, lowest first."""
    values: Floats
    """[m, 2 · EACH]: change of the logit per unit of the latent's activation."""


def unembedding(module: torch.nn.Module) -> Tensor | None:
    """Return the unembedding weight [vocabulary, width]; None if the model has none."""
    find: Any = getattr(module, "get_output_embeddings", None)
    try:
        head = find() if callable(find) else None
    except (AttributeError, NotImplementedError):  # a base model has no head
        return None
    weight = getattr(head, "weight", None)
    return weight.detach() if isinstance(weight, Tensor) and weight.ndim == 2 else None


def top_and_bottom_tokens(decoder: Tensor, weight: Tensor) -> Logits | None:
    """Return the most promoted and suppressed tokens of decoder rows [latents, width]; None if widths differ.

    The final norm is omitted because it depends on the whole activation. The result is only the direct
    effect, W_U d_i, of the latent's direction on the logits, centred over the vocabulary.

    Args:
        decoder: rows of the latents, the most important first.
        weight: [vocabulary, width]
    """
    if decoder.shape[1] != weight.shape[1] or weight.shape[0] < 2 * EACH:
        return None
    cost = weight.numel()
    few = decoder[: max(1, MULTIPLICATIONS // cost)].float()
    matrix = weight.float().t()
    tokens, values = [], []
    with torch.inference_mode():
        for part in torch.split(few, max(1, _AT_ONCE // weight.shape[0])):
            change = part @ matrix
            change -= change.mean(1, keepdim=True)
            high, low = change.topk(EACH, dim=1), change.topk(EACH, dim=1, largest=False)
            tokens.append(torch.cat([high.indices, low.indices], 1))
            values.append(torch.cat([high.values, low.values], 1))
    return Logits(torch.cat(tokens).numpy(), torch.cat(values).numpy())
