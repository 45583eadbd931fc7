// Gathers rows and converts them from one element type to another.
//
// Compile with -ffp-contract=off to get bit-identical results on every CPU.
//
//   bfloat16  round to nearest, ties to even; NaN stays NaN (quiet, sign kept), infinities stay, overflow -> infinity.
//   fp8       OCP E4M3 (no infinities, at most 448), one scale per row: scale = max |finite x| / 448, q = x / scale rounded
//             to nearest even, so |x - q * scale| <= max(|x| / 16, scale / 1024) plus float32 rounding. NaN and infinities
//             -> NaN. A row whose scale would not be a normal float32 has scale 0 and q = 0, except for NaN.
//   int8      one scale per row: scale = max |finite x| / 127, q = round to nearest even of x * 127 / max, so |x - q * scale| <=
//             scale / 2. NaN -> 0, +-infinity -> +-127. A row whose scale would not be a normal float32 (all zero, all
//             NaN, or below 1.5e-36) has scale 0 and q = 0.
//   int8_channel  mean and scale of each channel are given: q = round to nearest even of (x - mean) / scale, so
//             |x - (q * scale + mean)| <= scale / 2 plus float32 rounding. Beyond +-127 it saturates: the value is counted
//             and its row flagged. NaN and infinities -> -128, which is decoded as NaN.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "asysi/packet.hpp"

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)
// One binary that uses the widest vector instructions of the CPU.
#define ASYSI_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ASYSI_CLONES
#endif

namespace asysi {

/// bfloat16 bits of the float32 with these bits.
constexpr std::uint16_t bfloat16_bits(std::uint32_t bits) {
    const std::uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    const std::uint32_t quiet = (bits >> 16) | 0x40;
    return static_cast<std::uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? quiet : rounded);
}

/// float32 of the IEEE half with these bits, exactly.
constexpr float float_of_half(std::uint16_t half) {
    // After the shift the exponent is 112 too small; the multiplication corrects it, including subnormals.
    const std::uint32_t magnitude = (half & 0x7FFFu) << 13;
    const auto scaled = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112F);
    const std::uint32_t special = magnitude | 0x7F800000;
    const std::uint32_t sign = (half & 0x8000u) << 16;
    return std::bit_cast<float>((magnitude >= 0x0F800000 ? special : scaled) | sign);
}

constexpr float float_of_bfloat16(std::uint16_t bits) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

namespace kernel {

ASYSI_CLONES static void bfloat16_from_float(std::uint16_t* out, const std::uint32_t* in, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = bfloat16_bits(in[i]);
}

ASYSI_CLONES static void float_from_half(float* out, const std::uint16_t* in, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = float_of_half(in[i]);
}

ASYSI_CLONES static void float_from_bfloat16(float* out, const std::uint16_t* in, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = float_of_bfloat16(in[i]);
}

/// Bits of the largest finite magnitude. Float magnitudes compare like integers.
ASYSI_CLONES static std::int32_t finite_maximum(const std::uint32_t* in, std::size_t n) {
    std::int32_t maximum = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const auto magnitude = static_cast<std::int32_t>(in[i] & 0x7FFFFFFF);
        const std::int32_t finite = magnitude < 0x7F800000 ? magnitude : 0;
        maximum = maximum > finite ? maximum : finite;
    }
    return maximum;
}

ASYSI_CLONES static void int8_from_float(std::int8_t* out, const float* in, std::size_t n, float inverse) {
    for (std::size_t i = 0; i < n; ++i) {
        const float wanted = in[i] * inverse;
        const float high = wanted < 127.0F ? wanted : 127.0F;
        const float clipped = high > -127.0F ? high : -127.0F;
        // Adding 1.5 * 2^23 rounds to an integer, to even on ties, and leaves it in the low bits.
        const auto bits = std::bit_cast<std::uint32_t>(clipped + 12582912.0F);
        out[i] = static_cast<std::int8_t>(in[i] == in[i] ? static_cast<std::uint8_t>(bits) : 0);
    }
}

/// E4M3 bits of floats with magnitude at most 448 (1 + 2^-20); non-finite values become NaN.
ASYSI_CLONES static void e4m3_from_float(std::uint8_t* out, const float* in, std::size_t n, float scale) {
    for (std::size_t i = 0; i < n; ++i) {
        const auto bits = std::bit_cast<std::uint32_t>(in[i] / scale);
        const std::uint32_t magnitude = bits & 0x7FFFFFFF;
        const std::uint32_t sign = (std::bit_cast<std::uint32_t>(in[i]) >> 24) & 0x80;
        // Round the mantissa to three bits, ties to even; the exponent is 120 too large.
        const std::uint32_t normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120U << 3);
        // Below 2^-6 the spacing is 2^-9, as it is from 2^14 on in float32.
        const std::uint32_t small = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 16384.0F) - 0x46800000;
        const std::uint32_t rounded = magnitude >= 0x3C800000 ? normal : small;
        const std::uint32_t finite = rounded < 0x7E ? rounded : 0x7E;
        const bool number = (std::bit_cast<std::uint32_t>(in[i]) & 0x7FFFFFFF) < 0x7F800000;
        out[i] = static_cast<std::uint8_t>((number ? finite : 0x7F) | sign);
    }
}

