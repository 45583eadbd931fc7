"""Cross-entropy with an autoencoder spliced in, against doing the same by hand."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from asysi.finish import splice
from asysi.finish.budget import ReadBudget, Unwatched
from asysi.finish.reread_tokens import RereadTokens
from asysi.finish.splice import Spliced, Target
from asysi.sae.variants.topk import TopK

WIDTH, VOCABULARY = 16, 50


class Exact:
    """An autoencoder that rebuilds everything."""

    def forward(self, x):
        return x


@pytest.fixture(scope="module")
def model():
    """Return a small causal language model."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=3, n_head=2, n_embd=WIDTH, vocab_size=VOCABULARY, n_positions=32, use_cache=False
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def sheet():
    """Return documents of unlike length, a special token 0 before each, every other one held out."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 20, 60)
    tokens = rng.integers(1, VOCABULARY, int(lengths.sum()))
    tokens[np.cumsum(lengths) - lengths] = 0
    return RereadTokens(
        tokens, np.repeat(np.arange(60), lengths), tokens != 0, np.arange(60, dtype=np.uint64),
        np.arange(60) % 2 == 0,
    )  # fmt: skip


def by_hand(model, sheet, path, change):
    """Return the mean loss of content tokens, one document at a time, with rows of content changed."""
    losses = []
    for document in np.flatnonzero(sheet.held_out):
        ids = torch.from_numpy(sheet.sequence(document))[None]

        def hook(_module, _args, output, ids=ids):
            rows = output[0].clone() if isinstance(output, tuple) else output.clone()
            rows[ids != 0] = change(rows[ids != 0])
            return (rows, *output[1:]) if isinstance(output, tuple) else rows

        handle = model.get_submodule(path).register_forward_hook(hook)
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, :-1]
        handle.remove()
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
    return float(torch.cat(losses).mean())


def measured(model, sheet, target, budget=100_000):
    spending = ReadBudget(budget, seconds=3600)
    result = splice.measure(model, sheet, [target], spending, padding=0, watch=Unwatched())
    (found,) = result.figures
    return found


@pytest.mark.parametrize("path", ["transformer.h.1", "transformer.h.2.mlp"])
def test_the_loss_is_that_of_doing_it_by_hand(model, sheet, path):
    """Padding and batches change nothing: clean, spliced and zero are those of one document at a time."""
    sae = TopK(WIDTH, 32, 4)
    generator = torch.Generator().manual_seed(0)
    sae.initialise(torch.zeros(WIDTH), torch.randn(32, WIDTH, generator=generator))
    found = measured(model, sheet, Target(path, sae))
    assert found.tokens == int((sheet.held_tokens & sheet.content).sum())
    for value, change in (
        (found.clean, lambda rows: rows),
        (found.spliced, lambda rows: sae.decode(sae.encode(rows))),
        (found.zero, torch.zeros_like),
    ):
        assert value == pytest.approx(by_hand(model, sheet, path, change), rel=1e-4)


def test_an_exact_reconstruction_costs_nothing(model, sheet):
    """Spliced equals clean, and all of the loss is recovered; no hook stays behind."""
    found = measured(model, sheet, Target("transformer.h.1", Exact()))
    assert found.spliced == pytest.approx(found.clean, rel=1e-5)
    assert Spliced(10, 1.0, 1.5, 3.0).recovered == 0.75
    assert Spliced(10, 3.0, 3.0, 3.0).recovered is None
    assert not any(module._forward_hooks for module in model.modules())


def test_rows_that_were_never_trained_on_stay(model, sheet):
    """Rows beyond the limit of norms are not replaced: with a limit of 0 nothing changes at all."""
    found = measured(model, sheet, Target("transformer.h.1", Exact(), limit=0.0))
    assert found.zero == pytest.approx(found.clean, rel=1e-6)


def test_the_budget_is_for_all_forwards_together(model, sheet):
    """Three forwards of one SAE share it; what is left too small is not measured."""
    read = []
    handle = model.register_forward_pre_hook(
        lambda _module, _args, kwargs: read.append(int(kwargs["attention_mask"].sum())), with_kwargs=True
    )
    found = measured(model, sheet, Target("transformer.h.1", Exact()), budget=600)
    handle.remove()
    assert found.tokens <= sum(read) / 3 <= 200
    assert measured(model, sheet, Target("transformer.h.1", Exact()), budget=300) is None


def test_only_models_of_the_next_token_have_one(model):
    """A causal language model has a loss, an encoder has none, and the reason names it."""
    assert splice.why_not(model) is None
    encoder = BertModel(
        BertConfig(
            vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )
    )
    assert "BertModel" in splice.why_not(encoder)
