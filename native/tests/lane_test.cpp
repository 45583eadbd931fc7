// The lane's rules, against a runtime that stands for CUDA's: `lane_test STANDIN.so [CASE …]`.
#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <thread>

#include <dlfcn.h>
#include <sys/wait.h>

#include "asysi/lane.hpp"
#include "fixture.hpp"

using namespace asysi;
using namespace asysi::test;

namespace {

std::string library;

/// What the stand-in has beside CUDA's names.
struct Standin {
    void (*begin)(std::uint64_t, unsigned);
    void (*fail)(const char*, int, int, int);
    void (*hold_copies)(int);
    int (*capture)(int);
    std::uint64_t (*calls)(const char*);
    void* (*stream)();
    void* (*default_stream)(int);
    int (*set_device)(int);
    int (*get_device)(int*);
    void (*gather)(void*, void*, const void*, const std::int64_t*, std::size_t, std::size_t);
    void (*write)(void*, void*, const void*, std::size_t);
    void (*wait)(void*);

    Standin() {
        void* const loaded = dlopen(library.c_str(), RTLD_NOW);
        EXPECT(loaded != nullptr);
        const auto take = [&](auto& function, const char* name) {
            function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(loaded, name));
            EXPECT(function != nullptr);
        };
        take(begin, "standin_begin");
        take(fail, "standin_fail");
        take(hold_copies, "standin_hold_copies");
        take(capture, "standin_capture");
        take(calls, "standin_calls");
        take(stream, "standin_stream");
        take(default_stream, "standin_default_stream");
        take(set_device, "cudaSetDevice");
        take(get_device, "cudaGetDevice");
        take(gather, "standin_gather");
        take(write, "standin_write");
        take(wait, "standin_wait");
    }
};

constexpr u32 grid = 64;       // rows of an activation
constexpr u32 kept_rows = 40;  // and of a slot
constexpr u32 broad = 8;       // elements of a row
constexpr std::size_t row_size = broad * sizeof(float);
using namespace std::chrono_literals;
void pause() { std::this_thread::sleep_for(100us); }
using Activation = std::array<float, grid * broad>;

/// Element `e` of a row: what it must be follows from the header and the record alone.
float element(u64 step, u32 account, u32 row, u32 e) {
    Dice dice(step * 1000003 + account * 1009 + row * 17 + e);
    return static_cast<float>(dice.below(1 << 20));
}

/// A ring, its reader, and a model of three hook points on the stand-in device.
class Bench {
public:
    explicit Bench(u64 seed, unsigned delay_us = 200, std::size_t slots = 4, u32 chunks = 24) : dice_(seed) {
        device.begin(seed, delay_us);
        create(folder_.path + "/ring", {1, chunks, 1024, 8, 4, Policy::drop_new, {"hook"}});
        writer = std::make_shared<Writer>(folder_.path + "/ring");
        for (const char* const name : {"a", "b", "c"}) accounts.push_back(writer->account(name));
        compute = device.stream();
        lane = std::make_unique<Lane>(writer, 0, DeviceRuntime::load(library), 0, slots, 300ms);
        memory.resize(slots);
        for (u32 i = 0; i < kept_rows; ++i) {
            kept.push_back(static_cast<i64>((i * 7) % grid));
            RowRecord record{};
            record.sample = static_cast<u64>(kept.back());
            records.push_back(record);
        }
        reader_ = std::thread([this] { read(); });
    }
    ~Bench() {
        lane.reset();
        finish_reading();
        device.begin(0, 0);  // nothing runs over memory that goes away
    }

