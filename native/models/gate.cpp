// Gate: one thread of a process at a time in a shard, where a claim that was opened in one turn ends in another, of another
// thread perhaps; Seat: who closes waits for whoever is inside, ends what is open, and nobody comes in afterwards.
#include "model.hpp"

namespace {

using model::Word;

constexpr Word free_ = 0, taken = 1;

struct Turns : rl::test_suite<Turns, 3> {
    rl::atomic<Word> gate;
    rl::atomic<Word> closed;
    rl::atomic<Word> handed;  // from the thread that claims to the one that commits: the application's own
    rl::var<Word> lane;
    rl::var<Word> open;
    rl::var<Word> left;

    void before() {
        gate($).store(free_, rl::mo_relaxed);
        closed($).store(0, rl::mo_relaxed);
        handed($).store(0, rl::mo_relaxed);
        VAR(lane) = 0;
        VAR(open) = 0;
        VAR(left) = 0;
    }

    void thread(unsigned index) {
        if (index == 0) return close();
        index == 1 ? claim() : commit();
    }
    void after() { RL_ASSERT(VAR(open) == 0); }

    // Two claims; the second is opened while the first is, or is not, yet open.
    void claim() {
        for (Word i = 1; i <= 2; ++i) {
            if (!enter()) break;
            work();
            VAR(open) = VAR(open) + 1;
            leave(ORDER_GATE_LEAVE);
            handed($).store(i, rl::mo_relaxed);
        }
        handed($).fetch_add(8, rl::mo_relaxed);  // no more come
    }

    void commit() {
        for (Word done = 0;;) {
            const Word there = handed($).load(rl::mo_relaxed);
            if ((there & 7) == done) {
                if (there >= 8) return;
                rl::yield(1, $);
                continue;
            }
            if (!enter()) return;
            // Closed in between, it would be over.
            if (VAR(open) > 0) {
                work();
                VAR(open) = VAR(open) - 1;
            }
            ++done;
            leave(ORDER_GATE_LEAVE);
        }
    }

    // On the shard, in memory that the next producer's too once this one has left.
    void work() {
        RL_ASSERT(VAR(left) == 0);
        VAR(lane) = VAR(lane) + 1;
    }

    bool enter() {
        if (closed($).load(ORDER_SEAT_LOAD) != 0) return false;
        pass();
        static const bool once = model::mutant("looks_once");
        if (!once && closed($).load(ORDER_SEAT_LOAD) != 0) return leave(ORDER_GATE_LEAVE), false;
        return true;
    }
    void pass() {
        Word there = free_;
        while (!gate($).compare_exchange_strong(there, taken, ORDER_GATE_ENTER, ORDER_GATE_FAILED)) {
            there = free_;
            rl::yield(1, $);
        }
    }
    void leave(rl::memory_order order) { gate($).store(free_, order); }

    // Whoever is inside ends; what is open then is aborted.
    void close() {
        closed($).exchange(1, ORDER_SEAT_CLOSE);
        static const bool waits = !model::mutant("close_waits_for_nobody");
        static const bool aborts = !model::mutant("close_leaves_claims_open");
        if (waits) pass();
        if (aborts && VAR(open) > 0) {
            work();
            VAR(open) = 0;
        }
        VAR(left) = 1;
        if (waits) leave(ORDER_GATE_LEAVE);
    }
};

}  // namespace

int main(int count, char** arguments) { return model::main<Turns>(count, arguments); }
