"""Twelve families of models, built small: what `ScannerEngine` collects is compared with hooks and autograd.

    python benchmarks/scan/families.py docs/families.md

Each model is made from a configuration, with random weights, so that nothing is downloaded. In float32 every
activation must equal what a plain hook sees, and every gradient what `torch.autograd.grad` returns, bit for
bit. Autocast to bfloat16, accumulation over four microbatches and activation checkpointing must then agree
with float32 within a tolerance.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.checkpoint import checkpoint_sequential

from asysi import ScannerEngine

Tensors = dict[str, torch.Tensor]
BATCH, LENGTH, VOCABULARY = 4, 6, 60
TOLERANCES = {"AMP": 0.05, "accumulation": 1e-5, "checkpointing": 1e-5}
"""Largest distance from float32, relative: the norm of all differences over the norm of all values."""

_TEXT = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BODY = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4}
_CAUSAL = {**_TEXT, **_BODY, "num_key_value_heads": 2, "max_position_embeddings": 32}


@dataclass(frozen=True)
class Family:
    """A family of models."""

    name: str
    model: str
    """Class of transformers, or `nn.Sequential`."""
    config: Callable[[], Any] | None = None
    """Returns the configuration; None for the plain one."""

    def make(self) -> torch.nn.Module:
        """Return the model with random weights, without dropout, in training mode."""
        torch.manual_seed(0)
        if self.config is None:
            linear = torch.nn.Linear
            return torch.nn.Sequential(linear(8, 16), torch.nn.GELU(), linear(16, 16), linear(16, 3))
        config = self.config()
        config.use_cache = False
        model: torch.nn.Module = getattr(transformers, self.model)(config).train()
        return model

    def inputs(self) -> Tensors:
        """Return the model's own inputs, four samples, with labels."""
        torch.manual_seed(1)
        ids = torch.randint(3, VOCABULARY, (BATCH, LENGTH))
        match self.name:
            case "nn.Sequential":
                return {"input": torch.randn(BATCH, 8)}
            case "ViT":
                return {"pixel_values": torch.randn(BATCH, 3, 8, 8), "labels": torch.arange(BATCH) % 3}
            case "Whisper":
                return {"input_features": torch.randn(BATCH, 8, 16), "labels": ids}
            case _:
                return {"input_ids": ids, "labels": ids}


FAMILIES = (
    Family("GPT-2", "GPT2LMHeadModel", lambda: transformers.GPT2Config(
        **_TEXT, n_layer=2, n_embd=16, n_head=4, n_positions=32, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)),
    Family("Llama", "LlamaForCausalLM", lambda: transformers.LlamaConfig(**_CAUSAL)),
    Family("Mistral", "MistralForCausalLM", lambda: transformers.MistralConfig(**_CAUSAL)),
    Family("Qwen", "Qwen2ForCausalLM", lambda: transformers.Qwen2Config(**_CAUSAL)),
    Family("Gemma", "GemmaForCausalLM", lambda: transformers.GemmaConfig(**_CAUSAL, head_dim=4)),
    Family("Mixtral", "MixtralForCausalLM", lambda: transformers.MixtralConfig(
        **_CAUSAL, num_local_experts=4, num_experts_per_tok=2)),
    Family("T5", "T5ForConditionalGeneration", lambda: transformers.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, dropout_rate=0,
        pad_token_id=0, eos_token_id=2, decoder_start_token_id=0)),
    Family("BERT", "BertForMaskedLM", lambda: transformers.BertConfig(
        **_TEXT, **_BODY, max_position_embeddings=32, hidden_dropout_prob=0, attention_probs_dropout_prob=0)),
    Family("ViT", "ViTForImageClassification", lambda: transformers.ViTConfig(
        **_BODY, image_size=8, patch_size=4, num_labels=3, hidden_dropout_prob=0,
        attention_probs_dropout_prob=0)),
    Family("Whisper", "WhisperForConditionalGeneration", lambda: transformers.WhisperConfig(
        **_TEXT, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8,
        max_source_positions=8, max_target_positions=16, decoder_start_token_id=1, dropout=0,
        begin_suppress_tokens=None, suppress_tokens=None)),
    Family("Mamba", "MambaForCausalLM", lambda: transformers.MambaConfig(
        **_TEXT, num_hidden_layers=2, hidden_size=16, state_size=4)),
    Family("nn.Sequential", "nn.Sequential"),
)  # fmt: skip