    /// The model computes an activation, the hook takes it, and an operation in place runs over it right behind.
    bool call(u64 step, u32 account, const std::vector<u32>& counts = {14, 14, 12}) {
        Activation fresh;
        for (u32 row = 0; row < grid; ++row) {
            for (u32 e = 0; e < broad; ++e) fresh[row * broad + e] = element(step, account, row, e);
        }
        device.write(compute, activation_.data(), fresh.data(), sizeof fresh);
        const bool free = lane->free() != 0;
        bool taken = false;
        if (free) {
            auto& slot = memory[lane->next()];
            device.gather(compute, slot.data(), activation_.data(), kept.data(), kept_rows, row_size);
            Lane::Content content{};
            content.header.account = account;
            content.header.step = step;
            content.header.width = broad;
            content.counts = counts;
            content.source = reinterpret_cast<const std::byte*>(slot.data());
            content.dtype = Dtype::float32;
            taken = lane->submit(by_default ? nullptr : compute, content);
        }
        const Activation junk{};
        device.write(compute, activation_.data(), junk.data(), sizeof junk);
        if (!free) writer->book(account, {.seen = kept_rows, .dropped = kept_rows, .reason = reason::ring_full});
        return taken;
    }
    void begin_step() { lane->begin_step(records); }

    /// Every hook point of `steps` steps; now and then the model waits for a slot, so that both happen.
    void run(u64 steps, u64 first = 0) {
        for (u64 step = first; step < first + steps; ++step) {
            begin_step();
            for (const u32 account : accounts) {
                while (!lane->failed() && lane->free() == 0 && dice_.below(16) != 0) pause();
                call(step, account);
            }
        }
    }

    /// Ends the lane and the ring, and holds the ledger to its equation; returns the rows published.
    u64 close() {
        lane->stop();
        writer->close(WriterState::complete);
        finish_reading();
        u64 published = 0;
        Control look(folder_.path + "/ring");
        for (const u32 account : accounts) {
            const auto made = look.ring().account(account).counters.load();
            EXPECT(balances(made));
            published += made[produced::published];
        }
        EXPECT(published == rows_read_);
        EXPECT(leaked(look.ring()) == 0);
        return published;
    }
    [[nodiscard]] Versioned<produced::words>::Values made(u32 account) const {
        return writer->ring().account(account).counters.load();
    }
    /// A packet by the ring's usual way: it takes a chunk that is free.
    bool publish_plainly(u64 step, u32 account, u32 rows) {
        std::vector<float> values(std::size_t{rows} * broad);
        for (u32 row = 0; row < rows; ++row) {
            for (u32 e = 0; e < broad; ++e) values[row * broad + e] = element(step, account, static_cast<u32>(kept[row]), e);
        }
        Block block{};
        block.header.account = account;
        block.header.step = step;
        block.header.width = broad;
        block.header.parts = 1;
        block.records = records.data();
        block.rows = {reinterpret_cast<const std::byte*>(values.data()), row_size, nullptr, rows, broad, Dtype::float32};
        block.book_seen = true;
        return writer->publish(block);
    }

    /// Mean and scale of each channel, and how many values of a row are out of range.
    static std::array<float, 2 * broad> table() {
        std::array<float, 2 * broad> made{};
        for (u32 i = 0; i < 2 * broad; ++i) made[i] = static_cast<float>(i) + 0.5F;
        return made;
    }
    static u32 outside_of(u64 sample) { return static_cast<u32>(sample % 3); }

    /// Rows of a slot that the device has converted to int8 by channel: elements and counts are there only when its stream is.
    bool call_by_channel(u64 step, u32 account, const std::vector<u32>& counts, std::size_t number) {
        std::array<std::int8_t, kept_rows * broad> values{};
        std::array<u32, kept_rows> outside{};
        for (u32 i = 0; i < kept_rows; ++i) {
            const auto row = static_cast<u32>(kept[i]);
            outside[i] = outside_of(row);
            for (u32 e = 0; e < broad; ++e) {
                values[i * broad + e] = static_cast<std::int8_t>(static_cast<int>(element(step, account, row, e)) % 127);
            }
        }
        auto* const slot = reinterpret_cast<std::byte*>(memory[lane->next()].data());
        std::byte* const beside = slot + sizeof values;
        device.write(compute, slot, values.data(), sizeof values);
        device.write(compute, beside, outside.data(), sizeof outside);
        Lane::Content content{};
        content.header.account = account;
        content.header.step = step;
        content.header.width = broad;
        content.counts = counts;
        content.source = slot;
        content.outside = reinterpret_cast<const u32*>(beside);
        content.table = lane->table(number);
        content.dtype = Dtype::float32;
        content.quantization = Quantization::int8_channel;
        return lane->submit(compute, content);
    }

