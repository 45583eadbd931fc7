"""The native ring. Row counts are those of the ledger: a row is one token at one hook point.

Sequences and cursors are per shard and start at 1: a head or cursor of 0 means that nothing was published or
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
"""Version of the wire format, in every packet's header."""
MAX_READERS: int
"""16."""
MAX_REASONS: int
"""8: drop reasons; the ring itself uses 0 'crash', 1 'ring_full', 3 'no_chunk' and 5 'error'."""
MAX_PINS: int
"""16: default maximum number of packets that a reader can pin per shard, K; see `create`."""
MAILBOX_WORDS: int
"""64."""

@type_check_only
class pybind11_type(type):  # noqa: N801 - its name at runtime
    """Metaclass of pybind11 classes."""

class RingError(Exception):
    """Base class of the errors of a ring; the message names the affected object."""

class GeometryError(RingError):
    """The geometry is invalid, or a ring with another geometry already exists."""

class TruncatedError(GeometryError):
    """A file of the ring is shorter than required by its geometry; names both sizes."""

class VersionError(RingError):
    """Magic, ABI or size of the headers do not match; names both."""

class EndianError(VersionError):
    """The ring was written with another byte order."""

class SpaceError(RingError):
    """The file system or the memory limit is too small; names needed and available bytes."""

class BusyError(RingError):
    """The producer's or the reader's lock is held by a live process, or a claim of the shard is open."""

class FullError(RingError):
    """`Writer.claim` found no chunk; the rows are counted as dropped."""

class RevokedError(RingError):
    """The view's pin was revoked: its bytes may belong to another packet."""

class ClosedError(RingError):
    """Used after close(), or in a process forked from the participant."""

class DeviceError(RingError):
    """An accelerator's runtime is not loaded, lacks a function, or answered an error."""

def header_layout() -> list[tuple[str, int, int]]:
    """Return name, offset and size of each field of the packet header in C++."""

def control_layout() -> list[tuple[str, int, int]]:
    """Return name, offset and size of each field of the control file's fixed part."""

def payload_at(rows: int, scale_bytes: int) -> int:
    """Return the offset of a packet's payload: the first multiple of 64 bytes after records and scales."""

def testpoints() -> dict[str, int]:
    """Return the number of hits of each test point in this process; empty unless built with
    -DASYSI_TESTPOINTS."""

def required_bytes(*, shards: int, chunks: int, chunk_bytes: int, accounts: int = 256) -> int:
    """Return the size of a ring in bytes, with the maximum number of readers."""

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
    """Create `folder`/control and `folder`/data; return False if an identical ring already exists.

    `drop_new`: one reader; a chunk is reused only after the reader's cursor has passed it and no view of
    it is
    held (the capture ring). All `chunks` of a shard can be unread at once.
    `overwrite`: broadcast; the oldest unpinned chunk is overwritten (the bus). Of the `chunks` per shard,
    depth = chunks - readers*pins - 1 can be unread at once.
    A packet takes one chunk and one slot of the queue regardless of its size: many small packets lap a reader
    as quickly as the same number of large ones.

    Args:
        folder: folder of the ring; created if missing.
        shards: 1..256 shards, each with its own order and chunks.
        chunks: chunks per shard, at most 65,535.
        chunk_bytes: multiple of 64, 256 bytes..1 GiB; maximum size of a packet.
        readers: 1..16 names of 1..63 bytes.
        accounts: maximum number of hook points.
        policy: what to do if readers are too slow.
        pins: maximum number of packets per shard that a reader can hold at once, 1..1,024.
        timeout: seconds to wait for another process that is creating this ring.
        node: NUMA node of the data; None uses the node of the current CPU on a machine with several. See
            `topology()` for the result.

    Raises:
        GeometryError: the geometry is invalid, or `folder` contains a different ring.
        VersionError: the existing ring was written by another build.
        SpaceError: the file system or the control group's memory limit is too small.
        BusyError: another process was still creating this ring after `timeout` seconds.
        OSError: the folder is not writable, or NUMA node `node` does not exist.
    """

def reset(folder: str | PathLike[str], *, timeout: float = 30.0) -> None:
    """Empty a ring without attached processes, keeping its geometry.

    Deletes all packets, counters, cursors, hook points, gauges and the mailbox. If killed at any point, it
    leaves either the old or the new ring.

    Raises:
        BusyError: the producer or a reader is attached and alive, or another process is creating the ring.
        FileNotFoundError: there is no ring in `folder`.
        VersionError, GeometryError: the ring was not created by this build.
    """

