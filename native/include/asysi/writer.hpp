// The one producer of a ring: one thread a shard, at most.
//
// Order of a packet: intent, claim (CAS, acquire), bytes, state (release), slot (release), head (seq_cst: the packet
// exists), account (one step), source, intent closed. Killed anywhere, the next one's `Takeover` finishes or undoes it.
//
// Shards share nothing but the doorbell: each has its own intent, chunks, slots and accounts (books.hpp).
#pragma once

#include <algorithm>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "asysi/books.hpp"
#include "asysi/claim.hpp"
#include "asysi/convert.hpp"
#include "asysi/drop_new.hpp"
#include "asysi/futex.hpp"
#include "asysi/overwrite.hpp"
#include "asysi/ring.hpp"
#include "asysi/seat.hpp"
#include "asysi/takeover.hpp"

namespace asysi {

class Writer {
    /// What a shard's thread works with.
    struct alignas(64) Lane {
        /// Calls `act` with the ring's policy.
        template <typename Act>
        decltype(auto) chosen(const Act& act) {
            return std::visit(act, policy);
        }
        void begin(const Ring& ring, u32 shard) {
            head = ring.shard(shard).head.load(std::memory_order_acquire);
            chunks = Chunks(ring, shard);
            if (ring.geometry().policy == Policy::drop_new) policy.emplace<DropNew>();
            chosen([&](auto& one) { one.begin(chunks, head); });
        }

        Gate gate;
        u64 head = 0;  // sequence of the newest packet
        PendingPacket packet{};
        Chunks chunks;
        std::variant<Overwrite, DropNew> policy;
    };

public:
    /// Waits up to `patience` for a producer that is alive to leave; then throws BusyError.
    explicit Writer(const std::string& folder, std::chrono::nanoseconds patience = {})
        : ring_(folder, Ring::Role::writer),
          seat_(ring_.file(), control_path(folder), 0, "the producer of the ring in " + folder, patience),
          lanes_(geometry().shards) {
        ASYSI_TESTPOINT("writer.lock.taken");
        books_.begin();
        Takeover takeover(ring_, books_);
        takeover.repair();
        for (u32 shard = 0; shard < geometry().shards; ++shard) lanes_[shard].begin(ring_, shard);
        generation_ = takeover.enter();
    }
    ~Writer() { close(std::nullopt); }
    Writer(const Writer&) = delete;
    Writer& operator=(const Writer&) = delete;

    [[nodiscard]] const Ring& ring() const { return ring_; }
    [[nodiscard]] const Geometry& geometry() const { return ring_.geometry(); }
    [[nodiscard]] u32 generation() const { return generation_; }

    /// Tells those who look on whether an accelerator's driver knows the data.
    void note_registered(bool registered) {
        seat_.expect_open();
        ring_.live().writer.registered.store(registered ? 1 : 0, std::memory_order_relaxed);
    }

    /// Index of the account `name`, which is registered when new.
    u32 account(const std::string& name) {
        seat_.expect_open();
        return books_.account(name);
    }

    /// Packets that `shard` takes before the policy drops any. Never less than it was, but for what is published.
    [[nodiscard]] u64 free(u32 shard) {
        expect_shard(shard);
        Lane& lane = lanes_[shard];
        const auto turn = seat_.enter(lane.gate);
        return lane.chosen([&](auto& policy) { return policy.free(lane.chunks, lane.head); });
    }
    [[nodiscard]] u64 source(u32 shard) const {
        seat_.expect_open();
        expect_shard(shard);
        return ring_.shard(shard).source.load(std::memory_order_relaxed);
    }
    [[nodiscard]] u64 head(u32 shard) const {
        seat_.expect_open();
        expect_shard(shard);
        return ring_.shard(shard).head.load(std::memory_order_relaxed);
    }

    /// Publishes `block`; false, the rows booked as dropped, when it had to go. An empty block is no packet.
    ///
    /// Throws std::invalid_argument, before anything is booked, when the block cannot be a packet of this ring.
    /// Threads on one shard take turns; throws BusyError while a claim of the shard is open.
    bool publish(const Block& block) {
        expect_shard(block.shard);
        Lane& lane = lanes_[block.shard];
        const auto turn = seat_.enter(lane.gate);
        const Plan plan(block);
        expect_fit(block, plan);
        if (block.rows.count == 0) return true;
        if (!begin(lane, block, plan)) return false;
        write_head(lane, block);
        write_payload(lane, block);
        finish(lane);
        return true;
    }