    Standin device;
    std::shared_ptr<Writer> writer;
    std::unique_ptr<Lane> lane;
    std::vector<u32> accounts;
    std::vector<std::array<float, kept_rows * broad>> memory;
    std::vector<i64> kept;
    std::vector<RowRecord> records;
    void* compute = nullptr;
    bool by_default = false;  // `compute` is the device's default stream, whose handle is 0
    std::atomic<bool> reading_paused{false};
    std::atomic<bool> slow_reader{false};

private:
    void read() {
        Reader reader(folder_.path + "/ring", "hook");
        std::map<u32, std::pair<u64, u32>> last;
        while (!reader.ended()) {
            while (reading_paused) std::this_thread::sleep_for(std::chrono::microseconds(100));
            for (Packet& packet : pull(reader, 4, std::chrono::milliseconds(20))) {
                const PacketHeader header = packet.header();
                check(packet, header);
                const auto place = std::make_pair(header.step, u32{header.part} + 1);
                EXPECT(place > last[header.account]);  // packets of a hook point keep their order
                last[header.account] = place;
                rows_read_ += header.rows;
                packet.consume();
                EXPECT(packet.release());
            }
            if (slow_reader) std::this_thread::sleep_for(std::chrono::microseconds(300));
        }
        reader.mark_durable();
    }
    static void check(const Packet& packet, const PacketHeader& header) {
        const bool by_channel = static_cast<Quantization>(header.quantization) == Quantization::int8_channel;
        u32 out_of_range = 0;
        for (u32 row = 0; row < header.rows; ++row) {
            const u64 sample = packet.records()[row].sample;
            const u32 outside = by_channel ? outside_of(sample) : 0;
            EXPECT(((packet.records()[row].flags & row_saturated) != 0) == (outside != 0));
            out_of_range += outside;
            for (u32 e = 0; e < broad; ++e) {
                const float wanted = element(header.step, header.account, static_cast<u32>(sample), e);
                if (by_channel) {
                    EXPECT(packet.scales()[e] == table()[e] && packet.scales()[broad + e] == table()[broad + e]);
                    EXPECT(packet.payload<std::int8_t>()[row * broad + e] == static_cast<int>(wanted) % 127);
                } else if (static_cast<Dtype>(header.dtype) == Dtype::int8) {
                    EXPECT(packet.scales()[row] == static_cast<float>(sample) + 1);
                    EXPECT(packet.payload<std::int8_t>()[row * broad + e] == static_cast<int>(wanted) % 127);
                } else {
                    EXPECT(packet.payload<float>()[row * broad + e] == wanted);
                }
            }
        }
        EXPECT(header.saturated == out_of_range);
    }
    void finish_reading() {
        if (!reader_.joinable()) return;
        writer->close(WriterState::complete);
        reader_.join();
    }

    Folder folder_;
    Dice dice_;
    Activation activation_{};
    u64 rows_read_ = 0;
    std::thread reader_;
};

