// The core without Python. Each test states a claim.
//
// ring_test           all of them
// ring_test plain     those that do not go through single instructions
// ring_test NAME...   some of them
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <thread>

#include <sys/ptrace.h>
#include <sys/wait.h>

#include "asysi/asysi.hpp"

using namespace asysi;

namespace {

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            std::fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);    \
            std::exit(1);                                                                          \
        }                                                                                          \
    } while (false)

// --- a small ring and its packets ------------------------------------------------------------------------------

/// A folder in memory that goes away with the object.
class Folder {
public:
    Folder() {
        char name[] = "/dev/shm/asysi-test-XXXXXX";
        EXPECT(mkdtemp(name) != nullptr);
        path = name;
    }
    ~Folder() { std::filesystem::remove_all(path); }
    std::string path;
};

Geometry small(Policy policy = Policy::overwrite, u32 chunks = 4) {
    return {.shards = 1, .chunks = chunks, .chunk_bytes = 512, .accounts = 2, .pins = 1, .policy = policy, .readers = {"r"}};
}

constexpr u32 width = 8;

/// Publishes `count` rows of which every element is `value`.
bool publish(Writer& writer, float value, u32 count = 2, u64 source = 0, bool book_seen = true) {
    float values[64];
    std::fill_n(values, count * width, value);
    Block block{};
    block.header.width = width;
    block.header.source = source;
    block.rows = {reinterpret_cast<const std::byte*>(values), width * 4, nullptr, count, width, Dtype::float32};
    block.book_seen = book_seen;
    return writer.publish(block);
}

/// First element of a packet whose elements are all the same; NaN when they are not.
float value_of(const Pin& pin) {
    const auto* const values = reinterpret_cast<const float*>(pin.bytes + payload_at(pin.rows, 0));
    for (u32 i = 1; i < pin.rows * width; ++i) {
        if (values[i] != values[0]) return std::numeric_limits<float>::quiet_NaN();
    }
    return values[0];
}

struct Books {
    Versioned<produced::words>::Values made;
    Versioned<consumed::words>::Values used;
    u64 head, cursor, source;

    explicit Books(const std::string& folder) {
        const Ring ring(folder, Ring::Role::look);
        made = ring.account(0).counters.load();
        used = ring.book(0, 0).counters.load();
        head = ring.shard(0).head.load();
        cursor = ring.cursor(0, 0).load();
        source = ring.shard(0).source.load();
    }
    [[nodiscard]] u64 dropped() const {
        u64 sum = 0;
        for (u32 r = 0; r < max_reasons; ++r) sum += made[produced::dropped + r];
        return sum;
    }
    [[nodiscard]] bool producer_balances() const {
        return made[produced::seen] == made[produced::published] + made[produced::sampled_out] + dropped();
    }
    [[nodiscard]] bool consumer_balances() const {
        return made[produced::published] == used[consumed::durable] + used[consumed::lapped] + used[consumed::rolled_back];
    }
};

// --- killing at every instruction ------------------------------------------------------------------------------

