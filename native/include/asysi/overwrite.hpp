// The policy that goes round: the oldest packet gives way, read or not; pinned chunks are passed by.
#pragma once

#include "asysi/claim.hpp"

namespace asysi {

class Overwrite {
public:
    /// Begins with the chunk after the newest packet's: oldest first, however the last producer ended.
    void begin(const Chunks& chunks, u64 head) { next_ = head == 0 ? 0 : (chunks.holding(head) + 1) % chunks.count(); }

    /// Claims a chunk that nobody has pinned.
    bool claim(Chunks& chunks, PendingPacket& packet, u64) {
        if (scan(chunks, packet, chunks.allowed_pins())) return true;
        chunks.evict();
        return scan(chunks, packet, chunks.count());
    }
    void published(const Chunks& chunks, const PendingPacket& packet) { next_ = chunks.after(packet.chunk); }
    void aborted(u32) {}

    /// Packets taken before any is dropped.
    [[nodiscard]] u64 free(const Chunks& chunks, u64) const { return chunks.geometry().depth(); }
    /// Chunk of the newest packet: a gap's slot keeps it.
    [[nodiscard]] u32 newest(const Chunks& chunks) const { return (next_ + chunks.count() - 1) % chunks.count(); }

private:
    /// Goes round once, or until more than `patience` chunks were pinned.
    bool scan(Chunks& chunks, PendingPacket& packet, u64 patience) {
        u32 chunk = next_;
        for (u32 tried = 0; tried < chunks.count() && tried <= patience; ++tried, chunk = chunks.after(chunk)) {
            if (chunks.take(chunk, packet)) return true;
        }
        return false;
    }

    u32 next_ = 0;  // chunk to try first
};

}  // namespace asysi
