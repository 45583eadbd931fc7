"""What every variant of the sparse autoencoder is to those who train, evaluate, export and read it."""

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
    """What training knows when it takes a step."""

    dead: Tensor = field(default_factory=_none)
    """[n] int64: latents that have not fired for `auxk.deadAfter` rows."""
    trained: int = 0
    """Rows trained on before this step."""
    total: float | None = None
    """Rows trained on in the end, None when that is not known: for coefficients that follow a schedule."""
    fast: bool = False
    """Whether to multiply in bfloat16 where that decides which latents fire and how strongly."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A batch's loss and what it was made of, for autograd."""

    loss: Tensor
    """Scalar."""
    error: Tensor
    """[rows, d_out] reconstruction − target."""
    active: Tensor
    """[rows, latents] bool: which latents are above 0."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step showed."""

    loss: float
    """The whole loss."""
    fvu: float
    """Fraction of the batch's variance that the reconstruction leaves."""
    l0: float
    """Mean number of latents above 0."""
    fired: Tensor
    """[latents] bool: which latents were above 0 for at least one row."""


class SparseAutoencoder(ABC):
    """A sparse autoencoder whose parameters share one flat vector.

    It reads rows x [rows, d_in] and rebuilds targets y [rows, d_out]. Both are the same tensor for all but
    transcoders; where a variant reads or rebuilds several hook points, their rows lie side by side.

    A variant declares its parameters by name and size, and finds each as an attribute of that name. `loss` is
    what it minimises; its gradient comes from autograd unless the variant writes `differentiate` itself.
    Everything but `loss` and `differentiate` is inference: what a latent is after training.

    Args:
        d_in: width of a row.
        d_out: width of a target.
        latents: number of latents.
        sizes: size of each parameter by name, `W_dec` [latents, d_out] and `b_dec` [d_out] among them.
        dtype: of the parameters.
        state: tensors beside the parameters that training changes in place, by name: a running threshold.
    """

    architecture: ClassVar[str | None] = None
    """`architecture` of the exports that `from_export` reads; None where another variant's are exported."""
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
        # Within inference mode too these are plain tensors: autograd takes no others.
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
            """Tensors beside the parameters that training changes in place; checkpoints hold them."""

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views of a vector that is laid out like the parameters, by the names of these."""
        views, start = {}, 0
        for name, size in self._sizes.items():
            stop = start + math.prod(size)
            views[name] = flat[start:stop].view(size)
            start = stop
        return views

    def twin(self, dtype: torch.dtype | None = None) -> Self:
        """Return one of the same settings whose parameters are 0."""
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

    # What it is made from

    @classmethod
    @abstractmethod
    def from_spec(cls, config: SaeTrain, d_in: int, d_out: int) -> Self:
        """Return one with all parameters 0, as a trainer's entry of the spec asks for.

        A variant's own settings are the field of the entry that has the variant's name.
        """

    @classmethod
    @abstractmethod
    def describe(cls, config: SaeTrain) -> str:
        """Return the settings that tell it from another of its variant, for the report: `k 32`."""

    @abstractmethod
    def initialise_from(self, rows: Tensor, targets: Tensor, rng: np.random.Generator) -> None:
        """Set the initial parameters from normalised rows [n, d_in] and targets [n, d_out]."""

    # How it learns

    @abstractmethod
    def loss(self, x: Tensor, y: Tensor, context: StepContext) -> Objective:
        """Return the loss of rows x [rows, d_in] with targets y [rows, d_out], auxiliary losses included.

        Within it the parameters require gradients; what it changes in `state` must not.
        """

    def differentiate(self, x: Tensor, y: Tensor, gradient: Self, context: StepContext) -> StepResult:
        """Put the loss's gradient into `gradient`, a twin that is overwritten.

        This is autograd's. A variant that writes its gradient out overrides it; both must agree.

        Args:
            x: [rows, d_in] normalised, finite.
            y: [rows, d_out] targets, x itself for an autoencoder.
            gradient: is overwritten.
            context: what training knows.

        Raises:
            FloatingPointError: activations or weights are not finite.
        """
        gradient.parameters.zero_()
        with torch.inference_mode(mode=False), torch.enable_grad(), self._tracked(gradient):
            # Tensors from inference mode cannot take part.
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
        """Let autograd add what it finds to `gradient`."""
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

    def project(self, gradient: Self) -> None:  # noqa: B027 - by default nothing is to be undone
        """Remove from the gradient what the constraint would undo. Nothing, unless a variant says so."""

    def constrain(self) -> None:  # noqa: B027 - by default nothing is constrained
        """Restore what holds after every step, such as decoder rows of norm 1; twice is once."""

    def revive(
        self,
        x: Tensor,
        y: Tensor,
        dead: Tensor,
        moments: Sequence[Mapping[str, Tensor]],
        rng: np.random.Generator,
    ) -> Tensor:
        """Give dead latents new parameters after a step; return which, [m] int64. None, unless overridden.

        Args:
            x: [rows, d_in] of the step.
            y: [rows, d_out] targets of these.
            dead: [n] int64, n >= 1.
            moments: the optimiser's, by parameter, to be set to 0 for what is new.
            rng: the trainer's, which checkpoints hold.
        """
        return _none()

    # What it infers

    @abstractmethod
    def activate(self, x: Tensor) -> SparseLatents:
        """Return the firing latents of x [rows, d_in]."""

    def reconstruct(self, latents: SparseLatents, x: Tensor) -> Tensor:
        """Return the reconstruction [rows, d_out] from the firing latents of x [rows, d_in].

        x itself is for variants with a path around the latents.
        """
        return latents.decode(self.W_dec).add_(self.b_dec)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction [rows, d_out] of x [rows, d_in]."""
        return self.reconstruct(self.activate(x), x)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of x [rows, d_in] densely: [rows, latents] >= 0."""
        return self.activate(x).dense()

    def decode(self, latents: Tensor) -> Tensor:
        """Return the reconstruction [rows, d_out] of latents [rows, latents]."""
        return torch.addmm(self.b_dec, latents, self.W_dec)

    # What it leaves

    @abstractmethod
    def frozen(self, scale: float, target_scale: float) -> "SparseAutoencoder":
        """Return the SAE of plain activations that does what this one does on scaled ones.

        Its latents may differ from this one's by a factor, its reconstructions by 1 / target_scale. It may be
        of another variant, when that is what inference takes.

        Args:
            scale: factor that rows were multiplied by in training, > 0.
            target_scale: factor of the targets, > 0; the same for an autoencoder.
        """

    @abstractmethod
    def exported(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return its own entries of SAELens' `cfg.json`, with `architecture`, and its tensors by name."""

    @classmethod
    @abstractmethod
    def from_export(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return what `exported` described.

        Raises:
            KeyError, RuntimeError, ValueError: the export does not fit.
        """


def squares(rows: Tensor) -> float:
    """Return Σ‖row‖², summed in float64."""
    return float(torch.linalg.vector_norm(rows, dtype=torch.float64) ** 2)


def spread(rows: Tensor) -> float:
    """Return Σ‖row − mean‖² of a batch [rows, width], the divisor of a loss that is an FVU.

    Where all rows are the same, Σ‖row‖² takes its place.
    """
    variance, energy = float((rows - rows.mean(0)).square_().sum()), float(rows.square().sum())
    return max(variance if variance > RESOLUTION * energy else energy, 1e-12)