std::string contents(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

/// What a kill would leave: both files as they are.
struct Snapshot {
    std::string control, data;

    explicit Snapshot(const std::string& folder) : control(contents(control_path(folder))), data(contents(data_path(folder))) {}
    void restore(const std::string& folder) const {
        for (const auto& [path, bytes] : {std::pair{control_path(folder), &control}, std::pair{data_path(folder), &data}}) {
            std::ofstream(path, std::ios::binary | std::ios::in).write(bytes->data(), static_cast<std::streamsize>(bytes->size()));
        }
    }
    bool operator==(const Snapshot&) const = default;
};

/// Runs `prepare` then, one machine instruction at a time, `act` in a child. After every instruction that changed shared
/// memory, `check` gets a folder with what kill -9 would have left there. Returns how many such states there were.
template <typename State>
int each_instruction(const std::string& folder, std::function<std::unique_ptr<State>()> prepare, std::function<void(State&)> act,
                     const std::function<void(const std::string&)>& check) {
    const pid_t child = fork();
    if (child == 0) {
        const auto state = prepare();
        EXPECT(ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) == 0);  // an emulator has no ptrace: run `ring_test plain`
        raise(SIGSTOP);
        act(*state);
        raise(SIGSTOP);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    Folder copy;
    EXPECT(std::filesystem::copy_file(control_path(folder), control_path(copy.path)));
    EXPECT(std::filesystem::copy_file(data_path(folder), data_path(copy.path)));
    const File control_file(control_path(folder), O_RDWR);
    const File data_file(data_path(folder), O_RDWR);
    const Mapping control(control_file, control_file.bytes(), true, folder);
    const Mapping data(data_file, data_file.bytes(), true, folder);
    std::string seen_control(control_file.bytes(), '\0');
    std::string seen_data(data_file.bytes(), '\0');
    int states = 0;
    for (long step = 0; step < 20'000'000; ++step) {
        const bool control_changed = std::memcmp(seen_control.data(), control.base(), seen_control.size()) != 0;
        const bool data_changed = std::memcmp(seen_data.data(), data.base(), seen_data.size()) != 0;
        if (control_changed || data_changed) {
            std::memcpy(seen_control.data(), control.base(), seen_control.size());
            std::memcpy(seen_data.data(), data.base(), seen_data.size());
            Snapshot(folder).restore(copy.path);
            check(copy.path);
            ++states;
        }
        EXPECT(ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) == 0);
        waitpid(child, &status, 0);
        EXPECT(WIFSTOPPED(status));
        if (WSTOPSIG(status) == SIGSTOP) break;
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return states;
}

int steps_of_writer(const std::string& folder, const std::function<void(Writer&)>& act,
                    const std::function<void(const std::string&)>& check) {
    return each_instruction<Writer>(folder, [&] { return std::make_unique<Writer>(folder); }, act, check);
}

/// Reads everything there is, in order, and settles: the reader's books must balance.
std::vector<float> read_all(const std::string& folder) {
    Reader reader(folder, "r");
    std::vector<float> values;
    for (std::vector<Pin> pins; reader.gather(pins, 1), !pins.empty(); pins.clear()) {
        values.push_back(value_of(pins[0]));
        reader.consumed(pins[0]);
        EXPECT(reader.release(pins[0]));
    }
    reader.settle();
    reader.mark_durable();
    EXPECT(Books(folder).consumer_balances());
    return values;
}

// --- claims ----------------------------------------------------------------------------------------------------

void publish_is_atomic(u64 source) {
    Folder folder;
    create(folder.path, small());
    {
        Writer writer(folder.path);
        writer.account("a");
        publish(writer, 1, 2, source == 0 ? 0 : source - 1);
    }
    std::map<std::string, int> outcomes;
    const int states = steps_of_writer(folder.path, [&](Writer& writer) { publish(writer, 2, 3, source); },
                                       [&](const std::string& left) {
        Writer successor(left);
        const Books books(left);
        EXPECT(books.producer_balances());
        const Ring ring(left, Ring::Role::look);
        for (u32 chunk = 0; chunk < 4; ++chunk) EXPECT((ring.state(0, chunk).load() & word::writing) == 0);
        const u64 lost = books.made[produced::dropped + reason::crash];
        const bool published = books.made[produced::published] == 5;
        EXPECT(books.head == (published ? 2U : 1U));
        EXPECT(books.made[produced::packets] == books.head);
        EXPECT(lost == 0 || (lost == 3 && source == 0 && !published));
        if (source != 0) EXPECT(successor.source(0) == (published ? source : source - 1));
        ++outcomes[published ? "published" : lost != 0 ? "lost" : "not seen"];
        // The successor goes on, and a reader sees all of it in order.
        EXPECT(publish(successor, 7));
        const auto values = read_all(left);
        EXPECT(values == (published ? std::vector<float>{1, 2, 7} : std::vector<float>{1, 7}) ||
               // Depth is two: three packets lap a reader that was not there.
               (published && values == std::vector<float>{2, 7}));
    });
    EXPECT(states > 20 && outcomes["published"] > 3 && outcomes["not seen"] > 3);
    EXPECT((outcomes["lost"] > 3) == (source == 0));
}

void a_published_packet_is_booked_or_undone_at_every_instruction() { publish_is_atomic(0); }
void a_repeatable_packet_is_never_lost_nor_doubled() { publish_is_atomic(77); }

void rows_booked_as_seen_before_are_owed_by_the_crash() {
    Folder folder;
    create(folder.path, small());
    { Writer(folder.path).account("a"); }
    const auto act = [](Writer& writer) {
        writer.book(0, {.seen = 10, .sampled_out = 8});
        publish(writer, 2, 2, 0, false);
    };
    steps_of_writer(folder.path, act, [](const std::string& left) {
        const Writer successor(left);
        EXPECT(Books(left).producer_balances());
    });
}

void rows_dropped_by_source_are_booked_once() {
    Folder folder;
    create(folder.path, small());
    { Writer(folder.path).account("a"); }
    const auto act = [](Writer& writer) { writer.book(0, {.seen = 4, .dropped = 4, .reason = 5}, 0, 9); };
    std::map<u64, int> outcomes;
    steps_of_writer(folder.path, act, [&](const std::string& left) {
        Writer successor(left);
        ++outcomes[successor.source(0)];
        EXPECT(Books(left).dropped() == (successor.source(0) == 9 ? 4U : 0U));
        act(successor);
        EXPECT(Books(left).dropped() == 4 && Books(left).producer_balances());
    });
    EXPECT(outcomes[0] > 3 && outcomes[9] > 1);
}

void a_full_ring_books_the_drop_at_every_instruction() {
    Folder folder;
    create(folder.path, small(Policy::drop_new));
    {
        Writer writer(folder.path);
        writer.account("a");
        EXPECT(writer.free(0) == 4);
        for (u32 i = 1; i <= 4; ++i) EXPECT(publish(writer, static_cast<float>(i)));
        EXPECT(writer.free(0) == 0);
    }
    steps_of_writer(folder.path, [](Writer& writer) { EXPECT(!publish(writer, 5)); }, [](const std::string& left) {
        const Writer successor(left);
        const Books books(left);
        EXPECT(books.producer_balances() && books.head == 4);
        EXPECT(books.dropped() == 0 || books.dropped() == 2);
    });
}

/// Claims, fills, and either commits or forgets.
void fill(Writer& writer, bool commit) {
    Block block{};
    block.header.width = width;
    block.rows = {nullptr, 0, nullptr, 2, width, Dtype::float32};
    block.book_seen = true;
    auto claim = writer.claim(block);
    EXPECT(claim && claim->payload().size() == 2 * width * 4 && claim->records().size() == 2);
    std::fill_n(reinterpret_cast<float*>(claim->payload().data()), 2 * width, 2.0F);
    if (commit) claim->commit();
}

void a_claim_is_booked_at_every_instruction() {
    for (const bool commit : {true, false}) {
        Folder folder;
        create(folder.path, small(Policy::drop_new));
        { Writer(folder.path).account("a"); }
        std::map<u64, int> heads;
        std::map<u64, int> errors;
        steps_of_writer(folder.path, [&](Writer& writer) { fill(writer, commit); }, [&](const std::string& left) {
            Writer successor(left);
            const Books books(left);
            EXPECT(books.producer_balances() && books.made[produced::published] == 2 * books.head);
            ++heads[books.head];
            ++errors[books.made[produced::dropped + reason::error]];
            EXPECT(successor.free(0) == 4 - books.head);
            EXPECT(publish(successor, 7));
            EXPECT(read_all(left) == (books.head == 1 ? std::vector<float>{2, 7} : std::vector<float>{7}));
        });
        EXPECT(heads[0] > 3 && (heads[1] > 3) == commit && (errors[2] > 1) != commit);
    }
}

/// A claim of `count` rows, filled with `value`.
std::optional<Claim> open_claim(Writer& writer, float value, u32 count, u64 source = 0, bool book_seen = true) {
    Block block{};
    block.header.width = width;
    block.header.source = source;
    block.rows = {nullptr, 0, nullptr, count, width, Dtype::float32};
    block.book_seen = book_seen;
    auto claim = writer.claim(block);
    if (claim) std::fill_n(reinterpret_cast<float*>(claim->payload().data()), count * width, value);
    return claim;
}

/// Nothing is open in what a takeover left, and the packets are `wanted` up to the head, without a gap.
void expect_packets(const std::string& folder, std::vector<float> wanted) {
    const Books books(folder);
    EXPECT(books.producer_balances());
    EXPECT(books.made[produced::packets] == books.head && books.head <= wanted.size());
    const Ring ring(folder, Ring::Role::look);
    EXPECT(ring.shard(0).intent.open == 0);
    for (u32 chunk = 0; chunk < ring.geometry().chunks; ++chunk) {
        EXPECT(ring.claim(0, chunk).open == 0 && (ring.state(0, chunk).load() & word::writing) == 0);
    }
    wanted.resize(books.head);
    {
        Writer successor(folder);
        EXPECT(publish(successor, 70));
    }
    wanted.push_back(70);
    EXPECT(read_all(folder) == wanted);
}

/// Three claims on one account, the middle one aborted, a packet in between, committed in another order.
void several_claims_are_booked_at_every_instruction() {
    for (const Policy policy : {Policy::drop_new, Policy::overwrite}) {
        Folder folder;
        create(folder.path, small(policy, 10));
        { Writer(folder.path).account("a"); }
        const auto act = [](Writer& writer) {
            writer.book(0, {.seen = 4});  // of the first claim, which is owed until it ends
            auto first = open_claim(writer, 1, 4, 0, false);
            auto middle = open_claim(writer, 2, 2);
            auto last = open_claim(writer, 3, 1);
            EXPECT(first && middle && last);
            last->commit();
            middle->abort();
            EXPECT(publish(writer, 9));
            first->commit();
        };
        std::map<u64, int> heads;
        std::map<u64, int> lost;
        const int states = steps_of_writer(folder.path, act, [&](const std::string& left) {
            { const Writer successor(left); }
            const Books books(left);
            const std::array<u64, 4> rows = {0, 1, 3, 7};
            ++heads[books.head];
            EXPECT(books.made[produced::published] == rows[books.head]);
            // What was claimed and is not published is lost in the crash, but for what was aborted: each row once.
            const u64 error = books.made[produced::dropped + reason::error];
            ++lost[books.made[produced::dropped + reason::crash]];
            EXPECT(error == 0 || error == 2);
            EXPECT(books.dropped() <= 4 + 2 + 2 + 1 - rows[books.head]);
            expect_packets(left, {3, 9, 1});
        });
        EXPECT(states > 60 && heads.size() == 4);
        // Nothing, the first, the first two, all three; the middle and the first again, the first alone.
        for (const u64 rows : {0, 4, 6, 7}) EXPECT(lost[rows] > 3);
    }
}

/// Each item is published, lost, or to be repeated: what has a mark at or below the shard's own is in the books.
void claims_that_can_be_repeated_are_settled_once_in_any_order() {
    for (const bool in_order : {true, false}) {
        Folder folder;
        create(folder.path, small(Policy::drop_new, 10));
        { Writer(folder.path).account("a"); }
        const auto act = [&](Writer& writer) {
            auto first = open_claim(writer, 1, 1, 1);
            auto second = open_claim(writer, 2, 2, 2);
            auto third = open_claim(writer, 3, 4, 3);
            if (!in_order) third->commit();
            first->commit();
            second->commit();
            if (in_order) third->commit();
        };
        std::map<u64, int> marks;
        bool some_lost = false;
        steps_of_writer(folder.path, act, [&](const std::string& left) {
            const Writer successor(left);
            const Books books(left);
            const std::array<u64, 4> rows = {0, 1, 3, 7};
            ++marks[successor.source(0)];
            EXPECT(books.producer_balances() && books.made[produced::seen] == rows[successor.source(0)]);
            some_lost |= books.dropped() > 0;
        });
        EXPECT(marks.size() == (in_order ? 4U : 2U) && marks[3] > 1);
        EXPECT(some_lost != in_order);
    }
}

void taking_over_open_claims_may_itself_be_killed() {
    Folder folder;
    create(folder.path, small(Policy::drop_new, 6));
    {
        Writer writer(folder.path);
        writer.account("a");
        publish(writer, 5, 2, 8);
    }
    std::vector<Snapshot> left_behind;
    const auto act = [](Writer& writer) {
        auto repeated = open_claim(writer, 4, 4, 9);
        auto first = open_claim(writer, 1, 1);
        auto second = open_claim(writer, 2, 2);
        first->commit();
        second->abort();
        repeated->commit();
    };
    steps_of_writer(folder.path, act, [&](const std::string& left) { left_behind.emplace_back(left); });
    std::map<u64, int> lost;
    for (std::size_t i = 0; i < left_behind.size(); i += 10) {
        left_behind[i].restore(folder.path);
        std::optional<Versioned<produced::words>::Values> settled;
        const auto check = [&](const std::string& left) {
            const Writer successor(left);
            const Books books(left);
            EXPECT(books.producer_balances());
            // Wherever the repair is killed, the next one comes to the same numbers.
            if (!settled) settled = books.made;
            EXPECT(books.made == *settled);
        };
        each_instruction<int>(folder.path, [] { return std::make_unique<int>(0); }, [&](int&) { const Writer heir(folder.path); }, check);
        ++lost[(*settled)[produced::dropped + reason::crash]];
    }
    EXPECT(lost[0] > 0 && lost[1] > 0 && lost[3] > 0 && lost[2] > 0);
}

void a_claim_is_committed_by_any_thread() {
    Folder folder;
    create(folder.path, small(Policy::drop_new, 12));
    Writer writer(folder.path);
    writer.account("a");
    constexpr u32 packets = 5'000;
    std::mutex mutex;
    std::vector<Claim> ahead;
    std::thread completes([&] {
        for (u32 done = 0; done < packets;) {
            std::vector<Claim> taken;
            {
                const std::scoped_lock turn(mutex);
                taken.swap(ahead);
            }
            for (Claim& claim : taken) {
                const float value = static_cast<float>(++done);
                std::fill_n(reinterpret_cast<float*>(claim.payload().data()), 2 * width, value);
                claim.commit();
            }
            if (taken.empty()) std::this_thread::yield();
        }
    });
    std::thread claims([&] {
        for (u32 i = 0; i < packets;) {
            if (writer.free(0) == 0) {
                std::this_thread::yield();
                continue;
            }
            auto claim = open_claim(writer, 0, 2);
            EXPECT(claim.has_value());
            const std::scoped_lock turn(mutex);
            ahead.push_back(std::move(*claim));
            ++i;
        }
    });
    Reader reader(folder.path, "r");
    for (u32 taken = 0; taken < packets;) {
        for (auto& packet : pull(reader, 4, std::chrono::seconds(10))) {
            EXPECT(packet.pin().sequence == ++taken && packet.pin().lapped_rows == 0);
            EXPECT(value_of(packet.pin()) == static_cast<float>(taken));
            packet.consume();
        }
    }
    claims.join();
    completes.join();
    const Books books(folder.path);
    EXPECT(books.made[produced::published] == 2 * packets && books.producer_balances());
}

void claims_at_once_are_neighbours_or_counted() {
    for (const Policy policy : {Policy::drop_new, Policy::overwrite}) {
        Folder folder;
        create(folder.path, small(policy, 8));
        Writer writer(folder.path);
        writer.account("a");
        std::array<Block, 3> blocks{};
        for (u32 i = 0; i < 3; ++i) {
            blocks[i].header.width = width;
            blocks[i].rows = {nullptr, 0, nullptr, i + 1, width, Dtype::float32};
            blocks[i].book_seen = true;
        }
        const auto expect_neighbours = [](const std::vector<Claim>& claims, bool wanted) {
            bool all = true;
            for (std::size_t i = 1; i < claims.size(); ++i) {
                const auto distance = claims[i].payload().data() - claims[i - 1].payload().data();
                all &= claims[i].chunk() == claims[i - 1].chunk() + 1 && distance > 0 && distance < 1024;
            }
            EXPECT(all == wanted);
        };
        std::vector<Claim> claims;
        std::vector<Claim> later;
        EXPECT(writer.claim(blocks, claims) == 3 && writer.claim(blocks, later) == 3);
        EXPECT(later[2].payload().size() == 3 * width * 4 && writer.scattered(0) == 0);
        expect_neighbours(claims, true);
        expect_neighbours(later, true);
        // One free here, two there: three are to be had, but not side by side.
        claims[1].abort();
        std::vector<Claim> single;
        EXPECT(writer.claim(blocks, single) == 3 && writer.scattered(0) == 1);
        expect_neighbours(single, false);
        // None is free: all that was asked for is dropped, a row for a row.
        std::vector<Claim> none;
        EXPECT(writer.claim(blocks, none) == 0 && none.empty() && writer.scattered(0) == 1);
        const Books full(folder.path);
        EXPECT(full.made[produced::dropped + (policy == Policy::drop_new ? reason::ring_full : reason::no_chunk)] == 6);
        EXPECT(full.head == (policy == Policy::drop_new ? 0U : 3U));
        // A block that does not fit is refused before anything is claimed.
        single.clear();
        blocks[2].rows.count = 1000;
        bool refused = false;
        try {
            writer.claim(blocks, none);
        } catch (const std::invalid_argument&) {
            refused = true;
        }
        EXPECT(refused && none.empty());
        later.clear();
        claims.clear();
        const Books books(folder.path);
        EXPECT(books.producer_balances() && books.made[produced::dropped + reason::error] == 2 * 6 + 6);
        EXPECT(writer.free(0) == (policy == Policy::drop_new ? 8U : 6U));
    }
}

void neighbours_are_found_behind_what_is_claimed() {
    for (const Policy policy : {Policy::drop_new, Policy::overwrite}) {
        Folder folder;
        create(folder.path, small(policy, 8));
        Writer writer(folder.path);
        writer.account("a");
        std::array<Block, 3> blocks{};
        for (Block& block : blocks) {
            block.header.width = width;
            block.rows = {nullptr, 0, nullptr, 1, width, Dtype::float32};
        }
        std::vector<Claim> first, second, third;
        EXPECT(writer.claim(blocks, first) == 3 && writer.claim(blocks, second) == 3);
        first.clear();
        // Two are free at the end, three at the beginning.
        EXPECT(writer.claim(blocks, third) == 3 && writer.scattered(0) == 0);
        for (u32 i = 0; i < 3; ++i) EXPECT(third[i].chunk() == i && second[i].chunk() == 3 + i);
    }
}

void drop_new_overwrites_nothing_unread_whenever_the_producer_is_killed() {
    Folder folder;
    create(folder.path, small(Policy::drop_new));
    Reader reader(folder.path, "r");
    std::vector<Pin> pins;
    {
        Writer writer(folder.path);
        writer.account("a");
        for (u32 i = 1; i <= 4; ++i) EXPECT(publish(writer, static_cast<float>(i)));
        // The second packet's chunk comes free before the first's: the order of chunks is not the order of packets.
        for (int i = 0; i < 2; ++i) {
            pins.clear();
            reader.gather(pins, 1);
            reader.consumed(pins[0]);
            EXPECT(reader.release(pins[0]));
        }
        EXPECT(publish(writer, 5));
    }
    reader.close();
    const auto act = [](Writer& writer) {
        EXPECT(publish(writer, 6));
        EXPECT(!publish(writer, 7));
    };
    std::map<u64, int> heads;
    steps_of_writer(folder.path, act, [&](const std::string& left) {
        Writer successor(left);
        const u64 head = Books(left).head;
        ++heads[head];
        std::vector<float> wanted{3, 4, 5};
        for (u64 i = 6; i <= head; ++i) wanted.push_back(static_cast<float>(i));
        while (publish(successor, 9)) wanted.push_back(9);
        EXPECT(wanted.size() == 4 && read_all(left) == wanted);
    });
    EXPECT(heads[5] > 3 && heads[6] > 3 && heads.size() == 2);
}

void shards_are_pushed_by_threads_of_their_own() {
    Folder folder;
    Geometry geometry = small(Policy::drop_new, 8);
    geometry.shards = 4;
    geometry.accounts = 4;
    create(folder.path, geometry);
    Writer writer(folder.path);
    for (u32 shard = 0; shard < 4; ++shard) writer.account("a" + std::to_string(shard));
    constexpr u32 packets = 20'000;
    std::vector<std::thread> threads;
    for (u32 shard = 0; shard < 4; ++shard) {
        threads.emplace_back([&writer, shard] {
            std::array<float, 2 * width> values{};
            Block block{};
            block.shard = block.header.account = shard;
            block.header.width = width;
            block.rows = {reinterpret_cast<const std::byte*>(values.data()), width * 4, nullptr, 2, width, Dtype::float32};
            block.book_seen = true;
            for (u32 i = 1; i <= packets; ++i) {
                while (writer.free(shard) == 0) std::this_thread::yield();
                values.fill(static_cast<float>(i));
                EXPECT(writer.publish(block));
                if (i % 100 == 0) writer.book(shard, {.seen = 1, .sampled_out = 1});
            }
        });
    }
    Reader reader(folder.path, "r");
    std::array<u64, 4> last{};
    for (u64 taken = 0; taken < 4 * packets;) {
        for (auto& packet : pull(reader, 4, std::chrono::seconds(10))) {
            EXPECT(packet.pin().sequence == ++last[packet.pin().shard] && packet.pin().lapped_rows == 0);
            EXPECT(packet.pin().account == packet.pin().shard && packet.payload<float>()[15] == static_cast<float>(packet.pin().sequence));
            packet.consume();
            ++taken;
        }
    }
    for (auto& thread : threads) thread.join();
    for (u32 shard = 0; shard < 4; ++shard) {
        const auto books = writer.ring().account(shard).counters.load();
        EXPECT(books[produced::published] == 2 * packets && books[produced::sampled_out] == packets / 100);
        EXPECT(books[produced::seen] == 2 * packets + packets / 100);
    }
}

void a_gap_is_booked_at_every_instruction() {
    Folder folder;
    create(folder.path, small());
    {
        Writer writer(folder.path);
        writer.account("a");
        publish(writer, 1);
    }
    const auto act = [](Writer& writer) {
        // Pins of readers that do not exist, one chunk each: nobody holds too many, yet nothing is free.
        for (u32 chunk = 0; chunk < 4; ++chunk) writer.ring().state(0, chunk).fetch_or(u64{1} << (8 + chunk));
        EXPECT(!publish(writer, 2));
    };
    std::map<u64, int> heads;
    steps_of_writer(folder.path, act, [&](const std::string& left) {
        const Writer successor(left);
        const Books books(left);
        EXPECT(books.producer_balances());
        EXPECT(books.made[produced::dropped + reason::no_chunk] == (books.head == 2 ? 2U : 0U));
        EXPECT((successor.ring().state(0, 3).load() & word::pin_mask) == 0);  // nobody's pins go with the takeover
        ++heads[books.head];
    });
    EXPECT(heads[1] > 3 && heads[2] > 3);
}

void taking_over_may_itself_be_killed() {
    Folder folder;
    create(folder.path, small());
    {
        Writer writer(folder.path);
        writer.account("a");
        publish(writer, 1);
    }
    std::vector<Snapshot> left_behind;
    steps_of_writer(folder.path, [](Writer& writer) { publish(writer, 2); },
                    [&](const std::string& left) { left_behind.emplace_back(left); });
    // Every fifth state that a kill can leave, and every state that a kill of its repair can leave.
    for (std::size_t i = 0; i < left_behind.size(); i += 5) {
        left_behind[i].restore(folder.path);
        const auto repair = [&](int&) { const Writer successor(folder.path); };
        const auto check = [&](const std::string& left) {
            Writer successor(left);
            const Books books(left);
            EXPECT(books.producer_balances());
            EXPECT(books.made[produced::published] == (books.head == 2 ? 4U : 2U));
        };
        each_instruction<int>(folder.path, [] { return std::make_unique<int>(0); }, repair, check);
    }
}

void a_packet_is_consumed_once_whenever_the_reader_is_killed() {
    Folder folder;
    create(folder.path, small());
    Writer writer(folder.path);
    writer.account("a");
    publish(writer, 1);
    publish(writer, 2);
    struct Pulled {
        explicit Pulled(const std::string& path) : reader(path, "r") { reader.gather(pins, 1); }
        Reader reader;
        std::vector<Pin> pins;
    };
    std::map<bool, int> outcomes;  // whether the first packet came again
    const auto act = [](Pulled& pulled) {
        pulled.reader.consumed(pulled.pins[0]);
        pulled.reader.mark_durable();
        pulled.reader.release(pulled.pins[0]);
    };
    each_instruction<Pulled>(folder.path, [&] { return std::make_unique<Pulled>(folder.path); }, act, [&](const std::string& left) {
        const Books before(left);
        Reader again(left, "r");
        again.restore_durable(0, before.used[consumed::durable], std::nullopt);
        std::vector<Pin> pins;
        again.gather(pins, 1);
        EXPECT(pins.size() == 1);
        const bool first = value_of(pins[0]) == 1;
        EXPECT(first == (before.used[consumed::position] == 0) && pins[0].lapped_rows == 0);
        ++outcomes[first];
        again.consumed(pins[0]);
        again.settle();
        again.mark_durable();
        EXPECT(Books(left).consumer_balances());
    });
    EXPECT(outcomes[true] > 1 && outcomes[false] > 3);
}

void readers_see_whole_packets_in_order_while_they_are_overtaken() {
    Folder folder;
    Geometry geometry = small(Policy::overwrite, 12);
    geometry.readers = {"quick", "slow"};
    geometry.pins = 2;
    create(folder.path, geometry);
    Writer writer(folder.path);
    writer.account("a");
    constexpr u32 packets = 200'000;
    const auto follow = [&](const std::string& name, bool slow) {
        Reader reader(folder.path, name);
        std::vector<Pin> pins;
        u64 last = 0;
        u64 rows = 0;
        while (!reader.ended()) {
            pins.clear();
            reader.gather(pins, 2);
            if (pins.empty()) reader.wait(std::chrono::milliseconds(10));
            for (const Pin& pin : pins) {
                EXPECT(pin.sequence > last);
                last = pin.sequence;
                if (slow && last % 1000 == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
                EXPECT(value_of(pin) == static_cast<float>(pin.sequence));
                EXPECT(pin.end == 2 * pin.sequence);
                rows += pin.rows + pin.lapped_rows;
                reader.consumed(pin);
                EXPECT(reader.release(pin));
            }
        }
        reader.settle();
        EXPECT(rows <= 2 * packets);
        reader.mark_durable();
        reader.finalise(ReaderState::finalised);
    };
    std::thread quick(follow, "quick", false);
    std::thread slow(follow, "slow", true);
    for (u32 i = 1; i <= packets; ++i) EXPECT(publish(writer, static_cast<float>(i)));
    writer.close(WriterState::complete);
    quick.join();
    slow.join();
    const Ring ring(folder.path, Ring::Role::look);
    for (u32 r = 0; r < 2; ++r) {
        const auto used = ring.book(r, 0).counters.load();
        EXPECT(used[consumed::durable] + used[consumed::lapped] == 2 * packets);
        EXPECT(used[consumed::durable] > 0 && used[consumed::rolled_back] == 0);
    }
}

void a_packet_wakes_a_reader_that_sleeps() {
    Folder folder;
    create(folder.path, small());
    Writer writer(folder.path);
    writer.account("a");
    const Ring ring(folder.path, Ring::Role::look);
    std::thread sleeper([&] {
        Reader reader(folder.path, "r");
        const auto began = std::chrono::steady_clock::now();
        std::vector<Pin> pins;
        for (; pins.empty(); reader.gather(pins, 1)) reader.wait(std::chrono::hours(1));
        EXPECT(std::chrono::steady_clock::now() - began < std::chrono::minutes(30));
        reader.release(pins[0]);
    });
    while (ring.live().waiters.load() == 0) std::this_thread::yield();
    // Between setting its bit and sleeping the reader looks once more; here it is asleep for sure.
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    publish(writer, 1);
    sleeper.join();
}

void numbers_that_change_together_are_seen_together() {
    Versioned<8> books{};
    std::atomic<bool> over{false};
    std::thread writer([&] {
        for (u64 n = 1; n < 500'000; ++n) {
            books.store({n, n, n, n, n, n, n, n});
            for (int pause = 0; pause < 50; ++pause) std::atomic_signal_fence(std::memory_order_seq_cst);
        }
        over = true;
    });
    while (!over) {
        const auto values = books.load();
        for (const u64 value : values) EXPECT(value == values[0]);
    }
    writer.join();
}

void a_scribbled_head_keeps_nobody() {
    for (const Policy policy : {Policy::overwrite, Policy::drop_new}) {
        for (const u64 head : {~u64{0}, ~u64{0} - 1, u64{1} << 63, u64{1000}}) {
            Folder folder;
            create(folder.path, small(policy));
            {
                Writer writer(folder.path);
                writer.account("a");
                publish(writer, 1);
            }
            { Ring(folder.path, Ring::Role::look).shard(0).head = head; }
            Writer successor(folder.path);  // looks for what is unread: a ring full of it at most
            for (int i = 0; i < 10; ++i) publish(successor, 2);
            EXPECT(successor.free(0) <= 4);
            Reader reader(folder.path, "r");
            std::vector<Pin> pins;
            reader.gather(pins, 8);
            for (const Pin& pin : pins) reader.release(pin);
            reader.settle();
        }
    }
}

void conversions_keep_what_they_promise() {
    const float inf = std::numeric_limits<float>::infinity();
    const float nan = std::numeric_limits<float>::quiet_NaN();
    EXPECT(float_of_bfloat16(bfloat16_bits(std::bit_cast<u32>(inf))) == inf);
    EXPECT(std::isnan(float_of_bfloat16(bfloat16_bits(std::bit_cast<u32>(nan)))));
    EXPECT(std::isnan(float_of_bfloat16(bfloat16_bits(0x7F800001))));
    for (u32 half = 0; half < 65536; ++half) {
        const float wanted = [&] {
            const int exponent = (half >> 10) & 31;
            const float mantissa = static_cast<float>(half & 1023);
            const float sign = (half & 0x8000) != 0 ? -1.0F : 1.0F;
            if (exponent == 31) return mantissa == 0 ? sign * inf : nan;
            return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25));
        }();
        const float got = float_of_half(static_cast<u16>(half));
        EXPECT(std::isnan(wanted) ? std::isnan(got) : std::bit_cast<u32>(got) == std::bit_cast<u32>(wanted));
    }
    const float row[4] = {nan, inf, -254.0F, 1.0F};
    std::int8_t out[4];
    float scale = 0;
    convert(reinterpret_cast<std::byte*>(out), {.scales = &scale, .records = nullptr, .table = nullptr},
            {reinterpret_cast<const std::byte*>(row), 16, nullptr, 1, 4, Dtype::float32}, Quantization::int8);
    EXPECT(scale == 2.0F && out[0] == 0 && out[1] == 127 && out[2] == -127 && out[3] == 0);
}

