// One producer and two readers in C++ that live for the whole comparison: the ring, and its ceiling.
//
// The counterpart of crew.py: reads one task per line, answers with a line of JSON, and writes the samples of
// paced tasks to the task's folder.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include <poll.h>
#include <sched.h>
#include <sys/wait.h>

#include "asysi/control.hpp"
#include "asysi/reader.hpp"
#include "asysi/writer.hpp"

using namespace asysi;
using std::chrono::nanoseconds;

namespace {

constexpr u64 source_bytes = u64{256} << 20;
constexpr u64 stamp_words = 2;
constexpr u32 crew_readers = 2;
constexpr u64 many = ~u64{0};

u64 now() {
    timespec time{};
    clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<u64>(time.tv_sec) * 1'000'000'000 + static_cast<u64>(time.tv_nsec);
}
double cpu_seconds() {
    timespec time{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}
void yield_until(u64 due) {
    while (now() < due) sched_yield();
}

/// Sums every byte of `words`, with eight accumulators so that additions do not depend on each other.
u64 sum(const u64* words, u64 count) {
    std::array<u64, 8> sums{};
    u64 i = 0;
    for (; i + 8 <= count; i += 8) {
        for (u64 j = 0; j < 8; ++j) sums[j] += words[i + j];
    }
    for (; i < count; ++i) sums[0] += words[i];
    u64 all = 0;
    for (const u64 part : sums) all += part;
    return all;
}

// --- what is measured ------------------------------------------------------------------------------------------

struct Task {
    std::string contestant, kind;
    u64 size;
    u32 readers;
    std::string guarantee, waiting;
    double seconds, rate;
    std::string folder;
    u32 chunks, pins;

    explicit Task(const std::string& line) {
        std::istringstream words(line);
        words >> contestant >> kind >> size >> readers >> guarantee >> waiting >> seconds >> rate >> folder >> chunks >> pins;
        if (!words) throw std::invalid_argument("no task: " + line);
    }
    [[nodiscard]] bool streams() const { return contestant == "streaming"; }
    [[nodiscard]] bool alone() const { return contestant == "ceiling" || streams(); }
    [[nodiscard]] bool lossless() const { return guarantee == "lossless"; }
    [[nodiscard]] u64 period_start(u64 start, double number) const {
        return start + static_cast<u64>(number * 1e9 / rate);
    }
    /// Messages of a paced task or of the ceiling: about `seconds`, at an estimated 0.1 us and 10 GB/s each.
    [[nodiscard]] u64 messages() const {
        if (rate > 0) return static_cast<u64>(seconds * rate);
        return static_cast<u64>(seconds / (0.1e-6 + static_cast<double>(size) / 10e9));
    }
};

/// 256 MiB of messages, created before the crew forks, and the sum of each without its stamp.
struct Source {
    u64* words;
    std::array<std::vector<u64>, 3> sums;
    static constexpr std::array<u64, 3> sizes{u64{4} << 10, u64{64} << 10, u64{1} << 20};

    Source() {
        void* const at = mmap(nullptr, source_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) throw std::bad_alloc();
        words = static_cast<u64*>(at);
        std::mt19937_64 random(0);
        for (u64 i = 0; i < source_bytes / 8; ++i) words[i] = random();
        unstamp(sizes[0]);
        for (std::size_t s = 0; s < sizes.size(); ++s) {
            for (u64 i = 0; i < source_bytes / sizes[s]; ++i) {
                sums[s].push_back(sum(message(i, sizes[s]) + stamp_words, sizes[s] / 8 - stamp_words));
            }
        }
    }
    [[nodiscard]] u64* message(u64 index, u64 size) const { return words + index * size / 8; }
    /// Removes the stamps, which lie within the messages of the other sizes.
    void unstamp(u64 size) const {
        for (u64 i = 0; i < source_bytes / size; ++i) std::fill_n(message(i, size), stamp_words, 0);
    }
    [[nodiscard]] const std::vector<u64>& sums_of(u64 size) const {
        return sums[static_cast<std::size_t>(std::find(sizes.begin(), sizes.end(), size) - sizes.begin())];
    }
};

/// State that the crew shares while it works.
struct Board {
    std::atomic<u64> sent, start;

    [[nodiscard]] u64 wait_for_start() const {
        while (start.load() == 0) usleep(500);
        return start.load();
    }
};

struct Sent {
    u64 pushed = 0, refused = 0, started = 0, ended = 0;
    double cpu = 0;
};
struct Received {
    u64 messages = 0, lost = 0, wrong = 0, ended = 0;
    double cpu = 0;
};

void save(const std::vector<u64>& samples, const std::string& path) {
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(samples.data()), static_cast<std::streamsize>(samples.size() * sizeof(u64)));
}

// --- the ceiling -----------------------------------------------------------------------------------------------

/// The bare chunks; the first process creates the file.
class Chunks {
public:
    explicit Chunks(const Task& task) : size_(task.size), count_(task.chunks) {
        const std::string path = task.folder + "/chunks";
        const File file(path, O_RDWR | O_CREAT, 0600);
        if (posix_fallocate(file.descriptor(), 0, static_cast<off_t>(size_ * count_)) != 0) throw std::bad_alloc();
        mapping_ = Mapping(file, size_ * count_, true, path);
    }
    [[nodiscard]] u64* at(u64 number) const { return reinterpret_cast<u64*>(mapping_.base() + number % count_ * size_); }

private:
    u64 size_, count_;
    Mapping mapping_;
};

/// The minimum for a lossless handover: one counter per process, and waiting for the others without sleeping.
class Counters {
public:
    explicit Counters(const Task& task) : readers_(task.readers), chunks_(task.chunks) {
        const std::string path = task.folder + "/counters";
        const File file(path, O_RDWR | O_CREAT, 0600);
        if (posix_fallocate(file.descriptor(), 0, 4096) != 0) throw std::bad_alloc();
        mapping_ = Mapping(file, 4096, true, path);
    }
    /// Waits until there is room for message `number`.
    void wait_for_room(u64 number) {
        while (number - slowest_ >= chunks_) {
            slowest_ = many;
            for (u32 i = 0; i < readers_; ++i) slowest_ = std::min(slowest_, of(1 + i).load(std::memory_order_acquire));
            if (number - slowest_ >= chunks_) sched_yield();
        }
    }
    /// Waits for message `number`; false if no more messages come.
    [[nodiscard]] bool wait_for_message(u64 number, const Board& board) const {
        while (of(0).load(std::memory_order_acquire) <= number) {
            if (board.sent.load() <= number) return false;
            sched_yield();
        }
        return true;
    }
    void done(u32 process, u64 number) { of(process).store(number + 1, std::memory_order_release); }

private:
    [[nodiscard]] std::atomic<u64>& of(u32 process) const {
        return *reinterpret_cast<std::atomic<u64>*>(mapping_.base() + u64{128} * process);
    }

