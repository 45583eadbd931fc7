"""Turns documents into batches: token policy, packing, and the order of each pass."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asysi.bus.packet import ROW_DTYPE, RowFlag, place_in_document
from asysi.contract.errors import ConfigError
from asysi.contract.spec import Tokens
from asysi.text.grid import StepTokens
from asysi.text.rows import Document

_AT_ONCE = 1024  # documents per tokenizer call


@dataclass(frozen=True, slots=True)
class Policy:
    """The token policy with all names resolved to token ids."""

    context_length: int
    packing: str
    bos: int | None
    """Token to prepend to sequences, or None."""
    drop_bos: int | None
    """Token to remove from the beginning, or None."""
    separator: int | None
    """Token between documents with `concat`."""
    padding: int
    excluded: NDArray[np.int64]
    """Tokens that are never data."""
    padding_is_data: bool
    special_as_text: bool = False
    """Whether special tokens spelled out in the text are read as ordinary text."""
    templated: bool = False
    """Whether a chat template has written the special tokens already."""

    @property
    def encoding(self) -> dict[str, Any]:
        """Arguments for every call of the tokenizer."""
        found = {"split_special_tokens": True} if self.special_as_text else {}
        return found | ({"add_special_tokens": False} if self.templated else {})


def make_policy(tokens: Tokens, tokenizer: Any) -> Policy:
    """Return the spec's policy for a tokenizer.

    Raises:
        ConfigError: the policy names an unknown token, or the tokenizer lacks a required token.
    """
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    if tokens.prepend_bos and bos is None:
        raise ConfigError(
            "spec.data.tokens.prependBos: the tokenizer has neither a BOS nor a CLS token; drop it"
        )
    if tokens.chat_template and not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "spec.data.tokens.chatTemplate: the tokenizer has no chat template: take an instruction-tuned "
            "model, or put finished text into the field that textField names"
        )
    if tokens.chat_template and tokens.special_tokens_in_text == "text":
        raise ConfigError(
            "spec.data.tokens.specialTokensInText: is text, but a chat template writes special tokens that "
            "must be read as such: drop one of them"
        )
    groups = {"special": tokenizer.all_special_ids, "padding": []}
    excluded: set[int] = set()
    for position, name in enumerate(tokens.exclude_tokens):
        where = f"spec.data.tokens.excludeTokens[{position}]"
        excluded.update(groups[name] if name in groups else [_token_id(name, tokenizer, where)])
    concat = tokens.packing == "concat"
    own_bos = concat and not tokens.chat_template and tokens.prepend_bos is None and adds_bos(tokenizer, bos)
    return Policy(
        context_length=tokens.context_length,
        packing=tokens.packing,
        bos=bos if tokens.prepend_bos or own_bos else None,
        drop_bos=bos if tokens.prepend_bos is False else None,
        separator=_separator(tokens, tokenizer) if concat else None,
        padding=padding_token(tokenizer),
        excluded=np.array(sorted(excluded), np.int64),
        padding_is_data="padding" not in tokens.exclude_tokens,
        special_as_text=tokens.special_tokens_in_text == "text",
        templated=tokens.chat_template,
    )


def adds_bos(tokenizer: Any, bos: int | None) -> bool:
    """Return whether the tokenizer prepends `bos` by default."""
    if bos is None:
        return False
    (ids,) = tokenizer(["a"], truncation=True, max_length=8)["input_ids"]
    return bool(ids) and ids[0] == bos


def openers(tokenizer: Any) -> list[int]:
    """Return the tokens that mark the beginning of a sequence: BOS and CLS, if defined."""
    return [token for token in (tokenizer.bos_token_id, tokenizer.cls_token_id) if token is not None]


class SpelledTokens:
    """Counts special tokens of the tokenizer that are spelled out in the text.

    Args:
        tokenizer: a transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        names = sorted({str(name) for name in getattr(tokenizer, "all_special_tokens", ())}, key=len)
        self._names = re.compile("|".join(re.escape(name) for name in reversed(names))) if names else None
        self.documents = 0
        """Number of documents with at least one."""
        self.found: Counter[str] = Counter()
        """Number of occurrences of each."""

    def watch(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield the documents while counting."""
        for document in documents:
            text = document.text if document.written is None else document.written
            if self._names is not None and (names := self._names.findall(text)):
                self.documents += 1
                self.found.update(names)
            yield document

    def to_dict(self) -> dict[str, Any]:
        """Return the counts for `seen.json`."""
        return {"documents": self.documents, "found": dict(self.found.most_common(20))}


def padding_token(tokenizer: Any) -> int:
    """Return the padding token; it is masked out."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(token for token in candidates if token is not None))


def ordinary_token(tokenizer: Any) -> int:
    """Return a token that is not special; some models count padding tokens."""
    special = set(tokenizer.all_special_ids)
    tokens = tokenizer("a", add_special_tokens=False)["input_ids"]
    candidates = chain(tokens, sorted(tokenizer.get_vocab().values()))
    return int(next((token for token in candidates if token not in special), 0))


def _separator(tokens: Tokens, tokenizer: Any) -> int:
    if tokens.separator_token is not None:
        return _token_id(tokens.separator_token, tokenizer, "spec.data.tokens.separatorToken")
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token is not None:
            return int(token)
    raise ConfigError(
        "spec.data.tokens.separatorToken: the tokenizer has neither EOS nor SEP token, so name one here"
    )


def _token_id(name: str, tokenizer: Any, where: str) -> int:
    vocabulary = tokenizer.get_vocab()
    if name not in vocabulary:
        near = get_close_matches(name, vocabulary, 3)
        hint = f"; closest are {', '.join(near)}" if near else ""
        raise ConfigError(
            f"{where}: {name!r} is neither `special` nor `padding` nor a token of the tokenizer{hint}"
        )
    return int(vocabulary[name])


@dataclass(frozen=True, slots=True)
class Corpus:
    """Concatenated tokenised documents."""

    tokens: NDArray[np.int32]
    """[sum of lengths] tokens, including special tokens if the policy adds them."""
    starts: NDArray[np.int64]
    """[documents + 1]: offset of each document."""
    samples: NDArray[np.uint64]
    """[documents]: input row."""
    holdout: NDArray[np.bool_]
    """[documents]: whether it is held out."""
    truncated: int = 0
    """Documents truncated at the context length."""

    @property
    def documents(self) -> int:
        """Number of distinct documents."""
        return len(self.samples)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[documents]: number of tokens."""
        return np.diff(self.starts)


def tokenise(documents: Iterable[Document], tokenizer: Any, policy: Policy) -> Corpus:
    """Return the tokens of all documents as int32. Documents without tokens are skipped."""
    pieces: list[NDArray[np.int32]] = []
    samples: list[int] = []
    holdout: list[bool] = []
    truncated = 0
    stream = iter(documents)
    while some := list(islice(stream, _AT_ONCE)):
        encoded, cut = _encode([d.text for d in some], tokenizer, policy)
        truncated += cut
        for document, ids in zip(some, encoded, strict=True):
            if ids:
                pieces.append(np.array(ids, np.int32))
                samples.append(document.sample)
                holdout.append(document.holdout)
    starts = np.zeros(len(pieces) + 1, np.int64)
    np.cumsum([len(piece) for piece in pieces], out=starts[1:])
    tokens = np.concatenate(pieces) if pieces else np.empty(0, np.int32)
    return Corpus(tokens, starts, np.array(samples, np.uint64), np.array(holdout, np.bool_), truncated)


def _encode(texts: list[str], tokenizer: Any, policy: Policy) -> tuple[list[list[int]], int]:
    """Return the tokens of each text, and how many texts were truncated."""
    if policy.packing == "concat":  # special tokens are added when the sequences are cut
        encoded: list[list[int]] = tokenizer(
            texts, verbose=False, **{**policy.encoding, "add_special_tokens": False}
        )["input_ids"]
        return encoded, 0
    most = policy.context_length
    found = tokenizer(texts, truncation=True, max_length=most, **policy.encoding)
    encoded = found["input_ids"]
    cut = _cut(texts, found, tokenizer, most)
    if policy.drop_bos is not None:
        return [ids[1:] if ids and ids[0] == policy.drop_bos else ids for ids in encoded], int(cut.sum())
    if policy.bos is not None:
        bare = np.array([not ids or ids[0] != policy.bos for ids in encoded])
        cut |= bare & (np.array([len(ids) for ids in encoded]) == most)  # the BOS displaces the last token
        encoded = [[policy.bos, *ids][:most] if add else ids for ids, add in zip(encoded, bare, strict=True)]
    return encoded, int(cut.sum())


def _cut(texts: list[str], found: Any, tokenizer: Any, most: int) -> NDArray[np.bool_]:
    """Return [texts] whether the tokenizer truncated each text."""
    if whole := getattr(found, "encodings", None):  # fast tokenizers keep the overflowing tokens
        return np.array([bool(one.overflowing) for one in whole])
    long = [number for number, ids in enumerate(found["input_ids"]) if len(ids) >= most]
    cut = np.zeros(len(texts), np.bool_)
    if long:
        again = tokenizer([texts[number] for number in long], verbose=False)["input_ids"]
        cut[long] = [len(ids) > most for ids in again]
    return cut


@dataclass(frozen=True, slots=True)
class Sequences:
    """The sequences of a pass, as slices of one stream of tokens."""

    tokens: NDArray[np.int32]
    samples: NDArray[np.uint64]
    """[tokens]: document of each token."""
    starts: NDArray[np.int64]
    """[sequences]"""
    ends: NDArray[np.int64]
    """[sequences]"""
    holdout: NDArray[np.bool_]
    """[sequences]"""
    bos: int | None
    """Token prepended to every sequence, or None."""
    positions: NDArray[np.int32] | None = None
    """[tokens]: position of each token in its document; None if every sequence is one document."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[sequences]: number of tokens, without a prepended BOS."""
        return self.ends - self.starts


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one step."""

    number: int
    """Step number, from 0 over all passes."""
    pass_number: int
    ids: NDArray[np.int64]
    """[batch, length]"""
    mask: NDArray[np.int64] | None
    """[batch, length]: 1 for tokens, 0 for padding; None without padding."""
    tokens: StepTokens

    @property
    def present(self) -> NDArray[np.bool_]:
        """[batch, length]: whether the token is not padding."""
        return np.ones(self.ids.shape, np.bool_) if self.mask is None else self.mask.astype(np.bool_)


class Batches:
    """All steps of a run, deterministic for a corpus, policy and seed; can start at any step.

    The training documents are read `passes` times, each time in a different order. Each held-out document is
    read once, with an equal share of them in every pass, so that losing rows of one pass does not ruin the
    evaluation.

    Args:
        corpus: the tokenised documents.
        policy: how they become sequences.
        batch_size: sequences per step.
        passes: how many times the training documents are read.
        seed: seed of the orders.
    """

    def __init__(self, corpus: Corpus, policy: Policy, *, batch_size: int, passes: int, seed: int) -> None:
        self._corpus, self._policy = corpus, policy
        self._batch_size, self._passes, self._seed = batch_size, passes, seed
        data = ~np.isin(corpus.tokens, policy.excluded)
        self._data_until = np.concatenate([[0], np.cumsum(data)])
        rank = np.cumsum(corpus.holdout) - 1  # among the held-out documents
        self._held_in = np.where(corpus.holdout, rank % passes, -1)
        """[documents] index of the pass that reads it; -1 if every pass does."""
        self._steps_by_pass = self._steps()

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""
        return sum(self._steps_by_pass)

    @property
    def content_tokens(self) -> int:
        """Number of content tokens, counting each document once."""
        return int(self._data_until[-1])

    @property
    def content_tokens_in_all(self) -> int:
        """Number of content tokens over all passes, without padding and `concat` separators."""
        by_document = np.diff(self._data_until[self._corpus.starts])
        training = int(by_document[~self._corpus.holdout].sum())
        return self.content_tokens + (self._passes - 1) * training

    def from_step(self, step: int) -> Iterator[Batch]:
        """Yield the batches of a run, starting at `step` (>= 0)."""
        number = 0
        for pass_number, count in enumerate(self._steps_by_pass):
            if number + count <= step:
                number += count
                continue
            sequences = self._sequences(pass_number)
            for chosen in plan(sequences, self._policy.packing, self._batch_size, self._rng(pass_number, 1)):
                if number >= step:
                    yield make_batch(sequences, chosen, self._policy, number, pass_number)
                number += 1

    def _rng(self, pass_number: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, pass_number, purpose])

    def _sequences(self, pass_number: int) -> Sequences:
        corpus, read = self._corpus, self._read_in(pass_number)
        corpus = corpus if read.all() else Corpus(*_choose(corpus, read))
        if self._policy.packing == "concat":
            return concatenate(corpus, self._policy, self._rng(pass_number, 0))
        samples = np.repeat(corpus.samples, corpus.lengths)
        return Sequences(corpus.tokens, samples, corpus.starts[:-1], corpus.starts[1:], corpus.holdout, None)

    def _read_in(self, pass_number: int) -> NDArray[np.bool_]:
        """Return [documents] whether the pass reads the document."""
        return np.asarray((self._held_in == -1) | (self._held_in == pass_number))

    def _steps(self) -> list[int]:
        """Return the number of steps of each pass."""
        corpus, concat = self._corpus, self._policy.packing == "concat"
        sizes = corpus.lengths + 1 if concat else np.ones(corpus.documents, np.int64)
        room = self._policy.context_length - (self._policy.bos is not None) if concat else 1
        held = np.bincount(self._held_in[corpus.holdout], sizes[corpus.holdout], minlength=self._passes)
        sequences = -(-held.astype(np.int64) // room) - (-int(sizes[~corpus.holdout].sum()) // room)
        return [int(count) for count in -(-sequences // self._batch_size)]


def _choose(
    corpus: Corpus, chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.uint64], NDArray[np.bool_]]:
    """Return the arrays of a corpus with only the chosen documents."""
    lengths = corpus.lengths
    starts = np.concatenate([[0], np.cumsum(lengths[chosen])])
    return corpus.tokens[np.repeat(chosen, lengths)], starts, corpus.samples[chosen], corpus.holdout[chosen]


def concatenate(corpus: Corpus, policy: Policy, rng: np.random.Generator) -> Sequences:
    """Concatenate documents in random order with separators, and cut them into full sequences.

    Held-out and training documents never share a sequence, because an activation depends on preceding tokens.
    """
    room = policy.context_length - (policy.bos is not None)
    tokens, samples, positions, starts, ends, holdout = [], [], [], [], [], []
    offset = 0
    for held in (False, True):
        order = rng.permutation(np.flatnonzero(corpus.holdout == held))
        pieces = [(corpus.tokens[corpus.starts[i] : corpus.starts[i + 1]], corpus.samples[i]) for i in order]
        for piece, sample in pieces:
            tokens += [piece, np.array([policy.separator], np.int32)]
            samples.append(np.full(len(piece) + 1, sample, np.uint64))
            positions.append(np.arange(len(piece) + 1, dtype=np.int32))
        total = sum(len(piece) + 1 for piece, _ in pieces)
        cuts = offset + np.arange(0, total, room)
        starts.append(cuts)
        ends.append(np.minimum(cuts + room, offset + total))
        holdout.append(np.full(len(cuts), held))
        offset += total
    return Sequences(
        np.concatenate([np.empty(0, np.int32), *tokens]), np.concatenate([np.empty(0, np.uint64), *samples]),
        np.concatenate(starts), np.concatenate(ends), np.concatenate(holdout), policy.bos,
        np.concatenate([np.empty(0, np.int32), *positions]),
    )  # fmt: skip


def plan(
    sequences: Sequences, packing: str, batch_size: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Return the sequences of each step.

    `none` keeps their order. `concat` shuffles them. `bucket` groups sequences of similar length, in random
    order among equal lengths, and then shuffles the steps.
    """
    count = len(sequences.starts)
    order = np.arange(count) if packing == "none" else rng.permutation(count)
    if packing == "bucket":
        order = order[np.argsort(sequences.lengths[order], kind="stable")]
    steps = [order[first : first + batch_size] for first in range(0, count, batch_size)]
    return [steps[i] for i in rng.permutation(len(steps))] if packing == "bucket" else steps


def make_batch(
    sequences: Sequences, chosen: NDArray[np.int64], policy: Policy, number: int, pass_number: int
) -> Batch:
    """Return the batch of the chosen sequences, right-padded to the longest one."""
    head = int(sequences.bos is not None)
    starts, lengths = sequences.starts[chosen], sequences.lengths[chosen] + head
    batch, length = len(chosen), int(lengths.max())
    position = np.arange(length)
    present = position < lengths[:, None]
    at = np.minimum(starts[:, None] + np.maximum(position - head, 0), len(sequences.tokens) - 1)
    ids = np.where(present, sequences.tokens[at], policy.padding).astype(np.int64)
    if sequences.bos is not None:
        ids[:, 0] = sequences.bos
    rows = np.zeros((batch, length), ROW_DTYPE)
    rows["sample"] = sequences.samples[at]
    rows["sequence"] = np.arange(batch, dtype=np.uint32)[:, None]
    rows["position"] = position
    rows["token"] = ids
    rows["flags"] = np.where(sequences.holdout[chosen], RowFlag.HOLDOUT, 0)[:, None]
    if sequences.positions is not None:
        place_in_document(rows, sequences.positions[at], present & (position >= head))
    content = present & ~np.isin(ids, policy.excluded)
    if policy.padding_is_data:
        content |= ~present
    mask = None if present.all() else present.astype(np.int64)
    tokens = StepTokens(number, batch, length, rows.reshape(-1), content.reshape(-1))
    return Batch(number, pass_number, ids, mask, tokens)
