// One reader of a ring, and its pins.
//
// Sequence per packet: slot (acquire), pin (CAS, acquire), header; use of the bytes; account (one step), cursor, unpin
// (release). After a kill between account and cursor, the next start finds the packet counted and skips it.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "asysi/futex.hpp"
#include "asysi/ring.hpp"
#include "asysi/seat.hpp"

namespace asysi {

/// A pinned packet. The bytes are valid until `Reader::release`.
struct Pin {
    u32 shard;
    u32 chunk;
    u64 generation;  // of the chunk
    u32 epoch;       // of the reader
    u64 sequence;
    u32 account;
    u32 rows;
    u64 end;  // rows_before + rows
    u64 lapped_rows;
    const std::byte* bytes;
    u64 size;
    u64 payload_bytes;
    u64 scale_bytes;
};

class Reader {
public:
    /// Waits up to `patience` for a live reader with this name to detach, then throws BusyError.
    Reader(const std::string& folder, const std::string& name, std::chrono::nanoseconds patience = {})
        : ring_(folder, Ring::Role::reader),
          index_(ring_.reader_index(name)),
          bit_(u64{1} << index_),
          seat_(ring_.file(), control_path(folder), 1 + static_cast<off_t>(index_), "reader " + name + " of the ring in " + folder, patience),
          held_(ring_.geometry().shards) {
        ASYSI_TESTPOINT("reader.lock.taken");
        take_over();
    }
    ~Reader() { seat_.leave(); }
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

    [[nodiscard]] const Ring& ring() const { return ring_; }
    [[nodiscard]] u32 index() const { return index_; }

    /// Publishes whether the data is registered with an accelerator's driver, for monitoring.
    void note_registered(bool registered) {
        seat_.expect_open();
        ring_.reader(index_).mapping.registered.store(registered ? 1 : 0, std::memory_order_relaxed);
    }

    // --- packets -----------------------------------------------------------------------------------------------

    /// Pins up to `limit` packets into `out` without waiting.
    void gather(std::vector<Pin>& out, std::size_t limit) {
        const auto turn = seat_.enter(gate_);
        const u32 shards = ring_.geometry().shards;
        const std::size_t fair = std::max<std::size_t>(1, limit / shards);
        for (bool more = true; more && out.size() < limit;) {
            more = false;
            for (u32 i = 0; i < shards && out.size() < limit; ++i) {
                const u32 shard = (first_shard_ + i) % shards;
                more |= gather(out, std::min(limit, out.size() + fair), shard);
            }
            first_shard_ = (first_shard_ + 1) % shards;
        }
        for (u32 shard = 0; shard < shards; ++shard) pass_gaps(shard);
    }

    /// Pins up to `limit` packets into `out`, waiting up to `patience` for the first; none if the producer has closed.
    void pull(std::vector<Pin>& out, std::size_t limit, std::chrono::nanoseconds patience) {
        const auto deadline = std::chrono::steady_clock::now() + patience;
        for (;;) {
            // Check for closing before the packets: nothing follows it.
            const bool over = producer_closed();
            gather(out, limit);
            const auto left = deadline - std::chrono::steady_clock::now();
            if (!out.empty() || over || limit == 0 || left <= std::chrono::nanoseconds{0}) return;
            wait(std::min<std::chrono::nanoseconds>(left, std::chrono::milliseconds(100)));
        }
    }

    /// Sleeps until there may be packets or the producer has closed, for at most `limit`.
    void wait(std::chrono::nanoseconds limit) {
        Live& live = ring_.live();
        // Read the doorbell first: if the producer clears our bit after it was set, it changes the doorbell afterwards.
        const u32 bell = live.doorbell.load(std::memory_order_seq_cst);
        live.waiters.fetch_or(bit_, std::memory_order_seq_cst);
        ASYSI_TESTPOINT("reader.wait.waiter_set");
        if (!ready() && !producer_closed()) futex_wait(live.doorbell, bell, limit);
        live.waiters.fetch_and(~bit_, std::memory_order_seq_cst);
        ASYSI_TESTPOINT("reader.wait.waiter_cleared");
    }

    [[nodiscard]] bool producer_closed() const {
        const auto state = static_cast<WriterState>(ring_.live().writer_state.load(std::memory_order_acquire));
        return state == WriterState::complete || state == WriterState::attempt_over;
    }

