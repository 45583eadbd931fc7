// A lane: a dedicated thread that copies rows from slots in accelerator memory into claimed chunks of a shard and commits them.
//
// The model's thread gathers rows into a slot on its stream and submits the slot; it never waits for the device, the copy or a
// consumer. The following rules are each checked by a mutant in tests/ring/test_lane.py:
//
//   1. Before the first copy out of a slot, the copy stream waits for the event recorded after the gather.
//   2. A packet is committed only after the event recorded after its last copy has completed.
//   3. Packets are committed in the order in which their slots were submitted.
//   4. A slot is reused only after the event recorded after its last copy has completed.
//   5. A chunk is released only when no copy into it can still be in flight.
//   6. Whatever fails, every submitted row is published or counted as dropped.
//   7. The thread never invalidates a graph that another thread is capturing.
//   8. The end of a gather is marked on the lane's device, whichever one is current in the model's thread.
//   9. How many values of a row were out of range is read only when the event behind the copy of these counts has been seen.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <unistd.h>

#include "asysi/device_runtime.hpp"
#include "asysi/writer.hpp"

namespace asysi {

class Lane {
public:
    /// Mean and scale of each channel, [2, width].
    using Table = std::shared_ptr<const std::vector<float>>;
    /// What a slot holds, as packets.
    struct Content {
        PacketHeader header;             // of every packet, but for `part`
        std::span<const u32> counts;     // rows of each packet, in the order of the slot's rows
        const std::byte* source;         // in the device's memory: rows without gaps, of the type that the packets have
        const float* scales;             // in the device's memory: a scale a row; null where the type has none
        const u32* outside;              // in the device's memory: values of each row out of range, of int8 by channel
        Table table;                     // of int8 by channel
        Dtype dtype;                     // before the conversion
        Quantization quantization;       // which the rows have gone through
    };
    using Records = std::shared_ptr<const std::vector<RowRecord>>;

    /// Creates stream and events on `device`, and starts the thread. Throws DeviceError.
    ///
    /// `patience`: time to wait for copies in flight, at the end or after a failure, before they are abandoned.
    Lane(std::shared_ptr<Writer> writer, u32 shard, DeviceRuntime runtime, int device, std::size_t slots,
         std::chrono::nanoseconds patience = std::chrono::seconds(30))
        : writer_(std::move(writer)), shard_(shard), runtime_(runtime), device_(device), patience_(patience), tasks_(slots) {
        if (slots == 0) throw std::invalid_argument("a lane has one slot at least");
        thread_ = std::thread([this] {
            try {
                open();
            } catch (const DeviceError& error) {
                note(error.what());
                shut();
            }
            const bool well = !failed();
            opened_.store(true, std::memory_order_release);
            opened_.notify_one();
            if (well) run();
        });
        opened_.wait(false, std::memory_order_acquire);
        if (!failed()) return;
        thread_.join();
        throw DeviceError(problem());
    }
    ~Lane() { stop(); }
    Lane(const Lane&) = delete;
    Lane& operator=(const Lane&) = delete;

    // --- called by the model's threads, one at a time ----------------------------------------------------------------

    [[nodiscard]] std::size_t slots() const { return tasks_.size(); }
    /// Number of slots that can be filled; 0 if the lane has failed.
    [[nodiscard]] std::size_t free() const {
        if (failed()) return 0;
        return tasks_.size() - (submitted_.load(std::memory_order_relaxed) - finished_.load(std::memory_order_acquire));
    }
    /// Index of the slot to fill next. Valid only if one is free.
    [[nodiscard]] std::size_t next() const { return submitted_.load(std::memory_order_relaxed) % tasks_.size(); }
    /// Chunks that submitted slots have yet to claim. Read it before the shard's free chunks, so that the room left is never
    /// overestimated.
    [[nodiscard]] u64 unclaimed() const { return unclaimed_.load(std::memory_order_acquire); }

