// A library that stands for CUDA's runtime: streams and events in host memory, run by a thread that delays and reorders what
// CUDA leaves open, and that fails when asked to. It exports the names that the lane looks for, and its own (`standin_…`).
//
// As in CUDA: a stream runs in order; an event means its last record; waiting for an event that was never recorded is nothing;
// an error of something that runs is sticky; stream 0 is the default stream of the device that is current in the calling
// thread, and takes no event of another device.
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr int success = 0, invalid_handle = 400, not_ready = 600, launch_failure = 719;

struct Event {
    int device = 0;              // that was current when it was made
    std::uint64_t recorded = 0;  // number of its last record
    std::uint64_t reached = 0;   // of the last record that a stream has come to
};
struct Step {
    std::function<bool()> ready;
    std::function<void()> act;
    bool copy = false;
    bool calls_back = false;  // may wait for a thread that waits for the device's lock
};
struct Stream {
    std::deque<Step> steps;
    bool running = false;
};
struct Failure {
    int after = 0;
    int code = 0;
    bool sticky = false;
};

struct Device {
    std::mutex lock;
    std::condition_variable woken;
    std::vector<std::unique_ptr<Stream>> streams;
    std::vector<std::unique_ptr<Event>> events;
    std::map<int, Stream*> default_streams;  // by device
    std::map<std::string, Failure> failures;
    std::map<std::string, std::uint64_t> calls;
    std::mt19937_64 dice{1};
    unsigned delay_us = 0;
    bool hold_copies = false;
    int broken = 0;
    bool capturing = false;  // some thread captures a graph, in the mode that forbids others to query
    bool spoiled = false;
    bool over = false;
    std::thread thread;

    Device() : thread([this] { run(); }) {}
    ~Device() {
        {
            const std::scoped_lock turn(lock);
            over = true;
        }
        woken.notify_all();
        thread.join();
    }

    void run() {
        std::unique_lock turn(lock);
        while (!over) {
            std::vector<Stream*> able;
            for (auto& stream : streams) {
                if (stream->steps.empty() || (hold_copies && stream->steps.front().copy)) continue;
                if (!stream->steps.front().ready || stream->steps.front().ready()) able.push_back(stream.get());
            }
            if (able.empty()) {
                woken.wait_for(turn, std::chrono::milliseconds(1));
                continue;
            }
            Stream& chosen = *able[dice() % able.size()];
            const Step step = std::move(chosen.steps.front());
            chosen.steps.pop_front();
            chosen.running = true;
            const unsigned pause = delay_us == 0 || dice() % 4 != 0 ? 0 : static_cast<unsigned>(dice() % delay_us);
            turn.unlock();
            if (pause != 0) std::this_thread::sleep_for(std::chrono::microseconds(pause));
            turn.lock();
            if (broken == 0 && step.calls_back) {
                turn.unlock();
                step.act();
                turn.lock();
            } else if (broken == 0) {
                step.act();
            }
            chosen.running = false;
        }
    }

    /// The error that a call of `name` answers, as ordered.
    int asked(const char* name) {
        ++calls[name];
        if (broken != 0) return broken;
        const auto found = failures.find(name);
        if (found == failures.end() || found->second.after-- > 0) return success;
        const Failure failure = found->second;
        failures.erase(found);
        if (failure.sticky) broken = failure.code;
        return failure.code;
    }
    Stream* default_stream(int of) {
        Stream*& one = default_streams[of];
        if (one == nullptr) one = streams.emplace_back(new Stream).get();
        return one;
    }
    void push(Stream* stream, Step step) {
        stream->steps.push_back(std::move(step));
        woken.notify_all();
    }
};

thread_local int current_device = 0;
thread_local int capture_mode = 0;  // global: this thread's queries spoil the graphs of others

Device& device() {
    static Device* const one = new Device;  // its thread outlives whatever else is destroyed at the end
    return *one;
}

