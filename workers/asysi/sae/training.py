"""Training of one autoencoder on the rows of one hook point."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asysi.bus.packet import RowFlag
from asysi.contract.spec import SaeTrain
from asysi.sae.buffer import BufferSize, MixingBuffer
from asysi.sae.checkpoint import HELD, HELD_ORIGIN
from asysi.sae.evaluation import Evaluation, evaluate
from asysi.sae.fvu import CONSTANT, NO_ROWS, NOT_TRAINED
from asysi.sae.normalisation import expected_norm_scale
from asysi.sae.norms import NormFilter
from asysi.sae.optimiser import Adam, learning_rate_factor
from asysi.sae.processor import bfloat16_is_fast
from asysi.sae.reservoir import Reservoir
from asysi.sae.variants import variant
from asysi.sae.variants.base import SparseAutoencoder, StepContext

EVALUATION_ROWS = 4096
"""Size of the evaluation set, a uniform sample of the held-out rows of the whole run."""
_GLANCE_ROWS = 1024
"""Number of these rows used by intermediate evaluations."""
_CURVE_EVERY = 16
"""Initial number of steps between two points of the training curve."""
_CURVE_POINTS = 400
"""Number of curve points at which every other one is removed and the interval doubled."""
_STOP_EVERY = 64
"""Steps between evaluations for `stop.fvu`; counted, not timed, so that a replay stops at the same row."""
_HELD = 1
"""Distinguishes the seed of the evaluation set from that of training."""
_WARM_UP_STEPS = 200
_WARM_UP_SHARE = 0.1
_INITIAL_ROWS = 8192
"""Number of rows used for the initial weights."""
_RATE = 2e-3
_RATE_OPEN = 2e-4
_SMOOTHING = 0.95
_FOLLOWER = "follower."
"""Prefix of a follower's tensors in a checkpoint."""
_STATE = "variant."
"""Prefix of a variant's own tensors in a checkpoint."""


@dataclass
class Counts:
    """Row counters. `received` is the sum of the others and of the rows in the mixing buffer."""

    received: int = 0
    trained: int = 0
    held_out: int = 0
    """Never trained on; a uniform sample of them is kept for evaluation."""
    not_finite: int = 0
    """Rows with NaN or infinite elements."""
    outliers: int = 0
    """Rows with a norm above `data.tokens.maxNormMultiple`."""
    after_stop: int = 0
    """Rows not trained on because a stop condition was met."""


@dataclass
class TrainerProgress:
    """State in a checkpoint besides tensors and counts."""

    scale: float | None = None
    """Normalisation factor; None until the buffer is filled."""
    step: int = -1
    """Host step of the last packet."""
    steps_total: int = 0
    """Steps of the host's whole run; 0 if unknown."""
    last_sequence: tuple[int, int] = (-1, -1)
    """Step and sequence of the last row."""
    loss: float = math.nan
    """Smoothed training loss."""
    l0: float = math.nan
    """Smoothed L0 on training rows."""
    stopped: bool = False
    ended: bool = False
    """Whether the stream has ended."""
    evaluation: dict[str, float] = field(default_factory=dict)
    curve: list[list[float]] = field(default_factory=list)
    """Training curve: rows trained on, loss, held-out FVU, L0, share of dead latents."""
    curve_every: int = _CURVE_EVERY
    """Steps between two points of the curve."""


