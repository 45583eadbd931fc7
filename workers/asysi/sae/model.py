"""The TopK sparse autoencoder (Gao et al. 2024, arXiv 2406.04093, section 2.3)."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from asysi.sae.selection import top_k


class SparseAutoencoder:
    """A TopK sparse autoencoder whose parameters share one flat vector.

    latents = ReLU(TopK((x - b_dec) W_enc + b_enc)), reconstruction = latents W_dec + b_dec; rows of W_dec
    have norm 1.

    Args:
        d_in: width of an activation.
        latents: number of latents.
        k: latents that fire for a row at most, 1 <= k <= latents.
        dtype: of the parameters.
    """

    def __init__(self, d_in: int, latents: int, k: int, dtype: torch.dtype = torch.float32) -> None:
        if not 1 <= k <= latents:
            raise ValueError(f"k is {k}, but must lie between 1 and the {latents} latents")
        self.d_in, self.latents, self.k = d_in, latents, k
        self.parameters = torch.zeros(2 * latents * d_in + latents + d_in, dtype=dtype)
        """All parameters: encoder, b_enc, W_dec, b_dec. The attributes below are views of it."""
        encoder, self.b_enc, decoder, self.b_dec = torch.split(
            self.parameters, [latents * d_in, latents, latents * d_in, d_in]
        )
        self.encoder = encoder.view(latents, d_in)
        """[latents, d_in]: W_enc transposed, so that a latent's weights lie side by side."""
        self.W_dec = decoder.view(latents, d_in)
        """[latents, d_in]"""

    @property
    def W_enc(self) -> Tensor:  # noqa: N802 - the field's name
        """[d_in, latents]"""
        return self.encoder.T

    def initialise(self, centre: Tensor, directions: Tensor) -> None:
        """Set b_dec to `centre` [d_in], decoder and encoder to normalised `directions` [latents, d_in]."""
        self.b_enc.zero_()
        self.b_dec.copy_(centre)
        self.W_dec.copy_(directions)
        self.normalise()
        self.encoder.copy_(self.W_dec)

    def normalise(self) -> None:
        """Give every decoder row norm 1."""
        self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True).clamp_min_(1e-12))

    def preactivations(self, centred: Tensor, *, fast: bool = False) -> Tensor:
        """Return [rows, latents] before TopK, for rows from which b_dec is subtracted.

        Args:
            centred: [rows, d_in].
            fast: multiply in bfloat16, for training only.
        """
        if not fast:
            return torch.addmm(self.b_enc, centred, self.W_enc)
        product = centred.bfloat16() @ self.encoder.bfloat16().T
        return product.to(self.b_enc.dtype).add_(self.b_enc)

    def activate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the firing latents of x [rows, d_in] sparsely: values >= 0 and columns, both [rows, k]."""
        values, columns = top_k(self.preactivations(x - self.b_dec), self.k)
        return values.relu_(), columns

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of x [rows, d_in] densely: [rows, latents] >= 0, at most k of a row above 0."""
        values, columns = self.activate(x)
        return values.new_zeros(len(x), self.latents).scatter_(1, columns, values)

    def decode(self, activations: Tensor) -> Tensor:
        """Return the reconstruction [rows, d_in] of latents [rows, latents]."""
        return torch.addmm(self.b_dec, activations, self.W_dec)

    def reconstruct(self, values: Tensor, columns: Tensor) -> Tensor:
        """Return the reconstruction [rows, d_in] of sparse latents, values and columns [rows, k]."""
        return embedding_bag(columns, self.W_dec, per_sample_weights=values, mode="sum").add_(self.b_dec)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction of x [rows, d_in]."""
        return self.reconstruct(*self.activate(x))

    def to(self, dtype: torch.dtype) -> "SparseAutoencoder":
        """Return a copy in another precision."""
        copy = SparseAutoencoder(self.d_in, self.latents, self.k, dtype)
        copy.parameters.copy_(self.parameters)
        return copy


@cache
def bfloat16_is_fast() -> bool:
    """Whether this processor multiplies bfloat16 natively (AVX512-BF16 or AMX)."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
