// Claim, publish, pin, unpin, and taking a dead reader's pins away: the orders, with bytes that are not atomics.
//
// One writer, two readers, as many slots as chunks. The second reader dies at a random place; its successor takes the lock,
// sweeps its pins and reads on. Relacy reports any byte that is read while it may be written.
#include "model.hpp"

namespace {

using model::Word;

constexpr Word chunks = 3;
constexpr Word pin_mask = 3;
constexpr Word writing = 4;
constexpr Word generation(Word state) { return state >> 3; }

struct Pins : rl::test_suite<Pins, 4> {
    rl::atomic<Word> state[chunks];
    rl::atomic<Word> slot[chunks];
    rl::atomic<Word> head;
    rl::var<Word> sequence_of[chunks];
    rl::var<Word> payload_of[chunks];
    model::Lock lock;
    Word packets;

    void before() {
        packets = model::every_schedule ? 3 : 5;
        for (Word c = 0; c < chunks; ++c) {
            state[c]($).store(0, rl::mo_relaxed);
            slot[c]($).store(0, rl::mo_relaxed);
            VAR(sequence_of[c]) = 0;
            VAR(payload_of[c]) = 0;
        }
        head($).store(0, rl::mo_relaxed);
    }

    void thread(unsigned index) {
        if (index == 0) return write();
        if (index == 1) return read(1, false);
        lock.lock($);
        if (index == 3) sweep(2);
        read(2, index == 2);
        lock.unlock($);
    }

    void write() {
        static const bool blind = model::mutant("claim_is_a_store");
        Word next = 0;
        Word sequence = 0;
        for (Word packet = 0; packet < packets; ++packet) {
            for (Word tried = 0; tried < chunks; ++tried, next = (next + 1) % chunks) {
                Word there = state[next]($).load(ORDER_CLAIM_LOOK);
                if ((there & pin_mask) != 0) continue;
                const Word claimed = generation(there) + 1;
                if (blind) {
                    state[next]($).store(claimed << 3 | writing, rl::mo_seq_cst);
                } else if (!state[next]($).compare_exchange_strong(there, claimed << 3 | writing, ORDER_CLAIM, ORDER_CLAIM_FAILED)) {
                    continue;
                }
                ++sequence;
                VAR(sequence_of[next]) = sequence;
                VAR(payload_of[next]) = 10 * sequence;
                state[next]($).store(claimed << 3, ORDER_PUBLISH);
                slot[(sequence - 1) % chunks]($).store(claimed << 3 | next, ORDER_SLOT_STORE);
                head($).store(sequence, ORDER_HEAD_STORE);
                next = (next + 1) % chunks;
                break;
            }
        }
    }

    void sweep(Word bit) {
        for (Word c = 0; c < chunks; ++c) {
            if ((state[c]($).load(ORDER_SWEEP_LOOK) & bit) != 0) state[c]($).fetch_and(~bit, ORDER_SWEEP);
        }
    }

    // Reads until it has looked often enough; a mortal reader stops anywhere, pinned or not.
    void read(Word bit, bool mortal) {
        const Word fate = mortal ? rl::rand(8) : ~0u;
        Word step = 0;
        Word next = 1;
        for (Word looks = 0; looks < packets + (model::every_schedule ? 0 : 1); ++looks) {
            if (next > head($).load(ORDER_HEAD_LOAD)) continue;
            const Word there = slot[(next - 1) % chunks]($).load(ORDER_SLOT_LOAD);
            const Word chunk = there & 7;
            if (!pin(chunk, there >> 3, bit)) {
                ++next;
                continue;
            }
            if (step++ == fate) return;
            const bool right = VAR(sequence_of[chunk]) == next;
            if (step++ == fate) return;
            if (right) RL_ASSERT(VAR(payload_of[chunk]) == 10 * next);
            if (step++ == fate) return;
            unpin(chunk, there >> 3, bit);
            ++next;
        }
    }

    bool pin(Word chunk, Word wanted, Word bit) {
        Word there = state[chunk]($).load(ORDER_PIN_LOOK);
        do {
            if (generation(there) != wanted || (there & (writing | bit)) != 0) return false;
        } while (!state[chunk]($).compare_exchange_weak(there, there | bit, ORDER_PIN, ORDER_PIN_FAILED));
        return true;
    }

    void unpin(Word chunk, Word wanted, Word bit) {
        Word there = state[chunk]($).load(ORDER_UNPIN_LOOK);
        do {
            RL_ASSERT(generation(there) == wanted && (there & bit) != 0);
        } while (!state[chunk]($).compare_exchange_weak(there, there & ~bit, ORDER_UNPIN, ORDER_UNPIN_FAILED));
    }
};

}  // namespace

int main(int count, char** arguments) { return model::main<Pins>(count, arguments); }
