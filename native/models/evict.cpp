// Taking pins away from a reader that holds too many, while it reads and lets go.
//
// Its bytes may be overwritten under it, so they are relaxed atomics here; the claim is that a release() that returns true
// proves them whole, and a holds() too, which View::copy asks.
#include "model.hpp"

namespace {

using model::Word;

constexpr Word chunks = 2;
constexpr Word writing = 2;
constexpr Word bit = 1;
constexpr Word generation(Word state) { return state >> 2; }

struct Evict : rl::test_suite<Evict, 2> {
    rl::atomic<Word> state[chunks];
    rl::atomic<Word> epoch;
    rl::atomic<Word> bytes[chunks][2];

    void before() {
        epoch($).store(0, rl::mo_relaxed);
        for (Word c = 0; c < chunks; ++c) {
            state[c]($).store(1 << 2, rl::mo_relaxed);
            for (auto& word : bytes[c]) word($).store(1, rl::mo_relaxed);
        }
    }

    void thread(unsigned index) { index == 0 ? write() : read(); }

    // All chunks are another packet's afterwards.
    void write() {
        Word none = 0;
        epoch($).compare_exchange_strong(none, 1, ORDER_EVICT_EPOCH);
        for (Word c = 0; c < chunks; ++c) state[c]($).fetch_and(~bit, ORDER_EVICT);
        for (Word c = 0; c < chunks; ++c) {
            Word there = state[c]($).load(ORDER_CLAIM_LOOK);
            if ((there & bit) != 0) continue;
            if (!state[c]($).compare_exchange_strong(there, 2 << 2 | writing, ORDER_CLAIM, ORDER_CLAIM_FAILED)) continue;
            for (auto& word : bytes[c]) word($).store(2, rl::mo_relaxed);
            state[c]($).store(2 << 2, ORDER_PUBLISH);
        }
    }

    void read() {
        for (Word c = 0; c < chunks; ++c) {
            Word there = state[c]($).load(ORDER_PIN_LOOK);
            bool pinned = false;
            while (generation(there) == 1 && (there & (writing | bit)) == 0 && !pinned) {
                pinned = state[c]($).compare_exchange_weak(there, there | bit, ORDER_PIN, ORDER_PIN_FAILED);
            }
            if (!pinned) continue;
            const Word era = epoch($).load(ORDER_EPOCH_LOAD);
            const Word first = bytes[c][0]($).load(rl::mo_relaxed);
            const Word second = bytes[c][1]($).load(rl::mo_relaxed);
            // holds(): an access that writes, as release() is; a load could be older than the bytes.
            there = model::mutant("holds_is_a_load") ? state[c]($).load(rl::mo_acquire) : state[c]($).fetch_or(0, ORDER_HOLDS);
            const bool good = epoch($).load(ORDER_EPOCH_LOAD) == era && generation(there) == 1 && (there & bit) != 0;
            if (good) RL_ASSERT(first == 1 && second == 1);
            if (unpin(c, era)) RL_ASSERT(first == 1 && second == 1);
        }
    }

    bool unpin(Word c, Word era) {
        static const bool blind = model::mutant("blind_unpin");
        Word there = state[c]($).load(ORDER_UNPIN_LOOK);
        do {
            if (!blind && (generation(there) != 1 || (there & bit) == 0)) return false;
        } while (!state[c]($).compare_exchange_weak(there, there & ~bit, ORDER_UNPIN, ORDER_UNPIN_FAILED));
        return blind || epoch($).load(ORDER_EPOCH_LOAD) == era;
    }
};

}  // namespace

int main(int count, char** arguments) { return model::main<Evict>(count, arguments); }
