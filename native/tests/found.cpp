// What the models found wrong in this code once, each made to happen here: see docs/ring-proof.md.
//
// Compiled with -DASYSI_TESTPOINTS. Whoever hangs is killed by the alarm.
#include <functional>
#include <optional>
#include <thread>

#include "fixture.hpp"

using namespace asysi;
using namespace asysi::test;
using namespace std::chrono_literals;

namespace {

std::function<void(std::string_view)> at_testpoint;

/// Has `act` called at every testpoint, from whichever thread is there, while it lives.
struct Hooked {
    explicit Hooked(std::function<void(std::string_view)> act) {
        at_testpoint = std::move(act);
        testpoint::hook = [](std::string_view label) { at_testpoint(label); };
    }
    ~Hooked() { testpoint::hook = nullptr; }
};

Geometry shape(u32 shards, u32 chunks, u32 pins, std::vector<std::string> readers) {
    return {.shards = shards, .chunks = chunks, .chunk_bytes = 512, .accounts = 2, .pins = pins,
            .policy = Policy::overwrite, .readers = std::move(readers)};
}

void await(const std::atomic<int>& phase, int value) {
    while (phase < value) std::this_thread::yield();
}

void a_bell_that_rings_while_a_reader_lies_down_wakes_it() {
    Folder folder;
    create(folder.path, shape(1, 16, 4, {"r"}));
    Writer writer(folder.path);
    Reader reader(folder.path, "r");
    writer.account("a");
    // The first packet's bell rings between the reader's two steps of lying down.
    std::atomic<int> phase{0};
    const auto step = [&](int from, bool here, int to, int until) {
        if (phase != from || !here) return false;
        phase = to;
        await(phase, until);
        return true;
    };
    const Hooked hooked([&](std::string_view label) {
        if (step(0, label == "writer.head.stored", 1, 2)) return;
        if (step(1, label == "reader.wait.waiter_set", 2, 3)) return;
        step(2, label == "writer.bell.woken", 3, 3);
    });
    std::thread producer([&] {
        publish(writer, {.number = 1});
        std::this_thread::sleep_for(20ms);  // time for the reader to fall asleep
        publish(writer, {.number = 2});
    });
    await(phase, 1);
    u64 taken = 0;
    while (taken < 2) {
        std::vector<Pin> pins;
        reader.gather(pins, 4);
        for (const Pin& pin : pins) {
            reader.consumed(pin);
            EXPECT(reader.release(pin));
            ++taken;
        }
        if (taken < 2) reader.wait(std::chrono::hours(1));  // only the bell ends this
    }
    producer.join();
}

void a_reader_within_its_rights_is_not_evicted() {
    Folder folder;
    create(folder.path, shape(1, 64, 1, {"fair", "hoarder"}));
    Writer writer(folder.path);
    writer.account("a");
    Reader fair(folder.path, "fair");
    std::atomic<bool> over{false};
    // It waits until there is much to read and hurries through: its pin moves from chunk to chunk during the evictions.
    std::thread reads([&] {
        std::vector<Pin> pins;
        while (!over) {
            while (fair.lag() < 0.5 && !over) std::this_thread::yield();
            while (pins.clear(), fair.gather(pins, 1), !pins.empty()) {
                fair.consumed(pins[0]);
                EXPECT(fair.release(pins[0]));
            }
        }
    });
    const Ring& ring = writer.ring();
    for (u64 number = 1; number <= 200'000; ++number) {
        for (u32 chunk = 0; chunk < 64; ++chunk) ring.state(0, chunk).fetch_or(2);
        publish(writer, {.number = number});
    }
    over = true;
    reads.join();
    EXPECT(ring.reader(0).epoch == 1 && ring.reader(1).epoch > 1000);
}

void pins_in_other_shards_are_cleared_after_an_eviction() {
    Folder folder;
    create(folder.path, shape(2, 8, 2, {"r"}));
    Writer writer(folder.path);
    Reader reader(folder.path, "r");
    publish(writer, {.shard = 0, .account = writer.account("a"), .number = 1});
    publish(writer, {.shard = 1, .account = writer.account("b"), .number = 1});
    std::vector<Pin> pins;
    reader.gather(pins, 2);
    EXPECT(pins.size() == 2);
    const Ring& ring = writer.ring();
    for (u32 chunk = 0; chunk < 8; ++chunk) ring.state(0, chunk).fetch_or(1);
    EXPECT(publish(writer, {.shard = 0, .account = 0, .number = 2}));
    for (const Pin& pin : pins) EXPECT(!reader.holds(pin) && !reader.release(pin));
    EXPECT(leaked(ring) == 0);
}

void a_claim_that_opens_while_its_writer_closes_is_aborted_first() {
    Folder folder;
    create(folder.path, shape(1, 8, 1, {"r"}));
    Writer writer(folder.path);
    writer.account("a");
    std::atomic<int> phase{0};
    const Hooked hooked([&](std::string_view label) {
        if (label != "writer.claim.w_set") return;
        phase = 1;
        std::this_thread::sleep_for(20ms);  // time for the other thread to close
    });
    std::thread claims([&] {
        auto open = claim(writer, {.number = 1, .rows = 3});
        EXPECT(open.has_value());
        phase = 2;
        await(phase, 3);
    });
    await(phase, 1);
    writer.close(WriterState::complete);
    await(phase, 2);
    const Ring look(folder.path, Ring::Role::look);
    EXPECT(look.shard(0).head == 0 && look.shard(0).intent.open == 0 && leaked(look) == 0);
    const auto made = look.account(0).counters.load();
    EXPECT(made[produced::dropped + reason::error] == 3 && balances(made));
    phase = 3;
    claims.join();
}

void claims_that_are_open_when_their_writer_closes_are_over() {
    Folder folder;
    create(folder.path, shape(1, 8, 1, {"r"}));
    std::optional<Writer> writer(std::in_place, folder.path);
    writer->account("a");
    auto first = claim(*writer, {.number = 1, .rows = 3});
    auto second = claim(*writer, {.number = 2, .rows = 2});
    EXPECT(first && second && publish(*writer, {.number = 3}));
    writer->close(WriterState::complete);
    const Ring look(folder.path, Ring::Role::look);
    const auto made = look.account(0).counters.load();
    EXPECT(made[produced::dropped + reason::error] == 5 && balances(made) && leaked(look) == 0 && look.shard(0).head == 1);
    // The next producer has the same chunks: what is left of the old claims must not touch them.
    Writer successor(folder.path);
    auto again = claim(successor, {.number = 4});
    bool refused = false;
    try {
        first->commit();
    } catch (const ClosedError&) {
        refused = true;
    }
    second->abort();
    EXPECT(refused && again && again->open());
    again->commit();
    EXPECT(look.shard(0).head == 2 && balances(look.account(0).counters.load()) && leaked(look) == 0);
    first.reset();
    second.reset();
}

void a_reader_that_is_closed_while_it_pulls_keeps_its_place() {
    Folder folder;
    create(folder.path, shape(1, 8, 2, {"r"}));
    Writer writer(folder.path);
    Reader reader(folder.path, "r");
    publish(writer, {.account = writer.account("a"), .number = 1});
    std::atomic<int> phase{0};
    const Hooked hooked([&](std::string_view label) {
        if (label != "reader.pin.set") return;
        phase = 1;
        std::this_thread::sleep_for(20ms);  // time for the other thread to close
    });
    std::vector<Pin> pins;
    std::thread pulls([&] { reader.gather(pins, 1); });
    await(phase, 1);
    reader.close();
    pulls.join();
    EXPECT(pins.size() == 1 && whole(pins[0]));
    Control control(folder.path);
    EXPECT(control.reader_state("r") == "attached");
    EXPECT(reader.release(pins[0]));
    EXPECT(control.reader_state("r") == "gone" && leaked(control.ring()) == 0);
}

}  // namespace

int main() {
    static_assert(testpoint::enabled, "compile with -DASYSI_TESTPOINTS");
    alarm(60);
#define HOLDS(claim)           \
    claim();                   \
    std::printf("ok %s\n", #claim); \
    std::fflush(stdout)
    HOLDS(a_bell_that_rings_while_a_reader_lies_down_wakes_it);
    HOLDS(a_reader_within_its_rights_is_not_evicted);
    HOLDS(pins_in_other_shards_are_cleared_after_an_eviction);
    HOLDS(a_claim_that_opens_while_its_writer_closes_is_aborted_first);
    HOLDS(claims_that_are_open_when_their_writer_closes_are_over);
    HOLDS(a_reader_that_is_closed_while_it_pulls_keeps_its_place);
    return 0;
}
