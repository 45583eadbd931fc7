// What a push and a pull ask of the kernel and of the heap: nothing, while nobody sleeps.
//
//   push_path SCENARIO [planted]
//
// After a warm-up the scenario runs between two calls of getppid, which mark it in a trace of system calls; then the
// program prints how many allocations it saw meanwhile. `planted` puts one allocation among the pushes. A reader sleeps
// in the scenario `sleeper`: there a push must show as one futex call.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <thread>
#include <vector>

#include "fixture.hpp"

using namespace asysi;
using namespace asysi::test;

namespace {

thread_local bool counting = false;  // in the thread that pushes, not in a reader that it wakes
std::atomic<u64> allocations{0};

void note() {
    if (counting) allocations.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

extern "C" {
// glibc's own, behind the names that everything here calls: operator new too.
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);

void* malloc(std::size_t bytes) { return note(), __libc_malloc(bytes); }
void* calloc(std::size_t count, std::size_t bytes) { return note(), __libc_calloc(count, bytes); }
void* realloc(void* at, std::size_t bytes) { return note(), __libc_realloc(at, bytes); }
}

namespace {

constexpr u64 rounds = 1000;

void mark(bool on) {
    counting = on;
    static_cast<void>(getppid());
}

/// Publishes and reads everything, as one process may; the pins' vector keeps its room.
struct Exchange {
    Folder folder;
    std::optional<Writer> writer;
    std::optional<Reader> reader;
    std::vector<Pin> pins;

    explicit Exchange(Policy policy) {
        create(folder.path, {.shards = 2, .chunks = 8, .chunk_bytes = 1 << 17, .accounts = 4, .pins = 2, .policy = policy,
                             .readers = {"r"}});
        writer.emplace(folder.path);
        reader.emplace(folder.path, "r");
        pins.reserve(16);
    }
    /// Reads what is there; returns how many packets.
    u64 pull() {
        u64 read = 0;
        do {
            pins.clear();
            reader->gather(pins, 16);
            read += pins.size();
            for (const Pin& pin : pins) {
                reader->consumed(pin);
                EXPECT(reader->release(pin));
            }
        } while (!pins.empty());
        return read;
    }
};

/// A block of 64 KiB, which a copy that goes around the caches would take too.
struct Large {
    std::vector<float> values = std::vector<float>(16 * 1024, 1.0F);
    Block block{};

    explicit Large(u32 account) {
        block.header.account = account;
        block.header.width = 1024;
        block.rows = {reinterpret_cast<const std::byte*>(values.data()), 4096, nullptr, 16, 1024, Dtype::float32};
        block.book_seen = true;
    }
};

/// Pushes, claims and pulls, whatever the policy; every quantisation.
void run(Policy policy, bool plant) {
    Exchange exchange(policy);
    Writer& writer = *exchange.writer;
    const u32 account = writer.account("large");
    const u32 other = writer.account("claimed");
    Large large(account);
    const auto once = [&] {
        for (const auto quantization : {Quantization::none, Quantization::bf16, Quantization::int8}) {
            large.block.quantization = quantization;
            EXPECT(writer.publish(large.block));
        }
        if (auto claimed = claim(writer, {.shard = 1, .account = other, .rows = 2})) claimed->commit();
        EXPECT(exchange.pull() == 4);
    };
    for (int i = 0; i < 20; ++i) once();
    mark(true);
    for (u64 i = 0; i < rounds; ++i) {
        once();
        if (plant && i == rounds / 2) std::free(std::malloc(1));
    }
    mark(false);
}

/// Nobody reads: packets are dropped, or overwrite each other.
void run_unread(Policy policy) {
    Exchange exchange(policy);
    const Large large(exchange.writer->account("large"));
    for (int i = 0; i < 20; ++i) exchange.writer->publish(large.block);
    mark(true);
    for (u64 i = 0; i < rounds; ++i) exchange.writer->publish(large.block);
    mark(false);
}

/// A reader sleeps while one packet is pushed.
void run_sleeper() {
    Exchange exchange(Policy::overwrite);
    const Large large(exchange.writer->account("large"));
    std::thread sleeper([&] {
        while (exchange.pull() == 0) exchange.reader->wait(std::chrono::seconds(5));
    });
    while (exchange.writer->ring().live().waiters.load() == 0) usleep(1000);
    usleep(50'000);  // from its bit to its sleep
    mark(true);
    exchange.writer->publish(large.block);
    mark(false);
    sleeper.join();
}

}  // namespace

int main(int count, char** words) {
    const std::string_view scenario = count > 1 ? words[1] : "";
    const bool plant = count > 2 && std::string_view(words[2]) == "planted";
    if (scenario == "overwrite") {
        run(Policy::overwrite, plant);
    } else if (scenario == "drop_new") {
        run(Policy::drop_new, plant);
    } else if (scenario == "overwrite_unread") {
        run_unread(Policy::overwrite);
    } else if (scenario == "drop_new_unread") {
        run_unread(Policy::drop_new);
    } else if (scenario == "sleeper") {
        run_sleeper();
    } else {
        std::fprintf(stderr, "no scenario %s\n", words[count > 1 ? 1 : 0]);
        return 2;
    }
    std::printf("%llu\n", static_cast<unsigned long long>(allocations.load()));
    return 0;
}