    /// Sets the records of the rows in a step's slots; they are copied once for all slots.
    void begin_step(std::span<const RowRecord> records) {
        records_ = std::make_shared<const std::vector<RowRecord>>(records.begin(), records.end());
    }

    /// Keeps a table [2, width] for as long as the lane is there, and returns its number, from 1.
    std::size_t add_table(std::span<const float> table) {
        tables_.push_back(std::make_shared<const std::vector<float>>(table.begin(), table.end()));
        return tables_.size();
    }
    /// The table with this number; null for 0. Throws std::invalid_argument where there is none.
    [[nodiscard]] Table table(std::size_t number) const {
        if (number > tables_.size()) throw std::invalid_argument("the lane has no table " + std::to_string(number));
        return number == 0 ? nullptr : tables_[number - 1];
    }

    /// Hands over the slot `next()`, which `stream` fills. False, the rows counted as dropped, where the lane has failed.
    /// Throws std::invalid_argument, with nothing counted, for rows that have no record in the step, and for int8 by channel
    /// without its table or counts, or without room for the counts behind a packet.
    bool submit(void* stream, const Content& content) {
        u64 rows = 0;
        for (const u32 count : content.counts) rows += count;
        if (records_ == nullptr || rows > records_->size()) {
            throw std::invalid_argument("a slot of " + std::to_string(rows) + " rows, the step has " +
                                        std::to_string(records_ == nullptr ? 0 : records_->size()));
        }
        if (content.quantization == Quantization::int8_channel) expect_by_channel(content);
        const u64 at = submitted_.load(std::memory_order_relaxed);
        if (at - finished_.load(std::memory_order_acquire) >= tasks_.size()) throw std::invalid_argument("no slot is free");
        if (failed()) return lose(content.header.account, rows), false;
        Task& task = tasks_[at % tasks_.size()];
        if (const int status = runtime_.record_on(device_, task.ready, stream); status != DeviceRuntime::success) {
            note(runtime_.message(status, "cudaEventRecord behind a gather"));
            runtime_.last_error();  // it is this thread's: the model's next call shall not find it
            return lose(content.header.account, rows), false;
        }
        task.content = content;
        task.counts.assign(content.counts.begin(), content.counts.end());
        task.records = records_;
        unclaimed_.fetch_add(task.counts.size(), std::memory_order_release);
        submitted_.store(at + 1, std::memory_order_release);
        ring_bell();
        return true;
    }

    // --- called from any thread --------------------------------------------------------------------------------------

    [[nodiscard]] bool failed() const { return failed_.load(std::memory_order_acquire); }
    /// Message of the first failure; empty if there was none.
    [[nodiscard]] std::string problem() const {
        const std::scoped_lock turn(problem_lock_);
        return problem_;
    }
    /// Rows that were submitted but not published because the lane had failed.
    [[nodiscard]] u64 lost() const { return lost_.load(std::memory_order_relaxed); }
    /// Number of slots whose rows have been published or abandoned.
    [[nodiscard]] u64 finished() const { return finished_.load(std::memory_order_acquire); }

    /// Waits until all submitted slots are published, as long as the device makes progress, and ends the thread.
    void stop() {
        if (!thread_.joinable()) return;
        if (process_ != getpid()) return forsake(thread_);  // a forked child has no such thread
        stopping_.store(true, std::memory_order_release);
        ring_bell();
        thread_.join();
    }

private:
    struct Task {
        void* ready = nullptr;  // recorded after the gather, on the model's stream
        void* done = nullptr;   // recorded after the last copy, on the copy stream
        Content content{};
        std::vector<u32> counts;
        Records records;
        std::vector<Claim> claims;
        bool issued = false;  // whether `done` has been recorded after all copies of this content
    };

