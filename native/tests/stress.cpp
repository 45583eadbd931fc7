// Everything at once in one process, for the sanitizers: a writer thread a shard, two readers, a third that hoards pins
// and is evicted, one who looks on; producer and readers leave and come back.
//
// stress [PACKETS] [race|overflow|undefined]: the second argument plants a mistake that the sanitizer must report.
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include <sys/mman.h>

#include "fixture.hpp"

using namespace asysi;
using namespace asysi::test;

#ifdef ASYSI_ONE_MAPPING
// ThreadSanitizer knows memory by its address and sees no race between two mappings of one file. Linked with
// --wrap=mmap,--wrap=munmap, all participants of a ring share one mapping.
#include <map>

namespace {
struct Shared {
    void* base;
    int users;
};
std::mutex shared_mutex;
std::map<std::pair<dev_t, ino_t>, Shared> shared_mappings;
}  // namespace

extern "C" {
void* __real_mmap(void*, std::size_t, int, int, int, off_t);
int __real_munmap(void*, std::size_t);

void* __wrap_mmap(void* at, std::size_t bytes, int protection, int flags, int descriptor, off_t offset) {
    struct stat facts {};
    if ((flags & MAP_SHARED) == 0 || fstat(descriptor, &facts) != 0) {
        return __real_mmap(at, bytes, protection, flags, descriptor, offset);
    }
    const std::scoped_lock turn(shared_mutex);
    Shared& mapping = shared_mappings[{facts.st_dev, facts.st_ino}];
    if (mapping.users++ == 0) {
        char path[64];
        std::snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
        const File writable(path, O_RDWR);
        mapping.base = __real_mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, writable.descriptor(), offset);
    }
    return mapping.base;
}

int __wrap_munmap(void* base, std::size_t bytes) {
    const std::scoped_lock turn(shared_mutex);
    for (auto it = shared_mappings.begin(); it != shared_mappings.end(); ++it) {
        if (it->second.base != base) continue;
        if (--it->second.users > 0) return 0;
        shared_mappings.erase(it);
        break;
    }
    return __real_munmap(base, bytes);
}
}
#endif

