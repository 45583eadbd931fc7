// A ring's files, usually in a memory file system: creating them, and attaching to them.
#pragma once

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include <sys/file.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>

#include "asysi/kernel_files.hpp"
#include "asysi/layout.hpp"
#include "asysi/mapping.hpp"
#include "asysi/topology.hpp"

namespace asysi {

inline std::string control_path(const std::string& folder) { return folder + "/control"; }
inline std::string data_path(const std::string& folder) { return folder + "/data"; }

/// The header of the control file for `geometry`.
inline ControlHeader header_of(const Geometry& g) {
    const Sections at(g);
    ControlHeader h{};
    h.magic = control_magic;
    h.major = abi_major;
    h.minor = abi_minor;
    h.endian = endian_tag;
    h.control_header_bytes = sizeof(ControlHeader);
    h.packet_header_bytes = header_bytes;
    h.shards = g.shards;
    h.chunks = g.chunks;
    h.readers = g.reader_count();
    h.accounts = g.accounts;
    h.pins = g.pins;
    h.policy = static_cast<u32>(g.policy);
    h.chunk_bytes = g.chunk_bytes;
    h.control_bytes = at.control_bytes;
    h.data_bytes = at.data_bytes;
    h.live_at = at.live;
    h.shards_at = at.shards;
    h.readers_at = at.readers;
    h.cursors_at = at.cursors;
    h.accounts_at = at.accounts;
    h.books_at = at.books;
    h.slots_at = at.slots;
    h.states_at = at.states;
    for (std::size_t i = 0; i < g.readers.size(); ++i) {
        std::memcpy(h.reader_names[i], g.readers[i].data(), g.readers[i].size());
    }
    return h;
}

/// Copies and validates the header of an open control file. Throws VersionError or GeometryError.
inline Geometry read_geometry(const File& control, const std::string& path) {
    const auto refuse = [&](const std::string& found, const std::string& wanted) {
        throw VersionError(path + " holds " + found + ", this build reads " + wanted +
                           ": every worker of an experiment needs the same build");
    };
    ControlHeader h{};
    const std::size_t bytes = control.bytes();
    if (bytes < sizeof h || pread(control.descriptor(), &h, sizeof h, 0) != static_cast<ssize_t>(sizeof h)) {
        throw TruncatedError(path + " has " + std::to_string(bytes) + " bytes, a control file has at least " +
                             std::to_string(sizeof h));
    }
    const auto hex = [](u64 value) {
        char text[24];
        std::snprintf(text, sizeof text, "%#llx", static_cast<unsigned long long>(value));
        return std::string(text);
    };
    const bool swapped = h.magic == __builtin_bswap64(control_magic);
    if (h.magic != control_magic && !swapped) {
        throw VersionError(path + " is not a control file of a ring: it begins with the magic " + hex(h.magic) + ", not with " +
                           hex(control_magic));
    }
    if (swapped || h.endian != endian_tag) {
        throw EndianError(path + " was written in another byte order (" + hex(h.endian) + "), this machine's is " +
                          hex(endian_tag) + ": a ring does not leave its machine");
    }
    if (h.major != abi_major || h.minor > abi_minor) {
        refuse("version " + std::to_string(h.major) + "." + std::to_string(h.minor),
               "version " + std::to_string(abi_major) + "." + std::to_string(abi_minor));
    }
    if (h.control_header_bytes != sizeof h || h.packet_header_bytes != header_bytes) {
        refuse("headers of " + std::to_string(h.control_header_bytes) + " and " + std::to_string(h.packet_header_bytes) +
                   " bytes",
               std::to_string(sizeof h) + " and " + std::to_string(header_bytes));
    }
    Geometry g{h.shards, h.chunks, h.chunk_bytes, h.accounts, h.pins, static_cast<Policy>(h.policy), {}};
    if (h.policy > 1 || h.readers > max_readers) throw GeometryError(path + " holds an impossible policy or number of readers");
    for (u32 i = 0; i < h.readers; ++i) {
        g.readers.emplace_back(h.reader_names[i], strnlen(h.reader_names[i], reader_name_bytes));
    }
    check(g);
    const ControlHeader expected = header_of(g);
    if (bytes < expected.control_bytes && h.control_bytes == expected.control_bytes) {
        throw TruncatedError(path + " has " + std::to_string(bytes) + " bytes, its geometry (" + describe(g) + ") asks for " +
                             std::to_string(expected.control_bytes));
    }
    if (h.control_bytes != expected.control_bytes || h.data_bytes != expected.data_bytes || bytes != h.control_bytes) {
        throw GeometryError(path + " has " + std::to_string(bytes) + " bytes, its geometry (" + describe(g) + ") asks for " +
                            std::to_string(expected.control_bytes));
    }
    return g;
}

/// An attached ring: the control file is mapped writable, the data as required by the role.
class Ring {
public:
    enum class Role { writer, reader, look };

