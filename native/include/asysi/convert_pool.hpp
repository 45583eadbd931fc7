// Threads that convert rows together: a block is cut into parts of whole rows, so the bytes are those of one thread.
//
// The caller works too, and waits for nobody who has not begun: a thread that sleeps costs it nothing. A part is taken by
// counting down the low half of `ticket_`; its high half is the number of the block, so that a thread that comes late takes
// none of the next block with what it knows of this one. Whoever has taken a part may read `job_` until it is done: the
// caller returns, and writes the next one, only when all parts are done.
#pragma once

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <numeric>
#include <pthread.h>
#include <thread>
#include <utility>
#include <vector>

#include <unistd.h>

#include "asysi/convert.hpp"

namespace asysi {

class ConvertPool {
public:
    /// `threads` in all, the caller's among them; fewer where the system refuses some.
    explicit ConvertPool(unsigned threads) {
        others_.reserve(std::max(threads, 1U) - 1);
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are the main thread's
        try {
            for (unsigned i = 1; i < threads; ++i) others_.emplace_back([this] { work(); });
        } catch (const std::exception&) {
            // A limit of threads or of memory: those that run are enough.
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }
    ConvertPool(const ConvertPool&) = delete;
    ConvertPool& operator=(const ConvertPool&) = delete;
    ~ConvertPool() {
        if (process_ != getpid()) {  // a forked child has no such threads: whatever is done with their handles may reach others
            static_cast<void>(new std::vector<std::thread>(std::move(others_)));
            return;
        }
        ticket_.store(closed, std::memory_order_seq_cst);
        ticket_.notify_all();
        for (auto& thread : others_) thread.join();
    }

    [[nodiscard]] unsigned threads() const { return static_cast<unsigned>(others_.size()) + 1; }

    /// As `asysi::convert`. While another caller is in here, one converts alone.
    std::uint64_t convert(std::byte* out, const Beside& beside, const Rows& in, Quantization quantization, bool streams) {
        const std::size_t row = in.width * item_bytes(converted(in.dtype, quantization));
        // Every part begins at a multiple of 64 bytes, as the whole does: copies around the caches ask for that.
        const std::size_t step = row == 0 ? 1 : 64 / std::gcd(std::size_t{64}, row);
        const std::size_t wanted = std::size_t{threads()} * 2;
        const std::size_t rows = ((in.count + wanted - 1) / wanted + step - 1) / step * step;
        const std::size_t parts = rows == 0 ? 0 : (in.count + rows - 1) / rows;
        const std::unique_lock alone(busy_, std::try_to_lock);
        if (!alone || parts < 2 || in.count * in.bytes() < worth_sharing) {
            return asysi::convert(out, beside, in, quantization, streams);
        }
        job_ = {.out = out, .beside = beside, .in = in, .quantization = quantization, .streams = streams, .row = row, .rows = rows};
        done_.store(0, std::memory_order_relaxed);
        saturated_.store(0, std::memory_order_relaxed);
        turn_ = (turn_ + 1) & 0x7FFFFFFF;
        ticket_.store(turn_ << 32 | parts, std::memory_order_seq_cst);
        if (sleepers_.load(std::memory_order_seq_cst) != 0) ticket_.notify_all();
        while (take_part()) {
        }
        for (unsigned spins = 0; done_.load(std::memory_order_acquire) != parts; ++spins) {
            if (spins > 1000) std::this_thread::yield();
        }
        return saturated_.load(std::memory_order_relaxed);
    }

private:
    struct Job {
        std::byte* out;
        Beside beside;
        Rows in;
        Quantization quantization;
        bool streams;
        std::size_t row;   // bytes of a converted row
        std::size_t rows;  // of a part
    };

    static constexpr std::uint64_t closed = ~std::uint64_t{0};
    static constexpr std::uint64_t low = 0xFFFFFFFF;
    static constexpr std::size_t worth_sharing = 64 * 1024;
    static constexpr unsigned spins_before_sleep = 4000;

    /// Takes a part of the present block and converts it; false when none is left.
    bool take_part() {
        std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
        do {
            if (ticket == closed || (ticket & low) == 0) return false;
        } while (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel, std::memory_order_acquire));
        const std::size_t first = ((ticket & low) - 1) * job_.rows;
        Rows part = job_.in;
        part.count = std::min(job_.rows, job_.in.count - first);
        if (part.index != nullptr) {
            part.index += first;
        } else {
            part.base += static_cast<std::int64_t>(first) * part.stride;
        }
        Beside beside = job_.beside;
        if (beside.scales != nullptr) beside.scales += first;
        if (beside.records != nullptr) beside.records += first;
        const std::uint64_t outside = asysi::convert(job_.out + first * job_.row, beside, part, job_.quantization, job_.streams);
        if (outside != 0) saturated_.fetch_add(outside, std::memory_order_relaxed);
        done_.fetch_add(1, std::memory_order_release);
        return true;
    }

    void work() {
        for (unsigned spins = 0;;) {
            if (take_part()) {
                spins = 0;
                continue;
            }
            const std::uint64_t seen = ticket_.load(std::memory_order_acquire);
            if (seen == closed) return;
            if ((seen & low) != 0 || ++spins < spins_before_sleep) continue;
            sleepers_.fetch_add(1, std::memory_order_seq_cst);
            ticket_.wait(seen, std::memory_order_seq_cst);
            sleepers_.fetch_sub(1, std::memory_order_relaxed);
            spins = 0;
        }
    }

    std::mutex busy_;
    Job job_{};
    std::uint64_t turn_ = 0;
    alignas(64) std::atomic<std::uint64_t> ticket_{0};
    alignas(64) std::atomic<std::size_t> done_{0};
    std::atomic<std::uint64_t> saturated_{0};  // values, of the parts that are done
    std::atomic<unsigned> sleepers_{0};
    pid_t process_ = getpid();
    std::vector<std::thread> others_;
};

}  // namespace asysi
