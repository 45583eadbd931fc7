// Linked with --wrap=mmap,--wrap=munmap: each shared mapping gets a page before and behind it that nobody may touch, so
// that reading or writing one byte outside kills the process.
#pragma once

#include <map>
#include <mutex>

#include <sys/mman.h>

namespace asysi::test {
inline std::mutex guard_mutex;
inline std::map<void*, std::size_t> guarded;
inline constexpr std::size_t guard_bytes = 4096;
}  // namespace asysi::test

extern "C" {
void* __real_mmap(void*, std::size_t, int, int, int, off_t);
int __real_munmap(void*, std::size_t);

void* __wrap_mmap(void* at, std::size_t bytes, int protection, int flags, int descriptor, off_t offset) {
    using namespace asysi::test;
    if (at != nullptr || descriptor < 0) return __real_mmap(at, bytes, protection, flags, descriptor, offset);
    const std::size_t whole = (bytes + 4095) / 4096 * 4096 + 2 * guard_bytes;
    void* const room = __real_mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED) return MAP_FAILED;
    void* const inside = static_cast<char*>(room) + guard_bytes;
    if (__real_mmap(inside, bytes, protection, flags | MAP_FIXED, descriptor, offset) == MAP_FAILED) {
        __real_munmap(room, whole);
        return MAP_FAILED;
    }
    const std::scoped_lock turn(guard_mutex);
    guarded[inside] = whole;
    return inside;
}

int __wrap_munmap(void* base, std::size_t bytes) {
    using namespace asysi::test;
    const std::scoped_lock turn(guard_mutex);
    const auto found = guarded.find(base);
    if (found == guarded.end()) return __real_munmap(base, bytes);
    const std::size_t whole = found->second;
    guarded.erase(found);
    return __real_munmap(static_cast<char*>(base) - guard_bytes, whole);
}
}
