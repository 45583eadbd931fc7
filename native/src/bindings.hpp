// Shared code of the binding's translation units.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>

#include "asysi/asysi.hpp"

namespace asysi::python {

namespace py = pybind11;

void define_writer(py::module_& m);
void define_reader(py::module_& m);
void define_lane(py::module_& m);

inline std::string path_of(const py::object& folder) {
    return py::module_::import("os").attr("fspath")(folder).cast<std::string>();
}

/// View of a contiguous buffer, held for the lifetime of the object. Needs no NumPy headers and no copy.
class Bytes {
public:
    Bytes(const py::handle& object, const char* name, std::size_t item, std::optional<std::size_t> count) {
        if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_C_CONTIGUOUS) != 0) {
            PyErr_Clear();
            throw std::invalid_argument(std::string(name) + " is not a contiguous array");
        }
        const auto bytes = static_cast<std::size_t>(view_.len);
        if ((!count || bytes == item * *count) && bytes % item == 0) return;
        PyBuffer_Release(&view_);
        throw std::invalid_argument(std::string(name) + " has " + std::to_string(bytes) + " bytes, not " +
                                    (count ? std::to_string(*count) + " x " : "a multiple of ") + std::to_string(item));
    }
    Bytes(const Bytes&) = delete;
    Bytes& operator=(const Bytes&) = delete;
    ~Bytes() { PyBuffer_Release(&view_); }

    [[nodiscard]] std::size_t bytes() const { return static_cast<std::size_t>(view_.len); }

    template <typename T>
    [[nodiscard]] const T* as() const {
        return static_cast<const T*>(view_.buf);
    }

private:
    Py_buffer view_{};
};

inline u64 natural(i64 value, const char* name) {
    if (value >= 0) return static_cast<u64>(value);
    throw std::invalid_argument(std::string(name) + " = " + std::to_string(value) + " is negative");
}

inline u32 small(i64 value, const char* name) {
    const u64 checked = natural(value, name);
    if (checked <= 0xFFFFFFFF) return static_cast<u32>(checked);
    throw std::invalid_argument(std::string(name) + " = " + std::to_string(value) + " is too large");
}

inline Quantization quantization_of(i64 number) {
    if (number >= 0 && number <= 4) return static_cast<Quantization>(number);
    throw std::invalid_argument("quantization " + std::to_string(number) + " is not within 0 to 4");
}

inline std::chrono::nanoseconds seconds(double timeout) {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(std::clamp(timeout, 0.0, 1e9)));
}

inline const char* name_of(Populated populated) {
    return populated == Populated::advised ? "madvise" : populated == Populated::touched ? "touched" : "no";
}

/// State of this process's mapping of the ring's data.
inline py::dict topology_of(const Ring& ring, bool registered) {
    const auto facts = topology::obtained(ring.data());
    py::dict all;
    all["bytes"] = facts.bytes;
    all["resident"] = facts.resident;
    all["populated"] = name_of(facts.populated);
    all["page_bytes"] = facts.page_bytes;
    all["huge_bytes"] = facts.huge;
    all["locked_bytes"] = facts.locked;
    all["registered"] = registered;
    all["nodes"] = facts.nodes;
    return all;
}

template <typename T, typename Class>
void as_context(Class& type) {
    type.def("__enter__", [](py::object self) { return self; });
    type.def("__exit__", [](py::object self, const py::object&, const py::object&, const py::object&) {
        self.attr("close")();
    });
}

}  // namespace asysi::python
