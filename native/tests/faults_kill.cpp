// kill -9 at every testpoint of the ring, while the others go on; then the same participant again, in the same ring.
//
// faults_kill [KILLS [SEED]]   at least that many kills and each label at least once; prints what happened as JSON
// faults_kill labels           the labels, one a line
//
// A ring lives for some rounds. In each, one participant is killed (sometimes again in its repair) while producer and
// readers work; then it comes back and works on. What every call should have done is noted in memory that a kill does not
// touch. Whoever attaches holds the ring against those notes: every number of the books is known but for the one call
// that was cut short, and that one may only have happened or not.
#include <fstream>
#include <csignal>
#include <map>
#include <vector>

#include <sys/mman.h>
#include <sys/wait.h>

#include "fixture.hpp"

using namespace asysi;
using namespace asysi::test;

namespace {

constexpr u32 most_shards = 2;
constexpr u32 most_accounts = 4;
constexpr u32 most_readers = 2;
constexpr u32 rounds_of_a_ring = 12;
constexpr u32 most_open = 3;  // claims at once

// --- what should have happened ------------------------------------------------------------------------------------

using Made = Versioned<produced::words>::Values;

enum class Op : u32 { none, publish, claim, commit, abort, book };

/// One account's numbers after calls that returned.
struct Account {
    Made made;
    u64 number;  // of its newest packet
};

/// A call that has begun and not returned.
struct Call {
    Op op;
    Parcel packet;
    Entry entry;
};

struct Taken {
    std::array<u64, most_accounts> rows;       // consumed, rolled back ones included
    std::array<u64, most_accounts> durable;
    std::array<u64, most_accounts> reached;    // rows_before + rows of the newest consumed packet
    std::array<u64, most_accounts> number;     // of the newest packet whose pin held
    std::array<u64, most_shards> sequence;     // newest consumed
    Pin pending;                               // consumed() has begun
    bool consuming, marking;
};

/// Survives every participant.
struct Witness {
    std::atomic<bool> stop;  // the others may go home
    std::atomic<u64> turns;  // of everybody
    std::array<Account, most_accounts> accounts;
    std::array<u64, most_shards> head, source;
    Call call;
    // Claims that were opened by a call that returned, and not ended by one that began.
    std::array<Parcel, most_open> open;
    u32 claims;
    std::array<Taken, most_readers> readers;
    // What the calls that a kill cut short turned out to have done.
    u64 undone, published, crashed, refused, repeated;
    u64 left_open;  // claims that a kill left open
};

Witness* witness = nullptr;

[[noreturn]] void complain(const char* what, const std::string& detail) {
    std::fprintf(stderr, "%s: %s\n", what, detail.c_str());
    std::_Exit(1);
}

std::string words(const Made& made) {
    std::string text;
    for (const u64 value : made) text += std::to_string(value) + " ";
    return text;
}

// --- the producer -------------------------------------------------------------------------------------------------

/// What `call` may have done to its account's books, each with the number of packets or gaps that came to be.
struct Outcome {
    Made made;
    u64 heads;
    bool settled;  // its source is
    u64* count;
    bool gap = false;  // in the packet's place
};

std::vector<Outcome> outcomes(const Call& call, Policy policy) {
    const Made& before = witness->accounts[call.packet.account].made;
    const u64 rows = call.packet.rows;
    const u64 seen = call.packet.book_seen ? rows : 0;
    const auto dropped_for = [&](u32 why) {
        Made made = before;
        made[produced::seen] += seen;
        made[produced::dropped + why] += rows;
        return made;
    };
    std::vector<Outcome> all;
    if (call.op == Op::book) {
        Made made = before;
        made[produced::seen] += call.entry.seen;
        made[produced::sampled_out] += call.entry.sampled_out;
        made[produced::dropped + call.entry.reason] += call.entry.dropped;
        // What was seen and not booked further when the producer died is owed by the crash.
        Made owed = made;
        owed[produced::dropped + reason::crash] += call.entry.seen - call.entry.sampled_out - call.entry.dropped;
        return {{before, 0, false, &witness->undone}, {owed, 0, true, &witness->crashed}, {made, 0, true, &witness->published}};
    }
    // What was seen before it was published is owed: such a call cannot have done nothing, nor can a live one be undone
    // once its intent, or its claim, is open.
    const bool repeated = call.packet.source > witness->source[call.packet.shard];
    const bool ends_a_claim = call.op == Op::commit || call.op == Op::abort;
    if (ends_a_claim ? repeated : call.packet.book_seen) all.push_back({before, 0, false, &witness->undone});
    if (!repeated) all.push_back({dropped_for(reason::crash), 0, false, &witness->crashed});
    if (!ends_a_claim && policy == Policy::drop_new) all.push_back({dropped_for(reason::ring_full), 0, true, &witness->refused});
    if (!ends_a_claim && policy == Policy::overwrite) {
        all.push_back({dropped_for(reason::no_chunk), 1, true, &witness->refused, true});
    }
    if (call.op == Op::claim) return all;
    if (call.op == Op::abort) {
        all.push_back({dropped_for(reason::error), 0, true, &witness->refused});
        return all;
    }
    Made made = before;
    made[produced::seen] += seen;
    made[produced::published] += rows;
    made[produced::packets] += 1;
    all.push_back({made, 1, true, &witness->published});
    return all;
}

/// Notes that the call did `outcome`.
void note(const Call& call, const Outcome& outcome) {
    Account& account = witness->accounts[call.packet.account];
    account.made = outcome.made;
    witness->head[call.packet.shard] += outcome.heads;
    u64& source = witness->source[call.packet.shard];
    if (outcome.settled) source = std::max(source, call.packet.source);
    witness->call.op = Op::none;
}

/// What a crash makes of `account`'s books when the shard's mark stands at `mark`: the rows of its open claims are lost, but
/// for those that are repeated.
Made without_claims(Made made, u32 account, u64 mark) {
    for (u32 i = 0; i < witness->claims; ++i) {
        const Parcel& packet = witness->open[i];
        if (packet.account != account || packet.source > mark) continue;
        if (packet.book_seen) made[produced::seen] += packet.rows;
        made[produced::dropped + reason::crash] += packet.rows;
    }
    return made;
}

/// Notes that whoever had claims open is gone.
void note_lost_claims() {
    std::array<Made, most_accounts> made;
    for (u32 i = 0; i < most_accounts; ++i) made[i] = witness->accounts[i].made;
    for (u32 i = 0; i < witness->claims; ++i) {
        const Parcel& packet = witness->open[i];
        made[packet.account] = without_claims(witness->accounts[packet.account].made, packet.account, witness->source[packet.shard]);
    }
    for (u32 i = 0; i < most_accounts; ++i) witness->accounts[i].made = made[i];
    witness->left_open += witness->claims;
    witness->claims = 0;
}

/// Holds the ring against the notes, after a producer took over.
void expect_exact(const Ring& ring) {
    const Call call = witness->call;
    if (call.op != Op::none) {
        const Made made = ring.account(call.packet.account).counters.load();
        const auto all = outcomes(call, ring.geometry().policy);
        const auto found = std::find_if(all.begin(), all.end(), [&](const Outcome& one) {
            const u64 mark = std::max(witness->source[call.packet.shard], one.settled ? call.packet.source : 0);
            return without_claims(one.made, call.packet.account, mark) == made && ring.shard(call.packet.shard).head == witness->head[call.packet.shard] + one.heads;
        });
        if (found == all.end()) {
            complain("a call that was cut short did what it may not", "now " + words(made) + "before " +
                     words(witness->accounts[call.packet.account].made) + "rows " + std::to_string(call.packet.rows) +
                     " source " + std::to_string(call.packet.source) + " op " + std::to_string(static_cast<u32>(call.op)));
        }
        const u64 newest = ring.slot(call.packet.shard, ring.shard(call.packet.shard).head).load();
        EXPECT(found->heads == 0 || found->gap == ((newest & word::tombstone) != 0));
        ++*found->count;
        note(call, *found);
    }
    note_lost_claims();
    for (u32 shard = 0; shard < ring.geometry().shards; ++shard) {
        EXPECT(ring.shard(shard).head == witness->head[shard]);
        EXPECT(ring.shard(shard).source == witness->source[shard]);
        EXPECT(ring.shard(shard).intent.open == 0);
        for (u32 chunk = 0; chunk < ring.geometry().chunks; ++chunk) {
            EXPECT((ring.state(shard, chunk).load() & word::writing) == 0 && ring.claim(shard, chunk).open == 0);
        }
    }
    for (u32 i = 0; i < ring.accounts(); ++i) {
        const auto made = ring.account(i).counters.load();
        EXPECT(balances(made));
        if (made != witness->accounts[i].made) complain("books", words(made) + "expected " + words(witness->accounts[i].made));
    }
}

/// Claims that are open: `claims[i]` is `witness->open[i]`.
using Claims = std::vector<Claim>;

/// Does what `call` says, with its note before and behind. `ended`: the claim that a commit or an abort is about.
void perform(Writer& writer, Claims& claims, const Call& call, std::size_t ended = 0) {
    const Policy policy = writer.geometry().policy;
    const Parcel& packet = call.packet;
    if (call.op == Op::commit || call.op == Op::abort) {
        const auto all = outcomes(call, policy);
        for (u32 i = static_cast<u32>(ended); i + 1 < witness->claims; ++i) witness->open[i] = witness->open[i + 1];
        --witness->claims;
        witness->call = call;
        Claim claim = std::move(claims[ended]);
        Claims rest;
        for (std::size_t i = 0; i < claims.size(); ++i) {
            if (i != ended) rest.push_back(std::move(claims[i]));
        }
        claims.swap(rest);
        call.op == Op::commit ? claim.commit() : claim.abort();
        return note(call, all.back());
    }
    EXPECT(packet.source == 0 || packet.source > witness->source[packet.shard]);
    witness->call = call;
    if (call.op == Op::book) {
        writer.book(packet.account, call.entry, packet.shard, packet.source);
        return note(call, outcomes(call, policy).back());
    }
    const auto all = outcomes(call, policy);
    bool went = false;
    if (call.op == Op::publish) {
        went = publish(writer, packet);
        if (went) return note(call, all.back());
    } else if (auto claim = test::claim(writer, packet)) {
        claims.push_back(std::move(*claim));
        witness->open[witness->claims++] = packet;
        witness->call.op = Op::none;
        return;
    }
    note(call, *std::find_if(all.begin(), all.end(), [](const Outcome& one) { return one.count == &witness->refused; }));
}

/// Ends the claim at `index`: aborted; or committed, which goes in the order of their packets' numbers.
void end_claim(Writer& writer, Claims& claims, std::size_t index, bool commit) {
    const u32 account = witness->open[index].account;
    if (commit) {
        for (index = 0; witness->open[index].account != account;) ++index;
    }
    perform(writer, claims, {commit ? Op::commit : Op::abort, witness->open[index], {}}, index);
}

/// A mark above all that are settled or under way in a shard.
u64 next_source(u32 shard) {
    u64 highest = witness->source[shard];
    for (u32 i = 0; i < witness->claims; ++i) {
        if (witness->open[i].shard == shard) highest = std::max(highest, witness->open[i].source);
    }
    return highest + 1;
}

void produce(const std::string& folder, u64 seed, u64 turns) {
    Dice dice(seed);
    std::optional<Writer> writer(std::in_place, folder);
    Claims claims;
    const Ring& ring = writer->ring();
    const Geometry& g = writer->geometry();
    expect_exact(ring);
    const auto end_all = [&] {
        while (!claims.empty()) end_claim(*writer, claims, dice.below(claims.size()), dice.below(2) == 0);
    };
    for (u64 turn = 0; turns == 0 ? !witness->stop : turn < turns; ++turn) {
        ++witness->turns;
        const u32 index = static_cast<u32>(dice.below(g.accounts));
        // Registered in order, the last ones late.
        const u32 account = writer->account("account " + std::to_string(std::min(index, ring.accounts())));
        const u64 kind = dice.below(16);
        if (kind > 11 && !claims.empty()) {
            end_claim(*writer, claims, dice.below(claims.size()), dice.below(3) != 0);
            continue;
        }
        Call call{.op = Op::publish, .packet = {.shard = account % g.shards, .account = account, .number = 0,
                                                .rows = 1 + static_cast<u32>(dice.below(most_rows))}, .entry = {}};
        const u64 next = next_source(call.packet.shard);
        if (kind < 3 || kind == 9) call.packet.source = next;
        if (kind >= 8 && kind < 11) call.op = Op::claim;
        if (kind == 5) call = {Op::book, call.packet, {.seen = 5, .sampled_out = 5}};
        if (kind == 6) {
            call = {Op::book, call.packet, {.seen = 2, .dropped = 2, .reason = 6}};
            call.packet.source = next;
        }
        if (kind == 3) static_cast<void>(writer->free(call.packet.shard));
        if (call.op == Op::claim && claims.size() == most_open) end_claim(*writer, claims, dice.below(most_open), true);
        if (call.op == Op::publish) {
            // Numbers of an account's packets only grow: its claims go first.
            for (std::size_t i = claims.size(); i-- > 0;) {
                if (witness->open[i].account == account) end_claim(*writer, claims, i, true);
            }
        }
        if (kind == 7 || kind == 10) {
            perform(*writer, claims, {Op::book, call.packet, {.seen = call.packet.rows + 3U, .sampled_out = 3}});
            call.packet.book_seen = false;
        }
        if (call.op != Op::book) call.packet.number = ++witness->accounts[account].number;
        perform(*writer, claims, call);
        if (dice.below(8) == 0) usleep(30);
        if (dice.below(64) == 0) {
            end_all();
            writer->close(dice.below(2) == 0 ? WriterState::complete : WriterState::attempt_over);
            writer.reset();
            writer.emplace(folder);
            expect_exact(writer->ring());
        }
    }
    end_all();
    expect_exact(writer->ring());
}

// --- a reader -----------------------------------------------------------------------------------------------------

void expect_exact(const Ring& ring, u32 index) {
    Taken& taken = witness->readers[index];
    if (taken.consuming) {
        const Pin& pin = taken.pending;
        const auto book = ring.book(index, pin.account).counters.load();
        if (book[consumed::position] == pin.end) {
            taken.rows[pin.account] += pin.rows;
            taken.reached[pin.account] = pin.end;
        }
        taken.consuming = false;
    }
    for (u32 account = 0; account < ring.accounts(); ++account) {
        const auto book = ring.book(index, account).counters.load();
        EXPECT(book[consumed::position] == taken.reached[account]);
        EXPECT(book[consumed::position] - book[consumed::lapped] == taken.rows[account]);
        EXPECT(book[consumed::durable] == taken.durable[account] ||
               (taken.marking && book[consumed::durable] == taken.rows[account] - book[consumed::rolled_back]));
        taken.durable[account] = book[consumed::durable];
    }
    taken.marking = false;
}

/// Pins more than it may, as a broken reader would: the producer takes all its pins away.
void hoard(const Ring& ring, u32 shard, u64 bit) {
    for (u32 chunk = 0; chunk < ring.geometry().chunks; ++chunk) ring.state(shard, chunk).fetch_or(bit);
}

/// For a moment every chunk is pinned by somebody who holds no more than he may: there is none to claim.
void crowd(const Ring& ring, u32 shard) {
    const u32 pins = ring.geometry().pins;
    for (u32 chunk = 0; chunk < ring.geometry().chunks; ++chunk) {
        ring.state(shard, chunk).fetch_or(u64{1} << (most_readers + chunk / pins));
    }
    usleep(200);
    for (u32 chunk = 0; chunk < ring.geometry().chunks; ++chunk) {
        ring.state(shard, chunk).fetch_and(~(u64{1} << (most_readers + chunk / pins)));
    }
}

/// One packet: whole, in order, its loss exact.
void check(const Pin& pin, Taken& taken, std::array<u64, most_accounts>& pulled) {
    const u64 before = pin.end - pin.rows;
    EXPECT(pin.sequence > taken.sequence[pin.shard]);
    EXPECT(before >= pulled[pin.account]);
    EXPECT(pin.lapped_rows == before - pulled[pin.account]);
    pulled[pin.account] = pin.end;
}

void take(Reader& reader, const Pin& pin, Taken& taken) {
    EXPECT(pin.end > taken.reached[pin.account]);
    taken.pending = pin;
    taken.consuming = true;
    reader.consumed(pin);
    taken.consuming = false;
    taken.rows[pin.account] += pin.rows;
    taken.reached[pin.account] = pin.end;
    taken.sequence[pin.shard] = pin.sequence;
}

void mark(Reader& reader, Taken& taken, const Ring& ring) {
    taken.marking = true;
    reader.mark_durable();
    taken.marking = false;
    for (u32 account = 0; account < ring.accounts(); ++account) {
        taken.durable[account] = ring.book(reader.index(), account).counters.load()[consumed::durable];
    }
}

void restore(Reader& reader, const Ring& ring, const Taken& taken) {
    for (u32 account = 0; account < ring.accounts(); ++account) reader.restore_durable(account, taken.durable[account], std::nullopt);
    for (u32 account = 0; account < ring.accounts(); ++account) {
        const auto book = ring.book(reader.index(), account).counters.load();
        EXPECT(book[consumed::durable] + book[consumed::rolled_back] == taken.rows[account]);
    }
}

void consume(const std::string& folder, const std::string& name, u64 seed, u64 turns, u64 mischief) {
    Dice dice(seed);
    const Ring ring(folder, Ring::Role::look);
    const u32 index = ring.reader_index(name);
    Taken& taken = witness->readers[index];
    std::optional<Reader> reader(std::in_place, folder, name);
    expect_exact(ring, index);
    restore(*reader, ring, taken);
    auto pulled = taken.reached;
    for (u64 turn = 0; turns == 0 ? !witness->stop : turn < turns; ++turn) {
        ++witness->turns;
        std::vector<Pin> pins;
        reader->gather(pins, 1 + dice.below(4));
        if (pins.empty()) reader->wait(std::chrono::milliseconds(1));
        if (dice.below(mischief) == 0) hoard(ring, static_cast<u32>(dice.below(ring.geometry().shards)), u64{1} << index);
        if (dice.below(mischief) == 0) crowd(ring, static_cast<u32>(dice.below(ring.geometry().shards)));
        for (const Pin& pin : pins) {
            check(pin, taken, pulled);
            const bool good = whole(pin);
            const u64 number = header_of(pin).captured_ns;
            const bool newer = number > taken.number[pin.account];
            take(*reader, pin, taken);
            if (dice.below(16) == 0) mark(*reader, taken, ring);
            // Whoever's pin was taken away is told so, and only then may the bytes be another packet's.
            const bool held = reader->release(pin);
            EXPECT((good && newer) || !held);
            if (held) taken.number[pin.account] = number;
        }
        if (ring.accounts() > 0 && dice.below(8) == 0) reader->gauge(0, 1, static_cast<double>(turn));
        if (dice.below(32) != 0) continue;
        if (dice.below(2) == 0) mark(*reader, taken, ring);
        if (dice.below(2) == 0) reader->finalise(ReaderState::checkpointed);
        reader->close();
        reader.reset();
        reader.emplace(folder, name);
        expect_exact(ring, index);
        restore(*reader, ring, taken);
        pulled = taken.reached;
    }
    reader->close();
}

/// Everything that is left, in order, and the books closed.
void drain(const std::string& folder, const std::string& name) {
    const Ring ring(folder, Ring::Role::look);
    const u32 index = ring.reader_index(name);
    Taken& taken = witness->readers[index];
    Reader reader(folder, name);
    expect_exact(ring, index);
    restore(reader, ring, taken);
    auto pulled = taken.reached;
    while (!reader.ended()) {
        std::vector<Pin> pins;
        reader.gather(pins, 1);
        for (const Pin& pin : pins) {
            check(pin, taken, pulled);
            EXPECT(whole(pin));
            take(reader, pin, taken);
            EXPECT(reader.release(pin));
        }
    }
    reader.settle();
    reader.mark_durable();
    reader.finalise(ReaderState::finalised);
    reader.close();
    for (u32 account = 0; account < ring.accounts(); ++account) {
        const auto made = ring.account(account).counters.load();
        const auto book = ring.book(index, account).counters.load();
        EXPECT(balances(made, book));
        // Exactly what was not handed over is lapped.
        EXPECT(book[consumed::lapped] == made[produced::published] - taken.rows[account]);
    }
}

// --- processes ----------------------------------------------------------------------------------------------------

struct Order {
    std::string_view label;
    u64 count = 0;
};
Order order;

void obey(std::string_view label) {
    if (label == order.label && --order.count == 0) raise(SIGKILL);
}

/// Runs `work` in a process of its own, which kills itself where `order` says, and which may take 30 s.
template <typename Work>
pid_t start(Order when, const Work& work) {
    const pid_t pid = fork();
    EXPECT(pid >= 0);
    if (pid > 0) return pid;
    alarm(30);
    order = when;
    testpoint::hook = when.count > 0 ? obey : nullptr;
    try {
        work();
    } catch (const std::exception& error) {
        complain("a participant ended with", error.what());
    }
    std::_Exit(0);
}

/// True when the process was killed, false when it came home. Anything else fails.
bool killed(pid_t pid, const std::string& who) {
    int status = 0;
    while (waitpid(pid, &status, 0) < 0) EXPECT(errno == EINTR);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) return true;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return false;
    const bool hung = WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM;
    complain(who.c_str(), hung ? "did not come to an end" : "ended with status " + std::to_string(status));
}

