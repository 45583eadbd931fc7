"""What a parameter is, by its name, over the families of transformers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi.weights import classify_param
from asysi.weights.statistics.parameter_families import BLOCKS, describe_param

KNOWN = {
    # Llama, Mistral, Qwen, Gemma
    "model.embed_tokens.weight": ("embedding", None),
    "model.layers.0.self_attn.q_proj.weight": ("q_proj", 0),
    "model.layers.31.self_attn.k_proj.bias": ("k_proj", 31),
    "model.layers.7.self_attn.v_proj.weight": ("v_proj", 7),
    "model.layers.7.self_attn.o_proj.weight": ("o_proj", 7),
    "model.layers.7.self_attn.q_norm.weight": ("norm", 7),
    "model.layers.7.mlp.gate_proj.weight": ("gate_proj", 7),
    "model.layers.7.mlp.up_proj.weight": ("up_proj", 7),
    "model.layers.7.mlp.down_proj.weight": ("down_proj", 7),
    "model.layers.7.input_layernorm.weight": ("norm", 7),
    "model.layers.7.pre_feedforward_layernorm.weight": ("norm", 7),
    "model.layers.7.self_attn.rotary_emb.inv_freq": ("buffer", 7),
    "model.norm.weight": ("norm", None),
    "lm_head.weight": ("output", None),
    # Phi-3: fused
    "model.layers.2.self_attn.qkv_proj.weight": ("qkv_proj", 2),
    "model.layers.2.mlp.gate_up_proj.weight": ("gate_up_proj", 2),
    # Phi-2
    "model.layers.2.self_attn.dense.weight": ("o_proj", 2),
    "model.layers.2.mlp.fc1.weight": ("up_proj", 2),
    "model.layers.2.mlp.fc2.bias": ("down_proj", 2),
    # Mixtral, Qwen MoE, DeepSeek, gpt-oss
    "model.layers.4.block_sparse_moe.gate.weight": ("moe", 4),
    "model.layers.4.block_sparse_moe.experts.6.w1.weight": ("moe", 4),
    "model.layers.4.mlp.gate.weight": ("moe", 4),
    "model.layers.4.mlp.experts.11.gate_proj.weight": ("moe", 4),
    "model.layers.4.mlp.shared_expert.down_proj.weight": ("moe", 4),
    "model.layers.4.mlp.shared_expert_gate.weight": ("moe", 4),
    "model.layers.4.mlp.experts.gate_up_proj": ("moe", 4),
    "model.layers.4.mlp.router.weight": ("moe", 4),
    "model.layers.4.self_attn.q_a_proj.weight": ("q_proj", 4),
    "model.layers.4.self_attn.kv_a_proj_with_mqa.weight": ("kv_proj", 4),
    "model.layers.4.self_attn.kv_a_layernorm.weight": ("norm", 4),
    # GPT-2
    "wte.weight": ("embedding", None),
    "transformer.wpe.weight": ("position", None),
    "transformer.h.11.attn.c_attn.weight": ("qkv_proj", 11),
    "h.11.attn.c_proj.weight": ("o_proj", 11),
    "h.11.attn.bias": ("buffer", 11),
    "h.11.mlp.c_fc.bias": ("up_proj", 11),
    "h.11.mlp.c_proj.weight": ("down_proj", 11),
    "h.11.ln_1.weight": ("norm", 11),
    "ln_f.bias": ("norm", None),
    # GPT-NeoX, Falcon, Bloom
    "gpt_neox.embed_in.weight": ("embedding", None),
    "gpt_neox.layers.3.attention.query_key_value.weight": ("qkv_proj", 3),
    "gpt_neox.layers.3.attention.dense.bias": ("o_proj", 3),
    "gpt_neox.layers.3.attention.bias": ("buffer", 3),
    "gpt_neox.layers.3.mlp.dense_h_to_4h.weight": ("up_proj", 3),
    "gpt_neox.layers.3.mlp.dense_4h_to_h.weight": ("down_proj", 3),
    "embed_out.weight": ("output", None),
    "transformer.h.3.self_attention.query_key_value.weight": ("qkv_proj", 3),
    "transformer.h.3.self_attention.dense.weight": ("o_proj", 3),
    # BERT, RoBERTa, DistilBERT
    "bert.embeddings.word_embeddings.weight": ("embedding", None),
    "embeddings.position_embeddings.weight": ("position", None),
    "embeddings.position_ids": ("buffer", None),
    "embeddings.LayerNorm.weight": ("norm", None),
    "encoder.layer.5.attention.self.query.weight": ("q_proj", 5),
    "encoder.layer.5.attention.self.key.bias": ("k_proj", 5),
    "encoder.layer.5.attention.self.value.weight": ("v_proj", 5),
    "encoder.layer.5.attention.output.dense.weight": ("o_proj", 5),
    "encoder.layer.5.attention.output.LayerNorm.weight": ("norm", 5),
    "encoder.layer.5.intermediate.dense.weight": ("up_proj", 5),
    "encoder.layer.5.output.dense.weight": ("down_proj", 5),
    "encoder.layer.5.output.LayerNorm.bias": ("norm", 5),
    "pooler.dense.weight": ("pooler", None),
    "cls.predictions.bias": ("output", None),
    "classifier.weight": ("output", None),
    "distilbert.transformer.layer.2.attention.q_lin.weight": ("q_proj", 2),
    "distilbert.transformer.layer.2.ffn.lin1.weight": ("up_proj", 2),
    "distilbert.transformer.layer.2.ffn.lin2.weight": ("down_proj", 2),
    "distilbert.transformer.layer.2.sa_layer_norm.weight": ("norm", 2),
    # OPT, T5
    "model.decoder.embed_positions.weight": ("position", None),
    "model.decoder.layers.9.self_attn.out_proj.weight": ("o_proj", 9),
    "model.decoder.layers.9.final_layer_norm.weight": ("norm", 9),
    "encoder.block.1.layer.0.SelfAttention.q.weight": ("q_proj", 1),
    "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": ("position", 1),
    "decoder.block.1.layer.2.DenseReluDense.wi_1.weight": ("up_proj", 1),
    "decoder.block.1.layer.2.DenseReluDense.wo.weight": ("down_proj", 1),
    "shared.weight": ("embedding", None),
    # GGUF
    "token_embd.weight": ("embedding", None),
    "blk.3.attn_q.weight": ("q_proj", 3),
    "blk.3.attn_output.weight": ("o_proj", 3),
    "blk.3.attn_norm.weight": ("norm", 3),
    "blk.3.ffn_gate.weight": ("gate_proj", 3),
    "blk.3.ffn_gate_inp.weight": ("moe", 3),
    "blk.3.ffn_up_exps.weight": ("moe", 3),
    "output.weight": ("output", None),
    "output_norm.weight": ("norm", None),
    # the original design's words, in any case
    "output_projection": ("output", None),
    "token_embedding": ("embedding", None),
    "MODEL.EMBED_TOKENS": ("embedding", None),
    "MODEL.LAYERS.7.SELF_ATTN.Q_PROJ.WEIGHT": ("q_proj", 7),
    "mixer.gatekeeper": ("moe", None),
    # heads of classifiers are no attention
    "classifier.out_proj.weight": ("output", None),
    "classification_head.out_proj.bias": ("output", None),
    "model.decoder.layers.2.self_attn.out_proj.weight": ("o_proj", 2),
    # what unknown protocol
    "something.else": ("other", None),
    "": ("other", None),
}


@pytest.mark.parametrize(("name", "expected"), KNOWN.items())
def test_known_names(name, expected):
    """The block type and the layer of a name are those of its family."""
    assert classify_param(name) == expected


def test_every_block_type_has_an_example():
    """No line of the table is without a name that shows what it is for."""
    assert {block for block, _ in KNOWN.values()} == {*BLOCKS, "other"}


@pytest.mark.parametrize(
    ("name", "kind", "expert"),
    [
        ("model.layers.4.mlp.experts.11.gate_proj.weight", "weight", 11),
        ("model.layers.4.mlp.experts.gate_up_proj_bias", "bias", None),
        ("encoder.layer.5.attention.self.key.bias", "bias", None),
        ("x.q_proj.weight_scale", "weight_scale", None),
        ("x.q_proj.lora_A.weight", "weight", None),
        ("h.1.attn.rotary.inv_freq", "inv_freq", None),
    ],
)
def test_kind_and_expert(name, kind, expert):
    """Weight or bias, and the expert's number, stand beside the block type."""
    role = describe_param(name)
    assert (role.kind, role.expert) == (kind, expert)


@given(st.text(alphabet="abcdefgh0123._ layersexpert#", max_size=60))
def test_any_name_has_an_answer(name):
    """Whatever a parameter is called, its type is in the table or `other`."""
    block, layer = classify_param(name)
    assert block in {*BLOCKS, "other"}
    assert layer is None or layer >= 0


@given(
    st.lists(
        st.sampled_from(
            ["layers", "3", "embed", "x", "MoE", "gate", "lm_head", "Output", "expert", "q_proj"]
        ),
        min_size=1,
    ),
    st.sampled_from([".", "_", ""]),
    st.booleans(),
)
def test_never_other_where_the_design_says_more(parts, joint, upper):
    """A name with a word of the original design is never `other`, and keeps its layer, whatever its case."""
    name = joint.join(parts)
    block, layer = classify_param(name.upper() if upper else name)
    words = (
        "embed",
        ".q_proj",
        ".k_proj",
        ".v_proj",
        ".o_proj",
        "moe",
        "gate",
        "expert",
        "lm_head",
        "output",
    )
    assert block != "other" or not any(word in name.lower() for word in words)
    if ".layers.3." in name:
        assert layer == 3
