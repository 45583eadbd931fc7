"""Metrics of latents against plain numpy, on autoencoders whose answers are known."""

import dataclasses

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from asysi.contract.spec import ScanExperiment
from asysi.finish import (
    contexts,
    features,
    history,
    latents,
    logits,
    provenance,
    reread_tokens,
    sample,
    token_text,
)
from asysi.finish.latents import Firings
from asysi.finish.status import HostCounters
from asysi.report.data import NO_CONTEXT
from asysi.sae.fvu import CONSTANT, fvu
from asysi.sae.variants.topk import TopK


def planted(*, width=12, count=24, k=4, rows=600, noise=0.0):
    """Return an autoencoder and rows made of its own decoder: without noise it rebuilds them almost
    exactly.
    """
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(width, width)))
    sae = TopK(width, count, k)
    sae.initialise(torch.zeros(width), torch.from_numpy(np.vstack([basis, -basis])[:count]).float())
    values = np.zeros((rows, count), np.float32)
    for row in values:
        row[rng.choice(width, k, replace=False)] = rng.uniform(1, 3, k)
    x = values @ sae.W_dec.numpy() + noise * rng.normal(size=(rows, width))
    return sae, x.astype(np.float32), values


def test_an_autoencoder_that_knows_the_truth_leaves_nothing_unexplained():
    """Rows that are sums of decoder rows have FVU 0, L0 k, and fire where they were planted."""
    sae, x, values = planted()
    everywhere = np.ones(len(x), np.bool_)
    reading = latents.read(sae, x, everywhere)
    assert fvu(reading.error.sum(), latents.variance(x), latents.energy(x)) < 1e-10
    assert np.array_equal(latents.counts(reading.firings, 24, everywhere), (values > 0).sum(0))
    assert np.allclose(latents.maxima(reading.firings, 24), values.max(0), atol=1e-5)


def test_fvu_and_removal_are_what_numpy_says():
    """With noise, FVU equals the textbook ratio, and each removal equals decoding again without that
    latent.
    """
    sae, x, _ = planted(noise=0.4)
    counted = np.arange(len(x)) % 3 != 0
    reading = latents.read(sae, x, counted)
    a = sae.encode(torch.from_numpy(x))
    rebuilt = sae.decode(a).numpy().astype(np.float64)
    error = ((x - rebuilt) ** 2).sum(1)
    assert np.allclose(reading.error[counted], error[counted], rtol=1e-4)
    assert not reading.error[~counted].any()
    assert latents.variance(x) == pytest.approx(((x - x.mean(0, dtype=np.float64)) ** 2).sum(), rel=1e-9)
    for latent in (0, 5, 11):
        without = a.clone()
        without[:, latent] = 0
        again = ((x - sae.decode(without).numpy().astype(np.float64)) ** 2).sum(1)
        assert reading.removal[latent] == pytest.approx((again - error)[counted].sum(), rel=1e-3)


def test_reading_in_chunks_changes_nothing(monkeypatch):
    """Results do not depend on how many rows are encoded at once."""
    sae, x, _ = planted(noise=0.3)
    counted = np.arange(len(x)) % 2 == 0
    whole = latents.read(sae, x, counted)
    monkeypatch.setattr(latents, "CHUNK_ELEMENTS", 24 * 64)
    parts = latents.read(sae, x, counted)
    assert np.array_equal(whole.firings.row, parts.firings.row)
    assert np.array_equal(whole.firings.latent, parts.firings.latent)
    assert np.allclose(whole.removal, parts.removal, rtol=1e-4, atol=1e-4)


def test_pca_with_as_many_components_as_there_are_directions_is_exact():
    """Data in a 5-dimensional subspace: 5 components leave nothing, fewer leave the rest of the spectrum."""
    rng = np.random.default_rng(0)
    scale = np.array([5, 4, 3, 2, 1.0])
    basis, _ = np.linalg.qr(rng.normal(size=(20, 5)))
    x = (rng.normal(size=(4000, 5)) * scale @ basis.T + 7).astype(np.float32)
    fitted, evaluated = x[:3000], x[3000:]
    assert latents.pca_fvu(fitted, evaluated, 5) < 1e-9
    assert latents.pca_fvu(fitted, evaluated, 3) == pytest.approx(5 / 55, rel=0.1)
    assert latents.pca_fvu(fitted[:5], evaluated, 5) is None


