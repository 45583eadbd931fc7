"""The native ring. Row counts are what the ledger counts: a row is one token at one hook point."""

from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self, final

from numpy.typing import NDArray
import numpy as np

HEADER_BYTES: int
MAX_READERS: int  # 16
MAX_REASONS: int  # 8
MAILBOX_WORDS: int  # 64
MAX_PINS: int  # 16, the K of a ring created without `pins`

class RingError(Exception): ...
class GeometryError(RingError): ...   # contradicts itself, or another geometry stands there
class VersionError(RingError): ...    # magic, ABI, endianness or size of the control file do not fit
class SpaceError(RingError): ...      # the file system or the memory limit cannot hold the ring
class BusyError(RingError): ...       # the producer's or the reader's lock is held by somebody alive
class RevokedError(RingError): ...    # the view's pin was taken away, its bytes may be another packet's
class ClosedError(RingError): ...     # used after close()

def header_layout() -> list[tuple[str, int, int]]: ...   # name, offset, size of the C++ packet header
def control_layout() -> list[tuple[str, int, int]]: ...  # of the control file's fixed part

def required_bytes(*, shards: int, chunks: int, chunk_bytes: int, accounts: int = 256) -> int: ...
def create(
    folder: str, *, shards: int, chunks: int, chunk_bytes: int, readers: Sequence[str], accounts: int = 256,
    policy: Literal["drop_new", "overwrite"], pins: int = 16,
) -> bool:
    """Create `folder`/control and `folder`/data with posix_fallocate; False when the same ring is already there.

    `drop_new`: one reader, a chunk is claimed only when the reader's cursor has passed it (the capture ring).
    `overwrite`: broadcast, the oldest unpinned chunk goes (the bus).
    Of `chunks` a shard, depth = chunks - readers*K - 1 can be unread at once (K = `pins` a reader).

    Raises:
        GeometryError: the shape is impossible, or another ring stands in `folder`.
        VersionError: what stands there was written by another build.
        SpaceError: the file system, or the control group's memory limit, is too small; names needed and available bytes.
        BusyError: somebody else has been creating this ring for 30 seconds.
    """

@final
class Writer:
    """The one producer. Takes its lock; repairs what a killed producer left (an open claim is booked as dropped with
    reason 0, 'crash'); generation + 1."""
    def __init__(self, folder: str) -> None: ...
    @property
    def generation(self) -> int: ...
    @property
    def chunk_bytes(self) -> int: ...
    @property
    def shards(self) -> int: ...
    def account(self, name: str) -> int: ...          # finds or registers; at most 191 bytes of UTF-8
    def free(self, shard: int = 0) -> int: ...        # chunks claimable before the policy drops (drop_new), or depth
    def source(self, shard: int = 0) -> int: ...      # highest `source` mark settled (published, or booked as dropped), 0 when none
    def head(self, shard: int = 0) -> int: ...        # sequence of the newest packet: the first is 1, 0 when none
    def publish_block(
        self, shard: int, header: NDArray[np.void], rows: NDArray[np.void] | None,
        address: int, row_stride: int, index: NDArray[np.int64] | None, count: int,
        source_dtype: int, quantization: int, *, book_seen: bool = True, scales: NDArray[np.float32] | None = None,
    ) -> bool:
        """Claim a chunk, write header, row records and the gathered and converted rows, publish, book.

        The header's width and the Dtype number `source_dtype` describe the source at `address`: row i is at
        address + index[i]*row_stride (or i*row_stride). `quantization` (0 none, 1 bf16, 3 int8 a row) converts while copying.
        The ring fills magic, version, sequence (from 1), rows_before, generation, rows, dtype, scale_bytes, payload_bytes
        and, when it converted, quantization. Releases the GIL for 32 KiB and more (below, taking it back costs more).
        `rows`: [count] of ROW_DTYPE, None for zeros. `scales`: [count], of a source that is int8 already, in the order
        published. What is narrower than asked for (int8, fp8) passes through. `count` 0 does nothing and returns True.
        Returns False, having booked `count` rows as dropped, when nothing could be claimed: reason 1 ('ring_full') under
        drop_new; under overwrite reason 3 ('no_chunk'), and the sequence still advances, so that readers see the gap.
        With book_seen the rows are also counted as seen (a producer that samples books seen itself: book()).

        Killed at any instruction, the next Writer finds the books exact: the packet is there and booked, or its rows are
        dropped with reason 0 ('crash'). A header with a `source` mark other than 0 says that the producer can repeat it:
        then nothing is booked and source() has not moved.

        Raises:
            ValueError: before anything is booked: the packet is larger than a chunk, the account is unknown or lives in
                another shard (an account's packets stay in the shard of its first), an array has the wrong size.
        """
    def book(self, account: int, *, seen: int = 0, sampled_out: int = 0, dropped: int = 0, reason: int = 0) -> None: ...
    def close(self, state: Literal["complete", "attempt_over"] | None = None) -> None:
        """Release the lock; with a state, tell readers that nothing more comes."""
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