/// A label's share of the work.
struct Tally {
    u64 kills = 0, misses = 0;
};
std::map<std::string_view, Tally> tally;
u64 kills = 0;

bool counted(bool dead, const Order& when) {
    if (when.count == 0) return dead;
    ++(dead ? tally[when.label].kills : tally[when.label].misses);
    kills += dead;
    return dead;
}

Geometry shape(bool capture) {
    if (capture) {
        return {.shards = 1, .chunks = 6, .chunk_bytes = 512, .accounts = most_accounts, .pins = 2,
                .policy = Policy::drop_new, .readers = {"a"}};
    }
    return {.shards = most_shards, .chunks = 12, .chunk_bytes = 512, .accounts = most_accounts, .pins = 2,
            .policy = Policy::overwrite, .readers = {"a", "b"}};
}

bool belongs(std::string_view label, const char* role) { return label.starts_with(role) || label.starts_with("books."); }

/// Accounts are registered once.
bool needs_a_new_ring(std::string_view label) { return label.starts_with("writer.account.") || label == "writer.home.bound"; }

/// Reached by whoever makes the ring, not by whoever uses it.
bool of_birth(std::string_view label) { return label.starts_with("create."); }
bool of_reset(std::string_view label) { return label.starts_with("reset."); }

/// How often the label has to come by before it kills: at first anywhere, after misses at once.
Order arm(std::string_view label, Dice& dice) {
    const u64 misses = tally[label].misses;
    return {label, 1 + dice.below(misses > 3 ? 1 : misses > 1 ? 3 : 12)};
}