@pytest.mark.parametrize(("kind", "step"), [("bf16", 2.0**-8), ("int8", 1 / 254)])
def test_quantisation_is_within_half_a_step(kind, step):
    """bf16 errs by at most 2^-8 of a value, int8 by half a step of its row's maximum, none by nothing."""
    x = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    off = np.abs(latents.quantised(x, kind) - x)
    bound = np.abs(x) if kind == "bf16" else np.abs(x).max(1, keepdims=True)
    assert (off <= bound * step * 1.001).all()
    assert off.any()
    assert latents.quantised(x, "none") is x


def test_neighbours_are_those_of_the_largest_cosine():
    """Neighbours and cosines equal a full sort of the cosine matrix, without the latent itself."""
    decoder = torch.from_numpy(np.random.default_rng(1).normal(size=(40, 8))).float()
    asked = np.array([3, 17])
    near, cosines = latents.neighbours(decoder, asked, 5)
    unit = decoder.numpy() / np.linalg.norm(decoder.numpy(), axis=1, keepdims=True)
    alike = unit[asked] @ unit.T
    alike[[0, 1], asked] = -2
    assert np.array_equal(near, np.argsort(-alike, axis=1)[:, :5])
    assert np.allclose(cosines, np.sort(alike, axis=1)[:, ::-1][:, :5], atol=1e-6)


def test_the_density_histogram_counts_every_live_latent_once():
    """Live latents are counted in the bin of their log density, dead ones nowhere."""
    bins = latents.density_histogram(np.array([0, 1e-9, 1e-4, 0.011, 1.0], np.float32))
    assert sum(bins) == 4
    assert bins[0] == 2
    assert bins[-1] == 1
    assert bins[16] == 1


def test_firings_are_counted_by_strength():
    """Bins are shares of the latent's own maximum; the fullest is 255, and a rare one is never 0."""
    values = np.array([8.0, 8.0, 8.0, 0.1, 4.1, 5.0], np.float32)
    firings = Firings(np.arange(6), np.array([3, 3, 3, 3, 3, 5]), values)
    maximum = latents.maxima(firings, 8)
    one, other = latents.strengths(firings, np.array([3, 7]), maximum)
    assert one[[0, 8, 15]].tolist() == [85, 85, 255]
    assert one.astype(int).sum() == 425
    assert not other.any()


def test_logits_are_the_decoder_through_the_unembedding():
    """The tokens at both ends are those of a full sort; another width gives none."""
    rng = np.random.default_rng(0)
    decoder = torch.from_numpy(rng.normal(size=(10, 6))).float()
    weight = torch.from_numpy(rng.normal(size=(50, 6))).float()
    found = logits.top_and_bottom_tokens(decoder, weight)
    full = (decoder @ weight.T).numpy()
    full -= full.mean(1, keepdims=True)
    order = np.argsort(-full, axis=1)
    assert np.array_equal(found.tokens[:, : logits.EACH], order[:, : logits.EACH])
    assert np.array_equal(found.tokens[:, logits.EACH :], order[:, ::-1][:, : logits.EACH])
    assert np.allclose(found.values, np.take_along_axis(full, found.tokens, 1), atol=1e-5)
    assert logits.top_and_bottom_tokens(decoder, weight[:, :5]) is None