/// Returns how many values were outside their channel's range.
ASYSI_CLONES static std::uint32_t int8_by_channel(std::int8_t* out, const float* in, const float* mean, const float* scale,
                                                  std::size_t n) {
    std::uint32_t outside = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const float wanted = (in[i] - mean[i]) / scale[i];
        const float high = wanted < 127.0F ? wanted : 127.0F;
        const float clipped = high > -127.0F ? high : -127.0F;
        const auto bits = static_cast<std::uint8_t>(std::bit_cast<std::uint32_t>(clipped + 12582912.0F));
        const bool finite = (std::bit_cast<std::uint32_t>(in[i]) & 0x7FFFFFFF) < 0x7F800000;
        const bool within = wanted < 127.5F && wanted > -127.5F;
        out[i] = static_cast<std::int8_t>(finite ? bits : std::uint8_t{0x80});
        outside += finite && !within ? 1U : 0U;
    }
    return outside;
}

}  // namespace kernel

/// Rows in memory: row i begins at `base + (index ? index[i] : i) * stride`.
struct Rows {
    const std::byte* base;
    std::int64_t stride;
    const std::int64_t* index;
    std::size_t count;
    std::size_t width;
    Dtype dtype;

    [[nodiscard]] const std::byte* row(std::size_t i) const {
        return base + (index != nullptr ? index[i] : static_cast<std::int64_t>(i)) * stride;
    }
    [[nodiscard]] std::size_t bytes() const { return width * item_bytes(dtype); }
};

/// Element type after `quantization`; 1-byte types pass through.
constexpr Dtype converted(Dtype source, Quantization quantization) {
    if (item_bytes(source) == 1) return source;
    if (quantization == Quantization::bf16) return Dtype::bfloat16;
    if (quantization == Quantization::fp8) return Dtype::fp8_e4m3;
    if (quantization == Quantization::int8 || quantization == Quantization::int8_channel) return Dtype::int8;
    return source;
}

/// Copies with non-temporal stores, bypassing the caches, to an address aligned to 64 bytes: each cache line is written
/// without being read first. Ends with a fence, so that a following release store publishes the bytes.
inline void stream(std::byte* out, const std::byte* in, std::size_t bytes) {
#ifdef __SSE2__
    std::size_t at = 0;
    for (; at + 64 <= bytes; at += 64) {
        const auto* const from = reinterpret_cast<const __m128i*>(in + at);
        auto* const to = reinterpret_cast<__m128i*>(out + at);
        const __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1);
        const __m128i c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
        _mm_stream_si128(to, a);
        _mm_stream_si128(to + 1, b);
        _mm_stream_si128(to + 2, c);
        _mm_stream_si128(to + 3, d);
    }
    std::memcpy(out + at, in + at, bytes - at);
    _mm_sfence();
#else
    std::memcpy(out, in, bytes);
#endif
}

/// Minimum size for non-temporal copies into a ring that exceeds the caches.
inline constexpr std::size_t worth_streaming = 32 * 1024;

inline void copy_rows(std::byte* out, const Rows& in, bool streams) {
    const std::size_t bytes = in.bytes();
    const bool whole = in.index == nullptr && in.stride == static_cast<std::int64_t>(bytes);
    const bool large = streams && bytes * in.count >= worth_streaming;
    if (whole && large) return stream(out, in.base, bytes * in.count);
    if (whole) return static_cast<void>(std::memcpy(out, in.base, bytes * in.count));
    if (large && bytes % 64 == 0) {
        for (std::size_t i = 0; i < in.count; ++i, out += bytes) stream(out, in.row(i), bytes);
        return;
    }
    for (std::size_t i = 0; i < in.count; ++i, out += bytes) std::memcpy(out, in.row(i), bytes);
}

/// Converts one row to float32 in pieces that fit the L1 cache, and calls `use(offset, floats, n)` for each.
template <typename Use>
inline void each_piece(const std::byte* row, Dtype dtype, std::size_t width, Use use) {
    constexpr std::size_t piece = 2048;
    if (dtype == Dtype::float32) return use(0, reinterpret_cast<const float*>(row), width);
    const auto* halves = reinterpret_cast<const std::uint16_t*>(row);
    alignas(64) float floats[piece];
    for (std::size_t at = 0; at < width; at += piece) {
        const std::size_t n = width - at < piece ? width - at : piece;
        if (dtype == Dtype::float16) {
            kernel::float_from_half(floats, halves + at, n);
        } else {
            kernel::float_from_bfloat16(floats, halves + at, n);
        }
        use(at, static_cast<const float*>(floats), n);
    }
}