void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::FILE* const file = std::fopen(path.c_str(), "w");
    EXPECT(file != nullptr && std::fputs(text.c_str(), file) >= 0 && std::fclose(file) == 0);
}

void the_least_limit_that_can_be_true_binds() {
    const Folder root;
    const std::string groups = root.path + "/sys/fs/cgroup";
    EXPECT(memory_limit(root.path).bytes == ~u64{0});  // no control group at all
    write(root.path + "/proc/self/cgroup", "1:name=systemd:/elsewhere\n0::/pod/container\n");
    EXPECT(memory_limit(root.path).file.empty());
    write(groups + "/pod/container/memory.max", "max\n");
    write(groups + "/pod/memory.max", "137438953472\n");
    EXPECT(memory_limit(root.path).bytes == 137438953472 && memory_limit(root.path).file == groups + "/pod/memory.max");
    write(groups + "/memory.max", "274877906944\n");  // wider than the one inside it
    EXPECT(memory_limit(root.path).bytes == 137438953472);
    write(groups + "/pod/container/memory.max", "0\n");
    EXPECT(memory_limit(root.path).bytes == 0);  // a group may take nothing, as long as it has nothing
    write(groups + "/pod/container/memory.current", "4096\n");
    EXPECT(memory_limit(root.path).bytes == 137438953472);  // less than it has: not believed
    write(groups + "/pod/container/memory.max", "not a number\n");
    EXPECT(memory_limit(root.path).bytes == 137438953472);
}

