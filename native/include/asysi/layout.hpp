// Layout of the control file: the state that processes share besides the chunks.
//
//   ControlHeader | Live | shards | readers | cursors | accounts | books | slots | states
//
// The header never changes after creation. Every participant copies and validates it once, and computes all offsets from
// the copy; it never trusts bounds in the file again.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "asysi/error.hpp"
#include "asysi/packet.hpp"
#include "asysi/testpoint.hpp"

namespace asysi {

using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i64 = std::int64_t;

static_assert(std::endian::native == std::endian::little, "packets are little-endian");
static_assert(std::atomic<u64>::is_always_lock_free && std::atomic<u32>::is_always_lock_free);
static_assert(sizeof(std::atomic<u64>) == 8 && sizeof(std::atomic<u32>) == 4);

inline constexpr u64 control_magic = 0x474E495249535341;  // "ASSIRING" in memory
inline constexpr u16 abi_major = 3;
inline constexpr u16 abi_minor = 2;  // 1: packets of version 3, 2: of version 4, which earlier minors do not read
inline constexpr u32 endian_tag = 0x01020304;

inline constexpr u32 max_readers = 16;
inline constexpr u32 max_reasons = 8;
inline constexpr u32 mailbox_words = 64;
inline constexpr u32 gauge_slots = 8;
inline constexpr u32 max_shards = 256;
inline constexpr u32 max_chunks = 65535;
inline constexpr u32 max_accounts = 65536;
inline constexpr std::size_t reader_name_bytes = 64;
inline constexpr std::size_t account_name_bytes = 192;

enum class Policy : u32 { drop_new = 0, overwrite = 1 };
enum class WriterState : u32 { absent = 0, attached = 1, complete = 2, attempt_over = 3 };
enum class ReaderState : u32 { absent = 0, attached = 1, finalised = 2, checkpointed = 3 };

/// Drop reasons used by the ring itself; workers/asysi/bus/states.py names all eight.
namespace reason {
inline constexpr u32 crash = 0;
inline constexpr u32 ring_full = 1;
inline constexpr u32 no_chunk = 3;
inline constexpr u32 error = 5;
}  // namespace reason

struct ControlHeader {
    u64 magic;
    u16 major;
    u16 minor;
    u32 endian;
    u32 control_header_bytes;
    u32 packet_header_bytes;
    u32 shards;
    u32 chunks;
    u32 readers;
    u32 accounts;
    u32 pins;
    u32 policy;
    u64 chunk_bytes;
    u64 control_bytes;
    u64 data_bytes;
    // Offsets of the sections, for inspection tools; participants compute them.
    u64 live_at;
    u64 shards_at;
    u64 readers_at;
    u64 cursors_at;
    u64 accounts_at;
    u64 books_at;
    u64 slots_at;
    u64 states_at;
    char reader_names[max_readers][reader_name_bytes];
};
static_assert(std::is_trivially_copyable_v<ControlHeader>);
static_assert(offsetof(ControlHeader, chunk_bytes) == 48 && offsetof(ControlHeader, reader_names) == 136);
static_assert(sizeof(ControlHeader) == 1160);

/// Numbers that are updated atomically as a group: readers see either all old or all new values, even if the only writer
/// is killed at any point.
///
/// Has two copies; the low bit of the version selects the valid one. Because each word uses release stores and acquire
/// loads, rechecking the version after reading is sufficient, without fences.
template <std::size_t Words>
struct Versioned {
    using Values = std::array<u64, Words>;

    std::atomic<u64> version;
    std::array<std::array<std::atomic<u64>, Words>, 2> copies;

    void store(const Values& values) {
        const u64 next = version.load(std::memory_order_relaxed) + 1;
        for (std::size_t i = 0; i < Words; ++i) copies[next & 1][i].store(values[i], std::memory_order_release);
        ASYSI_TESTPOINT("books.copy.written");
        version.store(next, std::memory_order_release);
    }