int queried(int status) {
    if (!device().capturing || capture_mode != 0) return status;
    device().spoiled = true;
    return 900;
}

/// A call of `name`: its lock, and the error that it answers.
struct Call {
    explicit Call(const char* name) : turn(device().lock), status(device().asked(name)) {}
    std::unique_lock<std::mutex> turn;
    int status;
};

}  // namespace

extern "C" {

int cudaSetDevice(int number) {
    const Call call("cudaSetDevice");
    if (call.status == success) current_device = number;
    return call.status;
}
int cudaGetDevice(int* number) {
    *number = current_device;
    return Call("cudaGetDevice").status;
}
int cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return Call("cudaDeviceGetStreamPriorityRange").status;
}
int cudaStreamCreateWithPriority(void** stream, unsigned, int) {
    const Call call("cudaStreamCreateWithPriority");
    if (call.status == success) *stream = device().streams.emplace_back(new Stream).get();
    return call.status;
}
int cudaStreamDestroy(void*) { return Call("cudaStreamDestroy").status; }
int cudaStreamQuery(void* stream) {
    const Call call("cudaStreamQuery");
    const auto* const one = static_cast<Stream*>(stream);
    if (call.status != success) return call.status;
    return queried(one->steps.empty() && !one->running ? success : not_ready);
}
int cudaThreadExchangeStreamCaptureMode(int* mode) {
    std::swap(*mode, capture_mode);
    return Call("cudaThreadExchangeStreamCaptureMode").status;
}
int cudaGetLastError() { return Call("cudaGetLastError").status; }
int cudaEventCreateWithFlags(void** event, unsigned) {
    const Call call("cudaEventCreateWithFlags");
    if (call.status == success) *event = device().events.emplace_back(new Event{.device = current_device}).get();
    return call.status;
}
int cudaEventDestroy(void*) { return Call("cudaEventDestroy").status; }
int cudaEventRecord(void* event, void* stream) {
    const Call call("cudaEventRecord");
    if (call.status != success) return call.status;
    auto* const one = static_cast<Event*>(event);
    if (stream == nullptr) {
        if (one->device != current_device) return invalid_handle;
        stream = device().default_stream(current_device);
    }
    const auto number = ++one->recorded;
    device().push(static_cast<Stream*>(stream), {nullptr, [one, number] { one->reached = number; }});
    return success;
}
int cudaEventQuery(void* event) {
    const Call call("cudaEventQuery");
    const auto* const one = static_cast<Event*>(event);
    if (call.status != success) return call.status;
    return queried(one->reached >= one->recorded ? success : not_ready);
}
int cudaStreamWaitEvent(void* stream, void* event, unsigned) {
    const Call call("cudaStreamWaitEvent");
    if (call.status != success) return call.status;
    auto* const one = static_cast<Event*>(event);
    const auto number = one->recorded;
    device().push(static_cast<Stream*>(stream), {[one, number] { return one->reached >= number; }, [] {}});
    return success;
}
int cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width,
                      std::size_t height, int, void* stream) {
    const Call call("cudaMemcpy2DAsync");
    if (call.status != success) return call.status;
    // Row by row: what reads a target too early finds half of it.
    for (std::size_t row = 0; row < height; ++row) {
        device().push(static_cast<Stream*>(stream),
                      {nullptr,
                       [=] {
                           if (device().asked("copying") != success) return;
                           std::memcpy(static_cast<std::byte*>(to) + row * to_pitch,
                                       static_cast<const std::byte*>(from) + row * from_pitch, width);
                       },
                       true});
    }
    return success;
}
const char* cudaGetErrorString(int error) {
    return error == launch_failure ? "unspecified launch failure" : error == 2 ? "out of memory" : "an error";
}

