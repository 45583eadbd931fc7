// The one producer of a ring: one thread a shard, at most.
//
// Order of a packet: intent, claim (CAS, acquire), bytes, state (release), slot (release), head (seq_cst: the packet
// exists), account (one step), source, intent closed. Killed anywhere, `take_over` finishes or undoes it.
//
// Shards share nothing but the doorbell: each has its own intent, chunks, slots and accounts. An account belongs to the
// shard of its first packet, and whoever books for it takes that shard's turn.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "asysi/convert.hpp"
#include "asysi/futex.hpp"
#include "asysi/ring.hpp"
#include "asysi/seat.hpp"

namespace asysi {

/// Rows to publish as one packet.
struct Block {
    u32 shard;
    PacketHeader header;
    const RowRecord* records;  // null: zeros
    Rows rows;
    Quantization quantization;
    const float* scales;  // of rows that are int8 already, one a row; null: none
    bool book_seen;
};

/// Where the parts of a packet lie in its chunk.
struct Plan {
    Dtype dtype;
    u64 scale_bytes;
    u64 payload_bytes;
    u64 scales_at;
    u64 payload_at;

    Plan() = default;
    explicit Plan(const Block& block) : dtype(converted(block.rows.dtype, block.quantization)) {
        const bool scaled = dtype == Dtype::int8 && (block.rows.dtype != Dtype::int8 || block.scales != nullptr);
        const u64 count = block.rows.count;
        scale_bytes = scaled ? count * sizeof(float) : 0;
        payload_bytes = count * block.rows.width * item_bytes(dtype);
        scales_at = header_bytes + count * row_bytes;
        payload_at = asysi::payload_at(count, scale_bytes);
    }
    [[nodiscard]] u64 total() const { return payload_at + payload_bytes; }
};

/// What is added to an account in one step.
struct Entry {
    u64 seen = 0;
    u64 published = 0;
    u64 sampled_out = 0;
    u64 packets = 0;
    u64 dropped = 0;
    u32 reason = 0;
};

class Writer;

/// A chunk that its owner fills in place. Goes out of scope without `commit`: aborted, its rows booked as dropped.
class Claim {
public:
    Claim(Claim&& other) noexcept : writer_(std::exchange(other.writer_, nullptr)), shard_(other.shard_), bytes_(other.bytes_), plan_(other.plan_), count_(other.count_) {}
    Claim& operator=(Claim&&) = delete;
    ~Claim() { abort(); }

    /// What goes to the readers: rows x width elements, beginning at a multiple of 64 bytes.
    [[nodiscard]] std::span<std::byte> payload() const { return {bytes_ + plan_.payload_at, plan_.payload_bytes}; }
    /// A record a row; zeros, or what the block had.
    [[nodiscard]] std::span<RowRecord> records() const { return {reinterpret_cast<RowRecord*>(bytes_ + header_bytes), count_}; }
    /// A scale a row of int8; empty for other types.
    [[nodiscard]] std::span<float> scales() const { return {reinterpret_cast<float*>(bytes_ + plan_.scales_at), plan_.scale_bytes / sizeof(float)}; }
    [[nodiscard]] bool open() const { return writer_ != nullptr; }

    /// Publishes the packet. Throws ClosedError when it was committed, aborted, or its writer closed.
    void commit();
    /// Gives the chunk back and books its rows as dropped; again does nothing.
    void abort() noexcept;

private:
    friend class Writer;
    Claim(Writer& writer, u32 shard, std::byte* bytes, const Plan& plan, u64 count)
        : writer_(&writer), shard_(shard), bytes_(bytes), plan_(plan), count_(count) {}