def test_logits_stand_beside_the_latents_they_are_of(monkeypatch):
    """However many latents get their tokens, each has its own, and the ten best are among them."""
    page = make_sheet()
    sae, x, _ = planted(rows=len(page.tokens), noise=0.3)
    weight = torch.from_numpy(np.random.default_rng(5).normal(size=(40, 12))).float()
    monkeypatch.setattr(logits, "MULTIPLICATIONS", weight.numel() * 12)
    asked = features.MeasureOptions(
        k=4, quantization="none", seed=0, shown=100, sentence=None, unembedding=weight
    )
    looked = features.measure_sae("p", sae, reread_tokens.every_token(x), page, asked)
    pieces = [f" w{token}" for token in page.tokens]
    shown = features.browser([looked], page, pieces, 0, lambda found: {int(n): f"t{n}" for n in found})
    one = shown.features[0]
    full = sae.W_dec @ weight.T
    known = np.flatnonzero(one.logits[:, 0] != NO_CONTEXT)
    assert len(known) == 12
    assert set(one.best) <= set(one.latents[known].tolist())
    for i in known:
        best = int(full[int(one.latents[i])].argmax())
        assert shown.logit_tokens[one.logits[i, 0]] == f"t{best}"


def test_a_model_without_an_unembedding_has_no_logits():
    """Neither a base model nor a plain module has one; a language model's is its head's weight."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=40, n_positions=16)
    assert logits.unembedding(torch.nn.Linear(2, 2)) is None
    assert logits.unembedding(GPT2Model(config)) is None
    assert logits.unembedding(GPT2LMHeadModel(config)).shape == (40, 8)


def one_latent(values):
    """Return the firings of latent 0 with these activations, one per row, and a document for each row."""
    n = len(values)
    return Firings(np.arange(n), np.zeros(n, np.int64), np.asarray(values, np.float32)), np.arange(n)


def test_contexts_come_from_the_top_the_middle_and_the_low_end():
    """Of 100 firings with distinct strengths: ranks 0-3, those around the median, those around the weakest
    tenth.
    """
    strengths = np.random.default_rng(0).permutation(100) + 1.0
    firings, document = one_latent(strengths)
    chosen = contexts.choose(firings, document, np.array([0]), (4, 3, 3))[0]
    assert strengths[chosen].tolist() == [100, 99, 98, 97, 51, 50, 49, 11, 10, 9]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.floats(0.1, 9)), min_size=1, max_size=120),
)
def test_no_document_is_shown_twice_for_a_latent(fires):
    """Whatever fires where: chosen rows fire, in distinct documents, and as many as there are."""
    fires = list(
        {(latent, row): (latent, row, value) for row, (latent, _, value) in enumerate(fires)}.values()
    )
    rows = np.array([row for _, row, _ in fires])
    firings = Firings(rows, np.array([f[0] for f in fires]), np.array([f[2] for f in fires], np.float32))
    document = np.sort(np.random.default_rng(len(fires)).integers(0, 10, rows.max() + 1))
    asked = np.unique(firings.latent)
    chosen = contexts.choose(firings, document, asked, (4, 3, 3))
    for latent, peaks in zip(asked, chosen, strict=True):
        shown = peaks[peaks != NO_CONTEXT].astype(int)
        mine = rows[firings.latent == latent]
        assert set(shown) <= set(mine)
        assert len(set(document[shown])) == len(shown) == min(10, len(set(document[mine])))


def test_shades_are_the_activations_around_the_peak_within_the_document():
    """255 is the maximum, what fires faintly is 1, what is in another document is 0."""
    firings = Firings(np.array([1, 2, 3, 4]), np.zeros(4, np.int64), np.array([8, 4, 0.001, 8], np.float32))
    document = np.array([0, 0, 0, 0, 1, 1])
    peaks = np.array([[1, NO_CONTEXT]], np.uint32)
    shades = contexts.shade(
        firings, peaks, np.array([0]), document=document, maximum=np.array([8.0]), window=(2, 3)
    )
    assert shades.tolist() == [[[0, 0, 255, 128, 1, 0], [0] * 6]]


def make_sheet(documents=40, length=12, held=0.5, seed=0):
    """Return a sheet whose documents begin and end with a special token 0."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 30, (documents, length))
    tokens[:, 0] = tokens[:, -1] = 0
    flat = tokens.reshape(-1)
    held_out = np.arange(documents) < documents * held
    return reread_tokens.RereadTokens(
        flat,
        np.repeat(np.arange(documents), length),
        flat != 0,
        np.arange(documents, dtype=np.uint64) + 1000,
        held_out,
    )


