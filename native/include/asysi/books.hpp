// The producer's counters: accounts, intents, source marks.
//
// An account belongs to the shard of its first packet; updating its counters requires that shard's gate.
#pragma once

#include <atomic>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "asysi/ring.hpp"

namespace asysi {

/// Increments applied to an account in one step.
struct Entry {
    u64 seen = 0;
    u64 published = 0;
    u64 sampled_out = 0;
    u64 packets = 0;
    u64 dropped = 0;
    u32 reason = 0;
};

/// The update about to be applied; see Intent.
struct Plot {
    u32 shard;
    u64 sequence;
    u32 account;
    u64 rows;
    bool book_seen;
    u64 source;
    u32 claim = 0;  // chunk + 1 of the open claim that this completes
};

/// The counters of the ring's producer.
class ProducerBooks {
public:
    using Values = Versioned<produced::words>::Values;
    static constexpr u64 never = ~u64{0};  // a sequence that no head reaches: nothing will be published

    explicit ProducerBooks(const Ring& ring) : ring_(ring), accounts_(ring.geometry().accounts) {}

    /// Reads the state left by the previous producer.
    void begin() {
        registered_ = ring_.accounts();
        for (u32 i = 0; i < registered_; ++i) {
            names_.emplace(ring_.account_name(i), i);
            accounts_[i].values = ring_.account(i).counters.load();
            const u32 home = ring_.account(i).shard.load(std::memory_order_relaxed);
            accounts_[i].home = home <= ring_.geometry().shards ? home : 0;
        }
    }

    /// Guards names and home shards; only taken for the first packet of an account, not on the hot path.
    [[nodiscard]] std::mutex& registrar() { return registrar_; }
    [[nodiscard]] u32 registered() const { return registered_.load(std::memory_order_acquire); }
    [[nodiscard]] const Values& of(u32 account) const { return accounts_[account].values; }
    /// Its shard + 1; 0 before the first packet.
    [[nodiscard]] u32 home(u32 account) const { return accounts_[account].home.load(std::memory_order_acquire); }

    /// Index of the account `name`; registers it if it is new.
    u32 account(const std::string& name) {
        const std::scoped_lock turn(registrar_);
        if (const auto known = names_.find(name); known != names_.end()) return known->second;
        if (name.empty() || name.size() >= account_name_bytes || name.find('\0') != std::string::npos) {
            throw std::invalid_argument("an account's name has 1 to 191 bytes of UTF-8, " + name + " has " +
                                        std::to_string(name.size()));
        }
        const auto index = registered_.load(std::memory_order_relaxed);
        if (index >= accounts_.size()) {
            throw std::invalid_argument("the ring has room for " + std::to_string(accounts_.size()) + " accounts, " + name +
                                        " would exceed this");
        }
        AccountEntry& entry = ring_.account(index);
        std::memset(entry.name, 0, account_name_bytes);
        std::memcpy(entry.name, name.data(), name.size());
        ASYSI_TESTPOINT("writer.account.named");
        ring_.live().accounts.store(index + 1, std::memory_order_release);
        ASYSI_TESTPOINT("writer.account.counted");
        accounts_[index].values = entry.counters.load();
        names_.emplace(name, index);
        registered_.store(index + 1, std::memory_order_release);
        return index;
    }

    void expect_account(u32 account) const {
        const u32 known = registered();
        if (account < known) return;
        throw std::invalid_argument("account " + std::to_string(account) + " is not one of the " + std::to_string(known) +
                                    " registered");
    }
    void expect_home(u32 account, u32 shard) const {
        const u32 there = home(account);
        if (there == 0 || there == shard + 1) return;
        throw std::invalid_argument("account " + std::to_string(account) + " lives in shard " + std::to_string(there - 1) +
                                    ", not in " + std::to_string(shard) + ": its packets would lose their order");
    }
    /// Binds the account's packets to this shard.
    void keep_home(u32 account, u32 shard) {
        if (accounts_[account].home.load(std::memory_order_relaxed) != 0) return;
        const std::scoped_lock turn(registrar_);
        expect_home(account, shard);  // another shard's thread may have bound it first
        ring_.account(account).shard.store(shard + 1, std::memory_order_relaxed);
        ASYSI_TESTPOINT("writer.home.bound");
        accounts_[account].home.store(shard + 1, std::memory_order_release);
    }

