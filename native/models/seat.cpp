// Closing a reader: its lock is freed when, and only when, nobody is inside and no pin is left, whichever thread is last.
//
// One thread pulls, one lets go of the pins from elsewhere, one closes.
#include "model.hpp"

namespace {

using model::Word;

struct Closing : rl::test_suite<Closing, 3> {
    rl::atomic<Word> gate;
    rl::atomic<Word> closed;
    rl::atomic<Word> held;
    rl::atomic<Word> pulled;
    rl::atomic<Word> left;

    void before() {
        for (auto* word : {&gate, &closed, &held, &pulled, &left}) (*word)($).store(0, rl::mo_relaxed);
    }
    void after() { RL_ASSERT(left($).load(rl::mo_seq_cst) == 1 && held($).load(rl::mo_seq_cst) == 0); }

    void thread(unsigned index) {
        if (index == 0) return close();
        if (index == 1) return pull();
        // The application lets a view go when it gets one; it gets none once the reader is closed and empty.
        for (int i = 0; i < 2; ++i) {
            while (pulled($).load(rl::mo_acquire) <= static_cast<Word>(i)) rl::yield(1, $);
            if (pulled($).load(rl::mo_acquire) == 9) return;
            release();
        }
    }

    void pull() {
        if (closed($).load(ORDER_SEAT_LOAD) == 0 && enter()) {
            if (closed($).load(ORDER_SEAT_LOAD) == 0) {
                for (Word i = 1; i <= 2; ++i) {
                    // A pin is set only while the lock is ours: afterwards somebody else may be this reader.
                    RL_ASSERT(left($).load(rl::mo_seq_cst) == 0);
                    held($).fetch_add(1, ORDER_HELD_MORE);
                    pulled($).store(i, rl::mo_release);
                }
                gate($).store(0, ORDER_GATE_LEAVE);
                return;
            }
            gate($).store(0, ORDER_GATE_LEAVE);
        }
        pulled($).store(9, rl::mo_release);
    }

    bool enter() {
        Word there = 0;
        while (!gate($).compare_exchange_strong(there, 1, ORDER_GATE_ENTER, ORDER_GATE_FAILED)) {
            there = 0;
            rl::yield(1, $);
        }
        return true;
    }

    void release() {
        RL_ASSERT(left($).load(rl::mo_seq_cst) == 0);
        if (held($).fetch_sub(1, ORDER_HELD_LESS) == 1 && closed($).load(ORDER_SEAT_CLOSED) != 0) leave();
    }

    void close() {
        closed($).exchange(1, ORDER_SEAT_CLOSE);
        if (held($).load(ORDER_HELD_LOAD) == 0) leave();
    }

    // A pull that is under way ends first, and may have pinned more.
    void leave() {
        static const bool at_once = model::mutant("leaves_at_once");
        if (!at_once) enter();
        if (at_once || held($).load(ORDER_HELD_LOAD) == 0) left($).store(1, rl::mo_seq_cst);
        if (!at_once) gate($).store(0, ORDER_GATE_LEAVE);
    }
};

}  // namespace

int main(int count, char** arguments) { return model::main<Closing>(count, arguments); }
