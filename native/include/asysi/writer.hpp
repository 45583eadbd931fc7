// The single producer of a ring, with at most one thread per shard.
//
// Sequence per packet: intent, chunk taken (CAS, acquire), bytes, state (release), slot (release), head (seq_cst: the packet
// exists), account (one step), source, intent closed. After a kill at any point, the next `Takeover` completes or undoes it.
//
// A claim splits this into two turns. Claim: chunk taken, record opened, header. Commit: intent, which names the record;
// sequence and rows_before; then as above, with the record closed before the intent. In between, any number of other
// packets can be claimed and committed, by any thread. An aborted claim takes no sequence, so that it leaves no gap.
//
// Shards only share the doorbell: each has its own intent, chunks, slots and accounts (books.hpp).
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "asysi/books.hpp"
#include "asysi/claim.hpp"
#include "asysi/convert.hpp"
#include "asysi/convert_pool.hpp"
#include "asysi/drop_new.hpp"
#include "asysi/futex.hpp"
#include "asysi/overwrite.hpp"
#include "asysi/ring.hpp"
#include "asysi/seat.hpp"
#include "asysi/takeover.hpp"

namespace asysi {

class Writer {
    /// State of a shard's thread.
    struct alignas(64) Lane {
        /// Calls `act` with the ring's policy.
        template <typename Act>
        decltype(auto) chosen(const Act& act) {
            return std::visit(act, policy);
        }
        void begin(const Ring& ring, u32 shard) {
            head = ring.shard(shard).head.load(std::memory_order_acquire);
            chunks = Chunks(ring, shard);
            claims.resize(ring.geometry().chunks);
            if (ring.geometry().policy == Policy::drop_new) policy.emplace<DropNew>();
            chosen([&](auto& one) { one.begin(chunks, head); });
        }

        Gate gate;
        u64 head = 0;  // sequence of the newest packet
        Chunks chunks;
        std::vector<PendingPacket> claims;  // by chunk; open if `claimed`
        std::variant<Overwrite, DropNew> policy;
    };

public:
    /// Waits up to `patience` for a live producer to detach, then throws BusyError.
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

    /// Publishes whether the data is registered with an accelerator's driver, for monitoring.
    void note_registered(bool registered) {
        if (!registered && seat_.closed()) return;  // whoever comes next says what it has itself
        seat_.expect_open();
        ring_.live().writer.registered.store(registered ? 1 : 0, std::memory_order_relaxed);
    }

    /// Lets `threads` threads convert what is published from here on, the caller's among them. Before the first packet.
    void convert_with(unsigned threads) {
        seat_.expect_open();
        converters_ = threads > 1 ? std::make_unique<ConvertPool>(threads) : nullptr;
    }

    /// Index of the account `name`; registers it if it is new.
    u32 account(const std::string& name) {
        seat_.expect_open();
        return books_.account(name);
    }

    /// Number of packets that `shard` accepts before the policy drops one. Decreases only by publishing.
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

    /// Values of an account outside their channels' ranges that this writer converted to int8 by channel.
    [[nodiscard]] u64 saturated(u32 account) {
        books_.expect_account(account);
        const u32 home = books_.home(account);
        if (home == 0) return 0;
        const auto turn = seat_.enter(lanes_[home - 1].gate);
        return saturated_[account];
    }

    /// Publishes `block`; false, the rows booked as dropped, when it had to go. An empty block is not a packet.
    ///
    /// Throws std::invalid_argument, before counting anything, if the block is not a valid packet for this ring.
    /// Threads on one shard take turns; throws BusyError if another one holds it for more than a second.
    bool publish(const Block& block) {
        expect_shard(block.shard);
        Lane& lane = lanes_[block.shard];
        const auto turn = seat_.enter(lane.gate);
        const Plan plan(block);
        expect_fit(block, plan);
        if (plan.by_channel && block.table == nullptr) throw std::invalid_argument("int8 by channel needs a table of channels");
        if (block.rows.count == 0) return true;
        PendingPacket packet = pending(lane, block, plan);
        open_intent(packet);
        if (!take_chunk(lane, packet)) return refuse(lane, packet), false;
        write_head(packet, block);
        write_payload(packet, block);
        finish(lane, packet);
        return true;
    }

