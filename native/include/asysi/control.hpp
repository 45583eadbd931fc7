// Read-only access to a ring, without attaching as producer or reader.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "asysi/ring.hpp"
#include "asysi/seat.hpp"

namespace asysi {

class Control {
public:
    explicit Control(const std::string& folder) { ring_.emplace(folder, Ring::Role::look); }

    [[nodiscard]] const Ring& ring() const {
        if (!ring_) throw ClosedError("the control of this ring is closed");
        return *ring_;
    }

    [[nodiscard]] std::string writer_state() {
        switch (static_cast<WriterState>(ring().live().writer_state.load(std::memory_order_acquire))) {
            case WriterState::absent: return "absent";
            case WriterState::complete: return "complete";
            case WriterState::attempt_over: return "attempt_over";
            default: return ByteLock::held(ring_->file().descriptor(), 0) ? "attached" : "gone";
        }
    }

    [[nodiscard]] std::string reader_state(const std::string& name) {
        const u32 index = ring().reader_index(name);
        switch (static_cast<ReaderState>(ring().reader(index).state.load(std::memory_order_acquire))) {
            case ReaderState::absent: return "absent";
            case ReaderState::finalised: return "finalised";
            case ReaderState::checkpointed: return "checkpointed";
            default: return ByteLock::held(ring_->file().descriptor(), 1 + static_cast<off_t>(index)) ? "attached" : "gone";
        }
    }

    [[nodiscard]] std::atomic<u64>& word(i64 index) const {
        if (index >= 0 && index < mailbox_words) return ring().live().mailbox[static_cast<std::size_t>(index)];
        throw std::invalid_argument("mailbox word " + std::to_string(index) + " is not within 0 to 63");
    }

    void close() { ring_.reset(); }

private:
    std::optional<Ring> ring_;
};

/// Empties a ring without attached processes, keeping its geometry: counters, cursors, names and mailbox are deleted.
///
/// The new control file replaces the old one by a rename, so that a kill leaves either the old or the new one. Holds all
/// seats while resetting; throws BusyError if a live process holds one.
inline Geometry reset(const std::string& folder, std::chrono::nanoseconds patience = std::chrono::seconds(30)) {
    const std::string control = control_path(folder);
    const creation::FolderLock lock(folder, patience);
    const File old(control, O_RDWR);
    const Geometry geometry = read_geometry(old, control);
    std::vector<std::unique_ptr<Seat>> seats;
    seats.push_back(std::make_unique<Seat>(old, control, 0, "the producer of the ring in " + folder, std::chrono::nanoseconds{}));
    for (u32 i = 0; i < geometry.reader_count(); ++i) {
        seats.push_back(std::make_unique<Seat>(old, control, 1 + static_cast<off_t>(i),
                                               "reader " + geometry.readers[i] + " of the ring in " + folder, std::chrono::nanoseconds{}));
    }
    unlink((control + ".new").c_str());
    const File fresh = creation::allocate(control + ".new", Sections(geometry).control_bytes, folder, std::nullopt);
    ASYSI_TESTPOINT("reset.control.allocated");
    creation::write_header(fresh, geometry, control);
    ASYSI_TESTPOINT("reset.header.written");
    creation::move(control + ".new", control);
    ASYSI_TESTPOINT("reset.control.renamed");
    return geometry;
}

}  // namespace asysi
