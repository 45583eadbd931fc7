// Looking at a ring without taking part in it.
#pragma once

#include <optional>
#include <string>

#include "asysi/lock.hpp"
#include "asysi/ring.hpp"

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

}  // namespace asysi