/// A new ring, whose creator is killed where `label` says.
void begin(const std::string& folder, const Geometry& g, std::string_view label) {
    std::memset(static_cast<void*>(witness), 0, sizeof *witness);
    const auto make = [&] { create(folder, g); };
    if (label.starts_with("create.")) {
        const Order when{label, 1};
        if (label == "create.failure.removed") {
            // A data folder in the way lets the creation fail at its end.
            std::filesystem::create_directories(folder + "/data/in-the-way");
            counted(killed(start(when, make), "a creator"), when);
            std::filesystem::remove_all(folder + "/data");
        } else {
            if (label == "create.leftovers.removed") {
                std::filesystem::create_directories(folder);
                std::ofstream(folder + "/control.new") << "left behind";
            }
            counted(killed(start(when, make), "a creator"), when);
        }
    }
    EXPECT(!killed(start({}, make), "a creator"));
    EXPECT(!std::filesystem::exists(folder + "/control.new") && !std::filesystem::exists(folder + "/data.new"));
}

/// Where to die first, so that the repair comes by `label`.
std::string_view before(std::string_view label, bool writes, Dice& dice) {
    if (label == "takeover.owed.booked") return "writer.books.stored";
    if (label == "takeover.claim.freed") return "writer.header.written";
    if (label == "takeover.claim.booked") return "writer.claim.opened";
    if (label == "takeover.source.raised") return "writer.head.stored";
    for (;;) {
        const auto one = testpoint::labels[dice.below(testpoint::labels.size())];
        if (one.starts_with(writes ? "writer." : "reader.") && !one.ends_with("lock.taken")) return one;
    }
}

