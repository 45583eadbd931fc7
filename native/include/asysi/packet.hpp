// The wire form of a packet: header | row records | scales | zeros | payload.
//
// scales: fp8 and int8 with a scale a row: [rows] floats; int8 by channel: the means of all channels, then their scales,
// [2, width] floats. So every packet says by itself how it is read back. Gradients that were joined to their activations
// have two scores a row there, [rows, 2] floats.
//
// Payload and chunks are aligned to 64 bytes, so that no vector load or store is split across two cache lines.
//
// Counterpart of workers/asysi/bus/packet.py; a test checks that both layouts match.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace asysi {

inline constexpr std::uint32_t packet_magic = 0x4B505341;  // "ASPK" in memory
/// The newest version, and the one that packets have which older readers read rightly: each states the least that reads it.
inline constexpr std::uint16_t packet_version = 4;
inline constexpr std::uint16_t oldest_packet_version = 2;
inline constexpr std::uint16_t quantised_packet_version = 3;

enum class Dtype : std::uint16_t { float32 = 0, bfloat16 = 1, float16 = 2, int8 = 3, fp8_e4m3 = 4 };
enum class Quantization : std::uint16_t { none = 0, bf16 = 1, fp8 = 2, int8 = 3, int8_channel = 4 };

/// Size of an element in bytes; 0 for an unknown type.
constexpr std::size_t item_bytes(Dtype dtype) {
    switch (dtype) {
        case Dtype::float32: return 4;
        case Dtype::bfloat16:
        case Dtype::float16: return 2;
        case Dtype::int8:
        case Dtype::fp8_e4m3: return 1;
    }
    return 0;
}

// Little-endian, no padding: every field is naturally aligned.
struct PacketHeader {
    std::uint32_t magic;
    std::uint16_t version;
    std::uint16_t header_bytes;
    std::uint64_t sequence;     // per shard, from 1; written by the ring
    std::uint64_t source;       // mark from which a restarted producer resumes; 0 for none
    std::uint64_t rows_before;  // rows published for this account before this packet; written by the ring
    std::uint64_t step;
    std::uint64_t captured_ns;
    double sampling_rate;
    std::uint32_t generation;  // of the producer; written by the ring
    std::uint32_t attempt;
    std::uint32_t rank;
    std::uint32_t account;
    std::uint32_t call_index;
    std::uint32_t rows;
    std::uint32_t width;
    std::uint32_t step_rows;
    std::uint32_t step_kept;
    std::uint32_t batch;
    std::uint32_t length;
    std::uint16_t part;
    std::uint16_t parts;
    std::uint16_t kind;
    std::uint16_t dtype;
    std::uint16_t quantization;
    std::uint16_t flags;
    std::uint64_t payload_bytes;
    std::uint32_t scale_bytes;
    std::uint32_t saturated;    // capture: values that the host's device stored as the end of their channel's range
    float loss_scale;           // that was divided out of a gradient; 0: the packet holds none
    std::uint32_t accumulated;  // backward passes that add up to an optimiser step; 0 if unknown
    std::uint32_t microbatch;   // which of these, from 0
    std::uint16_t reduction;    // of the loss over tokens: 0 unknown, 1 mean, 2 sum
    unsigned char reserved[50];
};

struct RowRecord {
    std::uint64_t sample;
    std::uint32_t sequence;
    std::uint32_t position;
    std::int32_t token;
    std::uint32_t flags;  // 1: held out; 2: bits 8 to 31 hold the token's position in its document; 4: `row_saturated`
};

/// Flag of a row with a value outside the range of its channel: it is stored as the end of the range.
inline constexpr std::uint32_t row_saturated = 4;

inline constexpr std::size_t header_bytes = 192;
inline constexpr std::size_t row_bytes = 24;

static_assert(sizeof(PacketHeader) == header_bytes && std::is_trivially_copyable_v<PacketHeader>);
static_assert(offsetof(PacketHeader, sampling_rate) == 48 && offsetof(PacketHeader, account) == 68);
static_assert(offsetof(PacketHeader, payload_bytes) == 112 && offsetof(PacketHeader, saturated) == 124);
static_assert(offsetof(PacketHeader, reserved) == 142);
static_assert(sizeof(RowRecord) == row_bytes && std::is_trivially_copyable_v<RowRecord>);

inline constexpr std::size_t payload_alignment = 64;

/// Byte offset of a packet's payload.
constexpr std::uint64_t payload_at(std::uint64_t rows, std::uint64_t scale_bytes) {
    return (header_bytes + rows * row_bytes + scale_bytes + payload_alignment - 1) / payload_alignment * payload_alignment;
}

/// The least version whose readers understand such a payload. `scored`: floats with two scores a row.
constexpr std::uint16_t least_version(Dtype dtype, Quantization quantization, bool scored = false) {
    if (scored) return packet_version;
    const bool younger = dtype == Dtype::fp8_e4m3 || quantization == Quantization::int8_channel;
    return younger ? quantised_packet_version : oldest_packet_version;
}

/// Bytes that a packet with this header covers; 0 when its sizes contradict each other.
constexpr std::uint64_t packet_bytes(const PacketHeader& header) {
    const auto item = item_bytes(static_cast<Dtype>(header.dtype));
    const std::uint64_t rows = header.rows;
    const bool by_channel = header.quantization == static_cast<std::uint16_t>(Quantization::int8_channel);
    const std::uint64_t scales = by_channel ? std::uint64_t{header.width} * 8 : rows * 4;
    const bool scored = header.version == packet_version && item > 1 && header.scale_bytes == rows * 8;
    const bool scales_fit = header.scale_bytes == scales || (header.scale_bytes == 0 && !by_channel) || scored;
    const bool known = header.version >= oldest_packet_version && header.version <= packet_version;
    if (header.magic != packet_magic || !known || item == 0 || !scales_fit) return 0;
    // rows and width are 32 bits each, an item at most 4 bytes: divide rather than overflow.
    if (rows == 0 || header.payload_bytes / rows / item != header.width) return 0;
    if (header.payload_bytes % (rows * item) != 0) return 0;
    if (header.payload_bytes > (std::uint64_t{1} << 40)) return 0;
    return payload_at(rows, header.scale_bytes) + header.payload_bytes;
}

}  // namespace asysi