    Ring(const std::string& folder, Role role) : folder_(folder), file_(control_path(folder), O_RDWR) {
        geometry_ = read_geometry(file_, control_path(folder));
        const Sections at(geometry_);
        at_ = at;
        control_ = Mapping(file_, at.control_bytes, true, control_path(folder));
        if (role == Role::look) return;
        const bool writes = role == Role::writer;
        const File data(data_path(folder), writes ? O_RDWR : O_RDONLY);
        data_ = Mapping(data, at.data_bytes, writes, data_path(folder));
    }

    [[nodiscard]] const std::string& folder() const { return folder_; }
    [[nodiscard]] const Geometry& geometry() const { return geometry_; }
    [[nodiscard]] const File& file() const { return file_; }
    [[nodiscard]] const Mapping& data() const { return data_; }

    [[nodiscard]] Live& live() const { return *at<Live>(at_.live); }
    [[nodiscard]] ShardEntry& shard(u32 i) const { return at<ShardEntry>(at_.shards)[i]; }
    [[nodiscard]] ReaderEntry& reader(u32 i) const { return at<ReaderEntry>(at_.readers)[i]; }
    [[nodiscard]] AccountEntry& account(u32 i) const { return at<AccountEntry>(at_.accounts)[i]; }
    [[nodiscard]] std::atomic<u64>& cursor(u32 reader, u32 shard) const {
        return at<std::atomic<u64>>(at_.cursors + reader * Sections::cursor_stride(geometry_))[shard];
    }
    [[nodiscard]] BookEntry& book(u32 reader, u32 account) const {
        return at<BookEntry>(at_.books)[u64{reader} * geometry_.accounts + account];
    }
    [[nodiscard]] std::atomic<u64>& slot(u32 shard, u64 sequence) const {
        return at<std::atomic<u64>>(at_.slots)[u64{shard} * geometry_.chunks + (sequence - 1) % geometry_.chunks];
    }
    [[nodiscard]] std::atomic<u64>& state(u32 shard, u32 chunk) const {
        return at<ChunkState>(at_.states)[u64{shard} * geometry_.chunks + chunk].word;
    }
    [[nodiscard]] ClaimRecord& claim(u32 shard, u32 chunk) const {
        return at<ChunkState>(at_.states)[u64{shard} * geometry_.chunks + chunk].claim;
    }
    [[nodiscard]] std::byte* chunk(u32 shard, u32 chunk) const {
        return data_.base() + (u64{shard} * geometry_.chunks + chunk) * geometry_.chunk_bytes;
    }

    /// Number of registered accounts, clamped to the capacity of the file.
    [[nodiscard]] u32 accounts() const {
        const u32 count = live().accounts.load(std::memory_order_acquire);
        return count < geometry_.accounts ? count : geometry_.accounts;
    }
    [[nodiscard]] std::string account_name(u32 i) const {
        const char* const name = account(i).name;
        return std::string(name, strnlen(name, account_name_bytes));
    }
    /// Index of a reader; throws std::invalid_argument for a name that was not given at creation.
    [[nodiscard]] u32 reader_index(const std::string& name) const {
        std::string known;
        for (u32 i = 0; i < geometry_.reader_count(); ++i) {
            if (geometry_.readers[i] == name) return i;
            known += (i == 0 ? "" : ", ") + geometry_.readers[i];
        }
        throw std::invalid_argument("the ring in " + folder_ + " has no reader " + name + "; it was created for: " + known);
    }
    /// Packets of a shard that a reader has not consumed; 0 for a cursor beyond the head.
    [[nodiscard]] u64 unread(u32 reader, u32 shard_, u64 head) const {
        const u64 at_packet = cursor(reader, shard_).load(std::memory_order_acquire);
        return at_packet < head ? head - at_packet : 0;
    }
    [[nodiscard]] double lag(u32 reader) const {
        double most = 0;
        for (u32 s = 0; s < geometry_.shards; ++s) {
            const u64 waiting = unread(reader, s, shard(s).head.load(std::memory_order_acquire));
            const double share = static_cast<double>(waiting) / geometry_.depth();
            most = share > most ? share : most;
        }
        return most < 1 ? most : 1;
    }

private:
    template <typename T>
    [[nodiscard]] T* at(u64 offset) const {
        return reinterpret_cast<T*>(control_.base() + offset);
    }