    /// Unpins, from any thread. Returns false if the pin was revoked, so that the bytes may have belonged to another packet.
    bool release(const Pin& pin) {
        if (seat_.orphaned()) return true;  // a forked child: the pin belongs to its parent
        const bool held = unpin(pin);
        held_[pin.shard].fetch_sub(1, std::memory_order_relaxed);
        if (held_in_all_.fetch_sub(1) == 1 && seat_.closed()) leave_if_empty();
        return held;
    }

    /// Whether the pin is still valid.
    [[nodiscard]] bool holds(const Pin& pin) const {
        // A read-modify-write: a plain load could return a value older than the bytes read before it.
        const u64 there = ring_.state(pin.shard, pin.chunk).fetch_or(0, std::memory_order_acq_rel);
        return epoch() == pin.epoch && word::generation(there) == pin.generation && (there & bit_) != 0;
    }

    // --- counters ----------------------------------------------------------------------------------------------

    /// Counts the packet as consumed, with the rows lost before it, and advances the cursor. Idempotent.
    void consumed(const Pin& pin) {
        const auto turn = seat_.enter(gate_);
        auto& book = books_[pin.account];
        if (pin.end > book[consumed::position]) {
            const u64 before = pin.end - pin.rows;
            book[consumed::lapped] += before > book[consumed::position] ? before - book[consumed::position] : 0;
            book[consumed::position] = pin.end;
            store(pin.account);
        }
        if (pin.sequence > consumed_[pin.shard]) {
            move_cursor(pin.shard, pin.sequence);
        }
        pass_gaps(pin.shard);
    }

    void mark_durable() {
        const auto turn = seat_.enter(gate_);
        for (u32 account = 0; account < ring_.accounts(); ++account) {
            auto& book = books_[account];
            const u64 durable = book[consumed::position] - book[consumed::lapped] - book[consumed::rolled_back];
            if (durable == book[consumed::durable]) continue;
            book[consumed::durable] = durable;
            store(account);
        }
    }

    /// Counts `rows` as durable, and other consumed rows as rolled back. `position`: rows_before + rows of the last
    /// durable packet, if the storage knows it; packets up to it are then skipped.
    void restore_durable(u32 account, u64 rows, std::optional<u64> position) {
        const auto turn = seat_.enter(gate_);
        expect_account(account);
        auto book = books_[account];
        if (position && *position > book[consumed::position]) {
            const u64 kept = rows + book[consumed::rolled_back];
            if (kept > *position) refuse_rows(account, rows, *position);
            book[consumed::position] = *position;
            book[consumed::lapped] = *position - kept;
        }
        const u64 reached = book[consumed::position] - book[consumed::lapped];
        if (rows > reached) refuse_rows(account, rows, reached);
        book[consumed::durable] = rows;
        book[consumed::rolled_back] = reached - rows;
        books_[account] = book;
        pulled_[account] = std::max(pulled_[account], book[consumed::position]);
        store(account);
    }

    /// Counts all published but unconsumed rows as lapped, and moves the cursors to the heads.
    void settle() {
        const auto turn = seat_.enter(gate_);
        for (u32 account = 0; account < ring_.accounts(); ++account) {
            const u64 published = ring_.account(account).counters.load()[produced::published];
            auto& book = books_[account];
            if (published <= book[consumed::position]) continue;
            book[consumed::lapped] += published - book[consumed::position];
            book[consumed::position] = published;
            pulled_[account] = std::max(pulled_[account], published);
            store(account);
        }
        for (u32 shard = 0; shard < ring_.geometry().shards; ++shard) {
            const u64 head = ring_.shard(shard).head.load(std::memory_order_acquire);
            next_[shard] = std::max(next_[shard], head + 1);
            pulled_to_[shard] = std::max(consumed_[shard], head);
            move_cursor(shard, pulled_to_[shard]);
        }
    }

    void finalise(ReaderState state) {
        seat_.expect_open();
        ring_.reader(index_).state.store(static_cast<u32>(state), std::memory_order_release);
        ASYSI_TESTPOINT("reader.finalise.stated");
    }