def test_looking_measures_on_held_out_content_alone():
    """Training documents and special tokens do not touch FVU over content tokens, L0 or density."""
    page = make_sheet()
    sae, x, _ = planted(rows=len(page.tokens), noise=0.3)
    asked = features.MeasureOptions(k=4, quantization="bf16", seed=0, shown=100, sentence=0)
    clean = features.measure_sae("p", sae, reread_tokens.every_token(x), page, asked)
    spoilt = x.copy()
    spoilt[~page.content & page.held_tokens] *= 50
    spoilt[~page.held_tokens] += 9
    dirty = features.measure_sae("p", sae, reread_tokens.every_token(spoilt), page, asked)
    assert clean.layer.fvu_content == dirty.layer.fvu_content
    assert clean.layer.l0 == dirty.layer.l0 == 4
    assert clean.layer.fvu_all != dirty.layer.fvu_all
    assert clean.layer.density == dirty.layer.density


@pytest.mark.parametrize("value", [0.0, 0.1, 3e4])
def test_constant_activations_have_no_fvu(value):
    """Rows that are all the same have no variance: FVU is None with its reason, and no figure is infinite."""
    page = make_sheet()
    sae, x, _ = planted(rows=len(page.tokens))
    rows = reread_tokens.every_token(np.full_like(x, value))
    asked = features.MeasureOptions(k=4, quantization="bf16", seed=0, shown=100, sentence=0)
    looked = features.measure_sae("p", sae, rows, page, asked)
    assert (looked.layer.fvu_content, looked.layer.fvu_all) == (None, None)
    assert looked.layer.fvu_undefined == CONSTANT
    assert np.isfinite(looked.features.explained).all()


def test_figures_of_several_calls_are_those_of_each():
    """A module called twice: FVU is over both calls' rows, `fvu_calls` of each, contexts are on tokens."""
    page = make_sheet()
    sae, x, _ = planted(rows=len(page.tokens), noise=0.3)
    _, y, _ = planted(rows=len(page.tokens), noise=0.9)
    asked = features.MeasureOptions(k=4, quantization="none", seed=0, shown=100, sentence=0)
    alone = [
        features.measure_sae("p", sae, reread_tokens.every_token(rows), page, asked).layer for rows in (x, y)
    ]
    both = reread_tokens.PointRows(
        np.stack([x, y], 1).reshape(-1, x.shape[1]),
        np.repeat(np.arange(len(x)), 2),
        np.tile([0, 1], len(x)),
    )
    looked = features.measure_sae("p", sae, both, page, asked)
    assert looked.layer.fvu_calls == pytest.approx([layer.fvu_content for layer in alone])
    assert alone[0].fvu_content < looked.layer.fvu_content < alone[1].fvu_content
    second = dataclasses.replace(reread_tokens.every_token(y), call=np.ones(len(y), np.int64))
    assert (
        features.measure_sae("p#1", sae, second, page, asked).layer.fvu_calls == ()
    )  # one call, addressed as such
    contexts_of = looked.features.contexts
    assert contexts_of[contexts_of != NO_CONTEXT].max() < page.content.sum()


def test_rows_beyond_the_norm_limit_are_left_out():
    """`within` keeps the rows, and their tokens and calls, whose norm is at most the limit."""
    rows = reread_tokens.every_token(np.diag([1.0, 5.0, 2.0]).astype(np.float32))
    assert rows.within(2.0).token.tolist() == [0, 2]
    assert rows.within(1e-30).values.shape == (0, 3)