@dataclass(frozen=True)
class Verification:
    """What `ScannerEngine` found in a family."""

    family: Family
    modules: int
    """Modules hooked: every named one but the root."""
    called: int
    """Modules that a forward pass calls and that return a tensor."""
    parameters: int
    """Parameters that require a gradient."""
    reached: int
    """Parameters that the loss depends on."""
    difference: float
    """Largest absolute difference from plain hooks and autograd in float32."""
    distances: dict[str, tuple[float, float]]
    """Relative distance from float32 of activations and of gradients, by mode."""

    def within(self, mode: str) -> bool:
        """Return whether a mode agrees with float32."""
        return max(self.distances[mode]) <= TOLERANCES[mode]


def loss_of(model: torch.nn.Module, inputs: Tensors) -> torch.Tensor:
    """Return the model's own loss; the mean square of a plain model's output."""
    if "input" in inputs:
        loss: torch.Tensor = model(inputs["input"]).float().square().mean()
        return loss
    own: torch.Tensor = model(**inputs).loss
    return own


def verify(family: Family) -> Verification:
    """Return what the scanner found in a family, in all modes."""
    inputs = family.inputs()
    model = family.make()
    hooked, gradients = _bare(model, inputs)
    with ScannerEngine(model) as scanner:
        loss_of(model, inputs).backward()
    found = scanner.get_collected_data()
    if found[0].keys() != hooked.keys() or found[1].keys() != gradients.keys():
        raise AssertionError(f"{family.name}: other names than those of plain hooks and autograd")
    return Verification(
        family,
        modules=len(scanner.hook_points),
        called=len({name.partition("#")[0] for name in found[0]}),
        parameters=len(scanner.parameters),
        reached=len(found[1]),
        difference=max(
            float((ours - theirs).abs().max())
            for one, other in zip(found, (hooked, gradients), strict=True)
            for ours, theirs in ((one[name].double(), other[name].double()) for name in one)
        ),
        distances={
            "AMP": _distances(found, _autocast(family, inputs)),
            "accumulation": _distances(found, _accumulated(family, inputs, found[0])),
            "checkpointing": _distances(found, _checkpointed(family, inputs)),
        },
    )


def _bare(model: torch.nn.Module, inputs: Tensors) -> tuple[Tensors, Tensors]:
    """Return what plain hooks see, and what autograd returns for every parameter."""
    seen: Tensors = {}
    calls: dict[str, int] = {}

    def keep(name: str, output: Any) -> None:
        call = calls[name] = calls.get(name, -1) + 1
        output = next(iter(output.values())) if isinstance(output, dict) else output
        tensor = output if isinstance(output, torch.Tensor) else output[0]
        seen[f"{name}#{call}" if call else name] = tensor.detach().clone()

    handles = [
        module.register_forward_hook(lambda _module, _args, output, name=name: keep(name, output))
        for name, module in model.named_modules()
        if name
    ]
    loss = loss_of(model, inputs)
    for handle in handles:
        handle.remove()
    named = {name: one for name, one in model.named_parameters() if one.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return seen, {name: one for name, one in zip(named, found, strict=True) if one is not None}


def _autocast(family: Family, inputs: Tensors) -> tuple[Tensors, Tensors]:
    model = family.make()
    with ScannerEngine(model) as scanner:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, inputs)
        loss.backward()
    return scanner.get_collected_data()


def _accumulated(family: Family, inputs: Tensors, whole: Tensors) -> tuple[Tensors, Tensors]:
    """Run four microbatches in one context, and put their activations together as the whole batch's."""
    model = family.make()
    with ScannerEngine(model) as scanner:
        for number in range(BATCH):
            part = {name: tensor[number : number + 1] for name, tensor in inputs.items()}
            (loss_of(model, part) / BATCH).backward()
    parts, joined = scanner.activations, {}
    for name, tensor in whole.items():
        module, _, call = name.partition("#")
        calls = sum(other.partition("#")[0] == module for other in whole)
        numbers = [int(call or 0) + calls * number for number in range(BATCH)]
        pieces = [parts[f"{module}#{number}" if number else module] for number in numbers]
        together = torch.cat(pieces)
        joined[name] = together if together.shape == tensor.shape else pieces[0]  # a table has no batch
    return joined, scanner.gradients


