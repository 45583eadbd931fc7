// Several threads convert what one converts, byte for byte: `convert_pool TURNS`, for sizes and types at random;
// `convert_pool TURNS refused`, where the system has no memory for all of the threads.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include "asysi/convert_pool.hpp"

namespace {

using namespace asysi;

/// Memory that begins at a multiple of 64, as a chunk's payload does.
struct Aligned {
    explicit Aligned(std::size_t bytes) : memory(bytes + 64) {}
    std::byte* data() {
        return reinterpret_cast<std::byte*>((reinterpret_cast<std::uintptr_t>(memory.data()) + 63) / 64 * 64);
    }
    std::vector<std::byte> memory;
};

bool same(ConvertPool& pool, std::mt19937& random) {
    const std::size_t width = 1 + random() % 700, count = 1 + random() % 300;
    std::vector<float> source(width * count);
    for (auto& value : source) value = static_cast<float>(static_cast<int>(random() % 2001)) - 1000.0F;
    std::vector<std::int64_t> index(count);
    for (auto& at : index) at = static_cast<std::int64_t>(random() % count);
    const Rows rows{.base = reinterpret_cast<const std::byte*>(source.data()),
                    .stride = static_cast<std::int64_t>(width * sizeof(float)),
                    .index = random() % 2 == 0 ? index.data() : nullptr,
                    .count = count,
                    .width = width,
                    .dtype = Dtype::float32};
    constexpr Quantization all[] = {Quantization::none, Quantization::bf16, Quantization::fp8, Quantization::int8,
                                    Quantization::int8_channel};
    const Quantization quantization = all[random() % 5];
    std::vector<float> table(2 * width, 5.0F);
    std::vector<RowRecord> records_of_one(count), records_of_several(count);
    const bool streams = random() % 2 == 0;
    Aligned one(width * count * 4), several(width * count * 4);
    std::vector<float> scales_of_one(count), scales_of_several(count);
    const auto outside = convert(one.data(), {scales_of_one.data(), records_of_one.data(), table.data()}, rows, quantization, streams);
    const auto counted =
        pool.convert(several.data(), {scales_of_several.data(), records_of_several.data(), table.data()}, rows, quantization, streams);
    const std::size_t bytes = width * count * item_bytes(converted(rows.dtype, quantization));
    const bool flags = std::memcmp(records_of_one.data(), records_of_several.data(), count * sizeof(RowRecord)) == 0;
    return std::memcmp(one.data(), several.data(), bytes) == 0 && scales_of_one == scales_of_several && flags && outside == counted;
}

/// Leaves this process the address space of a few threads' stacks, and too little for many.
void leave_room_for_few_threads() {
    constexpr rlim_t stack = 64 << 20;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, stack);
    pthread_setattr_default_np(&attributes);
    rlim_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    const rlim_t bytes = pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + 5 * stack;
    const rlimit limit{bytes, bytes};
    setrlimit(RLIMIT_AS, &limit);
}

int convert_with_few(int turns) {
    leave_room_for_few_threads();
    ConvertPool pool(64);
    std::mt19937 random(1);
    for (int turn = 0; turn < turns; ++turn) {
        if (!same(pool, random)) return std::printf("different: turn %d\n", turn), 1;
    }
    const bool few = pool.threads() > 1 && pool.threads() < 64;
    return std::puts(few ? "the same" : "not as many threads as there was room for"), few ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) {
    const int turns = std::atoi(arguments[1]);
    if (count > 2) return convert_with_few(turns);
    for (const unsigned threads : {1U, 2U, 3U, 5U}) {
        ConvertPool pool(threads);
        std::mt19937 random(threads);
        for (int turn = 0; turn < turns; ++turn) {
            if (same(pool, random)) continue;
            std::printf("different: %u threads, turn %d\n", threads, turn);
            return 1;
        }
    }
    std::puts("the same");
    return 0;
}
