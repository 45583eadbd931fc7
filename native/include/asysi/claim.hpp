// A packet before it is published: what goes into it, where its parts lie, the chunk that it is written to.
//
// How a chunk is chosen is the policy's: overwrite.hpp, drop_new.hpp.
#pragma once

#include <algorithm>
#include <array>
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
    const float* scales;  // of rows that are int8 already, one per row; null: none
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

/// A packet between its claim and its publication. This process's own: what others may scribble over is never read back.
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
    bool claimed = false;  // an open claim, which ends when the packet does
};

/// The chunks of a shard, as its producer sees them.
class Chunks {
public:
    Chunks() = default;
    Chunks(const Ring& ring, u32 shard) : ring_(&ring), shard_(shard), seen_(ring.geometry().chunks) {}

    [[nodiscard]] const Geometry& geometry() const { return ring_->geometry(); }
    [[nodiscard]] u32 count() const { return geometry().chunks; }
    [[nodiscard]] u32 after(u32 chunk) const { return chunk + 1 < count() ? chunk + 1 : 0; }
    /// Pins that all readers together may hold.
    [[nodiscard]] u64 allowed_pins() const { return u64{geometry().reader_count()} * geometry().pins; }
    [[nodiscard]] bool pinned(u32 chunk) const { return (look(chunk) & word::pin_mask) != 0; }
    [[nodiscard]] bool claimed(u32 chunk) const { return (look(chunk) & word::writing) != 0; }
    /// Chunk of the packet with this sequence, as its slot tells. It is not trusted: always a chunk of this ring.
    [[nodiscard]] u32 holding(u64 sequence) const {
        return word::slot_chunk(ring_->slot(shard_, sequence).load(std::memory_order_acquire)) % count();
    }
    /// How far the one reader of a drop_new ring has come. It is not trusted: beyond the head means at the head.
    [[nodiscard]] u64 cursor(u64 head) const {
        return std::min(ring_->cursor(0, shard_).load(std::memory_order_acquire), head);
    }

    /// Makes `chunk` the packet's, if it is nobody's.
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

    /// Takes all pins from readers that hold more than they may.
    void evict() {
        const u32 readers = geometry().reader_count();
        std::array<u32, max_readers> held{};
        std::array<u32, max_readers> era{};
        // Two looks: a pin that stands in both stood between them, and a reader pins a packet once an epoch. One look would
        // count a pin that moves from a chunk seen to a chunk to be seen twice, and evict a reader within its rights.
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
    std::vector<u64> seen_;  // states of all chunks, at an eviction's first look
};

class Writer;

/// A chunk that its owner fills in place. Goes out of scope without `commit`: aborted, its rows booked as dropped.
///
/// Any number of a shard's claims may be open, and any thread may end one. Packets come in the order in which their claims
/// are committed.
class Claim {
public:
    Claim(Claim&& other) noexcept
        : writer_(std::exchange(other.writer_, nullptr)), shard_(other.shard_), chunk_(other.chunk_), bytes_(other.bytes_),
          plan_(other.plan_), count_(other.count_) {}
    Claim& operator=(Claim&&) = delete;
    ~Claim() { abort(); }

    /// What goes to the readers: rows x width elements, beginning at a multiple of 64 bytes.
    [[nodiscard]] std::span<std::byte> payload() const { return {bytes_ + plan_.payload_at, plan_.payload_bytes}; }
    /// A record a row; zeros, or what the block had.
    [[nodiscard]] std::span<RowRecord> records() const { return {reinterpret_cast<RowRecord*>(bytes_ + header_bytes), count_}; }
    /// A scale a row of int8; empty for other types.
    [[nodiscard]] std::span<float> scales() const {
        return {reinterpret_cast<float*>(bytes_ + plan_.scales_at), plan_.scale_bytes / sizeof(float)};
    }
    [[nodiscard]] bool open() const { return writer_ != nullptr; }
    /// Its place among the shard's chunks: neighbours lie one behind the other, `chunk_bytes` apart.
    [[nodiscard]] u32 chunk() const { return chunk_; }

    /// Publishes the packet. Throws ClosedError when it was committed, aborted, or its writer closed; BusyError, the claim
    /// still open, when another thread has been at work in the shard for a second.
    void commit();
    /// Gives the chunk back and books its rows as dropped; again does nothing. Where another thread has been at work in the
    /// shard for a second it is left to the writer's end.
    void abort() noexcept;

private:
    friend class Writer;
    Claim(Writer& writer, const PendingPacket& packet, std::byte* bytes)
        : writer_(&writer), shard_(packet.shard), chunk_(packet.chunk), bytes_(bytes), plan_(packet.plan), count_(packet.rows) {}

    Writer* writer_;
    u32 shard_;
    u32 chunk_;
    std::byte* bytes_;
    Plan plan_;
    u64 count_;
};

}  // namespace asysi
