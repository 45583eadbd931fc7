"""Whole experiments whose activations travel as fp8 and as int8 by channel."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from asysi.archive.dataset import MScanDataset
from asysi.bus.packet import Quantization
from asysi.bus.quantization import FREEZE_ROWS

pytestmark = pytest.mark.long  # whole experiments

POINT = "embeddings.word_embeddings"
"""Its rows are those of a matrix in the checkpoint, by token: what was captured is known exactly."""


def _with(quantization: str) -> Callable[[dict[str, Any]], None]:
    def change(spec: dict[str, Any]) -> None:
        spec["capture"] |= {"hookPoints": [POINT], "quantization": quantization}
        spec["workload"]["scan"]["passes"] = 6
        spec["archive"] = {"tensors": True}

    return change


def _rows(output: Path) -> dict[Quantization, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the archived rows by how they travelled: values read back, tokens, largest bound of each row."""
    found: dict[Quantization, list[tuple[np.ndarray, ...]]] = {}
    for packet in MScanDataset(output).packets(POINT):
        how = Quantization(int(packet.header["quantization"]))
        values = packet.to_float32()
        bound = np.abs(values) / 15
        if how is Quantization.BF16:
            bound = np.abs(values) / 255
        elif packet.table is not None:
            bound = np.broadcast_to(packet.table[1] * 0.501, values.shape)
        elif packet.scales is not None:
            bound = np.maximum(bound, packet.scales[:, None] / 1000)
        found.setdefault(how, []).append((values, packet.rows["token"].copy(), bound))
    return {how: tuple(map(np.concatenate, zip(*parts, strict=True))) for how, parts in found.items()}


@pytest.mark.parametrize("quantization", ["fp8", "int8"])
def test_a_run_is_read_back_within_the_bound(
    scan: Callable, start: Callable, model: Path, quantization: str
) -> None:
    """Every archived row is within the stated bound of what the model made, though hook is killed on the way;
    the ledger balances, the SAE is trained.
    """
    run = start(scan(f"quantized-{quantization}", _with(quantization)))
    hook, ranges = run.worker("asysi.hook"), run.output / "quantization.safetensors"
    if quantization == "int8":
        while not ranges.exists() and run.process.poll() is None:
            time.sleep(0.01)
        hook.kill()
    assert run.finish() == 0, run.text()
    assert run.ledger()["balanced"], run.text()
    weight = load_file(model / "model.safetensors")[POINT + ".weight"]
    found = _rows(run.output)
    for values, tokens, bound in found.values():
        assert (np.abs(values - weight[tokens]) <= bound).all()
    (point,) = run.ledger()["points"]
    assert sum(len(tokens) for _, tokens, _ in found.values()) == point["consumers"]["archiver"]["durable"]
    assert point["saturated"] == 0
    if quantization == "fp8":
        assert set(found) == {Quantization.FP8}
        return
    assert set(found) == {Quantization.BF16, Quantization.INT8_CHANNEL}
    assert len(found[Quantization.BF16][1]) >= FREEZE_ROWS
    assert load_file(ranges)[POINT].shape == (2, 64)
