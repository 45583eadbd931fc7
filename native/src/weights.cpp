// What a statistics pass over parameters counts. Floats of 16 bits have 65,536 patterns, so one histogram of the raw
// patterns holds every statistic of a tensor exactly; floats of 32 bits are counted by their upper half, and their
// moments are summed in float64 beside it.
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
constexpr std::size_t tables = 2;  // neighbours are often equal: counted apart, their increments overlap. More tables leave the first-level cache
constexpr std::size_t lanes = 8;
constexpr std::size_t block = 1u << 14;  // elements that stay in the first-level cache between the two sums

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

// Vectors as GCC and Clang know them: they become what the processor has.
using Floats = float __attribute__((vector_size(4 * lanes)));
using Integers = std::int32_t __attribute__((vector_size(4 * lanes)));
using Doubles = double __attribute__((vector_size(8 * lanes)));

// Sums over whole vectors, at most 2^31 elements. What is not finite enters as zero and is not counted.
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
    const double off = static_cast<double>(rounded) - out.mean;  // what each stand-in has added, squared
    out.m2 = std::max(0.0, total - static_cast<double>(n - out.finite) * off * off);
}

// Chan, Golub and LeVeque 1979: moments of two samples together.
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

    // Moves the counts to 64 bits before 32 could overflow.
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
    std::unique_ptr<std::array<std::uint64_t, patterns>> whole_;  // once 32 bits are too few
    std::uint64_t since_ = 0;
    Moments moments_;
};

}  // namespace

PYBIND11_MODULE(_count, module) {
    py::class_<Counter>(module, "Counter")
        .def(py::init<>())
        .def("halves", &Counter::halves, py::arg("array"))
        .def("floats", &Counter::floats, py::arg("array"), py::arg("epsilon"))
        .def("counts", &Counter::counts)
        .def("moments", &Counter::moments);
}
