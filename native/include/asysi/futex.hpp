// Waiting on a 32-bit word shared between processes.
//
// Uses the raw system call without FUTEX_PRIVATE_FLAG: std::atomic::wait of libstdc++ only works within a process.
#pragma once

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <ctime>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace asysi {

/// Sleeps while `word` equals `seen`, for at most `limit`; returns early on a wake, a signal or a change.
inline void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t seen, std::chrono::nanoseconds limit) {
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(limit);
    timespec time{};
    time.tv_sec = seconds.count();
    time.tv_nsec = (limit - seconds).count();
    syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAIT, seen, &time, nullptr, 0);
}

/// Wakes all waiters on `word`.
inline void futex_wake(std::atomic<std::uint32_t>& word) {
    syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace asysi
