// Python bindings of a reader: Reader, View and Packets.
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "bindings.hpp"

namespace asysi::python {

namespace {

ReaderState reader_end(const std::string& state) {
    if (state == "finalised") return ReaderState::finalised;
    if (state == "checkpointed") return ReaderState::checkpointed;
    throw std::invalid_argument("a reader ends as finalised or checkpointed, not as " + state);
}

/// A pin with the lifetime of a Python object, which buffer exports keep alive.
class View {
public:
    View(std::shared_ptr<Reader> reader, const Pin& pin) : reader_(std::move(reader)), pin_(pin) {}
    View(const View&) = delete;
    View& operator=(const View&) = delete;
    ~View() {
        if (reader_) reader_->release(pin_);
    }

    [[nodiscard]] const Pin& pin() const { return pin_; }
    [[nodiscard]] const std::shared_ptr<Reader>& reader() const { return reader_; }
    [[nodiscard]] bool of(const std::shared_ptr<Reader>& reader) const { return owner_ == reader.get(); }

    void release() {
        if (!reader_) return;
        if (exports != 0) {
            PyErr_Format(PyExc_BufferError, "packet %llu has %zd live exports: drop the arrays over it first",
                         static_cast<unsigned long long>(pin_.sequence), exports);
            throw py::error_already_set();
        }
        const auto reader = std::move(reader_);
        reader_.reset();
        if (!reader->release(pin_)) refuse();
    }

    [[nodiscard]] py::bytes copy() const {
        if (!reader_) throw ClosedError("the view is released");
        auto bytes = py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(pin_.size)));
        if (!bytes) throw py::error_already_set();
        char* const to = PyBytes_AS_STRING(bytes.ptr());
        {
            const py::gil_scoped_release released;
            std::memcpy(to, pin_.bytes, pin_.size);
        }
        if (!reader_->holds(pin_)) refuse();
        return bytes;
    }

    Py_ssize_t exports = 0;

private:
    [[noreturn]] void refuse() const {
        throw RevokedError("the pin of packet " + std::to_string(pin_.sequence) + " in shard " + std::to_string(pin_.shard) +
                           " was revoked: its bytes may have belonged to another packet");
    }

    std::shared_ptr<Reader> reader_;
    Pin pin_;
    const Reader* owner_ = reader_.get();
};

int get_buffer(PyObject* self, Py_buffer* out, int flags) {
    auto& view = py::handle(self).cast<View&>();
    if (!view.reader()) {
        PyErr_SetString(PyExc_ValueError, "the view is released");
        return -1;
    }
    auto* const bytes = const_cast<std::byte*>(view.pin().bytes);
    if (PyBuffer_FillInfo(out, self, bytes, static_cast<Py_ssize_t>(view.pin().size), 1, flags) != 0) return -1;
    ++view.exports;
    return 0;
}

void release_buffer(PyObject* self, Py_buffer*) { --py::handle(self).cast<View&>().exports; }