/// A device at the beginning: what waits in its streams is gone, what is random follows from the seed, and a step is delayed by
/// up to so many microseconds.
void standin_begin(std::uint64_t seed, unsigned delay_us) {
    std::unique_lock turn(device().lock);
    for (auto& stream : device().streams) {
        stream->steps.clear();
        while (stream->running) {
            turn.unlock();
            std::this_thread::sleep_for(std::chrono::microseconds(50));
            turn.lock();
        }
    }
    device().dice.seed(seed);
    device().delay_us = delay_us;
    device().hold_copies = false;
    device().broken = 0;
    device().capturing = device().spoiled = false;
    device().failures.clear();
    device().calls.clear();
}
/// Call `after` + 1 of `name`, from now, answers `code`; sticky: and so does whatever comes later. "copying" is a row on its way.
void standin_fail(const char* name, int after, int code, int sticky) {
    const std::scoped_lock turn(device().lock);
    device().failures[name] = {after, code, sticky != 0};
}
void standin_hold_copies(int hold) {
    const std::scoped_lock turn(device().lock);
    device().hold_copies = hold != 0;
}
/// Some thread begins to capture a graph, or ends; returns whether the last one was spoiled.
int standin_capture(int begin) {
    const std::scoped_lock turn(device().lock);
    device().capturing = begin != 0;
    return device().spoiled ? 1 : 0;
}
std::uint64_t standin_calls(const char* name) {
    const std::scoped_lock turn(device().lock);
    return device().calls[name];
}
void* standin_stream() {
    const std::scoped_lock turn(device().lock);
    return device().streams.emplace_back(new Stream).get();
}
/// The default stream of a device, which CUDA's functions know as 0.
void* standin_default_stream(int of) {
    const std::scoped_lock turn(device().lock);
    return device().default_stream(of);
}
/// A kernel that gathers rows, as index_select: index and rows are read when it runs.
void standin_gather(void* stream, void* to, const void* from, const std::int64_t* index, std::size_t count, std::size_t bytes) {
    const std::scoped_lock turn(device().lock);
    device().push(static_cast<Stream*>(stream), {nullptr, [=] {
        for (std::size_t i = 0; i < count; ++i) {
            std::memcpy(static_cast<std::byte*>(to) + i * bytes,
                        static_cast<const std::byte*>(from) + static_cast<std::size_t>(index[i]) * bytes, bytes);
        }
    }});
}
/// A kernel that is a function of the test: what it reads is read when it runs.
void standin_call(void* stream, void (*function)()) {
    const std::scoped_lock turn(device().lock);
    device().push(static_cast<Stream*>(stream), {nullptr, [function] { function(); }, false, true});
}
/// A copy to the device out of memory that is pinned: it is read when the copy runs.
void standin_copy(void* stream, void* to, const void* from, std::size_t bytes) {
    const std::scoped_lock turn(device().lock);
    device().push(static_cast<Stream*>(stream), {nullptr, [=] { std::memcpy(to, from, bytes); }});
}
/// A kernel that overwrites memory: an operation in place, or the allocator's next tenant. Its source is read when it is called.
void standin_write(void* stream, void* to, const void* from, std::size_t bytes) {
    const auto* const first = static_cast<const std::byte*>(from);
    const std::vector<std::byte> content(first, first + bytes);
    const std::scoped_lock turn(device().lock);
    device().push(static_cast<Stream*>(stream), {nullptr, [=] { std::memcpy(to, content.data(), content.size()); }});
}
/// A kernel that takes so long, while other streams go on.
void standin_delay(void* stream, unsigned microseconds) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(microseconds);
    const std::scoped_lock turn(device().lock);
    device().push(static_cast<Stream*>(stream), {[until] { return std::chrono::steady_clock::now() >= until; }, [] {}});
}
/// Waits until a stream has run; nothing of a broken device runs.
void standin_wait(void* stream) {
    for (;;) {
        {
            const std::scoped_lock turn(device().lock);
            const auto* const one = static_cast<Stream*>(stream);
            if (device().broken != 0 || (one->steps.empty() && !one->running)) return;
        }
        std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
}
}
