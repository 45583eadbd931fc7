// A participant's seat in a ring: its liveness lock, and the mutual exclusion of its own threads.
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

/// A mutex that costs one compare-exchange and one store if uncontended, without system calls.
class Gate {
public:
    /// Scoped ownership of the gate.
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

    /// Waits at most a second for the owning thread, whose critical sections take microseconds.
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

/// A lock on one byte of a ring's control file, and whether its owner has closed it.
class Seat {
public:
    /// Takes a seat at the ring whose control file was opened as `file`. Throws BusyError if a live process holds it for
    /// longer than `patience`, or if the ring was reset after the file was opened.
    Seat(const File& file, const std::string& control, off_t byte, std::string who, std::chrono::nanoseconds patience)
        : who_(std::move(who)) {
        const auto deadline = std::chrono::steady_clock::now() + patience;
        while (!lock_.take(control, byte)) {
            if (std::chrono::steady_clock::now() >= deadline) throw BusyError(who_ + " is attached already, and it is alive");
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        if (!lock_.on(file.descriptor())) throw BusyError(control + " was reset meanwhile: attach again");
    }

    /// True in a child process forked from the owner, which does not own the seat.
    [[nodiscard]] bool orphaned() const { return lock_.orphaned(); }
    [[nodiscard]] bool closed() const { return closed_.load(); }
    /// Prevents further turns; running ones complete. Returns false if it was already closed.
    bool close() { return !closed_.exchange(true); }
    /// Releases the lock.
    void leave() { lock_.release(); }

    void expect_open() const {
        if (orphaned()) throw ClosedError("this process was forked from " + who_);
        if (closed_.load(std::memory_order_acquire)) throw ClosedError(who_ + " is closed");
    }
    /// Enters the gate; throws ClosedError, or BusyError after a second.
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