class Training:
    """Trains one autoencoder, and its followers on the same batches.

    A follower has its own parameters, optimiser, initial weights and metrics; rows, normalisation, evaluation
    set and counts are the leader's. It ends as a training of its own would, if that read its rows in the same
    order: a follower with the leader's seed and number of latents is bit-identical to it.

    Args:
        config: settings of the autoencoder.
        point: path of the hook point.
        width: elements per row.
        dtype: dtype of stored rows.
        memory: memory limit of its mixing buffer in bytes.
        max_norm_multiple: multiple of the running median norm above which rows are excluded; None excludes
            none.
        device: where the autoencoder is trained. Rows wait on the CPU.
        followers: settings of further autoencoders.
        leader: the training that this one follows, or None.
    """

    def __init__(
        self,
        config: SaeTrain,
        point: str,
        width: int,
        dtype: torch.dtype,
        memory: int,
        *,
        max_norm_multiple: float | None = None,
        device: str = "cpu",
        followers: Sequence[SaeTrain] = (),
        leader: "Training | None" = None,
    ) -> None:
        self.config, self.point, self.memory, self.dtype = config, point, memory, dtype
        self.sae = variant(config.variant).from_spec(config, width, width).on(device)
        self.counts, self.progress = Counts(), TrainerProgress()
        self._rng = np.random.default_rng([config.seed, *point.encode()])
        self._buffer: MixingBuffer = leader._buffer if leader else MixingBuffer(width, dtype, self._rng)
        self._size = BufferSize(
            config.buffer.batches * config.batch,
            config.buffer.sequences,
            max(config.batch, memory // (width * dtype.itemsize) - config.batch),
        )
        self._adam = Adam(len(self.sae.parameters), device=device)
        self._moments = tuple(self.sae.named(flat) for flat in (self._adam.mean, self._adam.square))
        self._gradient = self.sae.twin()
        self._average = self.sae.parameters.clone() if config.ema else None
        """Running mean of the parameters, or None."""
        self._idle = torch.zeros(config.latents, dtype=torch.int64, device=device)
        """[latents] rows since each latent last fired."""
        held_seed = [config.seed, _HELD, *point.encode()]
        self._held: Reservoir = (
            leader._held if leader else Reservoir(EVALUATION_ROWS, width, dtype, held_seed)
        )
        self._norms = None if max_norm_multiple is None else NormFilter(max_norm_multiple)
        self._fast = bfloat16_is_fast(self.sae.device.type)
        self.followers = [
            Training(one, point, width, dtype, memory, max_norm_multiple=max_norm_multiple, device=device,
                     leader=self)
            for one in followers
        ]  # fmt: skip

    # Input

    def receive(
        self, rows: Tensor, finite: NDArray[np.bool_], records: NDArray[np.void], step: int, call: int = 0
    ) -> None:
        """Receive the rows of a packet.

        Args:
            rows: [n, width] in the storage dtype; the data is copied.
            finite: [n] mask of rows without NaN and infinity.
            records: [n] of ROW_DTYPE with the origin of each row; rows with the hold-out flag are never
                trained on.
            step: step of the host.
            call: index of the module call within the step, from 0.
        """
        holdout = (records["flags"] & RowFlag.HOLDOUT) != 0
        self.counts.received += len(rows)
        self.counts.not_finite += int((~finite).sum())
        usable = finite
        if self._norms is not None:
            usable = finite & self._norms.within(rows, finite)
            self.counts.outliers += int(finite.sum()) - int(usable.sum())
        self._hold(rows, holdout & usable, records, call)
        train = ~holdout & usable
        new = self._new_sequences(records["sequence"], step)
        self.progress.step = max(self.progress.step, step)
        if self.progress.stopped:
            self.counts.after_stop += int(train.sum())
        else:
            self._buffer.add(rows[torch.from_numpy(train)], new, self._size)

    def _hold(self, rows: Tensor, holdout: NDArray[np.bool_], records: NDArray[np.void], call: int) -> None:
        count = int(holdout.sum())
        self.counts.held_out += count
        if count:
            origin = np.empty((count, 3), np.int64)
            origin[:, 0] = records["sample"][holdout].view(np.int64)
            origin[:, 1], origin[:, 2] = records["position"][holdout], call
            self._held.add(rows[torch.from_numpy(holdout)], origin)

    def _new_sequences(self, sequences: np.ndarray, step: int) -> int:
        if not len(sequences):
            return 0
        begins = int(np.count_nonzero(np.diff(sequences))) + (
            (step, int(sequences[0])) != self.progress.last_sequence
        )
        self.progress.last_sequence = (step, int(sequences[-1]))
        return begins

    # Training

    def train(self) -> int:
        """Train on one batch if the buffer has one; return its number of rows.

        Raises:
            FloatingPointError: training diverged.
        """
        if self.progress.stopped:
            return 0
        if self.progress.ended:
            batch = next(self._buffer.drain(self.config.batch), None) if self._started() else None
        else:
            batch = self._buffer.draw(self.config.batch) if self._started() else None
        if batch is None:
            return 0
        self.learn(batch)
        if int(self._adam.steps) % self.progress.curve_every == 0:
            self.note()
        self._consider_stopping()
        return len(batch)

    @property
    def members(self) -> "list[Training]":
        """This training and its followers."""
        return [self, *self.followers]

    def _lead(self) -> None:
        """Let followers know what this training knows about the rows."""
        own = self.progress
        for one in self.followers:
            one.counts, one._norms = replace(self.counts), self._norms
            one.progress.step, one.progress.steps_total = own.step, own.steps_total
            one.progress.scale, one.progress.ended, one.progress.stopped = own.scale, own.ended, own.stopped

    def end(self) -> None:
        """Signal that no more rows will arrive; further training drains the buffer."""
        self.progress.ended = True

    def _started(self) -> bool:
        """Return whether training has begun; begin once the buffer is filled."""
        if (
            self.progress.scale is None
            and len(self._buffer)
            and (self._buffer.floor is not None or self.progress.ended)
        ):
            for one in self.members:
                one.begin(self._buffer.rows)
        return self.progress.scale is not None

    def begin(self, rows: Tensor) -> None:
        """Estimate the normalisation and set the initial weights from the first rows [n, width]."""
        scale = expected_norm_scale(rows) if self.config.normalisation == "expectedNorm" else 1.0
        self.progress.scale = scale
        chosen = self._rng.choice(len(rows), min(len(rows), _INITIAL_ROWS), replace=False)
        first = rows[torch.from_numpy(chosen)].float().mul_(scale)
        began = self.sae.on("cpu")  # by the same steps as on a CPU, so that a seed means the same weights
        began.initialise_from(first, first, self._rng)
        self.sae.parameters.copy_(began.parameters)
        for name, tensor in self.sae.state.items():
            tensor.copy_(began.state[name])
        if self._average is not None:
            self._average.copy_(self.sae.parameters)

    def learn(self, batch: Tensor) -> None:
        """Perform one training step of every member on rows [n, width]; requires `begin`.

        Raises:
            FloatingPointError: training diverged.
        """
        assert self.progress.scale is not None
        x = batch.to(self.sae.device).float().mul_(self.progress.scale)
        self._lead()
        for one in self.members:
            one._step(x)

    def _step(self, x: Tensor) -> None:
        """Perform one training step on normalised rows [n, width]."""
        dead = self._dead().nonzero().view(-1)
        context = StepContext(dead, self.counts.trained, self._total(), self._sparsity(), self._fast)
        outcome = self.sae.differentiate(x, x, self._gradient, context)
        self.sae.project(self._gradient)
        self._adam.step(self.sae.parameters, self._gradient.parameters, self.learning_rate())
        self.sae.constrain()
        self._idle += len(x)
        self._idle[outcome.fired] = 0
        if len(dead) and self._revives(len(x)):
            self._idle[self.sae.revive(x, x, dead, self._moments, self._rng)] = 0
        if self._average is not None:
            self._average.lerp_(self.sae.parameters, 1 - (self.config.ema or 0))
        self.counts.trained += len(x)
        if not math.isfinite(outcome.loss):
            raise FloatingPointError(
                f"{self.config.name} diverged at {self.point}, its loss is {outcome.loss}: lower its lr"
            )
        self.progress.loss = _smooth(self.progress.loss, outcome.loss)
        self.progress.l0 = _smooth(self.progress.l0, outcome.l0)

    def learning_rate(self) -> float:
        """Return the learning rate of the next step."""
        total, schedule = self._total(), self.config.schedule
        warm_up = _warm_up(self.config, total)
        factor = learning_rate_factor(
            self.counts.trained, warm_up, total, schedule.lr_decay, schedule.lr_end
        )  # fmt: skip
        return _peak_rate(self.config, total) * factor

    def _sparsity(self) -> float:
        """Return the progress of the introduction of sparsity, 0..1."""
        rows = self.config.schedule.sparsity_warm_up
        return min(1.0, (self.counts.trained + 1) / rows) if rows else 1.0

    def _revives(self, rows: int) -> bool:
        """Return whether dead latents are reinitialised after a step of `rows` rows."""
        every = self.config.resample.every
        before = self.counts.trained
        return every is None or (before + rows) // every > before // every

    def _total(self) -> float | None:
        """Return the expected total number of training rows; None if unknown.

        The rows received so far are extrapolated using the host's steps in the packets, so a replay gives the
        same result.
        """
        counts, progress = self.counts, self.progress
        coming = float(counts.trained + len(self._buffer))
        if not progress.ended:
            if progress.steps_total == 0:
                return None if self.config.stop.tokens is None else float(self.config.stop.tokens)
            coming *= max(1.0, progress.steps_total / (progress.step + 1))
        return min(coming, self.config.stop.tokens or math.inf)

    def _dead(self) -> Tensor:
        return self._idle >= self.config.auxk.dead_after

    def _consider_stopping(self) -> None:
        stop = self.config.stop
        met = stop.tokens is not None and self.counts.trained >= stop.tokens
        if not met and stop.fvu is not None and int(self._adam.steps) % _STOP_EVERY == 0:
            glances = [one.evaluate(exact=False) for one in self.members]
            met = all(glance is not None and glance.fvu <= stop.fvu for glance in glances)
        if met:
            self.progress.stopped = True
            self.counts.after_stop += self._buffer.clear()

    # Evaluation

    def evaluate(self, *, exact: bool) -> Evaluation | None:
        """Return metrics on held-out rows; None before training has begun or without such rows.

        Args:
            exact: use the whole evaluation set in float64; otherwise only the first rows, which is cheaper.
        """
        if self.progress.scale is None or not len(self._held):
            return None
        rows = self._held.rows if exact else self._held.rows[:_GLANCE_ROWS]
        result = evaluate(self.averaged(), rows, self.progress.scale, exact=exact)
        self.progress.evaluation = asdict(result)
        return result

    def averaged(self) -> SparseAutoencoder:
        """Return the autoencoder to evaluate and export: of the running mean, or as trained last."""
        if self._average is None:
            return self.sae
        mean = self.sae.twin()
        mean.parameters.copy_(self._average)
        mean.constrain()
        return mean

    def frozen(self) -> SparseAutoencoder:
        """Return the autoencoder for plain activations, on the CPU."""
        scale = self.progress.scale or 1.0
        return self.averaged().on("cpu").frozen(scale, scale)

    def note(self) -> None:
        """Add a point to every training curve; a long curve is thinned out."""
        for one in self.members:
            one.evaluate(exact=False)
            one._append()

    def complete(self) -> None:
        """Train on what is buffered, once no more rows will arrive, and conclude."""
        self.end()
        while self.train():
            pass
        self.conclude()

    def conclude(self) -> None:
        """Evaluate on the whole evaluation set, and add the final point of every training curve."""
        self._lead()
        for one in self.members:
            if one.evaluate(exact=True) is not None:
                one._append()

    def _append(self) -> None:
        progress, known = self.progress, self.progress.evaluation
        point = [progress.loss, known.get("fvu", math.nan), known.get("l0", progress.l0), self.dead_share]
        progress.curve.append([float(self.counts.trained), *point])
        if len(progress.curve) >= _CURVE_POINTS:
            del progress.curve[::2]
            progress.curve_every *= 2

    @property
    def buffered(self) -> int:
        """Rows in the mixing buffer."""
        return len(self._buffer)

    @property
    def dead_share(self) -> float:
        """Share of the latents that have not fired for `auxk.deadAfter` rows, 0..1."""
        return float(self._dead().float().mean())

    def why_nothing(self) -> str | None:
        """Return why no SAE was trained; None if one was."""
        counts = self.counts
        if self.progress.scale is not None:
            return None
        if not counts.received:
            return "no rows reached the trainer"
        if counts.not_finite == counts.received:
            return f"all {counts.received:,} rows received by the trainer contain NaN or infinity"
        if counts.held_out + counts.not_finite + counts.outliers == counts.received and counts.outliers:
            return f"all rows received are beyond maxNormMultiple ({counts.outliers:,}) or held out"
        if counts.held_out + counts.not_finite == counts.received:
            return f"all {counts.held_out:,} finite rows received are held out"
        return "too few rows reached the trainer"

    def report(self) -> dict[str, Any]:
        """Return the metrics for status, export and ledger."""
        return {
            **asdict(self.counts),
            "buffered": self.buffered,
            "loss": _json(self.progress.loss),
            "fvu": _json(self.progress.evaluation.get("fvu", math.nan)),
            "fvu_rows": int(self.progress.evaluation.get("rows", 0)),
            "fvu_undefined": self._why_no_fvu(),
            "norm_limit": None if self._norms is None else self._norms.limit,
            "l0": _json(self.progress.evaluation.get("l0", self.progress.l0)),
            "dead": self.dead_share,
            "scale": self.progress.scale,
            "stopped": self.progress.stopped,
        }

    def _why_no_fvu(self) -> str | None:
        """Return why there is no FVU; None if there is one or it was not computed yet."""
        if self.progress.scale is None:
            return NOT_TRAINED
        if not len(self._held):
            return NO_ROWS
        fvu = self.progress.evaluation.get("fvu")
        return CONSTANT if fvu is not None and math.isnan(fvu) else None

    # Checkpoints

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the complete state: tensors, and JSON-serialisable values."""
        tensors = {
            "parameters": self.sae.parameters,
            "adam.mean": self._adam.mean,
            "adam.square": self._adam.square,
            "adam.steps": self._adam.steps.view(1),
            "idle": self._idle,
            "buffer": self._buffer.rows,
            HELD: self._held.rows,
            HELD_ORIGIN: self._held.origin,
        }
        if self._norms is not None:
            tensors["norms"] = self._norms.median.counts
        if self._average is not None:
            tensors["average"] = self._average
        tensors |= {_STATE + name: tensor for name, tensor in self.sae.state.items()}
        words_of_followers = []
        self._lead()
        for number, one in enumerate(self.followers):
            theirs, words = one.state()
            shared = {"buffer", HELD, HELD_ORIGIN, "norms"}
            tensors |= {f"{_FOLLOWER}{number}.{n}": t for n, t in theirs.items() if n not in shared}
            words_of_followers.append({name: words[name] for name in ("progress", "rng")})
        tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
        words = {
            "counts": asdict(self.counts),
            "progress": asdict(self.progress),
            "buffer": {"sequences": self._buffer.sequences, "floor": self._buffer.floor},
            "held": self._held.state(),
            "memory": self.memory,
            "rng": self._rng.bit_generator.state,
            "width": self.sae.d_in,
            "dtype": str(self._held.rows.dtype).removeprefix("torch."),
        }
        if words_of_followers:
            words["followers"] = words_of_followers
        return tensors, words

    def restore(self, tensors: dict[str, Tensor], words: dict[str, Any]) -> None:
        """Restore a state."""
        self._restore_own(tensors, words)
        self._held.restore(tensors[HELD], tensors.get(HELD_ORIGIN), words.get("held", {}))
        if self._norms is not None and "norms" in tensors:
            self._norms.median.counts.copy_(tensors["norms"])
        self._buffer.restore(tensors["buffer"].clone(), **words["buffer"])
        self.counts = Counts(**words["counts"])
        for number, (one, theirs) in enumerate(zip(self.followers, words.get("followers", []), strict=True)):
            prefix = f"{_FOLLOWER}{number}."
            own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            one._restore_own(own, theirs)
        self._lead()

    def _restore_own(self, tensors: dict[str, Tensor], words: dict[str, Any]) -> None:
        """Restore what followers do not share."""
        self.sae.parameters.copy_(tensors["parameters"])
        for name, tensor in self.sae.state.items():
            tensor.copy_(tensors[_STATE + name])
        self._adam.mean.copy_(tensors["adam.mean"])
        self._adam.square.copy_(tensors["adam.square"])
        self._adam.steps.copy_(tensors["adam.steps"][0])
        self._idle.copy_(tensors["idle"])
        if self._average is not None:
            self._average.copy_(tensors["average"])
        self._rng.bit_generator.state = words["rng"]
        last = tuple(words["progress"]["last_sequence"])
        self.progress = TrainerProgress(**{**words["progress"], "last_sequence": last, "ended": False})


def _peak_rate(config: SaeTrain, total: float | None) -> float:
    if config.lr is not None:
        return config.lr
    return (_RATE_OPEN if total is None else _RATE) / math.sqrt(config.latents / 16384)


def _warm_up(config: SaeTrain, total: float | None) -> float:
    """Return the rows over which the learning rate rises."""
    if config.schedule.lr_warm_up is not None:
        return config.schedule.lr_warm_up
    rows = _WARM_UP_STEPS * config.batch
    return rows if total is None else min(rows, _WARM_UP_SHARE * total)


def _smooth(old: float, new: float) -> float:
    return new if math.isnan(old) else _SMOOTHING * old + (1 - _SMOOTHING) * new


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None