template <typename Ask>
void expect_soon(const Ask& ask) {
    for (int i = 0; i < 100'000 && !ask(); ++i) pause();
    EXPECT(ask());
}

// --- what arrives ----------------------------------------------------------------------------------------------

void rows_arrive_whole_and_in_order() {
    for (u64 seed = 1; seed <= 6; ++seed) {
        Bench bench(seed, 300, 1 + seed % 5);
        bench.run(40);
        EXPECT(bench.close() > 0);
    }
}

void one_copy_fills_neighbouring_chunks() {
    Bench bench(1, 0, 4);
    for (u64 step = 1; step <= 3; ++step) {
        bench.begin_step();
        EXPECT(bench.call(step, 0));
        expect_soon([&] { return bench.lane->finished() == step; });
    }
    EXPECT(bench.device.calls("cudaMemcpy2DAsync") == 6);  // 14 and 14 rows in one, 12 in another
    EXPECT(bench.close() == 3 * kept_rows);
}

void chunks_that_are_not_neighbours_are_filled_too() {
    Bench bench(2, 200, 4, 8);
    bench.slow_reader = true;
    u64 given = 0;
    for (u64 step = 0; step < 60; ++step) {
        bench.begin_step();
        expect_soon([&] { return bench.lane->free() != 0; });
        given += bench.call(step, step % 3, {9, 9, 9, 9, 4}) ? kept_rows : 0;
    }
    const u64 published = bench.close();
    EXPECT(published > 0 && published <= given);
    EXPECT(bench.writer->ring().shard(0).scattered.load() > 0);
}

void scales_travel_beside_their_rows() {
    Bench bench(3, 200);
    std::array<std::int8_t, kept_rows * broad> values{};
    std::array<float, kept_rows> scales{};
    for (u32 i = 0; i < kept_rows; ++i) {
        const auto row = static_cast<u32>(bench.kept[i]);
        scales[i] = static_cast<float>(row) + 1;
        for (u32 e = 0; e < broad; ++e) values[i * broad + e] = static_cast<std::int8_t>(static_cast<int>(element(1, 0, row, e)) % 127);
    }
    bench.begin_step();
    const std::array<u32, 2> counts{20, 20};
    Lane::Content content{};
    content.header.step = 1;
    content.header.width = broad;
    content.counts = counts;
    content.source = reinterpret_cast<const std::byte*>(values.data());
    content.scales = scales.data();
    content.dtype = Dtype::float32;
    content.quantization = Quantization::int8;
    EXPECT(bench.lane->submit(bench.compute, content));
    EXPECT(bench.close() == kept_rows);
}

void int8_by_channel_travels_with_its_table_and_counts() {
    for (u64 seed = 1; seed <= 3; ++seed) {
        Bench bench(seed, 300, 3);
        const std::size_t number = bench.lane->add_table(Bench::table());
        for (u64 step = 1; step <= 8; ++step) {
            bench.begin_step();
            for (const u32 account : bench.accounts) {
                expect_soon([&] { return bench.lane->free() != 0; });
                EXPECT(bench.call_by_channel(step, account, {14, 14, 12}, number));
            }
        }
        EXPECT(bench.close() > 0);
    }
}

void int8_by_channel_is_refused_without_what_it_needs() {
    Bench bench(9, 0);
    const std::size_t number = bench.lane->add_table(Bench::table());
    const std::size_t narrow = bench.lane->add_table(std::array<float, 2>{});
    bench.begin_step();
    const auto refused = [&](const std::vector<u32>& counts, std::size_t table) {
        try {
            bench.call_by_channel(1, 0, counts, table);
        } catch (const std::invalid_argument&) {
            return true;
        }
        return false;
    };
    EXPECT(refused({20, 20}, 0) && refused({20, 20}, narrow) && refused({20, 20}, 77));
    EXPECT(refused({22, 18}, number));  // the packet fits its chunk, its counts behind it do not
    EXPECT(bench.made(0)[produced::seen] == 0);
    EXPECT(bench.call_by_channel(1, 0, {20, 20}, number));
    EXPECT(bench.close() == kept_rows);
}

void a_default_stream_is_that_of_the_lanes_device() {
    Bench bench(5, 200);
    bench.compute = bench.device.default_stream(0);
    bench.by_default = true;
    int current = -1;
    for (const int other : {0, 1}) {  // a part of the model runs on device 0 while another one is current
        EXPECT(bench.device.set_device(other) == 0);
        bench.run(10, static_cast<u64>(other) * 10);
        EXPECT(bench.device.get_device(&current) == 0 && current == other);  // as the model left it
    }
    EXPECT(bench.lane->problem().empty());
    EXPECT(bench.close() > 0);
    for (const u32 account : bench.accounts) EXPECT(bench.made(account)[produced::dropped + reason::error] == 0);
}

// --- room ------------------------------------------------------------------------------------------------------

void a_step_that_was_given_room_is_published_whole() {
    Bench bench(4, 100, 6, 12);
    bench.slow_reader = true;
    u64 given = 0;
    // On a busy machine steps may be left out for long.
    for (u64 step = 0; step < 80 || (given <= 5 && step < 100'000); ++step) {
        bench.begin_step();
        const u64 unclaimed = bench.lane->unclaimed();  // first: see `Lane::unclaimed`
        const u64 chunks = bench.writer->free(0);
        if (bench.lane->free() < 3 || chunks < 9 + unclaimed) {
            pause();
            continue;
        }
        ++given;
        for (const u32 account : bench.accounts) EXPECT(bench.call(step, account));
    }
    EXPECT(given > 5);
    EXPECT(bench.close() == given * 3 * kept_rows);
    for (const u32 account : bench.accounts) EXPECT(dropped(bench.made(account)) == 0);
}

// --- failures --------------------------------------------------------------------------------------------------

void whatever_fails_every_row_is_accounted_for() {
    const std::array<const char*, 5> functions{"cudaEventRecord", "cudaStreamWaitEvent", "cudaMemcpy2DAsync", "cudaEventQuery", "copying"};
    u64 seed = 10;
    for (const char* const function : functions) {
        for (const int sticky : {0, 1}) {
            if (sticky == 0 && std::string(function) == "copying") continue;  // what fails while it runs is sticky
            for (const int after : {0, 5}) {
                Bench bench(++seed, 200);
                bench.device.fail(function, after, 719, sticky);
                bench.run(12);
                expect_soon([&] { return bench.lane->failed(); });
                EXPECT(bench.lane->problem().find("719 (unspecified launch failure)") != std::string::npos);
                EXPECT(bench.lane->free() == 0);
                bench.run(2, 100);  // the model goes on: counted by its caller, for no slot is free
                u64 lost = 0;
                expect_soon([&] { return bench.lane->unclaimed() == 0; });
                bench.lane->stop();
                EXPECT(bench.lane->unclaimed() == 0);
                for (const u32 account : bench.accounts) {
                    const auto made = bench.made(account);
                    EXPECT(made[produced::seen] == 14 * kept_rows);
                    lost += made[produced::dropped + reason::error];
                }
                EXPECT(lost == bench.lane->lost());
                EXPECT(bench.publish_plainly(200, 0, 4));  // the ring is as it was
                EXPECT(bench.close() > 0);
            }
        }
    }
}

void a_copy_that_was_not_sent_whole_is_not_published() {
    Bench bench(40, 0, 1);
    bench.begin_step();
    EXPECT(bench.call(1, 0));
    expect_soon([&] { return bench.lane->finished() == 1; });
    bench.device.fail("cudaMemcpy2DAsync", 1, 1, 0);  // the second of the slot's two copies; its event is still the first content's
    EXPECT(bench.call(2, 0));
    expect_soon([&] { return bench.lane->finished() == 2; });
    EXPECT(bench.lane->failed() && bench.lane->lost() == kept_rows);
    EXPECT(bench.close() == kept_rows);
}

void a_chunk_is_not_given_back_under_a_copy() {
    Bench bench(41, 0, 4, 12);
    bench.reading_paused = true;
    bench.begin_step();
    bench.device.hold_copies(1);
    EXPECT(bench.call(1, 0) && bench.call(1, 1));
    expect_soon([&] { return bench.device.calls("cudaMemcpy2DAsync") == 4; });
    bench.device.fail("cudaMemcpy2DAsync", 1, 1, 0);
    EXPECT(bench.call(1, 2));
    expect_soon([&] { return bench.lane->finished() == 3; });
    u64 plain = 0;
    while (bench.publish_plainly(2 + plain, 0, 6)) ++plain;
    EXPECT(plain == 3);  // nine of twelve chunks are still the device's
    bench.device.hold_copies(0);
    std::this_thread::sleep_for(20ms);
    bench.reading_paused = false;
    EXPECT(bench.close() == 3 * 6);
}

void a_device_that_hangs_does_not_hold_up_the_end() {
    Bench bench(42, 0);
    bench.begin_step();
    bench.device.hold_copies(1);
    EXPECT(bench.call(1, 0) && bench.call(1, 1));
    bench.lane->stop();
    EXPECT(bench.lane->failed() && bench.lane->problem().find("no progress") != std::string::npos);
    EXPECT(bench.lane->lost() == 2 * kept_rows);
    EXPECT(bench.close() == 0);
}

void a_slow_model_is_no_failure() {
    Bench bench(43, 0);
    bench.begin_step();
    bench.device.hold_copies(1);
    EXPECT(bench.call(1, 0));
    std::this_thread::sleep_for(500ms);  // more than the patience at the end
    EXPECT(!bench.lane->failed());
    bench.device.hold_copies(0);
    EXPECT(bench.close() == kept_rows);
}

void a_graph_that_is_captured_meanwhile_is_not_spoiled() {
    Bench bench(46, 0);
    bench.begin_step();
    bench.device.hold_copies(1);
    EXPECT(bench.call(1, 0));
    expect_soon([&] { return bench.lane->unclaimed() == 0; });
    bench.device.capture(1);
    const u64 before = bench.device.calls("cudaEventQuery");
    expect_soon([&] { return bench.device.calls("cudaEventQuery") > before + 3; });
    EXPECT(bench.device.capture(0) == 0);
    bench.device.hold_copies(0);
    EXPECT(bench.close() == kept_rows);
}

void a_lane_that_cannot_be_opened_leaves_the_ring_as_it_was() {
    for (const char* const function : {"cudaSetDevice", "cudaStreamCreateWithPriority", "cudaEventCreateWithFlags"}) {
        Bench bench(44, 0);
        bench.device.fail(function, 0, 2, 0);
        bool refused = false;
        try {
            const Lane another(bench.writer, 0, DeviceRuntime::load(library), 0, 2);
        } catch (const DeviceError& error) {
            refused = std::string(error.what()).find("2 (out of memory)") != std::string::npos;
        }
        EXPECT(refused);
        bench.run(2);
        EXPECT(bench.close() > 0);
    }
}

void a_runtime_that_is_not_there_is_named() {
    std::string said;
    try {
        static_cast<void>(DeviceRuntime::load("/nowhere/libcudart.so"));
    } catch (const DeviceError& error) {
        said = error.what();
    }
    EXPECT(said == "this process has not loaded /nowhere/libcudart.so");
}

void a_writer_that_is_closed_first_loses_nothing_uncounted() {
    Bench bench(45, 0);
    bench.begin_step();
    bench.device.hold_copies(1);
    EXPECT(bench.call(1, 0) && bench.call(1, 1));
    expect_soon([&] { return bench.lane->unclaimed() == 0; });
    bench.writer->close(WriterState::attempt_over);
    bench.device.hold_copies(0);
    EXPECT(bench.close() == 0);
    for (const u32 account : {0U, 1U}) EXPECT(bench.made(account)[produced::dropped + reason::error] == kept_rows);
}

void a_crash_with_copies_under_way_is_counted_as_crash() {
    Folder folder;
    const std::string ring = folder.path + "/ring";
    create(ring, {1, 12, 1024, 8, 4, Policy::drop_new, {"hook"}});
    const pid_t child = fork();
    if (child == 0) {
        Standin device;
        device.begin(1, 0);
        auto writer = std::make_shared<Writer>(ring);
        writer->account("a");
        Lane lane(writer, 0, DeviceRuntime::load(library), 0, 2);
        const std::vector<RowRecord> records(10);
        lane.begin_step(records);
        device.hold_copies(1);
        static std::array<float, 10 * broad> slot{};
        const std::array<u32, 2> counts{6, 4};
        Lane::Content content{};
        content.header.width = broad;
        content.counts = counts;
        content.source = reinterpret_cast<const std::byte*>(slot.data());
        content.dtype = Dtype::float32;
        EXPECT(lane.submit(device.stream(), content));
        expect_soon([&] { return lane.unclaimed() == 0; });
        raise(SIGKILL);
    }
    int status = 0;
    EXPECT(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
    const Writer successor(ring);
    const auto made = successor.ring().account(0).counters.load();
    EXPECT(balances(made) && made[produced::dropped + reason::crash] == 10);
    EXPECT(leaked(successor.ring()) == 0);
}

void a_forked_child_waits_for_no_thread_of_its_parent() {
    Bench bench(47, 0);
    bench.writer->convert_with(4);
    bench.run(1);
    const pid_t child = fork();
    if (child == 0) {
        alarm(10);
        bench.lane->stop();
        bench.lane.reset();
        bench.writer.reset();
        std::_Exit(0);
    }
    int status = -1;
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
    bench.run(1, 1);  // the parent's are as they were
    EXPECT(bench.close() > 0);
}

struct Case {
    const char* name;
    void (*act)();
};
#define CASE(name) Case{#name, name}
constexpr std::array cases{
    CASE(rows_arrive_whole_and_in_order),
    CASE(one_copy_fills_neighbouring_chunks),
    CASE(chunks_that_are_not_neighbours_are_filled_too),
    CASE(scales_travel_beside_their_rows),
    CASE(int8_by_channel_travels_with_its_table_and_counts),
    CASE(int8_by_channel_is_refused_without_what_it_needs),
    CASE(a_default_stream_is_that_of_the_lanes_device),
    CASE(a_step_that_was_given_room_is_published_whole),
    CASE(whatever_fails_every_row_is_accounted_for),
    CASE(a_copy_that_was_not_sent_whole_is_not_published),
    CASE(a_chunk_is_not_given_back_under_a_copy),
    CASE(a_device_that_hangs_does_not_hold_up_the_end),
    CASE(a_slow_model_is_no_failure),
    CASE(a_graph_that_is_captured_meanwhile_is_not_spoiled),
    CASE(a_lane_that_cannot_be_opened_leaves_the_ring_as_it_was),
    CASE(a_runtime_that_is_not_there_is_named),
    CASE(a_writer_that_is_closed_first_loses_nothing_uncounted),
    CASE(a_crash_with_copies_under_way_is_counted_as_crash),
    CASE(a_forked_child_waits_for_no_thread_of_its_parent),
};

}  // namespace

/// Each case in a process of its own: the stand-in is one a process.
int main(int count, char** arguments) {
    EXPECT(count > 1);
    library = arguments[1];
    for (const Case& one : cases) {
        if (count > 2 && std::string(arguments[2]) != one.name) continue;
        const pid_t child = fork();
        if (child == 0) {
            alarm(60);
            one.act();
            std::_Exit(0);
        }
        int status = 0;
        EXPECT(waitpid(child, &status, 0) == child);
        if (status != 0) {
            std::fprintf(stderr, "failed: %s (status %#x)\n", one.name, static_cast<unsigned>(status));
            return 1;
        }
        std::printf("ok %s\n", one.name);
        std::fflush(stdout);
    }
    return 0;
}