    /// Claims a chunk for `block`, whose rows are described but not read: writes header and records, the caller writes the
    /// payload. Returns empty, with the rows counted as dropped, if no chunk is available. Throws like `publish`.
    [[nodiscard]] std::optional<Claim> claim(const Block& block) {
        expect_shard(block.shard);
        Lane& lane = lanes_[block.shard];
        const auto turn = seat_.enter(lane.gate);
        expect_claimable(block, block.shard);
        return claim_chunk(lane, block);
    }

    /// Claims a chunk for each of `blocks`, all in one shard. The chunks are adjacent if enough are free: they are then
    /// `chunk_bytes` apart, and a single strided copy can fill them all. Otherwise it takes other chunks and counts this in
    /// `scattered`. Appends the claims to `claims`, in the order of the blocks, and returns their number; the rows of the
    /// remaining blocks count as dropped.
    ///
    /// Throws like `publish`, before anything is claimed.
    std::size_t claim(std::span<const Block> blocks, std::vector<Claim>& claims) {
        if (blocks.empty()) return 0;
        const u32 shard = blocks.front().shard;
        expect_shard(shard);
        Lane& lane = lanes_[shard];
        const auto turn = seat_.enter(lane.gate);
        for (const Block& block : blocks) expect_claimable(block, shard);
        claims.reserve(claims.size() + blocks.size());  // before claiming a chunk, as it may throw
        const std::size_t first = claims.size();
        if (blocks.size() <= geometry().chunks) {
            lane.chosen([&](auto& policy) { policy.line_up(lane.chunks, lane.head, static_cast<u32>(blocks.size())); });
        }
        for (std::size_t i = 0; i < blocks.size(); ++i) {
            if (claims.size() < first + i) {
                PendingPacket packet = pending(lane, blocks[i], Plan(blocks[i]));
                open_intent(packet);
                refuse(lane, packet);
            } else if (auto claim = claim_chunk(lane, blocks[i])) {
                claims.push_back(std::move(*claim));
            }
        }
        if (!neighbours(std::span(claims).subspan(first))) ring_.shard(shard).scattered.fetch_add(1, std::memory_order_relaxed);
        return claims.size() - first;
    }

    /// Number of multi-chunk claims whose chunks were not adjacent, since the ring was created.
    [[nodiscard]] u64 scattered(u32 shard) const {
        seat_.expect_open();
        expect_shard(shard);
        return ring_.shard(shard).scattered.load(std::memory_order_relaxed);
    }

    /// Counts rows without a packet, all numbers in one step. With a source, only if it is above the shard's mark, which is
    /// raised in the same step, so that a producer that repeats the call counts the rows once.
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