@final
class View:
    """A published chunk, pinned: a read-only buffer. Released when closed or when its last export dies; explicit
    release with live exports raises BufferError."""
    @property
    def shard(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def account(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def lapped_rows(self) -> int: ...   # rows of this account lost before this packet; booked by consumed()
    def release(self) -> None: ...      # RevokedError when the pin was taken away meanwhile
    def copy(self) -> bytes: ...
    def __buffer__(self, flags: int) -> memoryview: ...
    def __len__(self) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

@final
class Reader:
    """One of the readers named at creation. A restarted reader goes on from its cursor in the control file."""
    def __init__(self, folder: str, name: str) -> None: ...
    @property
    def index(self) -> int: ...
    def pull(self, limit: int = 64, timeout: float = 0.1) -> list[View]:
        """Pin up to `limit` packets (at most K a shard are pinned at once), waiting up to `timeout` seconds for the first.

        GIL released; signals are handled at least every 100 ms. Returns at once when the producer has closed. A lapped
        reader goes on in the middle of what is there; View.lapped_rows says exactly what it lost.
        """
    def consumed(self, view: View) -> None: ...       # in order: moves the shared cursor, books position and lapped rows of the account
    def mark_durable(self) -> None: ...               # everything consumed so far: durable = position - lapped - rolled back
    def restore_durable(self, account: int, rows: int, position: int | None = None) -> None:
        """After a restart, before the first pull: `rows` of the account are durable, the rest is rolled back.

        `position` is rows_before + rows of the last durable packet, from the consumer's own storage. With it a consumer
        that makes packets durable before it calls consumed() is exact too: packets up to it are passed over.

        Raises:
            ValueError: more rows than were consumed.
        """
    def settle(self) -> None: ...                     # at the end: what was published after the last packet seen counts as lapped
    def finalise(self, state: Literal["finalised", "checkpointed"]) -> None: ...
    def ended(self) -> Literal["complete", "attempt_over"] | None: ...  # not None once the producer closed AND everything is consumed
    def lag(self) -> float: ...                       # largest share of a shard's depth that is unread, 0..1
    def gauge(self, account: int, slot: int, value: float) -> None: ...  # 8 slots an account, for status
    def close(self) -> None: ...                      # the lock goes with the last live view
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

@final
class Control:
    """Looks at a ring without taking part."""
    def __init__(self, folder: str) -> None: ...
    def accounts(self) -> list[str]: ...
    def readers(self) -> list[str]: ...
    def geometry(self) -> dict[str, int | str]: ...   # shards chunks chunk_bytes depth pins accounts policy abi generation
    def heads(self) -> list[int]: ...                 # a shard: sequence of its newest packet, 0 when none
    def produced(self) -> list[dict[str, object]]: ...        # an account: {seen, published, sampled_out, dropped: [8 ints], packets}
    def consumed(self, reader: str) -> list[dict[str, int]]: ... # an account: {position, durable, lapped, rolled_back}
    def gauges(self, reader: str) -> list[list[float]]: ...
    def cursors(self, reader: str) -> list[int]: ...          # a shard: sequence of the last packet consumed
    def lag(self, reader: str) -> float: ...
    def reader_state(self, reader: str) -> str: ...   # "absent" (never came) | "attached" | "gone" (lock free, not finalised) | "finalised" | "checkpointed"
    def writer_state(self) -> str: ...                # "absent" | "attached" | "gone" (lock free, not closed) | "complete" | "attempt_over"
    def get(self, word: int) -> int: ...              # mailbox: 64 shared u64
    def set(self, word: int, value: int) -> None: ...
    def get_float(self, word: int) -> float: ...
    def set_float(self, word: int, value: float) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
