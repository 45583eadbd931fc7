"""Reads the data of a run and divides it into steps."""

from dataclasses import dataclass

from asysi.contract.errors import ConfigError
from asysi.contract.spec import Data
from asysi.contract.workloads import ReadsText
from asysi.text.rows import TextSource
from asysi.text.tokens import Batches, SpelledTokens, make_policy, openers, tokenise


@dataclass(frozen=True, slots=True)
class PlannedReading:
    """The corpus as steps, with its statistics."""

    batches: Batches
    documents: int
    held_out: int
    duplicates: int
    renumbered: int
    """Documents whose number was already taken by another."""
    truncated: int
    """Documents truncated at the context length."""
    spelled: SpelledTokens
    """Special tokens spelled out in the text."""
    openers: list[int]
    """The tokenizer's BOS and CLS tokens."""


def read_data(data: Data, workload: ReadsText, tokenizer: object) -> PlannedReading:
    """Read, deduplicate and tokenise the data, and divide it into steps.

    Raises:
        ConfigError: the data or the token policy is invalid, or no document is left.
    """
    policy = make_policy(data.tokens, tokenizer)
    source = TextSource(data, workload.max_samples, tokenizer)
    spelled = SpelledTokens(tokenizer)
    corpus = tokenise(spelled.watch(source), tokenizer, policy)
    if not corpus.documents:
        raise ConfigError(f"spec.data.uri: {data.uri} holds no document with a token in it")
    batches = Batches(
        corpus, policy, batch_size=workload.batch_size, passes=workload.passes, seed=workload.seed
    )
    return PlannedReading(
        batches=batches,
        documents=corpus.documents,
        held_out=int(corpus.holdout.sum()),
        duplicates=source.duplicates,
        renumbered=source.renumbered,
        truncated=corpus.truncated,
        spelled=spelled,
        openers=openers(tokenizer),
    )
