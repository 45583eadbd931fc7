// The round-robin policy: overwrites the oldest packet, read or not; skips pinned chunks.
#pragma once

#include "asysi/claim.hpp"

namespace asysi {

class Overwrite {
public:
    /// Starts with the chunk after that of the newest packet, so that the oldest comes first however the last producer
    /// ended.
    void begin(const Chunks& chunks, u64 head) {
        newest_ = head == 0 ? chunks.count() - 1 : chunks.holding(head);
        next_ = chunks.after(newest_);
    }

    /// Makes the next `count` claims take adjacent chunks, if available: the first run found within one round. Skipped
    /// chunks stay for another round.
    void line_up(const Chunks& chunks, u64, u32 count) {
        u32 first = next_;
        u32 length = 0;
        for (u32 tried = 0; tried < 2 * chunks.count() && length < count; ++tried) {
            const u32 chunk = first + length;
            if (chunk >= chunks.count()) {
                first = length = 0;
            } else if (chunks.pinned(chunk) || chunks.claimed(chunk)) {
                first = chunk + 1;
                length = 0;
            } else {
                ++length;
            }
        }
        if (length == count) next_ = first;
    }

    /// Claims a chunk that is not pinned.
    bool claim(Chunks& chunks, PendingPacket& packet, u64) {
        if (scan(chunks, packet, chunks.allowed_pins())) return true;
        chunks.evict();
        return scan(chunks, packet, chunks.count());
    }
    void published(const Chunks&, const PendingPacket& packet) { newest_ = packet.chunk; }
    /// The chunk of the newest claim is reused for the next one. An older one waits for its turn.
    void aborted(const Chunks& chunks, u32 chunk) {
        if (next_ == chunks.after(chunk)) next_ = chunk;
    }

    /// Number of packets accepted before one is dropped.
    [[nodiscard]] u64 free(const Chunks& chunks, u64) const { return chunks.geometry().depth(); }
    /// Chunk of the newest packet, which the slot of a gap keeps.
    [[nodiscard]] u32 newest() const { return newest_; }

private:
    /// Scans one round, or until more than `patience` chunks were pinned.
    bool scan(Chunks& chunks, PendingPacket& packet, u64 patience) {
        u32 chunk = next_;
        u64 pinned = 0;
        for (u32 tried = 0; tried < chunks.count() && pinned <= patience; ++tried, chunk = chunks.after(chunk)) {
            if (chunks.take(chunk, packet)) {
                next_ = chunks.after(chunk);
                return true;
            }
            if (!chunks.claimed(chunk)) ++pinned;
        }
        return false;
    }

    u32 next_ = 0;    // chunk to try first
    u32 newest_ = 0;  // chunk of the newest packet
};

}  // namespace asysi
