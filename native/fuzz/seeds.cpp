// Writes the seeds of both fuzzers into a folder: seeds FOLDER. What producers and readers leave behind, killed or closed.
#include <fstream>
#include <functional>

#include "fuzz.hpp"

using namespace asysi;

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t*, std::size_t size, std::size_t) { return size; }

namespace {

void packets(const std::string& folder, u64 count) {
    Writer writer(folder);
    writer.account("a");
    writer.account("b");
    for (u64 number = 1; number <= count; ++number) {
        test::publish(writer, {.account = static_cast<u32>(number % 2), .number = number, .rows = 1 + static_cast<u32>(number % 4),
                               .source = number % 3 == 0 ? number : 0});
    }
    if (count % 2 == 0) writer.close(WriterState::complete);
}

void reader_with_a_pin(const std::string& folder) {
    packets(folder, 3);
    Reader reader(folder, "r");
    std::vector<Pin> pins;
    reader.gather(pins, 1);
    for (const Pin& pin : pins) reader.consumed(pin);
    reader.mark_durable();
}

void open_claim(const std::string& folder) {
    packets(folder, 3);
    const Ring ring(folder, Ring::Role::look);
    Intent& intent = ring.shard(0).intent;
    intent.sequence = 4;
    intent.rows = 2;
    intent.version = ring.account(0).counters.version.load();
    intent.book_seen = 1;
    intent.open = 1;
    ring.live().writer_state = static_cast<u32>(WriterState::attached);
    ring.state(0, 3).store(word::state(5) | word::writing);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) return 2;
    std::filesystem::create_directories(argv[1]);
    u32 count = 0;
    for (const Policy policy : {Policy::overwrite, Policy::drop_new}) {
        for (const auto& history : std::vector<std::function<void(const std::string&)>>{
                 [](const std::string&) {}, [](const std::string& folder) { packets(folder, 2); },
                 [](const std::string& folder) { packets(folder, 9); }, reader_with_a_pin, open_claim}) {
            const auto bytes = fuzz::seed(policy, history);
            std::ofstream file(std::string(argv[1]) + "/seed-" + std::to_string(count++), std::ios::binary);
            file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
        }
    }
    return 0;
}