    /// How the producer closed the ring, once everything is consumed.
    [[nodiscard]] std::optional<WriterState> ended() {
        const auto turn = seat_.enter(gate_);
        if (!producer_closed()) return std::nullopt;
        const auto state = static_cast<WriterState>(ring_.live().writer_state.load(std::memory_order_acquire));
        for (u32 shard = 0; shard < ring_.geometry().shards; ++shard) {
            pass_gaps(shard);
            if (consumed_[shard] < ring_.shard(shard).head.load(std::memory_order_acquire)) return std::nullopt;
        }
        return state;
    }

    [[nodiscard]] double lag() const {
        seat_.expect_open();
        return ring_.lag(index_);
    }

    void gauge(u32 account, u32 slot, double value) {
        seat_.expect_open();
        expect_account(account);
        if (slot >= gauge_slots) throw std::invalid_argument("gauge " + std::to_string(slot) + " is not within 0 to 7");
        ring_.book(index_, account).gauges[slot].store(std::bit_cast<u64>(value), std::memory_order_relaxed);
        ASYSI_TESTPOINT("reader.gauge.stored");
    }

    /// Stops reading. The lock is kept until the last pin is released, so that the pins are not taken over.
    void close() {
        if (seat_.orphaned()) return;
        seat_.close();
        if (held_in_all_.load() == 0) leave_if_empty();
    }

private:
    void take_over() {
        const Geometry& g = ring_.geometry();
        // This invalidates the views of the previous reader.
        ring_.reader(index_).epoch.fetch_add(1);
        ASYSI_TESTPOINT("reader.attach.epoch");
        auto& mapping = ring_.reader(index_).mapping;
        mapping.bytes.store(ring_.data().bytes(), std::memory_order_relaxed);
        mapping.populated.store(static_cast<u32>(ring_.data().populated()), std::memory_order_relaxed);
        mapping.registered.store(0, std::memory_order_relaxed);
        ASYSI_TESTPOINT("reader.attach.mapping_noted");
        ring_.live().waiters.fetch_and(~bit_);
        ASYSI_TESTPOINT("reader.attach.waiter_cleared");
        for (u32 shard = 0; shard < g.shards; ++shard) {
            for (u32 chunk = 0; chunk < g.chunks; ++chunk) {
                auto& state = ring_.state(shard, chunk);
                if ((state.load(std::memory_order_relaxed) & bit_) == 0) continue;
                state.fetch_and(~bit_, std::memory_order_release);
                ASYSI_TESTPOINT("reader.attach.unpinned");
            }
            const u64 head = ring_.shard(shard).head.load(std::memory_order_acquire);
            const u64 cursor = std::min(ring_.cursor(index_, shard).load(std::memory_order_acquire), head);
            next_.push_back(cursor + 1);
            pulled_to_.push_back(cursor);
            consumed_.push_back(cursor);
        }
        for (u32 account = 0; account < g.accounts; ++account) {
            books_.push_back(ring_.book(index_, account).counters.load());
            pulled_.push_back(books_.back()[consumed::position]);
        }
        ring_.reader(index_).state.store(static_cast<u32>(ReaderState::attached), std::memory_order_release);
        ASYSI_TESTPOINT("reader.attach.stated");
    }

    /// Waits for a running gather, which may have pinned more.
    void leave_if_empty() noexcept {
        try {
            const auto turn = gate_.enter();
            if (held_in_all_.load() == 0) leave();
        } catch (const BusyError&) {
            return;  // blocked for a second: the lock is released with the object
        }
    }
    void leave() {
        seat_.leave();
        ASYSI_TESTPOINT("reader.lock.released");
    }

    void expect_account(u32 account) const {
        if (account < ring_.accounts()) return;
        throw std::invalid_argument("account " + std::to_string(account) + " is not one of the " +
                                    std::to_string(ring_.accounts()) + " registered");
    }
    [[noreturn]] void refuse_rows(u32 account, u64 rows, u64 reached) const {
        throw std::invalid_argument(std::to_string(rows) + " durable rows of account " + std::to_string(account) +
                                    " are more than the " + std::to_string(reached) + " that this reader has consumed");
    }