    /// Claims a chunk for `block`, whose rows are described but not read: header and records are written, the payload is
    /// the caller's. Nothing, the rows booked as dropped, when none is to be had. Throws like `publish`.
    [[nodiscard]] std::optional<Claim> claim(const Block& block) {
        expect_shard(block.shard);
        Lane& lane = lanes_[block.shard];
        auto turn = seat_.enter(lane.gate);
        const Plan plan(block);
        expect_fit(block, plan);
        if (block.rows.count == 0) throw std::invalid_argument("a claim is for one row at least");
        if (!begin(lane, block, plan)) return std::nullopt;
        write_head(lane, block);
        std::byte* const bytes = ring_.chunk(block.shard, lane.packet.chunk);
        turn.suspend();
        return Claim(*this, block.shard, bytes, plan, block.rows.count);
    }

    /// Books rows that are no packet: all numbers in one step. With a source, only if it is above the shard's mark, which
    /// it raises in the same step: a producer that repeats books once.
    void book(u32 account, const Entry& entry, u32 shard = 0, u64 source = 0) {
        books_.expect_account(account);
        expect_shard(shard);
        if (entry.reason >= max_reasons) {
            throw std::invalid_argument("reason " + std::to_string(entry.reason) + " is not within 0 to 7");
        }
        if (source == 0) return book_at_home(account, entry);
        const auto turn = seat_.enter(lanes_[shard].gate);
        if (source <= ring_.shard(shard).source.load(std::memory_order_relaxed)) return;
        books_.expect_home(account, shard);
        books_.keep_home(account, shard);
        books_.open_intent({.shard = shard, .sequence = ProducerBooks::never, .account = account, .rows = 0, .book_seen = false,
                            .source = source});
        books_.add(account, entry);
        books_.settle(shard, source);
    }

    /// Releases the lock; with a state, tells the readers that nothing more comes. Open claims are aborted.
    void close(std::optional<WriterState> state) {
        if (seat_.orphaned() || !seat_.close()) return;
        for (Lane& lane : lanes_) {
            // What is under way ends; a claim that it opens meanwhile is aborted like the others.
            for (int attempt = 0; attempt < 2; ++attempt) {
                if (lane.gate.resume()) {
                    const auto turn = lane.gate.turn();
                    give_up(lane);
                }
                try {
                    const auto turn = lane.gate.enter();
                    break;
                } catch (const BusyError&) {
                    continue;  // a claim; or stuck in there for a second: the next producer will find its intent open
                }
            }
        }
        const std::scoped_lock names(books_.registrar());  // what is booked without a shard is booked before the lock is free
        if (state) {
            ring_.live().writer_state.store(static_cast<u32>(*state), std::memory_order_release);
            ASYSI_TESTPOINT("writer.close.stated");
            ring_bell();
        }
        seat_.leave();
        ASYSI_TESTPOINT("writer.lock.released");
    }

private:
    friend class Claim;

    // --- what may be asked ---------------------------------------------------------------------------------------

    void expect_shard(u32 shard) const {
        if (shard < geometry().shards) return;
        throw std::invalid_argument("shard " + std::to_string(shard) + " is not one of " + std::to_string(geometry().shards));
    }
    void expect_fit(const Block& block, const Plan& plan) const {
        books_.expect_account(block.header.account);
        if (item_bytes(block.rows.dtype) == 0) throw std::invalid_argument("the source has an unknown dtype");
        if (block.quantization == Quantization::fp8 && plan.dtype != Dtype::fp8_e4m3) {
            throw std::invalid_argument("the ring does not convert to fp8");
        }
        if (block.rows.count > geometry().chunk_bytes || plan.total() > geometry().chunk_bytes) {
            throw std::invalid_argument("a packet of " + std::to_string(block.rows.count) + " rows x " +
                                        std::to_string(block.rows.width) + " takes " + std::to_string(plan.total()) +
                                        " bytes, a chunk has " + std::to_string(geometry().chunk_bytes));
        }
        books_.expect_home(block.header.account, block.shard);
    }

