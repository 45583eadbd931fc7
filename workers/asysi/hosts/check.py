"""Checks an experiment before it runs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asysi.bus.factory import create_data_bus
from asysi.bus.plan import StreamPlan
from asysi.capture.slots import SlotPlan
from asysi.contract.errors import ConfigError
from asysi.contract.quantity import format_bytes, parse_bytes
from asysi.contract.rows import pipeline_file, read_rows
from asysi.contract.rules import HEAP
from asysi.contract.spec import Data, ScanExperiment, Spec
from asysi.contract.workloads import name_of, text_of, workload_of
from asysi.hosts.rings import bus_problems, capture_problems, plan_device_slots, plan_rings
from asysi.model.aliases import alias_of
from asysi.model.globs import match_globs, split_call
from asysi.model.loading import LoadedModel, ResolvedModel, build_structure, load_model, resolve_model
from asysi.model.points import HookPoint
from asysi.text.rows import TextSource
from asysi.text.tokens import make_policy, ordinary_token, padding_token

if TYPE_CHECKING:
    import torch

    from asysi.hosts.trial import TrialCalls


@dataclass
class CheckReport:
    """The result of checking an experiment."""

    model: ResolvedModel | None = None
    points: list[HookPoint] = field(default_factory=list)
    """The resolved hook points, in the model's order."""
    parameters: list[str] = field(default_factory=list)
    """Parameters whose gradients are captured."""
    documents: int = 0
    """Distinct documents."""
    duplicates: int = 0
    held_out: int = 0
    rings: tuple[StreamPlan, ...] = ()
    """Capture ring and bus."""
    slots: SlotPlan | None = None
    """What capture takes of a GPU's memory; None without one."""
    ring_bytes: int = 0
    """Shared memory needed by both rings, in bytes."""
    problems: list[str] = field(default_factory=list)
    """Problems; the experiment is rejected if there are any."""
    warnings: list[str] = field(default_factory=list)
    """Things that work, but possibly not as intended."""

    def need(self, error: ConfigError) -> None:
        """Add the problems of an error."""
        self.problems += error.problems


def check(
    experiment: ScanExperiment,
    *,
    shm: Path = Path("/dev/shm"),  # noqa: S108 - where shared memory is
    output: Path | None = None,
    workspace: Path | None = None,
) -> CheckReport:
    """Check an experiment and report all problems at once. Read-only.

    Args:
        experiment: the experiment.
        shm: folder of the rings; its file system must have room for them.
        output: folder of the results; None uses the spec's, or `runs/<name>`.
        workspace: download folder for a hf:// model; None uses the default cache of the hub.
    """
    spec, report = experiment.spec, CheckReport()
    _check_kinds(spec, report)
    tokenizer = None
    row = workload_of(spec)
    if row.examine is None:
        tokenizer = _check_model(spec, report, workspace)
    else:
        _examine(row.examine, spec, report, output or _default_output(experiment))
    if spec.data is not None and row.examine is None:
        _check_data(experiment, spec.data, tokenizer, output or _default_output(experiment), report)
    _check_rings(spec, report, shm)
    _check_output(output or _default_output(experiment), report)
    return report


def _check_kinds(spec: Spec, report: CheckReport) -> None:
    """Reject gradients where the host cannot capture them."""
    wanted = [kind for kind in spec.capture.kinds if kind != "activations"]
    if wanted and spec.resources.host.gpus:
        report.problems.append(
            f"spec.capture.kinds: {' and '.join(wanted)} cannot be captured from a GPU yet: set "
            "resources.host.gpus to 0, or capture activations only"
        )
    if spec.sae is not None and "activations" not in spec.capture.kinds:
        report.problems.append(
            "spec.capture.kinds: has no activations, but the trainers of spec.sae train on them: add"
            " activations, or remove sae"
        )
    scan = spec.workload.scan
    if not wanted and scan is not None and scan.loss != "none":
        report.warnings.append(
            f"spec.workload.scan.loss: is {scan.loss}, but spec.capture.kinds has no gradients:"
            " it is not computed"
        )
    need, limit = HEAP + parse_bytes(spec.capture.size), spec.resources.hook.memory
    if {"activations", "gradients"} <= set(spec.capture.kinds) and parse_bytes(limit) < need:
        report.problems.append(
            f"spec.resources.hook.memory: is {limit}, but to join gradients the hook worker keeps up to"
            f" capture.size ({spec.capture.size}) of activations beside {format_bytes(HEAP)} of its own:"
            f" raise it to {format_bytes(need)}, or lower capture.size"
        )


def missing_bytes(spec: Spec, rings: Sequence[StreamPlan], shm: Path) -> int:
    """Return the shared memory that the streams still need in `shm`, in bytes.

    Raises:
        ImportError: this installation has no native ring, and the streams are rings.
    """
    return sum(create_data_bus(spec, shm, ring.folder).missing_bytes(ring) for ring in rings)