    [[nodiscard]] u32 epoch() const { return ring_.reader(index_).epoch.load(std::memory_order_seq_cst); }
    void store(u32 account) {
        ring_.book(index_, account).counters.store(books_[account]);
        ASYSI_TESTPOINT("reader.books.stored");
    }
    void move_cursor(u32 shard, u64 sequence) {
        consumed_[shard] = sequence;
        ring_.cursor(index_, shard).store(sequence, std::memory_order_release);
        ASYSI_TESTPOINT("reader.cursor.stored");
    }
    [[nodiscard]] u32 held(u32 shard) const { return held_[shard].load(std::memory_order_relaxed); }

    /// Whether any shard has a packet that can be pinned.
    [[nodiscard]] bool ready() {
        const auto turn = seat_.enter(gate_);
        for (u32 shard = 0; shard < ring_.geometry().shards; ++shard) {
            const u64 head = ring_.shard(shard).head.load(std::memory_order_seq_cst);
            if (head >= next_[shard] && held(shard) < ring_.geometry().pins) return true;
        }
        return false;
    }

    /// Pins packets of one shard until `out` has `limit`; returns true if the limit was reached.
    bool gather(std::vector<Pin>& out, std::size_t limit, u32 shard) {
        const Geometry& g = ring_.geometry();
        const u64 head = ring_.shard(shard).head.load(std::memory_order_acquire);
        // Bounded: a corrupted head must not cause an endless loop.
        u64 steps = 4 * u64{g.chunks};
        while (next_[shard] <= head && held(shard) < g.pins && steps-- > 0) {
            if (out.size() >= limit) return true;
            const u64 sequence = next_[shard];
            auto pin = try_pin(shard, sequence);
            if (pin == Outcome::lapped) {
                // Continue in the middle of the available packets: at the oldest one it would be lapped again at once.
                const u64 now = ring_.shard(shard).head.load(std::memory_order_acquire);
                const u64 behind = g.depth() / 2;
                next_[shard] = std::max(sequence + 1, now > behind ? now - behind : 1);
                continue;
            }
            next_[shard] = sequence + 1;
            if (pin != Outcome::pinned) continue;
            pulled_to_[shard] = sequence;
            held_[shard].fetch_add(1, std::memory_order_relaxed);
            held_in_all_.fetch_add(1);
            out.push_back(pinned_);
        }
        return false;
    }

    enum class Outcome { pinned, nothing, lapped };

    Outcome try_pin(u32 shard, u64 sequence) {
        const u64 slot = ring_.slot(shard, sequence).load(std::memory_order_acquire);
        if ((slot & word::tombstone) != 0) {
            return word::slot_generation(slot) == (sequence & word::generation_mask) ? Outcome::nothing : Outcome::lapped;
        }
        const u32 chunk = word::slot_chunk(slot);
        const u64 generation = word::slot_generation(slot);
        if (chunk >= ring_.geometry().chunks) return Outcome::lapped;
        auto& state = ring_.state(shard, chunk);
        u64 there = state.load(std::memory_order_relaxed);
        do {
            // If our bit is already set for this generation, we hold the pin or the state is corrupt: do not share it.
            if (word::generation(there) != generation || (there & (word::writing | bit_)) != 0) return Outcome::lapped;
        } while (!state.compare_exchange_weak(there, there | bit_, std::memory_order_seq_cst, std::memory_order_relaxed));
        ASYSI_TESTPOINT("reader.pin.set");
        pinned_ = {.shard = shard, .chunk = chunk, .generation = generation, .epoch = epoch(), .sequence = sequence,
                   .account = 0, .rows = 0, .end = 0, .lapped_rows = 0, .bytes = ring_.chunk(shard, chunk), .size = 0, .payload_bytes = 0, .scale_bytes = 0};
        PacketHeader header;
        std::memcpy(&header, pinned_.bytes, sizeof header);
        pinned_.size = packet_bytes(header);
        pinned_.payload_bytes = header.payload_bytes;
        pinned_.scale_bytes = header.scale_bytes;
        pinned_.account = header.account;
        pinned_.rows = header.rows;
        pinned_.end = header.rows_before + header.rows;
        if (header.sequence != sequence) return unpin(pinned_), Outcome::lapped;
        const bool whole = pinned_.size != 0 && pinned_.size <= ring_.geometry().chunk_bytes &&
                           header.account < ring_.geometry().accounts;
        // Packets counted before this reader was killed are not handed out again.
        if (!whole || pinned_.end <= books_[header.account][consumed::position]) return unpin(pinned_), Outcome::nothing;
        u64& position = pulled_[header.account];
        pinned_.lapped_rows = header.rows_before > position ? header.rows_before - position : 0;
        position = std::max(position, pinned_.end);
        return Outcome::pinned;
    }

