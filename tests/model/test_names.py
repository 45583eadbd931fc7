import re
from fnmatch import fnmatchcase

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from asysi.contract.errors import ConfigError
from asysi.model.aliases import FAMILIES, alias_of
from asysi.model.globs import match_glob, match_globs, near_names

SEGMENT = st.text("ab0*?", min_size=1, max_size=4).filter(lambda text: "**" not in text)
NAME = st.lists(st.text("ab0", min_size=1, max_size=4), min_size=1, max_size=4).map(".".join)
TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "vocab_size": 60,
}


@pytest.fixture(scope="module")
def minilm_names():
    config = transformers.BertConfig(**TINY | {"num_hidden_layers": 6})  # MiniLM's structure
    with torch.device("meta"):
        return [name for name, _ in transformers.BertModel(config).named_modules()]


def test_six_outputs(minilm_names):
    """`encoder.layer.*.output` is the six layers of MiniLM and not the outputs of their attention."""
    assert match_glob("encoder.layer.*.output", minilm_names) == [
        f"encoder.layer.{n}.output" for n in range(6)
    ]


def test_double_star_crosses_dots(minilm_names):
    """`**` crosses dots: the same place at any depth."""
    outputs = match_glob("encoder.**.output", minilm_names)
    assert len(outputs) == 12
    assert set(outputs) > set(match_glob("encoder.layer.*.output", minilm_names))


def test_root_is_no_point(minilm_names):
    """The root module, whose name is empty, is never matched."""
    assert "" in minilm_names
    assert match_glob("**", minilm_names) == minilm_names[1:]


@given(st.lists(SEGMENT, min_size=1, max_size=4), NAME)
def test_single_star_stays_in_its_segment(segments, name):
    """Without `**` a glob matches exactly when it matches segment by segment."""
    parts = name.split(".")
    expected = len(parts) == len(segments) and all(map(fnmatchcase, parts, segments))
    assert bool(match_glob(".".join(segments), [name])) == expected


@given(NAME)
def test_a_name_matches_itself_alone(name):
    """A glob without wildcards is a name, dots included."""
    assert match_glob(name, [name, name.replace(".", "x"), name + "a"])[0] == name
    assert len(match_glob(name, [name, f"{name}a", f"a{name}"])) == 1


def test_unmatched_glob_lists_near_names(minilm_names):
    """A glob that matches nothing is refused with the names that it probably meant."""
    with pytest.raises(ConfigError) as refused:
        match_globs(["encoder.layer.*.output", "encoder.layers.*.output", "decoder"], minilm_names)
    assert len(refused.value.problems) == 2
    first = refused.value.problems[0]
    assert first.startswith("spec.capture.hookPoints[1]: 'encoder.layers.*.output' matches no module")
    assert near_names("encoder.layers.*.output", minilm_names)[0] == "encoder.layer.0.output"
    assert "encoder.layer.0.output" in first


def test_matches_keep_the_models_order(minilm_names):
    """Hook points come in the model's order, each once, however the globs overlap."""
    found = match_globs(["encoder.layer.5.output", "encoder.layer.*.output"], minilm_names)
    assert found == [f"encoder.layer.{n}.output" for n in range(6)]


def test_aliases_are_matched_where_no_path_is():
    """TransformerLens' names take the first of the modules that share one; a path comes before an alias."""
    names = ["h.0", "h.0.attn", "h.0.attn.c_proj", "h.1", "h.1.attn", "h.1.attn.c_proj", "ln_f"]
    aliases = {name: alias for name in names if (alias := alias_of("gpt2", name))}
    assert match_globs(["blocks.*.hook_resid_post"], names, aliases=aliases) == ["h.0", "h.1"]
    assert match_globs(["blocks.1.hook_attn_out"], names, aliases=aliases) == ["h.1.attn"]
    assert match_globs(["blocks.*.hook_attn_out#1"], names, aliases=aliases) == ["h.0.attn#1", "h.1.attn#1"]
    assert match_globs(["h.*", "blocks.0.**"], names, aliases=aliases) == ["h.0", "h.0.attn", "h.1"]
    assert match_globs(["*"], ["h", "g"], aliases={"h": "g"}) == ["h", "g"]


def test_names_that_no_module_returns_are_answered_with_near_ones():
    """A name of TransformerLens that is not a module's output lists the near names that are."""
    names = [f"h.{n}" for n in range(3)]
    aliases = {name: str(alias_of("gpt2", name)) for name in names}
    with pytest.raises(
        ConfigError, match=r"hook_resid_pre' matches no module .* closest are blocks.0.hook_resid_post"
    ):
        match_globs(["blocks.*.hook_resid_pre"], names, aliases=aliases)


def test_a_trainer_names_a_call_that_is_captured():
    """Among captured hook points `a#1` is a name: it stands for no call of a point that has all of them."""
    captured = ["a", "b", "b#1"]
    assert match_globs(["b#1"], captured, calls=False) == ["b#1"]
    assert match_globs(["b*"], captured, calls=False) == ["b", "b#1"]
    with pytest.raises(ConfigError, match="'a#1' matches no"):
        match_globs(["a#1"], captured, calls=False)


CONFIGS = {
    "bert": transformers.BertConfig(**TINY),
    "gpt2": transformers.GPT2Config(
        n_layer=2, n_embd=16, n_head=4, vocab_size=60, bos_token_id=0, eos_token_id=0
    ),
    "gpt_neox": transformers.GPTNeoXConfig(**TINY),
    "llama": transformers.LlamaConfig(**TINY),
    "mistral": transformers.MistralConfig(**TINY, num_key_value_heads=2),
    "qwen2": transformers.Qwen2Config(**TINY),
    "qwen3": transformers.Qwen3Config(**TINY),
    "gemma": transformers.GemmaConfig(**TINY, num_key_value_heads=2, head_dim=4),
    "gemma2": transformers.Gemma2Config(**TINY, num_key_value_heads=2, head_dim=4),
}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_aliases_name_real_modules(family):
    """Every path of an alias table is a module of a real model, with its prefix and without."""
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(CONFIGS[family])
    names = {name for name, _ in model.named_modules()}
    for path in FAMILIES[family]:
        real = path.replace("{n}", "1")
        assert real in names
        assert alias_of(family, real) == alias_of(family, f"{model.base_model_prefix}.{real}") is not None
        assert not re.search(r"[{}]", alias_of(family, real))


def test_unknown_places_have_no_alias():
    """Where TransformerLens has no name, or the family is unknown, there is no alias."""
    assert alias_of("bert", "encoder.layer.0.output.dropout") is None
    assert alias_of("no-such-family", "layers.0") is None
    assert alias_of(None, "layers.0") is None
    assert alias_of("bert", "encoder.layer.3.output") == "blocks.3.hook_normalized_resid_post"


def test_near_names_keep_the_numbers():
    """A slip in one layer's name is answered with that layer, an unknown layer with the first."""
    names = [f"blocks.{n}.hook_resid_post" for n in range(3)]
    assert near_names("blocks.1.hook_resid_pst", names) == ["blocks.1.hook_resid_post"]
    assert near_names("blocks.7.hook_resid_post", names) == ["blocks.0.hook_resid_post"]
