// Copies slots of device memory into chunks of a registered pool on a dedicated thread, as capture of device
// tensors does, but without the ring. It uses the CUDA runtime that the process has already loaded, so CUDA
// is not needed to build this.
#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

constexpr int kDeviceToHost = 2, kNotReady = 600, kNonBlocking = 1, kDisableTiming = 2;

struct Runtime {
    int (*set_device)(int) = nullptr;
    int (*least_priority)(int*, int*) = nullptr;
    int (*stream_create)(void**, unsigned, int) = nullptr;
    int (*stream_destroy)(void*) = nullptr;
    int (*wait_event)(void*, void*, unsigned) = nullptr;
    int (*event_create)(void**, unsigned) = nullptr;
    int (*event_destroy)(void*) = nullptr;
    int (*event_record)(void*, void*) = nullptr;
    int (*event_query)(void*) = nullptr;
    int (*copy)(void*, const void*, std::size_t, int, void*) = nullptr;
    int (*copy_2d)(void*, std::size_t, const void*, std::size_t, std::size_t, std::size_t, int, void*) = nullptr;

    bool load(const char* path) {
        void* library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
        if (library == nullptr) return false;
        auto take = [library](auto& function, const char* name) {
            function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
            return function != nullptr;
        };
        return take(set_device, "cudaSetDevice") && take(least_priority, "cudaDeviceGetStreamPriorityRange") &&
               take(stream_create, "cudaStreamCreateWithPriority") && take(stream_destroy, "cudaStreamDestroy") &&
               take(wait_event, "cudaStreamWaitEvent") && take(event_create, "cudaEventCreateWithFlags") &&
               take(event_destroy, "cudaEventDestroy") && take(event_record, "cudaEventRecord") &&
               take(event_query, "cudaEventQuery") && take(copy, "cudaMemcpyAsync") &&
               take(copy_2d, "cudaMemcpy2DAsync");
    }
};

struct Task {
    void* ready;             // recorded on the compute stream after the gather
    const std::byte* source; // a slot: contiguous rows
    std::byte* target;       // the payload of the first chunk
    std::size_t width;       // payload bytes of a full chunk
    std::size_t pitch;       // bytes from chunk to chunk
    std::size_t chunks;      // full chunks
    std::size_t tail;        // payload bytes of the last, partial chunk
};

enum Layout { contiguous = 0, two_dimensional = 1, chunk_by_chunk = 2 };

class Lane {
  public:
    Lane(int device, Layout layout, std::size_t slots) : device_(device), layout_(layout), tasks_(slots), done_events_(slots) {}

    bool start(const char* path) {
        if (!runtime_.load(path)) return false;
        thread_ = std::thread([this] { run(); });
        return true;
    }

    // Called by the compute thread. False if every slot is in flight: the caller drops and never waits.
    bool submit(const Task& task) {
        const auto at = submitted_.load(std::memory_order_relaxed);
        if (at - done_.load(std::memory_order_acquire) >= tasks_.size()) return false;
        tasks_[at % tasks_.size()] = task;
        submitted_.store(at + 1, std::memory_order_release);
        return true;
    }

    std::uint64_t done() const { return done_.load(std::memory_order_acquire); }
    int error() const { return error_.load(); }

    void stop() {
        stopping_.store(true);
        if (thread_.joinable()) thread_.join();
    }

  private:
    void run() {
        int least = 0, greatest = 0;
        if (failed(runtime_.set_device(device_)) || failed(runtime_.least_priority(&least, &greatest)) ||
            failed(runtime_.stream_create(&stream_, kNonBlocking, least)))
            return;
        for (auto& event : done_events_)
            if (failed(runtime_.event_create(&event, kDisableTiming))) return;
        std::uint64_t issued = 0, finished = 0;
        while (true) {
            const auto submitted = submitted_.load(std::memory_order_acquire);
            if (issued < submitted) {
                if (!issue(tasks_[issued % tasks_.size()], done_events_[issued % tasks_.size()])) return;
                ++issued;
                continue;
            }
            if (finished < issued) { // in order: copies after an unfinished one are not checked
                const int state = runtime_.event_query(done_events_[finished % tasks_.size()]);
                if (state == 0) {
                    done_.store(++finished, std::memory_order_release);
                    continue;
                }
                if (state != kNotReady && failed(state)) return;
            } else if (stopping_.load()) {
                break;
            }
            std::this_thread::sleep_for(std::chrono::microseconds(20));
        }
        for (auto& event : done_events_) runtime_.event_destroy(event);
        runtime_.stream_destroy(stream_);
    }

    bool issue(const Task& task, void* done) {
        if (failed(runtime_.wait_event(stream_, task.ready, 0))) return false;
        const std::size_t whole = task.chunks * task.width;
        int state = 0;
        if (layout_ == contiguous) {
            state = runtime_.copy(task.target, task.source, whole + task.tail, kDeviceToHost, stream_);
            return !failed(state) && !failed(runtime_.event_record(done, stream_));
        }
        if (layout_ == two_dimensional) {
            if (task.chunks > 0)
                state = runtime_.copy_2d(task.target, task.pitch, task.source, task.width, task.width, task.chunks,
                                         kDeviceToHost, stream_);
        } else {
            for (std::size_t i = 0; state == 0 && i < task.chunks; ++i)
                state = runtime_.copy(task.target + i * task.pitch, task.source + i * task.width, task.width,
                                      kDeviceToHost, stream_);
        }
        if (state == 0 && task.tail > 0)
            state = runtime_.copy(task.target + task.chunks * task.pitch, task.source + whole, task.tail, kDeviceToHost,
                                  stream_);
        return !failed(state) && !failed(runtime_.event_record(done, stream_));
    }

    bool failed(int state) {
        if (state != 0) error_.store(state);
        return state != 0;
    }

    int device_;
    Layout layout_;
    std::vector<Task> tasks_;
    std::vector<void*> done_events_;
    Runtime runtime_;
    void* stream_ = nullptr;
    std::thread thread_;
    alignas(64) std::atomic<std::uint64_t> submitted_{0};
    alignas(64) std::atomic<std::uint64_t> done_{0};
    std::atomic<bool> stopping_{false};
    std::atomic<int> error_{0};
};

} // namespace

extern "C" {

void* lane_start(const char* runtime, int device, int layout, std::size_t slots) {
    auto* lane = new Lane(device, static_cast<Layout>(layout), slots);
    if (lane->start(runtime)) return lane;
    delete lane;
    return nullptr;
}

int lane_submit(void* lane, void* ready, const void* source, void* target, std::size_t width, std::size_t pitch,
                std::size_t chunks, std::size_t tail) {
    const Task task{ready, static_cast<const std::byte*>(source), static_cast<std::byte*>(target), width, pitch, chunks, tail};
    return static_cast<Lane*>(lane)->submit(task) ? 1 : 0;
}

std::uint64_t lane_done(void* lane) { return static_cast<Lane*>(lane)->done(); }
int lane_error(void* lane) { return static_cast<Lane*>(lane)->error(); }

void lane_stop(void* lane) {
    static_cast<Lane*>(lane)->stop();
    delete static_cast<Lane*>(lane);
}
}
