"""Everything that can be known to be wrong before an experiment runs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asysi.capture.aliases import alias_of
from asysi.capture.globs import match_globs
from asysi.capture.points import HookPoint
from asysi.contract.errors import ConfigError
from asysi.contract.quantity import format_bytes
from asysi.contract.rows import pipeline_file, read_rows
from asysi.contract.spec import Data, ScanExperiment, Spec
from asysi.hosts.model import ResolvedModel, build_on_meta, load_model, load_tokenizer, resolve_model
from asysi.hosts.rings import RingPlan, bus_problems, capture_problems, plan_rings
from asysi.hosts.text import TextSource
from asysi.hosts.tokens import make_policy

if TYPE_CHECKING:
    import torch

_BATCH, _LENGTH = 3, 7  # of the trial forward: no other size of a model is likely to be these two


@dataclass
class CheckReport:
    """What an experiment would do, and why it cannot."""

    model: ResolvedModel | None = None
    points: list[HookPoint] = field(default_factory=list)
    """The matched hook points, in the model's order."""
    documents: int = 0
    """Distinct documents."""
    duplicates: int = 0
    held_out: int = 0
    rings: tuple[RingPlan, ...] = ()
    """Capture ring and bus."""
    ring_bytes: int = 0
    """Bytes of shared memory that the rings take together."""
    problems: list[str] = field(default_factory=list)
    """Sentences; with any of them the experiment is refused."""
    warnings: list[str] = field(default_factory=list)
    """Sentences about what works, but perhaps not as meant."""

    def need(self, error: ConfigError) -> None:
        """Take over the problems of an error."""
        self.problems += error.problems


def check(
    experiment: ScanExperiment,
    *,
    shm: Path = Path("/dev/shm"),  # noqa: S108 - where shared memory is
    output: Path | None = None,
    workspace: Path | None = None,
) -> CheckReport:
    """Return what is wrong with an experiment, all of it at once. Nothing is created.

    Args:
        experiment: the whole of it.
        shm: folder of the rings; its file system must hold them.
        output: folder of the results; None takes the spec's, or `runs/<name>`.
        workspace: folder that a hf:// model is fetched into; None uses the hub's own cache.
    """
    spec, report = experiment.spec, CheckReport()
    _check_model(spec, report, workspace)
    if spec.data is not None:
        _check_data(experiment, spec.data, output or _default_output(experiment), report)
    _check_rings(spec, report, shm)
    _check_output(output or _default_output(experiment), report)
    return report


def missing_bytes(rings: Sequence[RingPlan], shm: Path) -> int:
    """Return the bytes that the rings take below `shm`, those that are already there left out."""
    from asysi_ring import required_bytes  # noqa: PLC0415 - needs the compiled ring

    return sum(
        required_bytes(
            shards=ring.shards, chunks=ring.chunks, chunk_bytes=ring.chunk_bytes, accounts=ring.accounts
        )
        for ring in rings
        if not (shm / ring.folder / "data").exists()
    )


def _check_model(spec: Spec, report: CheckReport, workspace: Path | None) -> None:
    try:
        report.model = resolve_model(spec.model, workspace)
        module, model_type = build_on_meta(report.model, spec.model.dtype)
        if report.model.class_name is None:
            report.model = replace(report.model, class_name=type(module).__name__)
        names = [name for name, _ in module.named_modules()]
        paths = match_globs(spec.capture.hook_points, names)
        length = spec.data.tokens.context_length if spec.data else 1
        batch = spec.workload.scan.batch_size if spec.workload.scan else 1
        outputs = _trial(report.model, spec.model.dtype, module, paths)
        for path in paths:
            try:
                shape = (batch, length, *_row_shape(path, outputs.get(path)))
                report.points.append(
                    HookPoint(path, alias_of(model_type, path), shape, _dtype(outputs[path]))
                )
            except ConfigError as error:
                report.need(error)
        _check_positions(module, length, report)
    except ConfigError as error:
        report.need(error)


def _trial(
    resolved: ResolvedModel, dtype: str, module: "torch.nn.Module", paths: list[str]
) -> "dict[str, torch.Tensor]":
    """Return an output of each hook point that is called, by a forward without weights where that works."""
    try:
        return _outputs(module, paths)
    except ConfigError:
        raise
    except Exception as error:  # a forward may do anything; some look at values
        if resolved.path is None:
            raise ConfigError(
                f"spec.model.uri: the forward of {resolved.uri} fails with {_BATCH} × {_LENGTH} input_ids:"
                f" {type(error).__name__}: {error}"
            ) from error
    try:
        return _outputs(load_model(resolved, dtype).module, paths)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"spec.model.uri: the forward of the model fails: {type(error).__name__}: {error}"
        ) from error


