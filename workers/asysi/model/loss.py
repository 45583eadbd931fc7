"""Losses that a scan differentiates: `workload.scan.loss`."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from asysi.bus.packet import Reduction
from asysi.contract.errors import ConfigError
from asysi.model.loading import load_callable

_WHERE = "spec.workload.scan.loss"
IGNORED = -100
"""Label of a token that is not predicted, as in PyTorch and transformers."""

Inputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class ScanLoss:
    """A loss of one batch.

    Its `compute` takes the model and the arguments of its forward (`input_ids`, perhaps `attention_mask`),
    runs the forward pass, and returns a scalar.
    """

    compute: Callable[[torch.nn.Module, Inputs], torch.Tensor]
    reduction: Reduction
    """How it is reduced over tokens."""


def make_loss(name: str) -> ScanLoss | None:
    """Return the loss with a name of the spec; None for `none`.

    Raises:
        ConfigError: there is no such loss, or a python:// function cannot be imported.
    """
    if name == "none":
        return None
    if name == "lm":
        return ScanLoss(_next_token, Reduction.MEAN)
    if name == "module":
        return ScanLoss(_own, Reduction.UNKNOWN)
    scheme, _, reference = name.partition("://")
    if scheme != "python":
        raise ConfigError(f"{_WHERE}: {name!r} is not none, lm, module or python://package.module:function")
    function = load_callable(reference, _WHERE)
    return ScanLoss(lambda root, inputs: _users(function, name, root, inputs), Reduction.UNKNOWN)


def refuse_loss(name: str, root: torch.nn.Module, output: torch.Tensor | None, tokens: int) -> None:
    """Check a loss against a model, before a run.

    Args:
        name: the loss, as in the spec.
        root: the model.
        output: first tensor that its forward returned for `tokens` tokens; None if unknown.
        tokens: batch × length of the trial.

    Raises:
        ConfigError: the loss cannot be computed for this model.
    """
    make_loss(name)
    kind = type(root).__name__
    if name == "module" and "labels" not in inspect.signature(root.forward).parameters:
        raise ConfigError(
            f"{_WHERE}: module takes the loss that the model itself computes from `labels`, but the forward "
            f"of {kind} has no such argument: use lm, or python://package.module:function"
        )
    if name == "lm" and output is not None and not (output.ndim == 3 and output[..., 0].numel() == tokens):
        raise ConfigError(
            f"{_WHERE}: lm needs logits [batch, length, vocabulary], but {kind} returns {list(output.shape)} "
            f"for {tokens} tokens: load it with its head (the architecture in its config.json)"
        )
    if name == "lm" and _without_head(root):
        raise ConfigError(
            f"{_WHERE}: lm needs logits, but {kind} is a model without a head: load it with its head (the "
            "architecture in its config.json)"
        )


def _without_head(root: torch.nn.Module) -> bool:
    """Return whether a model of transformers says that it has no output embeddings."""
    output = getattr(root, "get_output_embeddings", None)
    return output is not None and output() is None


def labels_of(inputs: Inputs) -> torch.Tensor:
    """Return the tokens [batch, length] as labels, with IGNORED in place of padding."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    return ids if mask is None else ids.masked_fill(mask == 0, IGNORED)


def _next_token(root: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
    """Return the mean cross-entropy in nats of each token that is not padding, given those before it.

    A decoder with an input of its own reads it shifted: its logits at a position are of the token there.
    """
    logits, labels = _logits(root(**inputs)), labels_of(inputs)
    if "decoder_input_ids" not in inputs:
        logits, labels = logits[:, :-1], labels[:, 1:]
    targets = labels.reshape(-1)
    total = functional.cross_entropy(
        logits.float().flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum"
    )
    return total / (targets != IGNORED).sum().clamp(min=1)


def _logits(output: Any) -> torch.Tensor:
    found = getattr(output, "logits", None)
    if found is None:
        found = output.get("logits") if isinstance(output, Mapping) else output
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, torch.Tensor) or found.ndim != 3:
        what = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise ConfigError(f"{_WHERE}: lm needs logits [batch, length, vocabulary], the model returns {what}")
    return found


def _own(root: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
    """Return the loss that the model computes from labels."""
    output = root(**inputs, labels=labels_of(inputs))
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if found is None and isinstance(output, tuple) and output:
        found = output[0]
    return _scalar(found, "module: the model's loss")


def _users(function: Callable[..., Any], name: str, root: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
    return _scalar(function(root(**inputs), dict(inputs)), name)


def _scalar(found: Any, name: str) -> torch.Tensor:
    if not isinstance(found, torch.Tensor) or found.numel() != 1:
        what = f"a tensor {list(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise ConfigError(f"{_WHERE}: {name} is {what}, not a tensor with one element")
    if not found.requires_grad:
        raise ConfigError(f"{_WHERE}: {name} does not depend on the model: it has no gradient")
    return found.reshape(())
