// What both fuzzers share: a ring whose bytes are the input, and a mutation that knows where its fields are.
//
// An input is the bytes of a control file and, behind them, of a data file. The first 4 bytes of the magic and the rest of
// the header are mutated more rarely than what the participants share, or hardly any input would be let in.
#pragma once

#include <cstring>
#include <fstream>
#include <vector>

#include "../tests/guard.hpp"
#include "../tests/hostile.hpp"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace asysi::fuzz {

/// Small, so that an input is short: about 8 KiB.
inline Geometry shape(Policy policy) {
    return {.shards = 1, .chunks = 4, .chunk_bytes = 512, .accounts = 2, .pins = 1, .policy = policy, .readers = {"r"}};
}

inline std::string& folder() {
    static test::Folder home;
    return home.path;
}

inline void write(const std::string& path, const std::uint8_t* bytes, std::size_t count) {
    const File file(path, O_RDWR | O_CREAT, 0600);
    EXPECT(ftruncate(file.descriptor(), static_cast<off_t>(count)) == 0);
    EXPECT(pwrite(file.descriptor(), bytes, count, 0) == static_cast<ssize_t>(count));
}

/// Writes both files of the ring.
inline void lay_out(const std::uint8_t* bytes, std::size_t count) {
    const std::size_t control = std::min<std::size_t>(count, Sections(shape(Policy::overwrite)).control_bytes);
    write(control_path(folder()), bytes, control);
    write(data_path(folder()), bytes + control, count - control);
}

/// Both files of a ring in which `publish` has been at work, as an input.
template <typename Publish>
std::vector<std::uint8_t> seed(Policy policy, const Publish& publish) {
    const test::Folder home;
    create(home.path, shape(policy));
    publish(home.path);
    std::vector<std::uint8_t> bytes;
    for (const auto& path : {control_path(home.path), data_path(home.path)}) {
        std::ifstream file(path, std::ios::binary);
        bytes.insert(bytes.end(), std::istreambuf_iterator<char>(file), {});
    }
    return bytes;
}

/// Overwrites a word that participants share with one that does harm.
inline void mutate_word(std::uint8_t* data, std::size_t size, test::Dice& dice) {
    const Geometry g = shape(Policy::overwrite);
    const Sections at(g);
    const std::pair<u64, u64> sections[] = {
        {at.live, at.shards}, {at.shards, at.readers}, {at.readers, at.cursors}, {at.cursors, at.accounts},
        {at.accounts, at.books}, {at.books, at.slots}, {at.slots, at.states}, {at.states, at.states + g.chunks * sizeof(ChunkState)},
        {at.control_bytes, at.control_bytes + header_bytes}, {at.control_bytes + g.chunk_bytes, at.control_bytes + g.chunk_bytes + header_bytes}};
    const auto& [from, to] = sections[dice.below(std::size(sections))];
    const u64 place = from + dice.below((to - from) / 4) * 4;
    const u64 bytes = dice.below(2) == 0 ? 4 : 8;
    if (place + bytes > size) return;
    u64 word = 0;
    std::memcpy(&word, data + place, bytes);
    const u64 harmful[] = {0, 1, ~u64{0}, u64{1} << 63, word + 1, word - 1, word ^ (u64{1} << dice.below(64)), word << 17,
                           word >> 16, dice.below(64), g.chunks, at.control_bytes, dice()};
    word = harmful[dice.below(std::size(harmful))];
    std::memcpy(data + place, &word, bytes);
}

inline std::size_t mutate(std::uint8_t* data, std::size_t size, std::size_t most, unsigned int random) {
    test::Dice dice(random);
    if (dice.below(16) == 0) return LLVMFuzzerMutate(data, size, most);
    for (u64 n = 1 + dice.below(4); n > 0; --n) mutate_word(data, size, dice);
    return size;
}

}  // namespace asysi::fuzz