inline void bfloat16_rows(std::byte* out, const Rows& in) {
    for (std::size_t i = 0; i < in.count; ++i, out += in.width * 2) {
        auto* const to = reinterpret_cast<std::uint16_t*>(out);
        each_piece(in.row(i), in.dtype, in.width, [&](std::size_t at, const float* floats, std::size_t n) {
            kernel::bfloat16_from_float(to + at, reinterpret_cast<const std::uint32_t*>(floats), n);
        });
    }
}

/// The largest finite magnitude of a row.
inline float finite_maximum(const std::byte* row, Dtype dtype, std::size_t width) {
    std::int32_t bits = 0;
    each_piece(row, dtype, width, [&](std::size_t, const float* floats, std::size_t n) {
        const auto piece = kernel::finite_maximum(reinterpret_cast<const std::uint32_t*>(floats), n);
        bits = piece > bits ? piece : bits;
    });
    return std::bit_cast<float>(bits);
}

inline bool normal(float scale) { return scale >= std::numeric_limits<float>::min(); }

inline void int8_rows(std::byte* out, float* scales, const Rows& in) {
    for (std::size_t i = 0; i < in.count; ++i, out += in.width) {
        const float maximum = finite_maximum(in.row(i), in.dtype, in.width);
        const float scale = maximum / 127.0F;
        scales[i] = normal(scale) ? scale : 0.0F;
        if (!normal(scale)) {
            std::memset(out, 0, in.width);
            continue;
        }
        auto* const to = reinterpret_cast<std::int8_t*>(out);
        each_piece(in.row(i), in.dtype, in.width, [&](std::size_t at, const float* floats, std::size_t n) {
            kernel::int8_from_float(to + at, floats, n, 127.0F / maximum);
        });
    }
}

inline void fp8_rows(std::byte* out, float* scales, const Rows& in) {
    for (std::size_t i = 0; i < in.count; ++i, out += in.width) {
        const float scale = finite_maximum(in.row(i), in.dtype, in.width) / 448.0F;
        scales[i] = normal(scale) ? scale : 0.0F;
        // Division by infinity gives 0, and NaN stays NaN.
        const float divisor = normal(scale) ? scale : std::numeric_limits<float>::infinity();
        auto* const to = reinterpret_cast<std::uint8_t*>(out);
        each_piece(in.row(i), in.dtype, in.width, [&](std::size_t at, const float* floats, std::size_t n) {
            kernel::e4m3_from_float(to + at, floats, n, divisor);
        });
    }
}

/// `table`: [2, width], mean and scale of each channel. Flags rows with values out of range; returns the number of such values.
inline std::uint64_t int8_channel_rows(std::byte* out, const float* table, RowRecord* records, const Rows& in) {
    std::uint64_t all = 0;
    for (std::size_t i = 0; i < in.count; ++i, out += in.width) {
        std::uint64_t outside = 0;
        auto* const to = reinterpret_cast<std::int8_t*>(out);
        each_piece(in.row(i), in.dtype, in.width, [&](std::size_t at, const float* floats, std::size_t n) {
            outside += kernel::int8_by_channel(to + at, floats, table + at, table + in.width + at, n);
        });
        if (outside != 0) records[i].flags |= row_saturated;
        all += outside;
    }
    return all;
}

/// Where the data that accompanies the elements is read and written.
struct Beside {
    float* scales;       // [rows] for int8 and fp8
    RowRecord* records;  // [rows]: rows with saturated values are flagged
    const float* table;  // [2, width], mean and scale of each channel, for int8_channel
};

/// Writes the rows to `out` as `converted(in.dtype, quantization)`; returns the number of saturated values.
/// `streams`: large copies bypass the caches; `out` must then be a multiple of 64.
inline std::uint64_t convert(std::byte* out, const Beside& beside, const Rows& in, Quantization quantization,
                             bool streams = false) {
    const Dtype to = converted(in.dtype, quantization);
    if (to == in.dtype) return copy_rows(out, in, streams), 0;
    if (to == Dtype::bfloat16) return bfloat16_rows(out, in), 0;
    if (to == Dtype::fp8_e4m3) return fp8_rows(out, beside.scales, in), 0;
    if (quantization == Quantization::int8_channel) return int8_channel_rows(out, beside.table, beside.records, in);
    return int8_rows(out, beside.scales, in), 0;
}

}  // namespace asysi