/// One participant is killed at `label` while the others work, and comes back.
void round_of(const std::string& folder, const Geometry& g, std::string_view label, Dice& dice) {
    const bool writes = !belongs(label, "reader.") || (label.starts_with("books.") && dice.below(2) == 0);
    const u32 victim = static_cast<u32>(dice.below(g.reader_count()));
    const bool rare = label.starts_with("writer.evict") || label.starts_with("writer.tombstone") || label == "takeover.stray.unpinned";
    const u64 mischief = rare ? 3 : 40;
    witness->stop = false;
    std::vector<std::pair<pid_t, std::string>> others;
    const auto read = [&](u32 index, u64 turns) { consume(folder, g.readers[index], dice(), turns, mischief); };
    if (!writes) others.emplace_back(start({}, [&] { produce(folder, dice(), 0); }), "a producer");
    for (u32 i = 0; i < g.reader_count(); ++i) {
        const u64 seed = dice();
        if (writes || i != victim) others.emplace_back(start({}, [&, seed] { consume(folder, g.readers[i], seed, 0, mischief); }), "a reader");
    }
    const std::string who = std::string(writes ? "a producer" : "a reader") + " killed at " + std::string(label);
    const auto work = [&](u64 turns) {
        if (writes) return produce(folder, dice(), turns);
        read(victim, turns);
    };
    // Half of the deaths follow another one: what is left behind is repaired, and the repair dies.
    if (label.starts_with("takeover.") || label.starts_with("reader.attach.") || dice.below(4) == 0) {
        const Order when = {before(label, writes, dice), 1 + dice.below(20)};
        static_cast<void>(dice());
        const bool dead = killed(start(when, [&] { work(100); }), who);
        if (dead) {
            ++tally[when.label].kills;
            ++kills;
        }
        static_cast<void>(dice());
    }
    const Order when = arm(label, dice);
    counted(killed(start(when, [&] { work(150); }), who), when);
    static_cast<void>(dice());
    EXPECT(!killed(start({}, [&] { work(20); }), who + ", back again,"));
    witness->stop = true;
    for (const auto& [pid, name] : others) EXPECT(!killed(pid, name + " beside " + who));
    EXPECT(ByteLock::held(Ring(folder, Ring::Role::look).file().descriptor(), 0) == false);
}

