"""What `check` finds out about a training project: its model, and the rows of its hook points."""

from pathlib import Path

import torch

from asysi.capture.rows import first_tensor, row_shape
from asysi.contract.errors import ConfigError
from asysi.contract.rows import read_rows
from asysi.contract.spec import Spec, Train
from asysi.hosts.check import CheckReport, check_parameters, check_trainers, dtype_name, matched
from asysi.model.loading import LoadedModel, ResolvedModel
from asysi.model.points import HookPoint
from asysi.train.batches import BatchContract
from asysi.train.data_loader import BatchLoader
from asysi.train.model import make_model
from asysi.train.project import Project, open_project

_SAMPLES = 3
"""Of the trial forward."""


def open_watched(spec: Spec, output: Path) -> Project:
    """Return the project of a `train` workload, with what the spec says in place of its configuration.

    Args:
        spec: of the experiment.
        output: its folder, where a data pipeline leaves its rows.

    Raises:
        ConfigError: the folder holds no project, or its configuration is wrong.
    """
    part = spec.workload.train
    assert part is not None
    scheme, _, path = spec.model.uri.partition("://")
    if scheme != "file" or not Path(path).is_dir():
        raise ConfigError(
            f"spec.model.uri: {spec.model.uri} must be the folder of a training project, such as "
            "file://./digits; `asysi train new digits` writes one"
        )
    settings = [
        f"train.batch_size={part.batch_size}",
        f"train.microbatch={part.batch_size}",
        f"seed={part.seed}",
        *([f"train.epochs={part.epochs}"] if part.epochs else []),
        *([f"data.train={read_rows(spec.data, output).uri.removeprefix('jsonl://')}"] if spec.data else []),
    ]
    return open_project(Path(path), part.config, settings)


def examine(spec: Spec, report: CheckReport, output: Path) -> None:
    """Fill a report with the project's model and its hook points, after a forward of three samples.

    Raises:
        ConfigError: the project, its data or a hook point cannot be used.
    """
    part = spec.workload.train
    assert part is not None
    project = open_watched(spec, output)
    project.make_data()
    model = make_model(project.config).eval()
    uri = spec.model.uri
    report.model = ResolvedModel(uri, str(project.folder), None, None, type(model).__name__, None)
    dataset = project.dataset("train")
    report.documents = len(dataset)
    loader = BatchLoader(dataset, BatchContract(project.config.contract), _SAMPLES)
    _, batch = next(loader.batches(0))
    paths = matched(spec, LoadedModel(model, None, None), report)
    outputs = _outputs(model, paths, {name: value for name, value in batch.items() if name != "labels"})
    for path in paths:
        found = outputs.get(path)
        if found is None:
            report.problems.append(f"spec.capture.hookPoints: {path} is not called by the model's forward")
            continue
        row = row_shape(found.shape, len(batch["labels"]), part.length)
        if row is None:
            report.problems.append(
                f"spec.capture.hookPoints: {path} returns {list(found.shape)} for {_SAMPLES} samples: it "
                f"does not have {part.length} rows per sample, which spec.workload.train.length says"
            )
            continue
        shape = (part.batch_size, part.length, *row)
        report.points.append(HookPoint(path, None, shape, dtype_name(found.dtype), 1))
    check_parameters(spec, model, report)
    _check_length(part, batch, report)
    check_trainers(spec, report)


def _check_length(part: Train, batch: dict[str, torch.Tensor], report: CheckReport) -> None:
    mask = batch.get("attention_mask")
    if mask is not None and part.length not in {1, mask.shape[1]}:
        report.problems.append(
            f"spec.workload.train.length: is {part.length}, but a sample has {mask.shape[1]} tokens"
        )


def _outputs(
    model: torch.nn.Module, paths: list[str], inputs: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the first tensor that each module returned in a forward."""
    found: dict[str, torch.Tensor] = {}
    modules = dict(model.named_modules())

    def keep(path: str) -> object:
        def hook(_module: torch.nn.Module, _args: object, output: object) -> None:
            found.setdefault(path, first_tensor(output))

        return modules[path].register_forward_hook(hook)

    for path in paths:
        keep(path)
    with torch.inference_mode():
        model(**inputs)
    return found
