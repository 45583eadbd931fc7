// Counting for a statistics pass over parameters. 16-bit floats have 65,536 bit patterns, so a histogram of the patterns
// determines every statistic of a tensor exactly. 32-bit floats are counted by their upper half, with additional moments
// in float64.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>

#include "asysi/convert.hpp"  // ASYSI_CLONES

namespace py = pybind11;

namespace {

constexpr std::size_t patterns = 1u << 16;
constexpr std::size_t tables = 2;  // adjacent elements are often equal: two tables let increments overlap, more exceed L1
constexpr std::size_t lanes = 8;
constexpr std::size_t block = 1u << 14;  // elements that stay in the L1 cache between the two passes

using Counts = std::array<std::array<std::uint32_t, tables>, patterns>;

inline std::uint64_t total(const std::array<std::uint32_t, tables>& pattern) {
    return std::uint64_t{pattern[0]} + pattern[1];
}

inline void count_halves(Counts& counts, const unsigned char* bytes, std::size_t elements) {
    std::size_t i = 0;
    for (; i + 4 <= elements; i += 4) {
        std::uint64_t word;
        std::memcpy(&word, bytes + 2 * i, sizeof word);
        ++counts[word & 0xFFFF][0];
        ++counts[(word >> 16) & 0xFFFF][1];
        ++counts[(word >> 32) & 0xFFFF][0];
        ++counts[word >> 48][1];
    }
    for (; i < elements; ++i) {
        std::uint16_t half;
        std::memcpy(&half, bytes + 2 * i, sizeof half);
        ++counts[half][0];
    }
}

inline void count_upper_halves(Counts& counts, const unsigned char* bytes, std::size_t elements) {
    std::size_t i = 0;
    for (; i + 2 <= elements; i += 2) {
        std::uint64_t word;
        std::memcpy(&word, bytes + 4 * i, sizeof word);
        ++counts[(word >> 16) & 0xFFFF][0];
        ++counts[word >> 48][1];
    }
    for (; i < elements; ++i) {
        std::uint32_t word;
        std::memcpy(&word, bytes + 4 * i, sizeof word);
        ++counts[word >> 16][0];
    }
}

struct Moments {
    std::uint64_t finite = 0, zeros = 0, near_zeros = 0, infinities = 0;
    double mean = 0, m2 = 0;
    float least = std::numeric_limits<float>::infinity(), most = -std::numeric_limits<float>::infinity();
};

// GCC/Clang vector extensions, compiled to the vectors of the target CPU.
using Floats = float __attribute__((vector_size(4 * lanes)));
using Integers = std::int32_t __attribute__((vector_size(4 * lanes)));
using Doubles = double __attribute__((vector_size(8 * lanes)));

// Sums over whole vectors, at most 2^31 elements. Non-finite elements contribute zero and are not counted.
ASYSI_CLONES void sum_vectors(Moments& out, const float* x, std::size_t n, float epsilon) {
    constexpr float largest = std::numeric_limits<float>::max(), infinity = std::numeric_limits<float>::infinity();
    const Floats limit = Floats{} + largest, near = Floats{} + epsilon, above = Floats{} + infinity, zero{};
    Integers finite{}, zeros{}, near_zeros{}, infinities{};  // a mask is -1 where it holds
    Floats least = above, most = -above;
    Doubles sums{};
    for (std::size_t i = 0; i < n; i += lanes) {
        Floats value;
        std::memcpy(&value, x + i, sizeof value);
        const Floats size = value < zero ? -value : value;
        const Integers ok = size <= limit;
        finite += ok;
        zeros += size == zero;
        near_zeros += size <= near;
        infinities += size == above;
        const Floats low = ok ? value : above, high = ok ? value : -above, kept = ok ? value : zero;
        least = low < least ? low : least;
        most = high > most ? high : most;
        sums += __builtin_convertvector(kept, Doubles);
    }
    double sum = 0;
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        sum += sums[lane];
        out.finite += static_cast<std::uint64_t>(-finite[lane]);
        out.zeros += static_cast<std::uint64_t>(-zeros[lane]);
        out.near_zeros += static_cast<std::uint64_t>(-near_zeros[lane]);
        out.infinities += static_cast<std::uint64_t>(-infinities[lane]);
        out.least = std::min(out.least, static_cast<float>(least[lane]));
        out.most = std::max(out.most, static_cast<float>(most[lane]));
    }
    if (out.finite == 0) return;
    out.mean = sum / static_cast<double>(out.finite);
    const Doubles mean = Doubles{} + out.mean;
    const auto rounded = static_cast<float>(out.mean);
    const Floats stand_in = Floats{} + rounded;
    Doubles squares{};
    for (std::size_t i = 0; i < n; i += lanes) {
        Floats value;
        std::memcpy(&value, x + i, sizeof value);
        const Floats size = value < zero ? -value : value;
        const Floats kept = size <= limit ? value : stand_in;
        const Doubles difference = __builtin_convertvector(kept, Doubles) - mean;
        squares += difference * difference;
    }
    double total = 0;
    for (std::size_t lane = 0; lane < lanes; ++lane) total += squares[lane];
    const double off = static_cast<double>(rounded) - out.mean;  // contribution of each placeholder, before squaring
    out.m2 = std::max(0.0, total - static_cast<double>(n - out.finite) * off * off);
}