    Writer* writer_;
    u32 shard_;
    std::byte* bytes_;
    Plan plan_;
    u64 count_;
};

class Writer {
public:
    /// Waits up to `patience` for a producer that is alive to leave; then throws BusyError.
    explicit Writer(const std::string& folder, std::chrono::nanoseconds patience = {})
        : ring_(folder, Ring::Role::writer),
          seat_(ring_.file(), control_path(folder), 0, "the producer of the ring in " + folder, patience),
          lanes_(geometry().shards),
          accounts_(geometry().accounts) {
        ASYSI_TESTPOINT("writer.lock.taken");
        take_over();
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
        const std::scoped_lock turn(registrar_);
        if (const auto known = names_.find(name); known != names_.end()) return known->second;
        if (name.empty() || name.size() >= account_name_bytes || name.find('\0') != std::string::npos) {
            throw std::invalid_argument("an account's name has 1 to 191 bytes of UTF-8, " + name + " has " +
                                        std::to_string(name.size()));
        }
        const auto index = registered_.load(std::memory_order_relaxed);
        if (index >= geometry().accounts) {
            throw std::invalid_argument("the ring has room for " + std::to_string(geometry().accounts) + " accounts, " + name +
                                        " would be one more");
        }
        AccountEntry& entry = ring_.account(index);
        std::memset(entry.name, 0, account_name_bytes);
        std::memcpy(entry.name, name.data(), name.size());
        ASYSI_TESTPOINT("writer.account.named");
        ring_.live().accounts.store(index + 1, std::memory_order_release);
        ASYSI_TESTPOINT("writer.account.counted");
        accounts_[index].values = entry.counters.load();
        names_.emplace(name, index);
        registered_.store(index + 1, std::memory_order_release);
        return index;
    }

