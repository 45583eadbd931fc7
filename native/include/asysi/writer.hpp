// The one producer of a ring.
//
// Order of a packet: intent, claim (CAS, acquire), bytes, state (release), slot (release), head (seq_cst: the packet
// exists), account (one step), source, intent closed. Killed anywhere, `take_over` finishes or undoes it.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "asysi/convert.hpp"
#include "asysi/futex.hpp"
#include "asysi/lock.hpp"
#include "asysi/ring.hpp"

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

    explicit Plan(const Block& block) : dtype(converted(block.rows.dtype, block.quantization)) {
        const bool scaled = dtype == Dtype::int8 && (block.rows.dtype != Dtype::int8 || block.scales != nullptr);
        scale_bytes = scaled ? block.rows.count * sizeof(float) : 0;
        payload_bytes = u64{block.rows.count} * block.rows.width * item_bytes(dtype);
    }
    [[nodiscard]] u64 scales_at(u64 count) const { return header_bytes + count * row_bytes; }
    [[nodiscard]] u64 total(u64 count) const { return scales_at(count) + scale_bytes + payload_bytes; }
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

class Writer {
public:
    explicit Writer(const std::string& folder) : ring_(folder, Ring::Role::writer) {
        if (!lock_.take(control_path(folder), 0)) {
            throw BusyError("the ring in " + folder + " has a producer already, and it is alive");
        }
        take_over();
    }
    ~Writer() { close(std::nullopt); }
    Writer(const Writer&) = delete;
    Writer& operator=(const Writer&) = delete;

    [[nodiscard]] const Geometry& geometry() const { return ring_.geometry(); }
    [[nodiscard]] u32 generation() const { return generation_; }

    /// Index of the account `name`, which is registered when new.
    u32 account(const std::string& name) {
        const auto turn = enter();
        if (const auto known = names_.find(name); known != names_.end()) return known->second;
        if (name.empty() || name.size() >= account_name_bytes || name.find('\0') != std::string::npos) {
            throw std::invalid_argument("an account's name has 1 to 191 bytes of UTF-8, " + name + " has " +
                                        std::to_string(name.size()));
        }
        const auto index = static_cast<u32>(counters_.size());
        if (index >= geometry().accounts) {
            throw std::invalid_argument("the ring has room for " + std::to_string(geometry().accounts) + " accounts, " + name +
                                        " would be one more");
        }
        AccountEntry& entry = ring_.account(index);
        std::memset(entry.name, 0, account_name_bytes);
        std::memcpy(entry.name, name.data(), name.size());
        ring_.live().accounts.store(index + 1, std::memory_order_release);
        counters_.push_back(entry.counters.load());
        shard_of_.push_back(0);
        names_.emplace(name, index);
        return index;
    }

    /// Packets that `shard` takes before the policy drops any.
    [[nodiscard]] u64 free(u32 shard) const {
        expect_open();
        expect_shard(shard);
        if (geometry().policy == Policy::overwrite) return geometry().depth();
        return geometry().depth() - waiting(shard);
    }
    [[nodiscard]] u64 source(u32 shard) const {
        expect_open();
        expect_shard(shard);
        return ring_.shard(shard).source.load(std::memory_order_relaxed);
    }
    [[nodiscard]] u64 head(u32 shard) const {
        expect_open();
        expect_shard(shard);
        return ring_.shard(shard).head.load(std::memory_order_relaxed);
    }