    /// Clears our bit if it is still this pin's.
    bool unpin(const Pin& pin) {
        auto& state = ring_.state(pin.shard, pin.chunk);
        u64 there = state.load(std::memory_order_relaxed);
        do {
            if (word::generation(there) != pin.generation || (there & bit_) == 0) return false;
        } while (!state.compare_exchange_weak(there, there & ~bit_, std::memory_order_release, std::memory_order_relaxed));
        ASYSI_TESTPOINT("reader.pin.cleared");
        // After an eviction the pins of other shards are still set; they are cleared here, but the epoch has invalidated
        // them.
        return epoch() == pin.epoch;
    }

    /// If no packet is handed out and uncounted, moves the cursor past gaps and lapped packets.
    void pass_gaps(u32 shard) {
        if (consumed_[shard] < pulled_to_[shard] || consumed_[shard] + 1 >= next_[shard]) return;
        move_cursor(shard, next_[shard] - 1);
    }

    Ring ring_;
    u32 index_;
    u64 bit_;
    Seat seat_;
    Gate gate_;
    u32 first_shard_ = 0;
    Pin pinned_{};
    std::atomic<u32> held_in_all_{0};
    std::vector<std::atomic<u32>> held_;  // pins per shard
    std::vector<u64> next_;        // next sequence to read, per shard
    std::vector<u64> pulled_to_;   // newest sequence handed out, per shard
    std::vector<u64> consumed_;    // cursor, per shard
    std::vector<u64> pulled_;      // rows handed out or lost so far, per account
    std::vector<Versioned<consumed::words>::Values> books_;
};

/// A pinned packet with RAII. Its sizes were validated when it was pinned and are not read again.
class Packet {
public:
    Packet(Reader& reader, const Pin& pin) : reader_(&reader), pin_(pin) {}
    Packet(Packet&& other) noexcept : reader_(std::exchange(other.reader_, nullptr)), pin_(other.pin_) {}
    Packet& operator=(Packet&&) = delete;
    ~Packet() { release(); }

    [[nodiscard]] const Pin& pin() const { return pin_; }
    /// A copy of the header.
    [[nodiscard]] PacketHeader header() const {
        PacketHeader copy;
        std::memcpy(&copy, pin_.bytes, sizeof copy);
        return copy;
    }
    [[nodiscard]] std::span<const RowRecord> records() const {
        return {reinterpret_cast<const RowRecord*>(pin_.bytes + header_bytes), pin_.rows};
    }
    /// One scale per row for int8; empty for other types.
    [[nodiscard]] std::span<const float> scales() const {
        return {reinterpret_cast<const float*>(pin_.bytes + header_bytes + u64{pin_.rows} * row_bytes),
                pin_.scale_bytes / sizeof(float)};
    }
    /// The elements, aligned to 64 bytes.
    template <typename T = std::byte>
    [[nodiscard]] std::span<const T> payload() const {
        return {reinterpret_cast<const T*>(pin_.bytes + payload_at(pin_.rows, pin_.scale_bytes)), pin_.payload_bytes / sizeof(T)};
    }

    /// Counts the packet as consumed.
    void consume() { reader_->consumed(pin_); }
    /// Unpins; returns false if the pin was revoked, so that the bytes may have belonged to another packet.
    bool release() { return reader_ == nullptr || std::exchange(reader_, nullptr)->release(pin_); }

private:
    Reader* reader_;
    Pin pin_;
};

/// Returns up to `limit` packets, waiting up to `patience` for the first; none if the producer has closed.
inline std::vector<Packet> pull(Reader& reader, std::size_t limit, std::chrono::nanoseconds patience) {
    std::vector<Pin> pins;
    reader.pull(pins, limit, patience);
    std::vector<Packet> packets;
    packets.reserve(pins.size());
    for (const Pin& pin : pins) packets.emplace_back(reader, pin);
    return packets;
}

}  // namespace asysi