    // --- one packet ----------------------------------------------------------------------------------------------

    /// Intent and claim; false when there was no chunk, and that is booked.
    bool begin(Lane& lane, const Block& block, const Plan& plan) {
        const u32 account = block.header.account;
        books_.keep_home(account, block.shard);
        lane.packet = {.shard = block.shard, .chunk = 0, .generation = 0, .sequence = lane.head + 1, .account = account,
                       .rows = block.rows.count, .book_seen = block.book_seen, .source = block.header.source, .plan = plan};
        books_.open_intent({.shard = block.shard, .sequence = lane.head + 1, .account = account, .rows = block.rows.count,
                            .book_seen = block.book_seen, .source = block.header.source});
        if (lane.chosen([&](auto& policy) { return policy.claim(lane.chunks, lane.packet, lane.head); })) return true;
        refuse(lane);
        return false;
    }

    /// Header and records; the padding before the payload is zeros, so that a packet's bytes are its own.
    void write_head(Lane& lane, const Block& block) {
        const PendingPacket& packet = lane.packet;
        const Plan& plan = packet.plan;
        std::byte* const chunk = ring_.chunk(packet.shard, packet.chunk);
        PacketHeader header = block.header;
        header.magic = packet_magic;
        header.version = packet_version;
        header.header_bytes = static_cast<u16>(header_bytes);
        header.sequence = packet.sequence;
        header.rows_before = books_.of(packet.account)[produced::published];
        header.generation = generation_;
        header.rows = static_cast<u32>(packet.rows);
        header.dtype = static_cast<u16>(plan.dtype);
        header.payload_bytes = plan.payload_bytes;
        header.scale_bytes = static_cast<u32>(plan.scale_bytes);
        if (plan.dtype != block.rows.dtype) header.quantization = static_cast<u16>(block.quantization);
        std::memcpy(chunk, &header, sizeof header);
        ASYSI_TESTPOINT("writer.header.written");
        if (block.records != nullptr) {
            std::memcpy(chunk + header_bytes, block.records, packet.rows * row_bytes);
            std::memset(chunk + plan.scales_at, 0, plan.payload_at - plan.scales_at);
        } else {
            std::memset(chunk + header_bytes, 0, plan.payload_at - header_bytes);
        }
        if (block.scales != nullptr && plan.scale_bytes != 0 && block.rows.dtype == Dtype::int8) {
            std::memcpy(chunk + plan.scales_at, block.scales, plan.scale_bytes);
        }
        ASYSI_TESTPOINT("writer.records.written");
    }

    void write_payload(Lane& lane, const Block& block) {
        const Plan& plan = lane.packet.plan;
        std::byte* const chunk = ring_.chunk(lane.packet.shard, lane.packet.chunk);
        convert(chunk + plan.payload_at, reinterpret_cast<float*>(chunk + plan.scales_at), block.rows, block.quantization, streams_);
        ASYSI_TESTPOINT("writer.payload.written");
    }

    /// The packet comes to be, and is booked.
    void finish(Lane& lane) {
        const PendingPacket& packet = lane.packet;
        ring_.state(packet.shard, packet.chunk).store(word::state(packet.generation), std::memory_order_release);
        ASYSI_TESTPOINT("writer.state.published");
        lane.chosen([&](auto& policy) { policy.published(lane.chunks, packet); });
        append(lane, word::slot(packet.generation, packet.chunk));
        books_.add(packet.account, {.seen = packet.book_seen ? packet.rows : 0, .published = packet.rows, .packets = 1});
        books_.settle(packet.shard, packet.source);
    }

    /// An open claim ends without a packet. No slot names its generation, so no reader ever pins it.
    void give_up(Lane& lane) {
        const PendingPacket& packet = lane.packet;
        ring_.state(packet.shard, packet.chunk).store(word::state(packet.generation), std::memory_order_release);
        ASYSI_TESTPOINT("writer.abort.freed");
        lane.chosen([&](auto& policy) { policy.aborted(packet.chunk); });
        books_.add(packet.account, {.seen = packet.book_seen ? packet.rows : 0, .dropped = packet.rows, .reason = reason::error});
        books_.settle(packet.shard, packet.source);
    }

