"""Words of the control file's mailbox, through which workers share single numbers.

Every word has one writer. The numbers outlive their writer.
"""

from enum import IntEnum
from typing import Protocol


class Mailbox(Protocol):
    """Shared numbers, addressed by word."""

    def get(self, word: int, /) -> int: ...
    def set(self, word: int, value: int, /) -> None: ...
    def get_float(self, word: int, /) -> float: ...
    def set_float(self, word: int, value: float, /) -> None: ...


class LocalMailbox:
    """Words that no other process reads."""

    def __init__(self) -> None:
        self._words: dict[int, float] = {}

    def get(self, word: int, /) -> int:
        """Return a word, 0 before the first."""
        return int(self._words.get(word, 0))

    def set(self, word: int, value: int, /) -> None:
        """Keep a word."""
        self._words[word] = value

    def get_float(self, word: int, /) -> float:
        """Return a word, 0 before the first."""
        return float(self._words.get(word, 0.0))

    def set_float(self, word: int, value: float, /) -> None:
        """Keep a word."""
        self._words[word] = value


class CaptureWord(IntEnum):
    """Mailbox of the capture ring."""

    RATE = 0
    """float: sampling rate for the next step. Written by hook, latched by host."""
    STEPS = 1
    """Steps started. Written by host, like all following words."""
    STEPS_TOTAL = 2
    """Steps of the whole run; 0 if unknown."""
    TOKENS = 3
    """Content tokens read by the model."""
    TOKENS_EXCLUDED = 4
    """Special and padding tokens, which are never data."""
    STARTED_NS = 5
    """CLOCK_MONOTONIC at the first step."""
    STEPS_DROPPED = 6
    """Whole steps dropped because the ring was full."""
    CAPTURE_ERRORS = 7
    """Exceptions suppressed by capture so that they do not reach the model."""
    PASS = 8
    """Current pass over the data, from 0."""
    INTERRUPTED = 9
    """1 if the user stopped the run early."""
    CAPTURE_NS = 10
    """Nanoseconds spent in hooks, over all steps."""
    FORWARD_NS = 11
    """Nanoseconds spent in the model's forward pass, including hooks."""
    TOKENS_TOTAL = 12
    """Content tokens of the whole run, over all passes."""
    SEQUENCES = 13
    """Sequences read by the model, including earlier attempts."""
    SEQUENCES_OPENED = 14
    """How many of these began with the tokenizer's BOS or CLS token."""
    STEPS_BEFORE = 15
    """Steps of the run completed by earlier attempts; this attempt started after them."""
    TOKENS_BEFORE = 16
    """Content tokens of these steps."""


class Gauge(IntEnum):
    """Gauges of a consumer per hook point in the bus's control file."""

    FVU = 0
    """Held-out FVU over content tokens."""
    L0 = 1
    DEAD = 2
    """Share of dead latents, 0..1."""
    LOSS = 3
    TRAINED = 4
    """Rows trained on."""
    NOT_FINITE = 5
    """Rows not trained on because they hold NaN or infinity."""
    OUTLIERS = 6
    """Rows not trained on because of `data.tokens.maxNormMultiple`."""


class HookGauge(IntEnum):
    """Gauges of the hook worker per hook point in the capture ring's control file."""

    NOT_FINITE = 0
    """Captured rows with NaN or infinite elements."""
    SATURATED = 1
    """Values outside the frozen range of their channel, under int8."""
    UNPAIRED = 2
    """Gradient rows whose activation was missing."""
