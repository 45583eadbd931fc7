"""Twelve families of models against autograd, at every module with a row per token; see docs/capture.md."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.utils.checkpoint import checkpoint

from asysi.bus.packet import ROW_DTYPE, Kind
from asysi.capture.collector import Collector
from asysi.capture.gradients import BackwardPass
from asysi.capture.hooks import ActivationHooker
from asysi.capture.rows import first_tensor, row_shape
from asysi.model.points import HookPoint
from asysi.text.grid import StepTokens

pytestmark = pytest.mark.long  # twelve models

PAGE = (Path(__file__).parents[2] / "docs/capture.md").read_text()
BATCH, LENGTH = 2, 5
BOTH = (Kind.ACTIVATION, Kind.GRADIENT)
IDS = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) + 3
TEXT = {"input_ids": IDS}
SIZES = {
    "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 40, "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
BERT = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
T5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "vocab_size": 40}
VIT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "image_size": 8, "patch_size": 4, "num_labels": 3,
}  # fmt: skip
WHISPER = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": 40,
    "num_mel_bins": 8, "max_source_positions": LENGTH, "max_target_positions": LENGTH, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
MODELS = {
    "GPT-2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=2, n_embd=16, n_head=4, vocab_size=40, n_positions=32, bos_token_id=0)
    ),
    "Llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)),
    "Mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES)),
    "Qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES)),
    "Gemma": lambda: transformers.GemmaForCausalLM(transformers.GemmaConfig(**SIZES, head_dim=4)),
    "Mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2)
    ),
    "T5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(**T5, pad_token_id=0, decoder_start_token_id=0)
    ),
    "BERT": lambda: transformers.BertModel(transformers.BertConfig(**BERT)),
    "ViT": lambda: transformers.ViTModel(transformers.ViTConfig(**VIT)),
    "Whisper": lambda: transformers.WhisperModel(transformers.WhisperConfig(**WHISPER)),
    "Mamba": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=40, state_size=4)
    ),
    "nn.Sequential": lambda: torch.nn.Sequential(
        torch.nn.Embedding(40, 16), torch.nn.Linear(16, 24), torch.nn.GELU(), torch.nn.Linear(24, 16)
    ),
}


def inputs(family):
    """Arguments of a family's forward."""
    made = torch.Generator().manual_seed(1)
    return {
        "T5": {**TEXT, "decoder_input_ids": IDS},
        "ViT": {"pixel_values": torch.rand(BATCH, 3, 8, 8, generator=made)},
        "Whisper": {
            "input_features": torch.rand(BATCH, 8, 2 * LENGTH, generator=made), "decoder_input_ids": IDS,
        },
        "nn.Sequential": {"input": IDS},
    }.get(family, TEXT)  # fmt: skip


def grid():
    """Tokens of a step: every one is data. ViT has four patches and a class token."""
    rows = np.zeros(BATCH * LENGTH, ROW_DTYPE)
    rows["sequence"] = np.repeat(np.arange(BATCH), LENGTH)
    rows["position"] = np.tile(np.arange(LENGTH), BATCH)
    return StepTokens(0, BATCH, LENGTH, rows, np.ones(BATCH * LENGTH, np.bool_))


def built(family):
    torch.manual_seed(0)
    model = MODELS[family]().eval()
    if hasattr(model, "config"):
        model.config.use_cache = False
    return model


def loss_of(model, family):
    output = first_tensor(model(**inputs(family))).float()
    return (output @ torch.linspace(-1, 1, output.shape[-1])).square().mean()  # no norm cancels it


def by_autograd(model, family):
    """Outputs and gradients of every module that has one floating-point row per token, by its calls."""
    kept = {}

    def keep(name, _module, _args, output):
        try:
            tensor = first_tensor(output)
        except TypeError:
            return
        if tensor.requires_grad and row_shape(tensor.shape, BATCH, LENGTH) is not None:
            tensor.retain_grad()
            kept.setdefault(name, []).append(tensor)

    named = [(name, module) for name, module in model.named_modules() if name]
    handles = [module.register_forward_hook(partial(keep, name)) for name, module in named]
    loss_of(model, family).backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    return kept


def captured(model, family, paths, *, dtype=None, scale=1.0, parts=1):
    """Rows by account."""
    collector = Collector()
    with ActivationHooker(model, [HookPoint(path) for path in paths], collector, kinds=BOTH) as hooker:
        hooker.backward(BackwardPass(loss_scale=scale / parts, accumulated=parts))
        for _ in range(parts):
            hooker.step(grid())
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
                loss = loss_of(model, family)
            (loss * scale / parts).backward()
    model.zero_grad()
    assert hooker.errors == 0
    return collector.points


def flat(tensor):
    return tensor.detach().float().reshape(BATCH * LENGTH, -1).numpy()


@pytest.mark.parametrize("family", MODELS)
def test_activations_and_gradients_are_autograds(family):
    """Each module's rows are its output and autograd's gradient, bit for bit; the page has their number."""
    model = built(family)
    expected = by_autograd(model, family)
    found = captured(model, family, expected)
    for name, tensors in expected.items():
        for call, tensor in enumerate(tensors):
            at = found[name].calls.index(call)
            np.testing.assert_array_equal(found[name].values[at], flat(tensor))
            if tensor.grad is not None:
                at = found[f"{name}:gradient"].calls.index(call)
                np.testing.assert_array_equal(found[f"{name}:gradient"].values[at], flat(tensor.grad))
    with_gradient = sum(any(tensor.grad is not None for tensor in tensors) for tensors in expected.values())
    row = re.search(rf"^\| {re.escape(family)} \| (\d+) \| (\d+) \|", PAGE, re.MULTILINE)
    assert row is not None, f"| {family} | {len(expected)} | {with_gradient} |"
    assert (int(row[1]), int(row[2])) == (len(expected), with_gradient)
    assert with_gradient >= 3


@pytest.mark.parametrize("family", MODELS)
def test_autocast_accumulation_and_checkpointing_agree(family):
    """Under autocast to bfloat16 (relative error of a module's rows at most 0.2, of half of them 0.05), with
    four scaled parts of a loss (1e-5), and with recomputed layers (bit for bit).
    """
    model = built(family)
    paths = list(by_autograd(model, family))
    plain = captured(model, family, paths)

    def errors(found):
        pairs = [
            (plain[name].values[0], rows.values[0]) for name, rows in found.items() if plain[name].values
        ]
        return [np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-12) for a, b in pairs]

    assert max(errors(captured(model, family, paths, scale=8.0, parts=4))) < 1e-5
    mixed = errors(captured(model, family, paths, dtype=torch.bfloat16, scale=64.0))
    assert np.median(mixed) < 0.05
    assert max(mixed) < 0.2
    gradients = {name: rows for name, rows in plain.items() if name.endswith(":gradient") and rows.values}
    for module in (module for module in model.modules() if isinstance(module, torch.nn.Linear)):
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    again = captured(model, family, paths)
    for name, rows in gradients.items():
        np.testing.assert_array_equal(again[name].values[0], rows.values[0])
