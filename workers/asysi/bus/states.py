"""The words for how streams end, where their producers and readers stand, and why rows were dropped."""

from enum import IntEnum, StrEnum


class StreamEnd(StrEnum):
    """How a producer closed its stream."""

    COMPLETE = "complete"
    """Everything was published."""
    ATTEMPT_OVER = "attempt_over"
    """The host died, or was told to leave: the next attempt continues."""

    @property
    def reader_state(self) -> "ReaderState":
        """What a reader becomes that has finished such a stream."""
        return ReaderState.FINALISED if self is StreamEnd.COMPLETE else ReaderState.CHECKPOINTED


class ProducerState(StrEnum):
    """Where the producer of a stream stands."""

    ABSENT = "absent"
    """It never came."""
    ATTACHED = "attached"
    GONE = "gone"
    """It is not alive and has not closed the stream."""
    COMPLETE = "complete"
    ATTEMPT_OVER = "attempt_over"

    @property
    def end(self) -> StreamEnd | None:
        """How the stream was closed; None while it is open."""
        return StreamEnd(self.value) if self in _CLOSED else None


class ReaderState(StrEnum):
    """Where a reader of a stream stands."""

    ABSENT = "absent"
    """It never came."""
    ATTACHED = "attached"
    GONE = "gone"
    """It is not alive and has not finished."""
    FINALISED = "finalised"
    """It has finished a complete stream, and its files."""
    CHECKPOINTED = "checkpointed"
    """The attempt was over; it has kept what the next attempt needs."""

    @property
    def final(self) -> bool:
        """Whether it has finished the stream, one way or the other."""
        return self in _FINAL


_CLOSED = {ProducerState.COMPLETE, ProducerState.ATTEMPT_OVER}
_FINAL = {ReaderState.FINALISED, ReaderState.CHECKPOINTED}


class DropReason(IntEnum):
    """Why rows were dropped; the numbers are those of the ring, the words those of ledger and metrics."""

    CRASH = 0
    """The open claim of a killed producer."""
    RING_FULL = 1
    """A whole step without room."""
    MID_STEP = 2
    """The rest of a step that ran out of room."""
    NO_CHUNK = 3
    """Every chunk was pinned."""
    TOO_LARGE = 4
    """A row larger than a chunk."""
    ERROR = 5
    """An exception in capture, or a packet that cannot be carried."""
    OTHER = 6
    NO_TOKEN = 7
    """Rows of an output that does not have one for each token of the step, so that nobody knows which tokens
    they belong to.
    """

    @property
    def word(self) -> str:
        """The reason as ledger and metrics spell it."""
        return self.name.lower()
