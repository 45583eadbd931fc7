// The ring in C++: everything that a program needs.
//
//     #include "asysi/asysi.hpp"                      // header-only; C++20, -pthread, Linux
//
//     asysi::create(folder, {.shards = 1, .chunks = 64, .chunk_bytes = 1 << 20, .accounts = 16, .pins = 4,
//                            .policy = asysi::Policy::overwrite, .readers = {"viewer"}});
//
//     asysi::Writer writer(folder);                   // one process; one thread per shard
//     asysi::Block block{};
//     block.header.account = writer.account("layer.0");
//     block.header.width = 384;
//     block.rows = {bytes, 384 * 4, nullptr, rows, 384, asysi::Dtype::float32};
//     block.book_seen = true;
//     bool kept = writer.publish(block);              // copies; false: dropped, and counted as such
//     if (auto claim = writer.claim(block)) {         // or zero-copy: fill the chunk in place
//         fill(claim->payload());
//         claim->commit();                            // otherwise the claim is aborted, and counted as such
//     }
//     std::vector<asysi::Claim> claims;               // or several at once, adjacent if possible; any thread can commit them
//     std::size_t claimed = writer.claim(blocks, claims);
//     writer.close(asysi::WriterState::complete);
//
//     asysi::Reader reader(folder, "viewer");         // one process per name
//     while (!reader.ended()) {
//         for (auto& packet : asysi::pull(reader, 16, std::chrono::seconds(1))) {
//             use(packet.payload<float>());           // valid until the packet goes out of scope
//             packet.consume();
//         }
//     }
//
// Errors are reported as RingError (error.hpp), std::invalid_argument for invalid arguments, including unknown reader
// names and accounts, and std::system_error for system errors.
//
// A program that uses the ring needs nothing else. The tests compile and run examples/pingpong.cpp as an example.
#pragma once

#include "asysi/control.hpp"
#include "asysi/error.hpp"
#include "asysi/packet.hpp"
#include "asysi/reader.hpp"
#include "asysi/ring.hpp"
#include "asysi/topology.hpp"
#include "asysi/writer.hpp"
