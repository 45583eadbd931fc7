// Sleeping and waking: nobody sleeps while there is something to read, or once the stream has ended. No timeouts: in the code
// they only bound what a stranger's scribbling can do.
//
// futex_wait compares the word and goes to sleep in one step, under the kernel's lock of that word; futex_wake takes the
// same lock. A wakeup that is lost shows as a deadlock.
#include "model.hpp"

namespace {

using model::Word;

constexpr Word packets = 2;

struct Doorbell : rl::test_suite<Doorbell, 3> {
    rl::atomic<Word> head;
    rl::atomic<Word> waiters;
    rl::atomic<Word> doorbell;
    rl::atomic<Word> closed;
    rl::mutex kernel;
    rl::condition_variable sleepers;
    bool ends;

    // A close always rings: without one a lost wakeup shows.
    void before() {
        ends = rl::rand(2) == 0;
        for (auto* word : {&head, &waiters, &doorbell, &closed}) (*word)($).store(0, rl::mo_relaxed);
    }

    void thread(unsigned index) { index == 0 ? write() : read(index); }

    void write() {
        for (Word sequence = 1; sequence <= packets; ++sequence) {
            head($).store(sequence, ORDER_HEAD_STORE);
            if (waiters($).load(ORDER_WAITERS_LOAD) != 0) ring();
        }
        if (!ends) return;
        closed($).store(1, ORDER_CLOSE_STORE);
        if (!model::mutant("closes_in_silence")) ring();
    }

    void ring() {
        waiters($).exchange(0, ORDER_WAITERS_CLEAR);
        if (!model::mutant("bell_does_not_count")) doorbell($).fetch_add(1, ORDER_BELL);
        kernel.lock($);
        sleepers.notify_all($);
        kernel.unlock($);
    }

    void read(Word bit) {
        Word consumed = 0;
        for (;;) {
            while (consumed < head($).load(ORDER_HEAD_LOAD)) ++consumed;
            if (!ends && consumed == packets) break;
            // ended(): closed, and all that was published before is consumed.
            if (closed($).load(ORDER_CLOSED_LOAD) != 0 && consumed >= head($).load(ORDER_ENDED_HEAD)) break;
            wait(bit, consumed);
        }
        RL_ASSERT(consumed == packets);
    }

    void wait(Word bit, Word consumed) {
        // First the bell: a ring that takes the bit away after it was set then changes the bell after it was looked at.
        static const bool late = model::mutant("bit_before_bell");
        Word bell = 0;
        if (!late) bell = doorbell($).load(ORDER_BELL_LOAD);
        waiters($).fetch_or(bit, ORDER_WAITERS_SET);
        if (late) bell = doorbell($).load(ORDER_BELL_LOAD);
        if (head($).load(ORDER_READY_LOAD) <= consumed && closed($).load(ORDER_CLOSED_LOAD) == 0) {
            kernel.lock($);
            if (doorbell($).load(rl::mo_relaxed) == bell) sleepers.wait(kernel, $);
            kernel.unlock($);
        }
        waiters($).fetch_and(~bit, ORDER_WAITERS_LEAVE);
    }
};

}  // namespace

int main(int count, char** arguments) { return model::main<Doorbell>(count, arguments); }