@final
class Claim(metaclass=pybind11_type):
    """A claimed chunk that its owner fills in place: a writable buffer over the packet's payload.

    As a context manager it commits at the end of the block, and aborts if the block raises. The rows of a
    claim that is aborted or garbage collected are counted as dropped with reason 5, 'error', without a gap.

    A shard can have any number of open claims as long as there are chunks, and accepts other packets
    meanwhile. Any thread can commit or abort a claim. Packets are ordered by their commits. With `source`
    marks, commit in the order of the marks: a claim that is open when a higher mark is settled is lost, and
    counted as such, if the process is killed. Closing the writer aborts open claims; their buffers must
    not be
    written to afterwards.

        with writer.claim(0, header, rows, Dtype.FLOAT32) as claim:
            np.copyto(np.frombuffer(claim, np.float32).reshape(rows, -1), values)
    """

    def __init__(self, *args: Never, **kwargs: Never) -> None:
        """Raise TypeError: claims are created by a writer."""

    @property
    def open(self) -> bool:
        """Whether it is neither committed nor aborted."""

    @property
    def chunk(self) -> int:
        """Index among the chunks of its shard; adjacent chunks are `Writer.chunk_bytes` apart in memory."""

    def set_rows(self, rows: NDArray[np.void]) -> None:
        """Write the row records, [count] of ROW_DTYPE.

        Raises:
            ValueError: the number of rows differs.
            ClosedError: the claim has ended.
        """

    def set_scales(self, scales: NDArray[np.float32]) -> None:
        """Write the scales of an int8 or fp8 payload, [count]; of int8 by channel the table, [2, width].

        Raises like `set_rows`.
        """

    def commit(self) -> None:
        """Publish the packet.

        Raises:
            BufferError: an array over the claim is alive and could change what readers see.
            ClosedError: the claim has ended, or its writer is closed.
            BusyError: another thread held the shard for more than a second; the claim is still open.
        """

    def abort(self) -> None:
        """Return the chunk; idempotent."""

    def __buffer__(self, flags: int) -> memoryview: ...
    def __len__(self) -> int:
        """Return the size of the payload in bytes."""

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
    """The single producer, which never waits for a reader. Threads on one shard take turns; threads on
    different shards do not interfere, so that each shard can have its own thread.

    Attaching takes the producer's lock and repairs the state left by a killed producer: committed packets are
    counted as published; rows in flight are counted as dropped with reason 0, 'crash'. The generation is
    incremented.

    Args:
        folder: folder of the ring.
        timeout: seconds to wait for another producer to detach.

    Raises:
        BusyError: another producer is alive.
        FileNotFoundError: there is no ring in `folder`.
        VersionError, GeometryError: the ring was not created by this build.
        SpaceError: the ring's pages cannot be loaded into memory.
    """

    def __init__(self, folder: str | PathLike[str], *, timeout: float = 0.0) -> None: ...
    @property
    def generation(self) -> int:
        """Number of producers so far, including this one."""

    @property
    def chunk_bytes(self) -> int: ...
    @property
    def depth(self) -> int:
        """Chunks of a shard that can be unread at once."""

    @property
    def shards(self) -> int: ...
    def account(self, name: str) -> int:
        """Return the index of the hook point `name`, at most 191 bytes of UTF-8; register it if it is new.

        Raises:
            ValueError: the length of the name is invalid, or the ring has no room for another account.
        """

    def free(self, shard: int = 0) -> int:
        """Return how many packets `shard` accepts before drop_new drops one; always the depth with
        overwrite."""

    def source(self, shard: int = 0) -> int:
        """Return the highest `source` mark that is settled: published or counted as dropped; 0 if none.

        Exact even after kill -9.
        """

    def head(self, shard: int = 0) -> int:
        """Return the sequence of the newest packet; 0 if there is none."""

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
        table: NDArray[np.float32] | None = None,
    ) -> bool:
        """Claim a chunk, write header, row records and the gathered and converted rows, publish and count
        them.

        The header's width and the Dtype number `source_dtype` describe the source at `address`: row i is at
        address + index[i]*row_stride (or i*row_stride). The ring sets magic, version, sequence, rows_before,
        generation, rows, dtype, scale_bytes, payload_bytes and, if it converts, quantization.

        If killed at any instruction, the counters are exact after the next Writer attaches. A header with a
        nonzero `source` mark means that the producer can repeat the packet: an unfinished packet is then not
        counted at all and source() is unchanged, so that repeating everything above source() neither
        duplicates nor skips rows.

        Releases the GIL for 32 KiB or more: below that, reacquiring it costs more than the copy.

        Args:
            shard: shard of the packet; all packets of an account must go to the same shard.
            header: one HEADER_DTYPE record.
            rows: [count] of ROW_DTYPE; None writes zeros.
            address: address of the source's row 0, which must stay valid during the call.
            row_stride: bytes between consecutive rows of the source.
            index: [count] rows of the source to copy, in this order; not checked against the source.
            count: number of rows. With 0, nothing happens and the result is True.
            source_dtype: number of a Dtype.
            quantization: 0 none, 1 bf16, 2 fp8 and 3 int8 with a scale a row, 4 int8 by channel. What is
                narrower already (int8, fp8) passes through. All round to nearest even. fp8 (E4M3) has scale =
                max|finite|/448 a row, what is not finite becomes NaN. int8 has scale = max|finite|/127 a row,
                NaN becomes 0 and infinity +-127. int8 by channel is (x - mean)/scale within +-127; a row with
                a value beyond is flagged RowFlag.SATURATED; what is not finite becomes -128, read as NaN.
            book_seen: count the rows as seen too; a producer that samples may book them itself, before this.
            scales: [count] of a source that is int8 or fp8 already, in the order published; [count, 2] scores
                of floats that are not converted.
            table: [2, width] means and scales (finite, above 0) of the channels: for int8 by channel, made
                here or already so.

        Returns:
            False if no chunk could be claimed and the rows were counted as dropped: with reason 1 'ring_full'
            for drop_new, with reason 3 'no_chunk' for overwrite, where the sequence still advances so that
            readers see the gap.

        Raises:
            ValueError: before anything is counted: the packet is larger than a chunk, the account is unknown
                or belongs to another shard, an array has the wrong size, the conversion is not supported.
            ClosedError: the writer is closed.
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

        The payload has the format that `publish_block` would produce from a source of `dtype` with
        `quantization`: float32 with int8 becomes int8 with one scale per row.

        Raises:
            FullError: there is no chunk; the rows are counted as dropped.
            ValueError, ClosedError: as `publish_block`; also ValueError for 0 rows.
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
        """Claim a chunk for each of several packets; the chunks are adjacent if enough are free.

        Adjacent packets are `chunk_bytes` apart, so that a single strided copy can fill them all.
        Otherwise it
        takes any chunks and counts this in `scattered`; compare `Claim.chunk`.

        Args:
            shard: shard of all packets.
            headers: [packets] of HEADER_DTYPE.
            counts: [packets] number of rows of each packet.
            dtype, quantization, book_seen: as in `claim`.

        Returns:
            The claims, in the order of the headers. If there are fewer chunks than packets, the rows of the
            last packets are counted as dropped and the list is shorter.

        Raises:
            ValueError, ClosedError: as `claim`, before anything is claimed.
        """

    def scattered(self, shard: int = 0) -> int:
        """Return how often `claim_many` found no adjacent chunks, since the ring was created."""

    def saturated(self, account: int) -> int:
        """Return how many values of the account this writer found outside the ranges of their channels."""

    def topology(self) -> dict[str, Any]:
        """Return the state of this process's mapping of the ring's data.

        bytes; resident: bytes already mapped, whose access causes no page fault; populated: 'madvise',
        'touched' or 'no'; page_bytes; huge_bytes: resident bytes in huge pages; locked_bytes; registered: see
        `note_registered`; nodes: a sample of at most 64 pages, counted by NUMA node.
        None stands for what the kernel does not report.
        """

    def pool(self) -> tuple[int, int]:
        """Return address and size of the ring's data in this process, valid while the writer lives."""

    def convert_with(self, threads: int) -> None:
        """Let 1 to 256 threads convert what is published from here on, the caller's among them.

        A block is cut into parts of whole rows: the bytes are those of one thread. Call it before the first
        packet.

        Raises:
            ValueError: another number of threads.
            ClosedError: the writer is closed.
        """

    def note_registered(self, registered: bool) -> None:
        """Publish whether the pool is registered with an accelerator's driver, for monitoring."""

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
        """Count rows without a packet for the account, all numbers in one step.

        With `source`, only if it is above the mark of `shard`, which is raised in the same step: a producer
        that resumes from source() after kill -9 then counts them exactly once.

        Raises:
            ValueError: the account, shard or reason is unknown, or a number is negative.
        """

    def close(self, state: str | None = None) -> None:
        """Release the lock; with a state, 'complete' or 'attempt_over', signal the end of the stream to the
        readers."""

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

    def add_table(self, table: NDArray[np.float32]) -> int:
        """Keep mean and scale of channels, [2, width], and return the table's number."""

    def submit(
        self,
        stream: int,
        header: NDArray[np.void],
        counts: NDArray[np.uint32],
        address: int,
        dtype: int,
        quantization: int = 0,
        scales: int = 0,
        outside: int = 0,
        table: int = 0,
    ) -> bool:
        """Hand over slot `next()`; False, its rows counted as dropped, where the lane has failed.

        Args:
            stream: handle of the stream on which the slot is filled.
            header: one record of HEADER_DTYPE, of every packet but for `part`.
            counts: rows of each packet, in the order of the slot's rows.
            address: of the slot: rows without gaps, of the type that the packets have.
            dtype: of the rows before they were converted.
            quantization: what they have gone through on the device.
            scales: address of a float32 a row in the device's memory, for fp8 and int8; 0 for none.
            outside: address of an uint32 a row in the device's memory, for int8 by channel: how many of its
                values are out of range. They are copied behind the packets, which must leave room for them.
            table: number that `add_table` returned, for int8 by channel; 0 for none.

        Raises:
            ValueError: no slot is free, the step has fewer records than the slot has rows, or int8 by channel
                lacks its table, its counts, or room for these behind a packet.
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
    """A pinned packet: a read-only buffer of header, row records, scales, padding and payload.

    Released when closed or when its last export is deleted; an explicit release with live exports raises
    BufferError.
    """

    def __init__(self, *args: Never, **kwargs: Never) -> None:
        """Raise TypeError: views are created by a reader."""

    @property
    def shard(self) -> int: ...
    @property
    def sequence(self) -> int:
        """Sequence in its shard, from 1; gaps were overwritten or dropped."""

    @property
    def account(self) -> int:
        """Index of the hook point in `Control.accounts()`."""

    @property
    def rows(self) -> int: ...
    @property
    def lapped_rows(self) -> int:
        """Rows of this account lost before this packet; counted by `Reader.consumed`."""

    @property
    def released(self) -> bool: ...
    def release(self) -> None:
        """Unpin the packet; idempotent.

        Raises:
            BufferError: arrays that view it are alive.
            RevokedError: the pin was revoked.
        """

    def copy(self) -> bytes:
        """Return a copy of the bytes, verified to belong to this packet.

        Raises:
            RevokedError: the pin was revoked.
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
    """Iterator over a reader's packets: each is consumed and released when the next one is requested.

    Copy data that must be kept longer; an array that is kept keeps its pin. If the loop exits early, the last
    packet is not consumed.
    """

    def __init__(self, *args: Never, **kwargs: Never) -> None:
        """Raise TypeError: they are created by a reader."""

    def __iter__(self) -> Self: ...
    def __next__(self) -> View:
        """Return the next packet; stops when the producer has closed and nothing is left.

        Raises:
            TimeoutError: no packet arrived in time.
        """

