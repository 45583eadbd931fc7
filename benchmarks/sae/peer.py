"""The peers of compare.py, run in their own Python: `peer.py JOB.json`. Independent of A-Sys-I.

A job is {library, rows, batch, steps, k, latents, lr, seed, threads, out}: `rows` is a safetensors file with
`rows` [n, width], normalised and in order of training. Trains on `steps` batches and writes W_enc [latents,
width], b_enc, W_dec [latents, width] and b_dec to `out`; prints {rows_per_second, peak_mib}.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    torch.set_flush_denormal(True)
    torch.manual_seed(job["seed"])
    rows = load_file(job["rows"])["rows"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    batches = [rows[i * job["batch"] : (i + 1) * job["batch"]] for i in range(job["steps"])]
    train = {"saelens": saelens, "sparsify": sparsify, "dictionary_learning": dictionary_learning}
    began = time.perf_counter()
    tensors = train[job["library"]](job, batches)
    seconds = time.perf_counter() - began
    save_file({name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}, job["out"])
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"rows_per_second": job["steps"] * job["batch"] / seconds, "peak_mib": peak}))


def saelens(job: dict, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    steps = len(batches)
    config = TopKTrainingSAEConfig(d_in=batches[0].shape[1], d_sae=job["latents"], k=job["k"])
    warm_up = max(1, steps // 10)
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * job["batch"], train_batch_size_samples=job["batch"], lr=job["lr"],
            lr_end=job["lr"], lr_warm_up_steps=warm_up, lr_decay_steps=steps - warm_up,
            dead_feature_window=max(1, 20_000 // job["batch"]), logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=TopKTrainingSAE(config),
        data_provider=iter(batches),
    )  # fmt: skip
    sae = trainer.fit()
    # Latents are selected by preactivation × norm, and decoded by row / norm.
    norms = sae.W_dec.norm(dim=1) if sae.cfg.rescale_acts_by_decoder_norm else torch.ones(job["latents"])
    return {
        "W_enc": sae.W_enc.T * norms[:, None], "b_enc": sae.b_enc * norms,
        "W_dec": sae.W_dec / norms[:, None], "b_dec": sae.b_dec,
    }  # fmt: skip


def sparsify(job: dict, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    sae = SparseCoder(batches[0].shape[1], SparseCoderConfig(num_latents=job["latents"], k=job["k"]))
    sae.b_dec.data = batches[0].mean(0)
    optimiser = torch.optim.Adam(sae.parameters(), lr=job["lr"])
    idle = torch.zeros(job["latents"], dtype=torch.int64)
    for number, batch in enumerate(batches):
        rise = min(1.0, 10 * (number + 1) / len(batches))
        for group in optimiser.param_groups:
            group["lr"] = job["lr"] * min(rise, 1 - number / len(batches))
        out = sae(batch, dead_mask=idle > 20_000)
        (out.fvu + out.auxk_loss / 32).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        sae.set_decoder_norm_to_unit_norm()
        idle += len(batch)
        idle[out.latent_indices.flatten()] = 0
    weights = {"W_enc": sae.encoder.weight, "b_enc": sae.encoder.bias}
    return {**weights, "W_dec": sae.W_dec, "b_dec": sae.b_dec}


def dictionary_learning(job: dict, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    from dictionary_learning.trainers.top_k import TopKTrainer

    steps = len(batches)
    trainer = TopKTrainer(
        steps=steps, activation_dim=batches[0].shape[1], dict_size=job["latents"], k=job["k"], layer=0,
        lm_name="none", lr=job["lr"], warmup_steps=max(1, steps // 10), decay_start=max(2, steps // 10 + 1),
        seed=job["seed"], device="cpu",
    )  # fmt: skip
    trainer.dead_feature_threshold = 20_000
    for number, batch in enumerate(batches):
        trainer.update(number, batch)
    sae = trainer.ae
    weights = {"W_enc": sae.encoder.weight, "b_enc": sae.encoder.bias}
    return {**weights, "W_dec": sae.decoder.weight.T, "b_dec": sae.b_dec}


if __name__ == "__main__":
    main()