def test_the_browser_shows_what_was_measured():
    """Contexts, shades, names and the sentence refer to the same text; best and random latents are shown
    ones.
    """
    page = make_sheet()
    sae, x, _ = planted(rows=len(page.tokens), noise=0.3)
    sentence = features.sentence_of(page, 0)
    asked = features.MeasureOptions(k=4, quantization="none", seed=0, shown=14, sentence=sentence)
    looked = features.measure_sae("p", sae, reread_tokens.every_token(x), page, asked)
    pieces = [f" w{token}" for token in page.tokens]
    browser = features.browser([looked], page, pieces, 0)
    one, corpus = browser.features[0], browser.corpus
    assert page.held_out[browser.sentence.document]
    assert set(one.best) | set(one.random) <= set(one.latents.tolist())
    assert len(one.latents) == 14
    text = [corpus.vocabulary[token] for token in corpus.tokens]
    assert text == [piece for piece, content in zip(pieces, page.content, strict=True) if content]
    assert (one.shades.max(axis=(1, 2)) == 255).all()
    content = x[page.content]
    a = sae.encode(torch.from_numpy(content)).numpy()
    for i, latent in enumerate(one.latents):
        assert a[one.contexts[i, 0], latent] == pytest.approx(one.maximum[i], rel=1e-5)
    step = browser.sentence.steps[0]
    first = np.flatnonzero(page.document[page.content] == sentence)[0]
    assert step.latents[0, 0] == a[first].argmax()


def test_held_out_documents_are_read_first_but_leave_room_for_others():
    """Of a large corpus at most 3/4 of the tokens are of held-out documents; the budget is kept; order is
    the input's.
    """
    lengths = np.random.default_rng(0).integers(5, 50, 1000)
    held = np.arange(1000) % 2 == 0
    chosen = reread_tokens.select(lengths, held, 2000, seed=0)
    assert lengths[chosen].sum() <= 2000
    assert 1300 < lengths[chosen][held[chosen]].sum() <= 1500
    assert (np.diff(chosen) > 0).all()
    assert reread_tokens.select(lengths, ~held & held, 2000, seed=0).size
    assert len(reread_tokens.select(lengths, held, 10**9, seed=0)) == 1000
    lengths[held] = 3000
    assert not held[reread_tokens.select(lengths, held, 2000, seed=0)].any()


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=80), st.integers(2**20, 2**32))
def test_the_budget_bounds_memory(widths, memory):
    """Activations of all points together stay below the bound unless 256 tokens already exceed it."""
    tokens = reread_tokens.tokens_that_fit(widths, memory)
    assert tokens == 256 or memory - 4 * sum(widths) < 4 * tokens * sum(widths) <= memory


def test_special_tokens_are_aligned_away():
    """Documents with special tokens around them, cut or whole, are found; other tokens are not."""
    plain = np.array([5, 6, 7, 8])
    assert token_text.align(np.array([101, 5, 6, 7, 8, 102]), plain) == 1
    assert token_text.align(np.array([101, 5, 6, 102]), plain) == 1
    assert token_text.align(np.array([5, 6, 7, 8]), plain) == 0
    assert token_text.align(np.array([101, 9, 9, 9, 9, 102]), plain) is None


def test_a_heading_in_the_vocabulary_is_no_wordpiece():
    """A byte-level vocabulary with a token "##" is spelled as text, without its marks."""
    words = {"##": 0, "\u0120about": 1, "up": 2}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=words, merges=[]))
    made.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made)
    assert token_text.vocabulary(tokenizer, np.array([0, 1, 2])) == {0: "##", 1: " about", 2: "up"}


@pytest.mark.parametrize(("opened", "said"), [(0, "None of 40"), (40, "All of 40"), (39, "39 of 40")])
def test_the_page_says_how_sequences_began(minimal, opened, said):
    """What the host counted of BOS and of spelled special tokens stands on the page."""
    seen = {
        "sequences": 40,
        "sequences_opened": opened,
        "special_tokens_in_text": {"documents": 3, "found": {"</s>": 5}},
    }
    experiment = ScanExperiment.model_validate(minimal())
    text = dict(provenance.limits(experiment, HostCounters(), seen, attempt=0, tokens=0, progress={}))[
        "Tokens"
    ]
    assert text.startswith(f"{said} sequences began")
    assert "3 documents spell special tokens (</s>), which were read as tokens." in text
    assert "Tokens" not in dict(
        provenance.limits(experiment, HostCounters(), {}, attempt=0, tokens=0, progress={})
    )