    [[nodiscard]] Values load() const {
        Values values{};
        // Bounded: a corrupted version must not hang the reader. A writer changes it once per packet, so a second attempt
        // is rare and a third practically never happens.
        for (int attempt = 0; attempt < 100'000; ++attempt) {
            const u64 before = version.load(std::memory_order_acquire);
            for (std::size_t i = 0; i < Words; ++i) values[i] = copies[before & 1][i].load(std::memory_order_acquire);
            if (version.load(std::memory_order_relaxed) == before) break;
        }
        return values;
    }
};

/// Redo record of the update that a shard's thread is about to apply, so that a takeover can complete or undo it.
struct Intent {
    alignas(64) std::atomic<u64> open;  // 1 while the record is valid
    std::atomic<u64> sequence;          // committed once the shard's head has reached it
    std::atomic<u32> account;
    std::atomic<u32> claim;    // chunk + 1 of the open claim that this completes; 0: none
    std::atomic<u64> version;  // of the account's counters before; if still equal, not applied yet
    std::atomic<u64> rows;
    std::atomic<u64> book_seen;
    std::atomic<u64> source;
    std::atomic<u64> tombstone;  // 1: a gap is published, the rows are dropped
};

/// Properties of a participant's data mapping, for monitoring.
struct Attached {
    std::atomic<u64> bytes;
    std::atomic<u32> populated;   // a Populated
    std::atomic<u32> registered;  // 1: registered with the accelerator's driver
};

struct Live {
    alignas(64) std::atomic<u32> doorbell;
    std::atomic<u32> unused;
    std::atomic<u64> waiters;  // one bit per reader
    alignas(64) std::atomic<u32> writer_state;
    std::atomic<u32> generation;
    std::atomic<u32> accounts;  // registered
    u32 unused_too;
    Attached writer;
    alignas(64) std::array<std::atomic<u64>, mailbox_words> mailbox;
};

struct ShardEntry {
    alignas(64) std::atomic<u64> head;    // sequence of the newest packet; 0 if none
    alignas(64) std::atomic<u64> source;  // highest settled mark
    std::atomic<u64> scattered;           // number of multi-chunk claims that were not adjacent
    Intent intent;
};

struct ReaderEntry {
    alignas(64) std::atomic<u32> state;
    std::atomic<u32> epoch;  // incremented when its pins are revoked
    Attached mapping;
};

namespace produced {
enum : std::size_t { seen, published, sampled_out, packets, dropped, words = dropped + max_reasons };
}
namespace consumed {
enum : std::size_t { position, durable, lapped, rolled_back, words };
}

struct AccountEntry {
    alignas(64) char name[account_name_bytes];
    std::atomic<u32> shard;  // its shard + 1; 0 before the first packet. Order is only guaranteed within a shard
    u32 unused;
    Versioned<produced::words> counters;
};

struct BookEntry {
    alignas(64) Versioned<consumed::words> counters;
    std::array<std::atomic<u64>, gauge_slots> gauges;
};

/// Record of an open claim, for takeover. It is closed within the intent that counts its rows.
struct ClaimRecord {
    std::atomic<u32> open;  // 1 while the record is valid
    std::atomic<u32> account;
    std::atomic<u64> rows;
    std::atomic<u64> source;
    std::atomic<u32> book_seen;
    u32 unused;
};

struct ChunkState {
    alignas(64) std::atomic<u64> word;  // generation 47 | W 1 | pins 16
    ClaimRecord claim;
};

static_assert(sizeof(Live) == 64 * 10 && sizeof(Intent) == 64 && sizeof(ShardEntry) == 192 && sizeof(ReaderEntry) == 64);
static_assert(sizeof(AccountEntry) == 448 && sizeof(BookEntry) == 192 && sizeof(ChunkState) == 64);
static_assert(std::is_standard_layout_v<Live> && std::is_standard_layout_v<AccountEntry>);

/// Encoding of a chunk's state word and of a descriptor slot.
namespace word {
inline constexpr u64 pin_mask = 0xFFFF;
inline constexpr u64 writing = u64{1} << 16;
inline constexpr u64 generation_mask = (u64{1} << 47) - 1;

constexpr u64 generation(u64 state) { return state >> 17; }
constexpr u64 state(u64 generation) { return (generation & generation_mask) << 17; }

// Slot: tombstone 1 | generation 47 (of a tombstone: its sequence) | chunk 16. A tombstone keeps the chunk of the previous
// slot, so the newest slot always determines where the next claim starts.
inline constexpr u64 tombstone = u64{1} << 63;
constexpr u64 slot(u64 generation, u32 chunk) { return ((generation & generation_mask) << 16) | chunk; }
constexpr u64 slot_generation(u64 slot) { return (slot >> 16) & generation_mask; }
constexpr u32 slot_chunk(u64 slot) { return static_cast<u32>(slot & 0xFFFF); }
}  // namespace word

/// Geometry of a ring: everything that is fixed at creation.
struct Geometry {
    u32 shards = 0;
    u32 chunks = 0;
    u64 chunk_bytes = 0;
    u32 accounts = 0;
    u32 pins = 0;  // maximum per reader and shard
    Policy policy = Policy::overwrite;
    std::vector<std::string> readers;

