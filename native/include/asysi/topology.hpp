// Where the memory of a ring lies: asked for where the machine has a choice, and reported as it turned out.
#pragma once

#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "asysi/kernel_files.hpp"
#include "asysi/mapping.hpp"

namespace asysi::topology {

/// NUMA nodes of the machine, 1 when the system does not say.
inline int nodes() {
    int count = 0;
    std::error_code none;
    for (const auto& entry : std::filesystem::directory_iterator("/sys/devices/system/node", none)) {
        const auto name = entry.path().filename().string();
        count += name.starts_with("node") && name.find_first_not_of("0123456789", 4) == std::string::npos ? 1 : 0;
    }
    return count > 0 ? count : 1;
}

/// Node of the processor that runs this, 0 when the system does not say.
inline int here() {
    unsigned processor = 0, node = 0;
    return syscall(SYS_getcpu, &processor, &node, nullptr) == 0 ? static_cast<int>(node) : 0;
}

/// Whether huge pages of shared memory are there for those who ask.
inline bool huge_on_request() {
    const auto text = text_of("/sys/kernel/mm/transparent_hugepage/shmem_enabled").value_or("");
    return text.find("[advise]") != std::string::npos;
}

/// Asks for a node, and for huge pages, before the first page of a file is there. Without `node`: that of this processor,
/// on a machine with several. Throws when `node` was named and cannot be had; everything else is only a wish.
inline void place(const File& file, std::size_t bytes, const std::string& path, std::optional<int> node) {
    const bool huge = huge_on_request();
    if (!node && !huge && nodes() < 2) return;
    if (ftruncate(file.descriptor(), static_cast<off_t>(bytes)) != 0) fail(errno, "cannot size", path);
    void* const base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.descriptor(), 0);
    if (base == MAP_FAILED) fail(errno, "cannot map", path);
    int refused = 0;
    if (node || nodes() > 1) {
        constexpr int prefer = 1;  // MPOL_PREFERRED: a node that is full must not kill anybody
        unsigned long mask[16]{};
        const auto wanted = static_cast<unsigned>(node ? *node : here());
        constexpr unsigned bits = sizeof mask[0] * 8;
        refused = wanted >= std::size(mask) * bits ? EINVAL : 0;
        if (refused == 0) mask[wanted / bits] |= 1UL << (wanted % bits);
        if (refused == 0 && syscall(SYS_mbind, base, bytes, prefer, mask, std::size(mask) * bits, 0) != 0) refused = errno;
    }
    if (huge && madvise(base, bytes, MADV_HUGEPAGE) == 0) {
        static_cast<void>(madvise(base, bytes, MADV_POPULATE_WRITE));  // what fails is allocated as small pages, or refused
    }
    munmap(base, bytes);
    if (node && refused != 0) fail(refused, "NUMA node " + std::to_string(*node) + " cannot be had for", path);
}

/// Pages of each node, of at most 64 spread over the mapping; empty when the system does not say.
inline std::map<int, int> nodes_of(const std::byte* base, std::size_t bytes) {
    constexpr std::size_t most = 64, page = 4096;
    const std::size_t pages = bytes / page, count = pages < most ? pages : most;
    std::vector<void*> at;
    for (std::size_t i = 0; i < count; ++i) {
        const auto* const sample = base + pages / count * i * page;
        static_cast<void>(*static_cast<const volatile std::byte*>(sample));
        at.push_back(const_cast<std::byte*>(sample));
    }
    std::vector<int> status(count, -1);
    std::map<int, int> found;
    if (syscall(SYS_move_pages, 0, count, at.data(), nullptr, status.data(), 0) != 0) return found;
    for (const int node : status) {
        if (node >= 0) ++found[node];
    }
    return found;
}

/// What this process has of a mapping, as the kernel tells.
struct Obtained {
    std::uint64_t bytes = 0;
    std::uint64_t resident = 0;   // mapped here: touching them raises no page fault
    std::uint64_t huge = 0;       // of these, in huge pages
    std::uint64_t locked = 0;
    std::uint64_t page_bytes = 0;
    Populated populated = Populated::no;
    std::map<int, int> nodes;     // pages of a sample, by node
};

inline Obtained obtained(const Mapping& mapping) {
    Obtained facts{.bytes = mapping.bytes(), .populated = mapping.populated(), .nodes = nodes_of(mapping.base(), mapping.bytes())};
    const auto first = reinterpret_cast<std::uintptr_t>(mapping.base());
    const auto maps = text_of("/proc/self/smaps").value_or("");
    bool inside = false;
    for (std::string_view rest = maps; !rest.empty();) {
        const auto line = next_line(rest);
        const auto name = line.substr(0, line.find(' '));
        if (!name.ends_with(':')) {
            const auto begin = number_in(name, 16).value_or(0);
            inside = begin >= first && begin < first + mapping.bytes();
            continue;
        }
        const auto value = number_in(line.substr(name.size()));
        if (!inside || !value) continue;
        const auto number = *value;
        if (name == "Rss:") facts.resident += number * 1024;
        if (name == "ShmemPmdMapped:" || name == "FilePmdMapped:") facts.huge += number * 1024;
        if (name == "Locked:") facts.locked += number * 1024;
        if (name == "KernelPageSize:") facts.page_bytes = number * 1024;
    }
    return facts;
}

/// What the file system holds of a ring's data.
struct Stored {
    std::string file_system;
    std::uint64_t bytes = 0;
    std::uint64_t allocated = 0;
    std::uint64_t page_bytes = 0;
    std::map<int, int> nodes;
};

inline Stored stored(const std::string& path) {
    const File file(path, O_RDONLY);
    struct stat facts {};
    struct statfs system {};
    fstat(file.descriptor(), &facts);
    fstatfs(file.descriptor(), &system);
    Stored all;
    all.file_system = system.f_type == 0x01021994 ? "tmpfs" : system.f_type == 0x958458F6 ? "hugetlbfs" : "other";
    all.bytes = static_cast<std::uint64_t>(facts.st_size);
    all.allocated = static_cast<std::uint64_t>(facts.st_blocks) * 512;
    all.page_bytes = static_cast<std::uint64_t>(system.f_bsize);
    // Only what is allocated may be touched: the rest of a file that was cut off would raise SIGBUS.
    if (all.bytes == 0 || all.allocated < all.bytes) return all;
    void* const base = mmap(nullptr, all.bytes, PROT_READ, MAP_SHARED, file.descriptor(), 0);
    if (base == MAP_FAILED) return all;
    all.nodes = nodes_of(static_cast<const std::byte*>(base), all.bytes);
    munmap(base, all.bytes);
    return all;
}

}  // namespace asysi::topology
