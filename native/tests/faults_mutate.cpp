// One process writes whatever it likes over a live ring, its control file and its packets, while a producer, two readers
// and an onlooker work in it. Nobody may crash, hang, or touch a byte outside.
//
// faults_mutate SECONDS [SEED]; prints as JSON how much was written and what came of it
#include <csignal>

#include <sys/mman.h>
#include <sys/wait.h>

#include "guard.hpp"
#include "hostile.hpp"

using namespace asysi;
using namespace asysi::test;

namespace {

using Clock = std::chrono::steady_clock;

enum Role { producer, reader_a, reader_b, onlooker, mutator, roles };
constexpr const char* role_names[roles] = {"producer", "reader a", "reader b", "onlooker", "mutator"};

struct Board {
    std::atomic<bool> stop;
    std::array<std::atomic<u64>, roles> steps;  // lives, or words written
    std::array<std::atomic<u64>, roles> packets;
    std::array<std::array<std::atomic<u64>, ends>, roles> ended;
};
Board* board = nullptr;

Geometry shape(u64 round) {
    const bool capture = round % 3 == 2;
    return {.shards = capture ? 1U : 2U, .chunks = 12, .chunk_bytes = 512, .accounts = 3, .pins = 2,
            .policy = capture ? Policy::drop_new : Policy::overwrite,
            .readers = capture ? std::vector<std::string>{"a"} : std::vector<std::string>{"a", "b"}};
}

void live(const std::string& folder, Role role, u64 seed) {
    for (u64 life = 0; !board->stop; ++life) {
        const End end = guarded_by_types([&] {
            constexpr auto patience = std::chrono::milliseconds(1);
            if (role == producer) board->packets[role] += visit_as_producer(folder, seed + life, 300);
            if (role == reader_a) board->packets[role] += visit_as_reader(folder, "a", 40, patience);
            if (role == reader_b) board->packets[role] += visit_as_reader(folder, "b", 7, patience);
            if (role == onlooker) visit_as_onlooker(folder);
        });
        ++board->ended[role][static_cast<std::size_t>(end)];
        ++board->steps[role];
        if (end != End::whole || role == onlooker) usleep(100);
    }
}

/// A word that does more harm than a random one.
u64 word_from(Dice& dice, u64 there) {
    switch (dice.below(8)) {
        case 0: return 0;
        case 1: return ~u64{0};
        case 2: return there ^ (u64{1} << dice.below(64));
        case 3: return there + 1;
        case 4: return there - 1;
        case 5: return dice.below(64);
        case 6: return u64{1} << dice.below(64);
        default: return dice();
    }
}

void mutate(const std::string& folder, u64 seed, bool header_too) {
    const File control(control_path(folder), O_RDWR);
    const File data(data_path(folder), O_RDWR);
    const Mapping control_map(control, control.bytes(), true, folder);
    const Mapping data_map(data, data.bytes(), true, folder);
    const u64 from = header_too ? 0 : Sections::up(sizeof(ControlHeader), 64);
    Dice dice(seed);
    // The participants get between one word a millisecond, so that they come far, and thousands.
    const u64 burst = u64{1} << dice.below(8);
    while (!board->stop) {
        for (u64 i = 0; i < burst; ++i) {
            const bool packets = dice.below(4) == 0;
            std::byte* const base = packets ? data_map.base() : control_map.base() + from;
            const u64 words = (packets ? data.bytes() : control.bytes() - from) / 8;
            auto& place = *reinterpret_cast<std::atomic<u64>*>(base + dice.below(words) * 8);
            place.store(word_from(dice, place.load()));
            ++board->steps[mutator];
        }
        usleep(static_cast<useconds_t>(dice.below(1000)));
    }
}

[[noreturn]] void complain(const std::string& what) {
    std::fprintf(stderr, "%s\n", what.c_str());
    std::_Exit(1);
}

template <typename Work>
pid_t start(const Work& work) {
    const pid_t pid = fork();
    EXPECT(pid >= 0);
    if (pid > 0) return pid;
    try {
        work();
    } catch (const std::exception& error) {
        complain(std::string("an error of no known type: ") + error.what());
    }
    std::_Exit(0);
}

/// One ring, mutated for `span`; everybody must make progress until the end and come home.
void round_of(u64 round, u64 seed, std::chrono::milliseconds span) {
    Folder folder;
    const Geometry g = shape(round);
    create(folder.path, g);
    board->stop = false;
    std::array<u64, roles> before{};
    for (int role = 0; role < roles; ++role) before[static_cast<std::size_t>(role)] = board->steps[static_cast<std::size_t>(role)];
    std::vector<std::pair<pid_t, Role>> all;
    for (const Role role : {producer, reader_a, reader_b, onlooker}) {
        if (role == reader_b && g.reader_count() < 2) continue;
        all.emplace_back(start([&] { live(folder.path, role, seed); }), role);
    }
    all.emplace_back(start([&] { mutate(folder.path, seed, round % 4 == 3); }), mutator);
    const auto began = Clock::now();
    // The span, and more until each has come round once: 30 s without that is a hang.
    const auto at_work = [&] {
        return std::all_of(all.begin(), all.end(), [&](const auto& one) { return board->steps[one.second] > before[one.second]; });
    };
    while (Clock::now() - began < span || !at_work()) {
        if (Clock::now() - began > span + std::chrono::seconds(30)) break;
        usleep(1000);
    }
    board->stop = true;
    const auto deadline = Clock::now() + std::chrono::seconds(30);
    for (const auto& [pid, role] : all) {
        int status = 0;
        while (waitpid(pid, &status, WNOHANG) == 0) {
            if (Clock::now() > deadline) {
                kill(pid, SIGABRT);
                complain(std::string("the ") + role_names[role] + " hangs, in round " + std::to_string(round));
            }
            usleep(200);
        }
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
            complain(std::string("the ") + role_names[role] + " ended with status " + std::to_string(status) + ", in round " + std::to_string(round));
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    const double seconds = argc > 1 ? std::strtod(argv[1], nullptr) : 60;
    Dice dice(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
    void* const memory = mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(memory != MAP_FAILED);
    board = new (memory) Board{};
    const auto began = Clock::now();
    u64 rounds = 0;
    while (std::chrono::duration<double>(Clock::now() - began).count() < seconds) round_of(rounds++, dice(), std::chrono::milliseconds(250));
    const auto number = [](u64 value) { return static_cast<unsigned long long>(value); };
    std::printf("{\"rounds\": %llu, \"words written\": %llu", number(rounds), number(board->steps[mutator]));
    for (const Role role : {producer, reader_a, reader_b, onlooker}) {
        const auto& ended = board->ended[role];
        std::printf(",\n \"%s\": {\"lives\": %llu, \"packets\": %llu, \"whole\": %llu, \"refused by the ring\": %llu, \"refused argument\": %llu, \"refused by the system\": %llu}",
                    role_names[role], number(board->steps[role]), number(board->packets[role]), number(ended[0]), number(ended[1]),
                    number(ended[2]), number(ended[3]));
    }
    std::printf("}\n");
    return 0;
}