    [[nodiscard]] u32 reader_count() const { return static_cast<u32>(readers.size()); }
    /// Maximum number of unread packets per shard that are still available.
    ///
    /// overwrite: a claim skips pinned chunks, at most readers x pins of them, and one more is being written. Each
    /// additional open claim uses another one.
    /// drop_new: all chunks. A chunk is claimed only after the reader's cursor has passed its packet and no pin is left,
    /// so unread packets are never overwritten regardless of pins. A packet that is consumed but still pinned only
    /// reduces the room reported by `Writer::free`.
    [[nodiscard]] u32 depth() const { return policy == Policy::drop_new ? chunks : chunks - reader_count() * pins - 1; }
    bool operator==(const Geometry&) const = default;
};

/// Byte offset of each section of the control file.
struct Sections {
    u64 live, shards, readers, cursors, accounts, books, slots, states, control_bytes, data_bytes;

    explicit Sections(const Geometry& g) : Sections(g, g.reader_count()) {}
    Sections(const Geometry& g, u64 readers_) {
        const u64 chunk_count = u64{g.shards} * g.chunks;
        live = up(sizeof(ControlHeader), 64);
        shards = live + sizeof(Live);
        readers = shards + u64{g.shards} * sizeof(ShardEntry);
        cursors = readers + readers_ * sizeof(ReaderEntry);
        accounts = cursors + readers_ * cursor_stride(g);
        books = accounts + u64{g.accounts} * sizeof(AccountEntry);
        slots = books + readers_ * g.accounts * sizeof(BookEntry);
        states = up(slots + chunk_count * sizeof(u64), 64);
        control_bytes = up(states + chunk_count * sizeof(ChunkState), 4096);
        data_bytes = up(chunk_count * g.chunk_bytes, 4096);
    }

    /// Size of one reader's cursors, rounded up to whole cache lines.
    static u64 cursor_stride(const Geometry& g) { return up(u64{g.shards} * sizeof(u64), 64); }
    static u64 up(u64 bytes, u64 unit) { return (bytes + unit - 1) / unit * unit; }
};

/// Describes `geometry` for messages.
inline std::string describe(const Geometry& g) {
    std::string names;
    for (const auto& name : g.readers) names += (names.empty() ? "" : ", ") + name;
    return std::to_string(g.shards) + " shards x " + std::to_string(g.chunks) + " chunks x " +
           std::to_string(g.chunk_bytes) + " bytes, readers [" + names + "], " + std::to_string(g.pins) + " pins, " +
           std::to_string(g.accounts) + " accounts, " + (g.policy == Policy::overwrite ? "overwrite" : "drop_new");
}

/// Throws GeometryError if the geometry is invalid.
inline void check(const Geometry& g) {
    const auto refuse = [](const std::string& why) { throw GeometryError("the ring cannot be laid out: " + why); };
    const auto between = [&](const char* name, u64 value, u64 low, u64 high) {
        if (value >= low && value <= high) return;
        refuse(std::string(name) + " = " + std::to_string(value) + " is not within " + std::to_string(low) + " to " +
               std::to_string(high));
    };
    between("shards", g.shards, 1, max_shards);
    between("chunks", g.chunks, 3, max_chunks);
    between("chunk_bytes", g.chunk_bytes, 256, u64{1} << 30);
    between("accounts", g.accounts, 1, max_accounts);
    between("pins", g.pins, 1, 1024);
    between("readers", g.readers.size(), 1, max_readers);
    if (g.chunk_bytes % 64 != 0) {
        refuse("chunk_bytes = " + std::to_string(g.chunk_bytes) + " is not a multiple of 64");
    }
    if (g.policy == Policy::drop_new && g.readers.size() != 1) {
        refuse("drop_new serves one reader, " + std::to_string(g.readers.size()) + " are named");
    }
    const u64 held = u64{g.reader_count()} * g.pins + 1;
    if (g.policy == Policy::overwrite && g.chunks <= held) {
        refuse("readers x pins + 1 = " + std::to_string(g.reader_count()) + " x " + std::to_string(g.pins) + " + 1 = " +
               std::to_string(held) + " chunks can be held, so " + std::to_string(g.chunks) + " chunks leave no depth");
    }
    for (std::size_t i = 0; i < g.readers.size(); ++i) {
        const auto& name = g.readers[i];
        if (name.empty() || name.size() >= reader_name_bytes || name.find('\0') != std::string::npos) {
            refuse("a reader's name has 1 to 63 bytes, not " + std::to_string(name.size()));
        }
        for (std::size_t j = 0; j < i; ++j) {
            if (g.readers[j] == name) refuse("two readers are named " + name);
        }
    }
}

}  // namespace asysi
