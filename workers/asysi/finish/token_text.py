"""The text of tokens: as in the source if the tokenizer returns offsets, otherwise as in its vocabulary."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asysi.finish.reread_tokens import RereadTokens


def token_texts(
    tokenizer: Any,
    sheet: RereadTokens,
    texts: Sequence[str] | None,
    encoding: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """Return the text of every token of the sheet; a leading space marks the start of a word.

    Args:
        tokenizer: a transformers tokenizer.
        sheet: the documents' tokens.
        texts: the documents' texts in the order of the sheet; None if sequences are not single documents.
        encoding: tokenizer arguments of the run.
    """
    named = vocabulary(tokenizer, sheet.tokens)
    pieces = [named[int(token)] for token in sheet.tokens]
    if not texts or not getattr(tokenizer, "is_fast", False):
        return pieces
    bounds = np.searchsorted(sheet.document, np.arange(len(texts) + 1))
    encoded = tokenizer(
        list(texts),
        return_offsets_mapping=True,
        add_special_tokens=False,
        truncation=True,
        max_length=int(np.diff(bounds).max(initial=1)),
        **encoding,
    )
    for number, text in enumerate(texts):
        start, stop = int(bounds[number]), int(bounds[number + 1])
        offsets = encoded["offset_mapping"][number]
        shift = align(sheet.tokens[start:stop], np.asarray(encoded["input_ids"][number], np.int64))
        if shift is None:
            continue
        end = 0
        for i, (first, last) in enumerate(offsets[: stop - start - shift]):
            if first < last and sheet.content[start + shift + i]:
                between = " " if text[end:first].strip() == "" and first > end else text[end:first]
                pieces[start + shift + i] = between + text[first:last].replace("\n", " ")
            end = max(end, last)
    return pieces


def align(tokens: NDArray[np.int64], plain: NDArray[np.int64]) -> int | None:
    """Return how many special tokens precede the document's own tokens; None if the tokens do not match.

    Args:
        tokens: [n] tokens as the model read them: with special tokens, truncated to the context length.
        plain: [m] the document's tokens without special ones.
    """
    for shift in range(min(3, len(tokens))):
        shared = min(len(plain), len(tokens) - shift)
        for missing in range(min(2, shared)):  # a special token may end a truncated document
            if np.array_equal(tokens[shift : shift + shared - missing], plain[: shared - missing]):
                return shift
    return None


def vocabulary(tokenizer: Any, tokens: NDArray[np.int64]) -> dict[int, str]:
    """Return the text of every distinct token, with a leading space if it starts a word."""
    numbers = [int(number) for number in np.unique(tokens)]
    names = [str(name) for name in tokenizer.convert_ids_to_tokens(numbers)]
    wordpiece = any(name.startswith("##") for name in names) and not _marks_words(tokenizer)
    return {
        number: _text(tokenizer, number, name, wordpiece=wordpiece)
        for number, name in zip(numbers, names, strict=True)
    }


def _marks_words(tokenizer: Any) -> bool:
    """Return whether word starts are marked; in such vocabularies "##" is text, for example a heading."""
    return any(name.startswith(("Ġ", "▁")) for name in tokenizer.get_vocab())


def _text(tokenizer: Any, number: int, name: str, *, wordpiece: bool) -> str:
    if wordpiece:
        return name.removeprefix("##") if name.startswith("##") else f" {name}"
    text = str(tokenizer.decode([number], clean_up_tokenization_spaces=False))
    return f" {text}" if name.startswith("▁") and not text.startswith(" ") else text