    /// The next packet of the shard, or the gap in its place, comes to be.
    void append(Lane& lane, u64 slot) {
        const PendingPacket& packet = lane.packet;
        ring_.slot(packet.shard, packet.sequence).store(slot, std::memory_order_release);
        ASYSI_TESTPOINT("writer.slot.stored");
        lane.head = packet.sequence;
        ring_.shard(packet.shard).head.store(packet.sequence, std::memory_order_seq_cst);
        ASYSI_TESTPOINT("writer.head.stored");
        if (ring_.live().waiters.load(std::memory_order_seq_cst) != 0) ring_bell();
    }

    void refuse(Lane& lane) {
        const PendingPacket& packet = lane.packet;
        const u64 seen = packet.book_seen ? packet.rows : 0;
        const auto* const overwrite = std::get_if<Overwrite>(&lane.policy);
        if (overwrite == nullptr) {
            books_.add(packet.account, {.seen = seen, .dropped = packet.rows, .reason = reason::ring_full});
        } else {
            // The sequence advances, so that readers see by the gap what is missing.
            ring_.shard(packet.shard).intent.tombstone.store(1, std::memory_order_release);
            ASYSI_TESTPOINT("writer.tombstone.noted");
            append(lane, word::tombstone | word::slot(packet.sequence, overwrite->newest(lane.chunks)));
            books_.add(packet.account, {.seen = seen, .dropped = packet.rows, .reason = reason::no_chunk});
        }
        books_.settle(packet.shard, packet.source);
    }

    /// One step on an account that has a home is its shard's; before that it is nobody's, and the registrar's.
    void book_at_home(u32 account, const Entry& entry) {
        seat_.expect_open();
        if (books_.home(account) == 0) {
            const std::scoped_lock turn(books_.registrar());
            seat_.expect_open();
            if (books_.home(account) == 0) {
                books_.add(account, entry);
                ASYSI_TESTPOINT("writer.books.stored");
                return;
            }
        }
        const auto turn = seat_.enter(lanes_[books_.home(account) - 1].gate);
        books_.add(account, entry);
        ASYSI_TESTPOINT("writer.books.stored");
    }

    void ring_bell() {
        Live& live = ring_.live();
        live.waiters.exchange(0, std::memory_order_seq_cst);
        ASYSI_TESTPOINT("writer.bell.waiters_cleared");
        live.doorbell.fetch_add(1, std::memory_order_seq_cst);
        ASYSI_TESTPOINT("writer.bell.rung");
        futex_wake(live.doorbell);
        ASYSI_TESTPOINT("writer.bell.woken");
    }

    void commit_claim(u32 shard) {
        Lane& lane = lanes_[shard];
        seat_.expect_open();
        if (!lane.gate.resume()) throw ClosedError("the claim of shard " + std::to_string(shard) + " is over");
        const auto turn = lane.gate.turn();
        ASYSI_TESTPOINT("writer.payload.written");
        finish(lane);
    }
    void abort_claim(u32 shard) {
        Lane& lane = lanes_[shard];
        if (seat_.orphaned() || !lane.gate.resume()) return;
        const auto turn = lane.gate.turn();
        give_up(lane);
    }

    /// Whether a chunk that is claimed anew has left the caches, as far as the system tells their size.
    static bool exceeds_caches(const Geometry& g) {
        const u64 kib = number_of("/sys/devices/system/cpu/cpu0/cache/index3/size").value_or(0);
        return kib != 0 && u64{g.shards} * g.chunks * g.chunk_bytes > kib * 1024 / 2;
    }

    Ring ring_;
    Seat seat_;
    ProducerBooks books_{ring_};
    u32 generation_ = 0;
    bool streams_ = exceeds_caches(ring_.geometry());
    std::vector<Lane> lanes_;
};

inline void Claim::commit() {
    if (writer_ == nullptr) throw ClosedError("the claim is over");
    std::exchange(writer_, nullptr)->commit_claim(shard_);
}

inline void Claim::abort() noexcept {
    if (writer_ != nullptr) std::exchange(writer_, nullptr)->abort_claim(shard_);
}

}  // namespace asysi
