"""A contender of `compare.py`: runs a batch per line of its input, in the Python that has the peers."""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
import transformers

Tensors = dict[str, torch.Tensor]
Step = Callable[[], Tensors]


def make(job: dict[str, Any]) -> tuple[torch.nn.Module, torch.Tensor]:
    """Return the model and the tokens, the same in every process."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=job["layers"], n_embd=job["width"], n_head=job["heads"], vocab_size=job["vocabulary"],
        n_positions=max(128, job["length"]), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        bos_token_id=0, eos_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    return model, torch.randint(0, job["vocabulary"], (job["batch"], job["length"]))


def first(output: Any) -> torch.Tensor:
    """Return a block's hidden states."""
    return output[0] if isinstance(output, tuple) else output


def forward(model: torch.nn.Module, ids: torch.Tensor, task: str) -> None:
    """Run the task's passes."""
    if task == "activations":
        with torch.no_grad():
            model(ids)
        return
    model.zero_grad(set_to_none=True)
    model(ids, labels=ids).loss.backward()


def unhooked(model: torch.nn.Module, ids: torch.Tensor, task: str) -> Step:
    """Collect nothing."""

    def step() -> Tensors:
        forward(model, ids, task)
        return {}

    return step


def hooks(model: Any, ids: torch.Tensor, task: str) -> Step:
    """Register hooks for each batch, as a script would."""

    def step() -> Tensors:
        seen: Tensors = {}

        def keep(name: str, tensor: torch.Tensor) -> None:
            seen[name] = tensor.detach().to("cpu", copy=True)

        handles = [
            block.register_forward_hook(lambda _module, _args, output, n=n: keep(f"h.{n}", first(output)))
            for n, block in enumerate(model.transformer.h)
        ]
        if task == "gradients":
            handles += [one.register_hook(partial(keep, name)) for name, one in model.named_parameters()]
        forward(model, ids, task)
        for handle in handles:
            handle.remove()
        return seen

    return step


def ours(model: torch.nn.Module, ids: torch.Tensor, task: str) -> Step:
    """Enter `ScannerEngine` for each batch."""
    from asysi import ScannerEngine

    scanner = ScannerEngine(
        model, hook_points=["transformer.h.*"], parameters=None if task == "gradients" else []
    )

    def step() -> Tensors:
        with scanner:
            forward(model, ids, task)
        activations, gradients = scanner.get_collected_data()
        return {name.removeprefix("transformer."): one for name, one in activations.items()} | gradients

    return step


def transformer_lens(model: Any, ids: torch.Tensor, task: str) -> Step:
    """Cache the residual stream after each block; the bridge reads its configuration from a folder."""
    from transformer_lens import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(folder, hf_model=model)
    names = {f"blocks.{n}.hook_resid_post": f"h.{n}" for n in range(model.config.n_layer)}

    def step() -> Tensors:
        with torch.no_grad():
            _, cache = bridge.run_with_cache(ids, names_filter=list(names))
        return {ours: cache[theirs].detach().to("cpu", copy=True) for theirs, ours in names.items()}

    return step


def nnsight(model: Any, ids: torch.Tensor, task: str) -> Step:
    """Save the output of each block in a trace."""
    from nnsight import NNsight, save

    wrapped = NNsight(model)

    def step() -> Tensors:
        with torch.no_grad():  # noqa: SIM117 - nnsight reads the source of a block of its own
            with wrapped.trace(ids):
                saved = save([])
                for block in wrapped.transformer.h:
                    saved.append(block.output)
        return {f"h.{n}": first(output).detach().to("cpu", copy=True) for n, output in enumerate(saved)}

    return step


CONTENDERS = {one.__name__: one for one in (unhooked, hooks, ours, transformer_lens, nnsight)}
PACKAGES = {"transformer_lens": "transformer-lens", "nnsight": "nnsight"}


def compare(files: list[str]) -> list[float | None]:
    """Return the largest difference of each file's tensors from those of plain hooks, the second file."""
    everything = [torch.load(file) for file in files]
    reference = everything[1]

    def difference(tensors: Tensors) -> float | None:
        if not tensors:
            return None
        if tensors.keys() != reference.keys():
            return float("inf")
        return max(float((tensors[name] - reference[name]).abs().max()) for name in reference)

    return [difference(tensors) for tensors in everything]


def main() -> None:
    """Answer the lines of standard input."""
    job = json.loads(sys.argv[1])
    if job["task"] == "compare":
        print(json.dumps(compare(job["files"])))
        return
    torch.set_num_threads(job["threads"])
    model, ids = make(job)
    name = job["contender"]
    step = CONTENDERS[name](model, ids, job["task"])
    collected = step()  # warms up
    package = PACKAGES.get(name)
    print(json.dumps({"version": version(package) if package else f"torch {torch.__version__}"}), flush=True)
    for line in sys.stdin:
        if line.strip() == "finish":
            break
        del collected
        began = time.perf_counter()
        collected = step()
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.save(collected, job["out"])
    print(json.dumps({"peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
