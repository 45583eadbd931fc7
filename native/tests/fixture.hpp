// What the native tests share: a ring in memory, and packets whose content proves itself.
#pragma once

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>

#include <unistd.h>

#include "asysi/control.hpp"
#include "asysi/reader.hpp"
#include "asysi/writer.hpp"

namespace asysi::test {

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            std::fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);    \
            std::_Exit(1);                                                                         \
        }                                                                                          \
    } while (false)

/// A folder in memory that goes away with the object.
class Folder {
public:
    Folder() {
        char name[] = "/dev/shm/asysi-test-XXXXXX";
        EXPECT(mkdtemp(name) != nullptr);
        path = name;
    }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    ~Folder() { std::filesystem::remove_all(path); }
    std::string path;
};

inline constexpr u32 width = 4;
inline constexpr u32 most_rows = 8;

/// Numbers that look random and repeat (splitmix64, Steele, Lea and Flood 2014).
class Dice {
public:
    explicit Dice(u64 seed) : state_(seed) {}
    u64 operator()() {
        u64 z = state_ += 0x9E3779B97F4A7C15;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
        return z ^ (z >> 31);
    }
    u64 below(u64 limit) { return (*this)() % limit; }

private:
    u64 state_;
};

/// Checksum of bytes: FNV-1a, 64 bits.
inline u64 checksum(const std::byte* bytes, std::size_t count) {
    u64 sum = 0xCBF29CE484222325;
    for (std::size_t i = 0; i < count; ++i) sum = (sum ^ static_cast<u64>(bytes[i])) * 0x100000001B3;
    return sum;
}

/// A packet to publish. Its header's `step` is the checksum of its payload, `captured_ns` its number.
struct Parcel {
    u32 shard = 0;
    u32 account = 0;
    u64 number = 0;
    u32 rows = 1;  // at most most_rows
    u64 source = 0;
    bool book_seen = true;
};

/// The payload of a packet and what describes it.
struct Content {
    std::array<u32, most_rows * width> payload{};
    Block block{};

    explicit Content(const Parcel& packet) {
        Dice dice(packet.number * 31 + packet.account);
        // Bits of ordinary floats: those of a NaN need not go through a ring unchanged.
        for (auto& value : payload) value = static_cast<u32>(dice()) & 0x3FFFFFFF;
        const auto* const bytes = reinterpret_cast<const std::byte*>(payload.data());
        block.shard = packet.shard;
        block.header.account = packet.account;
        block.header.width = width;
        block.header.source = packet.source;
        block.header.captured_ns = packet.number;
        block.header.step = checksum(bytes, packet.rows * width * sizeof(u32));
        block.rows = {bytes, width * sizeof(u32), nullptr, packet.rows, width, Dtype::float32};
        block.book_seen = packet.book_seen;
    }
    Content(const Content&) = delete;
    Content& operator=(const Content&) = delete;
};

inline bool publish(Writer& writer, const Parcel& packet) { return writer.publish(Content(packet).block); }

/// A claim with its payload written: what is left is to commit it, or not.
inline std::optional<Claim> claim(Writer& writer, const Parcel& packet) {
    const Content content(packet);
    auto claim = writer.claim(content.block);
    if (claim) std::memcpy(claim->payload().data(), content.payload.data(), packet.rows * width * sizeof(u32));
    return claim;
}

inline PacketHeader header_of(const Pin& pin) {
    PacketHeader header;
    std::memcpy(&header, pin.bytes, sizeof header);
    return header;
}

/// Whether the bytes of `pin` are what one call of `publish` wrote.
inline bool whole(const Pin& pin) {
    const PacketHeader header = header_of(pin);
    const u64 payload = u64{pin.rows} * width * sizeof(u32);
    return header.sequence == pin.sequence && header.rows == pin.rows && header.account == pin.account &&
           header.payload_bytes == payload && header.step == checksum(pin.bytes + pin.size - payload, payload);
}

inline u64 dropped(const Versioned<produced::words>::Values& made) {
    u64 sum = 0;
    for (u32 r = 0; r < max_reasons; ++r) sum += made[produced::dropped + r];
    return sum;
}

/// seen = published + sampled out + dropped
inline bool balances(const Versioned<produced::words>::Values& made) {
    return made[produced::seen] == made[produced::published] + made[produced::sampled_out] + dropped(made);
}

/// published = durable + lapped + rolled back
inline bool balances(const Versioned<produced::words>::Values& made, const Versioned<consumed::words>::Values& used) {
    return made[produced::published] == used[consumed::durable] + used[consumed::lapped] + used[consumed::rolled_back];
}

/// Chunks that are being written or that anybody pins: none when nobody is at work.
inline u32 leaked(const Ring& ring) {
    u32 count = 0;
    for (u32 shard = 0; shard < ring.geometry().shards; ++shard) {
        for (u32 chunk = 0; chunk < ring.geometry().chunks; ++chunk) {
            count += (ring.state(shard, chunk).load() & (word::writing | word::pin_mask)) != 0;
        }
    }
    return count;
}

}  // namespace asysi::test
