// Gathers rows and converts them from one element type to another.
//
// Compile with -ffp-contract=off to get bit-identical results on every CPU.
//
//   bfloat16  round to nearest, ties to even; NaN stays NaN (quiet, sign kept), infinities stay, overflow -> infinity.
//   int8      per row: scale = max |finite x| / 127, q = round to nearest even of x * 127 / max, so |x - q * scale| <=
//             scale / 2. NaN -> 0, +-infinity -> +-127. A row whose scale would not be a normal float32 (all zero, all
//             NaN, or below 1.5e-36) has scale 0 and q = 0.
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
// One binary that uses the widest vectors of the CPU.
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
    if (quantization == Quantization::int8) return Dtype::int8;
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

inline void int8_rows(std::byte* out, float* scales, const Rows& in) {
    for (std::size_t i = 0; i < in.count; ++i, out += in.width) {
        std::int32_t bits = 0;
        each_piece(in.row(i), in.dtype, in.width, [&](std::size_t, const float* floats, std::size_t n) {
            const auto piece = kernel::finite_maximum(reinterpret_cast<const std::uint32_t*>(floats), n);
            bits = piece > bits ? piece : bits;
        });
        const float maximum = std::bit_cast<float>(bits);
        const float scale = maximum / 127.0F;
        const bool normal = scale >= std::numeric_limits<float>::min();
        scales[i] = normal ? scale : 0.0F;
        if (!normal) {
            std::memset(out, 0, in.width);
            continue;
        }
        auto* const to = reinterpret_cast<std::int8_t*>(out);
        each_piece(in.row(i), in.dtype, in.width, [&](std::size_t at, const float* floats, std::size_t n) {
            kernel::int8_from_float(to + at, floats, n, 127.0F / maximum);
        });
    }
}

/// Writes the rows to `out` as `converted(in.dtype, quantization)`; for int8, `scales` gets one float per row.
/// `streams`: large copies bypass the caches; `out` must then be aligned to 64 bytes.
inline void convert(std::byte* out, float* scales, const Rows& in, Quantization quantization, bool streams = false) {
    const Dtype to = converted(in.dtype, quantization);
    if (to == in.dtype) return copy_rows(out, in, streams);
    if (to == Dtype::bfloat16) return bfloat16_rows(out, in);
    int8_rows(out, scales, in);
}

}  // namespace asysi
