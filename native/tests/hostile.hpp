// What a participant does in a ring that somebody else writes to as he likes. It may be refused, lose packets and get
// packets that are none; it may not crash, hang, or touch a byte that is not its own.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "fixture.hpp"

namespace asysi::test {

/// How a visit ended.
enum class End { whole, refused_ring, refused_argument, refused_system };
inline constexpr std::size_t ends = 4;

template <typename Work>
End guarded_by_types(const Work& work) {
    try {
        work();
        return End::whole;
    } catch (const RingError&) {
        return End::refused_ring;
    } catch (const std::invalid_argument&) {
        return End::refused_argument;
    } catch (const std::filesystem::filesystem_error&) {
        return End::refused_system;
    } catch (const std::system_error&) {
        return End::refused_system;
    }
}

/// Copies a packet into memory of exactly a chunk's size, through what the pin says.
inline u64 copy_out(const Pin& pin, const Geometry& g) {
    EXPECT(pin.shard < g.shards && pin.chunk < g.chunks && pin.account < g.accounts);
    EXPECT(pin.size >= header_bytes && pin.size <= g.chunk_bytes);
    const auto copy = std::make_unique<std::byte[]>(g.chunk_bytes);
    std::memcpy(copy.get(), pin.bytes, pin.size);
    return checksum(copy.get(), pin.size);
}

/// A reader's life of `turns`; returns how many packets it got.
inline u64 visit_as_reader(const std::string& folder, const std::string& name, u64 turns, std::chrono::microseconds patience) {
    Reader reader(folder, name);
    const Ring look(folder, Ring::Role::look);
    u64 taken = 0;
    guarded_by_types([&] { reader.restore_durable(0, 1, std::nullopt); });
    for (u64 turn = 0; turn < turns && !reader.ended(); ++turn) {
        std::vector<Pin> pins;
        reader.gather(pins, 4);
        EXPECT(pins.size() <= 4);
        if (pins.empty()) reader.wait(patience);
        for (const Pin& pin : pins) {
            static_cast<void>(copy_out(pin, look.geometry()));
            reader.consumed(pin);
            static_cast<void>(reader.holds(pin));
            static_cast<void>(reader.release(pin));
            ++taken;
        }
        EXPECT(reader.lag() >= 0 && reader.lag() <= 1);
        reader.mark_durable();
        guarded_by_types([&] { reader.gauge(static_cast<u32>(turn % 3), 1, 1.0); });
    }
    reader.settle();
    reader.mark_durable();
    reader.finalise(ReaderState::finalised);
    reader.close();
    return taken;
}

/// A producer's life of `turns`; returns how many packets it published.
inline u64 visit_as_producer(const std::string& folder, u64 seed, u64 turns) {
    Writer writer(folder);
    const Geometry& g = writer.geometry();
    Dice dice(seed);
    u64 published = 0;
    std::vector<u32> accounts;
    for (u32 i = 0; i < g.accounts; ++i) {
        guarded_by_types([&] { accounts.push_back(writer.account("account " + std::to_string(i))); });
    }
    if (accounts.empty()) accounts.push_back(0);
    std::vector<Claim> open;
    for (u64 turn = 1; turn <= turns; ++turn) {
        guarded_by_types([&] {
            const u32 account = accounts[dice.below(accounts.size())];
            const Parcel packet{.shard = static_cast<u32>(dice.below(g.shards)), .account = account, .number = turn,
                                .rows = 1 + static_cast<u32>(dice.below(2)), .source = dice.below(4) == 0 ? turn : 0};
            if (dice.below(4) == 0) {
                if (auto claimed = claim(writer, packet)) open.push_back(std::move(*claimed));
                if (open.size() > dice.below(4)) {
                    if (dice.below(2) == 0) open.back().commit();
                    open.pop_back();
                }
            } else {
                published += publish(writer, packet);
            }
            if (dice.below(8) == 0) writer.book(account, {.seen = 1, .sampled_out = 1}, packet.shard, dice.below(2) == 0 ? turn : 0);
            static_cast<void>(writer.source(packet.shard));
            EXPECT(writer.free(packet.shard) <= g.chunks);
        });
    }
    writer.close(WriterState::complete);
    return published;
}

/// Everything that one who takes no part can ask.
inline void visit_as_onlooker(const std::string& folder) {
    Control control(folder);
    const Ring& ring = control.ring();
    const Geometry& g = ring.geometry();
    static_cast<void>(control.writer_state());
    for (u32 r = 0; r < g.reader_count(); ++r) {
        static_cast<void>(control.reader_state(g.readers[r]));
        EXPECT(ring.lag(r) >= 0 && ring.lag(r) <= 1);
    }
    EXPECT(ring.accounts() <= g.accounts);
    for (u32 account = 0; account < ring.accounts(); ++account) {
        EXPECT(ring.account_name(account).size() <= account_name_bytes);
        static_cast<void>(ring.account(account).counters.load());
        for (u32 r = 0; r < g.reader_count(); ++r) static_cast<void>(ring.book(r, account).counters.load());
    }
}

}  // namespace asysi::test
