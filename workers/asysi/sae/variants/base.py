"""Base class of all variants of the sparse autoencoder, for training, evaluation, export and inference."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from asysi.contract.spec import SaeTrain
from asysi.sae.fvu import RESOLUTION
from asysi.sae.sparse import SparseLatents


def _none() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True, slots=True)
class StepContext:
    """State of the training passed to a step."""

    dead: Tensor = field(default_factory=_none)
    """[n] int64: latents that have not fired for `auxk.deadAfter` rows."""
    trained: int = 0
    """Rows trained on before this step."""
    total: float | None = None
    """Expected total number of training rows, for coefficients with a schedule; None if unknown."""
    sparsity: float = 1.0
    """Progress of the introduction of sparsity, 0..1; see `schedule.sparsityWarmUp`."""
    fast: bool = False
    """Whether to compute preactivations in bfloat16; affects which latents fire and how strongly."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A batch's loss and its components, for autograd."""

    loss: Tensor
    """Scalar."""
    error: Tensor
    """[rows, d_out] reconstruction − target."""
    active: Tensor
    """[rows, latents] bool: which latents are above 0."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """The metrics of a step."""

    loss: float
    """The total loss."""
    fvu: float
    """Fraction of the batch's variance not explained by the reconstruction."""
    l0: float
    """Mean number of latents above 0."""
    fired: Tensor
    """[latents] bool: which latents were above 0 for at least one row."""