def _examine(function: str, spec: Spec, report: CheckReport, output: Path) -> None:
    """Let the workload's own function find the model and its hook points."""
    module, _, name = function.partition(":")
    try:
        getattr(import_module(module), name)(spec, report, output.absolute())
    except ConfigError as error:
        report.need(error)
    except ValueError as error:  # a label that is out of range
        report.problems.append(str(error))


def _check_model(spec: Spec, report: CheckReport, workspace: Path | None) -> Any:
    """Resolve the hook points and run a trial; return the tokenizer, or None if there is no model."""
    tokenizer = None
    try:
        report.model = resolve_model(spec.model, workspace)
        loaded = build_structure(report.model, spec.model.dtype)
        tokenizer = loaded.tokenizer
        if loaded.warning:
            report.warnings.append(loaded.warning)
        if report.model.class_name is None:
            report.model = replace(report.model, class_name=type(loaded.module).__name__)
        _check_points(spec, loaded, report)
    except ConfigError as error:
        report.need(error)
    return tokenizer


def _check_points(spec: Spec, loaded: LoadedModel, report: CheckReport) -> None:
    """Resolve the hook points and try the forward pass as the host will call it."""
    from asysi.hosts.trial import CallSpec, try_forward  # noqa: PLC0415 - imports torch

    assert report.model is not None
    resolved, module, tokenizer = report.model, loaded.module, loaded.tokenizer
    batch, length = workload_of(spec).step_shape(spec)
    paths = matched(spec, loaded, report)
    loss = spec.workload.scan.loss if spec.workload.scan else "none"
    whole = [""] if loss != "none" else []  # the root: its output is what the loss is computed from
    most = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    limit = most if isinstance(most, int) and most > 0 else None
    called = try_forward(
        module,
        list(dict.fromkeys([*whole, *(split_call(path)[0] for path in paths)])),
        CallSpec(
            batch,
            length,
            limit,
            ordinary_token(tokenizer),
            padding_token(tokenizer),
            f"spec.workload.{name_of(spec)}.batchSize",
        ),
        None if loaded.warning else lambda: load_model(resolved, spec.model.dtype).module,
    )
    check_parameters(spec, module, report)
    if whole:
        _check_loss(loss, module, called, report)
    unseen: list[str] = []
    for path in paths:
        try:
            outputs, calls = _calls(path, called)
            if not outputs:
                _refuse_uncallable(path, module)
                unseen.append(path)
                continue
            shape = (batch, length, *_row_shape(path, outputs))
            alias = alias_of(loaded.model_type, path)
            report.points.append(HookPoint(path, alias, shape, _dtype(outputs[0]), calls))
            if not calls:
                report.warnings.append(_too_few_calls(path, outputs))
        except ConfigError as error:
            report.need(error)
    if unseen:
        _plan_unseen(unseen, paths, (batch, length), loaded, report)
    if limit is not None and limit < length:
        report.problems.append(
            f"spec.data.tokens.contextLength: is {length}, but the model has {most} positions: lower it to "
            f"{most} or less"
        )
    check_trainers(spec, report)
    _check_vocabulary(module, tokenizer, report)


def check_parameters(spec: Spec, module: "torch.nn.Module", report: CheckReport) -> None:
    """Match the globs on parameters, and reject frozen ones."""
    from asysi.capture.parameters import wanted_parameters  # noqa: PLC0415 - imports torch

    try:
        wanted = wanted_parameters(spec.capture, module)
    except ConfigError as error:
        report.need(error)
        return
    report.parameters = list(wanted)
    frozen = [name for name, parameter in wanted.items() if not parameter.requires_grad]
    if frozen:
        report.problems.append(
            f"spec.capture.parameters: {', '.join(frozen[:_FEW])} have requires_grad=False, so they have no "
            "gradient: choose others"
        )


def _check_loss(
    name: str, module: "torch.nn.Module", called: "dict[str, TrialCalls]", report: CheckReport
) -> None:
    from asysi.hosts.trial import BATCH, LENGTH  # noqa: PLC0415 - imports torch
    from asysi.model.loss import refuse_loss  # noqa: PLC0415 - imports torch

    outputs = called[""].outputs if "" in called else []
    try:
        refuse_loss(name, module, outputs[0] if outputs else None, BATCH * LENGTH)
    except ConfigError as error:
        report.need(error)


