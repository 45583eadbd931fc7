// A participant's place in a ring: what shows others that it lives, and what keeps its own threads apart.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <thread>
#include <utility>

#include <sched.h>

#include "asysi/lock.hpp"

namespace asysi {

/// One thread at a time; uncontended one exchange and one store, and never a system call.
class Gate {
public:
    /// A thread's turn, until it goes out of scope.
    class Turn {
    public:
        explicit Turn(Gate& gate) : gate_(&gate) {}
        Turn(Turn&& other) noexcept : gate_(std::exchange(other.gate_, nullptr)) {}
        Turn& operator=(Turn&&) = delete;
        ~Turn() {
            if (gate_ != nullptr) gate_->state_.store(free, std::memory_order_release);
        }

    private:
        Gate* gate_;
    };

    /// Waits for the thread that is inside, a second at most: what it does there takes microseconds.
    [[nodiscard]] Turn enter() {
        std::uint32_t there = free;
        if (!state_.compare_exchange_strong(there, taken, std::memory_order_acquire, std::memory_order_relaxed)) queue();
        return Turn(*this);
    }

private:
    static constexpr std::uint32_t free = 0, taken = 1;

    void queue() {
        const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(1);
        for (;;) {
            std::uint32_t there = free;
            if (state_.compare_exchange_weak(there, taken, std::memory_order_acquire, std::memory_order_relaxed)) return;
            if (std::chrono::steady_clock::now() > deadline) {
                throw BusyError("another thread has been at work here for a second: give each shard one thread");
            }
            sched_yield();
        }
    }

    std::atomic<std::uint32_t> state_{free};
};

/// A lock on one byte of a ring's control file, and whether its owner has left.
class Seat {
public:
    /// A seat at the ring whose control file was opened as `file`. Throws BusyError when somebody alive sits there for all
    /// of `patience`, or when the ring was reset after the file was opened.
    Seat(const File& file, const std::string& control, off_t byte, std::string who, std::chrono::nanoseconds patience)
        : who_(std::move(who)) {
        const auto deadline = std::chrono::steady_clock::now() + patience;
        while (!lock_.take(control, byte)) {
            if (std::chrono::steady_clock::now() >= deadline) throw BusyError(who_ + " is attached already, and it is alive");
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        if (!lock_.on(file.descriptor())) throw BusyError(control + " was reset meanwhile: attach again");
    }

    /// True in a child that was forked from the owner: nothing here is its own.
    [[nodiscard]] bool orphaned() const { return lock_.orphaned(); }
    [[nodiscard]] bool closed() const { return closed_.load(); }
    /// No more turns; those that are under way end. False when it was closed before.
    bool close() { return !closed_.exchange(true); }
    /// Somebody else may sit down.
    void leave() { lock_.release(); }

    void expect_open() const {
        if (orphaned()) throw ClosedError("this process was forked from " + who_);
        if (closed_.load(std::memory_order_acquire)) throw ClosedError(who_ + " is closed");
    }
    /// This thread's turn; throws ClosedError, or BusyError after a second.
    [[nodiscard]] Gate::Turn enter(Gate& gate) const {
        expect_open();  // first: in a forked child the gate may be held by a thread that does not exist there
        Gate::Turn turn = gate.enter();
        expect_open();
        return turn;
    }

private:
    std::string who_;
    ByteLock lock_;
    std::atomic<bool> closed_{false};
};

}  // namespace asysi
