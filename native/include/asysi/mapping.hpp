// Files and memory mappings.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "asysi/error.hpp"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

namespace asysi {

/// An open file with RAII, closed on exec.
class File {
public:
    File(const std::string& path, int flags, mode_t mode = 0) : descriptor_(open(path.c_str(), flags | O_CLOEXEC, mode)) {
        if (descriptor_ < 0) fail(errno, "cannot open", path);
    }
    File(File&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
    File& operator=(File&&) = delete;
    ~File() {
        if (descriptor_ >= 0) close(descriptor_);
    }

    [[nodiscard]] int descriptor() const { return descriptor_; }
    [[nodiscard]] int give() { return std::exchange(descriptor_, -1); }
    [[nodiscard]] std::size_t bytes() const {
        struct stat facts {};
        return fstat(descriptor_, &facts) == 0 ? static_cast<std::size_t>(facts.st_size) : 0;
    }

private:
    int descriptor_;
};

/// How the pages of a mapping were populated.
enum class Populated : unsigned { no = 0, advised = 1, touched = 2 };

/// A file mapped to shared memory, populated in advance to avoid later page faults.
class Mapping {
public:
    Mapping() = default;
    /// Throws TruncatedError if the file is too short: accessing the missing pages would raise SIGBUS.
    Mapping(const File& file, std::size_t bytes, bool writable, const std::string& path) : bytes_(bytes) {
        expect_bytes(file, path);
        const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
        void* const at = mmap(nullptr, bytes, protection, MAP_SHARED, file.descriptor(), 0);
        if (at == MAP_FAILED) fail(errno, "cannot map", path);
        base_ = static_cast<std::byte*>(at);
        populated_ = populate(file, writable, path);
    }
    Mapping(Mapping&& other) noexcept
        : base_(std::exchange(other.base_, nullptr)), bytes_(std::exchange(other.bytes_, 0)), populated_(other.populated_) {}
    Mapping& operator=(Mapping&& other) noexcept {
        std::swap(base_, other.base_);
        std::swap(bytes_, other.bytes_);
        std::swap(populated_, other.populated_);
        return *this;
    }
    ~Mapping() {
        if (base_ != nullptr) munmap(base_, bytes_);
    }

    [[nodiscard]] std::byte* base() const { return base_; }
    [[nodiscard]] std::size_t bytes() const { return bytes_; }
    [[nodiscard]] Populated populated() const { return populated_; }

private:
    void expect_bytes(const File& file, const std::string& path) const {
        if (const std::size_t there = file.bytes(); there < bytes_) {
            throw TruncatedError(path + " has " + std::to_string(there) + " bytes, its geometry asks for " +
                                 std::to_string(bytes_) + ": it was truncated; create the ring again");
        }
    }

    Populated populate(const File& file, bool writable, const std::string& path) {
        for (int attempt = 0; attempt < 100; ++attempt) {
            if (madvise(base_, bytes_, writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) == 0) return Populated::advised;
            if (errno != EINTR && errno != EAGAIN) break;
        }
        const int error = errno;
        const auto give_up = [&] { munmap(std::exchange(base_, nullptr), bytes_); };
        if (error == ENOMEM) {
            give_up();
            throw SpaceError("the " + std::to_string(bytes_) + " bytes of " + path + " cannot be brought into memory");
        }
        // EFAULT corresponds to SIGBUS: the file was truncated after its size was checked.
        if (error == EFAULT) {
            give_up();
            expect_bytes(file, path);
            throw SpaceError(path + " has pages that its file system has no room for");
        }
        // Kernels before 5.14: only read the bytes, since other processes may be writing to them.
        for (std::size_t at = 0; at < bytes_; at += 4096) {
            static_cast<void>(*static_cast<volatile const std::byte*>(base_ + at));
        }
        return Populated::touched;
    }

    std::byte* base_ = nullptr;
    std::size_t bytes_ = 0;
    Populated populated_ = Populated::no;
};

}  // namespace asysi