void what_smaps_does_not_tell_is_unknown() {
    const Folder root;
    topology::Obtained none;
    topology::read_smaps(none, 0x7f0000000000, 0x2000, root.path);  // a kernel without the file
    EXPECT(!none.resident && !none.huge && !none.locked && !none.page_bytes);
    const std::string others = "7effffff0000-7f0000000000 rw-s 0 00:01 1 /before\nRss: 64 kB\nLocked: 64 kB\n"
                               "7f0000002000-7f0000003000 rw-s 0 00:01 1 /behind\nRss: 4 kB\n";
    write(root.path + "/proc/self/smaps", others);  // one that tells nothing of this mapping
    topology::Obtained foreign;
    topology::read_smaps(foreign, 0x7f0000000000, 0x2000, root.path);
    EXPECT(!foreign.resident && !foreign.locked);
    const std::string first = "7f0000000000-7f0000001000 rw-s 0 00:01 2 /ring\nKernelPageSize:        4 kB\nRss:        4 kB\n";
    const std::string second = "7f0000001000-7f0000002000 rw-s 0 00:01 2 /ring\nRss:        0 kB\nLocked:  0 kB\n";
    write(root.path + "/proc/self/smaps", others + first + second);
    topology::Obtained told;
    topology::read_smaps(told, 0x7f0000000000, 0x2000, root.path);
    EXPECT(told.resident == 4096 && told.locked == 0 && told.page_bytes == 4096);
    EXPECT(!told.huge);  // no line says so
}