    /// Publishes `block`; false, the rows booked as dropped, when it had to go. An empty block is no packet.
    ///
    /// Throws std::invalid_argument, before anything is booked, when the block cannot be a packet of this ring.
    bool publish(const Block& block) {
        const auto turn = enter();
        const Plan plan(block);
        expect_fit(block, plan);
        if (block.rows.count == 0) return true;
        const u64 sequence = heads_[block.shard] + 1;
        const u32 account = block.header.account;
        keep_home(account, block.shard);
        open_intent({.shard = block.shard, .sequence = sequence, .account = account, .rows = block.rows.count,
                     .book_seen = block.book_seen, .source = block.header.source});
        const auto claim = this->claim(block.shard);
        if (!claim) {
            refuse(block, sequence);
            return false;
        }
        std::byte* const chunk = ring_.chunk(block.shard, claim->chunk);
        write(chunk, block, plan, sequence);
        ring_.state(block.shard, claim->chunk).store(word::state(claim->generation), std::memory_order_release);
        commit(block.shard, sequence, word::slot(claim->generation, claim->chunk));
        next_[block.shard] = (claim->chunk + 1) % geometry().chunks;
        const u64 count = block.rows.count;
        add(account, {.seen = block.book_seen ? count : 0, .published = count, .packets = 1});
        settle(block.shard, block.header.source);
        return true;
    }

    /// Books rows that are no packet: all numbers in one step. With a source, only if it is above the shard's mark, which
    /// it raises in the same step: a producer that repeats books once.
    void book(u32 account, const Entry& entry, u32 shard = 0, u64 source = 0) {
        const auto turn = enter();
        expect_account(account);
        expect_shard(shard);
        if (entry.reason >= max_reasons) {
            throw std::invalid_argument("reason " + std::to_string(entry.reason) + " is not within 0 to 7");
        }
        if (source == 0) return add(account, entry);
        if (source <= ring_.shard(shard).source.load(std::memory_order_relaxed)) return;
        open_intent({.shard = shard, .sequence = never, .account = account, .rows = 0, .book_seen = false, .source = source});
        add(account, entry);
        settle(shard, source);
    }

    /// Releases the lock; with a state, tells the readers that nothing more comes.
    void close(std::optional<WriterState> state) {
        if (lock_.orphaned()) return;
        const std::scoped_lock turn(mutex_);
        if (closed_) return;
        closed_ = true;
        if (state) {
            ring_.live().writer_state.store(static_cast<u32>(*state), std::memory_order_release);
            ring_bell();
        }
        lock_.release();
    }

private:
    struct Claim {
        u32 chunk;
        u64 generation;
    };

    // --- taking over -------------------------------------------------------------------------------------------

    void take_over() {
        Live& live = ring_.live();
        const Geometry& g = geometry();
        for (u32 i = 0; i < ring_.accounts(); ++i) {
            names_.emplace(ring_.account_name(i), i);
            counters_.push_back(ring_.account(i).counters.load());
            shard_of_.push_back(ring_.account(i).shard.load(std::memory_order_relaxed));
        }
        for (u32 s = 0; s < g.shards; ++s) heads_.push_back(ring_.shard(s).head.load(std::memory_order_acquire));
        if (live.intent.open.load(std::memory_order_acquire) == 1) resolve(live.intent);
        if (live.writer_state.load(std::memory_order_acquire) == static_cast<u32>(WriterState::attached)) book_owed();
        for (u32 s = 0; s < g.shards; ++s) {
            free_open_claims(s);
            next_.push_back(first_claim(s));
        }
        generation_ = live.generation.load(std::memory_order_relaxed) + 1;
        live.generation.store(generation_, std::memory_order_release);
        live.writer_state.store(static_cast<u32>(WriterState::attached), std::memory_order_release);
    }

