// Takeover by a new producer: completes or undoes the operations during which the previous one was killed.
//
// Every step can itself be interrupted by a kill and repeated.
#pragma once

#include "asysi/books.hpp"

namespace asysi {

class Takeover {
public:
    Takeover(const Ring& ring, ProducerBooks& books) : ring_(ring), books_(books) {}

    /// Repairs counters and chunks. Afterwards no intent is open and no chunk is claimed.
    void repair() {
        const Live& live = ring_.live();
        for (u32 s = 0; s < ring_.geometry().shards; ++s) {
            if (ring_.shard(s).intent.open.load(std::memory_order_acquire) == 1) resolve(s);
            // After the intent, which may record the result of a claim.
            for (u32 chunk = 0; chunk < ring_.geometry().chunks; ++chunk) {
                if (ring_.claim(s, chunk).open.load(std::memory_order_acquire) == 1) resolve_claim(s, chunk);
            }
        }
        if (live.writer_state.load(std::memory_order_acquire) == static_cast<u32>(WriterState::attached)) book_owed();
        for (u32 s = 0; s < ring_.geometry().shards; ++s) free_open_claims(s);
    }

    /// Announces this producer; returns its generation.
    u32 enter() {
        Live& live = ring_.live();
        live.writer.bytes.store(ring_.data().bytes(), std::memory_order_relaxed);
        live.writer.populated.store(static_cast<u32>(ring_.data().populated()), std::memory_order_relaxed);
        live.writer.registered.store(0, std::memory_order_relaxed);
        ASYSI_TESTPOINT("takeover.mapping.noted");
        const u32 generation = live.generation.load(std::memory_order_relaxed) + 1;
        live.generation.store(generation, std::memory_order_release);
        ASYSI_TESTPOINT("takeover.generation.stored");
        live.writer_state.store(static_cast<u32>(WriterState::attached), std::memory_order_release);
        ASYSI_TESTPOINT("takeover.state.stored");
        return generation;
    }

private:
    /// Completes what was committed. Counts the rest as lost in the crash, or undoes it if the producer can repeat it from
    /// its source.
    void resolve(u32 shard) {
        Intent& intent = ring_.shard(shard).intent;
        const auto read = [](const auto& value) { return value.load(std::memory_order_relaxed); };
        const u32 account = read(intent.account);
        if (account < books_.registered()) {
            const u64 source = read(intent.source);
            const u64 rows = read(intent.rows);
            const u64 seen = read(intent.book_seen) != 0 ? rows : 0;
            const bool committed = ring_.shard(shard).head.load(std::memory_order_acquire) >= read(intent.sequence);
            const bool booked = ring_.account(account).counters.version.load() != read(intent.version);
            if (!booked && committed && read(intent.tombstone) != 0) {
                books_.add(account, {.seen = seen, .dropped = rows, .reason = reason::no_chunk});
            } else if (!booked && committed) {
                books_.add(account, {.seen = seen, .published = rows, .packets = 1});
            } else if (!booked && !repeats(shard, source)) {
                books_.add(account, {.seen = seen, .dropped = rows, .reason = reason::crash});
            }
            ASYSI_TESTPOINT("takeover.books.stored");
            if (booked || committed) books_.raise_source(shard, source);
            ASYSI_TESTPOINT("takeover.source.raised");
        }
        const u32 claim = read(intent.claim);
        if (claim != 0 && claim <= ring_.geometry().chunks) books_.close_claim(shard, claim - 1);
        intent.open.store(0, std::memory_order_release);
        ASYSI_TESTPOINT("takeover.intent.closed");
    }

    /// The rows of an open claim are lost in the crash, or repeated. Like all updates, they are counted within an intent:
    /// after a kill in between, the next takeover can tell whether they were.
    void resolve_claim(u32 shard, u32 chunk) {
        const ClaimRecord& claim = ring_.claim(shard, chunk);
        const auto read = [](const auto& value) { return value.load(std::memory_order_relaxed); };
        const u32 account = read(claim.account);
        const u64 source = read(claim.source);
        if (account >= books_.registered() || repeats(shard, source)) return books_.close_claim(shard, chunk);
        const u64 rows = read(claim.rows);
        const bool book_seen = read(claim.book_seen) != 0;
        books_.open_intent({.shard = shard, .sequence = ProducerBooks::never, .account = account, .rows = rows,
                            .book_seen = book_seen, .source = source, .claim = chunk + 1});
        books_.add(account, {.seen = book_seen ? rows : 0, .dropped = rows, .reason = reason::crash});
        ASYSI_TESTPOINT("takeover.claim.booked");
        books_.settle(shard, source, chunk + 1);
    }

    /// Whether the producer repeats rows with this mark: not if it is at or below the shard's mark, which a later packet
    /// may have raised while this one was open.
    [[nodiscard]] bool repeats(u32 shard, u64 source) const {
        return source > ring_.shard(shard).source.load(std::memory_order_relaxed);
    }

    /// Counts rows that the dead producer saw but did not account for as lost; they were in flight.
    void book_owed() {
        for (u32 i = 0; i < books_.registered(); ++i) {
            const auto& c = books_.of(i);
            u64 settled = c[produced::published] + c[produced::sampled_out];
            for (u32 r = 0; r < max_reasons; ++r) settled += c[produced::dropped + r];
            if (c[produced::seen] <= settled) continue;
            books_.add(i, {.dropped = c[produced::seen] - settled, .reason = reason::crash});
            ASYSI_TESTPOINT("takeover.owed.booked");
        }
    }

    /// Frees open claims, and clears pins of nonexistent readers, which would never be cleared otherwise.
    void free_open_claims(u32 shard) {
        const u64 strays = word::pin_mask & ~((u64{1} << ring_.geometry().reader_count()) - 1);
        for (u32 chunk = 0; chunk < ring_.geometry().chunks; ++chunk) {
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

    const Ring& ring_;
    ProducerBooks& books_;
};

}  // namespace asysi
