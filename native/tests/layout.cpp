// Where everything that processes share lies, as JSON: structure -> field -> [offset, size].
//
// layout            prints it
// layout FOLDER     writes FOLDER/<version>.json; never over a file that is there: what a version means does not change
#include <cstdio>
#include <string>

#include "asysi/layout.hpp"
#include "asysi/packet.hpp"

using namespace asysi;

namespace {

bool first_structure = true;
bool first_field = true;

void structure(const char* name, std::size_t bytes) {
    std::printf("%s\n  \"%s\": {\"sizeof\": %zu", first_structure ? "" : "},", name, bytes);
    first_structure = first_field = false;
}

void field(const char* name, std::size_t offset, std::size_t bytes) { std::printf(", \"%s\": [%zu, %zu]", name, offset, bytes); }

#define STRUCTURE(type) structure(#type, sizeof(type))
#define FIELD(type, name) field(#name, offsetof(type, name), sizeof(type::name))

}  // namespace

int main(int argc, char** argv) {
    if (argc > 1) {
        const std::string path = std::string(argv[1]) + "/" + std::to_string(abi_major) + "." + std::to_string(abi_minor) + ".json";
        if (std::freopen(path.c_str(), "wx", stdout) == nullptr) {
            std::fprintf(stderr, "%s is there already: a change of layout needs a new version in layout.hpp\n", path.c_str());
            return 1;
        }
    }
    std::printf("{\"abi\": \"%u.%u\", \"packet_version\": %u, \"structures\": {", unsigned{abi_major}, unsigned{abi_minor},
                unsigned{packet_version});
    STRUCTURE(PacketHeader);
    FIELD(PacketHeader, magic), FIELD(PacketHeader, version), FIELD(PacketHeader, header_bytes), FIELD(PacketHeader, sequence),
        FIELD(PacketHeader, source), FIELD(PacketHeader, rows_before), FIELD(PacketHeader, step), FIELD(PacketHeader, captured_ns),
        FIELD(PacketHeader, sampling_rate), FIELD(PacketHeader, generation), FIELD(PacketHeader, attempt), FIELD(PacketHeader, rank),
        FIELD(PacketHeader, account), FIELD(PacketHeader, call_index), FIELD(PacketHeader, rows), FIELD(PacketHeader, width),
        FIELD(PacketHeader, step_rows), FIELD(PacketHeader, step_kept), FIELD(PacketHeader, batch), FIELD(PacketHeader, length),
        FIELD(PacketHeader, part), FIELD(PacketHeader, parts), FIELD(PacketHeader, kind), FIELD(PacketHeader, dtype),
        FIELD(PacketHeader, quantization), FIELD(PacketHeader, flags), FIELD(PacketHeader, payload_bytes),
        FIELD(PacketHeader, scale_bytes), FIELD(PacketHeader, saturated), FIELD(PacketHeader, loss_scale),
        FIELD(PacketHeader, accumulated), FIELD(PacketHeader, microbatch), FIELD(PacketHeader, reduction),
        FIELD(PacketHeader, reserved);
    STRUCTURE(RowRecord);
    FIELD(RowRecord, sample), FIELD(RowRecord, sequence), FIELD(RowRecord, position), FIELD(RowRecord, token), FIELD(RowRecord, flags);
    STRUCTURE(ControlHeader);
    FIELD(ControlHeader, magic), FIELD(ControlHeader, major), FIELD(ControlHeader, minor), FIELD(ControlHeader, endian),
        FIELD(ControlHeader, control_header_bytes), FIELD(ControlHeader, packet_header_bytes), FIELD(ControlHeader, shards),
        FIELD(ControlHeader, chunks), FIELD(ControlHeader, readers), FIELD(ControlHeader, accounts), FIELD(ControlHeader, pins),
        FIELD(ControlHeader, policy), FIELD(ControlHeader, chunk_bytes), FIELD(ControlHeader, control_bytes),
        FIELD(ControlHeader, data_bytes), FIELD(ControlHeader, live_at), FIELD(ControlHeader, shards_at),
        FIELD(ControlHeader, readers_at), FIELD(ControlHeader, cursors_at), FIELD(ControlHeader, accounts_at),
        FIELD(ControlHeader, books_at), FIELD(ControlHeader, slots_at), FIELD(ControlHeader, states_at),
        FIELD(ControlHeader, reader_names);
    STRUCTURE(Live);
    FIELD(Live, doorbell), FIELD(Live, unused), FIELD(Live, waiters), FIELD(Live, writer_state), FIELD(Live, generation),
        FIELD(Live, accounts), FIELD(Live, unused_too), FIELD(Live, writer), FIELD(Live, mailbox);
    STRUCTURE(ShardEntry);
    FIELD(ShardEntry, head), FIELD(ShardEntry, source), FIELD(ShardEntry, scattered), FIELD(ShardEntry, intent);
    STRUCTURE(Intent);
    FIELD(Intent, open), FIELD(Intent, sequence), FIELD(Intent, account), FIELD(Intent, claim), FIELD(Intent, version),
        FIELD(Intent, rows), FIELD(Intent, book_seen), FIELD(Intent, source), FIELD(Intent, tombstone);
    STRUCTURE(ReaderEntry);
    FIELD(ReaderEntry, state), FIELD(ReaderEntry, epoch), FIELD(ReaderEntry, mapping);
    STRUCTURE(Attached);
    FIELD(Attached, bytes), FIELD(Attached, populated), FIELD(Attached, registered);
    STRUCTURE(AccountEntry);
    FIELD(AccountEntry, name), FIELD(AccountEntry, shard), FIELD(AccountEntry, unused), FIELD(AccountEntry, counters);
    STRUCTURE(BookEntry);
    FIELD(BookEntry, counters), FIELD(BookEntry, gauges);
    STRUCTURE(ChunkState);
    FIELD(ChunkState, word), FIELD(ChunkState, claim);
    STRUCTURE(ClaimRecord);
    FIELD(ClaimRecord, open), FIELD(ClaimRecord, account), FIELD(ClaimRecord, rows), FIELD(ClaimRecord, source),
        FIELD(ClaimRecord, book_seen), FIELD(ClaimRecord, unused);
    STRUCTURE(Versioned<produced::words>);
    FIELD(Versioned<produced::words>, version), FIELD(Versioned<produced::words>, copies);
    STRUCTURE(Versioned<consumed::words>);
    FIELD(Versioned<consumed::words>, version), FIELD(Versioned<consumed::words>, copies);

    // The words within those, and where the sections of one file begin: a change there moves everybody's numbers too.
    std::printf("}, \"counters\": {\"sizeof\": 0, \"seen\": [%zu, 8], \"published\": [%zu, 8], \"sampled_out\": [%zu, 8], \"packets\": [%zu, 8], "
                "\"dropped\": [%zu, 8]},\n", produced::seen * 8, produced::published * 8, produced::sampled_out * 8,
                produced::packets * 8, produced::dropped * 8);
    std::printf("  \"books\": {\"sizeof\": 0, \"position\": [%zu, 8], \"durable\": [%zu, 8], \"lapped\": [%zu, 8], \"rolled_back\": [%zu, 8]},\n",
                consumed::position * 8, consumed::durable * 8, consumed::lapped * 8, consumed::rolled_back * 8);
    const Geometry g{.shards = 3, .chunks = 40, .chunk_bytes = 4096, .accounts = 5, .pins = 4, .policy = Policy::overwrite,
                     .readers = {"a", "b"}};
    const Sections at(g);
    std::printf("  \"sections\": {\"sizeof\": %llu, \"live\": [%llu, 0], \"shards\": [%llu, 0], \"readers\": [%llu, 0], \"cursors\": [%llu, 0], "
                "\"accounts\": [%llu, 0], \"books\": [%llu, 0], \"slots\": [%llu, 0], \"states\": [%llu, 0]},\n",
                static_cast<unsigned long long>(at.control_bytes), static_cast<unsigned long long>(at.live),
                static_cast<unsigned long long>(at.shards), static_cast<unsigned long long>(at.readers),
                static_cast<unsigned long long>(at.cursors), static_cast<unsigned long long>(at.accounts),
                static_cast<unsigned long long>(at.books), static_cast<unsigned long long>(at.slots),
                static_cast<unsigned long long>(at.states));
    // Words that are not fields: state and slot of generation 5 and chunk 7.
    std::printf("  \"words\": {\"sizeof\": 8, \"state\": [%llu, 8], \"writing\": [%llu, 8], \"slot\": [%llu, 8], \"tombstone\": [%llu, 8]}}}\n",
                static_cast<unsigned long long>(word::state(5)), static_cast<unsigned long long>(word::writing),
                static_cast<unsigned long long>(word::slot(5, 7)), static_cast<unsigned long long>(word::tombstone));
    return 0;
}