/// Pins available packets, waiting for the first; releases the GIL only while waiting, and handles signals.
std::vector<Pin> pin_some(Reader& reader, std::size_t limit, double timeout) {
    using clock = std::chrono::steady_clock;
    using namespace std::chrono_literals;
    std::vector<Pin> pins;
    // Check for closing before the packets: nothing follows it.
    bool over = reader.producer_closed();
    reader.gather(pins, limit);
    if (!pins.empty() || over || timeout <= 0 || limit == 0) return pins;
    const auto deadline = clock::now() + seconds(timeout);
    while (pins.empty() && !over && clock::now() < deadline) {
        {
            const py::gil_scoped_release released;
            reader.pull(pins, limit, std::min<std::chrono::nanoseconds>(deadline - clock::now(), 100ms));
            over = pins.empty() && reader.producer_closed();
        }
        if (pins.empty() && PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
    // Packets published between the last check and the end.
    if (pins.empty() && over) reader.gather(pins, limit);
    return pins;
}

std::vector<std::unique_ptr<View>> pull(const std::shared_ptr<Reader>& reader, i64 limit, double timeout) {
    const auto pins = pin_some(*reader, limit > 0 ? static_cast<std::size_t>(limit) : 0, timeout);
    std::vector<std::unique_ptr<View>> views;
    views.reserve(pins.size());
    for (const Pin& pin : pins) views.push_back(std::make_unique<View>(reader, pin));
    return views;
}

/// Iterator over a reader's packets: each packet is consumed and released when the next one is requested.
class Packets {
public:
    Packets(std::shared_ptr<Reader> reader, std::optional<double> timeout) : reader_(std::move(reader)), timeout_(timeout) {}

    py::object next() {
        if (!last_.is_none()) {
            auto& view = last_.cast<View&>();
            reader_->consumed(view.pin());
            // Arrays that the caller still holds keep their pin.
            if (view.exports == 0) view.release();
            last_ = py::none();
        }
        for (;;) {
            const auto pins = pin_some(*reader_, 1, timeout_.value_or(1.0));
            if (!pins.empty()) {
                last_ = py::cast(std::make_unique<View>(reader_, pins[0]));
                return last_;
            }
            if (reader_->producer_closed()) throw py::stop_iteration();
            if (timeout_) {
                PyErr_Format(PyExc_TimeoutError, "no packet arrived within %R seconds", py::float_(*timeout_).ptr());
                throw py::error_already_set();
            }
        }
    }

private:
    std::shared_ptr<Reader> reader_;
    std::optional<double> timeout_;
    py::object last_ = py::none();
};

void consumed_view(const std::shared_ptr<Reader>& reader, const View& view) {
    if (!view.of(reader)) throw std::invalid_argument("the view comes from another reader");
    reader->consumed(view.pin());
}

void define_view(py::module_& m) {
    const auto buffers = py::custom_type_setup([](PyHeapTypeObject* type) {
        type->ht_type.tp_as_buffer = &type->as_buffer;
        type->as_buffer.bf_getbuffer = get_buffer;
        type->as_buffer.bf_releasebuffer = release_buffer;
    });
    py::class_<View> type(m, "View", py::is_final(), buffers);
    type.def_property_readonly("shard", [](const View& v) { return v.pin().shard; });
    type.def_property_readonly("sequence", [](const View& v) { return v.pin().sequence; });
    type.def_property_readonly("account", [](const View& v) { return v.pin().account; });
    type.def_property_readonly("rows", [](const View& v) { return v.pin().rows; });
    type.def_property_readonly("lapped_rows", [](const View& v) { return v.pin().lapped_rows; });
    type.def("release", &View::release);
    type.def("copy", &View::copy);
    type.def_property_readonly("released", [](const View& v) { return !v.reader(); });
    type.def("__len__", [](const View& v) { return v.pin().size; });
    type.def("__enter__", [](py::object self) { return self; });
    type.def("__exit__", [](View& v, const py::object&, const py::object&, const py::object&) { v.release(); });
}

}  // namespace

void define_reader(py::module_& m) {
    define_view(m);
    py::class_<Reader, std::shared_ptr<Reader>> type(m, "Reader", py::is_final());
    py::class_<Packets> packets(m, "Packets", py::is_final());
    packets.def("__iter__", [](py::object self) { return self; });
    packets.def("__next__", &Packets::next);
    type.def(py::init([](const py::object& folder, const std::string& name, double timeout) {
                 const std::string path = path_of(folder);
                 const py::gil_scoped_release released;
                 return std::make_shared<Reader>(path, name, seconds(timeout));
             }),
             py::arg("folder"), py::arg("name"), py::kw_only(), py::arg("timeout") = 0.0);
    type.def("__iter__", [](const std::shared_ptr<Reader>& r) { return std::make_unique<Packets>(r, std::nullopt); });
    type.def(
        "packets",
        [](const std::shared_ptr<Reader>& r, std::optional<double> timeout) { return std::make_unique<Packets>(r, timeout); },
        py::arg("timeout") = py::none());
    type.def("topology", [](const Reader& r) {
        return topology_of(r.ring(), r.ring().reader(r.index()).mapping.registered.load() == 1);
    });
    type.def("pool", [](const Reader& r) {
        return py::make_tuple(reinterpret_cast<std::uintptr_t>(r.ring().data().base()), r.ring().data().bytes());
    });
    type.def("note_registered", &Reader::note_registered, py::arg("registered"));
    type.def_property_readonly("index", &Reader::index);
    type.def("pull", &pull, py::arg("limit") = 64, py::arg("timeout") = 0.1);
    type.def("consumed", &consumed_view, py::arg("view"));
    type.def("mark_durable", &Reader::mark_durable);
    type.def(
        "restore_durable",
        [](Reader& r, i64 account, i64 rows, std::optional<i64> position) {
            r.restore_durable(small(account, "account"), natural(rows, "rows"),
                              position ? std::optional(natural(*position, "position")) : std::nullopt);
        },
        py::arg("account"), py::arg("rows"), py::arg("position") = py::none());
    type.def("settle", &Reader::settle);
    type.def("finalise", [](Reader& r, const std::string& state) { r.finalise(reader_end(state)); }, py::arg("state"));
    type.def("ended", [](Reader& r) -> py::object {
        const auto state = r.ended();
        if (!state) return py::none();
        return py::str(*state == WriterState::complete ? "complete" : "attempt_over");
    });
    type.def("lag", &Reader::lag);
    type.def(
        "gauge",
        [](Reader& r, i64 account, i64 slot, double value) { r.gauge(small(account, "account"), small(slot, "slot"), value); },
        py::arg("account"), py::arg("slot"), py::arg("value"));
    type.def("close", &Reader::close);
    as_context<Reader>(type);
}

}  // namespace asysi::python
