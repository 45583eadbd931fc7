// Two processes and two rings: a packet goes there and comes back. Prints the time of half a round.
//
//     c++ -std=c++20 -O3 -pthread -I../include pingpong.cpp -o pingpong && ./pingpong [KIB] [ROUNDS]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <csignal>
#include <cstdlib>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "asysi/asysi.hpp"

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

namespace {

constexpr asysi::u32 width = 1024;  // floats in a row: 4 KiB

asysi::Block block_of(const float* rows, std::size_t count) {
    asysi::Block block{};
    block.header.width = width;
    block.rows = {reinterpret_cast<const std::byte*>(rows), width * sizeof(float), nullptr, count, width, asysi::Dtype::float32};
    block.book_seen = true;
    return block;
}

/// Sends back what comes, one higher, filled into the chunk in place.
int echo(const std::string& there, const std::string& back) {
    asysi::Reader reader(there, "echo", 1s);
    asysi::Writer writer(back, 1s);
    writer.account("pong");
    while (!reader.ended()) {
        for (auto& packet : asysi::pull(reader, 16, 1s)) {
            auto claim = writer.claim(block_of(nullptr, packet.pin().rows));
            if (!claim) return 1;
            const auto in = packet.payload<float>();
            auto* const out = reinterpret_cast<float*>(claim->payload().data());
            std::transform(in.begin(), in.end(), out, [](float x) { return x + 1; });
            claim->commit();
            packet.consume();
        }
    }
    writer.close(asysi::WriterState::complete);
    return 0;
}

int play(const std::string& there, const std::string& back, std::size_t rows, int rounds) {
    asysi::Writer writer(there, 1s);
    asysi::Reader reader(back, "player", 1s);
    writer.account("ping");
    std::vector<float> sent(rows * width);
    std::vector<double> halves;
    for (int round = 0; round < rounds; ++round) {
        std::fill(sent.begin(), sent.end(), static_cast<float>(round));
        const auto began = Clock::now();
        if (!writer.publish(block_of(sent.data(), rows))) return 1;
        auto packets = asysi::pull(reader, 1, 10s);
        if (packets.size() != 1) return 1;
        const auto got = packets[0].payload<float>();
        halves.push_back(std::chrono::duration<double, std::micro>(Clock::now() - began).count() / 2);
        if (std::any_of(got.begin(), got.end(), [&](float x) { return x != static_cast<float>(round + 1); })) return 1;
        packets[0].consume();
    }
    writer.close(asysi::WriterState::complete);
    std::sort(halves.begin(), halves.end());
    std::printf("%zu KiB, %d rounds: half a round takes %.1f us (median), %.1f us (99%%)\n", rows * 4, rounds,
                halves[halves.size() / 2], halves[halves.size() * 99 / 100]);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    const auto rows = static_cast<std::size_t>(argc > 1 ? std::max(1, std::atoi(argv[1]) / 4) : 16);
    const int rounds = argc > 2 ? std::max(1, std::atoi(argv[2])) : 1000;
    char folder[] = "/dev/shm/asysi-pingpong-XXXXXX";
    if (mkdtemp(folder) == nullptr) return 1;
    const std::string there = std::string(folder) + "/there", back = std::string(folder) + "/back";
    const auto bytes = (asysi::payload_at(rows, 0) + rows * width * sizeof(float) + 63) / 64 * 64;
    asysi::Geometry geometry{.shards = 1, .chunks = 8, .chunk_bytes = bytes, .accounts = 1, .pins = 2,
                             .policy = asysi::Policy::drop_new, .readers = {"echo"}};
    asysi::create(there, geometry);
    geometry.readers = {"player"};
    asysi::create(back, geometry);
    const pid_t child = fork();
    if (child == 0) _exit(echo(there, back));
    int failed = play(there, back, rows, rounds);
    if (failed != 0) kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    std::filesystem::remove_all(folder);
    return failed != 0 || status != 0 ? 1 : 0;
}