    u32 readers_;
    u64 chunks_;
    u64 slowest_ = 0;
    Mapping mapping_;
};

// --- our ring --------------------------------------------------------------------------------------------------

std::string ring_of(const Task& task) { return task.folder + "/ring"; }
std::string name_of(u32 reader) { return "reader" + std::to_string(reader); }

/// Pushes messages; if lossless, it waits for the slowest reader's cursor.
class Producer {
public:
    explicit Producer(const Task& task) : task_(task) {
        Geometry geometry{.shards = 1, .chunks = task.chunks + task.readers * task.pins + 1, .chunk_bytes = task.size + 512,
                          .accounts = 1, .pins = task.pins, .policy = Policy::overwrite, .readers = {}};
        for (u32 i = 0; i < task.readers; ++i) geometry.readers.push_back(name_of(i));
        if (task.lossless() && task.readers == 1) geometry.policy = Policy::drop_new;
        create(ring_of(task), geometry);
        writer_.emplace(ring_of(task));
        ring_.emplace(ring_of(task), Ring::Role::look);
        block_.header.account = writer_->account("bench");
        block_.header.width = static_cast<u32>(task.size / 4);
        block_.rows = {.base = nullptr, .stride = static_cast<i64>(task.size), .index = nullptr, .count = 1,
                       .width = task.size / 4, .dtype = Dtype::float32};
        block_.book_seen = true;
    }

