"""Tables of TransformerLens names of hook points.

An alias means that the module's output is the activation with that name in an unprocessed TransformerLens
model (`from_pretrained_no_processing`). A place without a TransformerLens name has no alias. BERT normalises
after the residual addition: the output of a layer is `hook_normalized_resid_post`, and `hook_resid_post` is
the sum before it, which no transformers module returns.
"""

import re
from functools import cache

_BERT = {
    "embeddings.word_embeddings": "embed.hook_embed",
    "encoder.layer.{n}": "blocks.{n}.hook_normalized_resid_post",
    "encoder.layer.{n}.output": "blocks.{n}.hook_normalized_resid_post",
    "encoder.layer.{n}.output.LayerNorm": "blocks.{n}.hook_normalized_resid_post",
    "encoder.layer.{n}.output.dense": "blocks.{n}.hook_mlp_out",
    "encoder.layer.{n}.intermediate.dense": "blocks.{n}.mlp.hook_pre",
    "encoder.layer.{n}.intermediate": "blocks.{n}.mlp.hook_post",
    "encoder.layer.{n}.attention.output.dense": "blocks.{n}.hook_attn_out",
    "encoder.layer.{n}.attention.self.query": "blocks.{n}.attn.hook_q",
    "encoder.layer.{n}.attention.self.key": "blocks.{n}.attn.hook_k",
    "encoder.layer.{n}.attention.self.value": "blocks.{n}.attn.hook_v",
}

_GPT2 = {
    "wte": "hook_embed",
    "wpe": "hook_pos_embed",
    "h.{n}": "blocks.{n}.hook_resid_post",
    "h.{n}.attn": "blocks.{n}.hook_attn_out",
    "h.{n}.attn.c_proj": "blocks.{n}.hook_attn_out",
    "h.{n}.mlp": "blocks.{n}.hook_mlp_out",
    "h.{n}.mlp.c_proj": "blocks.{n}.hook_mlp_out",
    "h.{n}.mlp.c_fc": "blocks.{n}.mlp.hook_pre",
    "h.{n}.mlp.act": "blocks.{n}.mlp.hook_post",
}

_NEOX = {
    "embed_in": "hook_embed",
    "layers.{n}": "blocks.{n}.hook_resid_post",
    "layers.{n}.attention": "blocks.{n}.hook_attn_out",
    "layers.{n}.attention.dense": "blocks.{n}.hook_attn_out",
    "layers.{n}.mlp": "blocks.{n}.hook_mlp_out",
    "layers.{n}.mlp.dense_4h_to_h": "blocks.{n}.hook_mlp_out",
    "layers.{n}.mlp.dense_h_to_4h": "blocks.{n}.mlp.hook_pre",
    "layers.{n}.mlp.act": "blocks.{n}.mlp.hook_post",
}

_LLAMA_INSIDE = {
    "layers.{n}": "blocks.{n}.hook_resid_post",
    "layers.{n}.self_attn.q_proj": "blocks.{n}.attn.hook_q",
    "layers.{n}.self_attn.k_proj": "blocks.{n}.attn.hook_k",
    "layers.{n}.self_attn.v_proj": "blocks.{n}.attn.hook_v",
    "layers.{n}.mlp.gate_proj": "blocks.{n}.mlp.hook_pre",
    "layers.{n}.mlp.up_proj": "blocks.{n}.mlp.hook_pre_linear",
}

_LLAMA_OUT = {
    "layers.{n}.self_attn": "blocks.{n}.hook_attn_out",
    "layers.{n}.self_attn.o_proj": "blocks.{n}.hook_attn_out",
    "layers.{n}.mlp": "blocks.{n}.hook_mlp_out",
    "layers.{n}.mlp.down_proj": "blocks.{n}.hook_mlp_out",
}

_LLAMA = {"embed_tokens": "hook_embed", **_LLAMA_INSIDE, **_LLAMA_OUT}
_GEMMA = {**_LLAMA_INSIDE, **_LLAMA_OUT}  # the embedding is scaled after the module
_GEMMA2 = {  # has norms after attention and MLP; TransformerLens names their outputs
    **_LLAMA_INSIDE,
    "layers.{n}.post_attention_layernorm": "blocks.{n}.hook_attn_out",
    "layers.{n}.post_feedforward_layernorm": "blocks.{n}.hook_mlp_out",
}

FAMILIES: dict[str, dict[str, str]] = {
    "bert": _BERT,
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
}
"""Aliases by path below the base model, by the `model_type` of a transformers configuration."""

_BASE = re.compile(r"^(bert|transformer|gpt_neox|model)\.")


def alias_of(model_type: str | None, path: str) -> str | None:
    """Return the TransformerLens name of a module's output; None if it has none.

    Args:
        model_type: `config.model_type` of the model; None if it has no configuration.
        path: dotted path of the module, with or without the base model's prefix (`model.`, `transformer.`,
        …).
    """
    below = _BASE.sub("", path)
    for pattern, alias in _compiled(model_type or ""):
        if match := pattern.fullmatch(below):
            return alias.format(**match.groupdict())
    return None


@cache
def _compiled(model_type: str) -> tuple[tuple[re.Pattern[str], str], ...]:
    table = FAMILIES.get(model_type, {})
    return tuple(
        (re.compile(re.escape(path).replace(r"\{n\}", r"(?P<n>\d+)")), alias) for path, alias in table.items()
    )
