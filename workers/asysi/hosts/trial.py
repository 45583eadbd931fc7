"""Tries a model's forward pass as the host will call it: same arguments, up to the longest sequence.

If possible, the trial runs without weights (`model/hollow.py`), so that it takes a second for any model size.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from asysi.capture.rows import first_tensor
from asysi.contract.errors import ConfigError
from asysi.model.faults import format_error
from asysi.model.forward import base_of, decoder_start, shift_right
from asysi.model.hollow import NoRow, run_hollow

BATCH, LENGTH = 3, 7
"""Shape of the inspected trial; chosen because a model is unlikely to have dimensions of these sizes."""
_LONGEST, _LONGEST_PADDED = 8192, 2048  # a mask can take their squares in bytes

Inputs = dict[str, torch.Tensor]
Run = Callable[[Inputs], None]


@dataclass(frozen=True, slots=True)
class CallSpec:
    """How the host will call the model."""

    batch: int
    """Sequences per step."""
    length: int
    """Length of the longest sequence in tokens."""
    limit: int | None = None
    """Maximum number of tokens that the model declares; None if it declares none."""
    token: int = 0
    """An ordinary token of the tokenizer."""
    padding: int = 0
    """The padding token."""
    batch_field: str = "spec.workload.scan.batchSize"
    """Field of the spec for the number of sequences per step."""
    decoder_start: int | None = None
    """First token of the decoder's input; None without a decoder. `try_forward` fills it in."""


@dataclass(slots=True)
class TrialCalls:
    """The calls of a module in the trial forward pass."""

    outputs: list[torch.Tensor]
    """One output per call; they can be hollow."""


