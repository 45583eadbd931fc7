"""States of streams, producers and readers, and reasons for dropped rows."""

from enum import IntEnum, StrEnum


class StreamEnd(StrEnum):
    """How a producer closed its stream."""

    COMPLETE = "complete"
    """Everything was published."""
    ATTEMPT_OVER = "attempt_over"
    """The host died or was terminated; the next attempt continues."""

    @property
    def reader_state(self) -> "ReaderState":
        """State of a reader that has finished such a stream."""
        return ReaderState.FINALISED if self is StreamEnd.COMPLETE else ReaderState.CHECKPOINTED


class ProducerState(StrEnum):
    """State of a stream's producer."""

    ABSENT = "absent"
    """It never attached."""
    ATTACHED = "attached"
    GONE = "gone"
    """It died without closing the stream."""
    COMPLETE = "complete"
    ATTEMPT_OVER = "attempt_over"

    @property
    def end(self) -> StreamEnd | None:
        """How the stream was closed; None while it is open."""
        return StreamEnd(self.value) if self in _CLOSED else None


class ReaderState(StrEnum):
    """State of a stream's reader."""

    ABSENT = "absent"
    """It never attached."""
    ATTACHED = "attached"
    GONE = "gone"
    """It died without finishing."""
    FINALISED = "finalised"
    """It has finished a complete stream and finalised its files."""
    CHECKPOINTED = "checkpointed"
    """The attempt ended; it has saved the state for the next attempt."""

    @property
    def final(self) -> bool:
        """Whether it has finished the stream in either way."""
        return self in _FINAL


_CLOSED = {ProducerState.COMPLETE, ProducerState.ATTEMPT_OVER}
_FINAL = {ReaderState.FINALISED, ReaderState.CHECKPOINTED}


class DropReason(IntEnum):
    """Why rows were dropped; the ring uses the numbers, the ledger and metrics use the names."""

    CRASH = 0
    """The open claim of a killed producer."""
    RING_FULL = 1
    """A whole step did not fit."""
    MID_STEP = 2
    """The rest of a step that ran out of space."""
    NO_CHUNK = 3
    """Every chunk was pinned."""
    TOO_LARGE = 4
    """A row is larger than a chunk."""
    ERROR = 5
    """An exception in capture, or a packet that cannot be published."""
    OTHER = 6
    NO_TOKEN = 7
    """Rows of an output that does not have one row per token, so that the tokens of its rows are unknown."""

    @property
    def word(self) -> str:
        """The reason's name in ledger and metrics."""
        return self.name.lower()