class SparseAutoencoder(ABC):
    """A sparse autoencoder whose parameters share one flat vector.

    It reads rows x [rows, d_in] and reconstructs targets y [rows, d_out]. Both are the same tensor except for
    transcoders; for a variant with several hook points, their rows are concatenated.

    A variant declares its parameters by name and size, and accesses each as an attribute of that name. It
    minimises `loss`, whose gradient is computed by autograd unless the variant overrides `differentiate`.
    Everything except `loss` and `differentiate` is inference and defines the latents after training.

    Args:
        d_in: width of a row.
        d_out: width of a target.
        latents: number of latents.
        sizes: size of each parameter by name, including `W_dec` [latents, d_out] and `b_dec` [d_out].
        dtype: dtype of the parameters.
        state: further tensors that training modifies in place, by name, such as a running threshold.
    """

    architecture: ClassVar[str | None] = None
    """`architecture` of the exports read by `from_export`; None if it is exported as another variant."""
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    """Types of the devices that it can be trained on; `differentiate` must keep to the parameters' device."""
    device: torch.device = torch.device("cpu")
    """Where the parameters are; see `on`."""

    W_dec: Tensor
    """[latents, d_out]"""
    b_dec: Tensor
    """[d_out]"""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        latents: int,
        sizes: Mapping[str, Sequence[int]],
        dtype: torch.dtype = torch.float32,
        *,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.d_in, self.d_out, self.latents = d_in, d_out, latents
        self._sizes = {name: tuple(size) for name, size in sizes.items()}
        self._allocate(dtype, state or {})

    def _allocate(self, dtype: torch.dtype, state: Mapping[str, Tensor]) -> None:
        # Plain tensors even in inference mode, as autograd requires.
        with torch.inference_mode(mode=False):
            size = sum(map(math.prod, self._sizes.values()))
            self.parameters = torch.zeros(size, dtype=dtype, device=self.device)
            """All parameters, in the order of their declaration."""
            for name, view in self.named(self.parameters).items():
                setattr(self, name, view)
            self.state = {
                name: value.to(self.device, dtype if value.is_floating_point() else None, copy=True)
                for name, value in state.items()
            }
            """Further tensors that training modifies in place; included in checkpoints."""

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views, by parameter name, of a vector with the layout of the parameters."""
        views, start = {}, 0
        for name, size in self._sizes.items():
            stop = start + math.prod(size)
            views[name] = flat[start:stop].view(size)
            start = stop
        return views

    def twin(self, dtype: torch.dtype | None = None) -> Self:
        """Return an autoencoder with the same settings and all parameters 0."""
        other = copy(self)
        other._allocate(dtype or self.parameters.dtype, self.state)
        return other

    def to(self, dtype: torch.dtype) -> Self:
        """Return a copy in another precision."""
        other = self.twin(dtype)
        other.parameters.copy_(self.parameters)
        return other

    def on(self, device: torch.device | str) -> Self:
        """Return a copy on a device."""
        other = copy(self)
        other.device = torch.device(device)
        other._allocate(self.parameters.dtype, self.state)
        other.parameters.copy_(self.parameters)
        return other

    # Construction

    @classmethod
    @abstractmethod
    def from_spec(cls, config: SaeTrain, d_in: int, d_out: int) -> Self:
        """Create an autoencoder with all parameters 0 from a trainer's entry of the spec.

        A variant's own settings are in the entry's field with the name of the variant.
        """

    @classmethod
    @abstractmethod
    def describe(cls, config: SaeTrain) -> str:
        """Return the settings specific to its variant, for the report: `k 32`."""

    @abstractmethod
    def initialise_from(self, rows: Tensor, targets: Tensor, rng: np.random.Generator) -> None:
        """Set the initial parameters from normalised rows [n, d_in] and targets [n, d_out]."""

    # Training

    @abstractmethod
    def loss(self, x: Tensor, y: Tensor, context: StepContext) -> Objective:
        """Return the loss of rows x [rows, d_in] with targets y [rows, d_out], including auxiliary losses.

        The parameters require gradients here; tensors in `state` must not.
        """

    def differentiate(self, x: Tensor, y: Tensor, gradient: Self, context: StepContext) -> StepResult:
        """Compute the gradient of the loss and store it in `gradient`.

        The default implementation uses autograd. A variant can override it with a hand-written gradient; both
        must agree.

        Args:
            x: [rows, d_in] normalised, finite.
            y: [rows, d_out] targets; x itself for an autoencoder.
            gradient: a twin, which is overwritten.
            context: state of the training.

        Raises:
            FloatingPointError: activations or weights are not finite.
        """
        gradient.parameters.zero_()
        with torch.inference_mode(mode=False), torch.enable_grad(), self._tracked(gradient):
            # autograd does not accept inference tensors.
            rows = x.clone()
            targets = rows if y is x else y.clone()
            found = self.loss(rows, targets, dataclasses.replace(context, dead=context.dead.clone()))
            found.loss.backward()  # type: ignore[no-untyped-call]
        error, active = found.error.detach(), found.active.detach()
        return StepResult(
            float(found.loss.detach()),
            squares(error) / spread(y),
            int(active.sum()) / len(x),
            active.any(0),
        )

    @contextmanager
    def _tracked(self, gradient: Self) -> Iterator[None]:
        """Make autograd accumulate into `gradient`."""
        leaves: list[Tensor] = [getattr(self, name) for name in self._sizes]
        slopes: list[Tensor] = [getattr(gradient, name) for name in self._sizes]
        try:
            for leaf, slope in zip(leaves, slopes, strict=True):
                leaf.requires_grad_().grad = slope
            yield
        finally:
            for leaf in leaves:
                leaf.grad = None
                leaf.requires_grad_(False)

    def project(self, gradient: Self) -> None:  # noqa: B027 - optional
        """Remove the components of the gradient that `constrain` would undo. Does nothing by default."""

    def constrain(self) -> None:  # noqa: B027 - optional
        """Restore constraints after every step, such as decoder rows of norm 1. Idempotent."""

    def revive(
        self,
        x: Tensor,
        y: Tensor,
        dead: Tensor,
        moments: Sequence[Mapping[str, Tensor]],
        rng: np.random.Generator,
    ) -> Tensor:
        """Reinitialise dead latents after a step; return their indices, [m] int64. Does nothing by default.

        It is called after every step with dead latents, or once per `resample.every` tokens if that is set.

        Args:
            x: [rows, d_in] rows of the step.
            y: [rows, d_out] their targets.
            dead: [n] int64 dead latents, n >= 1.
            moments: moments of the optimiser by parameter, to be reset to 0 for reinitialised latents.
            rng: random generator of the trainer, included in checkpoints.
        """
        return _none()

    # Inference

    @abstractmethod
    def activate(self, x: Tensor) -> SparseLatents:
        """Return the firing latents of x [rows, d_in]."""

    def reconstruct(self, latents: SparseLatents, x: Tensor) -> Tensor:
        """Return the reconstruction [rows, d_out] from the firing latents of x [rows, d_in].

        x itself is needed by variants with a skip connection.
        """
        return latents.decode(self.W_dec).add_(self.b_dec)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction [rows, d_out] of x [rows, d_in]."""
        return self.reconstruct(self.activate(x), x)

    def encode(self, x: Tensor) -> Tensor:
        """Return the dense latents of x [rows, d_in]: [rows, latents] >= 0."""
        return self.activate(x).dense()

    def decode(self, latents: Tensor) -> Tensor:
        """Return the reconstruction [rows, d_out] of latents [rows, latents]."""
        return torch.addmm(self.b_dec, latents, self.W_dec)

    # Export

    @abstractmethod
    def frozen(self, scale: float, target_scale: float) -> "SparseAutoencoder":
        """Return an equivalent SAE for plain instead of scaled activations.

        Its latents can differ by a factor, its reconstructions by 1 / target_scale. It can be of another
        variant if that is equivalent for inference.

        Args:
            scale: factor applied to rows in training, > 0.
            target_scale: factor applied to targets, > 0; equal to `scale` for an autoencoder.
        """

    @abstractmethod
    def exported(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return its entries for SAELens' `cfg.json`, including `architecture`, and its tensors by name."""

    @classmethod
    @abstractmethod
    def from_export(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Load an autoencoder from the result of `exported`.

        Raises:
            KeyError, RuntimeError, ValueError: the export is invalid.
        """


def squares(rows: Tensor) -> float:
    """Return Σ‖row‖², summed in float64."""
    return float(torch.linalg.vector_norm(rows, dtype=torch.float64) ** 2)


def spread(rows: Tensor) -> float:
    """Return Σ‖row − mean‖² of a batch [rows, width], the divisor that turns a loss into an FVU.

    If all rows are equal, returns Σ‖row‖² instead.
    """
    variance, energy = float((rows - rows.mean(0)).square_().sum()), float(rows.square().sum())
    return max(variance if variance > RESOLUTION * energy else energy, 1e-12)
