"""What many autoencoders from one stream cost, against as many runs of their own.

    python benchmarks/sae/many.py [--rows 200000] [--latents 1024] [--threads 2] [--rounds 3]

Nine TopK autoencoders (k 16, 32, 64 × 3 seeds) on the demo's model: MiniLM reads random tokens, and the
trainers take the rows of one layer as packets, in one process. One run with `grid` against nine with one
autoencoder each; the smallest time of each counts. What the nine runs repeat is the forward pass, the packets
and the buffer. Prints seconds, their ratio and the captured bytes, and exits with 1 when the ratio exceeds
the aim or the bytes differ.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asysi.bus.packet import HEADER_DTYPE, ROW_DTYPE, ActivationPacket, Dtype, RowFlag
from asysi.contract.grid import members
from asysi.contract.loading import load as load_experiment
from asysi.contract.spec import SaeTrain
from asysi.model.loading import load_model, resolve_model
from asysi.sae.trainer import Trainer

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "minilm"
AIM = 0.7
POINT = "encoder.layer.3.output"
TOKENS, BATCH = 64, 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--latents", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    entry = SaeTrain.model_validate(
        {"latents": options.latents, "grid": {"k": [16, 32, 64], "seeds": [0, 1, 2]}}
    )
    model = the_model()
    steps = max(1, options.rows // (TOKENS * BATCH))
    one, nine = [], []
    with tempfile.TemporaryDirectory() as work, torch.inference_mode():
        run(model, entry, 2, Path(work) / "warm")
        for number in range(options.rounds):
            one.append(run(model, entry, steps, Path(work) / f"one-{number}"))
            runs = [
                run(model, alone, steps, Path(work) / f"{alone.name}-{number}") for alone in members(entry)
            ]
            nine.append((sum(seconds for seconds, _ in runs), runs[0][1]))
    ratio = min(one)[0] / min(nine)[0]
    print(json.dumps({
        "rows": steps * TOKENS * BATCH, "latents": options.latents, "threads": options.threads,
        "seconds_one": min(one)[0], "seconds_nine": min(nine)[0], "ratio": ratio, "aim": AIM,
        "bytes_one": one[0][1], "bytes_each_of_nine": nine[0][1],
    }, indent=1))  # fmt: skip
    return int(ratio > AIM or one[0][1] != nine[0][1])


def the_model() -> torch.nn.Module:
    subprocess.run([sys.executable, EXAMPLE / "corpus.py"], check=True, stdout=subprocess.DEVNULL)
    spec = load_experiment([EXAMPLE / "scan.yaml"]).spec.model
    return load_model(resolve_model(spec), spec.dtype).module.eval()


def run(model: torch.nn.Module, entry: SaeTrain, steps: int, folder: Path) -> tuple[float, int]:
    """Run the model and train on one hook point; return seconds and captured bytes."""
    seen: list[Tensor] = []
    hook = model.get_submodule(POINT).register_forward_hook(lambda _m, _i, output: seen.append(output))
    trainer, captured = Trainer(entry, folder / "x.ckpt"), 0
    generator = torch.Generator().manual_seed(0)
    began = time.perf_counter()
    for step in range(steps):
        ids = torch.randint(1000, 30000, (BATCH, TOKENS), generator=generator)
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
        packet = packet_of(seen.pop(), step)
        captured += packet.payload.nbytes
        trainer.receive(packet, [POINT], steps, 0)
    trainer.end()
    while trainer.train():
        pass
    seconds = time.perf_counter() - began
    hook.remove()
    return seconds, captured


def packet_of(output: Tensor, step: int) -> ActivationPacket:
    values = output.flatten(0, 1).bfloat16().view(torch.int16).numpy().view(np.uint16)
    header = np.zeros(1, HEADER_DTYPE)[0]
    header["step"] = header["sequence"] = step
    header["rows"], header["width"] = values.shape
    header["dtype"] = Dtype.BFLOAT16
    rows = np.zeros(len(values), ROW_DTYPE)
    rows["sequence"], rows["position"] = np.arange(len(values)) // TOKENS, np.arange(len(values)) % TOKENS
    rows["sample"] = step * BATCH + rows["sequence"]
    rows["flags"][rows["sequence"] % 10 == 9] = RowFlag.HOLDOUT
    return ActivationPacket(header, POINT, rows, None, values)


if __name__ == "__main__":
    sys.exit(main())