struct Sums {
    u64 rings = 0, rounds = 0, undone = 0, published = 0, crashed = 0, refused = 0, left_open = 0, turns = 0;
};

/// The end of a ring: everybody is done, and nothing is left open.
void finish(const std::string& folder, const Geometry& g, Sums& sums) {
    EXPECT(!killed(start({}, [&] {
        Writer writer(folder);
        expect_exact(writer.ring());
        writer.close(WriterState::complete);
    }), "the last producer"));
    for (const auto& name : g.readers) EXPECT(!killed(start({}, [&] { drain(folder, name); }), "the last reader"));
    const Ring ring(folder, Ring::Role::look);
    EXPECT(leaked(ring) == 0);
    EXPECT(ring.live().waiters == 0);
    for (u32 byte = 0; byte <= g.reader_count(); ++byte) EXPECT(!ByteLock::held(ring.file().descriptor(), byte));
    for (u32 shard = 0; shard < g.shards; ++shard) {
        for (u32 reader = 0; reader < g.reader_count(); ++reader) EXPECT(ring.cursor(reader, shard) == witness->head[shard]);
    }
    sums.undone += witness->undone;
    sums.published += witness->published;
    sums.crashed += witness->crashed;
    sums.refused += witness->refused;
    sums.left_open += witness->left_open;
    sums.turns += witness->turns;
    ++sums.rings;
}

