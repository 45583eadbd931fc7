"""Gradients of parameters: one record of statistics per parameter and step."""

from collections.abc import Mapping
from functools import partial
from time import perf_counter_ns

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.hooks import RemovableHandle

from asysi.bus.packet import (
    HEADER_BYTES,
    HEADER_DTYPE,
    MAGIC,
    NO_POSITION,
    NO_SAMPLE,
    NO_TOKEN,
    PARAMETER_STATISTICS,
    ROW_DTYPE,
    VERSION,
    Dtype,
    Kind,
    account_name,
)
from asysi.bus.stream import BlockProducer
from asysi.capture.failures import Failures
from asysi.capture.gradients import BackwardPass, unscaled
from asysi.contract.spec import Capture
from asysi.model.globs import match_parameters

_WIDTH = len(PARAMETER_STATISTICS)


class ParameterCapture:
    """Measures the `.grad` of parameters in the backward pass, and publishes it before the next step.

    `.grad` is measured whenever a backward pass has added to it, and the last measurement of a step counts:
    where a host accumulates gradients over several forward passes, each of which is a step, those of the
    later ones include the earlier. It is the gradient of this rank, before any all-reduce.

    Args:
        parameters: by name.
        producer: producer of the stream.
        failures: records suppressed exceptions.
        attempt: number of the attempt.
        rank: rank of this process.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        producer: BlockProducer,
        failures: Failures,
        *,
        attempt: int = 0,
        rank: int = 0,
    ) -> None:
        self._parameters = dict(parameters)
        names = [account_name(name, Kind.PARAMETER_GRADIENT) for name in parameters]
        self._channels = [producer.channel(name) for name in names]
        self._failures = failures
        self._values = np.zeros((len(self._channels), _WIDTH), np.float32)
        self._measured = np.zeros(len(self._channels), np.bool_)
        self._headers = _headers([channel.account for channel in self._channels], attempt, rank)
        self._rows = np.zeros(1, ROW_DTYPE)
        self._rows["sample"], self._rows["position"], self._rows["token"] = NO_SAMPLE, NO_POSITION, NO_TOKEN
        self._backward = BackwardPass()

    def attach(self) -> list[RemovableHandle]:
        """Register the hooks; frozen parameters have none."""
        return [
            parameter.register_post_accumulate_grad_hook(partial(self._measure, index))  # type: ignore[no-untyped-call]
            for index, parameter in enumerate(self._parameters.values())
            if parameter.requires_grad
        ]

    def describe(self, backward: BackwardPass) -> None:
        """Set the properties of the backward passes from here on."""
        self._backward = backward
        for name, value in backward._asdict().items():
            self._headers[name] = value

    def begin_step(self, step: int) -> None:
        """Publish the records of the step before, and begin a step."""
        self.publish()
        self._headers["step"] = step

    def publish(self) -> None:
        """Publish what was measured since the last call; without room, records are counted as dropped."""
        for index in np.flatnonzero(self._measured):
            self._measured[index] = False
            try:
                self._put(int(index))
            except Exception as error:  # noqa: BLE001 - never reaches the model
                self._failures.add(list(self._parameters)[index], error)

    def _put(self, index: int) -> None:
        values, channel = self._values[index], self._channels[index]
        address = values.__array_interface__["data"][0]
        channel.put(
            self._headers[index : index + 1], self._rows, address, values.nbytes, None, 1, Dtype.FLOAT32, 0
        )

    def _measure(self, index: int, parameter: torch.nn.Parameter) -> None:
        try:
            gradient = parameter.grad
            if gradient is not None:
                dense = gradient.coalesce().to_dense() if gradient.is_sparse else gradient
                self._values[index] = gradient_statistics(unscaled(dense, self._backward.loss_scale))
                self._headers["captured_ns"][index] = perf_counter_ns()
                self._measured[index] = True
        except Exception as error:  # noqa: BLE001 - never reaches the model
            self._failures.add(list(self._parameters)[index], error)


def wanted_parameters(capture: Capture, module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters whose gradients a spec asks for, by name.

    Raises:
        ConfigError: a glob matches nothing.
    """
    if "parameterGradients" not in capture.kinds:
        return {}
    named = dict(module.named_parameters(remove_duplicate=False))
    if not capture.parameters:
        named = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    wanted = match_parameters(capture.parameters, {name: id(parameter) for name, parameter in named.items()})
    return {name: named[name] for name in wanted}


def gradient_statistics(values: torch.Tensor) -> NDArray[np.float64]:
    """Return PARAMETER_STATISTICS of a float32 tensor, over all its elements; sums are in float64.

    As in METRICS records, mean, std, l2, min and max are over finite elements, and NaN if there are none.
    """
    flat = values.reshape(-1)
    nans, infinities = int(flat.isnan().sum()), int(flat.isinf().sum())
    zeros = 1 - int(flat.count_nonzero()) / max(1, flat.numel())
    finite = flat[flat.isfinite()] if nans or infinities else flat
    if not finite.numel():
        return np.array([np.nan] * 5 + [zeros, nans, infinities])
    mean = float(finite.sum(dtype=torch.float64)) / finite.numel()
    norm = float(torch.linalg.vector_norm(finite, dtype=torch.float64))
    around = float(torch.linalg.vector_norm(finite - mean, dtype=torch.float64))
    low, high = (float(bound) for bound in finite.aminmax())
    return np.array([mean, around / finite.numel() ** 0.5, norm, low, high, zeros, nans, infinities])


def _headers(accounts: list[int], attempt: int, rank: int) -> NDArray[np.void]:
    headers = np.zeros(len(accounts), HEADER_DTYPE)
    headers["magic"], headers["version"], headers["header_bytes"] = MAGIC, VERSION, HEADER_BYTES
    headers["attempt"], headers["rank"], headers["account"] = attempt, rank, accounts
    headers["kind"], headers["width"], headers["sampling_rate"] = Kind.PARAMETER_GRADIENT, _WIDTH, 1.0
    headers["parts"] = headers["step_rows"] = headers["step_kept"] = 1
    headers["batch"] = headers["length"] = 1
    return headers
