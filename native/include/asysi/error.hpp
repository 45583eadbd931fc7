// What can go wrong with a ring, each with a sentence that names the thing.
#pragma once

#include <cerrno>
#include <stdexcept>
#include <string>
#include <system_error>

namespace asysi {

struct RingError : std::runtime_error {
    using std::runtime_error::runtime_error;
};
/// The geometry contradicts itself, or another one stands there.
struct GeometryError : RingError {
    using RingError::RingError;
};
/// A file of the ring is shorter than its geometry asks for: somebody cut it off.
struct TruncatedError : GeometryError {
    using GeometryError::GeometryError;
};
/// Magic, ABI or size of the headers do not fit.
struct VersionError : RingError {
    using RingError::RingError;
};
/// The ring was written by a machine of another byte order.
struct EndianError : VersionError {
    using VersionError::VersionError;
};
/// The file system or the memory limit cannot hold the ring.
struct SpaceError : RingError {
    using RingError::RingError;
};
/// A lock is held by somebody alive, or a claim of the shard is open.
struct BusyError : RingError {
    using RingError::RingError;
};
/// The pin of a view was taken away: its bytes may be another packet's.
struct RevokedError : RingError {
    using RingError::RingError;
};
/// Nothing could be claimed; the rows are booked as dropped. Thrown where a claim must have an answer.
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