    bool push(const u64* message) {
        if (task_.lossless() && room_-- == 0) wait();
        block_.rows.base = reinterpret_cast<const std::byte*>(message);
        return writer_->publish(block_);
    }
    void close() { writer_->close(WriterState::complete); }

private:
    void wait() {
        for (u32 looked = 0;; ++looked) {
            u64 most = 0;
            const u64 head = writer_->head(0);
            for (u32 i = 0; i < task_.readers; ++i) most = std::max(most, ring_->unread(i, 0, head));
            if (most < task_.chunks) {
                room_ = task_.chunks - most - 1;
                return;
            }
            looked < 200 ? static_cast<void>(sched_yield()) : static_cast<void>(usleep(20));
        }
    }

    const Task& task_;
    std::optional<Writer> writer_;
    std::optional<Ring> ring_;
    Block block_{};
    u64 room_ = 0;
};

// --- the loops -------------------------------------------------------------------------------------------------

template <typename Push>
Sent send(const Task& task, const Source& source, u64 start, Push push) {
    const u64 count = source_bytes / task.size;
    const u64 last = task.rate > 0 || task.alone() ? task.messages() : many;
    const u64 until = start + static_cast<u64>(task.seconds * 1e9);
    std::vector<u64> costs;
    if (task.rate > 0) costs.reserve(last);
    yield_until(start);
    Sent sent{.started = start};
    const double cpu = cpu_seconds();
    for (u64 number = 0; number < last; ++number) {
        if (last == many && number % 16 == 0 && now() >= until) break;
        u64* const message = source.message(number % count, task.size);
        message[0] = number;
        message[1] = 0;
        if (task.rate > 0) {
            message[1] = task.period_start(start, static_cast<double>(number));
            yield_until(message[1]);
            const u64 before = now();
            sent.refused += push(message) ? 0 : 1;
            costs.push_back(now() - before);
        } else {
            sent.refused += push(message) ? 0 : 1;
        }
        ++sent.pushed;
    }
    sent.ended = now();
    sent.cpu = cpu_seconds() - cpu;
    if (task.rate > 0) save(costs, task.folder + "/push.u64");
    return sent;
}

Sent produce(const Task& task, const Source& source, Board& board, const std::function<void()>& ready) {
    if (task.alone()) {
        const Chunks chunks(task);
        ready();
        u64 next = 0;
        return send(task, source, board.wait_for_start(), [&](const u64* message) {
            auto* const to = reinterpret_cast<std::byte*>(chunks.at(next++));
            const auto* const from = reinterpret_cast<const std::byte*>(message);
            task.streams() ? stream(to, from, task.size) : static_cast<void>(std::memcpy(to, from, task.size));
            return true;
        });
    }
    if (task.contestant == "counters") {
        const Chunks chunks(task);
        Counters counters(task);
        ready();
        u64 next = 0;
        const Sent sent = send(task, source, board.wait_for_start(), [&](const u64* message) {
            counters.wait_for_room(next);
            std::memcpy(chunks.at(next), message, task.size);
            counters.done(0, next++);
            return true;
        });
        board.sent = sent.pushed;
        return sent;
    }
    Producer producer(task);
    ready();
    const Sent sent = send(task, source, board.wait_for_start(), [&](const u64* message) { return producer.push(message); });
    board.sent = sent.pushed;
    producer.close();
    return sent;
}

volatile u64 sink;

Received read_alone(const Task& task, Board& board, const std::function<void()>& ready) {
    const Chunks chunks(task);
    ready();
    const u64 start = board.wait_for_start();
    yield_until(start);
    Received seen{.messages = task.messages()};
    const double cpu = cpu_seconds();
    for (u64 number = 0; number < seen.messages; ++number) {
        if (task.rate > 0) yield_until(task.period_start(start, static_cast<double>(number) + 0.5));
        const u64* const message = chunks.at(number);
        sink = message[0];
        if (task.kind != "view") sink = sum(message + stamp_words, task.size / 8 - stamp_words);
    }
    seen.ended = now();
    seen.cpu = cpu_seconds() - cpu;
    return seen;
}

/// Consumes messages and counts them.
struct Use {
    const Task& task;
    const std::vector<u64>& sums;
    Received seen{};
    u64 next = 0;
    std::vector<u64> arrived{}, read{};