    /// Finishes what was committed; books the rest as lost in the crash, or, when the producer can repeat it from its
    /// source, undoes it. Every step may itself be killed and done again.
    void resolve(Intent& intent) {
        const auto read = [](const std::atomic<u64>& value) { return value.load(std::memory_order_relaxed); };
        const u64 shard = read(intent.shard);
        const u64 account = read(intent.account);
        if (shard < geometry().shards && account < counters_.size()) {
            const u64 source = read(intent.source);
            const u64 rows = read(intent.rows);
            const u64 seen = read(intent.book_seen) != 0 ? rows : 0;
            const bool committed = heads_[shard] >= read(intent.sequence);
            const bool booked = ring_.account(static_cast<u32>(account)).counters.version.load() != read(intent.version);
            if (!booked && committed && read(intent.tombstone) != 0) {
                add(static_cast<u32>(account), {.seen = seen, .dropped = rows, .reason = reason::no_chunk});
            } else if (!booked && committed) {
                add(static_cast<u32>(account), {.seen = seen, .published = rows, .packets = 1});
            } else if (!booked && source == 0) {
                add(static_cast<u32>(account), {.seen = seen, .dropped = rows, .reason = reason::crash});
            }
            if (booked || committed) raise_source(static_cast<u32>(shard), source);
        }
        intent.open.store(0, std::memory_order_release);
    }

    /// Rows seen by the dead producer that it had not booked further were under way.
    void book_owed() {
        for (u32 i = 0; i < counters_.size(); ++i) {
            const auto& c = counters_[i];
            u64 settled = c[produced::published] + c[produced::sampled_out];
            for (u32 r = 0; r < max_reasons; ++r) settled += c[produced::dropped + r];
            const u64 owed = c[produced::seen] - settled;
            if (c[produced::seen] > settled) add(i, {.dropped = owed, .reason = reason::crash});
        }
    }

    void free_open_claims(u32 shard) {
        for (u32 chunk = 0; chunk < geometry().chunks; ++chunk) {
            auto& state = ring_.state(shard, chunk);
            const u64 there = state.load(std::memory_order_acquire);
            if ((there & word::writing) != 0) {
                state.store(word::state(word::generation(there) + 1), std::memory_order_release);
            }
        }
    }

    /// The chunk after the newest packet's: oldest first, however the last producer ended.
    [[nodiscard]] u32 first_claim(u32 shard) const {
        if (heads_[shard] == 0) return 0;
        const u64 newest = ring_.slot(shard, heads_[shard]).load(std::memory_order_acquire);
        return (word::slot_chunk(newest) + 1) % geometry().chunks;
    }

    // --- one packet --------------------------------------------------------------------------------------------

