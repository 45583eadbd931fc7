// Versioned<>: numbers that change together are seen all old or all new, though their writer dies in the middle.
#include "model.hpp"

namespace {

using model::Word;

constexpr Word words = 2;
constexpr Word stores = 4;

struct Books : rl::test_suite<Books, 3> {
    rl::atomic<Word> version;
    rl::atomic<Word> copies[2][words];
    model::Lock lock;

    void before() {
        version($).store(0, rl::mo_relaxed);
        for (auto& copy : copies) {
            for (auto& word : copy) word($).store(0, rl::mo_relaxed);
        }
    }

    void thread(unsigned index) { index < 2 ? write() : read(); }

    // Two writers, one after the other; each dies before any step, or does not.
    void write() {
        lock.lock($);
        Word life = rl::rand(3 * stores + 1);
        for (Word i = 0; i < stores / 2 && life > 0; ++i) {
            const Word next = version($).load(ORDER_VERSION_LOOK) + 1;
            for (Word w = 0; w < words && life > 0; ++w, --life) copies[next & 1][w]($).store(next, ORDER_WORD_STORE);
            if (life-- == 0) break;
            version($).store(next, ORDER_VERSION_STORE);
        }
        lock.unlock($);
    }

    void read() {
        Word last = 0;
        for (Word looks = 0; looks < 2; ++looks) {
            Word values[words];
            for (;;) {
                const Word before = version($).load(ORDER_VERSION_LOAD);
                for (Word w = 0; w < words; ++w) values[w] = copies[before & 1][w]($).load(ORDER_WORD_LOAD);
                if (version($).load(ORDER_VERSION_AGAIN) == before) break;
            }
            RL_ASSERT(values[0] == values[1]);
            RL_ASSERT(values[0] >= last);
            last = values[0];
        }
    }
};

}  // namespace

int main(int count, char** arguments) { return model::main<Books>(count, arguments); }