def matched(spec: Spec, loaded: LoadedModel, report: CheckReport) -> list[str]:
    """Return the paths of the modules that match the globs, one path per module.

    A module with several names is captured once, under the first matching name.
    """
    modules = dict(loaded.module.named_modules(remove_duplicate=False))
    aliases = {name: alias for name in modules if (alias := alias_of(loaded.model_type, name))}
    first: dict[tuple[int, int | None], str] = {}
    for path in match_globs(spec.capture.hook_points, list(modules), aliases=aliases):
        name, call = split_call(path)
        watched = first.setdefault((id(modules[name]), call), path)
        if watched != path:
            report.warnings.append(
                f"spec.capture.hookPoints: {path} and {watched} are the same module: it is watched once, as "
                f"{watched}"
            )
    return list(first.values())


def check_trainers(spec: Spec, report: CheckReport) -> None:
    """Match the trainers' globs against the hook points, as the sae worker will do."""
    paths = [point.path for point in report.points]
    trainers = spec.sae.train if spec.sae and spec.sae.enabled and paths else ()
    for number, trainer in enumerate(trainers):
        where = f"spec.sae.train[{number}].hookPoints"
        try:
            wanted = match_globs(trainer.hook_points, paths, where, calls=False)
        except ConfigError as error:
            report.need(error)
            continue
        unseen = [point.path for point in report.points if point.path in wanted and not point.calls]
        if unseen:
            report.warnings.append(
                f"{where}: {trainer.name} trains on {', '.join(unseen[:_FEW])}, which the trial forward does "
                "not call: the run fails if it gets no row by the end"
            )


def _check_vocabulary(module: "torch.nn.Module", tokenizer: Any, report: CheckReport) -> None:
    """Warn about tokens without an embedding: text that contains one stops the run."""
    embedding = getattr(module, "get_input_embeddings", lambda: None)()
    rows = getattr(getattr(embedding, "weight", None), "shape", (0,))[0]
    beyond = sorted((number, name) for name, number in tokenizer.get_vocab().items() if number >= rows > 0)
    if beyond:
        report.warnings.append(
            f"spec.model.tokenizer: {len(beyond)} of its tokens have no row in the model's embedding of "
            f"{rows}, like {beyond[0][1]!r}: text that holds one of them stops the run"
        )


def _calls(name: str, called: "dict[str, TrialCalls]") -> "tuple[list[torch.Tensor], int]":
    """Return a module's outputs in the trial, and the number of its calls that the hook point selects.

    Returns an empty list and 0 if the module was not called. If it was called too few times for `#n`, returns
    the outputs of its other calls and 0.
    """
    path, call = split_call(name)
    outputs = called[path].outputs if path in called else []
    if call is None:
        return outputs, len(outputs)
    return ([outputs[call]], 1) if call < len(outputs) else (outputs, 0)


def _too_few_calls(name: str, outputs: "list[torch.Tensor]") -> str:
    path, _ = split_call(name)
    return (
        f"spec.capture.hookPoints: {name} has no row unless the run calls it more often than the trial did: "
        f"a forward pass calls {path} {len(outputs)} times (#0 to #{len(outputs) - 1})"
    )


def _refuse_uncallable(name: str, module: "torch.nn.Module") -> None:
    """Reject a module that can never be called.

    Raises:
        ConfigError: the module has no forward.
    """
    from asysi.hosts.unseen import is_callable  # noqa: PLC0415 - imports torch

    path, _ = split_call(name)
    watched = module.get_submodule(path)
    if not is_callable(watched):
        raise ConfigError(
            f"spec.capture.hookPoints: {name} is a {type(watched).__name__}, which has no forward and is "
            f"never called: select the modules in it, such as {path}.*"
        )


def _plan_unseen(
    unseen: list[str], order: list[str], grid: tuple[int, int], loaded: LoadedModel, report: CheckReport
) -> None:
    """Add the hook points that the trial did not reach, with their maximum possible width, and warn.

    Whether the run reaches them depends on the data: a model can skip modules for some batches.
    """
    from asysi.hosts.unseen import planned_dtype, planned_width  # noqa: PLC0415 - imports torch

    module, seen = loaded.module, [point.width for point in report.points]
    for path in unseen:
        watched = module.get_submodule(split_call(path)[0])
        width = planned_width(watched, seen, getattr(module, "config", None))
        dtype = dtype_name(planned_dtype(watched, module))
        shape = (*grid, width) if width else ()
        report.points.append(HookPoint(path, alias_of(loaded.model_type, path), shape, dtype, 0))
    place = {path: number for number, path in enumerate(order)}
    report.points.sort(key=lambda point: place[point.path])
    named = ", ".join(unseen[:_FEW]) + (f" and {len(unseen) - _FEW} more" if len(unseen) > _FEW else "")
    report.warnings.append(
        f"spec.capture.hookPoints: the trial forward does not call {named}: there is no row unless the run "
        "does"
    )


_FEW = 5