// Merges the moments of two samples (Chan, Golub and LeVeque 1979).
void merge(Moments& into, const Moments& other) {
    into.zeros += other.zeros;
    into.near_zeros += other.near_zeros;
    into.infinities += other.infinities;
    into.least = std::min(into.least, other.least);
    into.most = std::max(into.most, other.most);
    if (other.finite == 0) return;
    const double total = static_cast<double>(into.finite + other.finite), share = static_cast<double>(other.finite) / total;
    const double difference = other.mean - into.mean;
    into.m2 += other.m2 + difference * difference * static_cast<double>(into.finite) * share;
    into.mean += difference * share;
    into.finite += other.finite;
}

// Sums in float32 over a few vectors, then in float64, of differences to `shift`, a value near the elements, so that
// neither a large mean nor the number of elements costs precision. `finite` is false if any element is not finite; the
// other sums are then meaningless.
struct Basic {
    std::uint64_t zeros = 0, near_zeros = 0;
    double sum = 0, squares = 0;
    float least = std::numeric_limits<float>::infinity(), most = -std::numeric_limits<float>::infinity();
    bool finite = true;
};

template <std::size_t n>
struct Vectors {
    typedef float Floats __attribute__((vector_size(4 * n)));
    typedef std::int32_t Integers __attribute__((vector_size(4 * n)));
    typedef double Doubles __attribute__((vector_size(8 * n)));
};

constexpr std::size_t run = 32;  // vectors between two float64 sums

template <std::size_t wide>
[[gnu::always_inline]] inline void sum_floats(Basic& out, const float* x, std::size_t n, float shift, std::int32_t near) {
    using V = Vectors<wide>;
    using Integers = typename V::Integers;
    using Floats = typename V::Floats;
    using Doubles = typename V::Doubles;
    const Integers positive = Integers{} + 0x7FFFFFFF, bound = Integers{} + near, nothing{};
    const Floats middle = Floats{} + shift;
    Integers largest{}, zeros{}, near_zeros{};
    Floats least = Floats{} + out.least, most = Floats{} + out.most;
    Doubles sum{}, squares{};
    for (std::size_t first = 0; first < n; first += run * wide) {
        const std::size_t last = std::min(n, first + run * wide);
        Floats part{}, part_squares{};
        for (std::size_t i = first; i < last; i += wide) {
            Integers bits;
            std::memcpy(&bits, x + i, sizeof bits);
            const Integers size = bits & positive;
            const Floats value = reinterpret_cast<const Floats&>(bits), off = value - middle;
            largest = size > largest ? size : largest;
            zeros += size == nothing;
            near_zeros += size <= bound;
            least = value < least ? value : least;
            most = value > most ? value : most;
            part += off;
            part_squares += off * off;
        }
        sum += __builtin_convertvector(part, Doubles);
        squares += __builtin_convertvector(part_squares, Doubles);
    }
    for (std::size_t lane = 0; lane < wide; ++lane) {
        out.sum += sum[lane];
        out.squares += squares[lane];
        out.zeros += static_cast<std::uint64_t>(-zeros[lane]);
        out.near_zeros += static_cast<std::uint64_t>(-near_zeros[lane]);
        out.least = std::min(out.least, least[lane]);
        out.most = std::max(out.most, most[lane]);
        out.finite = out.finite && largest[lane] < 0x7F800000;
    }
}

// Extremes of bfloat16 by their bits: interpreted as signed integers, positive values are ordered; as unsigned integers,
// negative values are ordered by increasing magnitude.
struct Bits {
    std::int16_t high;         // largest as a signed number
    std::uint16_t low, first;  // largest and smallest as an unsigned number
    std::uint16_t small;       // smallest magnitude