namespace {

enum class Plant { nothing, race, overflow, undefined };

constexpr u32 shards = 2;
constexpr u32 lives = 4;  // of the producer

Geometry shape() {
    return {.shards = shards, .chunks = 16, .chunk_bytes = 512, .accounts = shards, .pins = 2,
            .policy = Policy::overwrite, .readers = {"quick", "slow", "hoarder"}};
}

/// What the producers saw of their own calls.
struct Witness {
    std::array<std::atomic<u64>, shards> seen, published, dropped;
};

/// Fills and commits claims in a thread of its own, in the order in which they were opened; two wait at most.
class Completer {
public:
    bool fill(Writer& writer, const Parcel& parcel) {
        const Content content(parcel);
        auto claim = writer.claim(content.block);
        if (!claim) return false;
        std::unique_lock turn(mutex_);
        changed_.wait(turn, [&] { return waiting_.size() < 2; });
        waiting_.emplace_back(std::move(*claim), parcel);
        changed_.notify_all();
        return true;
    }
    void finish() {
        {
            const std::scoped_lock turn(mutex_);
            over_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }

private:
    void complete() {
        for (;;) {
            std::unique_lock turn(mutex_);
            changed_.wait(turn, [&] { return over_ || !waiting_.empty(); });
            if (waiting_.empty()) return;
            auto [claim, parcel] = std::move(waiting_.front());
            waiting_.pop_front();
            turn.unlock();
            changed_.notify_all();
            const Content content(parcel);
            std::memcpy(claim.payload().data(), content.payload.data(), claim.payload().size());
            claim.commit();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::pair<Claim, Parcel>> waiting_;
    bool over_ = false;
    std::thread thread_{[this] { complete(); }};
};

void produce(const std::string& folder, u64 packets, Witness& witness) {
    for (u32 life = 0; life < lives; ++life) {
        Writer writer(folder);
        EXPECT(writer.generation() == life + 1);
        for (u32 shard = 0; shard < shards; ++shard) EXPECT(writer.account("account " + std::to_string(shard)) == shard);
        std::array<Completer, shards> completers;
        const auto work = [&](u32 shard) {
            Completer& completer = completers[shard];
            Dice dice(life * 7 + shard);
            for (u64 number = 1; number <= packets / lives; ++number) {
                const u32 rows = 1 + static_cast<u32>(dice.below(most_rows));
                const Parcel parcel{.shard = shard, .account = shard, .number = number, .rows = rows};
                const bool went = number % 8 == 0 ? completer.fill(writer, parcel) : publish(writer, parcel);
                (went ? witness.published : witness.dropped)[shard] += rows;
                witness.seen[shard] += rows;
                if (number % 16 != 0) continue;
                writer.book(shard, {.seen = 3, .sampled_out = 3}, shard);
                witness.seen[shard] += 3;
            }
        };
        std::thread first(work, 0);
        work(1);
        first.join();
        for (Completer& completer : completers) completer.finish();
        if (life + 1 == lives) writer.close(WriterState::complete);
    }
}

/// The mistakes that a reader can make, and that a sanitizer has to see.
void err(const Pin& pin, Plant plant) {
    if (plant == Plant::overflow) {
        std::vector<std::byte> copy(pin.size - 1);
        std::memcpy(copy.data(), pin.bytes, pin.size);
        EXPECT(copy[0] == pin.bytes[0]);
    }
    if (plant == Plant::undefined) {
        volatile int shift = 40 + static_cast<int>(pin.shard);
        std::printf("%d\n", 1 << shift);
    }
    if (plant == Plant::race) EXPECT(pin.size == 0 || checksum(pin.bytes, pin.size) != 1);  // after its release
}

void consume(const std::string& folder, const std::string& name, u64 life_of, Plant plant) {
    Dice dice(life_of);
    std::array<u64, shards> reached{};
    bool over = false;
    for (u64 life = 0; !over; ++life) {
        const u64 enough = life < 20 ? life_of : ~u64{0};
        Reader reader(folder, name);
        {
            const Ring ring(folder, Ring::Role::look);
            for (u32 account = 0; account < ring.accounts(); ++account) {
                reader.restore_durable(account, ring.book(reader.index(), account).counters.load()[consumed::durable], std::nullopt);
            }
        }
        std::vector<Pin> pins;
        for (u64 taken = 0; taken < enough;) {
            over = reader.ended().has_value();
            if (over) break;
            pins.clear();
            reader.gather(pins, 1 + dice.below(4));
            if (pins.empty()) reader.wait(std::chrono::milliseconds(1));
            for (const Pin& pin : pins) {
                EXPECT(whole(pin));
                EXPECT(pin.sequence > reached[pin.shard]);
                reached[pin.shard] = pin.sequence;
                reader.consumed(pin);
                if (++taken % 100 == 0) reader.mark_durable();
                if (taken >= enough) continue;  // it goes away with what it holds, and its successor clears that
                EXPECT(reader.release(pin));
                if (plant != Plant::nothing) err(pin, plant);
            }
        }
        if (!over) continue;
        reader.settle();
        reader.mark_durable();
        reader.finalise(ReaderState::finalised);
    }
}

/// Holds far more than it may, so that the producer takes its pins away.
u64 hoard(const std::string& folder, const std::atomic<bool>& over) {
    Reader reader(folder, "hoarder");
    const Ring ring(folder, Ring::Role::look);
    const u64 bit = u64{1} << reader.index();
    u64 revoked = 0;
    while (!over) {
        std::vector<Pin> pins;
        reader.gather(pins, 4);
        for (u32 chunk = 0; chunk < ring.geometry().chunks; ++chunk) {
            for (u32 shard = 0; shard < shards; ++shard) ring.state(shard, chunk).fetch_or(bit);
        }
        reader.wait(std::chrono::microseconds(200));
        for (const Pin& pin : pins) {
#ifndef ASYSI_ONE_MAPPING  // reading what may have been taken away is a race, and release() says so
            const bool good = whole(pin);
#else
            const bool good = true;
#endif
            reader.consumed(pin);
            const bool held = reader.release(pin);
            EXPECT(good || !held);
            revoked += !held;
        }
    }
    for (u32 chunk = 0; chunk < ring.geometry().chunks; ++chunk) {
        for (u32 shard = 0; shard < shards; ++shard) ring.state(shard, chunk).fetch_and(~bit);
    }
    reader.settle();
    reader.mark_durable();
    return revoked;
}

/// Whatever is half done, the books that change together are seen together.
void look(const std::string& folder, const std::atomic<bool>& over) {
    while (!over) {
        Control control(folder);
        const Ring& ring = control.ring();
        for (u32 account = 0; account < ring.accounts(); ++account) {
            EXPECT(balances(ring.account(account).counters.load()));
            EXPECT(ring.account_name(account) == "account " + std::to_string(account));
        }
        static_cast<void>(control.writer_state());
        std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
}

}  // namespace

int main(int argc, char** argv) {
    const u64 packets = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 100'000;
    const std::string planted = argc > 2 ? argv[2] : "";
    const Plant plant = planted == "race"        ? Plant::race
                        : planted == "overflow"  ? Plant::overflow
                        : planted == "undefined" ? Plant::undefined
                                                 : Plant::nothing;
    Folder folder;
    create(folder.path, shape());
    Witness witness{};
    std::atomic<bool> over{false};
    u64 revoked = 0;
    std::thread quick(consume, folder.path, "quick", 2000, plant);
    std::thread slow(consume, folder.path, "slow", 500, Plant::nothing);
    std::thread hoarder([&] { revoked = hoard(folder.path, over); });
    std::thread looker(look, folder.path, std::cref(over));
    produce(folder.path, packets, witness);
    quick.join();
    slow.join();
    over = true;
    hoarder.join();
    looker.join();

    const Ring ring(folder.path, Ring::Role::look);
    EXPECT(leaked(ring) == 0);
    for (u32 account = 0; account < shards; ++account) {
        const auto made = ring.account(account).counters.load();
        EXPECT(balances(made));
        EXPECT(made[produced::seen] == witness.seen[account]);
        EXPECT(made[produced::published] == witness.published[account]);
        EXPECT(dropped(made) == witness.dropped[account]);
        for (u32 reader = 0; reader < 3; ++reader) EXPECT(balances(made, ring.book(reader, account).counters.load()));
        EXPECT(ring.book(0, account).counters.load()[consumed::durable] > 0);
    }
    EXPECT(revoked > 0);
    std::printf("ok %llu packets, %llu revoked pins\n", static_cast<unsigned long long>(packets), static_cast<unsigned long long>(revoked));
    return 0;
}