def _row_shape(name: str, outputs: "list[torch.Tensor]") -> tuple[int, ...]:
    """Return the shape of a token's row in the outputs of the trial forward pass.

    Raises:
        ConfigError: an output does not have one row per token, or calls return rows of different shapes.
    """
    from asysi.capture.rows import row_shape  # noqa: PLC0415 - imports torch
    from asysi.hosts.trial import BATCH, LENGTH  # noqa: PLC0415 - imports torch

    where = f"spec.capture.hookPoints: {name}"
    shapes: list[tuple[int, ...]] = []
    for output in outputs:
        if not output.is_floating_point():
            raise ConfigError(f"{where} returns {output.dtype}, not an activation")
        row = row_shape(output.shape, BATCH, LENGTH)
        if row is None:
            raise ConfigError(
                f"{where} returns {list(output.shape)} for {BATCH} × {LENGTH} tokens: it has no row per token"
            )
        shapes.append(row)
    if len(set(shapes)) > 1:
        widths = ", ".join(f"#{call}: {list(shape)}" for call, shape in enumerate(shapes))
        raise ConfigError(
            f"{where} returns rows of different shapes in one forward ({widths}): address one call, as "
            f"{name}#0"
        )
    return shapes[0]


def _dtype(output: "torch.Tensor") -> str:
    return dtype_name(output.dtype)


def dtype_name(dtype: "torch.dtype") -> str:
    """Return the type that rows of a tensor are captured in."""
    name = str(dtype).removeprefix("torch.")
    return (
        name if name in {"float16", "bfloat16"} else "float32"
    )  # capture converts dtypes that the ring does not support


def _check_data(
    experiment: ScanExperiment, data: Data, tokenizer: Any, output: Path, report: CheckReport
) -> None:
    if tokenizer is not None:
        try:
            make_policy(data.tokens, tokenizer)
        except ConfigError as error:
            report.need(error)
    spec, rows = experiment.spec, read_rows(data, output.absolute())
    if data.pipeline is not None and not Path(f"{rows.uri.removeprefix('jsonl://')}.done").exists():
        _check_pipeline(experiment, output.absolute(), report)
        return
    text = text_of(spec)
    if data.tokens.chat_template and (tokenizer is None or not getattr(tokenizer, "chat_template", None)):
        return  # that is a problem of its own, and the rows cannot be read without it
    source = TextSource(rows, text.max_samples if text else None, tokenizer)
    try:
        for document in source:
            report.documents += 1
            report.held_out += document.holdout
    except ConfigError as error:
        report.need(error)
        return
    report.duplicates = source.duplicates
    if source.renumbered:
        report.warnings.append(
            f"spec.data.uri: {source.renumbered} of {report.documents} documents have a number (`_i`, or "
            "their line) that an earlier document has: theirs is 2^63 plus their line from here on"
        )
    if not report.documents:
        report.problems.append(f"spec.data.uri: {rows.uri} holds no document")
    elif data.holdout.share and not report.held_out:
        report.warnings.append(
            f"spec.data.holdout.share: none of {report.documents} documents is held out, so nothing can be "
            "evaluated"
        )


def _check_pipeline(experiment: ScanExperiment, output: Path, report: CheckReport) -> None:
    """Instantiate the operators of a pipeline that has not run yet."""
    from asysi.pipeline.run.pipeline_file import operators_of  # noqa: PLC0415 - few experiments have a pipeline

    try:
        operators_of(pipeline_file(experiment, output))
    except ConfigError as error:
        report.problems += [
            problem if problem.startswith("spec.") else f"spec.data.pipeline.{problem}"
            for problem in error.problems
        ]
    report.warnings.append("spec.data.pipeline: the number of documents is only known once it has run")


def _check_rings(spec: Spec, report: CheckReport, shm: Path) -> None:
    parameters = len(report.parameters)
    report.rings = capture, bus = plan_rings(spec, len(report.points), parameters)
    batch, length = workload_of(spec).step_shape(spec)
    wrong = capture_problems(
        spec, capture, report.points, batch, length, parameters=parameters
    ) + bus_problems(spec, bus, report.points)
    report.problems += wrong
    if wrong:
        return
    report.slots = plan_device_slots(spec, report.points, batch, length)
    try:
        report.ring_bytes = missing_bytes(spec, report.rings, shm)
    except ImportError:
        report.problems.append(
            "spec.mode: HPC needs the native ring, and this installation has none: install with a C++20 "
            "compiler at hand, or use `mode: CONSUMER`"
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
        report.problems.append(f"spec.output.uri: {output} cannot be created: {standing} is not a folder")
    elif not os.access(standing, os.W_OK | os.X_OK):
        report.problems.append(f"spec.output.uri: {output} cannot be written: no permission in {standing}")


def _default_output(experiment: ScanExperiment) -> Path:
    output = experiment.spec.output
    uri = None if output.store else output.uri
    return Path(uri.removeprefix("file://")) if uri else Path("runs") / experiment.metadata.name


def _standing(path: Path) -> Path:
    """Return `path` or its nearest parent that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())