    void expect_by_channel(const Content& content) const {
        if (content.table == nullptr || content.table->size() != std::size_t{content.header.width} * 2 || content.outside == nullptr) {
            throw std::invalid_argument("int8 by channel needs a table of " + std::to_string(content.header.width) +
                                        " channels, and how many values of each row are out of range");
        }
        for (const u32 count : content.counts) {
            Block block{};
            block.rows = {.base = nullptr, .stride = 0, .index = nullptr, .count = count, .width = content.header.width,
                          .dtype = content.dtype};
            block.quantization = content.quantization;
            if (Plan(block).total() + count * sizeof(u32) > writer_->geometry().chunk_bytes) {
                throw std::invalid_argument("no room behind a packet of " + std::to_string(count) + " rows for their counts");
            }
        }
    }

    // --- the thread --------------------------------------------------------------------------------------------------

    void open() {
        int least = 0;
        int greatest = 0;
        runtime_.expect(runtime_.set_device(device_), "cudaSetDevice");
        // Otherwise a query from this thread would invalidate a graph that the model's thread is capturing.
        int mode = DeviceRuntime::capture_thread_local;
        runtime_.expect(runtime_.exchange_capture_mode(&mode), "cudaThreadExchangeStreamCaptureMode");
        runtime_.expect(runtime_.priorities(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
        runtime_.expect(runtime_.stream_create(&stream_, DeviceRuntime::non_blocking, least), "cudaStreamCreateWithPriority");
        for (Task& task : tasks_) {
            runtime_.expect(runtime_.event_create(&task.ready, DeviceRuntime::disable_timing), "cudaEventCreateWithFlags");
            runtime_.expect(runtime_.event_create(&task.done, DeviceRuntime::disable_timing), "cudaEventCreateWithFlags");
        }
    }

    /// Releases what `open` created. Errors are ignored at this point.
    void shut() {
        for (Task& task : tasks_) {
            if (task.ready != nullptr) runtime_.event_destroy(task.ready);
            if (task.done != nullptr) runtime_.event_destroy(task.done);
        }
        if (stream_ != nullptr) runtime_.stream_destroy(stream_);
    }

    void run() {
        std::vector<Block> blocks;
        u64 issued = 0;
        auto moved = std::chrono::steady_clock::now();
        for (;;) {
            const u32 rung = bell_.load(std::memory_order_acquire);
            const u64 finished = finished_.load(std::memory_order_relaxed);
            if (failed()) {
                issued = give_up(finished, issued);
            } else if (issued < submitted_.load(std::memory_order_acquire)) {
                issue(task(issued++), blocks);
                continue;
            } else if (finished < issued) {
                if (const int status = runtime_.event_query(task(finished).done); status == DeviceRuntime::success) {
                    finish(task(finished));
                    moved = std::chrono::steady_clock::now();
                } else if (status != DeviceRuntime::not_ready) {
                    note(runtime_.message(status, "a copy into the ring"));
                } else if (!stopping_.load(std::memory_order_acquire)) {
                    moved = std::chrono::steady_clock::now();  // no deadline while the model is running
                    std::this_thread::sleep_for(std::chrono::microseconds(20));
                } else if (std::chrono::steady_clock::now() - moved > patience_) {
                    note("the device has shown no progress: copies into the ring are given up");
                } else {
                    std::this_thread::sleep_for(std::chrono::microseconds(20));
                }
                continue;
            }
            if (submitted_.load(std::memory_order_acquire) != finished_.load(std::memory_order_relaxed)) continue;
            if (stopping_.load(std::memory_order_acquire)) break;
            bell_.wait(rung, std::memory_order_acquire);
        }
        shut();
    }

    /// Claims chunks and enqueues the copies into them.
    void issue(Task& task, std::vector<Block>& blocks) {
        describe(task, blocks);
        try {
            writer_->claim(blocks, task.claims);
        } catch (const std::exception& error) {  // nothing was claimed or counted
            note(error.what());
            for (const Block& block : blocks) lose(block.header.account, block.rows.count);
        }
        unclaimed_.fetch_sub(task.counts.size(), std::memory_order_release);
        int status = runtime_.stream_wait(stream_, task.ready, 0);
        if (status == DeviceRuntime::success) status = copy(task);
        if (status == DeviceRuntime::success) status = runtime_.event_record(task.done, stream_);
        task.issued = status == DeviceRuntime::success;
        if (!task.issued) note(runtime_.message(status, "sending a copy into the ring"));
    }

    void describe(const Task& task, std::vector<Block>& blocks) const {
        blocks.clear();
        u64 first = 0;
        for (u32 part = 0; part < task.counts.size(); ++part) {
            Block block{};
            block.shard = shard_;
            block.header = task.content.header;
            block.header.part = static_cast<u16>(part);
            block.records = task.records->data() + first;
            block.rows = {.base = nullptr, .stride = 0, .index = nullptr, .count = task.counts[part],
                          .width = task.content.header.width, .dtype = task.content.dtype};
            block.quantization = task.content.quantization;
            block.table = task.content.table == nullptr ? nullptr : task.content.table->data();
            block.book_seen = true;
            blocks.push_back(block);
            first += task.counts[part];
        }
    }

    /// Enqueues one copy per run of adjacent chunks with the same number of rows.
    int copy(Task& task) {
        const std::byte* source = task.content.source;
        const float* scales = task.content.scales;
        const u32* outside = task.content.outside;
        for (std::size_t at = 0; at < task.claims.size();) {
            const Claim& first = task.claims[at];
            const std::size_t bytes = first.payload().size();
            const std::size_t scale_bytes = first.by_channel() ? 0 : first.scales().size_bytes();
            const std::size_t count_bytes = first.by_channel() ? first.records().size() * sizeof(u32) : 0;
            std::size_t height = 1;
            while (at + height < task.claims.size() && task.claims[at + height].chunk() == first.chunk() + height &&
                   task.claims[at + height].payload().size() == bytes) {
                ++height;
            }
            const std::size_t pitch = writer_->geometry().chunk_bytes;
            int status = runtime_.copy(first.payload().data(), pitch, source, bytes, bytes, height, DeviceRuntime::device_to_host,
                                       stream_);
            if (status == DeviceRuntime::success && scale_bytes != 0) {
                status = runtime_.copy(first.scales().data(), pitch, scales, scale_bytes, scale_bytes, height,
                                       DeviceRuntime::device_to_host, stream_);
            }
            if (status == DeviceRuntime::success && count_bytes != 0) {
                status = runtime_.copy(first.behind(count_bytes), pitch, outside, count_bytes, count_bytes, height,
                                       DeviceRuntime::device_to_host, stream_);
                outside += first.records().size() * height;
            }
            if (status != DeviceRuntime::success) return status;
            source += bytes * height;
            if (scale_bytes != 0) scales += first.scales().size() * height;
            at += height;
        }
        return DeviceRuntime::success;
    }

    /// Commits the packets of a slot whose copies are complete, and makes the slot available again.
    void finish(Task& task) {
        try {
            for (Claim& claim : task.claims) flag_saturated(claim);
            for (Claim& claim : task.claims) claim.commit();
        } catch (const RingError& error) {  // the writer was closed, and has counted the open claims
            note(error.what());
        }
        retire(task);
    }
    /// Flags the rows of int8 by channel that have values out of range, and notes how many. The counts lie behind the packet:
    /// whoever else can write there can also write the flags.
    static void flag_saturated(Claim& claim) {
        if (!claim.by_channel()) return;
        const std::span<RowRecord> records = claim.records();
        const std::byte* const counts = claim.behind(records.size() * sizeof(u32));
        u32 all = 0;
        for (std::size_t row = 0; row < records.size(); ++row) {
            u32 count = 0;
            std::memcpy(&count, counts + row * sizeof count, sizeof count);
            if (count != 0) records[row].flags |= row_saturated;
            all += count;
        }
        claim.note_saturated(all);
    }
    void retire(Task& task) {
        task.claims.clear();  // open claims are aborted: their rows are counted as dropped
        task.records.reset();
        task.content.table.reset();
        task.issued = false;
        finished_.fetch_add(1, std::memory_order_release);
    }

    /// After a failure: publishes the rows that have arrived, and counts all others as dropped. Returns the number of slots
    /// submitted so far.
    u64 give_up(u64 finished, u64 issued) {
        const auto deadline = std::chrono::steady_clock::now() + patience_;
        const u64 submitted = submitted_.load(std::memory_order_acquire);
        bool intact = true;
        for (; finished < issued; ++finished) {
            Task& one = task(finished);
            // An event that was not recorded for this content would report on the slot's previous content.
            intact = intact && one.issued && wait_until(deadline, runtime_.event_query, one.done) == DeviceRuntime::success;
            if (intact) {
                finish(one);
                continue;
            }
            for (const Claim& claim : one.claims) lost_.fetch_add(claim.records().size(), std::memory_order_relaxed);
            // A device that has failed returns an error, and no longer copies.
            if (wait_until(deadline, runtime_.stream_query, stream_) == DeviceRuntime::not_ready) forsake(one);
            retire(one);
        }
        for (; finished < submitted; ++finished) {
            Task& one = task(finished);
            for (const u32 count : one.counts) lose(one.content.header.account, count);
            unclaimed_.fetch_sub(one.counts.size(), std::memory_order_release);
            retire(one);
        }
        return submitted;
    }
    /// Polls `query(what)` until the status is not "not ready" or the deadline has passed; returns the last status.
    static int wait_until(std::chrono::steady_clock::time_point deadline, int (*query)(void*), void* what) {
        int status = query(what);
        while (status == DeviceRuntime::not_ready && std::chrono::steady_clock::now() < deadline) {
            std::this_thread::sleep_for(std::chrono::microseconds(100));
            status = query(what);
        }
        return status;
    }
    /// Leaves claims open until the writer is closed, which counts them: a copy may still write into their chunks.
    static void forsake(Task& task) { static_cast<void>(new std::vector<Claim>(std::move(task.claims))); }
    /// Leaves the handle of a thread that does not exist in this process: whatever is done with it may reach another one.
    static void forsake(std::thread& thread) { static_cast<void>(new std::thread(std::move(thread))); }

    // --- used on both sides ------------------------------------------------------------------------------------------

    [[nodiscard]] Task& task(u64 number) { return tasks_[number % tasks_.size()]; }

    /// Counts rows that will never be claimed.
    void lose(u32 account, u64 rows) {
        lost_.fetch_add(rows, std::memory_order_relaxed);
        try {
            writer_->book(account, {.seen = rows, .dropped = rows, .reason = reason::error});
        } catch (const RingError&) {
            return;  // the writer is closed: nothing is counted any more
        }
    }
    void note(const std::string& problem) {
        {
            const std::scoped_lock turn(problem_lock_);
            if (problem_.empty()) problem_ = problem;
        }
        failed_.store(true, std::memory_order_release);
        ring_bell();
    }
    void ring_bell() {
        bell_.fetch_add(1, std::memory_order_release);
        bell_.notify_one();
    }

    std::shared_ptr<Writer> writer_;
    u32 shard_;
    DeviceRuntime runtime_;
    int device_;
    std::chrono::nanoseconds patience_;
    std::vector<Task> tasks_;  // by slot
    Records records_;          // of the step
    std::vector<Table> tables_;  // the model's threads
    void* stream_ = nullptr;
    pid_t process_ = getpid();
    mutable std::mutex problem_lock_;
    std::string problem_;
    alignas(64) std::atomic<u64> submitted_{0};
    alignas(64) std::atomic<u64> finished_{0};
    std::atomic<u64> unclaimed_{0};
    std::atomic<u64> lost_{0};
    std::atomic<bool> failed_{false};
    std::atomic<bool> opened_{false};
    std::atomic<bool> stopping_{false};
    std::atomic<u32> bell_{0};
    std::thread thread_;
};

}  // namespace asysi