def _checkpointed(family: Family, inputs: Tensors) -> tuple[Tensors, Tensors]:
    model: Any = family.make()
    with ScannerEngine(model) as scanner:
        if family.config is None:
            output = checkpoint_sequential(model, 2, inputs["input"], use_reentrant=False)
            output.square().mean().backward()
        else:
            checkpoint_layers(model)
            loss_of(model, inputs).backward()
    if not scanner.recomputed:
        raise AssertionError(f"{family.name}: nothing was recomputed")
    return scanner.get_collected_data()


def checkpoint_layers(model: Any) -> None:
    """Switch activation checkpointing on, under whichever name transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _distances(whole: tuple[Tensors, Tensors], other: tuple[Tensors, Tensors]) -> tuple[float, float]:
    activations, gradients = map(_distance, whole, other)
    return activations, gradients


def _distance(whole: Tensors, other: Tensors) -> float:
    """Return the norm of all differences over the norm of all values; infinite if something is missing."""
    if whole.keys() != other.keys() or any(whole[name].shape != other[name].shape for name in whole):
        return float("inf")
    finite = [name for name in whole if whole[name].is_floating_point()]
    pairs = [(_ordered(name, whole[name]), _ordered(name, other[name])) for name in finite]
    difference = sum(float((one - two).square().sum()) for one, two in pairs)
    return float((difference / sum(float(one.square().sum()) for one, _ in pairs)) ** 0.5)


def _ordered(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as float64, with each column sorted if the order of its rows depends on the batch."""
    wide = tensor.double()
    return wide.sort(dim=0).values if ".experts." in name else wide


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the notes of transformers off the terminal."""
    noise = transformers.utils.logging
    level = noise.get_verbosity()
    noise.set_verbosity_error()
    try:
        yield
    finally:
        noise.set_verbosity(level)


_HEAD = """# Model families

`asysi.ScannerEngine` on twelve families of models, built small from their configurations (`make families`; a
test compares this table with a new run).

- *Modules*: every named module but the root is hooked; *called* are those that the forward pass calls and
  that return a tensor. The others are containers such as `ModuleList`, and modules that another head needs.
- *Parameters*: those that require a gradient; *reached* are those that the loss depends on.
- *Difference*: the largest absolute difference in float32, over all elements of all tensors, between what is
  collected and what plain hooks see (activations) or what `torch.autograd.grad` returns (gradients).
- *AMP* (autocast to bfloat16), *accumulation* (four microbatches in one context) and *checkpointing* (of
  activations, non-reentrant) are compared with float32: the norm of all differences over the norm of all
  values, for activations and for gradients. ✓: both are within the tolerance in the column's head. Rows
  inside Mixtral's experts come in the order of the experts, and are compared sorted.
- *Experiment*: whether `workload.scan` runs the family. The model must read `input_ids`; the decoder of T5
  reads the text shifted by one token. `ScannerEngine` takes the inputs of any model.

"""

SCAN = {
    "ViT": "refused: reads `pixel_values`",
    "Whisper": "refused: reads `input_features`",
    "nn.Sequential": "from a factory, if it reads `input_ids`",
}


def table(rows: list[Verification]) -> str:
    """Return the page."""
    heads = [f"{mode} ≤ {tolerance:g}" for mode, tolerance in TOLERANCES.items()]
    lines = [
        f"| family | class | modules | called | parameters | reached | difference | {' | '.join(heads)} "
        "| experiment |",
        f"|---|---|---|---|---|---|---|{'---|' * len(heads)}---|",
    ]
    for row in rows:
        marks = [
            "✓" if row.within(mode) else "✗ {:.2g}, {:.2g}".format(*row.distances[mode])
            for mode in TOLERANCES
        ]
        name, model = row.family.name, f"`{row.family.model}`"
        found = [row.modules, row.called, row.parameters, row.reached, f"{row.difference:g}"]
        cells = [name, model, *found, *marks, SCAN.get(name, "✓")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return _HEAD + "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path, help="file to write")
    page = parser.parse_args().page
    with quiet():
        rows = [verify(family) for family in FAMILIES]
    for row in rows:
        print(
            row.family.name,
            row.difference,
            {mode: f"{a:.1e} {g:.1e}" for mode, (a, g) in row.distances.items()},
        )
    page.write_text(table(rows))


if __name__ == "__main__":
    main()
