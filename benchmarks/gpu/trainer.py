"""Rows per second when training a TopK autoencoder, on the CPU and on the GPU."""

import time
from typing import Any

import torch


def rows_a_second(
    device: str, *, width: int, latents: int, k: int, batch: int, seconds: float
) -> dict[str, Any]:
    """Train on random rows for a few seconds; return the rate, and the loss, which must have decreased."""
    from asysi.contract.spec import SaeTrain
    from asysi.sae.training import Training

    torch.manual_seed(0)
    config = SaeTrain(latents=latents, k=k, batch=batch)
    training = Training(config, "bench", width, torch.bfloat16, 1 << 30, device=device)
    basis = torch.randn(256, width)
    pool = (torch.randn(8 * batch, 256).relu() @ basis / 16).bfloat16()
    with torch.inference_mode():
        training.begin(pool)
        for number in range(3):
            training.learn(pool[number * batch : (number + 1) * batch])
        first, steps, began = training.progress.loss, 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            training.learn(pool[steps % 8 * batch : (steps % 8 + 1) * batch])
            steps += 1
        took = time.perf_counter() - began  # a step reads its loss, so none is in flight
    return {
        "rows/s": round(steps * batch / took, 1),
        "TFLOP/s": round(steps * batch * 6 * width * latents / took / 1e12, 3),
        "loss before": round(first, 5),
        "loss after": round(training.progress.loss, 5),
        "steps": steps,
    }
