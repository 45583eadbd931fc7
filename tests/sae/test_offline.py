"""`asysi.sae.train`: the loop of the live stream, on rows from anywhere."""

import numpy as np
import pytest
import torch
from tests.sae.conftest import WIDTH, rows_of

import asysi.sae
from asysi.contract.errors import ConfigError
from asysi.contract.variants import VARIANTS
from asysi.sae.training import Training

SMALL = {"latents": 64, "k": 4, "batch": 32, "buffer": {"batches": 4, "sequences": 20}}
ROWS = torch.cat([rows_of(step) for step in range(60)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_three_lines_give_an_autoencoder(variant, tmp_path):
    """Rows and settings in, an SAE for plain rows out, which explains them and is saved and loaded."""
    done = asysi.sae.train(ROWS, {**SMALL, "variant": variant})
    assert done.report["received"] == len(ROWS) == done.report["trained"] + done.report["held_out"]
    assert done.report["held_out"] == pytest.approx(0.05 * len(ROWS), abs=2)
    assert done.report["fvu"] < 0.9
    assert done.curve[-1][2] == done.report["fvu"]
    done.save(tmp_path / "sae")
    again = asysi.sae.load(tmp_path / "sae")
    assert torch.equal(again.encode(ROWS[:50]), done.sae.encode(ROWS[:50]))


def test_blocks_arrays_and_iterators_are_the_same():
    """Tensor, NumPy array, list and generator of the same rows end on the same bits."""
    parameters = [
        asysi.sae.train(rows, SMALL, total=len(ROWS)).sae.parameters
        for rows in (
            ROWS,
            ROWS.numpy(),
            [ROWS[begin : begin + 32] for begin in range(0, len(ROWS), 32)],
            (ROWS[begin : begin + 32].double() for begin in range(0, len(ROWS), 32)),
        )
    ]
    for other in parameters[1:]:
        assert torch.equal(parameters[0], other)


def test_it_is_the_loop_of_the_live_stream():
    """Training on records with the same flags, as the worker does it, ends on the same bits."""
    from asysi.sae.offline import _records

    done = asysi.sae.train(ROWS, SMALL)
    live = Training(done.config, "activations", WIDTH, torch.float32, 256 << 20)
    with torch.inference_mode():
        for begin in range(0, len(ROWS), 32):
            rows = ROWS[begin : begin + 32]
            live.progress.steps_total = len(ROWS)
            finite = np.ones(len(rows), np.bool_)
            live.receive(rows, finite, _records(begin, len(rows), 0.05), begin + len(rows) - 1)
            while live.train():
                pass
        live.end()
        while live.train():
            pass
    assert torch.equal(live.frozen().parameters, done.sae.parameters)


def test_bad_rows_are_counted():
    """NaN and infinity are counted and skipped."""
    rows = ROWS.clone()
    rows[3, 2], rows[100, 5] = float("nan"), float("inf")
    done = asysi.sae.train(rows, SMALL)
    assert done.report["not_finite"] == 2
    assert done.sae.parameters.isfinite().all()


def test_rows_that_float32_cannot_hold_are_counted():
    """A float64 row beyond the range of float32 becomes infinite, and is skipped like one that was."""
    rows = ROWS.double()
    rows[3, 2], rows[100, 5] = 1e39, -1e200
    done = asysi.sae.train(rows, SMALL)
    assert done.report["not_finite"] == 2
    assert done.sae.parameters.isfinite().all()
    assert done.report["fvu"] < 0.9


@pytest.mark.parametrize(
    ("rows", "config", "message"),
    [
        ([], SMALL, "no rows to train on"),
        ([ROWS[:40], ROWS[:40, :5]], SMALL, "width 5, but those before have 16"),
        (ROWS, {**SMALL, "k": 65}, "k is 65"),
        (ROWS, {**SMALL, "latent": 4}, "latent"),
        (ROWS, {**SMALL, "lr": "fast"}, "lr"),
        ([ROWS[0]], SMALL, "shape"),
        ([ROWS.long()], SMALL, "floating-point"),
        (torch.full((200, 4), float("nan")), SMALL, "NaN or infinity"),
        (ROWS, {**SMALL, "grid": {"k": [2, 4]}}, "grid: train returns one autoencoder"),
        (ROWS, {**SMALL, "matryoshka": {"widths": [32, 16]}}, "matryoshka.widths"),
        ([ROWS[:40].half(), ROWS[40:]], SMALL, "rows 40 and later are float32, but those before are float16"),
    ],
)
def test_mistakes_are_named(rows, config, message):
    """What cannot be trained on is an error that says what is wrong."""
    with pytest.raises(ConfigError, match=message):
        asysi.sae.train(rows, config)
    with pytest.raises(ConfigError, match="holdout"):
        asysi.sae.train(ROWS, SMALL, holdout=1.0)
