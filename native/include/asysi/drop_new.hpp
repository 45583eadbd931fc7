// The policy that never loses unread packets: a chunk is reused only after the single reader has finished with it.
#pragma once

#include <algorithm>
#include <vector>

#include "asysi/claim.hpp"

namespace asysi {

class DropNew {
public:
    /// Locates the unread packets using the slots; the other chunks are free, or will be.
    void begin(const Chunks& chunks, u64 head) {
        const u32 count = chunks.count();
        free_.reserve(count);
        lingering_.reserve(count);
        unread_.assign(count, 0);
        cursor_ = std::max(chunks.cursor(head), head > count ? head - count : 0);
        listed_.assign(count, false);
        wanted_.assign(count, false);
        std::vector<bool> kept(count);
        // Not `<= head`: a corrupted head can be the maximum value.
        for (u64 at = cursor_; at != head; ++at) {
            const u32 chunk = chunks.holding(at + 1);
            unread_[at % count] = chunk;
            kept[chunk] = true;
        }
        for (u32 chunk = count; chunk-- > 0;) {
            if (!kept[chunk]) linger(chunk);
        }
        collect(chunks, head);
    }

    /// Makes the next `count` claims take adjacent chunks, if enough are free.
    void line_up(const Chunks& chunks, u64 head, u32 count) {
        collect(chunks, head);
        std::fill(wanted_.begin(), wanted_.end(), false);
        for (const u32 chunk : free_) wanted_[chunk] = true;
        u32 length = 0;
        u32 end = 0;
        while (end < chunks.count() && length < count) length = wanted_[end++] ? length + 1 : 0;
        if (length < count) return;
        const u32 first = end - count;
        std::erase_if(free_, [&](u32 chunk) { return chunk >= first && chunk < end; });
        for (u32 chunk = end; chunk-- > first;) free_.push_back(chunk);
    }

    /// Claims a chunk that the reader has finished with.
    bool claim(Chunks& chunks, PendingPacket& packet, u64 head) {
        if (take_free(chunks, packet, head)) return true;
        // More chunks are pinned than the reader is allowed to hold.
        if (lingering_.size() <= chunks.allowed_pins()) return false;
        chunks.evict();
        return take_free(chunks, packet, head);
    }
    void published(const Chunks& chunks, const PendingPacket& packet) {
        unread_[(packet.sequence - 1) % chunks.count()] = packet.chunk;
    }
    void aborted(const Chunks&, u32 chunk) { linger(chunk); }

    /// Number of packets accepted before one is dropped.
    [[nodiscard]] u64 free(const Chunks& chunks, u64 head) {
        collect(chunks, head);
        return free_.size();
    }

private:
    bool take_free(Chunks& chunks, PendingPacket& packet, u64 head) {
        if (free_.empty()) collect(chunks, head);
        while (!free_.empty()) {
            const u32 chunk = free_.back();
            free_.pop_back();
            if (chunks.take(chunk, packet)) {
                listed_[chunk] = false;
                return true;
            }
            lingering_.push_back(chunk);
        }
        return false;
    }

    /// Marks a chunk as soon free. Corrupted slots can name the same chunk twice, so it is listed only once.
    void linger(u32 chunk) {
        if (listed_[chunk]) return;
        listed_[chunk] = true;
        lingering_.push_back(chunk);
    }

    /// Collects chunks that have become free. A consumed packet is never pinned again, so free chunks stay free.
    void collect(const Chunks& chunks, u64 head) {
        const u64 reached = chunks.cursor(head);
        while (cursor_ < reached) linger(unread_[cursor_++ % chunks.count()]);
        const auto rest = std::partition(lingering_.begin(), lingering_.end(), [&](u32 chunk) { return chunks.pinned(chunk); });
        free_.insert(free_.end(), rest, lingering_.end());
        lingering_.erase(rest, lingering_.end());
    }

    // Every chunk is in one of these three. The last one freed is claimed first, as it is still in the cache.
    std::vector<u32> free_;
    std::vector<u32> lingering_;  // consumed, but pinned at the last check
    std::vector<u32> unread_;     // chunk of each packet after `cursor_`, at (sequence - 1) % chunks
    std::vector<bool> listed_;    // whether a chunk is in `free_` or `lingering_`
    std::vector<bool> wanted_;    // `line_up`'s own: whether a chunk is in `free_`
    u64 cursor_ = 0;              // cursor of the reader at the last check
};

}  // namespace asysi