    void operator()(const u64* message) {
        const bool timed = task.kind == "latency";
        const u64 came = timed ? now() : 0;
        const u64 number = message[0];
        if (task.kind != "view") {
            seen.wrong += sum(message + stamp_words, task.size / 8 - stamp_words) == sums[number % sums.size()] ? 0 : 1;
        }
        seen.ended = now();
        if (timed) {
            arrived.push_back(came - message[1]);
            read.push_back(seen.ended - message[1]);
        }
        seen.wrong += number < next ? 1 : 0;
        next = number + 1;
        ++seen.messages;
    }

    /// Reserves space for the samples of a paced task.
    void expect_paced() {
        const u64 expected = task.rate > 0 ? task.messages() : 0;
        arrived.reserve(expected);
        read.reserve(expected);
    }
    void save_times(u32 index) const {
        if (task.kind != "latency") return;
        save(arrived, task.folder + "/arrived-" + std::to_string(index) + ".u64");
        save(read, task.folder + "/read-" + std::to_string(index) + ".u64");
    }
};

Received count_along(const Task& task, u32 index, const Source& source, Board& board, const std::function<void()>& ready) {
    const Chunks chunks(task);
    Counters counters(task);
    ready();
    static_cast<void>(board.wait_for_start());
    Use use{.task = task, .sums = source.sums_of(task.size)};
    use.expect_paced();
    const double cpu = cpu_seconds();
    while (counters.wait_for_message(use.next, board)) {
        use(chunks.at(use.next));
        counters.done(1 + index, use.next - 1);
    }
    use.seen.cpu = cpu_seconds() - cpu;
    use.seen.lost = board.sent.load() - use.seen.messages;
    use.save_times(index);
    return use.seen;
}

Received consume(const Task& task, u32 index, const Source& source, Board& board, const std::function<void()>& ready) {
    if (task.alone()) return read_alone(task, board, ready);
    if (task.contestant == "counters") return count_along(task, index, source, board, ready);
    Reader reader(ring_of(task), name_of(index));
    ready();
    static_cast<void>(board.wait_for_start());
    Use use{.task = task, .sums = source.sums_of(task.size)};
    use.expect_paced();
    std::vector<Pin> pins;
    const double cpu = cpu_seconds();
    while (use.next < board.sent.load(std::memory_order_relaxed)) {
        pins.clear();
        const bool over = reader.producer_closed();
        reader.gather(pins, task.pins);
        for (const Pin& pin : pins) {
            use(reinterpret_cast<const u64*>(pin.bytes + pin.size - task.size));
            reader.consumed(pin);
            reader.release(pin);
        }
        if (pins.empty() && over) break;
        if (pins.empty() && task.waiting == "block") reader.wait(std::chrono::milliseconds(50));
    }
    use.seen.cpu = cpu_seconds() - cpu;
    use.seen.lost = board.sent.load() - use.seen.messages;
    use.save_times(index);
    return use.seen;
}

// --- the crew --------------------------------------------------------------------------------------------------

/// A process of the crew, and the two pipes to it.
struct Member {
    int tasks[2], answers[2];