    /// This thread's turn; throws ClosedError.
    [[nodiscard]] std::unique_lock<std::mutex> enter() const {
        // In a forked child the mutex may be held by a thread that does not exist there.
        if (lock_.orphaned()) expect_open();
        std::unique_lock<std::mutex> turn(mutex_);
        expect_open();
        return turn;
    }
    void expect_open() const {
        if (lock_.orphaned()) throw ClosedError("this process was forked from the producer of " + ring_.folder());
        if (closed_) throw ClosedError("the writer of " + ring_.folder() + " is closed");
    }
    void expect_shard(u32 shard) const {
        if (shard < geometry().shards) return;
        throw std::invalid_argument("shard " + std::to_string(shard) + " is not one of " + std::to_string(geometry().shards));
    }
    void expect_account(u32 account) const {
        if (account < counters_.size()) return;
        throw std::invalid_argument("account " + std::to_string(account) + " is not one of the " +
                                    std::to_string(counters_.size()) + " registered");
    }
    void expect_fit(const Block& block, const Plan& plan) const {
        expect_shard(block.shard);
        expect_account(block.header.account);
        if (item_bytes(block.rows.dtype) == 0) throw std::invalid_argument("the source has an unknown dtype");
        if (block.quantization == Quantization::fp8 && plan.dtype != Dtype::fp8_e4m3) {
            throw std::invalid_argument("the ring does not convert to fp8");
        }
        const u64 bytes = plan.total(block.rows.count);
        if (block.rows.count > geometry().chunk_bytes || bytes > geometry().chunk_bytes) {
            throw std::invalid_argument("a packet of " + std::to_string(block.rows.count) + " rows x " +
                                        std::to_string(block.rows.width) + " takes " + std::to_string(bytes) +
                                        " bytes, a chunk has " + std::to_string(geometry().chunk_bytes));
        }
        const u32 home = shard_of_[block.header.account];
        if (home != 0 && home != block.shard + 1) {
            throw std::invalid_argument("account " + std::to_string(block.header.account) + " lives in shard " +
                                        std::to_string(home - 1) + ", not in " + std::to_string(block.shard) +
                                        ": its packets would lose their order");
        }
    }

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
        Intent& intent = ring_.live().intent;
        // The compiler must not move these before the last intent was closed; a kill sees program order.
        std::atomic_signal_fence(std::memory_order_seq_cst);
        const auto note = [](std::atomic<u64>& field, u64 value) { field.store(value, std::memory_order_relaxed); };
        note(intent.shard, plot.shard);
        note(intent.sequence, plot.sequence);
        note(intent.account, plot.account);
        note(intent.version, ring_.account(plot.account).counters.version.load(std::memory_order_relaxed));
        note(intent.rows, plot.rows);
        note(intent.book_seen, plot.book_seen ? 1 : 0);
        note(intent.source, plot.source);
        note(intent.tombstone, 0);
        intent.open.store(1, std::memory_order_release);
    }

    /// An account's packets stay in the shard of its first.
    void keep_home(u32 account, u32 shard) {
        if (shard_of_[account] != 0) return;
        shard_of_[account] = shard + 1;
        ring_.account(account).shard.store(shard + 1, std::memory_order_relaxed);
    }

    /// The next chunk that nobody has pinned, marked as being written.
    std::optional<Claim> claim(u32 shard) {
        const Geometry& g = geometry();
        if (g.policy == Policy::drop_new && waiting(shard) >= g.depth()) return std::nullopt;
        auto found = scan(shard, u64{g.reader_count()} * g.pins);
        // More are pinned than all readers may hold together: somebody holds too many.
        if (!found) {
            evict(shard);
            found = scan(shard, g.chunks);
        }
        return found;
    }

    /// Goes round once, or until more than `patience` chunks were pinned.
    std::optional<Claim> scan(u32 shard, u64 patience) {
        u64 pinned = 0;
        u32 chunk = next_[shard];
        for (u32 tried = 0; tried < geometry().chunks && pinned <= patience; ++tried) {
            auto& state = ring_.state(shard, chunk);
            u64 there = state.load(std::memory_order_relaxed);
            const u64 generation = (word::generation(there) + 1) & word::generation_mask;
            const bool mine = (there & word::pin_mask) == 0 &&
                              state.compare_exchange_strong(there, word::state(generation) | word::writing,
                                                            std::memory_order_acquire, std::memory_order_relaxed);
            if (mine) return Claim{chunk, generation};
            ++pinned;
            chunk = chunk + 1 < geometry().chunks ? chunk + 1 : 0;
        }
        return std::nullopt;
    }

    /// Takes all pins in `shard` from readers that hold more than they may.
    void evict(u32 shard) {
        std::array<u32, max_readers> held{};
        for (u32 chunk = 0; chunk < geometry().chunks; ++chunk) {
            const u64 there = ring_.state(shard, chunk).load(std::memory_order_relaxed);
            for (u32 r = 0; r < max_readers; ++r) held[r] += (there >> r) & 1;
        }
        for (u32 r = 0; r < max_readers; ++r) {
            if (held[r] <= geometry().pins) continue;
            if (r < geometry().reader_count()) ring_.reader(r).epoch.fetch_add(1);
            for (u32 chunk = 0; chunk < geometry().chunks; ++chunk) ring_.state(shard, chunk).fetch_and(~(u64{1} << r));
        }
    }

    void write(std::byte* chunk, const Block& block, const Plan& plan, u64 sequence) {
        const u64 count = block.rows.count;
        PacketHeader header = block.header;
        header.magic = packet_magic;
        header.version = packet_version;
        header.header_bytes = static_cast<u16>(header_bytes);
        header.sequence = sequence;
        header.rows_before = counters_[header.account][produced::published];
        header.generation = generation_;
        header.rows = static_cast<u32>(count);
        header.dtype = static_cast<u16>(plan.dtype);
        header.payload_bytes = plan.payload_bytes;
        header.scale_bytes = static_cast<u32>(plan.scale_bytes);
        if (plan.dtype != block.rows.dtype) header.quantization = static_cast<u16>(block.quantization);
        std::memcpy(chunk, &header, sizeof header);
        if (block.records != nullptr) {
            std::memcpy(chunk + header_bytes, block.records, count * row_bytes);
        } else {
            std::memset(chunk + header_bytes, 0, count * row_bytes);
        }
        std::byte* const scales = chunk + plan.scales_at(count);
        if (block.scales != nullptr && plan.scale_bytes != 0 && block.rows.dtype == Dtype::int8) {
            std::memcpy(scales, block.scales, plan.scale_bytes);
        }
        convert(scales + plan.scale_bytes, reinterpret_cast<float*>(scales), block.rows, block.quantization);
    }

    /// The packet, or the gap in its place, comes to be.
    void commit(u32 shard, u64 sequence, u64 slot) {
        ring_.slot(shard, sequence).store(slot, std::memory_order_release);
        heads_[shard] = sequence;
        ring_.shard(shard).head.store(sequence, std::memory_order_seq_cst);
        if (ring_.live().waiters.load(std::memory_order_seq_cst) != 0) ring_bell();
    }

    void refuse(const Block& block, u64 sequence) {
        const u64 count = block.rows.count;
        const u64 seen = block.book_seen ? count : 0;
        const u32 account = block.header.account;
        if (geometry().policy == Policy::drop_new) {
            add(account, {.seen = seen, .dropped = count, .reason = reason::ring_full});
        } else {
            // The sequence advances, so that readers see by the gap what is missing.
            ring_.live().intent.tombstone.store(1, std::memory_order_release);
            const u32 before = (next_[block.shard] + geometry().chunks - 1) % geometry().chunks;
            commit(block.shard, sequence, word::tombstone | word::slot(sequence, before));
            add(account, {.seen = seen, .dropped = count, .reason = reason::no_chunk});
        }
        settle(block.shard, block.header.source);
    }

    void settle(u32 shard, u64 source) {
        raise_source(shard, source);
        ring_.live().intent.open.store(0, std::memory_order_release);
    }

    void raise_source(u32 shard, u64 source) {
        auto& mark = ring_.shard(shard).source;
        if (source > mark.load(std::memory_order_relaxed)) mark.store(source, std::memory_order_release);
    }

    void add(u32 account, const Entry& entry) {
        auto& c = counters_[account];
        c[produced::seen] += entry.seen;
        c[produced::published] += entry.published;
        c[produced::sampled_out] += entry.sampled_out;
        c[produced::packets] += entry.packets;
        c[produced::dropped + entry.reason] += entry.dropped;
        ring_.account(account).counters.store(c);
    }

    /// Packets that the one reader of a drop_new ring has not passed; its cursor is not trusted.
    [[nodiscard]] u64 waiting(u32 shard) const {
        const u64 head = ring_.shard(shard).head.load(std::memory_order_relaxed);
        return std::min<u64>(ring_.unread(0, shard, head), geometry().depth());
    }

    void ring_bell() {
        Live& live = ring_.live();
        live.waiters.exchange(0, std::memory_order_seq_cst);
        live.doorbell.fetch_add(1, std::memory_order_seq_cst);
        futex_wake(live.doorbell);
    }

    Ring ring_;
    ByteLock lock_;
    mutable std::mutex mutex_;
    bool closed_ = false;
    u32 generation_ = 0;
    std::unordered_map<std::string, u32> names_;
    // This process's own copies: what others may scribble over is never read back.
    std::vector<Versioned<produced::words>::Values> counters_;
    std::vector<u32> shard_of_;
    std::vector<u64> heads_;
    std::vector<u32> next_;
};

}  // namespace asysi