    std::string folder_;
    File file_;
    Geometry geometry_;
    Sections at_{Geometry{.shards = 1, .chunks = 1, .chunk_bytes = 64, .accounts = 1, .pins = 1, .readers = {}}};
    Mapping control_;
    Mapping data_;
};

namespace creation {

/// Locks the folder for one creator at a time.
class FolderLock {
public:
    FolderLock(const std::string& folder, std::chrono::nanoseconds patience) : file_(folder, O_RDONLY | O_DIRECTORY) {
        const auto deadline = std::chrono::steady_clock::now() + patience;
        while (flock(file_.descriptor(), LOCK_EX | LOCK_NB) != 0) {
            if (errno != EWOULDBLOCK && errno != EINTR) fail(errno, "cannot lock", folder);
            if (std::chrono::steady_clock::now() > deadline) {
                throw BusyError("another process creates or resets the ring in " + folder + ", and was not done in time");
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
    }

private:
    File file_;
};

inline bool in_memory(const std::string& folder) {
    struct statfs facts {};
    constexpr long tmpfs = 0x01021994;
    return statfs(folder.c_str(), &facts) == 0 && facts.f_type == tmpfs;
}

inline void expect_room(const std::string& folder, u64 needed) {
    struct statvfs facts {};
    if (statvfs(folder.c_str(), &facts) == 0) {
        const u64 available = u64{facts.f_bavail} * facts.f_frsize;
        if (facts.f_blocks != 0 && available < needed) {
            throw SpaceError("the ring needs " + std::to_string(needed) + " bytes, the file system of " + folder + " has " +
                             std::to_string(available) + " bytes available");
        }
    }
    if (const auto limit = memory_limit(); in_memory(folder) && limit.bytes < needed) {
        throw SpaceError("the ring needs " + std::to_string(needed) + " bytes of memory, the memory limit is " +
                         std::to_string(limit.bytes) + " bytes (" + limit.file + ")");
    }
}

/// Creates a file of `bytes` zeros, fully allocated, so that writing to it can never raise SIGBUS.
inline File allocate(const std::string& path, u64 bytes, const std::string& folder, std::optional<int> node) {
    File file(path, O_RDWR | O_CREAT | O_TRUNC, 0660);
    topology::place(file, bytes, path, node);
    int error = EINTR;
    while (error == EINTR) error = posix_fallocate(file.descriptor(), 0, static_cast<off_t>(bytes));
    if (error == 0) return file;
    unlink(path.c_str());
    if (error != ENOSPC && error != EDQUOT && error != ENOMEM) fail(error, "cannot allocate", path);
    struct statvfs facts {};
    statvfs(folder.c_str(), &facts);
    throw SpaceError("the ring needs " + std::to_string(bytes) + " bytes for " + path + ", the file system has " +
                     std::to_string(u64{facts.f_bavail} * facts.f_frsize) + " bytes available");
}

inline void write_header(const File& file, const Geometry& geometry, const std::string& path) {
    const ControlHeader header = header_of(geometry);
    if (pwrite(file.descriptor(), &header, sizeof header, 0) != static_cast<ssize_t>(sizeof header)) {
        fail(errno, "cannot write", path);
    }
}

inline void move(const std::string& from, const std::string& to) {
    if (rename(from.c_str(), to.c_str()) != 0) fail(errno, "cannot rename " + from + " to", to);
}

}  // namespace creation

/// Creates the ring; returns false if an identical one already exists.
///
/// The control file is created last, by a rename, so a visible ring is complete.
/// `patience`: how long to wait for another process that creates it; `node`: NUMA node of the data, by default the
/// creator's.
inline bool create(const std::string& folder, const Geometry& geometry, std::chrono::nanoseconds patience = std::chrono::seconds(30),
                   std::optional<int> node = std::nullopt) {
    check(geometry);
    std::filesystem::create_directories(folder);
    ASYSI_TESTPOINT("create.folder.made");
    const creation::FolderLock lock(folder, patience);
    ASYSI_TESTPOINT("create.folder.locked");
    const std::string control = control_path(folder);
    const std::string data = data_path(folder);
    if (std::filesystem::exists(control)) {
        const Geometry there = read_geometry(File(control, O_RDONLY), control);
        if (there == geometry) return false;
        throw GeometryError("a different ring exists in " + folder + ": it has " + describe(there) + ", wanted was " +
                            describe(geometry) + "; remove the folder or use the same geometry");
    }
    const Sections at(geometry);
    for (const auto& left : {control + ".new", data + ".new", data}) unlink(left.c_str());
    ASYSI_TESTPOINT("create.leftovers.removed");
    creation::expect_room(folder, at.control_bytes + at.data_bytes);
    try {
        const File data_file = creation::allocate(data + ".new", at.data_bytes, folder, node);
        ASYSI_TESTPOINT("create.data.allocated");
        const File control_file = creation::allocate(control + ".new", at.control_bytes, folder, node);
        ASYSI_TESTPOINT("create.control.allocated");
        creation::write_header(control_file, geometry, control);
        ASYSI_TESTPOINT("create.header.written");
        creation::move(data + ".new", data);
        ASYSI_TESTPOINT("create.data.renamed");
        creation::move(control + ".new", control);
        ASYSI_TESTPOINT("create.control.renamed");
    } catch (...) {
        for (const auto& left : {control + ".new", data + ".new", data}) unlink(left.c_str());
        ASYSI_TESTPOINT("create.failure.removed");
        throw;
    }
    return true;
}

}  // namespace asysi
