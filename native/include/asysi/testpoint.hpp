// Points at which a test can kill the process: after every step that is visible to other processes.
//
// If compiled with -DASYSI_TESTPOINTS, a test point counts its hits, kills the process (SIGKILL) at the n-th hit given by
// the environment variable ASYSI_TESTPOINT=label:n, and calls `hook` if a test has set one. In release builds, a test point
// only checks at compile time that its label is in the list.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

#ifdef ASYSI_TESTPOINTS
#include <atomic>
#include <charconv>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#endif

namespace asysi::testpoint {

/// All labels in the order of the protocol; the fault tests iterate over all of them.
inline constexpr std::array labels = {
    // create
    std::string_view{"create.folder.made"},
    std::string_view{"create.folder.locked"},
    std::string_view{"create.leftovers.removed"},
    std::string_view{"create.data.allocated"},
    std::string_view{"create.control.allocated"},
    std::string_view{"create.header.written"},
    std::string_view{"create.data.renamed"},
    std::string_view{"create.control.renamed"},
    std::string_view{"create.failure.removed"},
    // reset
    std::string_view{"reset.control.allocated"},
    std::string_view{"reset.header.written"},
    std::string_view{"reset.control.renamed"},
    // a producer attaches
    std::string_view{"writer.lock.taken"},
    std::string_view{"takeover.books.stored"},
    std::string_view{"takeover.source.raised"},
    std::string_view{"takeover.intent.closed"},
    std::string_view{"takeover.claim.booked"},
    std::string_view{"takeover.owed.booked"},
    std::string_view{"takeover.claim.freed"},
    std::string_view{"takeover.stray.unpinned"},
    std::string_view{"takeover.mapping.noted"},
    std::string_view{"takeover.generation.stored"},
    std::string_view{"takeover.state.stored"},
    // a producer publishes
    std::string_view{"writer.account.named"},
    std::string_view{"writer.account.counted"},
    std::string_view{"writer.home.bound"},
    std::string_view{"writer.intent.noted"},
    std::string_view{"writer.intent.opened"},
    std::string_view{"writer.claim.w_set"},
    std::string_view{"writer.claim.noted"},
    std::string_view{"writer.claim.opened"},
    std::string_view{"writer.evict.epoch"},
    std::string_view{"writer.evict.unpinned"},
    std::string_view{"writer.header.written"},
    std::string_view{"writer.records.written"},
    std::string_view{"writer.payload.written"},
    std::string_view{"writer.claim.numbered"},
    std::string_view{"writer.state.published"},
    std::string_view{"writer.slot.stored"},
    std::string_view{"writer.head.stored"},
    std::string_view{"writer.bell.waiters_cleared"},
    std::string_view{"writer.bell.rung"},
    std::string_view{"writer.bell.woken"},
    std::string_view{"books.copy.written"},  // of producer and readers: the copy that is not valid yet
    std::string_view{"writer.books.stored"},
    std::string_view{"writer.source.raised"},
    std::string_view{"writer.claim.closed"},
    std::string_view{"writer.intent.closed"},
    std::string_view{"writer.tombstone.noted"},
    std::string_view{"writer.abort.freed"},
    std::string_view{"writer.close.stated"},
    std::string_view{"writer.lock.released"},
    // a reader
    std::string_view{"reader.lock.taken"},
    std::string_view{"reader.attach.epoch"},
    std::string_view{"reader.attach.mapping_noted"},
    std::string_view{"reader.attach.waiter_cleared"},
    std::string_view{"reader.attach.unpinned"},
    std::string_view{"reader.attach.stated"},
    std::string_view{"reader.pin.set"},
    std::string_view{"reader.pin.cleared"},
    std::string_view{"reader.books.stored"},
    std::string_view{"reader.cursor.stored"},
    std::string_view{"reader.gauge.stored"},
    std::string_view{"reader.wait.waiter_set"},
    std::string_view{"reader.wait.waiter_cleared"},
    std::string_view{"reader.finalise.stated"},
    std::string_view{"reader.lock.released"},
};

/// Index of a label in `labels`; an unknown label is a compile-time error.
consteval std::size_t index(std::string_view label) {
    for (std::size_t i = 0; i < labels.size(); ++i) {
        if (labels[i] == label) return i;
    }
    throw "this label is not in asysi::testpoint::labels";
}

#ifdef ASYSI_TESTPOINTS

inline constexpr bool enabled = true;
inline std::array<std::atomic<std::uint64_t>, labels.size()> hits{};
/// Called at every test point with its label, before a possible kill.
inline void (*hook)(std::string_view label) = nullptr;

/// Label and count from the environment; index `labels.size()` if there are none.
struct Order {
    std::size_t index = labels.size();
    std::uint64_t count = 1;

    Order() {
        const char* const text = std::getenv("ASYSI_TESTPOINT");
        if (text == nullptr) return;
        const std::string_view whole(text);
        const auto colon = whole.rfind(':');
        const auto label = whole.substr(0, colon);
        while (index-- > 0 && labels[index] != label) {
        }
        if (index > labels.size()) std::abort();  // a mistyped label must not look like an unreached test point
        if (colon != std::string_view::npos) std::from_chars(whole.data() + colon + 1, whole.data() + whole.size(), count);
    }
};

inline void reach(std::size_t at) {
    static const Order order;
    const auto times = hits[at].fetch_add(1, std::memory_order_relaxed) + 1;
    if (hook != nullptr) hook(labels[at]);
    if (at == order.index && times == order.count) std::raise(SIGKILL);
}

#define ASYSI_TESTPOINT(label) ::asysi::testpoint::reach(::asysi::testpoint::index(label))
#else
inline constexpr bool enabled = false;
#define ASYSI_TESTPOINT(label) static_assert(::asysi::testpoint::index(label) < ::asysi::testpoint::labels.size())
#endif

}  // namespace asysi::testpoint
