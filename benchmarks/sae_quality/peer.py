"""The sae-lens side, run in its own Python: `peer.py train|encode JOBS.json`. Independent of A-Sys-I.

train: a job is {activations, name, order, scale, lr, seed, latents, k, warm_up, decay, dead_window, threads,
out}. The batches are the rows of `activations` at the indices in `order`, split by the sizes in it. Writes
SAELens' inference model to `out`.

encode: a job is {folder, rows, out}. Writes latents and reconstructions of `rows` to `out`.
"""

import json
import sys
import time
from pathlib import Path

import torch
from sae_lens import SAE, SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from safetensors.torch import load_file, save_file


def main() -> None:
    work = {"train": train, "encode": encode}[sys.argv[1]]
    for job in json.loads(Path(sys.argv[2]).read_text()):
        print(json.dumps(work(job)), flush=True)


def train(job: dict) -> dict:
    torch.set_num_threads(job["threads"])
    torch.set_flush_denormal(True)
    torch.manual_seed(job["seed"])
    rows = load_file(job["activations"])[job["name"]]
    order = load_file(job["order"])
    batches = order["indices"].split(order["sizes"].tolist())
    total, steps = len(order["indices"]), len(batches)
    config = TopKTrainingSAEConfig(d_in=rows.shape[1], d_sae=job["latents"], k=job["k"])
    warm_up = max(1, int(job["warm_up"] * steps))
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=total,
            train_batch_size_samples=-(-total // steps),
            lr=job["lr"],
            lr_end=job["lr"],
            lr_warm_up_steps=warm_up,
            lr_decay_steps=min(int(job["decay"] * steps), steps - warm_up),
            dead_feature_window=job["dead_window"],
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=TopKTrainingSAE(config),
        data_provider=(rows[batch.long()].float() * job["scale"] for batch in batches),
    )
    began = time.perf_counter()
    sae = trainer.fit()
    seconds = time.perf_counter() - began
    sae.save_inference_model(job["out"])
    return {"out": job["out"], "rows_per_second": total / seconds}


@torch.inference_mode()
def encode(job: dict) -> dict:
    sae = SAE.load_from_disk(job["folder"])
    rows = load_file(job["rows"])["rows"]
    save_file({"latents": sae.encode(rows).contiguous(), "rebuilt": sae(rows).contiguous()}, job["out"])
    return {
        "architecture": sae.cfg.architecture(),
        "k": getattr(sae.cfg, "k", None),
        "metadata": sorted(sae.cfg.metadata.keys()),
    }


if __name__ == "__main__":
    main()