def test_the_timeline_is_thinned_and_keeps_what_matters():
    """A long run becomes at most POINTS moments that keep the worst lag; kills and restarts are told,
    starts are not.
    """
    lines = [
        {"t": i, "time": 100.0 + i, "rate": 1.0, "offered": 10, "dropped": 1, "lag": {"sae": i == 777}}
        for i in range(5000)
    ]
    lines[777]["lag"]["sae"] = 0.9
    events = [
        {"time": 101, "container": "sae", "event": "started"},
        {"time": 110, "container": "sae", "event": "killed", "reason": "on purpose"},
        {"time": 110.1, "container": "sae", "event": "exited", "code": 137},
        {"time": 112, "container": "sae", "event": "restarted"},
        {"time": 120, "container": "hook", "event": "exited", "code": 1},
        {"time": 121, "container": "host", "event": "exited", "code": 0},
    ]
    run = history.timeline(lines, events)
    assert len(run.at) <= history.POINTS
    assert max(run.lag["sae"]) == 0.9
    assert [event.text for event in run.events] == [
        "sae was killed: on purpose",
        "sae was started again after 2.0 s",
        "hook ended with exit code 1",
    ]
    assert run.events[0].at == 10.0
    assert history.timeline([], events) is None


def test_training_curves_are_read_without_trust():
    """A curve of whole rows becomes series; rows that are torn are left out, a single one is not a curve."""
    good = [[0, 2.0, None, 4.0, 0.0], [10, 1.0, 0.5, 4.0, 0.1]]
    records = {"a": {"curve": [*good, [1, 2], "x", [None] * 5]}, "b": {"curve": good[:1]}, "c": {}, "d": None}
    (curve,) = history.curves({"topk": records})
    assert (curve.name, curve.trained, curve.fvu) == ("a", (0, 10), (None, 0.5))
    names = [one.name for one in history.curves({"x": records, "y": records})]
    assert names == ["x/a", "y/a"]


def test_a_torn_timeline_is_read_up_to_the_tear(tmp_path):
    """Lines that are not JSON objects are passed over."""
    file = tmp_path / "timeline.jsonl"
    file.write_text('{"t": 1}\nnull\n[]\n{"t": 2}\n{"t": 3, "ra')
    assert [line["t"] for line in history.read_lines(file)] == [1, 2]
    assert history.read_lines(tmp_path / "none") == []


def test_seen_and_kept_that_are_alike_have_no_distance():
    """Weighted norms of one distribution against samples of it: nearly no distance; shifted ones are far
    apart.
    """
    rng = np.random.default_rng(0)
    seen, weight = rng.normal(10, 1, 20_000), np.full(20_000, 3.0)
    halves = rng.random(20_000) < 0.5
    alike = sample.histogram("p", seen, weight, rng.normal(10, 1, 20_000), halves)
    assert alike.distance < 0.03
    assert 0 < alike.chance < 0.03
    assert sample.histogram("p", seen, weight, rng.normal(30, 1, 20_000), halves).distance > 0.99


@pytest.mark.parametrize("centre", [0.0, 1.0, 4.0, 1e6])
def test_rounding_is_no_difference(centre):
    """Norms behind a layer norm are all the same but for rounding: seen and kept are not apart."""
    rng = np.random.default_rng(0)
    seen, kept = (centre * (1 + 1e-6 * rng.uniform(low, low + 1, 2000)) for low in (-1, 0))
    same = sample.histogram("p", seen, np.ones(2000), kept, rng.random(2000) < 0.5)
    assert same.distance == 0
    assert len(set(same.edges)) == sample.BINS + 1


def test_the_hosts_histograms_lose_nothing_but_their_empty_end():
    """by_length and by_position become histograms with one more edge than bins and the same counts."""
    table = {"edges": [0, 4, 8, 12], "seen": [1, 8, 0, 0], "kept": [1, 4, 2, 0]}
    length, position = sample.by_place({"by_length": table, "by_position": table})
    assert length.histograms[0].edges == (0, 4, 8, 12)
    assert length.histograms[0].seen == (1, 8, 0)
    assert position.by == "position"
    assert sample.by_place({}) == []
