"""A whole experiment that captures activations and gradients of a small language model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asysi.archive.dataset import MScanDataset
from asysi.bus.packet import Kind

pytestmark = pytest.mark.long  # a whole experiment

POINTS = ["transformer.h.0", "transformer.h.1.mlp"]
PARAMETER = "transformer.h.0.mlp.c_fc.weight"
STEPS_CHECKED = 3


@pytest.fixture(scope="module")
def causal(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a two-layer GPT-2 with random weights, with the tokenizer of `model`."""
    import transformers

    folder = tmp_path_factory.mktemp("causal")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2,
        n_embd=32,
        n_head=4,
        vocab_size=len(tokenizer),
        n_positions=64,
        bos_token_id=2,
        eos_token_id=3,
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _rows(data: MScanDataset, name: str) -> dict[tuple[int, ...], np.ndarray]:
    """Return the archived rows of the first steps, by step, sequence and position."""
    found = {}
    for packet, values in data.blocks(name, steps=(0, STEPS_CHECKED)):
        step = int(packet.header["step"])
        for row, value in zip(packet.rows, values, strict=True):
            found[step, int(row["sequence"]), int(row["position"])] = (int(row["token"]), value)
    return found


def _by_autograd(folder: Path, tokens: dict[tuple[int, ...], int], step: int) -> dict[str, Any]:
    """Return activations and gradients [batch, length, width] of a step, from the model alone."""
    import transformers

    places = [(sequence, position) for at, sequence, position in tokens if at == step]
    shape = [max(one) + 1 for one in zip(*places, strict=True)]
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for sequence, position in places:
        ids[sequence, position], mask[sequence, position] = tokens[step, sequence, position], 1
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    kept = {}

    def keep(path: str) -> Callable:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            tensor.retain_grad()
            kept[path] = tensor

        return hook

    for path in POINTS:
        model.get_submodule(path).register_forward_hook(keep(path))
    model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
    found = {path: (tensor.detach().numpy(), tensor.grad.numpy()) for path, tensor in kept.items()}
    return {**found, PARAMETER: model.get_parameter(PARAMETER).grad.numpy()}


def test_a_run_archives_gradients_and_their_scores(scan: Callable, start: Callable, causal: Path) -> None:
    """`loss: lm` with both kinds: every gradient in the archive is autograd's for its token, every row has
    ⟨a, g⟩ and ΔSC, no row is missed, no SAE is trained on a gradient, and the run is sound.
    """

    def change(spec: dict[str, Any]) -> None:
        spec["model"]["uri"] = f"file://{causal}"
        spec["data"]["tokens"]["excludeTokens"] = ["padding"]
        spec["workload"]["scan"] |= {"loss": "lm", "passes": 1, "maxSamples": 400}
        spec["capture"] |= {
            "hookPoints": POINTS,
            "kinds": ["activations", "gradients", "parameterGradients"],
            "parameters": [PARAMETER],
            "quantization": "none",
        }
        spec["bus"]["size"] = "128Mi"
        spec["archive"] = {"tensors": True}

    run = start(scan("gradients", change))
    assert run.finish() == 0, run.text()
    ledger = run.ledger()
    assert ledger["balanced"], run.text()
    books = {point["path"]: point for point in ledger["points"]}
    of_parameter = f"{PARAMETER}:parameter_gradient"
    assert set(books) == {*POINTS, *(f"{path}:gradient" for path in POINTS), of_parameter}
    steps = ledger["steps"]["run"]
    assert books[of_parameter]["consumers"]["archiver"]["durable"] == steps
    assert all(point["unpaired"] == 0 for point in books.values())
    assert sorted(file.parent.name for file in run.output.glob("sae/*/*/cfg.json")) == sorted(POINTS)

    data = MScanDataset(run.output / "archive")
    rows = {name: _rows(data, name) for name in books if name != of_parameter}
    tokens = {place: token for place, (token, _) in rows[POINTS[0]].items()}
    norms = []
    for step in range(STEPS_CHECKED):
        expected = _by_autograd(causal, tokens, step)
        norms.append(np.linalg.norm(expected.pop(PARAMETER)))
        for path in POINTS:
            for name, wanted in zip((path, f"{path}:gradient"), expected[path], strict=True):
                found = {place[1:]: value for place, (_, value) in rows[name].items() if place[0] == step}
                assert set(found) == {place[1:] for place in tokens if place[0] == step}
                scale = np.abs(wanted).max()
                assert all(
                    np.abs(value - wanted[place]).max() < 1e-5 * scale for place, value in found.items()
                )

    records = data.metrics(of_parameter)
    assert records["step"].tolist() == list(range(steps))
    np.testing.assert_allclose(records["grad_norm"][:STEPS_CHECKED], norms, rtol=1e-4)
    for path in POINTS:
        records = data.metrics(f"{path}:gradient")
        assert (records["kind"] == Kind.GRADIENT).all()
        assert len(records) == books[path]["consumers"]["archiver"]["durable"]
        for name in ("grad_norm", "input_x_gradient", "delta_sc"):
            assert np.isfinite(records[name]).all()
        products = {
            place: float(value.astype(np.float64) @ rows[path][place][1])
            for place, (_, value) in rows[f"{path}:gradient"].items()
        }
        early = records[records["step"] < STEPS_CHECKED]
        for record in early:
            place = tuple(int(record[name]) for name in ("step", "sequence", "position"))
            assert record["input_x_gradient"] == pytest.approx(products[place], rel=1e-4, abs=1e-7)
        assert np.abs(records["delta_sc"] + records["input_x_gradient"]).max() > 0, "the mean is not zero"
