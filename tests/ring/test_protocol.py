"""What producer and readers of one ring may rely on, seen in one process."""

import _thread
import mmap
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from asysi.bus.packet import HEADER_DTYPE, Dtype
from asysi_ring import BusyError, ClosedError, Control, Reader, RevokedError, Writer, control_layout


def states_at(folder, chunk=0):
    """Offset of a chunk's state in the control file."""
    offset = next(offset for name, offset, _ in control_layout() if name == "states_at")
    with Path(folder, "control").open("rb") as file:
        file.seek(offset)
        return struct.unpack("<Q", file.read(8))[0] + 64 * chunk


def pin(folder, chunk, reader):
    """Set a reader's pin from outside, as a broken process could."""
    with Path(folder, "control").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[states_at(folder, chunk) + reader // 8] |= 1 << reader % 8


def drain(ring, reader, limit=64):
    """Consume and release everything that is there; return the values."""
    values = []
    while views := reader.pull(limit, 0):
        for view in views:
            values.append(ring.value(view))
            reader.consumed(view)
            view.release()
    return values


class TestOrder:
    """Packets arrive whole, in order, each once for each reader."""

    def test_every_reader_sees_every_packet(self, make_ring):
        """Broadcast: two readers each get all packets in the order of publication."""
        ring = make_ring(readers=["a", "b"], chunks=12)
        with Writer(ring.folder) as writer, Reader(ring.folder, "a") as a, Reader(ring.folder, "b") as b:
            for value in range(4):
                assert ring.publish(writer, value)
            assert drain(ring, a) == drain(ring, b) == [0, 1, 2, 3]
            a.mark_durable()
            b.mark_durable()
            ring.balance("a", "b")

    def test_sequences_and_sources_count_from_one(self, make_ring):
        """Head 0 means that nothing was published; the first packet is number 1, the highest mark is kept."""
        ring = make_ring()
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            assert (writer.head(), writer.source()) == (0, 0)
            ring.publish(writer, 1, source=1 << 16)
            ring.publish(writer, 2, source=(1 << 16) | 1)
            assert (writer.head(), writer.source()) == (2, (1 << 16) | 1)
            assert [view.sequence for view in reader.pull()] == [1, 2]

    def test_the_ring_fills_what_only_it_knows(self, make_ring):
        """Sequence, rows before and generation are the ring's; the rest of the header arrives as given."""
        ring = make_ring()
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            for value in (7, 8):
                ring.publish(writer, value, rows=4, step=99, part=2, sequence=1234, generation=55)
            headers = [ring.packet(view).header.copy() for view in reader.pull()]
        assert [int(header["sequence"]) for header in headers] == [1, 2]
        assert [int(header["rows_before"]) for header in headers] == [0, 4]
        assert {(int(h["step"]), int(h["part"]), int(h["generation"]), int(h["rows"])) for h in headers} == {
            (99, 2, 1, 4)
        }

    def test_shards_are_rings_of_their_own(self, make_ring):
        """A full shard takes nothing from another, and a point stays in the shard of its first packet."""
        ring = make_ring(shards=2, policy="drop_new")
        with Writer(ring.folder) as writer:
            while ring.publish(writer, 0, point="a", shard=0):
                pass
            assert writer.free(0) == 0
            assert writer.free(1) == 10
            assert ring.publish(writer, 0, point="b", shard=1)
            with pytest.raises(ValueError, match="lives in shard 1"):
                ring.publish(writer, 0, point="b", shard=0)

    def test_an_account_is_found_again_by_its_name(self, make_ring):
        """Names keep their index over restarts of the producer, and the table has an end."""
        ring = make_ring(accounts=2)
        with Writer(ring.folder) as writer:
            assert [writer.account("ä" * 95), writer.account("b")] == [0, 1]
        with Writer(ring.folder) as writer:
            assert [writer.account("b"), writer.account("ä" * 95)] == [1, 0]
            with pytest.raises(ValueError, match="room for 2"):
                writer.account("c")
            with pytest.raises(ValueError, match="191 bytes"):
                writer.account("ä" * 96)


class TestLapped:
    """A slow reader loses packets, never the count of them."""

    def test_a_lapped_reader_goes_on_in_the_middle_and_knows_what_it_lost(self, make_ring):
        """After more than the depth, it jumps to the middle of what is there, and the lost rows are exact."""
        ring = make_ring(chunks=19)
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            for value in range(1, 101):
                ring.publish(writer, value, rows=value % 5 + 1)
            view = reader.pull(1)[0]
            depth = 19 - 2 - 1
            assert view.sequence == 100 - depth // 2
            assert view.lapped_rows == sum(value % 5 + 1 for value in range(1, view.sequence))
            assert ring.value(view) == view.sequence
            reader.consumed(view)
            assert ring.consumed("r")["lapped"] == view.lapped_rows
            view.release()
            drain(ring, reader)
            reader.mark_durable()
            ring.balance("r")

    def test_what_is_lapped_is_counted_for_each_point(self, make_ring):
        """Every point's loss is its own, also for a point that is never seen again."""
        ring = make_ring()
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            for value in range(30):
                ring.publish(writer, value, point="early" if value < 20 else "late")
            drain(ring, reader)
            reader.settle()
            reader.mark_durable()
            assert ring.consumed("r", 0)["lapped"] == 60
            assert ring.consumed("r", 1)["durable"] > 0
            ring.balance("r")

    def test_a_packet_passed_over_counts_as_lapped(self, make_ring):
        """What was pulled and never booked is lost, not forgotten."""
        ring = make_ring()
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            for value in range(3):
                ring.publish(writer, value)
            first, second = reader.pull(2)
            first.release()
            reader.consumed(second)
            second.release()
            assert ring.consumed("r") == {"position": 6, "durable": 0, "lapped": 3, "rolled_back": 0}


class TestPins:
    """A view's bytes hold for as long as it lives."""

    def test_a_pinned_packet_is_never_overwritten(self, make_ring):
        """Many rounds later the bytes are the same, and the producer dropped nothing."""
        ring = make_ring()
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            ring.publish(writer, 42)
            (view,) = reader.pull()
            for value in range(200):
                assert ring.publish(writer, value)
            assert ring.value(view) == 42
            view.release()

    def test_a_reader_holds_at_most_its_pins(self, make_ring):
        """With all pins held nothing more is handed out, until one is given back."""
        ring = make_ring(pins=3, chunks=12)
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            for value in range(6):
                ring.publish(writer, value)
            views = reader.pull(64, 0)
            assert [view.sequence for view in views] == [1, 2, 3]
            assert reader.pull(64, 0.01) == []
            views[0].release()
            assert [view.sequence for view in reader.pull(64, 0)] == [4]

    def test_live_exports_forbid_release(self, make_ring):
        """With an array over the packet release raises BufferError; without, it succeeds, twice too."""
        ring = make_ring()
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            ring.publish(writer, 5)
            (view,) = reader.pull()
            array = ring.packet(view).payload
            with pytest.raises(BufferError, match="live exports"):
                view.release()
            assert array[0, 0] == 5
            del array
            view.release()
            view.release()
            with pytest.raises(ValueError, match="released"):
                memoryview(view)
            with pytest.raises(ClosedError):
                view.copy()

    def test_the_last_array_keeps_the_pin(self, make_ring):
        """Dropping the view alone frees nothing; the pin goes when the last array over it dies."""
        ring = make_ring(pins=1)
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            ring.publish(writer, 5)
            ring.publish(writer, 6)
            (view,) = reader.pull()
            array = ring.packet(view).payload
            del view
            assert reader.pull(1, 0) == []
            del array
            assert len(reader.pull(1, 0)) == 1

    def test_a_view_is_read_only(self, make_ring):
        """Neither Python nor a stray pointer of a reader changes a packet: its mapping forbids it."""
        ring = make_ring()
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            ring.publish(writer, 5)
            (view,) = reader.pull()
            assert memoryview(view).readonly
            with pytest.raises(TypeError):
                memoryview(view)[0] = 1
            address = np.frombuffer(view, np.uint8).ctypes.data
            maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
            inside = [
                m[1] for m in maps if int(m[0].split("-")[0], 16) <= address < int(m[0].split("-")[1], 16)
            ]
            assert inside == ["r--s"]

    def test_arrays_outlive_reader_and_producer(self, make_ring):
        """The mapping stays while an array over it lives, and so does the reader's lock."""
        ring = make_ring()
        writer, reader = Writer(ring.folder), Reader(ring.folder, "r")
        ring.publish(writer, 9)
        array = ring.packet(reader.pull()[0]).payload
        reader.close()
        writer.close()
        del reader, writer
        assert array.tolist() == np.full((3, 16), 9.0).tolist()
        with pytest.raises(BusyError):
            Reader(ring.folder, "r")
        del array
        Reader(ring.folder, "r").close()

    def test_a_copy_is_the_packet(self, make_ring):
        """copy() returns the same bytes, free of the ring."""
        ring = make_ring()
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            ring.publish(writer, 9)
            (view,) = reader.pull()
            assert view.copy() == bytes(memoryview(view))
            assert len(view) == len(view.copy())

    def test_a_reader_with_too_many_pins_loses_them(self, make_ring):
        """The producer takes back what nobody may hold, and goes on; the reader is told when it lets go."""
        ring = make_ring()
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            for value in range(7):
                ring.publish(writer, value)
            views = reader.pull()
            for chunk in range(10):
                pin(ring.folder, chunk, reader=0)
            assert ring.publish(writer, 99)
            assert ring.produced()["dropped"] == [0] * 8
            with pytest.raises(RevokedError, match="was revoked"):
                views[0].copy()
            for view in views:
                with pytest.raises(RevokedError, match="was revoked"):
                    view.release()
            reader.settle()
            reader.mark_durable()
            ring.publish(writer, 100)
            assert drain(ring, reader) == [100]


class TestFull:
    """The producer never waits: it drops and counts."""

    def test_drop_new_keeps_what_was_not_read(self, make_ring):
        """Every chunk holds an unread packet; the next is booked as ring_full, nothing older is touched."""
        ring = make_ring(policy="drop_new")
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            assert writer.free() == 10
            accepted = [ring.publish(writer, value) for value in range(12)]
            assert accepted == [True] * 10 + [False] * 2
            assert writer.free() == 0
            assert reader.lag() == 1.0
            assert ring.produced()["dropped"][1] == 6
            views = reader.pull(1)
            assert writer.free() == 0
            reader.consumed(views[0])
            assert writer.free() == 0  # consumed, but pinned: it is still being looked at
            assert ring.value(views[0]) == 0
            del views
            assert writer.free() == 1
            assert ring.publish(writer, 100)
            assert not ring.publish(writer, 101)
            assert drain(ring, reader) == [*range(1, 10), 100]
            reader.mark_durable()
            assert reader.lag() == 0.0
            ring.balance("r")

    def test_a_packet_that_lingers_costs_its_chunk_and_no_other_packet(self, make_ring):
        """Under drop_new, with views held long after they were consumed, nothing unread is overwritten."""
        ring = make_ring(policy="drop_new", pins=4, chunks=7)
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            sent, seen, held = 0, [], []
            for turn in range(300):
                for _ in range(turn % 5 + 1):
                    room = writer.free()
                    assert ring.publish(writer, sent) == (room > 0)
                    sent += room > 0
                for view in reader.pull(2, 0):
                    seen.append(ring.value(view))
                    reader.consumed(view)
                    held.append(view)
                while len(held) > turn % 4:
                    held.pop((turn * 7) % len(held)).release()
            held.clear()
            seen += drain(ring, reader)
            assert seen == list(range(sent))
            assert sent > 300
            reader.mark_durable()
            ring.balance("r")
            assert ring.consumed("r")["lapped"] == 0

    def test_a_successor_knows_what_is_unread(self, make_ring):
        """Attached to a full drop_new ring whose chunks are out of order, it overwrites nothing unread."""
        ring = make_ring(policy="drop_new", pins=2, chunks=5)
        with Reader(ring.folder, "r") as reader:
            with Writer(ring.folder) as writer:
                assert all(ring.publish(writer, value) for value in range(5))
                first, second = reader.pull(2, 0)
                reader.consumed(first)
                reader.consumed(second)
                second.release()
                assert ring.publish(writer, 5)
            with Writer(ring.folder) as writer:
                assert writer.free() == 0
                assert not ring.publish(writer, 6)
                first.release()
                assert writer.free() == 1
                assert ring.publish(writer, 6)
                assert not ring.publish(writer, 7)
            assert drain(ring, reader) == [2, 3, 4, 5, 6]

    def test_an_impossible_cursor_harms_only_its_owner(self, make_ring):
        """A reader that claims to be far ahead makes the producer neither wait nor fail."""
        ring = make_ring(policy="drop_new")
        with Writer(ring.folder) as writer:
            cursors = next(offset for name, offset, _ in control_layout() if name == "cursors_at")
            with Path(ring.folder, "control").open("r+b") as file:
                file.seek(cursors)
                (at,) = struct.unpack("<Q", file.read(8))
                file.seek(at)
                file.write(struct.pack("<Q", 2**64 - 1))
            assert all(ring.publish(writer, value) for value in range(40))
            assert 0 <= writer.free() <= 10
            with Reader(ring.folder, "r") as reader:
                assert reader.pull(1, 0) == []

    def test_with_nothing_free_the_newest_goes_and_leaves_a_gap(self, make_ring):
        """All chunks pinned: the packet is dropped as no_chunk, and the sequence shows where."""
        ring = make_ring(chunks=8)
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            ring.publish(writer, 1)
            for chunk in range(8):
                pin(ring.folder, chunk, reader=4 + chunk)
            assert not ring.publish(writer, 2, source=77)
            assert ring.produced()["dropped"][3] == 3
            assert (writer.head(), writer.source()) == (2, 77)
            with Path(ring.folder, "control").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
                for chunk in range(8):
                    at = states_at(ring.folder, chunk)
                    memory[at : at + 2] = b"\0\0"
            assert ring.publish(writer, 3)
            views = reader.pull()
            assert [(view.sequence, view.lapped_rows) for view in views] == [(1, 0), (3, 0)]
            for view in views:
                reader.consumed(view)
                view.release()
            reader.mark_durable()
            ring.balance("r")

    def test_gaps_at_the_end_do_not_hide_the_end(self, make_ring):
        """A reader whose last packet was dropped still finds that it has consumed everything."""
        ring = make_ring(chunks=8)
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            ring.publish(writer, 1)
            for chunk in range(8):
                pin(ring.folder, chunk, reader=4 + chunk)
            assert not ring.publish(writer, 2)
            writer.close("complete")
            (view,) = reader.pull()
            assert reader.ended() is None
            reader.consumed(view)
            assert reader.ended() == "complete"

    @pytest.mark.parametrize(
        "wrong",
        [
            {"count": 1000},
            {"header": np.zeros(2, HEADER_DTYPE)},
            {"rows": np.zeros(4, np.uint8)},
            {"index": np.zeros(2, np.int64)},
            {"scales": np.zeros(1, np.float32)},
            {"quantization": 4},
            {"quantization": 9},
            {"source_dtype": 17},
            {"shard": 5},
            {"count": -1},
        ],
    )
    def test_what_cannot_be_a_packet_is_refused_before_it_is_booked(self, make_ring, wrong):
        """A packet larger than a chunk, an array of the wrong size: ValueError, and empty books."""
        ring = make_ring()
        source = np.zeros((3, 16), np.float32)
        header = np.zeros(1, HEADER_DTYPE)
        header["width"] = 16
        call = {"shard": 0, "header": header, "rows": None, "address": source.ctypes.data, "row_stride": 64}
        call |= {"index": None, "count": 3, "source_dtype": Dtype.FLOAT32, "quantization": 0}
        with Writer(ring.folder) as writer:
            writer.account("p")
            with pytest.raises(ValueError, match=r"\w"):
                writer.publish_block(**(call | wrong))
            assert ring.produced()["seen"] == writer.head() == 0
            assert writer.publish_block(**call)

    def test_no_rows_are_no_packet(self, make_ring):
        """An empty block succeeds and publishes nothing."""
        ring = make_ring()
        with Writer(ring.folder) as writer:
            assert ring.publish(writer, 1, rows=0)
            assert writer.head() == 0


class TestBooks:
    """Counters that a consumer and a producer keep beside the packets."""

    def test_sampled_rows_are_booked_in_one_step(self, make_ring):
        """A producer books what it saw and what it sampled out; the published rest closes the books."""
        ring = make_ring()
        with Writer(ring.folder) as writer:
            account = writer.account("layer.0")
            writer.book(account, seen=10, sampled_out=7)
            ring.publish(writer, 1, rows=3, book_seen=False)
            writer.book(account, seen=5, dropped=5, reason=2)
            ring.balance()
            assert ring.produced() == {
                "seen": 15,
                "published": 3,
                "sampled_out": 7,
                "dropped": [0, 0, 5, 0, 0, 0, 0, 0],
                "packets": 1,
            }
            for wrong in ({"seen": -1}, {"reason": 8}):
                with pytest.raises(ValueError, match=r"\d"):
                    writer.book(account, **wrong)

    def test_consuming_twice_is_consuming_once(self, make_ring):
        """Books and cursor do not move for a packet that is booked."""
        ring = make_ring()
        with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
            ring.publish(writer, 1)
            ring.publish(writer, 2)
            first, second = reader.pull()
            for view in (first, second, first, second):
                reader.consumed(view)
            assert ring.consumed("r")["position"] == 6
            with Control(ring.folder) as control:
                assert control.cursors("r") == control.heads() == [2]

    def test_a_view_of_another_reader_is_refused(self, make_ring):
        """Books are kept by the reader that pulled."""
        ring = make_ring(readers=["a", "b"], chunks=12)
        with Writer(ring.folder) as writer, Reader(ring.folder, "a") as a, Reader(ring.folder, "b") as b:
            ring.publish(writer, 1)
            with pytest.raises(ValueError, match="another reader"):
                b.consumed(a.pull()[0])

    def test_what_a_checkpoint_does_not_hold_is_rolled_back(self, make_ring):
        """After a restart durable is what the checkpoint holds, and the cursor goes on where it was."""
        ring = make_ring(chunks=12)
        with Writer(ring.folder) as writer:
            for value in range(4):
                ring.publish(writer, value)
            with Reader(ring.folder, "r") as reader:
                drain(ring, reader)
            with Reader(ring.folder, "r") as reader:
                reader.restore_durable(0, 3)
                assert ring.consumed("r") == {"position": 12, "durable": 3, "lapped": 0, "rolled_back": 9}
                ring.publish(writer, 9)
                assert drain(ring, reader) == [9]
                reader.mark_durable()
                ring.balance("r")
                with pytest.raises(ValueError, match="99 durable rows"):
                    reader.restore_durable(0, 99)

    def test_a_storage_ahead_of_the_books_says_so_by_its_position(self, make_ring):
        """Packets that were stored and not yet booked are passed over, lost rows before them counted."""
        ring = make_ring(pins=4, chunks=20)
        with Writer(ring.folder) as writer:
            for value in range(5):
                ring.publish(writer, value)
            with Reader(ring.folder, "r") as reader:
                reader.consumed(reader.pull(1)[0])
            with Reader(ring.folder, "r") as reader:
                # The storage holds packets 1 and 3: 6 rows, the last of which is row 9 of the point.
                reader.restore_durable(0, 6, position=9)
                assert ring.consumed("r") == {"position": 9, "durable": 6, "lapped": 3, "rolled_back": 0}
                assert drain(ring, reader) == [3, 4]
                reader.mark_durable()
                ring.balance("r")

    def test_gauges_and_mailbox_keep_their_words(self, make_ring):
        """Numbers written by one process are there for all, and bounds hold."""
        ring = make_ring()
        with (
            Writer(ring.folder) as writer,
            Reader(ring.folder, "r") as reader,
            Control(ring.folder) as control,
        ):
            writer.account("p")
            reader.gauge(0, 7, 0.25)
            control.set(63, 2**64 - 1)
            control.set_float(0, -1.5)
        with Control(ring.folder) as control:
            assert control.gauges("r") == [[0.0] * 7 + [0.25]]
            assert (control.get(63), control.get_float(0)) == (2**64 - 1, -1.5)
            for word in (-1, 64):
                with pytest.raises(ValueError, match="word"):
                    control.get(word)


class TestLife:
    """Who is there, who is gone, how it ended."""

    def test_one_producer_and_one_of_each_reader(self, make_ring):
        """A second one is told that the first is alive; after close it may come."""
        ring = make_ring()
        with Writer(ring.folder), pytest.raises(BusyError, match="producer"):
            Writer(ring.folder)
        with Reader(ring.folder, "r"), pytest.raises(BusyError, match="reader r"):
            Reader(ring.folder, "r")
        with Writer(ring.folder) as writer, Reader(ring.folder, "r"):
            assert writer.generation == 2

    def test_states_tell_the_ends_apart(self, make_ring):
        """absent, attached, gone, and how it closed: for the producer and for a reader."""
        ring = make_ring()
        with Control(ring.folder) as control:
            seen = [(control.writer_state(), control.reader_state("r"))]
            writer, reader = Writer(ring.folder), Reader(ring.folder, "r")
            seen.append((control.writer_state(), control.reader_state("r")))
            writer.close()
            reader.close()
            seen.append((control.writer_state(), control.reader_state("r")))
            Writer(ring.folder).close("attempt_over")
            with Reader(ring.folder, "r") as reader:
                reader.finalise("checkpointed")
            seen.append((control.writer_state(), control.reader_state("r")))
            Writer(ring.folder).close("complete")
            with Reader(ring.folder, "r") as reader:
                reader.finalise("finalised")
            seen.append((control.writer_state(), control.reader_state("r")))
        assert seen == [
            ("absent", "absent"),
            ("attached", "attached"),
            ("gone", "gone"),
            ("attempt_over", "checkpointed"),
            ("complete", "finalised"),
        ]

    def test_the_end_comes_after_the_last_packet(self, make_ring):
        """ended() is None until the producer has closed and everything is consumed."""
        ring = make_ring()
        writer = Writer(ring.folder)
        with Reader(ring.folder, "r") as reader:
            ring.publish(writer, 1)
            assert reader.ended() is None
            writer.close("complete")
            assert reader.ended() is None
            drain(ring, reader)
            assert reader.ended() == "complete"
            assert reader.pull(1, 60) == []

    def test_a_closed_end_says_so(self, make_ring):
        """Every call after close raises ClosedError; closing again does nothing."""
        ring = make_ring()
        writer, reader, control = Writer(ring.folder), Reader(ring.folder, "r"), Control(ring.folder)
        for end in (writer, reader, control, writer, reader, control):
            end.close()
        for call in (
            lambda: ring.publish(writer, 1),
            writer.free,
            reader.pull,
            reader.lag,
            reader.ended,
            control.heads,
        ):
            with pytest.raises(ClosedError):
                call()

    def test_a_waiting_reader_is_woken(self, make_ring):
        """A packet, or the end, wakes a reader that sleeps, long before its patience is over."""
        ring = make_ring()
        writer = Writer(ring.folder)
        with Reader(ring.folder, "r") as reader:
            for act, wanted in ((lambda: ring.publish(writer, 3), 1), (lambda: writer.close("complete"), 0)):
                thread = threading.Timer(0.05, act)
                began = time.monotonic()
                thread.start()
                views = reader.pull(1, 120)
                assert len(views) == wanted
                assert time.monotonic() - began < 100
                thread.join()
                for view in views:
                    reader.consumed(view)

    def test_waiting_lets_python_handle_signals(self, make_ring):
        """Ctrl-C ends a long pull."""
        ring = make_ring()
        with Reader(ring.folder, "r") as reader:
            timer = threading.Timer(0.05, _thread.interrupt_main)
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                reader.pull(1, 120)
            timer.join()