    void open_intent(const Plot& plot) {
        Intent& intent = ring_.shard(plot.shard).intent;
        // The compiler must not move these stores before the previous intent is closed; after a kill, the program order
        // is visible.
        std::atomic_signal_fence(std::memory_order_seq_cst);
        const auto note = [](auto& field, auto value) { field.store(value, std::memory_order_relaxed); };
        note(intent.sequence, plot.sequence);
        note(intent.account, plot.account);
        note(intent.claim, plot.claim);
        note(intent.version, ring_.account(plot.account).counters.version.load(std::memory_order_relaxed));
        note(intent.rows, plot.rows);
        note(intent.book_seen, u64{plot.book_seen});
        note(intent.source, plot.source);
        note(intent.tombstone, u64{0});
        ASYSI_TESTPOINT("writer.intent.noted");
        intent.open.store(1, std::memory_order_release);
        ASYSI_TESTPOINT("writer.intent.opened");
    }

    /// Records that a chunk is claimed for these rows, which are not counted yet.
    void open_claim(u32 shard, u32 chunk, u32 account, u64 rows, bool book_seen, u64 source) {
        ClaimRecord& claim = ring_.claim(shard, chunk);
        std::atomic_signal_fence(std::memory_order_seq_cst);  // as in open_intent
        const auto note = [](auto& field, auto value) { field.store(value, std::memory_order_relaxed); };
        note(claim.account, account);
        note(claim.rows, rows);
        note(claim.source, source);
        note(claim.book_seen, u32{book_seen});
        ASYSI_TESTPOINT("writer.claim.noted");
        claim.open.store(1, std::memory_order_release);
        ASYSI_TESTPOINT("writer.claim.opened");
    }
    void close_claim(u32 shard, u32 chunk) {
        ring_.claim(shard, chunk).open.store(0, std::memory_order_release);
        ASYSI_TESTPOINT("writer.claim.closed");
    }

    /// Applies all increments in one step.
    void add(u32 account, const Entry& entry) {
        auto& c = accounts_[account].values;
        c[produced::seen] += entry.seen;
        c[produced::published] += entry.published;
        c[produced::sampled_out] += entry.sampled_out;
        c[produced::packets] += entry.packets;
        c[produced::dropped + entry.reason] += entry.dropped;
        ring_.account(account).counters.store(c);
    }

    void raise_source(u32 shard, u64 source) {
        if (source == 0) return;
        auto& mark = ring_.shard(shard).source;
        if (source > mark.load(std::memory_order_relaxed)) mark.store(source, std::memory_order_release);
        ASYSI_TESTPOINT("writer.source.raised");
    }

    /// Completes the shard's intent. The claim that ends with it is closed first: after a kill in between, the intent
    /// still records the result of the claim.
    void settle(u32 shard, u64 source, u32 claim = 0) {
        ASYSI_TESTPOINT("writer.books.stored");
        raise_source(shard, source);
        if (claim != 0) close_claim(shard, claim - 1);
        ring_.shard(shard).intent.open.store(0, std::memory_order_release);
        ASYSI_TESTPOINT("writer.intent.closed");
    }

private:
    struct alignas(64) Account {
        Values values{};
        std::atomic<u32> home{0};  // its shard + 1; 0 before the first packet
    };

    const Ring& ring_;
    std::mutex registrar_;
    std::atomic<u32> registered_{0};
    std::unordered_map<std::string, u32> names_;
    std::vector<Account> accounts_;
};

}  // namespace asysi
