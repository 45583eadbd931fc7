"""A random language model of the 1B class."""

import torch
from transformers import LlamaConfig, LlamaModel

WIDTH = 2048


def build(layers: int = 16, width: int = WIDTH, device: str = "cuda") -> torch.nn.Module:
    """Return a Llama with random weights in bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30592, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=2048, use_cache=False,
    )  # fmt: skip
    with torch.device(device):
        model = LlamaModel(config)
    return model.to(device, torch.bfloat16).eval()


def billion(device: str = "cpu") -> torch.nn.Module:
    """Return the model, as a factory for an experiment; float32 until converted to the experiment's dtype."""
    return build(device=device)


def tiny(device: str = "cpu") -> torch.nn.Module:
    """Return a small model of the same kind."""
    return build(2, 64, device)
