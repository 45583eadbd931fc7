// The policy that goes round: the oldest packet gives way, read or not; pinned chunks are passed by.
#pragma once

#include "asysi/claim.hpp"

namespace asysi {

class Overwrite {
public:
    /// Begins with the chunk after the newest packet's: oldest first, however the last producer ended.
    void begin(const Chunks& chunks, u64 head) {
        newest_ = head == 0 ? chunks.count() - 1 : chunks.holding(head);
        next_ = chunks.after(newest_);
    }

    /// Has the next `count` claims take neighbours, if there are as many: the first ones from where it is, in one round.
    /// What is passed by stays a round longer.
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

    /// Claims a chunk that nobody has pinned.
    bool claim(Chunks& chunks, PendingPacket& packet, u64) {
        if (scan(chunks, packet, chunks.allowed_pins())) return true;
        chunks.evict();
        return scan(chunks, packet, chunks.count());
    }
    void published(const Chunks&, const PendingPacket& packet) { newest_ = packet.chunk; }
    /// The newest claim's chunk is the next one's again. An older one's waits for its turn.
    void aborted(const Chunks& chunks, u32 chunk) {
        if (next_ == chunks.after(chunk)) next_ = chunk;
    }

    /// Packets taken before any is dropped.
    [[nodiscard]] u64 free(const Chunks& chunks, u64) const { return chunks.geometry().depth(); }
    /// Chunk of the newest packet: a gap's slot keeps it.
    [[nodiscard]] u32 newest() const { return newest_; }

private:
    /// Goes round once, or until more than `patience` chunks were pinned.
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