    [[nodiscard]] bool finite() const { return high < 0x7F80 && low < 0xFF80; }
    [[nodiscard]] std::uint16_t most() const { return high >= 0 ? static_cast<std::uint16_t>(high) : first; }
    [[nodiscard]] std::uint16_t least() const { return low >= 0x8000 ? low : first; }
};

ASYSI_CLONES Bits bits_of_halves(const std::uint16_t* x, std::size_t n) {
    std::int16_t high = -0x8000;
    std::uint16_t low = 0, first = 0xFFFF, small = 0x7FFF;
    for (std::size_t i = 0; i < n; ++i) {
        const auto bits = x[i], size = static_cast<std::uint16_t>(bits & 0x7FFF);
        const auto ordered = static_cast<std::int16_t>(bits);
        high = ordered > high ? ordered : high;
        low = bits > low ? bits : low;
        first = bits < first ? bits : first;
        small = size < small ? size : small;
    }
    return {high, low, first, small};
}

static_assert(block < 0x10000, "counts of a block have 16 bits");

ASYSI_CLONES void count_small_halves(Basic& out, const std::uint16_t* x, std::size_t n, std::uint16_t near) {
    std::uint16_t zeros = 0, near_zeros = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const auto size = static_cast<std::uint16_t>(x[i] & 0x7FFF);
        zeros += size == 0;
        near_zeros += size <= near;
    }
    out.zeros = zeros;
    out.near_zeros = near_zeros;
}

// Sums the two halves of a word separately: the upper one becomes a float32 by masking, the lower one by shifting.
template <std::size_t wide, bool centred>
[[gnu::always_inline]] inline void sum_halves(Basic& out, const std::uint16_t* x, std::size_t n, float shift) {
    using V = Vectors<wide>;
    using Integers = typename V::Integers;
    using Floats = typename V::Floats;
    using Doubles = typename V::Doubles;
    const Integers upper = Integers{} + static_cast<std::int32_t>(0xFFFF0000);
    const Floats middle = Floats{} + shift;
    Doubles sum{}, squares{};
    for (std::size_t first = 0; first < n; first += 2 * run * wide) {
        const std::size_t last = std::min(n, first + 2 * run * wide);
        Floats part{}, other{}, part_squares{}, other_squares{};
        for (std::size_t i = first; i < last; i += 2 * wide) {
            Integers words;
            std::memcpy(&words, x + i, sizeof words);
            const Integers even = words << 16, odd = words & upper;
            Floats one = reinterpret_cast<const Floats&>(even), two = reinterpret_cast<const Floats&>(odd);
            if constexpr (centred) {
                one -= middle;
                two -= middle;
            }
            part += one;
            other += two;
            part_squares += one * one;
            other_squares += two * two;
        }
        sum += __builtin_convertvector(part, Doubles) + __builtin_convertvector(other, Doubles);
        squares += __builtin_convertvector(part_squares, Doubles) + __builtin_convertvector(other_squares, Doubles);
    }
    for (std::size_t lane = 0; lane < wide; ++lane) {
        out.sum += sum[lane];
        out.squares += squares[lane];
    }
}

template <std::size_t wide>
[[gnu::always_inline]] inline void sum_halves(Basic& out, const std::uint16_t* x, std::size_t n, float shift) {
    if (shift == 0)
        sum_halves<wide, false>(out, x, n, shift);
    else
        sum_halves<wide, true>(out, x, n, shift);
}

ASYSI_CLONES void sum_narrow(Basic& out, const std::uint16_t* x, std::size_t n, float shift) { sum_halves<lanes>(out, x, n, shift); }

