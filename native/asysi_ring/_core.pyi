"""The native ring. Row counts are what the ledger counts: a row is one token at one hook point.

Sequences and cursors count from 1 in each shard: a head or a cursor of 0 means that nothing was published or
consumed.
"""

from collections.abc import Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Literal, Never, Self, final, type_check_only

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES: int
PACKET_VERSION: int
"""Of the wire form, in every packet's header."""
MAX_READERS: int
"""16."""
MAX_REASONS: int
"""8: reasons for a drop; the ring itself books 0 'crash', 1 'ring_full' and 3 'no_chunk'."""
MAX_PINS: int
"""16: packets that a reader may pin in a shard, K, unless `create` was told otherwise."""
MAILBOX_WORDS: int
"""64."""

@type_check_only
class pybind11_type(type):  # noqa: N801 - its name at runtime
    """Metaclass of what pybind11 makes."""

class RingError(Exception):
    """Something is wrong with a ring; the message names it."""

class GeometryError(RingError):
    """The shape contradicts itself, or a ring of another shape stands there."""

class TruncatedError(GeometryError):
    """A file of the ring is shorter than its geometry asks for; names both sizes."""

class VersionError(RingError):
    """Magic, ABI or size of the headers do not fit; names both."""

class EndianError(VersionError):
    """The ring was written in another byte order."""

class SpaceError(RingError):
    """The file system or the memory limit cannot hold the ring; names needed and available bytes."""

class BusyError(RingError):
    """The producer's or the reader's lock is held by somebody alive, or a claim of the shard is open."""

class FullError(RingError):
    """`Writer.claim` found no chunk; the rows are booked as dropped."""

class RevokedError(RingError):
    """The view's pin was taken away: its bytes may be another packet's."""

class ClosedError(RingError):
    """Used after close(), or in a process forked from the participant."""

class DeviceError(RingError):
    """An accelerator's runtime is not loaded, lacks a function, or answered an error."""

def header_layout() -> list[tuple[str, int, int]]:
    """Return name, offset and size of each field of the packet header, as C++ has them."""

def control_layout() -> list[tuple[str, int, int]]:
    """Return name, offset and size of each field of the control file's fixed part."""

def payload_at(rows: int, scale_bytes: int) -> int:
    """Return where a packet's payload begins: the first multiple of 64 bytes behind records and scales."""

def testpoints() -> dict[str, int]:
    """Return how often each test point was reached in this process; empty unless built with
    -DASYSI_TESTPOINTS."""

def required_bytes(*, shards: int, chunks: int, chunk_bytes: int, accounts: int = 256) -> int:
    """Return how many bytes a ring takes with as many readers as there may be."""

def create(
    folder: str | PathLike[str],
    *,
    shards: int,
    chunks: int,
    chunk_bytes: int,
    readers: Sequence[str],
    accounts: int = 256,
    policy: Literal["drop_new", "overwrite"],
    pins: int = 16,
    timeout: float = 30.0,
    node: int | None = None,
) -> bool:
    """Create `folder`/control and `folder`/data; False when the same ring is already there.

    `drop_new`: one reader, a chunk is claimed only when the reader's cursor has passed it and no view of it
    is held (the capture ring); all `chunks` of a shard can be unread at once.
    `overwrite`: broadcast, the oldest unpinned chunk goes (the bus); of `chunks` a shard,
    depth = chunks - readers*pins - 1 can be unread at once.
    A packet takes a chunk and a place in the queue whatever its size: many small ones lap a reader as soon as
    as many large ones.

    Args:
        folder: made when missing.
        shards: 1..256, each with its own order and its own chunks.
        chunks: a shard, at most 65,535.
        chunk_bytes: a multiple of 64, 256 bytes..1 GiB; a packet fits in one.
        readers: 1..16 names of 1..63 bytes.
        accounts: room for this many hook points.
        policy: what happens when readers are slower.
        pins: packets of a shard that a reader may hold at once, 1..1,024.
        timeout: seconds to wait for somebody else who is creating this ring.
        node: NUMA node that the data should lie on; None takes that of this processor, on a machine with
            several. What was obtained is in `topology()`.

    Raises:
        GeometryError: the shape is impossible, or another ring stands in `folder`.
        VersionError: what stands there was written by another build.
        SpaceError: the file system or the control group's memory limit is too small.
        BusyError: somebody else was still creating this ring after `timeout` seconds.
        OSError: the folder cannot be written, or there is no NUMA node `node`.
    """

