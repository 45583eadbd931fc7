"""Classifies parameters by name, with tables for transformer model families."""

import re
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Role:
    """The role of a parameter in its model."""

    block_type: str
    """Key of `BLOCKS`, or `other`."""
    layer_index: int | None
    """Layer counted from 0, None outside layers."""
    kind: str
    """`weight`, `bias`, or the last part of the name: `inv_freq`, `lora_A`, `weight_scale`, …"""
    expert: int | None
    """Number of the expert, None outside experts and if all experts share one tensor."""


BLOCKS: dict[str, tuple[str, ...]] = {
    # The first match from top to bottom counts: types that contain others come first.
    "buffer": (
        r"inv_freq",
        r"position_ids",
        r"token_type_ids",
        r"masked_bias",
        r"h\.#\.attn\.bias",
        r"num_batches_tracked",
        r"running_mean",
        r"running_var",
        r"rope_freqs",
        r"attention\.bias",
        r"cos_cached",
        r"sin_cached",
    ),
    "norm": (
        r"\w*layer_?norm\w*",
        r"\w*LayerNorm\w*",
        r"\w*[Ll]ayer_norm\w*",
        r"ln_\w+",
        r"ln\d?",
        r"norm\d?",
        r"\w+_norm\d?",
        r"\w+_norm_\w+",
        r"norm_\w+",
        r"\w*[Bb]atch_?[Nn]orm\w*",
        r"post_attention_norm",
        r"rms_norm\w*",
    ),
    "moe": (
        r"experts",
        r"block_sparse_moe",
        r"moe",
        r"\w*_moe",
        r"moe_\w+",
        r"shared_experts?",
        r"shared_expert_gate",
        r"router",
        r"mlp\.gate",
        r"feed_forward\.gate",
        r"ffn\.gate",
        r"\w+_exps",
        r"\w+_shexp",
        r"ffn_gate_inp\w*",
        r"e_score_correction_bias",
    ),
    "position": (
        r"wpe",
        r"embed_positions",
        r"position_embeddings?",
        r"pos_embed(?:ding)?s?",
        r"relative_attention_bias",
        r"rel_pos\w*",
        r"position_embd",
    ),
    "embedding": (
        r"embed_tokens",
        r"word_embeddings?",
        r"wte",
        r"embed_in",
        r"token_type_embeddings?",
        r"tok_embeddings",
        r"token_embd",
        r"token_types",
        r"shared",
        r"patch_embeddings?",
        r"patch_embed",
        r"cls_token",
        r"word_embeddings_layernorm",
        r"embed",
        r"embeddings?",
        r"tok_embed\w*",
        r"project_in",
        r"embedding_projection",
        r"embedding_hidden_mapping_in",
    ),
    "qkv_proj": (
        r"c_attn",
        r"query_key_value",
        r"qkv_proj",
        r"qkv",
        r"Wqkv",
        r"attn_qkv",
        r"in_proj_weight",
        r"in_proj_bias",
        r"in_proj_qkvz",
    ),
    "kv_proj": (r"kv_a_proj_with_mqa", r"kv_b_proj", r"kv_proj", r"attn_kv_\w+"),
    "q_proj": (
        r"q_proj",
        r"query",
        r"q_lin",
        r"q_a_proj",
        r"q_b_proj",
        r"attn_q(?:_[ab])?",
        r"attention\.wq",
        r"(?:SelfAttention|EncDecAttention|attention|attn)\.q",
        r"to_q",
        r"query_proj",
    ),
    "k_proj": (
        r"k_proj",
        r"key",
        r"k_lin",
        r"attn_k",
        r"attention\.wk",
        r"(?:SelfAttention|EncDecAttention|attention|attn)\.k",
        r"to_k",
        r"key_proj",
    ),
    "v_proj": (
        r"v_proj",
        r"value",
        r"v_lin",
        r"attn_v",
        r"attention\.wv",
        r"(?:SelfAttention|EncDecAttention|attention|attn)\.v",
        r"to_v",
        r"value_proj",
    ),
    "o_proj": (
        r"o_proj",
        r"(?<!classifier\.)(?<!_head\.)out_proj",
        r"out_lin",
        r"attn_output",
        r"attention\.wo",
        r"(?:SelfAttention|EncDecAttention)\.o",
        r"attn\.c_proj",
        r"(?:attention|self_attention|self_attn|attn)\.(?:output\.)?dense",
        r"to_out(?:\.0)?",
        r"attn\.(?:proj|o|Wo)",
    ),
    "gate_up_proj": (r"gate_up_proj", r"gate_and_up", r"mlp\.Wi", r"ffn_gate_up"),
    "gate_proj": (r"gate_proj", r"ffn_gate", r"feed_forward\.w1", r"wi_0", r"mlp\.w1"),
    "up_proj": (
        r"up_proj",
        r"c_fc",
        r"dense_h_to_4h",
        r"fc1",
        r"intermediate\.dense",
        r"lin1",
        r"ffn_up",
        r"feed_forward\.w3",
        r"wi_1",
        r"wi",
        r"mlp\.w2",
        r"linear1",
        r"fc_in",
        r"ffn(?=\.weight|\.bias)",
    ),
    "down_proj": (
        r"down_proj",
        r"mlp\.c_proj",
        r"dense_4h_to_h",
        r"fc2",
        r"output\.dense",
        r"lin2",
        r"ffn_down",
        r"feed_forward\.w2",
        r"DenseReluDense\.wo",
        r"mlp\.(?:wo|Wo|c_proj)",
        r"linear2",
        r"fc_out",
        r"ffn_output",
    ),
    "output": (
        r"lm_head",
        r"embed_out",
        r"cls",
        r"predictions",
        r"classifier",
        r"classification_head",
        r"score",
        r"output",
        r"head",
        r"qa_outputs",
        r"vocab_\w+",
        r"project_out",
        r"generator_lm_head",
    ),
    "pooler": (r"pooler", r"pooling"),
}
"""Block types, and regular expressions on whole parts of a name; `h.#` is any layer of the list `h`."""

