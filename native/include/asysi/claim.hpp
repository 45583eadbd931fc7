// A packet before publication: its content, its layout, and the chunk to which it is written.
//
// The policy selects the chunk: overwrite.hpp, drop_new.hpp.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "asysi/convert.hpp"
#include "asysi/ring.hpp"

namespace asysi {

/// Rows to publish as one packet.
struct Block {
    u32 shard;
    PacketHeader header;
    const RowRecord* records;  // null: zeros
    Rows rows;
    Quantization quantization;
    const float* scales;  // of rows that are int8 or fp8 already, one per row; of floats two scores per row; null: none
    const float* table;   // [2, width], mean and scale of each channel, of int8 by channel; null: none
    bool book_seen;
};

/// Layout of a packet within its chunk.
struct Plan {
    Dtype dtype;
    u64 scale_bytes;
    u64 payload_bytes;
    u64 scales_at;
    u64 payload_at;
    bool by_channel;  // int8 with mean and scale of each channel
    bool scored;      // floats with two scores a row

    Plan() = default;
    explicit Plan(const Block& block) : dtype(converted(block.rows.dtype, block.quantization)) {
        by_channel = dtype == Dtype::int8 && (block.quantization == Quantization::int8_channel || block.table != nullptr);
        const bool narrow = dtype == Dtype::int8 || dtype == Dtype::fp8_e4m3;
        const bool scaled = narrow && (block.rows.dtype != dtype || block.scales != nullptr);
        scored = !narrow && block.rows.dtype == dtype && block.scales != nullptr;
        const u64 count = block.rows.count;
        scale_bytes = by_channel ? u64{block.rows.width} * 2 * sizeof(float) : scored ? count * 2 * sizeof(float)
                      : scaled   ? count * sizeof(float)
                                 : 0;
        payload_bytes = count * block.rows.width * item_bytes(dtype);
        scales_at = header_bytes + count * row_bytes;
        payload_at = asysi::payload_at(count, scale_bytes);
    }
    [[nodiscard]] u64 total() const { return payload_at + payload_bytes; }
};

/// A packet between claim and publication. Private to this process: shared memory that others can corrupt is never read
/// back.
struct PendingPacket {
    u32 shard;
    u32 chunk;
    u64 generation;
    u64 sequence;
    u32 account;
    u64 rows;
    bool book_seen;
    u64 source;
    Plan plan;
    bool claimed = false;  // whether it belongs to an open claim, which ends with the packet
};

/// The producer's view of a shard's chunks.
class Chunks {
public:
    Chunks() = default;
    Chunks(const Ring& ring, u32 shard) : ring_(&ring), shard_(shard), seen_(ring.geometry().chunks) {}

    [[nodiscard]] const Geometry& geometry() const { return ring_->geometry(); }
    [[nodiscard]] u32 count() const { return geometry().chunks; }
    [[nodiscard]] u32 after(u32 chunk) const { return chunk + 1 < count() ? chunk + 1 : 0; }
    /// Maximum number of pins of all readers together.
    [[nodiscard]] u64 allowed_pins() const { return u64{geometry().reader_count()} * geometry().pins; }
    [[nodiscard]] bool pinned(u32 chunk) const { return (look(chunk) & word::pin_mask) != 0; }
    [[nodiscard]] bool claimed(u32 chunk) const { return (look(chunk) & word::writing) != 0; }
    /// Chunk of the packet with this sequence, according to its slot. The slot is untrusted; the result is always a valid
    /// chunk of this ring.
    [[nodiscard]] u32 holding(u64 sequence) const {
        return word::slot_chunk(ring_->slot(shard_, sequence).load(std::memory_order_acquire)) % count();
    }
    /// Cursor of the only reader of a drop_new ring. It is untrusted and clamped to the head.
    [[nodiscard]] u64 cursor(u64 head) const {
        return std::min(ring_->cursor(0, shard_).load(std::memory_order_acquire), head);
    }

    /// Takes `chunk` for the packet if it is neither pinned nor being written.
    bool take(u32 chunk, PendingPacket& packet) {
        auto& state = ring_->state(shard_, chunk);
        u64 there = state.load(std::memory_order_relaxed);
        const u64 generation = (word::generation(there) + 1) & word::generation_mask;
        if ((there & (word::pin_mask | word::writing)) != 0 ||
            !state.compare_exchange_strong(there, word::state(generation) | word::writing, std::memory_order_acquire,
                                           std::memory_order_relaxed)) {
            return false;
        }
        ASYSI_TESTPOINT("writer.claim.w_set");
        packet.chunk = chunk;
        packet.generation = generation;
        return true;
    }