    void tell(const std::string& line) const {
        if (write(tasks[1], line.data(), line.size()) != static_cast<ssize_t>(line.size())) throw std::runtime_error("pipe");
    }
    /// Returns its next line; throws if it died or was silent for 90 s.
    [[nodiscard]] std::string heard() const {
        pollfd wait{answers[0], POLLIN, 0};
        std::string line;
        for (char c = 0;;) {
            if (poll(&wait, 1, 90'000) != 1 || read(answers[0], &c, 1) != 1) throw std::runtime_error("a member of the crew died");
            if (c == '\n') return line;
            line += c;
        }
    }
};

[[noreturn]] void work(u32 role, const Member& member, const Source& source, Board& board) {
    const auto say = [&](std::string line) {
        line += '\n';
        if (write(member.answers[1], line.data(), line.size()) < 0) _exit(1);
    };
    if (role == 0) madvise(source.words, source_bytes, MADV_POPULATE_WRITE);
    std::unique_ptr<FILE, int (*)(FILE*)> lines(fdopen(member.tasks[0], "r"), fclose);
    char line[4096];
    while (fgets(line, sizeof line, lines.get()) != nullptr) {
        const Task task(line);
        const auto ready = [&] { say("ready"); };
        std::ostringstream json;
        if (role == 0) {
            const Sent sent = produce(task, source, board, ready);
            source.unstamp(task.size);
            json << R"("pushed": )" << sent.pushed << R"(, "refused": )" << sent.refused << R"(, "started_ns": )" << sent.started
                 << R"(, "ended_ns": )" << sent.ended << R"(, "cpu_s": )" << sent.cpu;
        } else {
            const Received seen = consume(task, role - 1, source, board, ready);
            json << R"({"messages": )" << seen.messages << R"(, "lost": )" << seen.lost << R"(, "wrong": )" << seen.wrong
                 << R"(, "ended_ns": )" << seen.ended << R"(, "cpu_s": )" << seen.cpu << "}";
        }
        say(json.str());
    }
    _exit(0);
}

std::string conduct(const Task& task, const std::string& line, const std::vector<Member>& crew, Board& board) {
    board.start = 0;
    board.sent = many;
    for (u32 i = 0; i <= task.readers; ++i) {
        crew[i].tell(line + "\n");
        static_cast<void>(crew[i].heard());
    }
    board.start = now() + 20'000'000;
    std::string answer = "{" + crew[0].heard() + R"(, "readers": [)";
    for (u32 i = 1; i <= task.readers; ++i) answer += (i > 1 ? ", " : "") + crew[i].heard();
    return answer + "]}";
}

}  // namespace

int main() {
    const Source source;
    auto* const board = new (mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Board{};
    std::vector<Member> crew(1 + crew_readers);
    for (u32 role = 0; role < crew.size(); ++role) {
        if (pipe(crew[role].tasks) != 0 || pipe(crew[role].answers) != 0) return 1;
        if (const pid_t child = fork(); child == 0) {
            // Keep only its own ends: otherwise it would not notice that the conductor is gone.
            for (u32 other = 0; other <= role; ++other) close(crew[other].tasks[1]);
            try {
                work(role, crew[role], source, *board);
            } catch (const std::exception& error) {
                std::fprintf(stderr, "crew: %s\n", error.what());
                _exit(1);
            }
        }
        close(crew[role].tasks[0]);
        close(crew[role].answers[1]);
    }
    for (std::string line; std::getline(std::cin, line);) {
        try {
            std::cout << conduct(Task(line), line, crew, *board) << std::endl;
        } catch (const std::exception& error) {
            std::cout << R"({"error": ")" << error.what() << R"("})" << std::endl;
            return 1;
        }
    }
    return 0;
}