def _outputs(module: "torch.nn.Module", paths: list[str]) -> "dict[str, torch.Tensor]":
    import torch  # noqa: PLC0415 - heavy

    from asysi.capture.rows import first_tensor  # noqa: PLC0415 - imports torch
    from asysi.hosts.scan import base_of  # noqa: PLC0415 - imports torch

    found: dict[str, torch.Tensor] = {}

    def keep(path: str, output: Any) -> None:
        try:
            found[path] = first_tensor(output)
        except TypeError as error:
            raise ConfigError(f"spec.capture.hookPoints: {path}: {error}") from error

    modules = dict(module.named_modules())
    handles = [
        modules[path].register_forward_hook(lambda _module, _args, output, path=path: keep(path, output))
        for path in paths
    ]
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    try:
        with torch.inference_mode():
            base_of(module, paths)(input_ids=torch.zeros((_BATCH, _LENGTH), dtype=torch.long, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _row_shape(path: str, output: "torch.Tensor | None") -> tuple[int, ...]:
    """Return the shape of a token's row in an output of the trial forward.

    Raises:
        ConfigError: the forward never calls the module, or its output has no row a token.
    """
    where = f"spec.capture.hookPoints: {path}"
    if output is None:
        raise ConfigError(f"{where} is no part of the forward: the model never calls it")
    shape = tuple(output.shape)
    if not output.is_floating_point():
        raise ConfigError(f"{where} returns {output.dtype}, no activation")
    if shape[:2] == (_BATCH, _LENGTH) and len(shape) > 2:
        return shape[2:]
    if shape[:1] == (_BATCH * _LENGTH,) and len(shape) > 1:
        return shape[1:]
    raise ConfigError(f"{where} returns {list(shape)} for {_BATCH} × {_LENGTH} tokens: it has no row a token")


def _dtype(output: "torch.Tensor") -> str:
    name = str(output.dtype).removeprefix("torch.")
    return (
        name if name in {"float16", "bfloat16"} else "float32"
    )  # capture converts what the ring does not know


def _check_positions(module: "torch.nn.Module", length: int, report: CheckReport) -> None:
    most = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    if isinstance(most, int) and length > most:
        report.problems.append(
            f"spec.data.tokens.contextLength: is {length}, but the model has {most} positions: lower it to "
            f"{most} or less"
        )


def _check_data(experiment: ScanExperiment, data: Data, output: Path, report: CheckReport) -> None:
    if report.model is not None and report.model.tokenizer is not None:
        try:
            make_policy(data.tokens, load_tokenizer(report.model))
        except ConfigError as error:
            report.need(error)
    spec, rows = experiment.spec, read_rows(data, output.absolute())
    if data.pipeline is not None and not Path(f"{rows.uri.removeprefix('jsonl://')}.done").exists():
        _check_pipeline(experiment, output.absolute(), report)
        return
    source = TextSource(rows, spec.workload.scan.max_samples if spec.workload.scan else None)
    try:
        for document in source:
            report.documents += 1
            report.held_out += document.holdout
    except ConfigError as error:
        report.need(error)
        return
    report.duplicates = source.duplicates
    if not report.documents:
        report.problems.append(f"spec.data.uri: {rows.uri} holds no document")
    elif data.holdout.share and not report.held_out:
        report.warnings.append(
            f"spec.data.holdout.share: none of {report.documents} documents is held out, so nothing can be "
            "evaluated"
        )


def _check_pipeline(experiment: ScanExperiment, output: Path, report: CheckReport) -> None:
    """Make the operators of a pipeline that has not run yet."""
    from asysi.pipeline.specfile import operators_of  # noqa: PLC0415 - few experiments have a pipeline

    try:
        operators_of(pipeline_file(experiment, output))
    except ConfigError as error:
        report.problems += [f"spec.data.pipeline.{problem}" for problem in error.problems]
    report.warnings.append("spec.data.pipeline: how many documents it makes is known once it has run")


def _check_rings(spec: Spec, report: CheckReport, shm: Path) -> None:
    report.rings = capture, bus = plan_rings(spec, len(report.points))
    batch = spec.workload.scan.batch_size if spec.workload.scan else 1
    length = spec.data.tokens.context_length if spec.data else 1
    wrong = capture_problems(spec, capture, report.points, batch, length) + bus_problems(
        spec, bus, report.points
    )
    report.problems += wrong
    if wrong:
        return
    try:
        report.ring_bytes = missing_bytes(report.rings, shm)
    except ImportError:
        report.problems.append(
            "spec.mode: HPC needs the native ring, and this installation has none: install with a C++20 "
            "compiler at hand"
        )
        return
    disk = os.statvfs(_standing(shm))
    free = disk.f_bavail * disk.f_frsize
    if report.ring_bytes > free:
        report.problems.append(
            f"spec.bus.size, spec.capture.size: the rings take {spec.capture.size} + {spec.bus.size}"
            f" ({report.ring_bytes / 2**20:.0f}Mi with their control files), but {shm} has only"
            f" {format_bytes(free >> 20 << 20)} free: make the rings smaller, or the file system larger"
        )


def _check_output(output: Path, report: CheckReport) -> None:
    standing = _standing(output)
    if not standing.is_dir():
        report.problems.append(f"spec.output.uri: {output} cannot be made: {standing} is no folder")
    elif not os.access(standing, os.W_OK | os.X_OK):
        report.problems.append(f"spec.output.uri: {output} cannot be written: no permission in {standing}")


def _default_output(experiment: ScanExperiment) -> Path:
    uri = experiment.spec.output.uri
    return Path(uri.removeprefix("file://")) if uri else Path("runs") / experiment.metadata.name


def _standing(path: Path) -> Path:
    """Return the nearest of `path` and its parents that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())
