"""Base class of the variants whose encoder is an affine function of a row, followed by an activation."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from asysi.contract.spec import AuxK, Decoder, SaeTrain
from asysi.sae.initial import directions
from asysi.sae.normalisation import geometric_median
from asysi.sae.sparse import SparseLatents
from asysi.sae.variants.base import Objective, SparseAutoencoder, StepContext, spread

_SMALLEST_NORM = 1e-12


class AffineAutoencoder(SparseAutoencoder):
    """pre = (x - b_dec) W_enc + b_enc, reconstruction = latents W_dec + b_dec.

    A variant says which preactivations become latents, in training (`fire`) and after it (`infer`), and what
    it adds to the squared error (`penalty`). The loss is

        L = (Σ‖e‖² + penalty + α Σ‖ê − e‖²) / Σ‖x − mean(x)‖²,   e = x − reconstruction

    The last sum is AuxK (arXiv 2406.04093, appendix A.2): ê decodes the k_aux largest dead preactivations,
    and the residual e is treated as a constant. So is the divisor; see `spread`.

    Args:
        d_in: width of an activation.
        latents: number of latents.
        dtype: dtype of the parameters.
        auxk: the auxiliary loss, or None.
        decoder: constraints of the decoder.
        resample: norm of the encoder weights of a resampled latent relative to the others; None disables
            resampling.
        state: further tensors that training modifies in place.
    """

    devices = ("cpu", "cuda")
    biases: ClassVar[tuple[str, ...]] = ("b_enc",)
    """Parameters [latents] in the unit of the activations; the first is the bias of `preactivations`."""
    factors: ClassVar[tuple[str, ...]] = ()
    """Parameters [latents] without a unit."""

    encoder: Tensor
    """[latents, d_in]: W_enc transposed, so that a latent's weights are contiguous."""
    b_enc: Tensor
    """[latents]"""

    def __init__(
        self,
        d_in: int,
        latents: int,
        dtype: torch.dtype = torch.float32,
        *,
        auxk: AuxK | None = None,
        decoder: Decoder | None = None,
        resample: float | None = None,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        sizes = {
            "encoder": (latents, d_in),
            **dict.fromkeys((*self.biases, *self.factors), (latents,)),
            "W_dec": (latents, d_in),
            "b_dec": (d_in,),
        }
        super().__init__(d_in, d_in, latents, sizes, dtype, state=state)
        self._k_aux = 0 if auxk is None else d_in // 2 if auxk.k is None else auxk.k
        self._coefficient = 0.0 if auxk is None else auxk.coefficient
        self._decoder = decoder or Decoder()
        self._resample = resample

    @classmethod
    def from_spec(cls, config: SaeTrain, d_in: int, d_out: int) -> Self:
        """Create an autoencoder with all parameters 0 from a trainer's entry of the spec."""
        if d_in != d_out:
            raise ValueError(f"an autoencoder rebuilds what it reads, yet {d_in} is not {d_out}")
        return cls._configured(
            config, d_in, auxk=config.auxk, decoder=config.decoder,
            resample=None if config.resample.every is None else config.resample.scale,
        )  # fmt: skip

    @classmethod
    @abstractmethod
    def _configured(cls, config: SaeTrain, d_in: int, **common: Any) -> Self:
        """Create an autoencoder from its own settings and those that all variants share."""

    @property
    def W_enc(self) -> Tensor:  # noqa: N802 - the field's name
        """[d_in, latents]"""
        return self.encoder.T

    # Parameters

    def initialise_from(self, rows: Tensor, targets: Tensor, rng: np.random.Generator) -> None:
        """Set initial weights from normalised rows [n, d_in].

        b_dec is their geometric median. The encoder is the decoder's transpose, scaled to minimise the
        initial reconstruction error: with correlated rows, many directions would overshoot.
        """
        centre = geometric_median(rows).to(rows.dtype)
        self.initialise(centre, directions(rows - centre, self.latents, rng))
        sample = rows[-2048:]
        rebuilt = self._first_reconstruction(sample) - self.b_dec
        along, length = float((rebuilt * (sample - centre)).sum()), float(rebuilt.square().sum())
        if along > 0 and length > 0:
            self.encoder.mul_(along / length)

    def _first_reconstruction(self, x: Tensor) -> Tensor:
        return self.decode(self.fire(self.preactivations(x - self.b_dec), StepContext()))

    def initialise(self, centre: Tensor, directions: Tensor) -> None:
        """Set b_dec to `centre` [d_in], decoder and encoder to normalised `directions` [latents, d_in]."""
        self._reset(slice(None))
        self.b_dec.copy_(centre)
        self.W_dec.copy_(directions)
        _normalise(self.W_dec)
        self.encoder.copy_(self.W_dec)

    def _reset(self, latents: Tensor | slice) -> None:
        """Set the parameters [latents] of some latents to their initial values."""
        for name in (*self.biases, *self.factors):
            getattr(self, name)[latents] = 0

    def constrain(self) -> None:
        """Normalise every decoder row to norm 1, unless the decoder is free."""
        if self._decoder.norm == "unit":
            _normalise(self.W_dec)

    def project(self, gradient: Self) -> None:
        """Remove the gradient component parallel to each decoder row (arXiv 2406.04093, appendix A.1)."""
        if self._decoder.norm == "unit" and self._decoder.project:
            along = (gradient.W_dec * self.W_dec).sum(1, keepdim=True)
            gradient.W_dec.addcmul_(along, self.W_dec, value=-1)

    def revive(
        self,
        x: Tensor,
        y: Tensor,
        dead: Tensor,
        moments: Sequence[Mapping[str, Tensor]],
        rng: np.random.Generator,
    ) -> Tensor:
        """Resample dead latents if the settings ask for it; see `contract.spec.Resample`.

        At most as many latents as there are rows with an error are resampled, so that no two get the same
        direction.
        """
        if self._resample is None:
            return dead[:0]
        loss = (self.forward(x) - y).double().square().sum(1).cpu().numpy() ** 2
        count = min(len(dead), int(np.count_nonzero(loss)))
        if not count or not np.isfinite(loss.sum()):
            return dead[:0]
        chosen = dead[torch.from_numpy(np.sort(rng.choice(len(dead), count, replace=False))).to(dead.device)]
        rows = torch.from_numpy(rng.choice(len(x), count, replace=False, p=loss / loss.sum())).to(x.device)
        found = x[rows] - self.b_dec
        _normalise(found)
        alive = torch.ones(self.latents, dtype=torch.bool, device=x.device)
        alive[dead] = False
        norms = torch.linalg.vector_norm(self.encoder[alive], dim=1)
        self._reset(chosen)
        self.W_dec[chosen] = found
        self.encoder[chosen] = found * (self._resample * float(norms.mean()) if len(norms) else 1.0)
        for moment in moments:
            for name in ("encoder", *self.biases, *self.factors, "W_dec"):
                moment[name][chosen] = 0
        return chosen

    # Training

    @abstractmethod
    def fire(self, pre: Tensor, context: StepContext) -> Tensor:
        """Return the latents [rows, latents] of preactivations [rows, latents] in training, >= 0."""

    def penalty(self, y: Tensor, pre: Tensor, latents: Tensor, context: StepContext) -> Tensor | float:
        """Return what is added to the squared error of a batch; 0 by default.

        Args:
            y: [rows, d_in] targets.
            pre: [rows, latents] preactivations.
            latents: [rows, latents] result of `fire`.
            context: state of the training.
        """
        return 0.0

    def loss(self, x: Tensor, y: Tensor, context: StepContext) -> Objective:
        """Return the loss as the class describes it."""
        pre = self.preactivations(x - self.b_dec)
        latents = self.fire(pre, context)
        error = self.decode(latents) - y
        total = error.square().sum() + self.penalty(y, pre, latents, context)
        dead = context.dead
        if len(dead) and self._k_aux:
            revived = largest(pre[:, dead], min(self._k_aux, len(dead))) @ self.W_dec[dead]
            total = total + self._coefficient * (revived + error.detach()).square().sum()
        return Objective(total / spread(y), error, latents > 0)

    def strength(self, latents: Tensor) -> Tensor:
        """Return latents [rows, latents], each times the norm of its decoder row."""
        norms: Tensor = torch.linalg.vector_norm(self.W_dec, dim=1)
        return latents * norms

    # Inference

    def preactivations(self, centred: Tensor, *, fast: bool = False) -> Tensor:
        """Return the preactivations [rows, latents].

        Args:
            centred: [rows, d_in] rows minus b_dec.
            fast: multiply in bfloat16, for training only.
        """
        bias: Tensor = getattr(self, self.biases[0])
        if not fast:
            return torch.addmm(bias, centred, self.W_enc)
        product = centred.bfloat16() @ self.encoder.bfloat16().T
        return product.to(bias.dtype).add_(bias)

    def infer(self, pre: Tensor) -> Tensor:
        """Return the latents [rows, latents] of preactivations [rows, latents] after training."""
        return self.fire(pre, StepContext())

    def activate(self, x: Tensor) -> SparseLatents:
        """Return the firing latents of x [rows, d_in]."""
        return SparseLatents.from_dense(self.infer(self.preactivations(x - self.b_dec)))

    # Export

    def frozen(self, scale: float, target_scale: float) -> SparseAutoencoder:
        """Return the SAE for plain activations: only biases and thresholds are divided by the scale.

        The activation functions commute with a positive factor, so the latents are scaled by it and the
        decoder's rows keep their norms.
        """
        folded = self.to(self.parameters.dtype)
        for name in self.biases:
            getattr(folded, name).div_(scale)
        folded.b_dec.div_(target_scale)
        return folded

    def exported(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the configuration and tensors of a SAELens SAE."""
        names = (*self.biases, *self.factors, "W_dec", "b_dec")
        tensors = {"W_enc": self.W_enc, **{name: getattr(self, name) for name in names}}
        return {"architecture": self.architecture}, tensors

    @classmethod
    def from_export(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Load an autoencoder from the result of `exported`, or from SAELens.

        An encoder that reads x instead of x − b_dec, and latents that are scaled by the norms of the
        decoder's rows, are folded into the parameters.
        """
        for name in ("normalize_activations", "reshape_activations"):
            if config.get(name, "none") not in {"none", None}:
                raise ValueError(f"{name} is {config[name]!r}; only 'none' can be represented")
        sae = cls._empty(config)
        for name, parameter in sae.named(sae.parameters).items():
            parameter.copy_(tensors["W_enc"].t() if name == "encoder" else tensors[name])
        if config.get("rescale_acts_by_decoder_norm"):
            sae._rescale(torch.linalg.vector_norm(sae.W_dec, dim=1))
        if not config.get("apply_b_dec_to_input", True):
            sae._absorb(sae.b_dec @ sae.W_enc)
        return sae

    def _rescale(self, norms: Tensor) -> None:
        """Multiply latents by norms [latents], and divide the decoder's rows by them."""
        for name in self.biases:
            getattr(self, name).mul_(norms)
        self.encoder.mul_(norms[:, None])
        self.W_dec.div_(norms.clamp_min(_SMALLEST_NORM)[:, None])

    def _absorb(self, shift: Tensor) -> None:
        """Add what `b_dec` takes from the preactivations, [latents], to their bias."""
        getattr(self, self.biases[0]).add_(shift)

    @classmethod
    def _empty(cls, config: Mapping[str, Any]) -> Self:
        return cls(config["d_in"], config["d_sae"])


def largest(pre: Tensor, k: int) -> Tensor:
    """Return [rows, latents]: the k largest of each row if above 0, otherwise 0."""
    top = pre.topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())


def firing_number(k: int, latents: int, width: int, sparsity: float) -> int:
    """Return how many latents fire per row while sparsity is introduced: from `width` down to `k`.

    Args:
        k: number at the end.
        latents: number of all latents.
        width: width of an activation.
        sparsity: progress, 0..1.
    """
    return k if sparsity >= 1 else k + round((1 - sparsity) * max(0, min(width, latents) - k))


def _normalise(rows: Tensor) -> None:
    """Scale rows [n, width] to norm 1, in place."""
    rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(_SMALLEST_NORM))
