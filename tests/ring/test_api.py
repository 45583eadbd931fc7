"""Filling chunks in place, iterating, threads, waiting with an end, resetting, and where the memory lies."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from asysi.bus.packet import HEADER_DTYPE, ROW_DTYPE, Dtype, Quantization, parse_packet
from asysi.bus.pinning import Pinning
from asysi_ring import (
    BusyError,
    Claim,
    ClosedError,
    Control,
    FullError,
    Reader,
    TruncatedError,
    Writer,
    create,
    reset,
)

WIDTH = 16


def claim(writer: Writer, count: int = 3, *, point: str = "layer.0", shard: int = 0, **options) -> Claim:
    """Claim `count` rows of 16 floats."""
    header = np.zeros(1, HEADER_DTYPE)
    header["account"], header["width"] = writer.account(point), WIDTH
    return writer.claim(shard, header, count, Dtype.FLOAT32, **options)


class TestClaim:
    """A chunk filled in place is a packet once it is committed, and only then."""

    def test_what_was_filled_is_what_is_read(self, make_ring):
        """Payload and records written through the claim arrive; the payload is aligned to 64 bytes."""
        ring = make_ring()
        rows = np.zeros(3, ROW_DTYPE)
        rows["token"] = 7
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            with claim(writer) as open_claim:
                assert len(open_claim) == 3 * WIDTH * 4
                np.frombuffer(open_claim, np.float32)[:] = 7
                open_claim.set_rows(rows)
                assert np.frombuffer(open_claim, np.uint8).ctypes.data % 64 == 0
                assert reader.pull(1, 0) == []
            assert not open_claim.open
            (view,) = reader.pull()
            assert ring.value(view) == 7
            assert ring.produced()["published"] == 3

    def test_an_int8_claim_has_scales(self, make_ring):
        """The payload is laid out as publish_block would have converted it."""
        ring = make_ring()
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            with claim(writer, 2, quantization=Quantization.INT8) as open_claim:
                np.frombuffer(open_claim, np.int8)[:] = 3
                open_claim.set_scales(np.array([0.5, 2], np.float32))
                with pytest.raises(ValueError, match="scales"):
                    open_claim.set_scales(np.zeros(3, np.float32))
            (view,) = reader.pull()
            packet = ring.packet(view)
            np.testing.assert_array_equal(packet.to_float32(), [[1.5] * WIDTH, [6] * WIDTH])
            assert int(packet.header["quantization"]) == Quantization.INT8

    def test_an_exception_aborts_and_is_counted(self, make_ring):
        """Rows of a claim that failed are dropped as an error, the chunk is used again, books are even."""
        ring = make_ring(policy="drop_new", chunks=3)
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            for _ in range(10):
                with pytest.raises(ZeroDivisionError), claim(writer) as open_claim:
                    np.frombuffer(open_claim, np.float32)[:] = 1 / 0
            claim(writer)  # forgotten
            assert ring.produced()["dropped"][5] == 33
            assert writer.free() == 3
            assert ring.publish(writer, 1)
            assert [ring.value(view) for view in reader.pull()] == [1]
            ring.balance()

    def test_an_array_that_outlives_the_block_aborts(self, make_ring):
        """What could still be changed is not published: BufferError, and the rows are booked as dropped."""
        ring = make_ring()
        with Writer(ring.folder) as writer:
            with pytest.raises(BufferError, match="outlives"), claim(writer) as open_claim:
                kept = np.frombuffer(open_claim, np.float32)
            open_claim = claim(writer)
            array = np.frombuffer(open_claim, np.float32)
            with pytest.raises(BufferError, match="1 arrays"):
                open_claim.commit()
            del array
            open_claim.commit()
            with pytest.raises(ClosedError):
                open_claim.commit()
            with pytest.raises(ValueError, match="committed"):
                memoryview(open_claim)
            open_claim.abort()
            assert (ring.produced()["published"], ring.produced()["dropped"][5]) == (3, 3)
            del kept

    def test_a_shard_has_several_claims(self, make_ring):
        """While they are open their shard takes packets, others too; closing the writer aborts them."""
        ring = make_ring(shards=2)
        with Writer(ring.folder) as writer:
            claims = [claim(writer), claim(writer, 2)]
            assert claims[0].chunk != claims[1].chunk
            assert ring.publish(writer, 1)
            assert writer.head() == 1
            assert writer.free() > 0
            assert ring.publish(writer, 2, point="other", shard=1)
        for one in claims:
            with pytest.raises(ClosedError):
                one.commit()
        assert ring.produced()["dropped"][5] == 5
        ring.balance()

    def test_packets_come_in_the_order_of_their_commits(self, make_ring):
        """Claimed 1, 2, 3, committed 3, 1 by another thread, 2 aborted: 3, 1, without a gap."""
        ring = make_ring()
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            claims = [claim(writer) for _ in range(3)]
            rows = np.zeros(3, ROW_DTYPE)
            for value, one in enumerate(claims, 1):
                np.frombuffer(one, np.float32)[:] = rows["token"] = value
                one.set_rows(rows)

            def end() -> None:
                claims[2].commit()
                claims[1].abort()
                claims[0].commit()

            thread = threading.Thread(target=end)
            thread.start()
            thread.join()
            views = reader.pull()
            assert [ring.value(view) for view in views] == [3, 1]
            assert [view.sequence for view in views] == [1, 2]
            assert [int(ring.packet(view).header["rows_before"]) for view in views] == [0, 3]
            assert [view.lapped_rows for view in views] == [0, 0]
            assert (ring.produced()["published"], ring.produced()["dropped"][5]) == (6, 3)
            ring.balance()

    def test_several_are_claimed_at_once(self, make_ring):
        """They lie one chunk apart; without neighbours they are others, counted; without room fewer."""
        ring = make_ring(policy="drop_new", chunks=8)
        headers = np.zeros(3, HEADER_DTYPE)
        with Writer(ring.folder) as writer, Control(ring.folder) as control:
            headers["account"], headers["width"] = writer.account("layer.0"), WIDTH
            claims = [writer.claim_many(0, headers, [1, 2, 3], Dtype.FLOAT32) for _ in range(2)]
            for three in claims:
                assert [len(one) for one in three] == [64, 128, 192]
                assert np.diff([one.chunk for one in three]).tolist() == [1, 1]
            assert (control.scattered(), control.open_claims()) == ([0], [6])
            claims[0][1].abort()
            assert control.open_claims() == [5]
            scattered = writer.claim_many(0, headers, [1, 1, 1], Dtype.FLOAT32)
            assert np.diff([one.chunk for one in scattered]).tolist() != [1, 1]
            assert (writer.scattered(), control.scattered()) == (1, [1])
            scattered[0].abort()
            (last,) = writer.claim_many(0, headers, [1, 5, 6], Dtype.FLOAT32)
            assert ring.produced()["dropped"][1] == 11
            with pytest.raises(ValueError, match="headers"):
                writer.claim_many(0, headers, [1, 2], Dtype.FLOAT32)
            with pytest.raises(ValueError, match="one row"):
                writer.claim_many(0, headers, [1, 2, 0], Dtype.FLOAT32)
            assert writer.claim_many(0, headers[:0], [], Dtype.FLOAT32) == []
            last.commit()
            assert writer.head() == 1
        ring.balance()

    def test_no_chunk_is_an_error_and_is_counted(self, make_ring):
        """With nothing free claim raises FullError, and its rows are ring_full."""
        ring = make_ring(policy="drop_new", chunks=3)
        with Writer(ring.folder) as writer:
            while ring.publish(writer, 1):
                pass
            with pytest.raises(FullError, match="3 rows"):
                claim(writer)
            assert ring.produced()["dropped"][1] == 6


class TestThreads:
    """A shard is one thread's at a time; shards do not meet."""

    def test_every_shard_has_a_thread(self, make_ring):
        """Four threads on four shards and a reader: all packets in order, the books even."""
        ring = make_ring(shards=4, chunks=12, policy="drop_new", chunk_bytes=1 << 17)
        rows = np.ones((1000, 32), np.float32)  # large enough to be copied without the GIL

        def produce(writer: Writer, shard: int) -> None:
            header = np.zeros(1, HEADER_DTYPE)
            header["account"], header["width"] = accounts[shard], 32
            for number in range(200):
                header["step"] = number
                while not writer.free(shard):
                    time.sleep(0.0001)
                assert writer.publish_block(
                    shard, header, None, rows.ctypes.data, 128, None, 800, Dtype.FLOAT32, 0
                )

        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            accounts = [writer.account(f"p{shard}") for shard in range(4)]
            threads = [threading.Thread(target=produce, args=(writer, shard)) for shard in range(4)]
            for thread in threads:
                thread.start()
            steps: list[list[int]] = [[], [], [], []]
            for view in reader.packets(60):
                packet = parse_packet(memoryview(view), ["p0", "p1", "p2", "p3"])
                steps[view.shard].append(int(packet.header["step"]))
                assert packet.payload.sum() == 800 * 32
                del packet
                if sum(map(len, steps)) == 800:
                    break
            for thread in threads:
                thread.join()
        assert steps == [list(range(200))] * 4
        ring.balance()

    def test_threads_on_one_shard_take_turns(self, make_ring):
        """Three threads publish and book at one point: nothing is lost."""
        ring = make_ring(chunks=12, chunk_bytes=1 << 17)
        rows = np.ones((1000, 32), np.float32)

        def produce(writer: Writer) -> None:
            header = np.zeros(1, HEADER_DTYPE)
            header["account"], header["width"] = writer.account("p"), 32
            for _ in range(200):
                assert writer.publish_block(
                    0, header, None, rows.ctypes.data, 128, None, 800, Dtype.FLOAT32, 0
                )
                writer.book(0, seen=1, sampled_out=1)

        with Writer(ring.folder) as writer:
            threads = [threading.Thread(target=produce, args=(writer,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert writer.head() == 600
        books = ring.produced()
        assert (books["published"], books["sampled_out"], books["packets"]) == (600 * 800, 600, 600)
        ring.balance()


class TestIteration:
    """`for view in reader`."""

    def test_it_ends_with_the_producer(self, make_ring):
        """Every packet comes once, the next one consumes it, and the loop ends when the producer closes."""
        ring = make_ring()
        writer = Writer(ring.folder)
        with Reader(ring.folder, "r") as reader:
            for value in range(5):
                ring.publish(writer, value)
            writer.close("complete")
            seen, kept = [], []
            for view in reader:
                seen.append(ring.value(view))
                kept.append(view)
            assert seen == list(range(5))
            assert all(view.released for view in kept)
            assert reader.ended() == "complete"
        assert ring.consumed("r")["position"] == 15

    def test_a_loop_left_early_has_not_consumed_its_last_packet(self, make_ring):
        """What the loop was at comes again after a restart."""
        ring = make_ring()
        with Writer(ring.folder) as writer:
            for value in range(3):
                ring.publish(writer, value)
            with Reader(ring.folder, "r") as reader:
                for view in reader:
                    if ring.value(view) == 1:
                        break
                del view
            with Reader(ring.folder, "r") as reader:
                assert ring.value(next(iter(reader))) == 1

    def test_waiting_in_vain_has_an_end(self, make_ring):
        """packets(timeout) raises TimeoutError when nothing comes."""
        ring = make_ring()
        with (
            Writer(ring.folder),
            Reader(ring.folder, "r") as reader,
            pytest.raises(TimeoutError, match=r"0\.01 seconds"),
        ):
            next(reader.packets(0.01))


def test_a_place_that_is_taken_is_waited_for(make_ring):
    """With a timeout a participant comes in as soon as its predecessor leaves; without one it is refused."""
    ring = make_ring()
    for attach in (lambda **o: Writer(ring.folder, **o), lambda **o: Reader(ring.folder, "r", **o)):
        first = attach()
        with pytest.raises(BusyError, match="alive"):
            attach(timeout=0.01)
        leaving = threading.Timer(0.05, first.close)
        leaving.start()
        attach(timeout=60).close()
        leaving.join()


class TestReset:
    """An empty ring of the same shape in the place of one that nobody uses."""

    def test_books_and_packets_are_gone(self, make_ring):
        """Everything counts from the beginning again, and the shape is the same."""
        ring = make_ring(chunks=12)
        with Writer(ring.folder) as writer, Reader(ring.folder, "r"):
            for value in range(5):
                ring.publish(writer, value)
            with Control(ring.folder) as control:
                before = control.geometry()
        reset(ring.folder)
        with Control(ring.folder) as control:
            assert control.geometry() == before | {"generation": 0}
            assert (control.accounts(), control.heads(), control.writer_state()) == ([], [0], "absent")
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            assert reader.pull(1, 0) == []
            ring.publish(writer, 9)
            assert [ring.value(view) for view in reader.pull()] == [9]

    def test_nobody_alive_is_reset(self, make_ring):
        """An attached producer or reader is named, and keeps its ring."""
        ring = make_ring()
        with Writer(ring.folder) as writer:
            with pytest.raises(BusyError, match=r"the producer of the ring in .* is attached"):
                reset(ring.folder)
            assert ring.publish(writer, 1)
        with Reader(ring.folder, "r") as reader:
            with pytest.raises(BusyError, match=r"reader r of the ring in .* is attached"):
                reset(ring.folder)
            assert [ring.value(view) for view in reader.pull()] == [1]

    def test_whoever_was_about_to_attach_is_told(self, make_ring):
        """Opened before the reset and seated after it, a participant would sit at a ring that is gone."""
        ring = make_ring()
        control, fresh = Path(ring.folder, "control"), Path(ring.folder, "fresh")
        fresh.write_bytes(control.read_bytes())
        told: list[str] = []

        def attach() -> None:
            try:
                Writer(ring.folder, timeout=60)
            except BusyError as error:
                told.append(str(error))

        with Writer(ring.folder):
            late = threading.Thread(target=attach)
            late.start()
            time.sleep(0.1)  # it has opened the control file and waits for the place
            fresh.rename(control)
            late.join()
        assert len(told) == 1
        assert "was reset meanwhile" in told[0]


class TestTopology:
    """What was obtained is told, not what was wished."""

    def test_every_page_is_there(self, make_ring):
        """Producer and reader have the whole pool mapped when they attach, and the control file says so."""
        ring = make_ring(chunks=64, chunk_bytes=1 << 16)
        with (
            Writer(ring.folder) as writer,
            Reader(ring.folder, "r") as reader,
            Control(ring.folder) as control,
        ):
            for end in (writer, reader):
                facts = end.topology()
                assert facts["bytes"] == 64 << 16
                assert facts["resident"] in {facts["bytes"], None}  # a kernel without smaps tells nothing
                assert facts["populated"] in {"madvise", "touched"}
                assert facts["page_bytes"] is None or facts["page_bytes"] >= 4096
                assert facts["registered"] is False
            seen = control.topology()
            assert seen["file_system"] == "tmpfs"
            assert seen["allocated"] >= seen["bytes"] == 64 << 16
            assert seen["writer"] == seen["readers"]["r"]
            assert seen["writer"]["bytes"] == 64 << 16
            assert (
                seen["machine_nodes"] == len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1
            )
            assert sum(seen["nodes"].values()) in {0, 64}

    def test_a_node_is_asked_for(self, folder):
        """The data lies on the node that was named; one that is not there is an error that names it."""
        shape = {"shards": 1, "chunks": 64, "chunk_bytes": 1 << 16, "readers": ["r"], "policy": "overwrite"}
        with pytest.raises(OSError, match="NUMA node 999 cannot be used"):
            create(folder, **shape, node=999)
        assert create(folder, **shape, node=0)
        with Control(folder) as control:
            assert control.topology()["nodes"] in ({0: 64}, {})

    def test_a_ring_that_was_cut_off_is_looked_at_without_harm(self, make_ring):
        """Looking at a truncated ring neither dies nor claims its memory; attaching is a TruncatedError."""
        ring = make_ring(chunks=64, chunk_bytes=1 << 16)
        with Path(ring.folder, "data").open("r+b") as file:
            file.truncate(1 << 20)
        with Control(ring.folder) as control:
            assert control.topology()["bytes"] == 1 << 20
        with pytest.raises(TruncatedError):
            Writer(ring.folder)

    def test_the_driver_is_told_of_the_pool(self, make_ring):
        """With a fake of cudaHostRegister: address and size are the pool's, it is reported, and undone."""
        ring = make_ring()
        registered: dict[int, int] = {}

        def fake_cuda_host_register(address: int, size: int):
            registered[address] = size
            return lambda: registered.pop(address) and None

        def fake_refusal(address: int, size: int):
            raise RuntimeError("cudaHostRegister answered 2")

        with Writer(ring.folder) as writer, Control(ring.folder) as control:
            with Pinning(writer, fake_cuda_host_register) as pinning:
                assert registered == {writer.pool()[0]: 10 * 4096} == dict([writer.pool()])
                assert pinning.registered
                assert writer.topology()["registered"]
                assert control.topology()["writer"]["registered"]
            assert registered == {}
            assert not control.topology()["writer"]["registered"]
            with Pinning(writer, fake_refusal) as pinning:
                assert pinning.refused == "cudaHostRegister answered 2"
                assert not control.topology()["writer"]["registered"]
            with Pinning(writer, None) as pinning:
                assert not pinning.registered
                assert ring.publish(writer, 1)
            with Pinning(writer, fake_cuda_host_register):
                writer.close()  # as a host that ends inside the block
            assert registered == {}