def reset(folder: str | PathLike[str], *, timeout: float = 30.0) -> None:
    """Make an empty ring of the same shape out of one that nobody is attached to.

    Books, cursors, hook points, gauges and mailbox are gone, and every packet. Killed at any time it leaves
    the old ring or the new one.

    Raises:
        BusyError: the producer or a reader is attached and alive; or somebody creates the ring.
        FileNotFoundError: no ring stands in `folder`.
        VersionError, GeometryError: the ring is not one of this build's.
    """

@final
class Claim(metaclass=pybind11_type):
    """A claimed chunk that its owner fills in place: a writable buffer over the packet's payload.

    As a context manager it commits at the end of the block, and aborts when the block raises. What is
    aborted, or forgotten, is booked as dropped with reason 5, 'error', and leaves no gap.

    Any number of claims of a shard may be open at once, as long as there are chunks, and the shard takes
    other packets meanwhile. Any thread may commit or abort one. Packets come in the order of the commits;
    with `source` marks, commit in the order of the marks: a claim that is open when a higher mark is settled
    is lost, and counted, if the process is killed. Closing the writer aborts what is open; its buffers must
    not be written to afterwards.

        with writer.claim(0, header, rows, Dtype.FLOAT32) as claim:
            np.copyto(np.frombuffer(claim, np.float32).reshape(rows, -1), values)
    """

    def __init__(self, *args: Never, **kwargs: Never) -> None:
        """Raise TypeError: claims come from a writer."""

    @property
    def open(self) -> bool:
        """Whether it was neither committed nor aborted."""

    @property
    def chunk(self) -> int:
        """Its place among the chunks of its shard: neighbours lie `Writer.chunk_bytes` apart in memory."""

    def set_rows(self, rows: NDArray[np.void]) -> None:
        """Write the row records, [count] of ROW_DTYPE.

        Raises:
            ValueError: another number of rows.
            ClosedError: the claim is over.
        """

    def set_scales(self, scales: NDArray[np.float32]) -> None:
        """Write the scales, [count], of an int8 payload. Raises like `set_rows`."""

    def commit(self) -> None:
        """Publish the packet.

        Raises:
            BufferError: an array over the claim is alive and could change what readers see.
            ClosedError: the claim is over, or its writer closed.
            BusyError: another thread has been at work in the shard for a second; the claim is still open.
        """

    def abort(self) -> None:
        """Give the chunk back; again does nothing."""

    def __buffer__(self, flags: int) -> memoryview: ...
    def __len__(self) -> int:
        """Return the bytes of the payload."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit or abort.

        Raises:
            BufferError: an array over the claim outlives the block: the claim was aborted.
        """