    /// Releases the lock; with a state, signals the end of the stream to the readers. Aborts open claims.
    void close(std::optional<WriterState> state) {
        if (seat_.orphaned() || !seat_.close()) return;
        for (Lane& lane : lanes_) {
            try {
                // Running operations complete; claims that they open meanwhile are aborted like the others.
                const auto turn = lane.gate.enter();
                for (PendingPacket& packet : lane.claims) {
                    if (packet.claimed) give_up(lane, packet);
                }
            } catch (const BusyError&) {
                continue;  // blocked for a second: the next producer resolves what is left open
            }
        }
        const std::scoped_lock names(books_.registrar());  // counting without a shard completes before the lock is released
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

    // --- argument checks -----------------------------------------------------------------------------------------

    void expect_shard(u32 shard) const {
        if (shard < geometry().shards) return;
        throw std::invalid_argument("shard " + std::to_string(shard) + " is not one of " + std::to_string(geometry().shards));
    }
    void expect_claimable(const Block& block, u32 shard) const {
        if (block.shard != shard) throw std::invalid_argument("what is claimed at once is of one shard");
        expect_fit(block, Plan(block));
        if (block.rows.count == 0) throw std::invalid_argument("a claim is for one row at least");
    }
    void expect_fit(const Block& block, const Plan& plan) const {
        books_.expect_account(block.header.account);
        if (item_bytes(block.rows.dtype) == 0) throw std::invalid_argument("the source has an unknown dtype");
        if (block.rows.count > geometry().chunk_bytes || plan.total() > geometry().chunk_bytes) {
            throw std::invalid_argument("a packet of " + std::to_string(block.rows.count) + " rows x " +
                                        std::to_string(block.rows.width) + " takes " + std::to_string(plan.total()) +
                                        " bytes, a chunk has " + std::to_string(geometry().chunk_bytes));
        }
        books_.expect_home(block.header.account, block.shard);
    }

    // --- one packet ----------------------------------------------------------------------------------------------

    [[nodiscard]] PendingPacket pending(const Lane& lane, const Block& block, const Plan& plan) {
        const u32 account = block.header.account;
        books_.keep_home(account, block.shard);
        return {.shard = block.shard, .chunk = 0, .generation = 0, .sequence = lane.head + 1, .account = account,
                .rows = block.rows.count, .book_seen = block.book_seen, .source = block.header.source, .plan = plan};
    }

    void open_intent(const PendingPacket& packet, u64 sequence) {
        books_.open_intent({.shard = packet.shard, .sequence = sequence, .account = packet.account, .rows = packet.rows,
                            .book_seen = packet.book_seen, .source = packet.source, .claim = ended_claim(packet)});
    }
    void open_intent(const PendingPacket& packet) { open_intent(packet, packet.sequence); }

    /// Claim as stored in an intent: chunk + 1; 0 for a packet without a claim.
    [[nodiscard]] static u32 ended_claim(const PendingPacket& packet) { return packet.claimed ? packet.chunk + 1 : 0; }

    static bool take_chunk(Lane& lane, PendingPacket& packet) {
        return lane.chosen([&](auto& policy) { return policy.claim(lane.chunks, packet, lane.head); });
    }

    /// Returns empty, with the rows counted as dropped, if no chunk is available.
    [[nodiscard]] std::optional<Claim> claim_chunk(Lane& lane, const Block& block) {
        PendingPacket packet = pending(lane, block, Plan(block));
        if (!take_chunk(lane, packet)) {
            open_intent(packet);
            refuse(lane, packet);
            return std::nullopt;
        }
        books_.open_claim(packet.shard, packet.chunk, packet.account, packet.rows, packet.book_seen, packet.source);
        packet.claimed = true;
        lane.claims[packet.chunk] = packet;
        write_head(packet, block);
        return Claim(*this, packet, ring_.chunk(packet.shard, packet.chunk), geometry().chunk_bytes);
    }

    /// Writes header and records; zeros the padding before the payload, so that it contains no stale bytes.
    void write_head(const PendingPacket& packet, const Block& block) {
        const Plan& plan = packet.plan;
        std::byte* const chunk = ring_.chunk(packet.shard, packet.chunk);
        PacketHeader header = block.header;
        header.magic = packet_magic;
        header.header_bytes = static_cast<u16>(header_bytes);
        header.sequence = packet.sequence;
        header.rows_before = books_.of(packet.account)[produced::published];
        header.generation = generation_;
        header.rows = static_cast<u32>(packet.rows);
        header.dtype = static_cast<u16>(plan.dtype);
        header.payload_bytes = plan.payload_bytes;
        header.scale_bytes = static_cast<u32>(plan.scale_bytes);
        if (plan.by_channel) header.quantization = static_cast<u16>(Quantization::int8_channel);
        else if (plan.dtype != block.rows.dtype) header.quantization = static_cast<u16>(block.quantization);
        header.version = least_version(plan.dtype, static_cast<Quantization>(header.quantization), plan.scored);
        std::memcpy(chunk, &header, sizeof header);
        ASYSI_TESTPOINT("writer.header.written");
        if (block.records != nullptr) {
            std::memcpy(chunk + header_bytes, block.records, packet.rows * row_bytes);
            std::memset(chunk + plan.scales_at, 0, plan.payload_at - plan.scales_at);
        } else {
            std::memset(chunk + header_bytes, 0, plan.payload_at - header_bytes);
        }
        const float* const scales = plan.by_channel ? block.table : block.rows.dtype == plan.dtype ? block.scales : nullptr;
        if (scales != nullptr && plan.scale_bytes != 0) std::memcpy(chunk + plan.scales_at, scales, plan.scale_bytes);
        ASYSI_TESTPOINT("writer.records.written");
    }

    void write_payload(const PendingPacket& packet, const Block& block) {
        const Plan& plan = packet.plan;
        std::byte* const chunk = ring_.chunk(packet.shard, packet.chunk);
        auto* const out = chunk + plan.payload_at;
        const Beside beside{.scales = reinterpret_cast<float*>(chunk + plan.scales_at),
                            .records = reinterpret_cast<RowRecord*>(chunk + header_bytes),
                            .table = block.table};
        saturated_[packet.account] += converters_ ? converters_->convert(out, beside, block.rows, block.quantization, streams_)
                                                  : convert(out, beside, block.rows, block.quantization, streams_);
        ASYSI_TESTPOINT("writer.payload.written");
    }

    /// Publishes the packet and counts its rows.
    void finish(Lane& lane, const PendingPacket& packet) {
        ring_.state(packet.shard, packet.chunk).store(word::state(packet.generation), std::memory_order_release);
        ASYSI_TESTPOINT("writer.state.published");
        lane.chosen([&](auto& policy) { policy.published(lane.chunks, packet); });
        append(lane, packet, word::slot(packet.generation, packet.chunk));
        books_.add(packet.account, {.seen = packet.book_seen ? packet.rows : 0, .published = packet.rows, .packets = 1});
        books_.settle(packet.shard, packet.source, ended_claim(packet));
    }

    /// Ends an open claim without a packet. No slot refers to its generation, so no reader ever pins it.
    void give_up(Lane& lane, PendingPacket& packet) {
        open_intent(packet, ProducerBooks::never);
        ring_.state(packet.shard, packet.chunk).store(word::state(packet.generation), std::memory_order_release);
        ASYSI_TESTPOINT("writer.abort.freed");
        lane.chosen([&](auto& policy) { policy.aborted(lane.chunks, packet.chunk); });
        books_.add(packet.account, {.seen = packet.book_seen ? packet.rows : 0, .dropped = packet.rows, .reason = reason::error});
        books_.settle(packet.shard, packet.source, ended_claim(packet));
        packet.claimed = false;
    }

    /// Appends the shard's next packet, or a gap in its place.
    void append(Lane& lane, const PendingPacket& packet, u64 slot) {
        ring_.slot(packet.shard, packet.sequence).store(slot, std::memory_order_release);
        ASYSI_TESTPOINT("writer.slot.stored");
        lane.head = packet.sequence;
        ring_.shard(packet.shard).head.store(packet.sequence, std::memory_order_seq_cst);
        ASYSI_TESTPOINT("writer.head.stored");
        if (ring_.live().waiters.load(std::memory_order_seq_cst) != 0) ring_bell();
    }

    void refuse(Lane& lane, const PendingPacket& packet) {
        const u64 seen = packet.book_seen ? packet.rows : 0;
        const auto* const overwrite = std::get_if<Overwrite>(&lane.policy);
        if (overwrite == nullptr) {
            books_.add(packet.account, {.seen = seen, .dropped = packet.rows, .reason = reason::ring_full});
        } else {
            // The sequence advances, so that readers detect missing packets by the gap.
            ring_.shard(packet.shard).intent.tombstone.store(1, std::memory_order_release);
            ASYSI_TESTPOINT("writer.tombstone.noted");
            append(lane, packet, word::tombstone | word::slot(packet.sequence, overwrite->newest()));
            books_.add(packet.account, {.seen = seen, .dropped = packet.rows, .reason = reason::no_chunk});
        }
        books_.settle(packet.shard, packet.source);
    }

    /// Updates an account under its home shard's gate, or under the registrar if it has no home yet.
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

    void commit_claim(const Claim& claim) {
        Lane& lane = lanes_[claim.shard_];
        const auto turn = seat_.enter(lane.gate);
        PendingPacket* const packet = pending(lane, claim);
        if (packet == nullptr) throw ClosedError("the claim of shard " + std::to_string(claim.shard_) + " is over");
        ASYSI_TESTPOINT("writer.payload.written");
        packet->sequence = lane.head + 1;
        open_intent(*packet);
        write_number(*packet);
        finish(lane, *packet);
        packet->claimed = false;
    }
    void abort_claim(const Claim& claim) {
        Lane& lane = lanes_[claim.shard_];
        const auto turn = seat_.enter(lane.gate);
        if (PendingPacket* const packet = pending(lane, claim)) give_up(lane, *packet);
    }
    [[nodiscard]] static bool neighbours(std::span<const Claim> claims) {
        const auto apart = [](const Claim& one, const Claim& next) { return next.chunk() != one.chunk() + 1; };
        return std::adjacent_find(claims.begin(), claims.end(), apart) == claims.end();
    }

    /// The pending packet of an open claim; null if the claim has ended.
    [[nodiscard]] static PendingPacket* pending(Lane& lane, const Claim& claim) {
        PendingPacket& packet = lane.claims[claim.chunk_];
        return packet.claimed ? &packet : nullptr;
    }

    /// Writes the header fields that are only known at commit.
    void write_number(const PendingPacket& packet) {
        std::byte* const chunk = ring_.chunk(packet.shard, packet.chunk);
        const u64 rows_before = books_.of(packet.account)[produced::published];
        std::memcpy(chunk + offsetof(PacketHeader, sequence), &packet.sequence, sizeof packet.sequence);
        std::memcpy(chunk + offsetof(PacketHeader, rows_before), &rows_before, sizeof rows_before);
        ASYSI_TESTPOINT("writer.claim.numbered");
    }

    /// Whether a reused chunk is no longer in the caches, if the system reports their size.
    static bool exceeds_caches(const Geometry& g) {
        const u64 kib = number_of("/sys/devices/system/cpu/cpu0/cache/index3/size").value_or(0);
        return kib != 0 && u64{g.shards} * g.chunks * g.chunk_bytes > kib * 1024 / 2;
    }

    Ring ring_;
    Seat seat_;
    ProducerBooks books_{ring_};
    u32 generation_ = 0;
    bool streams_ = exceeds_caches(ring_.geometry());
    std::unique_ptr<ConvertPool> converters_;  // none: the caller alone
    std::vector<Lane> lanes_;
    std::vector<u64> saturated_ = std::vector<u64>(ring_.geometry().accounts);  // by account, each its shard's
};

inline void Claim::commit() {
    if (writer_ == nullptr) throw ClosedError("the claim is over");
    writer_->commit_claim(*this);
    writer_ = nullptr;
}

inline void Claim::abort() noexcept {
    if (writer_ == nullptr) return;
    try {
        std::exchange(writer_, nullptr)->abort_claim(*this);
    } catch (const RingError&) {
        return;  // busy: left to close(); closed: already aborted; forked child: it belongs to the parent
    }
}

}  // namespace asysi
