"""GGUF models, from check to the host's activations."""

import hashlib
import json

import gguf
import numpy as np
import pytest
import torch
import transformers

from asysi.contract.errors import ConfigError
from asysi.contract.spec import Model, ScanExperiment
from asysi.hosts.check import check
from asysi.model.loading import load_model, load_tokenizer, resolve_model, weight_files

HIDDEN, HEADS, LAYERS, MLP, LENGTH = 64, 4, 2, 128, 32
WORDS = ["<unk>", "<s>", "</s>", *"abcdefgh", "Ġ", "ab", "cd"]
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "blk.{}.attn_norm.weight": "model.layers.{}.input_layernorm.weight",
    "blk.{}.ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blk.{}.attn_q.weight": "model.layers.{}.self_attn.q_proj.weight",
    "blk.{}.attn_k.weight": "model.layers.{}.self_attn.k_proj.weight",
    "blk.{}.attn_v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blk.{}.attn_output.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blk.{}.ffn_gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blk.{}.ffn_up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blk.{}.ffn_down.weight": "model.layers.{}.mlp.down_proj.weight",
}


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=HIDDEN, intermediate_size=MLP, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def write(model, path, kind, leave_out=()):
    """Write a Llama as llama.cpp would; return the weights that a reader must find, by their name."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(LENGTH)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3, *[1] * (len(WORDS) - 3)])
    writer.add_token_merges(["a b", "c d"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    state, expected = model.state_dict(), {}
    for theirs, ours in _NAMES.items():
        for number in range(LAYERS) if "{}" in theirs else (0,):
            name = ours.format(number)
            values = state[name].numpy()
            if theirs.format(number) in leave_out:
                continue
            stored = kind if values.ndim == 2 else gguf.GGMLQuantizationType.F32
            packed = gguf.quantize(permuted(name, values), stored)
            writer.add_tensor(theirs.format(number), packed, raw_dtype=stored)
            expected[name] = permuted(name, gguf.dequantize(packed, stored), back=True)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    return expected


def permuted(name, values, *, back=False):
    """llama.cpp interleaves the two halves of each head's rotary dimensions."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return values
    half = HIDDEN // HEADS // 2
    shape = (HEADS, half, 2, HIDDEN) if back else (HEADS, 2, half, HIDDEN)
    return np.ascontiguousarray(values.reshape(shape).swapaxes(1, 2).reshape(values.shape))


@pytest.fixture(scope="module")
def tiny(llama, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.Q4_1.gguf"
    return path, write(llama, path, gguf.GGMLQuantizationType.Q4_1)


def experiment(path, rows, **tokens):
    return ScanExperiment.model_validate({
        "apiVersion": "asysi.dev/v1alpha1", "kind": "ScanExperiment", "metadata": {"name": "test"},
        "spec": {
            "model": {"uri": f"file://{path}"},
            "data": {"uri": f"jsonl://{rows}", "tokens": {"contextLength": 16, **tokens}},
            "workload": {"scan": {"batchSize": 4}},
            "capture": {"hookPoints": ["model.layers.*"], "size": "20Mi"},
            "bus": {"shards": 1, "size": "9Mi"},
        },
    })  # fmt: skip


def test_plain_weights_give_the_models_own_activations(llama, tmp_path):
    """A GGUF of float32 weights is the model it was made from: every layer returns the same."""
    write(llama, tmp_path / "tiny.gguf", gguf.GGMLQuantizationType.F32)
    loaded = load_model(resolve_model(Model(uri=f"file://{tmp_path}/tiny.gguf")), "float32")
    ids = torch.arange(3, 13).view(1, -1)
    with torch.inference_mode():
        ours = loaded.module(input_ids=ids, output_hidden_states=True)
        theirs = llama(input_ids=ids, output_hidden_states=True)
    assert type(loaded.module) is transformers.LlamaForCausalLM
    assert loaded.model_type == "llama"
    for one, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(one, other)


def test_quantised_weights_are_dequantised(tiny):
    """Every weight of a Q4_1 file is the number that its block stands for, in an ordinary module."""
    path, expected = tiny
    module = load_model(resolve_model(Model(uri=f"file://{path}")), "float32").module
    assert type(module.model.layers[0].mlp.up_proj) is torch.nn.Linear
    state = module.state_dict()
    for name, values in expected.items():
        np.testing.assert_array_equal(state[name].numpy(), values, err_msg=name)
    assert not np.array_equal(expected["model.layers.0.mlp.up_proj.weight"], 0)


def test_the_hash_is_that_of_the_file(tiny):
    """sha256 is what `sha256sum` prints of the GGUF file; another one is refused."""
    path, _ = tiny
    real = hashlib.sha256(path.read_bytes()).hexdigest()
    resolved = resolve_model(Model(uri=f"file://{path}", sha256=real))
    assert (resolved.sha256, resolved.path, resolved.gguf) == (real, str(path), path)
    assert weight_files(path, "") == [path]
    with pytest.raises(ConfigError, match=real):
        resolve_model(Model(uri=f"file://{path}", sha256="0" * 64))


def test_check_says_what_it_is(tiny, tmp_path):
    """check finds hook points with aliases, the class, and the types that the weights are stored in."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": "ab " * n}) + "\n" for n in range(1, 9)))
    report = check(experiment(tiny[0], rows), output=tmp_path / "out")
    assert report.problems == []
    assert [(point.path, point.alias, point.shape) for point in report.points] == [
        (f"model.layers.{n}", f"blocks.{n}.hook_resid_post", (4, 16, HIDDEN)) for n in range(LAYERS)
    ]
    assert report.model.class_name == "LlamaForCausalLM"
    assert report.model.stored.startswith("Q4_1 ")


def test_the_tokenizer_is_in_the_file(tiny):
    """Without another tokenizer the file's own is used, also by a model that is not it."""
    tokenizer = load_tokenizer(resolve_model(Model(uri=f"file://{tiny[0]}")))
    assert tokenizer.convert_ids_to_tokens(tokenizer("abcd")["input_ids"]) == ["ab", "cd"]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    other = Model(uri="python://torch.nn:Identity", tokenizer=f"file://{tiny[0]}")
    assert load_tokenizer(resolve_model(other)).bos_token == "<s>"


@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_refused(tiny, tmp_path, share):
    """A GGUF that was not fetched whole is refused with a sentence, wherever it ends."""
    content = tiny[0].read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ConfigError, match=r"cut.gguf cannot be used as a GGUF model .* cut off"):
        resolve_model(Model(uri=f"file://{tmp_path}/cut.gguf"))


def test_missing_parameters_are_refused(llama, tmp_path):
    """A file that lacks a parameter is refused: transformers would fill it with random numbers."""
    path = tmp_path / "hole.gguf"
    write(llama, path, gguf.GGMLQuantizationType.F32, leave_out=["blk.1.ffn_up.weight"])
    with pytest.raises(ConfigError, match=r"lacks 1 parameters .*model.layers.1.mlp.up_proj.weight"):
        load_model(resolve_model(Model(uri=f"file://{path}")), "float32")


def test_what_a_person_may_write_instead(tiny, tmp_path):
    """A folder of GGUF files asks for one of them, another single file for a folder."""
    with pytest.raises(ConfigError, match=r"name one file, like file://.*tiny.Q4_1.gguf"):
        resolve_model(Model(uri=f"file://{tiny[0].parent}"))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"does not end with .gguf"):
        resolve_model(Model(uri=f"file://{tmp_path}/model.safetensors"))
    with pytest.raises(ConfigError, match="does not exist"):
        resolve_model(Model(uri=f"file://{tmp_path}/none.gguf"))