    /// Packets that `shard` takes before the policy drops any. Never less than it was, but for what is published.
    [[nodiscard]] u64 free(u32 shard) {
        expect_shard(shard);
        Lane& lane = lanes_[shard];
        const auto turn = seat_.enter(lane.gate);
        if (geometry().policy == Policy::overwrite) return geometry().depth();
        collect(lane, shard);
        return lane.free.size();
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
        expect_account(account);
        expect_shard(shard);
        if (entry.reason >= max_reasons) {
            throw std::invalid_argument("reason " + std::to_string(entry.reason) + " is not within 0 to 7");
        }
        if (source == 0) return book_at_home(account, entry);
        const auto turn = seat_.enter(lanes_[shard].gate);
        if (source <= ring_.shard(shard).source.load(std::memory_order_relaxed)) return;
        expect_home(account, shard);
        keep_home(account, shard);
        open_intent({.shard = shard, .sequence = never, .account = account, .rows = 0, .book_seen = false, .source = source});
        add(account, entry);
        ASYSI_TESTPOINT("writer.books.stored");
        settle(shard, source);
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
        const std::scoped_lock names(registrar_);  // what is booked without a shard is booked before the lock is free
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

    /// A packet between its claim and its publication.
    struct Packet {
        u32 shard;
        u32 chunk;
        u64 generation;
        u64 sequence;
        u32 account;
        u64 rows;
        bool book_seen;
        u64 source;
        Plan plan;
    };

    /// What a shard's thread works with. This process's own: what others may scribble over is never read back.
    struct alignas(64) Lane {
        Gate gate;
        u32 next = 0;              // chunk to try first
        u64 head = 0;              // sequence of the newest packet
        Packet packet{};
        std::vector<u64> seen;     // states of all chunks, at an eviction's first look
        // drop_new: every chunk is in one of the three. The last one freed is claimed first: it is still in the cache.
        std::vector<u32> free;
        std::vector<u32> lingering;  // consumed, but pinned when last looked at
        std::vector<bool> listed;    // whether a chunk is in one of those two
        std::vector<u32> unread;     // chunk of each packet after `cursor`, at (sequence - 1) % chunks
        u64 cursor = 0;              // where the reader was when last looked at
    };

    struct alignas(64) Account {
        Versioned<produced::words>::Values values{};
        std::atomic<u32> home{0};  // its shard + 1, 0 before the first packet
    };

    // --- taking over -------------------------------------------------------------------------------------------

    void take_over() {
        Live& live = ring_.live();
        const u32 shards = geometry().shards;
        registered_ = ring_.accounts();
        for (u32 i = 0; i < registered_; ++i) {
            names_.emplace(ring_.account_name(i), i);
            accounts_[i].values = ring_.account(i).counters.load();
            const u32 home = ring_.account(i).shard.load(std::memory_order_relaxed);
            accounts_[i].home = home <= shards ? home : 0;
        }
        for (u32 s = 0; s < shards; ++s) {
            lanes_[s].head = ring_.shard(s).head.load(std::memory_order_acquire);
            if (ring_.shard(s).intent.open.load(std::memory_order_acquire) == 1) resolve(s);
        }
        if (live.writer_state.load(std::memory_order_acquire) == static_cast<u32>(WriterState::attached)) book_owed();
        for (u32 s = 0; s < shards; ++s) {
            free_open_claims(s);
            lanes_[s].next = first_claim(s);
            lanes_[s].seen.resize(geometry().chunks);
            if (keeps_unread()) find_unread(s);
        }
        live.writer.bytes.store(ring_.data().bytes(), std::memory_order_relaxed);
        live.writer.populated.store(static_cast<u32>(ring_.data().populated()), std::memory_order_relaxed);
        live.writer.registered.store(0, std::memory_order_relaxed);
        ASYSI_TESTPOINT("takeover.mapping.noted");
        generation_ = live.generation.load(std::memory_order_relaxed) + 1;
        live.generation.store(generation_, std::memory_order_release);
        ASYSI_TESTPOINT("takeover.generation.stored");
        live.writer_state.store(static_cast<u32>(WriterState::attached), std::memory_order_release);
        ASYSI_TESTPOINT("takeover.state.stored");
    }

    /// Finishes what was committed; books the rest as lost in the crash, or, when the producer can repeat it from its
    /// source, undoes it. Every step may itself be killed and done again.
    void resolve(u32 shard) {
        Intent& intent = ring_.shard(shard).intent;
        const auto read = [](const std::atomic<u64>& value) { return value.load(std::memory_order_relaxed); };
        const u64 named = read(intent.account);
        if (named < registered_) {
            const u32 account = static_cast<u32>(named);
            const u64 source = read(intent.source);
            const u64 rows = read(intent.rows);
            const u64 seen = read(intent.book_seen) != 0 ? rows : 0;
            const bool committed = lanes_[shard].head >= read(intent.sequence);
            const bool booked = ring_.account(account).counters.version.load() != read(intent.version);
            if (!booked && committed && read(intent.tombstone) != 0) {
                add(account, {.seen = seen, .dropped = rows, .reason = reason::no_chunk});
            } else if (!booked && committed) {
                add(account, {.seen = seen, .published = rows, .packets = 1});
            } else if (!booked && source == 0) {
                add(account, {.seen = seen, .dropped = rows, .reason = reason::crash});
            }
            ASYSI_TESTPOINT("takeover.books.stored");
            if (booked || committed) raise_source(shard, source);
            ASYSI_TESTPOINT("takeover.source.raised");
        }
        intent.open.store(0, std::memory_order_release);
        ASYSI_TESTPOINT("takeover.intent.closed");
    }

    /// Rows seen by the dead producer that it had not booked further were under way.
    void book_owed() {
        for (u32 i = 0; i < registered_; ++i) {
            const auto& c = accounts_[i].values;
            u64 settled = c[produced::published] + c[produced::sampled_out];
            for (u32 r = 0; r < max_reasons; ++r) settled += c[produced::dropped + r];
            if (c[produced::seen] <= settled) continue;
            add(i, {.dropped = c[produced::seen] - settled, .reason = reason::crash});
            ASYSI_TESTPOINT("takeover.owed.booked");
        }
    }

    /// And the pins that are no reader's: nobody would ever clear them.
    void free_open_claims(u32 shard) {
        const u64 strays = word::pin_mask & ~((u64{1} << geometry().reader_count()) - 1);
        for (u32 chunk = 0; chunk < geometry().chunks; ++chunk) {
            auto& state = ring_.state(shard, chunk);
            const u64 there = state.load(std::memory_order_acquire);
            if ((there & word::writing) != 0) {
                state.store(word::state(word::generation(there) + 1), std::memory_order_release);
                ASYSI_TESTPOINT("takeover.claim.freed");
            } else if ((there & strays) != 0) {
                state.fetch_and(~strays, std::memory_order_release);
                ASYSI_TESTPOINT("takeover.stray.unpinned");
            }
        }
    }

    /// The chunk after the newest packet's: oldest first, however the last producer ended.
    [[nodiscard]] u32 first_claim(u32 shard) const {
        if (lanes_[shard].head == 0) return 0;
        const u64 newest = ring_.slot(shard, lanes_[shard].head).load(std::memory_order_acquire);
        return (word::slot_chunk(newest) + 1) % geometry().chunks;
    }

    /// Where the unread packets are, as the slots tell; the other chunks are free, or will be.
    void find_unread(u32 shard) {
        Lane& lane = lanes_[shard];
        const u32 chunks = geometry().chunks;
        lane.free.reserve(chunks);
        lane.lingering.reserve(chunks);
        lane.unread.assign(chunks, 0);
        lane.cursor = std::max(cursor(lane, shard), lane.head > chunks ? lane.head - chunks : 0);
        lane.listed.assign(chunks, false);
        std::vector<bool> kept(chunks);
        // Not `<= head`: a head that somebody scribbled over may be the largest number there is.
        for (u64 at = lane.cursor; at != lane.head; ++at) {
            const u32 chunk = word::slot_chunk(ring_.slot(shard, at + 1).load(std::memory_order_acquire)) % chunks;
            lane.unread[at % chunks] = chunk;
            kept[chunk] = true;
        }
        for (u32 chunk = chunks; chunk-- > 0;) {
            if (!kept[chunk]) linger(lane, chunk);
        }
        collect(lane, shard);
    }

    // --- what may be asked ---------------------------------------------------------------------------------------

    void expect_shard(u32 shard) const {
        if (shard < geometry().shards) return;
        throw std::invalid_argument("shard " + std::to_string(shard) + " is not one of " + std::to_string(geometry().shards));
    }
    void expect_account(u32 account) const {
        const u32 known = registered_.load(std::memory_order_acquire);
        if (account < known) return;
        throw std::invalid_argument("account " + std::to_string(account) + " is not one of the " + std::to_string(known) +
                                    " registered");
    }
    void expect_home(u32 account, u32 shard) const {
        const u32 home = accounts_[account].home.load(std::memory_order_acquire);
        if (home == 0 || home == shard + 1) return;
        throw std::invalid_argument("account " + std::to_string(account) + " lives in shard " + std::to_string(home - 1) +
                                    ", not in " + std::to_string(shard) + ": its packets would lose their order");
    }
    void expect_fit(const Block& block, const Plan& plan) const {
        expect_account(block.header.account);
        if (item_bytes(block.rows.dtype) == 0) throw std::invalid_argument("the source has an unknown dtype");
        if (block.quantization == Quantization::fp8 && plan.dtype != Dtype::fp8_e4m3) {
            throw std::invalid_argument("the ring does not convert to fp8");
        }
        if (block.rows.count > geometry().chunk_bytes || plan.total() > geometry().chunk_bytes) {
            throw std::invalid_argument("a packet of " + std::to_string(block.rows.count) + " rows x " +
                                        std::to_string(block.rows.width) + " takes " + std::to_string(plan.total()) +
                                        " bytes, a chunk has " + std::to_string(geometry().chunk_bytes));
        }
        expect_home(block.header.account, block.shard);
    }

    // --- one packet ----------------------------------------------------------------------------------------------

    /// What is about to be booked; see Intent.
    struct Plot {
        u32 shard;
        u64 sequence;
        u32 account;
        u64 rows;
        bool book_seen;
        u64 source;
    };
    static constexpr u64 never = ~u64{0};  // a sequence that no head reaches: nothing is to be published

    void open_intent(const Plot& plot) {
        Intent& intent = ring_.shard(plot.shard).intent;
        // The compiler must not move these before the last intent was closed; a kill sees program order.
        std::atomic_signal_fence(std::memory_order_seq_cst);
        const auto note = [](std::atomic<u64>& field, u64 value) { field.store(value, std::memory_order_relaxed); };
        note(intent.sequence, plot.sequence);
        note(intent.account, plot.account);
        note(intent.version, ring_.account(plot.account).counters.version.load(std::memory_order_relaxed));
        note(intent.rows, plot.rows);
        note(intent.book_seen, plot.book_seen ? 1 : 0);
        note(intent.source, plot.source);
        note(intent.tombstone, 0);
        ASYSI_TESTPOINT("writer.intent.noted");
        intent.open.store(1, std::memory_order_release);
        ASYSI_TESTPOINT("writer.intent.opened");
    }

    /// An account's packets stay in the shard of its first.
    void keep_home(u32 account, u32 shard) {
        if (accounts_[account].home.load(std::memory_order_relaxed) != 0) return;
        const std::scoped_lock turn(registrar_);
        expect_home(account, shard);  // another shard's thread may have been first
        ring_.account(account).shard.store(shard + 1, std::memory_order_relaxed);
        ASYSI_TESTPOINT("writer.home.bound");
        accounts_[account].home.store(shard + 1, std::memory_order_release);
    }

    /// Intent and claim; false when there was no chunk, and that is booked.
    bool begin(Lane& lane, const Block& block, const Plan& plan) {
        const u32 account = block.header.account;
        keep_home(account, block.shard);
        lane.packet = {.shard = block.shard, .chunk = 0, .generation = 0, .sequence = lane.head + 1, .account = account,
                       .rows = block.rows.count, .book_seen = block.book_seen, .source = block.header.source, .plan = plan};
        open_intent({.shard = block.shard, .sequence = lane.head + 1, .account = account, .rows = block.rows.count,
                     .book_seen = block.book_seen, .source = block.header.source});
        if (find_chunk(lane)) return true;
        refuse(lane);
        return false;
    }

    [[nodiscard]] bool keeps_unread() const { return geometry().policy == Policy::drop_new; }

    /// Claims a chunk that nobody has pinned and, under drop_new, that holds nothing unread.
    bool find_chunk(Lane& lane) {
        const Geometry& g = geometry();
        const u32 shard = lane.packet.shard;
        const u64 allowed = u64{g.reader_count()} * g.pins;
        if (keeps_unread()) {
            if (take_free(lane)) return true;
            // More linger than the reader may hold: it holds too many.
            if (lane.lingering.size() <= allowed) return false;
            evict(shard);
            return take_free(lane);
        }
        if (scan(lane, allowed)) return true;
        evict(shard);
        return scan(lane, g.chunks);
    }

    /// Makes `chunk` the packet's, if it is nobody's.
    bool take(Lane& lane, u32 chunk) {
        auto& state = ring_.state(lane.packet.shard, chunk);
        u64 there = state.load(std::memory_order_relaxed);
        const u64 generation = (word::generation(there) + 1) & word::generation_mask;
        if ((there & word::pin_mask) != 0 ||
            !state.compare_exchange_strong(there, word::state(generation) | word::writing, std::memory_order_acquire,
                                           std::memory_order_relaxed)) {
            return false;
        }
        ASYSI_TESTPOINT("writer.claim.w_set");
        lane.packet.chunk = chunk;
        lane.packet.generation = generation;
        return true;
    }

    /// overwrite: goes round once, or until more than `patience` chunks were pinned.
    bool scan(Lane& lane, u64 patience) {
        const u32 chunks = geometry().chunks;
        u32 chunk = lane.next;
        for (u32 tried = 0; tried < chunks && tried <= patience; ++tried, chunk = chunk + 1 < chunks ? chunk + 1 : 0) {
            if (take(lane, chunk)) return true;
        }
        return false;
    }

    /// drop_new: takes what the reader has done with; nothing it has not.
    bool take_free(Lane& lane) {
        if (lane.free.empty()) collect(lane, lane.packet.shard);
        while (!lane.free.empty()) {
            const u32 chunk = lane.free.back();
            lane.free.pop_back();
            if (take(lane, chunk)) {
                lane.listed[chunk] = false;
                return true;
            }
            lane.lingering.push_back(chunk);
        }
        return false;
    }

    /// drop_new: the chunk will be free. Two slots that somebody scribbled over may name one chunk: it is listed once.
    void linger(Lane& lane, u32 chunk) {
        if (lane.listed[chunk]) return;
        lane.listed[chunk] = true;
        lane.lingering.push_back(chunk);
    }

    /// drop_new: finds what has become free. A consumed packet is never pinned anew, so what is free stays so.
    void collect(Lane& lane, u32 shard) {
        const u64 reached = cursor(lane, shard);
        while (lane.cursor < reached) linger(lane, lane.unread[lane.cursor++ % geometry().chunks]);
        const auto is_free = [&](u32 chunk) {
            return (ring_.state(shard, chunk).load(std::memory_order_relaxed) & word::pin_mask) == 0;
        };
        const auto rest = std::partition(lane.lingering.begin(), lane.lingering.end(), [&](u32 c) { return !is_free(c); });
        lane.free.insert(lane.free.end(), rest, lane.lingering.end());
        lane.lingering.erase(rest, lane.lingering.end());
    }

    /// How far the one reader of a drop_new ring has come. It is not trusted: beyond the head means at the head.
    [[nodiscard]] u64 cursor(const Lane& lane, u32 shard) const {
        return std::min(ring_.cursor(0, shard).load(std::memory_order_acquire), lane.head);
    }

    /// Takes all pins in `shard` from readers that hold more than they may.
    void evict(u32 shard) {
        const u32 readers = geometry().reader_count();
        std::array<u32, max_readers> held{};
        std::array<u32, max_readers> era{};
        // Two looks: a pin that stands in both stood between them, and a reader pins a packet once an epoch. One look would
        // count a pin that moves from a chunk seen to a chunk to be seen twice, and evict a reader within its rights.
        for (u32 r = 0; r < readers; ++r) era[r] = ring_.reader(r).epoch.load(std::memory_order_seq_cst);
        Lane& lane = lanes_[shard];
        const auto look = [&](u32 chunk) { return ring_.state(shard, chunk).load(std::memory_order_seq_cst); };
        for (u32 chunk = 0; chunk < geometry().chunks; ++chunk) lane.seen[chunk] = look(chunk);
        for (u32 chunk = 0; chunk < geometry().chunks; ++chunk) {
            const u64 there = look(chunk);
            const u64 stood = word::generation(there) == word::generation(lane.seen[chunk]) ? there & lane.seen[chunk] : 0;
            for (u32 r = 0; r < max_readers; ++r) held[r] += (stood >> r) & 1;
        }
        for (u32 r = 0; r < max_readers; ++r) {
            if (held[r] <= geometry().pins) continue;
            if (r < readers && !ring_.reader(r).epoch.compare_exchange_strong(era[r], era[r] + 1)) continue;
            ASYSI_TESTPOINT("writer.evict.epoch");
            for (u32 chunk = 0; chunk < geometry().chunks; ++chunk) {
                ring_.state(shard, chunk).fetch_and(~(u64{1} << r));
                ASYSI_TESTPOINT("writer.evict.unpinned");
            }
        }
    }

    /// Header and records; the padding before the payload is zeros, so that a packet's bytes are its own.
    void write_head(Lane& lane, const Block& block) {
        const Packet& packet = lane.packet;
        const Plan& plan = packet.plan;
        std::byte* const chunk = ring_.chunk(packet.shard, packet.chunk);
        PacketHeader header = block.header;
        header.magic = packet_magic;
        header.version = packet_version;
        header.header_bytes = static_cast<u16>(header_bytes);
        header.sequence = packet.sequence;
        header.rows_before = accounts_[packet.account].values[produced::published];
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
        const Packet& packet = lane.packet;
        ring_.state(packet.shard, packet.chunk).store(word::state(packet.generation), std::memory_order_release);
        ASYSI_TESTPOINT("writer.state.published");
        lane.next = packet.chunk + 1 < geometry().chunks ? packet.chunk + 1 : 0;
        if (keeps_unread()) lane.unread[(packet.sequence - 1) % geometry().chunks] = packet.chunk;
        append(lane, word::slot(packet.generation, packet.chunk));
        add(packet.account, {.seen = packet.book_seen ? packet.rows : 0, .published = packet.rows, .packets = 1});
        ASYSI_TESTPOINT("writer.books.stored");
        settle(packet.shard, packet.source);
    }

    /// An open claim ends without a packet. No slot names its generation, so no reader ever pins it.
    void give_up(Lane& lane) {
        const Packet& packet = lane.packet;
        ring_.state(packet.shard, packet.chunk).store(word::state(packet.generation), std::memory_order_release);
        ASYSI_TESTPOINT("writer.abort.freed");
        if (keeps_unread()) linger(lane, packet.chunk);
        add(packet.account, {.seen = packet.book_seen ? packet.rows : 0, .dropped = packet.rows, .reason = reason::error});
        ASYSI_TESTPOINT("writer.books.stored");
        settle(packet.shard, packet.source);
    }

    /// The next packet of the shard, or the gap in its place, comes to be.
    void append(Lane& lane, u64 slot) {
        const Packet& packet = lane.packet;
        ring_.slot(packet.shard, packet.sequence).store(slot, std::memory_order_release);
        ASYSI_TESTPOINT("writer.slot.stored");
        lane.head = packet.sequence;
        ring_.shard(packet.shard).head.store(packet.sequence, std::memory_order_seq_cst);
        ASYSI_TESTPOINT("writer.head.stored");
        if (ring_.live().waiters.load(std::memory_order_seq_cst) != 0) ring_bell();
    }

    void refuse(Lane& lane) {
        const Packet& packet = lane.packet;
        const u64 seen = packet.book_seen ? packet.rows : 0;
        if (geometry().policy == Policy::drop_new) {
            add(packet.account, {.seen = seen, .dropped = packet.rows, .reason = reason::ring_full});
        } else {
            // The sequence advances, so that readers see by the gap what is missing.
            ring_.shard(packet.shard).intent.tombstone.store(1, std::memory_order_release);
            ASYSI_TESTPOINT("writer.tombstone.noted");
            const u32 before = (lane.next + geometry().chunks - 1) % geometry().chunks;
            append(lane, word::tombstone | word::slot(packet.sequence, before));
            add(packet.account, {.seen = seen, .dropped = packet.rows, .reason = reason::no_chunk});
        }
        ASYSI_TESTPOINT("writer.books.stored");
        settle(packet.shard, packet.source);
    }

    void settle(u32 shard, u64 source) {
        raise_source(shard, source);
        ring_.shard(shard).intent.open.store(0, std::memory_order_release);
        ASYSI_TESTPOINT("writer.intent.closed");
    }

    void raise_source(u32 shard, u64 source) {
        if (source == 0) return;
        auto& mark = ring_.shard(shard).source;
        if (source > mark.load(std::memory_order_relaxed)) mark.store(source, std::memory_order_release);
        ASYSI_TESTPOINT("writer.source.raised");
    }

    /// One step on an account that has a home is its shard's; before that it is nobody's, and the registrar's.
    void book_at_home(u32 account, const Entry& entry) {
        seat_.expect_open();
        if (accounts_[account].home.load(std::memory_order_acquire) == 0) {
            const std::scoped_lock turn(registrar_);
            seat_.expect_open();
            if (accounts_[account].home.load(std::memory_order_relaxed) == 0) {
                add(account, entry);
                ASYSI_TESTPOINT("writer.books.stored");
                return;
            }
        }
        const auto turn = seat_.enter(lanes_[accounts_[account].home.load(std::memory_order_relaxed) - 1].gate);
        add(account, entry);
        ASYSI_TESTPOINT("writer.books.stored");
    }

    void add(u32 account, const Entry& entry) {
        auto& c = accounts_[account].values;
        c[produced::seen] += entry.seen;
        c[produced::published] += entry.published;
        c[produced::sampled_out] += entry.sampled_out;
        c[produced::packets] += entry.packets;
        c[produced::dropped + entry.reason] += entry.dropped;
        ring_.account(account).counters.store(c);
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
    std::mutex registrar_;  // of names and homes: never on the way of a packet, but of an account's first
    u32 generation_ = 0;
    bool streams_ = exceeds_caches(ring_.geometry());
    std::atomic<u32> registered_{0};
    std::unordered_map<std::string, u32> names_;
    std::vector<Lane> lanes_;
    std::vector<Account> accounts_;
};

inline void Claim::commit() {
    if (writer_ == nullptr) throw ClosedError("the claim is over");
    std::exchange(writer_, nullptr)->commit_claim(shard_);
}

inline void Claim::abort() noexcept {
    if (writer_ != nullptr) std::exchange(writer_, nullptr)->abort_claim(shard_);
}

}  // namespace asysi