@final
class Writer(metaclass=pybind11_type):
    """The one producer: it never waits for a reader. Threads on one shard take turns; on different shards
    they do not meet, so that each shard can have a thread of its own.

    Attaching takes the producer's lock and repairs what a killed one left: a packet that was committed is
    booked as published; rows that were under way are booked as dropped with reason 0, 'crash'. The generation
    grows by one.

    Args:
        folder: of the ring.
        timeout: seconds to wait for another producer to leave.

    Raises:
        BusyError: another producer is alive.
        FileNotFoundError: no ring stands in `folder`.
        VersionError, GeometryError: the ring is not one of this build's.
        SpaceError: the ring's pages cannot be brought into memory.
    """

    def __init__(self, folder: str | PathLike[str], *, timeout: float = 0.0) -> None: ...
    @property
    def generation(self) -> int:
        """How many producers there have been, this one included."""

    @property
    def chunk_bytes(self) -> int: ...
    @property
    def depth(self) -> int:
        """Chunks of a shard that can be unread at once."""

    @property
    def shards(self) -> int: ...
    def account(self, name: str) -> int:
        """Return the index of the hook point `name`, at most 191 bytes of UTF-8; registers it when new.

        Raises:
            ValueError: the name has a wrong length, or the ring has no room for another.
        """

    def free(self, shard: int = 0) -> int:
        """Return how many packets `shard` takes before drop_new drops one; always the depth under
        overwrite."""

    def source(self, shard: int = 0) -> int:
        """Return the highest `source` mark settled, published or booked as dropped; 0 when none.

        Exact after kill -9.
        """

    def head(self, shard: int = 0) -> int:
        """Return the sequence of the newest packet, 0 when there is none."""

    def publish_block(
        self,
        shard: int,
        header: NDArray[np.void] | np.void,
        rows: NDArray[np.void] | None,
        address: int,
        row_stride: int,
        index: NDArray[np.int64] | None,
        count: int,
        source_dtype: int,
        quantization: int,
        *,
        book_seen: bool = True,
        scales: NDArray[np.float32] | None = None,
    ) -> bool:
        """Claim a chunk, write header, row records and the gathered and converted rows, publish, book.

        The header's width and the Dtype number `source_dtype` describe the source at `address`: row i is at
        address + index[i]*row_stride (or i*row_stride). The ring fills magic, version, sequence, rows_before,
        generation, rows, dtype, scale_bytes, payload_bytes and, when it converts, quantization.

        Killed at any instruction, the next Writer finds the books exact. A header with a `source` mark other
        than 0 says that the producer can repeat the packet: then an unfinished one is not booked at all and
        source() has not moved, so that repeating everything above source() neither repeats nor skips.

        Releases the GIL for 32 KiB and more: below that, taking it back costs more than the copy.

        Args:
            shard: all packets of an account go to the shard of its first.
            header: one HEADER_DTYPE record.
            rows: [count] of ROW_DTYPE; None writes zeros.
            address: of the source's row 0, which must stay valid during the call.
            row_stride: bytes from one row of the source to the next.
            index: [count] rows of the source to take, in this order; not checked against the source.
            count: rows. With 0 nothing happens and the answer is True.
            source_dtype: number of a Dtype.
            quantization: 0 none, 1 bf16, 3 int8 a row. What is narrower already (int8, fp8) passes through.
                bf16 rounds to nearest even; int8 has scale = max|finite|/127 a row, NaN becomes 0 and
                infinity +-127.
            book_seen: count the rows as seen too; a producer that samples may book them itself, before this.
            scales: [count] of a source that is int8 already, in the order published.

        Returns:
            False, the rows booked as dropped, when nothing could be claimed: with reason 1 'ring_full' under
            drop_new, with reason 3 'no_chunk' under overwrite, where the sequence still advances so that
            readers see the gap.

        Raises:
            ValueError: before anything is booked: the packet is larger than a chunk, the account is unknown
                or lives in another shard, an array has the wrong size, the conversion does not exist.
            ClosedError: the writer was closed.
        """

    def claim(
        self,
        shard: int,
        header: NDArray[np.void] | np.void,
        count: int,
        dtype: int,
        quantization: int = 0,
        *,
        rows: NDArray[np.void] | None = None,
        book_seen: bool = True,
    ) -> Claim:
        """Claim a chunk for `count` rows of the header's width, to be filled in place.

        The payload is what `publish_block` would have made of a source of `dtype` under `quantization`:
        float32 with int8 is int8 with one scale per row.

        Raises:
            FullError: there is no chunk; the rows are booked as dropped.
            ValueError, ClosedError: as `publish_block`; 0 rows are refused.
        """

    def claim_many(
        self,
        shard: int,
        headers: NDArray[np.void],
        counts: Sequence[int],
        dtype: int,
        quantization: int = 0,
        *,
        book_seen: bool = True,
    ) -> list[Claim]:
        """Claim a chunk for each of several packets: neighbouring chunks, if that many are free.

        Then the packets lie `chunk_bytes` apart, so that one copy with a stride fills them all. Where no
        neighbours are to be had it takes any chunks, and counts that in `scattered`: compare `Claim.chunk`.

        Args:
            shard: of all of them.
            headers: [packets] of HEADER_DTYPE.
            counts: [packets], rows of each.
            dtype, quantization, book_seen: as `claim`.

        Returns:
            The claims, in the order of the headers. When there are fewer chunks than packets, the rows of
            the last packets are booked as dropped and the list is shorter.

        Raises:
            ValueError, ClosedError: as `claim`, before anything is claimed.
        """

    def scattered(self, shard: int = 0) -> int:
        """Return how often `claim_many` found no neighbouring chunks, since the ring was created."""

    def topology(self) -> dict[str, Any]:
        """Return what this process obtained for the ring's data.

        bytes; resident: of these, mapped already, so that touching them raises no page fault; populated:
        'madvise', 'touched' or 'no'; page_bytes; huge_bytes: of the resident ones, in huge pages;
        locked_bytes; registered: see `note_registered`; nodes: a sample of at most 64 pages, by NUMA node.
        """

    def pool(self) -> tuple[int, int]:
        """Return address and bytes of the ring's data in this process, which stay while the writer lives."""

    def convert_with(self, threads: int) -> None:
        """Let 1 to 256 threads convert what is published from here on, the caller's among them.

        A block is cut into parts of whole rows: the bytes are those of one thread. Call it before the first
        packet.

        Raises:
            ValueError: another number of threads.
            ClosedError: the writer is closed.
        """

    def note_registered(self, registered: bool) -> None:
        """Tell those who look on whether an accelerator's driver knows the pool."""

    def book(
        self,
        account: int,
        *,
        seen: int = 0,
        sampled_out: int = 0,
        dropped: int = 0,
        reason: int = 0,
        shard: int = 0,
        source: int = 0,
    ) -> None:
        """Add rows that are no packet to the account, all numbers in one step.

        With `source`, only if it is above the mark of `shard`, which it raises in the same step: a producer
        that goes on from source() after kill -9 has then booked exactly once.

        Raises:
            ValueError: an unknown account, shard or reason, or a negative number.
        """

    def close(self, state: str | None = None) -> None:
        """Release the lock; with a state, 'complete' or 'attempt_over', tell readers that nothing more
        comes."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

@final
class Lane(metaclass=pybind11_type):
    """Rows in slots of an accelerator's memory, copied into claimed chunks and committed by a thread.

    The caller gathers rows into slot `next()` on a stream of the device, and hands it over with `submit`. No
    call waits: neither for the device nor for a consumer. Callers take turns; the GIL sees to it. Packets are
    committed in the order of `submit`; a slot is free again once its copies have been seen to be done. Where
    the device answers an error the lane has failed: what is submitted is published or counted as dropped
    (error).

    Args:
        writer: of the ring. Stop the lane before it is closed.
        device: number of the device, as the runtime counts.
        slots: contents that can be on their way at once, from 1.
        runtime: path of the runtime's library, which this process has loaded: libcudart, or what exports its
            names.
        shard: of the ring.
        patience: seconds that copies may take, at the end or after a failure, before they are given up.

    Raises:
        DeviceError: the runtime is not loaded, or the device gives no stream or event.
    """

    def __init__(
        self,
        writer: Writer,
        device: int,
        slots: int,
        runtime: str | PathLike[str],
        *,
        shard: int = 0,
        patience: float = 30.0,
    ) -> None: ...
    @property
    def slots(self) -> int: ...
    def free(self) -> int:
        """Return how many slots can be filled; 0 where the lane has failed."""

    def next(self) -> int:
        """Return the slot to fill next, where one is free."""

    def unclaimed(self) -> int:
        """Return how many packets are submitted for which no chunk is claimed yet.

        Ask before `Writer.free`: the difference then never says too much.
        """

    def begin_step(self, rows: NDArray[np.void]) -> None:
        """Copy the records [rows] of ROW_DTYPE of the rows that the slots of a step hold."""

    def submit(
        self,
        stream: int,
        header: NDArray[np.void],
        counts: NDArray[np.uint32],
        address: int,
        dtype: int,
        quantization: int = 0,
        scales: int = 0,
    ) -> bool:
        """Hand over slot `next()`; False, its rows counted as dropped, where the lane has failed.

        Args:
            stream: handle of the stream on which the slot is filled.
            header: one record of HEADER_DTYPE, of every packet but for `part`.
            counts: rows of each packet, in the order of the slot's rows.
            address: of the slot: rows without gaps, of the type that the packets have.
            dtype: of the rows before they were converted.
            quantization: what they have gone through on the device.
            scales: address of a float32 a row in the device's memory, for int8; 0 for none.

        Raises:
            ValueError: no slot is free, or the step has fewer records than the slot has rows.
        """

    @property
    def failed(self) -> bool: ...
    @property
    def problem(self) -> str:
        """What went wrong first; empty while all is well."""

    @property
    def lost(self) -> int:
        """Rows that were submitted and not published, because the lane had failed."""

    @property
    def finished(self) -> int:
        """Slots whose rows have been published, or given up."""

    def stop(self) -> None:
        """Publish what is submitted, as long as the device shows progress, and end the thread."""

@final
class View(metaclass=pybind11_type):
    """A published packet, pinned: a read-only buffer of header, row records, scales, padding and payload.

    Released when closed or when its last export dies; explicit release with live exports raises BufferError.
    """

    def __init__(self, *args: Never, **kwargs: Never) -> None:
        """Raise TypeError: views come from a reader."""

    @property
    def shard(self) -> int: ...
    @property
    def sequence(self) -> int:
        """Of its shard, from 1; what is missing between two was overwritten or dropped."""

    @property
    def account(self) -> int:
        """Index of the hook point in `Control.accounts()`."""

    @property
    def rows(self) -> int: ...
    @property
    def lapped_rows(self) -> int:
        """Rows of this account lost before this packet; booked by `Reader.consumed`."""

    @property
    def released(self) -> bool: ...
    def release(self) -> None:
        """Unpin the packet; again does nothing.

        Raises:
            BufferError: arrays over it live.
            RevokedError: the pin had been taken away.
        """

    def copy(self) -> bytes:
        """Return the bytes, checked to be this packet's.

        Raises:
            RevokedError: the pin was taken away.
            ClosedError: the view is released.
        """

    def __buffer__(self, flags: int) -> memoryview: ...
    def __len__(self) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

@final
class Packets(metaclass=pybind11_type):
    """The packets of a reader, one by one: each is consumed and released when the next is asked for.

    Copy what is kept longer; an array that is kept keeps its pin. The last one is not consumed when the loop
    is left early.
    """

    def __init__(self, *args: Never, **kwargs: Never) -> None:
        """Raise TypeError: they come from a reader."""

    def __iter__(self) -> Self: ...
    def __next__(self) -> View:
        """Return the next packet; ends when the producer has closed and nothing is left.

        Raises:
            TimeoutError: none came in time.
        """

@final
class Reader(metaclass=pybind11_type):
    """One of the readers named at creation. A restarted reader goes on from its cursor in the control file.

    Attaching takes the reader's lock and gives back what a killed one had pinned. A packet that it had booked
    as consumed is not handed out again.

    Args:
        folder: of the ring.
        name: one of those that the ring was created for.
        timeout: seconds to wait for a reader of this name to leave.

    Raises:
        BusyError: this reader is attached already, and alive.
        ValueError: the ring has no reader of this name.
        FileNotFoundError: no ring stands in `folder`.
        VersionError, GeometryError: the ring is not one of this build's.
    """

    def __init__(self, folder: str | PathLike[str], name: str, *, timeout: float = 0.0) -> None: ...
    @property
    def index(self) -> int: ...
    def __iter__(self) -> Packets:
        """Iterate over the packets until the producer has closed, however long it takes."""

    def packets(self, timeout: float | None = None) -> Packets:
        """Iterate over the packets until the producer has closed; TimeoutError when none came for so many
        seconds."""

    def topology(self) -> dict[str, Any]:
        """Return what this process obtained, as `Writer.topology`."""

    def pool(self) -> tuple[int, int]:
        """Return address and bytes of the ring's data in this process, read-only, while the reader lives."""

    def note_registered(self, registered: bool) -> None:
        """Tell those who look on whether an accelerator's driver knows the pool."""

    def pull(self, limit: int = 64, timeout: float = 0.1) -> list[View]:
        """Pin a batch of up to `limit` packets, at most K a shard at once, waiting up to `timeout` seconds
        for the first.

        Releases the GIL while it waits; signals are handled at least every 100 ms. Returns at once when the
        producer has closed. A lapped reader goes on in the middle of what is there, and `View.lapped_rows`
        says what it lost.
        """

    def consumed(self, view: View) -> None:
        """Book the packet's rows and those lost before it, and move the shared cursor. Once is as good as
        twice.

        Call in the order of `pull`: a packet passed over counts as lapped.
        """

    def mark_durable(self) -> None:
        """Declare durable everything consumed so far: durable = position - lapped - rolled back."""

    def restore_durable(self, account: int, rows: int, position: int | None = None) -> None:
        """After a restart, before the first pull: `rows` of the account are durable, the rest is rolled back.

        Args:
            account: index of the hook point.
            rows: what the consumer's storage holds of this ring, in all.
            position: rows_before + rows of the last packet that the storage holds. With it a consumer that
                stores packets before it calls `consumed` is exact too: packets up to it are passed over.

        Raises:
            ValueError: more rows than were consumed.
        """

    def settle(self) -> None:
        """At the end: what was published and not consumed counts as lapped, and the cursors move to the
        heads."""

    def finalise(self, state: str) -> None:
        """Tell others how this reader ended: 'finalised' or 'checkpointed'."""

    def ended(self) -> Literal["complete", "attempt_over"] | None:
        """Return how the producer closed, once everything is consumed; None before."""

    def lag(self) -> float:
        """Return the largest share of a shard's depth that is unread, 0..1."""

    def gauge(self, account: int, slot: int, value: float) -> None:
        """Set one of the 8 gauges of an account, for `Control.gauges`."""

    def close(self) -> None:
        """Leave the ring. The lock goes with the last live view."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

@final
class Control(metaclass=pybind11_type):
    """Looks at a ring without taking part.

    Raises:
        FileNotFoundError: no ring stands in `folder`.
        VersionError, GeometryError: the ring is not one of this build's.
    """

    def __init__(self, folder: str | PathLike[str]) -> None: ...
    def accounts(self) -> list[str]:
        """Return the hook points registered, by index."""

    def readers(self) -> list[str]: ...
    def geometry(self) -> dict[str, int | str]:
        """Return shards, chunks, chunk_bytes, depth, pins, accounts, policy, abi and generation."""

    def topology(self) -> dict[str, Any]:
        """Return how the ring's data lies in memory.

        file_system: tmpfs, hugetlbfs or other; bytes, allocated, page_bytes of the file; nodes: a sample of
        at most 64 pages, counted by NUMA node, empty when the system does not say or the file is not whole;
        machine_nodes; huge_on_request: whether shared memory gets huge pages that ask; writer, and readers by
        name: bytes, populated and registered, as each obtained when it attached last.
        """

    def pins(self, reader: str) -> list[int]:
        """Return how many chunks of each shard the reader holds."""

    def epoch(self, reader: str) -> int:
        """Return how often the reader attached or was evicted: views from before are void."""

    def heads(self) -> list[int]:
        """Return the sequence of the newest packet of each shard, 0 when none."""

    def scattered(self) -> list[int]:
        """Return for each shard how often `Writer.claim_many` found no neighbouring chunks."""

    def open_claims(self) -> list[int]:
        """Return for each shard how many claims are neither committed nor aborted, a killed producer's
        included until the next one attaches."""

    def produced(self) -> list[dict[str, object]]:
        """Return for each account seen, published, sampled_out, dropped (8 numbers, by reason) and
        packets."""

    def consumed(self, reader: str) -> list[dict[str, int]]:
        """Return for each account position, durable, lapped and rolled_back."""

    def gauges(self, reader: str) -> list[list[float]]:
        """Return the 8 gauges of each account."""

    def cursors(self, reader: str) -> list[int]:
        """Return the sequence of the last packet consumed of each shard."""

    def lag(self, reader: str) -> float:
        """Return the largest share of a shard's depth that the reader has not consumed, 0..1."""

    def reader_state(self, reader: str) -> str:
        """Return absent (never came), attached, gone (not alive, not ended), finalised or checkpointed."""

    def writer_state(self) -> str:
        """Return absent (never came), attached, gone (not alive, not closed), complete or attempt_over."""

    def get(self, word: int) -> int:
        """Return a word of the mailbox: 64 shared unsigned 64-bit integers."""

    def set(self, word: int, value: int) -> None: ...
    def get_float(self, word: int) -> float: ...
    def set_float(self, word: int, value: float) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
