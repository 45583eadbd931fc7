"""Runs a model's forward pass on batches, limited to the part that the hook points need."""

import inspect
import logging

import torch

from asysi.contract.errors import ConfigError
from asysi.model.faults import format_error, is_permanent
from asysi.model.loading import LoadedModel
from asysi.model.loss import ScanLoss
from asysi.model.points import HookPoint
from asysi.text.tokens import Batch

log = logging.getLogger("asysi")


class ScanRunner:
    """Runs the model's forward pass on batches.

    Args:
        loaded: the model; it is moved to `device`.
        points: hook points; they determine which part of the model runs.
        device: device to run on.
        loss: differentiated in each step; None runs forward only, in inference mode. With a loss the whole
            model runs, and its parameters keep no gradient.
    """

    def __init__(
        self, loaded: LoadedModel, points: list[HookPoint], device: str = "cpu", loss: ScanLoss | None = None
    ) -> None:
        self.module = loaded.module.to(device)
        self.root = base_of(self.module, [point.path for point in points]) if loss is None else self.module
        self._decoder_start = decoder_start(self.root)
        self._loss = loss
        self._device = device

    def run(self, batch: Batch) -> None:
        """Run one step.

        Raises:
            ConfigError: the forward or backward pass fails with an error that is not transient.
        """
        try:
            self._forward(batch)
        except Exception as error:  # a custom forward may raise anything
            if not is_permanent(error):
                raise
            log.exception("step %d failed", batch.number)
            name, size = type(self.root).__name__, " × ".join(map(str, batch.ids.shape))
            part = "forward" if self._loss is None else "forward or backward"
            raise ConfigError(
                f"spec.model.uri: the {part} of {name} fails in step {batch.number}, with {size} tokens: "
                f"{format_error(error)}"
            ) from error

    def _forward(self, batch: Batch) -> None:
        inputs = {"input_ids": torch.from_numpy(batch.ids).to(self._device)}
        if batch.mask is not None:
            inputs["attention_mask"] = torch.from_numpy(batch.mask).to(self._device)
        if self._decoder_start is not None:
            inputs["decoder_input_ids"] = shift_right(inputs["input_ids"], self._decoder_start)
        if self._loss is None:
            with torch.inference_mode():
                self.root(**inputs)
            return
        try:
            with torch.enable_grad():
                self._loss.compute(self.root, inputs).backward()  # type: ignore[no-untyped-call]
        finally:
            self.module.zero_grad(set_to_none=True)


def base_of(module: torch.nn.Module, paths: list[str]) -> torch.nn.Module:
    """Return the model without its head if all hook points are in the base model: logits are expensive."""
    prefix = getattr(module, "base_model_prefix", "")
    base = getattr(module, prefix, None) if prefix else None
    inside = all(path.startswith(f"{prefix}.") for path in paths)
    return base if isinstance(base, torch.nn.Module) and inside else module


def decoder_start(root: torch.nn.Module) -> int | None:
    """Return the token that a decoder's input begins with; None if the model has no encoder and decoder.

    Such a model reads the text twice: the encoder as it is, the decoder shifted by one token, as in training
    with the text as labels.
    """
    config = getattr(root, "config", None)
    if not getattr(config, "is_encoder_decoder", False):
        return None
    if "decoder_input_ids" not in inspect.signature(root.forward).parameters:
        return None
    names = ("decoder_start_token_id", "pad_token_id", "bos_token_id")
    tokens = [getattr(config, name, None) for name in names]
    return next((token for token in tokens if isinstance(token, int)), 0)


def shift_right(ids: torch.Tensor, start: int) -> torch.Tensor:
    """Return `ids` [batch, length] moved by one position behind `start`; the last token is cut off.

    The decoder's row at a position is thus the one that predicts the token at this position.
    """
    shifted = torch.empty_like(ids)
    shifted[:, 0], shifted[:, 1:] = start, ids[:, :-1]
    return shifted