struct Claimed {
    std::string name;
    void (*hold)();
    bool stepped;  // goes through single instructions: not for emulators, nor for sanitizers, whose own it would step through
};

const std::vector<Claimed> claims = {
#define CLAIM(name) {#name, name, false}
#define STEPPED(name) {#name, name, true}
    CLAIM(conversions_keep_what_they_promise),
    CLAIM(the_least_limit_that_can_be_true_binds),
    CLAIM(what_smaps_does_not_tell_is_unknown),
    CLAIM(numbers_that_change_together_are_seen_together),
    CLAIM(a_scribbled_head_keeps_nobody),
    STEPPED(a_published_packet_is_booked_or_undone_at_every_instruction),
    STEPPED(a_repeatable_packet_is_never_lost_nor_doubled),
    STEPPED(rows_booked_as_seen_before_are_owed_by_the_crash),
    STEPPED(rows_dropped_by_source_are_booked_once),
    STEPPED(a_full_ring_books_the_drop_at_every_instruction),
    STEPPED(a_claim_is_booked_at_every_instruction),
    STEPPED(several_claims_are_booked_at_every_instruction),
    STEPPED(claims_that_can_be_repeated_are_settled_once_in_any_order),
    STEPPED(taking_over_open_claims_may_itself_be_killed),
    CLAIM(a_claim_is_committed_by_any_thread),
    CLAIM(claims_at_once_are_neighbours_or_counted),
    CLAIM(neighbours_are_found_behind_what_is_claimed),
    STEPPED(drop_new_overwrites_nothing_unread_whenever_the_producer_is_killed),
    CLAIM(shards_are_pushed_by_threads_of_their_own),
    STEPPED(a_gap_is_booked_at_every_instruction),
    STEPPED(taking_over_may_itself_be_killed),
    STEPPED(a_packet_is_consumed_once_whenever_the_reader_is_killed),
    CLAIM(a_packet_wakes_a_reader_that_sleeps),
    CLAIM(readers_see_whole_packets_in_order_while_they_are_overtaken),
};

}  // namespace

int main(int argc, char** argv) {
    const std::vector<std::string> wanted(argv + 1, argv + argc);
    const bool plain = wanted == std::vector<std::string>{"plain"};
    for (const auto& [name, hold, stepped] : claims) {
        if (plain ? stepped : !wanted.empty() && std::find(wanted.begin(), wanted.end(), name) == wanted.end()) continue;
        hold();
        std::printf("ok %s\n", name.c_str());
        std::fflush(stdout);
    }
    return 0;
}