@final
class Reader(metaclass=pybind11_type):
    """One of the readers named at creation. A restarted reader resumes from its cursor in the control file.

    Attaching takes the reader's lock and releases the pins of a killed predecessor. Packets that it counted
    as consumed are not handed out again.

    Args:
        folder: folder of the ring.
        name: one of the reader names given at creation.
        timeout: seconds to wait for a reader with this name to detach.

    Raises:
        BusyError: this reader is already attached and alive.
        ValueError: the ring has no reader with this name.
        FileNotFoundError: there is no ring in `folder`.
        VersionError, GeometryError: the ring was not created by this build.
    """

    def __init__(self, folder: str | PathLike[str], name: str, *, timeout: float = 0.0) -> None: ...
    @property
    def index(self) -> int: ...
    def __iter__(self) -> Packets:
        """Iterate over the packets until the producer has closed, however long it takes."""

    def packets(self, timeout: float | None = None) -> Packets:
        """Iterate over the packets until the producer has closed; raise TimeoutError if none arrives within
        `timeout` seconds."""

    def topology(self) -> dict[str, Any]:
        """Return the state of this process's mapping, as in `Writer.topology`."""

    def pool(self) -> tuple[int, int]:
        """Return address and size of the read-only data in this process, valid while the reader lives."""

    def note_registered(self, registered: bool) -> None:
        """Publish whether the pool is registered with an accelerator's driver, for monitoring."""

    def pull(self, limit: int = 64, timeout: float = 0.1) -> list[View]:
        """Pin a batch of up to `limit` packets, at most K per shard at once, waiting up to `timeout` seconds
        for the first.

        Releases the GIL while waiting; signals are handled at least every 100 ms. Returns immediately if the
        producer has closed. A lapped reader continues in the middle of the available packets, and
        `View.lapped_rows` reports what it lost.
        """

    def consumed(self, view: View) -> None:
        """Count the packet's rows and those lost before it, and advance the shared cursor. Idempotent.

        Call in the order of `pull`: skipped packets count as lapped.
        """

    def mark_durable(self) -> None:
        """Mark everything consumed so far as durable: durable = position - lapped - rolled back."""

    def restore_durable(self, account: int, rows: int, position: int | None = None) -> None:
        """Count `rows` of the account as durable and the rest as rolled back; call after a restart, before
        `pull`.

        Args:
            account: index of the hook point.
            rows: total rows of this ring in the consumer's storage.
            position: rows_before + rows of the last packet in the storage. This makes consumers exact that
                store packets before calling `consumed`: packets up to it are skipped.

        Raises:
            ValueError: there are more rows than were consumed.
        """

    def settle(self) -> None:
        """Count published but unconsumed rows as lapped, and move the cursors to the heads; call at the
        end."""

    def finalise(self, state: str) -> None:
        """Publish how this reader ended: 'finalised' or 'checkpointed'."""

    def ended(self) -> Literal["complete", "attempt_over"] | None:
        """Return how the producer closed the ring, once everything is consumed; None before."""

    def lag(self) -> float:
        """Return the largest unread share of a shard's depth, 0..1."""

    def gauge(self, account: int, slot: int, value: float) -> None:
        """Set one of the 8 gauges of an account, for `Control.gauges`."""

    def close(self) -> None:
        """Detach from the ring. The lock is released with the last live view."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

@final
class Control(metaclass=pybind11_type):
    """Read-only access to a ring.

    Raises:
        FileNotFoundError: there is no ring in `folder`.
        VersionError, GeometryError: the ring was not created by this build.
    """

    def __init__(self, folder: str | PathLike[str]) -> None: ...
    def accounts(self) -> list[str]:
        """Return the registered hook points, by index."""

    def readers(self) -> list[str]: ...
    def geometry(self) -> dict[str, int | str]:
        """Return shards, chunks, chunk_bytes, depth, pins, accounts, policy, abi and generation."""

    def topology(self) -> dict[str, Any]:
        """Return the memory placement of the ring's data.

        file_system: tmpfs, hugetlbfs or other; bytes, allocated, page_bytes of the file; nodes: a sample of
        at most 64 pages, counted by NUMA node, empty if unknown or if the file is truncated; machine_nodes;
        huge_on_request: whether shared memory can use huge pages on request; writer, and readers by name:
        bytes, populated and registered, as of their last attach.
        """

    def pins(self, reader: str) -> list[int]:
        """Return how many chunks of each shard the reader has pinned."""

    def epoch(self, reader: str) -> int:
        """Return how often the reader attached or was evicted; earlier views are invalid."""

    def heads(self) -> list[int]:
        """Return the sequence of the newest packet of each shard; 0 if there is none."""

    def scattered(self) -> list[int]:
        """Return, per shard, how often `Writer.claim_many` found no adjacent chunks."""

    def open_claims(self) -> list[int]:
        """Return the number of open claims per shard, including those of a killed producer until the next one
        attaches."""

    def produced(self) -> list[dict[str, object]]:
        """Return seen, published, sampled_out, dropped (8 numbers, by reason) and packets of each account."""

    def consumed(self, reader: str) -> list[dict[str, int]]:
        """Return position, durable, lapped and rolled_back of each account."""

    def gauges(self, reader: str) -> list[list[float]]:
        """Return the 8 gauges of each account."""

    def cursors(self, reader: str) -> list[int]:
        """Return the sequence of the last packet consumed of each shard."""

    def lag(self, reader: str) -> float:
        """Return the largest share of a shard's depth not consumed by the reader, 0..1."""

    def reader_state(self, reader: str) -> str:
        """Return absent (never attached), attached, gone (died without finishing), finalised or
        checkpointed."""

    def writer_state(self) -> str:
        """Return absent (never attached), attached, gone (died without closing), complete or attempt_over."""

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