ASYSI_CLONES void sum_narrow(Basic& out, const float* x, std::size_t n, float shift, std::int32_t near) {
    sum_floats<lanes>(out, x, n, shift, near);
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// 512-bit vectors if supported: vectors wider than a register would be processed element by element.
[[gnu::target("arch=x86-64-v4")]] void sum_512(Basic& out, const std::uint16_t* x, std::size_t n, float shift) {
    sum_halves<2 * lanes>(out, x, n, shift);
}

[[gnu::target("arch=x86-64-v4")]] void sum_512(Basic& out, const float* x, std::size_t n, float shift, std::int32_t near) {
    sum_floats<2 * lanes>(out, x, n, shift, near);
}

const bool has_512 = __builtin_cpu_supports("x86-64-v4");
#else
void sum_512(Basic&, const std::uint16_t*, std::size_t, float) {}
void sum_512(Basic&, const float*, std::size_t, float, std::int32_t) {}

constexpr bool has_512 = false;
#endif

inline float widened(std::uint16_t half) { return std::bit_cast<float>(static_cast<std::uint32_t>(half) << 16); }
inline float widened(float value) { return value; }

// Basic sums of bfloat16: the extremes reveal non-finite elements, in which case the sums are skipped.
Basic basic_of(const std::uint16_t* x, std::size_t n, float shift, std::int32_t near) {
    Basic out;
    const Bits bits = bits_of_halves(x, n);
    out.finite = bits.finite();
    if (!out.finite || n == 0) return out;
    out.least = widened(bits.least());
    out.most = widened(bits.most());
    const auto bound = static_cast<std::uint16_t>(near >> 16);
    if (bits.small <= bound) count_small_halves(out, x, n, bound);
    if (has_512)
        sum_512(out, x, n, shift);
    else
        sum_narrow(out, x, n, shift);
    return out;
}

Basic basic_of(const float* x, std::size_t n, float shift, std::int32_t near) {
    Basic out;
    if (has_512)
        sum_512(out, x, n, shift, near);
    else
        sum_narrow(out, x, n, shift, near);
    return out;
}

// Only the moments of bfloat16 or float32, several times faster than counting patterns.
class Sums {
   public:
    void add(const py::buffer& buffer, float epsilon) {
        const py::buffer_info info = buffer.request();
        if (info.ndim != 1 || (info.itemsize != 2 && info.itemsize != 4) || (info.size > 1 && info.strides[0] != info.itemsize))
            throw std::invalid_argument("needs a contiguous array of one dimension and 2 or 4 bytes an element");
        const py::gil_scoped_release unlocked;
        const auto n = static_cast<std::size_t>(info.size);
        if (info.itemsize == 2)
            all(static_cast<const std::uint16_t*>(info.ptr), n, epsilon);
        else
            all(static_cast<const float*>(info.ptr), n, epsilon);
    }

    [[nodiscard]] py::tuple moments() const {
        const Moments& m = moments_;
        return py::make_tuple(m.finite, m.mean, m.m2, m.least, m.most, m.zeros, m.near_zeros, m.infinities);
    }

   private:
    template <class Element>
    void all(const Element* x, std::size_t n, float epsilon) {
        for (std::size_t first = 0; first < n; first += block) one(x + first, std::min(block, n - first), epsilon);
    }

    template <class Element>
    void one(const Element* x, std::size_t n, float epsilon) {
        const std::size_t whole = n - n % (4 * lanes);
        const float shift = moments_.finite > 0 ? middle() : middle_of(x, std::min<std::size_t>(n, 256));
        const Basic found = basic_of(x, whole, shift, std::bit_cast<std::int32_t>(epsilon));
        if (whole > 0 && found.finite && std::isfinite(found.squares)) {
            Moments moments;
            moments.finite = whole;
            moments.zeros = found.zeros;
            moments.near_zeros = found.near_zeros;
            const double off = found.sum / static_cast<double>(whole);
            moments.mean = static_cast<double>(shift) + off;
            moments.m2 = std::max(0.0, found.squares - found.sum * off);
            moments.least = found.least;
            moments.most = found.most;
            merge(moments_, moments);
        } else {
            slow(x, whole, epsilon);
        }
        slow(x + whole, n - whole, epsilon);
    }

    // If the mean is small compared to the deviation, no shift is needed, which saves an operation.
    [[nodiscard]] float middle() const {
        const double squared = moments_.mean * moments_.mean * static_cast<double>(moments_.finite);
        return 16 * squared <= moments_.m2 ? 0.0f : static_cast<float>(moments_.mean);
    }

    template <class Element>
    static float middle_of(const Element* x, std::size_t n) {
        double sum = 0;
        for (std::size_t i = 0; i < n; ++i) sum += static_cast<double>(widened(x[i]));
        const auto mean = static_cast<float>(n > 0 ? sum / static_cast<double>(n) : 0.0);
        return std::isfinite(mean) ? mean : 0.0f;
    }

    // Scalar path: the remainder after whole vectors, and blocks with non-finite elements.
    template <class Element>
    void slow(const Element* x, std::size_t n, float epsilon) {
        Moments moments;
        double sum = 0;
        for (std::size_t i = 0; i < n; ++i) {
            const float value = widened(x[i]), size = std::fabs(value);
            moments.infinities += std::isinf(value);
            if (!std::isfinite(value)) continue;
            ++moments.finite;
            moments.zeros += size == 0;
            moments.near_zeros += size <= epsilon;
            moments.least = std::min(moments.least, value);
            moments.most = std::max(moments.most, value);
            sum += static_cast<double>(value);
        }
        if (moments.finite > 0) moments.mean = sum / static_cast<double>(moments.finite);
        for (std::size_t i = 0; i < n; ++i) {
            const double off = static_cast<double>(widened(x[i])) - moments.mean;
            if (std::isfinite(off)) moments.m2 += off * off;
        }
        merge(moments_, moments);
    }

    Moments moments_;
};

class Counter {
   public:
    Counter() : counts_(std::make_unique<Counts>()) {}

    void halves(const py::buffer& buffer) {
        const py::buffer_info info = checked(buffer, 2);
        add(static_cast<std::uint64_t>(info.size));
        const py::gil_scoped_release unlocked;
        count_halves(*counts_, static_cast<const unsigned char*>(info.ptr), static_cast<std::size_t>(info.size));
    }

    void floats(const py::buffer& buffer, float epsilon) {
        const py::buffer_info info = checked(buffer, 4);
        add(static_cast<std::uint64_t>(info.size));
        const py::gil_scoped_release unlocked;
        const auto* x = static_cast<const float*>(info.ptr);
        const auto n = static_cast<std::size_t>(info.size);
        for (std::size_t first = 0; first < n; first += block) {
            const std::size_t elements = std::min(block, n - first);
            const std::size_t whole = elements - elements % lanes;
            Moments moments;
            sum_vectors(moments, x + first, whole, epsilon);
            merge(moments_, moments);
            if (whole < elements) {
                std::array<float, lanes> last;
                last.fill(std::numeric_limits<float>::quiet_NaN());  // not counted
                std::copy(x + first + whole, x + first + elements, last.begin());
                Moments rest;
                sum_vectors(rest, last.data(), lanes, epsilon);
                merge(moments_, rest);
            }
            count_upper_halves(*counts_, reinterpret_cast<const unsigned char*>(x + first), elements);
        }
    }

    [[nodiscard]] py::array_t<std::uint64_t> counts() const {
        py::array_t<std::uint64_t> result(patterns);
        auto* out = result.mutable_data();
        for (std::size_t i = 0; i < patterns; ++i) out[i] = total((*counts_)[i]);
        if (whole_)
            for (std::size_t i = 0; i < patterns; ++i) out[i] += (*whole_)[i];
        return result;
    }

    [[nodiscard]] py::tuple moments() const {
        const Moments& m = moments_;
        return py::make_tuple(m.finite, m.mean, m.m2, m.least, m.most, m.zeros, m.near_zeros, m.infinities);
    }

   private:
    static py::buffer_info checked(const py::buffer& buffer, py::ssize_t itemsize) {
        py::buffer_info info = buffer.request();
        if (info.ndim != 1 || info.itemsize != itemsize || (info.size > 1 && info.strides[0] != itemsize))
            throw std::invalid_argument("needs a contiguous array of one dimension and " + std::to_string(itemsize) + " bytes an element");
        if (info.size > 0x7FFFFFFF) throw std::invalid_argument("takes 2^31 - 1 elements at once at most");
        return info;
    }

    // Moves the counts to 64 bits before 32 bits could overflow.
    void add(std::uint64_t elements) {
        if (since_ + elements > 0xFFFFFFFF) {
            if (!whole_) whole_ = std::make_unique<std::array<std::uint64_t, patterns>>();
            for (std::size_t i = 0; i < patterns; ++i) (*whole_)[i] += total((*counts_)[i]);
            counts_->fill({});
            since_ = 0;
        }
        since_ += elements;
    }

    std::unique_ptr<Counts> counts_;
    std::unique_ptr<std::array<std::uint64_t, patterns>> whole_;  // used once 32 bits are not enough
    std::uint64_t since_ = 0;
    Moments moments_;
};

}  // namespace

PYBIND11_MODULE(_count, module) {
    py::class_<Sums>(module, "Sums")
        .def(py::init<>())
        .def("add", &Sums::add, py::arg("array"), py::arg("epsilon"))
        .def("moments", &Sums::moments);
    py::class_<Counter>(module, "Counter")
        .def(py::init<>())
        .def("halves", &Counter::halves, py::arg("array"))
        .def("floats", &Counter::floats, py::arg("array"), py::arg("epsilon"))
        .def("counts", &Counter::counts)
        .def("moments", &Counter::moments);
}
