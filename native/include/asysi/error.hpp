// Errors of a ring, each with a message that names the affected object.
#pragma once

#include <cerrno>
#include <stdexcept>
#include <string>
#include <system_error>

namespace asysi {

struct RingError : std::runtime_error {
    using std::runtime_error::runtime_error;
};
/// The geometry is invalid, or differs from that of an existing ring.
struct GeometryError : RingError {
    using RingError::RingError;
};
/// A file of the ring is shorter than required by its geometry, so it was truncated.
struct TruncatedError : GeometryError {
    using GeometryError::GeometryError;
};
/// Magic, ABI or size of the headers do not match.
struct VersionError : RingError {
    using RingError::RingError;
};
/// The ring was written by a machine with another byte order.
struct EndianError : VersionError {
    using VersionError::VersionError;
};
/// The file system or the memory limit is too small for the ring.
struct SpaceError : RingError {
    using RingError::RingError;
};
/// A lock is held by a live process, or a claim of the shard is open.
struct BusyError : RingError {
    using RingError::RingError;
};
/// The pin of a view was revoked: its bytes may belong to another packet.
struct RevokedError : RingError {
    using RingError::RingError;
};
/// No chunk could be claimed; the rows count as dropped. Thrown by claims that cannot return an empty result.
struct FullError : RingError {
    using RingError::RingError;
};
/// Used after close(), or in a forked child.
struct ClosedError : RingError {
    using RingError::RingError;
};

/// Throws the system error `number` for `path`.
[[noreturn]] inline void fail(int number, const std::string& what, const std::string& path) {
    throw std::system_error(number, std::generic_category(), what + " " + path);
}

}  // namespace asysi