/// A used ring is emptied by somebody who is killed at `label`: it is the old one, to the last number, or a new one.
void renew(const std::string& folder, std::string_view label) {
    const auto again = [&] { reset(folder); };
    const Order when{label, 1};
    const bool renamed = counted(killed(start(when, again), "a resetter"), when) && label == "reset.control.renamed";
    const auto empty = [&] {
        const Ring ring(folder, Ring::Role::look);
        return ring.accounts() == 0 && ring.shard(0).head == 0 && ring.live().generation == 0;
    };
    EXPECT(empty() == renamed);
    if (!renamed) expect_exact(Ring(folder, Ring::Role::look));
    EXPECT(!killed(start({}, again), "a resetter"));
    EXPECT(empty() && !std::filesystem::exists(folder + "/control.new"));
    std::memset(static_cast<void*>(witness), 0, sizeof *witness);
}

void print(const Sums& sums) {
    const auto number = [](u64 value) { return static_cast<unsigned long long>(value); };
    std::printf("{\"kills\": %llu, \"rings\": %llu, \"rounds\": %llu, \"turns\": %llu,\n", number(kills), number(sums.rings),
                number(sums.rounds), number(sums.turns));
    std::printf(" \"cut_short\": {\"undone\": %llu, \"done\": %llu, \"lost in the crash\": %llu, \"refused\": %llu, \"claims left open\": %llu},\n \"labels\": {",
                number(sums.undone), number(sums.published), number(sums.crashed), number(sums.refused),
                number(sums.left_open));
    bool first = true;
    for (const auto label : testpoint::labels) {
        std::printf("%s\n  \"%s\": %llu", first ? "" : ",", std::string(label).c_str(), number(tally[label].kills));
        first = false;
    }
    std::printf("}}\n");
}

}  // namespace

