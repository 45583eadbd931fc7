// Placement of a ring's memory on NUMA nodes and huge pages: requests it, and reports the actual placement.
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

/// Number of NUMA nodes of the machine; 1 if unknown.
inline int nodes() {
    int count = 0;
    std::error_code none;
    for (const auto& entry : std::filesystem::directory_iterator("/sys/devices/system/node", none)) {
        const auto name = entry.path().filename().string();
        count += name.starts_with("node") && name.find_first_not_of("0123456789", 4) == std::string::npos ? 1 : 0;
    }
    return count > 0 ? count : 1;
}

/// NUMA node of the current CPU; 0 if unknown.
inline int here() {
    unsigned processor = 0, node = 0;
    return syscall(SYS_getcpu, &processor, &node, nullptr) == 0 ? static_cast<int>(node) : 0;
}

/// Whether huge pages of shared memory are available on request.
inline bool huge_on_request() {
    const auto text = text_of("/sys/kernel/mm/transparent_hugepage/shmem_enabled").value_or("");
    return text.find("[advise]") != std::string::npos;
}

/// Requests a node, and huge pages, before the first page of a file is allocated. Without `node`, requests the current
/// CPU's node on a machine with several. Throws if an explicit `node` is not available; everything else is best effort.
inline void place(const File& file, std::size_t bytes, const std::string& path, std::optional<int> node) {
    const bool huge = huge_on_request();
    if (!node && !huge && nodes() < 2) return;
    if (ftruncate(file.descriptor(), static_cast<off_t>(bytes)) != 0) fail(errno, "cannot size", path);
    void* const base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.descriptor(), 0);
    if (base == MAP_FAILED) fail(errno, "cannot map", path);
    int refused = 0;
    if (node || nodes() > 1) {
        constexpr int prefer = 1;  // MPOL_PREFERRED: a full node must not get processes killed
        unsigned long mask[16]{};
        const auto wanted = static_cast<unsigned>(node ? *node : here());
        constexpr unsigned bits = sizeof mask[0] * 8;
        refused = wanted >= std::size(mask) * bits ? EINVAL : 0;
        if (refused == 0) mask[wanted / bits] |= 1UL << (wanted % bits);
        if (refused == 0 && syscall(SYS_mbind, base, bytes, prefer, mask, std::size(mask) * bits, 0) != 0) refused = errno;
    }
    if (huge && madvise(base, bytes, MADV_HUGEPAGE) == 0) {
        static_cast<void>(madvise(base, bytes, MADV_POPULATE_WRITE));  // on failure, allocation uses small pages or fails
    }
    munmap(base, bytes);
    if (node && refused != 0) fail(refused, "NUMA node " + std::to_string(*node) + " cannot be used for", path);
}

/// Number of pages per node, of at most 64 sampled across the mapping; empty if unknown.
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

/// State of a mapping in this process, as reported by the kernel.
struct Obtained {
    std::uint64_t bytes = 0;
    std::optional<std::uint64_t> resident;  // mapped in this process: accessing them causes no page fault
    std::optional<std::uint64_t> huge;      // of these, bytes in huge pages
    std::optional<std::uint64_t> locked;
    std::optional<std::uint64_t> page_bytes;
    Populated populated = Populated::no;
    std::map<int, int> nodes;     // sampled pages by node
};

/// Adds what smaps reports of the mappings within [first, first + bytes). What a kernel does not report stays unknown: some have
/// no smaps, some omit lines, and 0 would mean that nothing is mapped. `root` is put before the path, for tests.
inline void read_smaps(Obtained& facts, std::uintptr_t first, std::size_t bytes, const std::string& root = {}) {
    const auto maps = text_of(root + "/proc/self/smaps").value_or("");
    const auto add = [](std::optional<std::uint64_t>& sum, std::uint64_t more) { sum = sum.value_or(0) + more; };
    bool inside = false;
    for (std::string_view rest = maps; !rest.empty();) {
        const auto line = next_line(rest);
        const auto name = line.substr(0, line.find(' '));
        if (!name.ends_with(':')) {
            const auto begin = number_in(name, 16).value_or(0);
            inside = begin >= first && begin < first + bytes;
            continue;
        }
        const auto value = number_in(line.substr(name.size()));
        if (!inside || !value) continue;
        const auto number = *value;
        if (name == "Rss:") add(facts.resident, number * 1024);
        if (name == "ShmemPmdMapped:" || name == "FilePmdMapped:") add(facts.huge, number * 1024);
        if (name == "Locked:") add(facts.locked, number * 1024);
        if (name == "KernelPageSize:") facts.page_bytes = number * 1024;
    }
}

inline Obtained obtained(const Mapping& mapping) {
    Obtained facts;
    facts.bytes = mapping.bytes();
    facts.populated = mapping.populated();
    facts.nodes = nodes_of(mapping.base(), mapping.bytes());
    read_smaps(facts, reinterpret_cast<std::uintptr_t>(mapping.base()), mapping.bytes());
    return facts;
}

/// State of a ring's data file in the file system.
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
    // Only access allocated bytes: the rest of a truncated file would raise SIGBUS.
    if (all.bytes == 0 || all.allocated < all.bytes) return all;
    void* const base = mmap(nullptr, all.bytes, PROT_READ, MAP_SHARED, file.descriptor(), 0);
    if (base == MAP_FAILED) return all;
    all.nodes = nodes_of(static_cast<const std::byte*>(base), all.bytes);
    munmap(base, all.bytes);
    return all;
}

}  // namespace asysi::topology