MEANINGS: dict[str, str] = {
    "embedding": "Embeddings of tokens, token types and patches.",
    "position": "Embeddings of positions, and their biases.",
    "q_proj": "Queries of attention.",
    "k_proj": "Keys.",
    "v_proj": "Values.",
    "kv_proj": "Keys and values in one matrix, also compressed as in DeepSeek's.",
    "qkv_proj": "Queries, keys and values in one matrix.",
    "o_proj": "What attention gives back.",
    "gate_proj": "Gate of a gated MLP.",
    "up_proj": "First matrix of an MLP.",
    "gate_up_proj": "Gate and first matrix in one.",
    "down_proj": "Last matrix of an MLP.",
    "moe": "Experts and their routers.",
    "norm": "Normalisation.",
    "output": "Heads: language model, classifier, predictions.",
    "pooler": "Pooler of an encoder.",
    "buffer": "What is stored and not learned.",
    "other": "Anything else.",
}
"""Meaning of each block type; a bias has the type of its layer."""

_LAYER = re.compile(
    r"(?:^|\.)(layers?|h|blocks?|blk|albert_layer_groups|resblocks|stages)\.(\d+)(?=\.|$)", re.IGNORECASE
)
_EXPERT = re.compile(r"(?:^|\.)experts\.(\d+)(?=\.|$)", re.IGNORECASE)
_KINDS = re.compile(r"(?:^|[._])(weight|bias)$", re.IGNORECASE)


_WORDS = (
    ("embedding", ("embed",)),
    ("q_proj", (".q_proj",)),
    ("k_proj", (".k_proj",)),
    ("v_proj", (".v_proj",)),
    ("o_proj", (".o_proj",)),
    ("moe", ("moe", "gate", "expert")),
    ("output", ("lm_head", "output")),
)
"""Block types by words anywhere in a name, for names that no family matches."""


def classify_param(name: str) -> tuple[str, int | None]:
    """Return the block type and the layer of the parameter `name`.

    Block types are those of `MEANINGS`.
    """
    role = describe_param(name)
    return role.block_type, role.layer_index


def describe_param(name: str) -> Role:
    """Return everything that can be derived from a parameter's name."""
    layer = _LAYER.search(name)
    expert = _EXPERT.search(name)
    kind = _KINDS.search(name)
    return Role(
        block_type=_block_type(_LAYER.sub(r".\1.#", name)),
        layer_index=int(layer.group(2)) if layer else None,
        kind=kind.group(1).lower() if kind else name.rpartition(".")[2],
        expert=int(expert.group(1)) if expert else None,
    )


def _block_type(name: str) -> str:
    found = next((block for block, pattern in _compiled().items() if pattern.search(name)), None)
    small = name.lower()
    return found or next((block for block, words in _WORDS if any(word in small for word in words)), "other")


@cache
def _compiled() -> dict[str, re.Pattern[str]]:
    return {
        block: re.compile(rf"(?:^|\.)(?:{'|'.join(patterns)})(?:\.|$)", re.IGNORECASE)
        for block, patterns in BLOCKS.items()
    }
