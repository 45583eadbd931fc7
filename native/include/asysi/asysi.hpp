// The ring in C++: everything that a program needs.
//
//     #include "asysi/asysi.hpp"                      // headers alone; C++20, -pthread, Linux
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
//     bool kept = writer.publish(block);              // copies; false: dropped, and booked as such
//     if (auto claim = writer.claim(block)) {         // or without a copy: fill the chunk in place
//         fill(claim->payload());
//         claim->commit();                            // without it the claim is aborted, and booked as such
//     }
//     std::vector<asysi::Claim> claims;               // or several ahead, neighbours if there are; any thread commits them
//     std::size_t claimed = writer.claim(blocks, claims);
//     writer.close(asysi::WriterState::complete);
//
//     asysi::Reader reader(folder, "viewer");         // one process for each name
//     while (!reader.ended()) {
//         for (auto& packet : asysi::pull(reader, 16, std::chrono::seconds(1))) {
//             use(packet.payload<float>());           // valid until the packet goes out of scope
//             packet.consume();
//         }
//     }
//
// What goes wrong is a RingError (error.hpp), std::invalid_argument for a wrong argument, std::system_error for the
// system's own; a reader's name or an account that the ring does not know is a std::invalid_argument.
//
// A program that links the ring needs nothing else. examples/pingpong.cpp is one, and it is compiled and run by the tests.
#pragma once

#include "asysi/control.hpp"
#include "asysi/error.hpp"
#include "asysi/packet.hpp"
#include "asysi/reader.hpp"
#include "asysi/ring.hpp"
#include "asysi/topology.hpp"
#include "asysi/writer.hpp"
