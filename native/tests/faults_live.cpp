// Participants that are stopped, forked, put into other namespaces, or that write where they may only read.
//
// faults_live stopped PUSHES        the producer's push, with its reader at work and stopped; JSON
// faults_live forked FORKS          children of a busy participant: refused, and never stuck
// faults_live scribble FOLDER HOW   a reader writes to a packet: the process dies (store) or the kernel refuses (protect)
// faults_live produce FOLDER        publishes a packet for each line on stdin and tells its number; the end closes the ring
// faults_live consume FOLDER NAME   tells the number of each packet that comes, until the producer has closed; sleeps without limit
#include <fstream>
#include <algorithm>
#include <csignal>
#include <functional>
#include <iostream>
#include <thread>
#include <vector>

#include <sys/mman.h>
#include <sys/wait.h>

#include "fixture.hpp"

using namespace asysi;
using namespace asysi::test;

namespace {

using Clock = std::chrono::steady_clock;

constexpr u32 pins = 4;

// --- a reader that is stopped --------------------------------------------------------------------------------------

struct Signals {
    std::atomic<bool> go_home;
    std::atomic<u64> taken;
};

template <typename T>
T* shared() {
    void* const memory = mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(memory != MAP_FAILED);
    return new (memory) T{};
}

/// Holds all the pins it may, lets go, and so on; everything goes on after a stop.
void follow(const std::string& folder, Signals& signals) {
    alarm(120);
    Reader reader(folder, "r");
    std::vector<Pin> held;
    while (!signals.go_home) {
        std::vector<Pin> pins_now;
        reader.gather(pins_now, pins);
        for (const Pin& pin : pins_now) {
            EXPECT(whole(pin));
            reader.consumed(pin);
            ++signals.taken;
            held.push_back(pin);
        }
        if (held.size() < pins) {
            sched_yield();  // no sleep: a wake is a system call, which would hide what a push costs
            continue;
        }
        for (const Pin& pin : held) EXPECT(reader.release(pin));
        held.clear();
    }
    for (const Pin& pin : held) EXPECT(reader.release(pin));
    reader.settle();
    reader.mark_durable();
}

char state_of(pid_t pid) {
    std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
    std::string text;
    std::getline(file, text);
    const auto name_end = text.rfind(')');
    return name_end == std::string::npos ? '?' : text[name_end + 2];
}

void wait_for(const std::function<bool()>& holds) {
    const auto deadline = Clock::now() + std::chrono::seconds(60);
    while (!holds()) {
        EXPECT(Clock::now() < deadline);
        std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
}

struct Pushes {
    u64 refused = 0;
    std::vector<double> microseconds;

    [[nodiscard]] double quantile(double share) {
        const auto at = static_cast<std::ptrdiff_t>(share * static_cast<double>(microseconds.size() - 1));
        std::nth_element(microseconds.begin(), microseconds.begin() + at, microseconds.end());
        return microseconds[static_cast<std::size_t>(at)];
    }
};

Pushes push(Writer& writer, u64 count, std::byte* payload, u64 bytes) {
    Pushes done;
    done.microseconds.reserve(count);
    Block block{};
    block.header.width = static_cast<u32>(bytes / 4);
    block.header.step = checksum(payload, bytes);
    block.rows = {payload, static_cast<i64>(bytes), nullptr, 1, block.header.width, Dtype::float32};
    block.book_seen = true;
    for (u64 i = 0; i < count; ++i) {
        const auto began = Clock::now();
        done.refused += !writer.publish(block);
        done.microseconds.push_back(std::chrono::duration<double, std::micro>(Clock::now() - began).count());
        // A pace that the reader can follow, so that with and without it the same is measured.
        for (const auto next = began + std::chrono::microseconds(10); Clock::now() < next;) {
        }
    }
    return done;
}

void print(const char* name, Pushes& pushes, const char* end) {
    std::printf("  \"%s\": {\"pushes\": %zu, \"refused\": %llu, \"p50_us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f}%s\n", name,
                pushes.microseconds.size(), static_cast<unsigned long long>(pushes.refused), pushes.quantile(0.5),
                pushes.quantile(0.99), pushes.quantile(0.999), end);
}

int stopped(u64 count) {
    constexpr u64 bytes = 16;
    Folder folder;
    create(folder.path, {.shards = 1, .chunks = 32, .chunk_bytes = 4096, .accounts = 1, .pins = pins,
                         .policy = Policy::overwrite, .readers = {"r"}});
    Signals& signals = *shared<Signals>();
    const pid_t reader = fork();
    if (reader == 0) {
        follow(folder.path, signals);
        std::_Exit(0);
    }
    std::vector<std::byte> payload(bytes, std::byte{1});
    Writer writer(folder.path);
    writer.account("a");
    Pushes alive, asleep, again;
    // In turn, so that what else the machine does falls on all alike.
    const auto append = [](Pushes& to, const Pushes& more) {
        to.refused += more.refused;
        to.microseconds.insert(to.microseconds.end(), more.microseconds.begin(), more.microseconds.end());
    };
    u64 taken = 0;
    u32 pinned = 0;
    for (int turn = 0; turn < 10; ++turn) {
        append(alive, push(writer, count / 10, payload.data(), bytes));
        wait_for([&] { return signals.taken > taken; });  // it is at work, and goes on after a stop
        kill(reader, SIGSTOP);
        wait_for([&] { return state_of(reader) == 'T'; });
        taken = signals.taken;
        append(asleep, push(writer, count / 10, payload.data(), bytes));
        EXPECT(signals.taken == taken && state_of(reader) == 'T');
        pinned = std::max(pinned, leaked(writer.ring()));
        kill(reader, SIGCONT);
        append(again, push(writer, count / 10, payload.data(), bytes));
    }
    wait_for([&] { return signals.taken > taken; });
    signals.go_home = true;
    int status = 0;
    waitpid(reader, &status, 0);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    const Ring& ring = writer.ring();
    EXPECT(leaked(ring) == 0);
    EXPECT(balances(ring.account(0).counters.load(), ring.book(0, 0).counters.load()));
    EXPECT(balances(ring.account(0).counters.load()));
    EXPECT(pinned <= pins);
    std::printf("{\n  \"pinned while stopped\": %u,\n", pinned);
    print("reader at work", alive, ",");
    print("reader stopped", asleep, ",");
    print("reader back", again, "");
    std::printf("}\n");
    return 0;
}

// --- children ------------------------------------------------------------------------------------------------------

template <typename Call>
bool refused(const Call& call) {
    try {
        call();
    } catch (const ClosedError&) {
        return true;
    }
    return false;
}

int forked(u64 forks) {
    Folder folder;
    create(folder.path, {.shards = 1, .chunks = 16, .chunk_bytes = 512, .accounts = 1, .pins = pins,
                         .policy = Policy::overwrite, .readers = {"r"}});
    Writer writer(folder.path);
    Reader reader(folder.path, "r");
    writer.account("a");
    std::atomic<bool> over{false};
    u64 published = 0;
    std::thread busy([&] {
        for (u64 number = 1; !over; ++number) published += publish(writer, {.number = number});
    });
    std::atomic<u64> taken{0};
    std::thread reads([&] {
        std::vector<Pin> got;
        while (!over) {
            got.clear();
            reader.gather(got, pins);
            for (const Pin& pin : got) {
                EXPECT(whole(pin));
                reader.consumed(pin);
                EXPECT(reader.release(pin));
                ++taken;
            }
        }
    });
    for (u64 i = 0; i < forks; ++i) {
        // Whatever the threads are in the midst of, they do not exist in the child.
        const pid_t child = fork();
        if (child == 0) {
            alarm(20);
            std::vector<Pin> got;
            EXPECT(refused([&] { publish(writer, {.number = 1}); }));
            EXPECT(refused([&] { static_cast<void>(claim(writer, {.number = 1})); }));
            EXPECT(refused([&] { writer.book(0, {.seen = 1}); }));
            EXPECT(refused([&] { writer.account("b"); }));
            EXPECT(refused([&] { static_cast<void>(writer.free(0)); }));
            EXPECT(refused([&] { reader.gather(got, 1); }));
            EXPECT(refused([&] { reader.mark_durable(); }));
            EXPECT(refused([&] { reader.finalise(ReaderState::finalised); }));
            reader.close();
            writer.close(WriterState::complete);
            std::_Exit(0);
        }
        int status = 0;
        waitpid(child, &status, 0);
        EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    Control control(folder.path);
    EXPECT(control.writer_state() == "attached" && control.reader_state("r") == "attached");
    over = true;
    busy.join();
    reads.join();
    EXPECT(control.ring().account(0).counters.load()[produced::published] == published);
    std::printf("{\"forks\": %llu, \"published\": %llu, \"taken\": %llu}\n", static_cast<unsigned long long>(forks),
                static_cast<unsigned long long>(published), static_cast<unsigned long long>(taken.load()));
    return 0;
}

// --- one at a time -------------------------------------------------------------------------------------------------

int scribble(const std::string& folder, const std::string& how) {
    Reader reader(folder, "r");
    std::vector<Pin> got;
    reader.gather(got, 1);
    EXPECT(got.size() == 1);
    auto* const bytes = const_cast<std::byte*>(got[0].bytes);
    auto* const page = reinterpret_cast<std::byte*>(reinterpret_cast<std::uintptr_t>(bytes) & ~std::uintptr_t{4095});
    EXPECT(mprotect(page, 4096, PROT_READ | PROT_WRITE) != 0 && errno == EACCES);
    std::printf("protected\n");
    std::fflush(stdout);
    if (how == "store") *static_cast<volatile std::byte*>(bytes) = std::byte{0};
    return 0;
}

int produce(const std::string& folder) {
    Writer writer(folder);
    const u32 account = writer.account("a");
    u64 number = writer.source(0);
    std::cout << "generation " << writer.generation() << std::endl;
    for (std::string line; std::getline(std::cin, line);) {
        ++number;
        EXPECT(publish(writer, {.account = account, .number = number, .source = number}));
        std::cout << number << std::endl;
    }
    writer.close(WriterState::complete);
    return 0;
}

int consume(const std::string& folder, const std::string& name) {
    Reader reader(folder, name);
    std::cout << "attached" << std::endl;
    while (!reader.ended()) {
        std::vector<Pin> got;
        reader.gather(got, 1);
        if (got.empty()) reader.wait(std::chrono::hours(1));  // only the doorbell ends this
        for (const Pin& pin : got) {
            EXPECT(whole(pin));
            const u64 number = header_of(pin).captured_ns;
            reader.consumed(pin);
            EXPECT(reader.release(pin));
            std::cout << number << std::endl;
        }
    }
    reader.mark_durable();
    return 0;
}

int run(const std::vector<std::string>& words) {
    const std::string what = words.empty() ? "" : words[0];
    if (what == "stopped" && words.size() == 2) return stopped(std::stoull(words[1]));
    if (what == "forked" && words.size() == 2) return forked(std::stoull(words[1]));
    if (what == "scribble" && words.size() == 3) return scribble(words[1], words[2]);
    if (what == "produce" && words.size() == 2) return produce(words[1]);
    if (what == "consume" && words.size() == 3) return consume(words[1], words[2]);
    std::fprintf(stderr, "faults_live stopped PUSHES | forked FORKS | scribble FOLDER HOW | produce FOLDER | consume FOLDER NAME\n");
    return 2;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        return run({argv + 1, argv + argc});
    } catch (const std::exception& error) {
        std::fprintf(stderr, "faults_live: %s\n", error.what());
        return 1;
    }
}