    /// Revokes all pins of readers that hold more than allowed.
    void evict() {
        const u32 readers = geometry().reader_count();
        std::array<u32, max_readers> held{};
        std::array<u32, max_readers> era{};
        // Two passes: a pin seen in both was held in between, and a reader pins a packet at most once per epoch. A single
        // pass could count a pin twice if it moves from a visited to an unvisited chunk, and evict a compliant reader.
        for (u32 r = 0; r < readers; ++r) era[r] = ring_->reader(r).epoch.load(std::memory_order_seq_cst);
        const auto observe = [&](u32 chunk) { return ring_->state(shard_, chunk).load(std::memory_order_seq_cst); };
        for (u32 chunk = 0; chunk < count(); ++chunk) seen_[chunk] = observe(chunk);
        for (u32 chunk = 0; chunk < count(); ++chunk) {
            const u64 there = observe(chunk);
            const u64 stood = word::generation(there) == word::generation(seen_[chunk]) ? there & seen_[chunk] : 0;
            for (u32 r = 0; r < max_readers; ++r) held[r] += (stood >> r) & 1;
        }
        for (u32 r = 0; r < max_readers; ++r) {
            if (held[r] <= geometry().pins) continue;
            if (r < readers && !ring_->reader(r).epoch.compare_exchange_strong(era[r], era[r] + 1)) continue;
            ASYSI_TESTPOINT("writer.evict.epoch");
            for (u32 chunk = 0; chunk < count(); ++chunk) {
                ring_->state(shard_, chunk).fetch_and(~(u64{1} << r));
                ASYSI_TESTPOINT("writer.evict.unpinned");
            }
        }
    }

private:
    [[nodiscard]] u64 look(u32 chunk) const { return ring_->state(shard_, chunk).load(std::memory_order_relaxed); }

    const Ring* ring_ = nullptr;
    u32 shard_ = 0;
    std::vector<u64> seen_;  // states of all chunks in the first pass of an eviction
};

class Writer;

/// A chunk that its owner fills in place. If it goes out of scope without `commit`, it is aborted and its rows count as
/// dropped.
///
/// A shard can have any number of open claims, and any thread can end one. Packets are ordered by the commits of their
/// claims.
class Claim {
public:
    Claim(Claim&& other) noexcept
        : writer_(std::exchange(other.writer_, nullptr)), shard_(other.shard_), chunk_(other.chunk_), bytes_(other.bytes_),
          chunk_bytes_(other.chunk_bytes_), plan_(other.plan_), count_(other.count_) {}
    Claim& operator=(Claim&&) = delete;
    ~Claim() { abort(); }

    /// The payload: rows x width elements, aligned to 64 bytes.
    [[nodiscard]] std::span<std::byte> payload() const { return {bytes_ + plan_.payload_at, plan_.payload_bytes}; }
    /// One record per row; zeros, or the block's records.
    [[nodiscard]] std::span<RowRecord> records() const { return {reinterpret_cast<RowRecord*>(bytes_ + header_bytes), count_}; }
    /// A scale a row of int8 and fp8; of int8 by channel all means, then all scales; empty for other types.
    [[nodiscard]] std::span<float> scales() const {
        return {reinterpret_cast<float*>(bytes_ + plan_.scales_at), plan_.scale_bytes / sizeof(float)};
    }
    /// Whether `scales` is a table of channels.
    [[nodiscard]] bool by_channel() const { return plan_.by_channel; }
    /// The last `bytes` of the chunk, which lie behind the packet and are free until it is committed; null where fewer are left.
    [[nodiscard]] std::byte* behind(std::size_t bytes) const {
        return plan_.total() + bytes <= chunk_bytes_ ? bytes_ + chunk_bytes_ - bytes : nullptr;
    }
    /// Writes how many of the packet's values were stored as the end of their channel's range.
    void note_saturated(u32 values) { std::memcpy(bytes_ + offsetof(PacketHeader, saturated), &values, sizeof values); }
    [[nodiscard]] bool open() const { return writer_ != nullptr; }
    /// Index among the shard's chunks; adjacent chunks are `chunk_bytes` apart.
    [[nodiscard]] u32 chunk() const { return chunk_; }

    /// Publishes the packet. Throws ClosedError if it was already committed or aborted, or its writer is closed; throws
    /// BusyError, with the claim still open, if another thread holds the shard for more than a second.
    void commit();
    /// Returns the chunk and counts its rows as dropped; idempotent. If another thread holds the shard for more than a
    /// second, the claim stays open until the writer closes.
    void abort() noexcept;

private:
    friend class Writer;
    Claim(Writer& writer, const PendingPacket& packet, std::byte* bytes, u64 chunk_bytes)
        : writer_(&writer), shard_(packet.shard), chunk_(packet.chunk), bytes_(bytes), chunk_bytes_(chunk_bytes), plan_(packet.plan),
          count_(packet.rows) {}

    Writer* writer_;
    u32 shard_;
    u32 chunk_;
    std::byte* bytes_;
    u64 chunk_bytes_;
    Plan plan_;
    u64 count_;
};

}  // namespace asysi
