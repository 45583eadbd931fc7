// Liveness: every participant locks one byte of the control file.
//
// Open file description locks are visible across PID namespaces and released on kill -9. A forked child would inherit
// them, so the child closes the descriptors, and inherited objects become unusable in it. The lock uses its own
// descriptor: a mapping keeps the open file description it was created from alive, even in a forked child, and with it
// the lock.
#pragma once

#include <atomic>
#include <mutex>
#include <set>
#include <string>

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include "asysi/mapping.hpp"

namespace asysi {

/// A lock on one byte for the lifetime of the object; empty if another process holds it.
class ByteLock {
public:
    ByteLock() { watch_forks(); }
    ByteLock(const ByteLock&) = delete;
    ByteLock& operator=(const ByteLock&) = delete;
    ~ByteLock() { release(); }

    /// Locks `byte` of the file `path`. Returns false if another process holds it.
    [[nodiscard]] bool take(const std::string& path, off_t byte) {
        const std::scoped_lock guard(registry().mutex);  // no fork between opening and registering
        File file(path, O_RDWR);
        struct flock range = span(byte);
        if (fcntl(file.descriptor(), F_OFD_SETLK, &range) != 0) return false;
        descriptor_ = file.give();
        registry().locks.insert(this);
        return true;
    }

    void release() {
        const std::scoped_lock guard(registry().mutex);
        registry().locks.erase(this);
        drop();
    }

    /// True in a child process forked after the lock was taken.
    [[nodiscard]] bool orphaned() const { return orphaned_.load(std::memory_order_relaxed); }

    /// Whether the lock is on this open file, and not on a file that replaced it.
    [[nodiscard]] bool on(int descriptor) const {
        struct stat mine {}, theirs {};
        return fstat(descriptor_, &mine) == 0 && fstat(descriptor, &theirs) == 0 && mine.st_ino == theirs.st_ino &&
               mine.st_dev == theirs.st_dev;
    }

    /// Whether another open file description holds `byte`.
    [[nodiscard]] static bool held(int descriptor, off_t byte) {
        struct flock range = span(byte);
        return fcntl(descriptor, F_OFD_GETLK, &range) == 0 && range.l_type != F_UNLCK;
    }

private:
    struct Registry {
        std::mutex mutex;
        std::set<ByteLock*> locks;
    };

    static Registry& registry() {
        static Registry instance;
        return instance;
    }

    static struct flock span(off_t byte) {
        struct flock range {};
        range.l_type = F_WRLCK;
        range.l_whence = SEEK_SET;
        range.l_start = byte;
        range.l_len = 1;
        return range;
    }

    void drop() {
        if (descriptor_ >= 0) close(descriptor_);
        descriptor_ = -1;
    }

    static void watch_forks() {
        static const int once = pthread_atfork(
            [] { registry().mutex.lock(); }, [] { registry().mutex.unlock(); },
            [] {
                for (ByteLock* lock : registry().locks) {
                    lock->drop();
                    lock->orphaned_.store(true, std::memory_order_relaxed);
                }
                registry().locks.clear();
                registry().mutex.unlock();
            });
        static_cast<void>(once);
    }

    int descriptor_ = -1;
    std::atomic<bool> orphaned_{false};
};

}  // namespace asysi