@dataclass(frozen=True, slots=True)
class _Probe:
    batch: int
    length: int
    padded: bool

    def inputs(self, asked: CallSpec) -> Inputs:
        """Return the arguments that the host passes; a mask only if there is padding."""
        ids = torch.full((self.batch, self.length), asked.token)
        inputs = {"input_ids": ids}
        if self.padded:
            mask = torch.ones_like(ids)
            mask[-1, self.length // 2 :] = 0
            inputs = {"input_ids": ids.where(mask.bool(), asked.padding), "attention_mask": mask}
        if asked.decoder_start is not None:
            inputs["decoder_input_ids"] = shift_right(inputs["input_ids"], asked.decoder_start)
        return inputs

    def __str__(self) -> str:
        mask = " and attention_mask" if self.padded else ""
        return f"input_ids{mask} of {self.batch} × {self.length} tokens"


class _FailedError(Exception):
    """A trial forward pass raised an exception."""

    def __init__(self, probe: _Probe, cause: Exception) -> None:
        super().__init__(str(probe))
        self.probe, self.cause = probe, cause


def try_forward(
    module: torch.nn.Module,
    paths: Sequence[str],
    asked: CallSpec,
    load: Callable[[], torch.nn.Module] | None = None,
) -> dict[str, TrialCalls]:
    """Return the calls of each module in a forward pass of BATCH × LENGTH tokens; also try the longest one.

    Args:
        module: the model; its parameters can be on the meta device.
        paths: modules to inspect; modules that were not called are missing from the result.
        asked: how the host will call the model.
        load: returns the model with its weights, for a forward pass that reads values; None if `module`
            already has weights.

    Raises:
        ConfigError: the model cannot be called like this, or not with sequences of this length.
    """
    root = base_of(module, list(paths))  # the whole module where its own path, "", is among them
    refuse_signature(root, asked)
    asked = replace(asked, decoder_start=decoder_start(root))
    try:
        return _tried(module, root, paths, asked, partial(run_hollow, root))
    except _FailedError as failed:
        if isinstance(failed.cause, NoRow) or failed.probe.length > LENGTH:
            raise _explained(root, failed, asked, partial(run_hollow, root)) from failed.cause
    real = load() if load else module  # the forward pass may depend on values, which are missing here
    root = base_of(real, list(paths))
    try:
        return _tried(real, root, paths, asked, partial(_run, root))
    except _FailedError as failed:
        raise _explained(root, failed, asked, partial(_run, root)) from failed.cause


def refuse_signature(root: torch.nn.Module, asked: CallSpec) -> None:
    """Reject a forward that does not accept the host's arguments.

    Raises:
        ConfigError: it does not read input_ids, has other required arguments, or does not accept a mask.
    """
    name, parameters = type(root).__name__, inspect.signature(root.forward).parameters
    anything = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    reads = getattr(root, "main_input_name", "input_ids")
    if reads != "input_ids" or not (anything or "input_ids" in parameters):
        named = reads if reads != "input_ids" else ", ".join(parameters) or "nothing"
        raise ConfigError(
            f"spec.model.uri: the forward of {name} reads {named} and no input_ids: an experiment runs "
            "models that read token numbers; asysi.ScannerEngine takes any inputs"
        )
    if asked.batch > 1 and not (anything or "attention_mask" in parameters):
        raise ConfigError(
            f"spec.model.uri: the forward of {name} takes no attention_mask, which it is given when the "
            "sequences of a step differ in length: give it one (`attention_mask=None`; a causal model may "
            f"ignore it), or set {asked.batch_field} to 1"
        )
    needed = [
        one.name
        for one in parameters.values()
        if one.default is one.empty
        and one.kind in {one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY}
        and one.name not in {"input_ids", "attention_mask"}
    ]
    if needed:
        raise ConfigError(
            f"spec.model.uri: the forward of {name} needs {', '.join(needed)} besides input_ids and "
            "attention_mask, and is given nothing else: give defaults to these arguments"
        )


def _tried(
    module: torch.nn.Module, root: torch.nn.Module, paths: Sequence[str], asked: CallSpec, run: Run
) -> dict[str, TrialCalls]:
    length = min(asked.length, asked.limit or asked.length)
    longest, padded = min(length, _LONGEST), min(length, _LONGEST_PADDED)
    with _watched(module, paths) as found:
        _try(run, _Probe(BATCH, LENGTH, padded=asked.batch > 1), asked)
    missed = [path for path in paths if path not in found]
    with _watched(module, missed) as late:
        _try(run, _Probe(BATCH, LENGTH, padded=False), asked)
    found |= late
    _try(run, _Probe(1, longest, padded=False), asked)
    if asked.batch > 1:
        _try(run, _Probe(2, padded, padded=True), asked)
    return found


def _try(run: Run, probe: _Probe, asked: CallSpec) -> None:
    try:
        run(probe.inputs(asked))
    except ConfigError:
        raise
    except Exception as error:  # a custom forward may raise anything
        raise _FailedError(probe, error) from error


def _run(root: torch.nn.Module, inputs: Inputs) -> None:
    device = next((parameter.device for parameter in root.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        root(**{name: value.to(device) for name, value in inputs.items()})


@contextmanager
def _watched(module: torch.nn.Module, paths: Sequence[str]) -> Iterator[dict[str, TrialCalls]]:
    found: dict[str, TrialCalls] = {}

    def keep(path: str, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        try:
            found.setdefault(path, TrialCalls([])).outputs.append(first_tensor(output))
        except TypeError as error:
            raise ConfigError(f"spec.capture.hookPoints: {path}: {error}") from error

    modules = dict(module.named_modules(remove_duplicate=False))
    handles = [modules[path].register_forward_hook(partial(keep, path)) for path in paths]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _explained(root: torch.nn.Module, failed: _FailedError, asked: CallSpec, run: Run) -> ConfigError:
    """Return an error with advice for a failed forward pass, such as a shorter sequence if that helps."""
    name, probe, why = type(root).__name__, failed.probe, format_error(failed.cause)
    if probe.length <= LENGTH:
        return ConfigError(f"spec.model.uri: the forward of {name} fails with {probe}: {why}")
    most = _longest(
        lambda length: _works(run, _Probe(probe.batch, length, probe.padded), asked), probe.length
    )
    return ConfigError(
        f"spec.data.tokens.contextLength: is {asked.length}, but {name} can read {most} tokens: with "
        f"{most + 1} its forward fails ({why}). Lower it to {most} or less"
    )


def _works(run: Run, probe: _Probe, asked: CallSpec) -> bool:
    try:
        _try(run, probe, asked)
    except _FailedError:
        return False
    return True


def _longest(works: Callable[[int], bool], too_long: int) -> int:
    """Return the maximum working length by bisection; LENGTH works and `too_long` does not."""
    good = LENGTH
    while too_long - good > 1:
        middle = (good + too_long) // 2
        good, too_long = (middle, too_long) if works(middle) else (good, middle)
    return good