int main(int argc, char** argv) {
    static_assert(testpoint::enabled, "compile with -DASYSI_TESTPOINTS");
    if (argc > 1 && std::string(argv[1]) == "labels") {
        for (const auto label : testpoint::labels) std::printf("%s\n", std::string(label).c_str());
        return 0;
    }
    const u64 wanted = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1000;
    Dice dice(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
    void* const memory = mmap(nullptr, sizeof(Witness), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(memory != MAP_FAILED);
    witness = static_cast<Witness*>(memory);
    Sums sums;
    // Always the label that was killed at least often; one that is never reached ends this.
    const auto next = [&] {
        const auto cost = [](std::string_view label) { return 8 * tally[label].kills + tally[label].misses; };
        const auto label = *std::min_element(testpoint::labels.begin(), testpoint::labels.end(),
                                             [&](auto a, auto b) { return cost(a) < cost(b); });
        if (tally[label].misses > 200 && tally[label].kills == 0) complain("a testpoint was never reached", std::string(label));
        return label;
    };
    const auto missing = [&] {
        return std::any_of(testpoint::labels.begin(), testpoint::labels.end(), [](auto label) { return tally[label].kills == 0; });
    };
    while (kills < wanted || missing()) {
        Folder folder;
        const Geometry g = shape(sums.rings % 2 == 1);
        std::string_view label = next();
        begin(folder.path, g, label);
        for (u32 round = 0; round < rounds_of_a_ring && (kills < wanted || missing()); ++round) {
            if (of_birth(label)) label = next();
            if (of_birth(label) || of_reset(label) || (needs_a_new_ring(label) && round > 0)) break;
            round_of(folder.path, g, label, dice);
            ++sums.rounds;
            label = next();
        }
        const auto work = [&] { EXPECT(!killed(start({}, [&] { produce(folder.path, dice(), 20); }), "a producer")); };
        work();
        finish(folder.path, g, sums);
        if (!of_reset(label)) continue;
        renew(folder.path, label);
        work();
        finish(folder.path, g, sums);
    }
    print(sums);
    return 0;
}
