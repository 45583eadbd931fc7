// Gate: one thread of a process at a time in a shard, and a claim that stays open between two turns; Seat: who closes waits
// for whoever is inside, and nobody comes in afterwards.
#include "model.hpp"

namespace {

using model::Word;

constexpr Word free_ = 0, taken = 1, suspended = 2;

struct Turns : rl::test_suite<Turns, 3> {
    rl::atomic<Word> gate;
    rl::atomic<Word> closed;
    rl::var<Word> lane;
    rl::var<Word> left;

    void before() {
        gate($).store(free_, rl::mo_relaxed);
        closed($).store(0, rl::mo_relaxed);
        VAR(lane) = 0;
        VAR(left) = 0;
    }

    void thread(unsigned index) {
        if (index == 0) return close();
        for (int i = 0; i < 2; ++i) {
            if (!enter()) return;
            work();
            if (index == 1) {
                // A claim; it is aborted by its destructor, which asks for nothing but the gate.
                leave(ORDER_GATE_SUSPEND, suspended);
                if (!resume()) return;
                work();
            }
            leave(ORDER_GATE_LEAVE, free_);
        }
    }

    // On the shard, in memory that the next producer's too once this one has left.
    void work() {
        RL_ASSERT(VAR(left) == 0);
        VAR(lane) = VAR(lane) + 1;
    }

    bool enter() {
        if (closed($).load(ORDER_SEAT_LOAD) != 0) return false;
        Word there = free_;
        while (!gate($).compare_exchange_strong(there, taken, ORDER_GATE_ENTER, ORDER_GATE_FAILED)) {
            if (there == suspended) return false;
            there = free_;
            rl::yield(1, $);
        }
        static const bool once = model::mutant("looks_once");
        if (!once && closed($).load(ORDER_SEAT_LOAD) != 0) return leave(ORDER_GATE_LEAVE, free_), false;
        return true;
    }
    bool resume() {
        Word there = suspended;
        return gate($).compare_exchange_strong(there, taken, ORDER_GATE_RESUME, ORDER_GATE_FAILED);
    }
    void leave(rl::memory_order order, Word word) { gate($).store(word, order); }

    void close() {
        closed($).exchange(1, ORDER_SEAT_CLOSE);
        while (!quiet()) rl::yield(1, $);
        VAR(left) = 1;
    }

    // Whether nobody is inside: an open claim is aborted on the way.
    bool quiet() {
        if (resume()) {
            work();
            leave(ORDER_GATE_LEAVE, free_);
        }
        Word there = free_;
        if (gate($).compare_exchange_strong(there, taken, ORDER_GATE_ENTER, ORDER_GATE_FAILED)) {
            leave(ORDER_GATE_LEAVE, free_);
            return true;
        }
        // enter() raises BusyError when it meets a claim, and the code goes on to the next shard.
        static const bool gives_up = model::mutant("close_passes_an_open_claim_by");
        return gives_up && there == suspended;
    }
};

}  // namespace

int main(int count, char** arguments) { return model::main<Turns>(count, arguments); }
