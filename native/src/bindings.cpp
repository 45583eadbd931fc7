// Python's door to the ring. Everything that decides is in the headers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "asysi/asysi.hpp"

namespace py = pybind11;
using namespace asysi;

namespace {

using Layout = std::vector<std::tuple<std::string, std::size_t, std::size_t>>;
#define FIELD(type, name) {#name, offsetof(type, name), sizeof(type::name)}

Layout header_layout() {
    return {FIELD(PacketHeader, magic), FIELD(PacketHeader, version), FIELD(PacketHeader, header_bytes),
            FIELD(PacketHeader, sequence), FIELD(PacketHeader, source), FIELD(PacketHeader, rows_before),
            FIELD(PacketHeader, step), FIELD(PacketHeader, captured_ns), FIELD(PacketHeader, sampling_rate),
            FIELD(PacketHeader, generation), FIELD(PacketHeader, attempt), FIELD(PacketHeader, rank),
            FIELD(PacketHeader, account), FIELD(PacketHeader, call_index), FIELD(PacketHeader, rows),
            FIELD(PacketHeader, width), FIELD(PacketHeader, step_rows), FIELD(PacketHeader, step_kept),
            FIELD(PacketHeader, batch), FIELD(PacketHeader, length), FIELD(PacketHeader, part),
            FIELD(PacketHeader, parts), FIELD(PacketHeader, kind), FIELD(PacketHeader, dtype),
            FIELD(PacketHeader, quantization), FIELD(PacketHeader, flags), FIELD(PacketHeader, payload_bytes),
            FIELD(PacketHeader, scale_bytes), FIELD(PacketHeader, reserved)};
}

Layout control_layout() {
    return {FIELD(ControlHeader, magic), FIELD(ControlHeader, major), FIELD(ControlHeader, minor),
            FIELD(ControlHeader, endian), FIELD(ControlHeader, control_header_bytes),
            FIELD(ControlHeader, packet_header_bytes), FIELD(ControlHeader, shards), FIELD(ControlHeader, chunks),
            FIELD(ControlHeader, readers), FIELD(ControlHeader, accounts), FIELD(ControlHeader, pins),
            FIELD(ControlHeader, policy), FIELD(ControlHeader, chunk_bytes), FIELD(ControlHeader, control_bytes),
            FIELD(ControlHeader, data_bytes), FIELD(ControlHeader, live_at), FIELD(ControlHeader, shards_at),
            FIELD(ControlHeader, readers_at), FIELD(ControlHeader, cursors_at), FIELD(ControlHeader, accounts_at),
            FIELD(ControlHeader, books_at), FIELD(ControlHeader, slots_at), FIELD(ControlHeader, states_at),
            FIELD(ControlHeader, reader_names)};
}

Policy policy_of(const std::string& name) {
    if (name == "overwrite") return Policy::overwrite;
    if (name == "drop_new") return Policy::drop_new;
    throw GeometryError("the ring cannot be laid out: policy " + name + " is neither drop_new nor overwrite");
}

std::string path_of(const py::object& folder) {
    return py::module_::import("os").attr("fspath")(folder).cast<std::string>();
}

/// The bytes of a contiguous buffer, held while this lives. Goes without numpy's headers, and without a copy.
class Bytes {
public:
    Bytes(const py::handle& object, const char* name, std::size_t item, std::optional<std::size_t> count) {
        if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_C_CONTIGUOUS) != 0) {
            PyErr_Clear();
            throw std::invalid_argument(std::string(name) + " is no contiguous array");
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

    template <typename T>
    [[nodiscard]] const T* as() const {
        return static_cast<const T*>(view_.buf);
    }

private:
    Py_buffer view_{};
};

u64 natural(i64 value, const char* name) {
    if (value >= 0) return static_cast<u64>(value);
    throw std::invalid_argument(std::string(name) + " = " + std::to_string(value) + " is negative");
}

u32 small(i64 value, const char* name) {
    const u64 checked = natural(value, name);
    if (checked <= 0xFFFFFFFF) return static_cast<u32>(checked);
    throw std::invalid_argument(std::string(name) + " = " + std::to_string(value) + " is too large");
}

std::chrono::nanoseconds seconds(double timeout) {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(std::clamp(timeout, 0.0, 1e9)));
}

Quantization quantization_of(i64 number) {
    if (number >= 0 && number <= 3) return static_cast<Quantization>(number);
    throw std::invalid_argument("quantization " + std::to_string(number) + " is not within 0 to 3");
}

bool publish_block(Writer& writer, i64 shard, const py::object& header, const py::object& rows, std::uintptr_t address,
                   i64 row_stride, const py::object& index, i64 count, i64 source_dtype, i64 quantization, bool book_seen,
                   const py::object& scales) {
    const auto n = static_cast<std::size_t>(small(count, "count"));
    const Bytes header_view(header, "header", header_bytes, 1);
    std::optional<Bytes> rows_view;
    std::optional<Bytes> index_view;
    std::optional<Bytes> scales_view;
    if (!rows.is_none()) rows_view.emplace(rows, "rows", row_bytes, n);
    if (!index.is_none()) index_view.emplace(index, "index", sizeof(i64), n);
    if (!scales.is_none()) scales_view.emplace(scales, "scales", sizeof(float), n);
    Block block{};
    block.shard = small(shard, "shard");
    std::memcpy(&block.header, header_view.as<PacketHeader>(), sizeof block.header);
    block.records = rows_view ? rows_view->as<RowRecord>() : nullptr;
    block.rows = {.base = reinterpret_cast<const std::byte*>(address),
                  .stride = row_stride,
                  .index = index_view ? index_view->as<i64>() : nullptr,
                  .count = n,
                  .width = block.header.width,
                  .dtype = static_cast<Dtype>(small(source_dtype, "source_dtype") & 0xFFFF)};
    block.quantization = quantization_of(quantization);
    block.scales = scales_view ? scales_view->as<float>() : nullptr;
    block.book_seen = book_seen;
    // Below this, taking the interpreter back from another thread costs more than the copy.
    constexpr std::size_t worth_releasing = 32 * 1024;
    if (n * block.rows.bytes() < worth_releasing) return writer.publish(block);
    const py::gil_scoped_release released;
    return writer.publish(block);
}

WriterState writer_end(const std::string& state) {
    if (state == "complete") return WriterState::complete;
    if (state == "attempt_over") return WriterState::attempt_over;
    throw std::invalid_argument("a producer ends as complete or attempt_over, not as " + state);
}

ReaderState reader_end(const std::string& state) {
    if (state == "finalised") return ReaderState::finalised;
    if (state == "checkpointed") return ReaderState::checkpointed;
    throw std::invalid_argument("a reader ends as finalised or checkpointed, not as " + state);
}

/// A pin whose lifetime is the Python object's, which every export keeps alive.
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
                           " was taken away: its bytes may have been another packet's");
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

/// Pins what there is, waiting for the first: the interpreter is given back only to wait, and signals are handled.
std::vector<Pin> pin_some(Reader& reader, std::size_t limit, double timeout) {
    using clock = std::chrono::steady_clock;
    using namespace std::chrono_literals;
    std::vector<Pin> pins;
    // Closed is looked at before the packets: nothing comes after it.
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
    // What came between the last look and the end.
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

/// The packets of a reader, one by one: each is consumed and released when the next is asked for.
class Packets {
public:
    Packets(std::shared_ptr<Reader> reader, std::optional<double> timeout) : reader_(std::move(reader)), timeout_(timeout) {}

    py::object next() {
        if (!last_.is_none()) {
            auto& view = last_.cast<View&>();
            reader_->consumed(view.pin());
            // An array that the caller keeps keeps its pin.
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
                PyErr_Format(PyExc_TimeoutError, "no packet came in %R seconds", py::float_(*timeout_).ptr());
                throw py::error_already_set();
            }
        }
    }

private:
    std::shared_ptr<Reader> reader_;
    std::optional<double> timeout_;
    py::object last_ = py::none();
};

/// A chunk that Python fills in place.
class Filling {
public:
    Filling(std::shared_ptr<Writer> writer, Claim claim) : writer_(std::move(writer)), claim_(std::move(claim)) {}
    Filling(const Filling&) = delete;
    Filling& operator=(const Filling&) = delete;
    ~Filling() { claim_.abort(); }

    [[nodiscard]] Claim& claim() { return claim_; }
    void commit() {
        if (exports != 0) {
            PyErr_Format(PyExc_BufferError, "%zd arrays over the claim are alive, and could change the packet: drop them first",
                         exports);
            throw py::error_already_set();
        }
        claim_.commit();
    }
    void set_rows(const py::object& rows) {
        expect_open();
        const auto to = claim_.records();
        const Bytes from(rows, "rows", row_bytes, to.size());
        std::memcpy(to.data(), from.as<std::byte>(), to.size_bytes());
    }
    void set_scales(const py::object& scales) {
        expect_open();
        const auto to = claim_.scales();
        const Bytes from(scales, "scales", sizeof(float), to.size());
        std::memcpy(to.data(), from.as<std::byte>(), to.size_bytes());
    }
    void expect_open() const {
        if (!claim_.open()) throw ClosedError("the claim was committed or aborted");
    }

    Py_ssize_t exports = 0;

private:
    std::shared_ptr<Writer> writer_;
    Claim claim_;
};

int get_claim_buffer(PyObject* self, Py_buffer* out, int flags) {
    auto& filling = py::handle(self).cast<Filling&>();
    if (!filling.claim().open()) {
        PyErr_SetString(PyExc_ValueError, "the claim was committed or aborted");
        return -1;
    }
    const auto payload = filling.claim().payload();
    if (PyBuffer_FillInfo(out, self, payload.data(), static_cast<Py_ssize_t>(payload.size()), 0, flags) != 0) return -1;
    ++filling.exports;
    return 0;
}

void release_claim_buffer(PyObject* self, Py_buffer*) { --py::handle(self).cast<Filling&>().exports; }

std::unique_ptr<Filling> claim(const std::shared_ptr<Writer>& writer, i64 shard, const py::object& header, i64 count, i64 dtype,
                               i64 quantization, const py::object& rows, bool book_seen) {
    const auto n = static_cast<std::size_t>(small(count, "count"));
    const Bytes header_view(header, "header", header_bytes, 1);
    std::optional<Bytes> rows_view;
    if (!rows.is_none()) rows_view.emplace(rows, "rows", row_bytes, n);
    Block block{};
    block.shard = small(shard, "shard");
    std::memcpy(&block.header, header_view.as<PacketHeader>(), sizeof block.header);
    block.records = rows_view ? rows_view->as<RowRecord>() : nullptr;
    block.rows = {.base = nullptr, .stride = 0, .index = nullptr, .count = n, .width = block.header.width,
                  .dtype = static_cast<Dtype>(small(dtype, "dtype") & 0xFFFF)};
    block.quantization = quantization_of(quantization);
    block.book_seen = book_seen;
    auto claimed = writer->claim(block);
    if (claimed) return std::make_unique<Filling>(writer, std::move(*claimed));
    throw FullError("shard " + std::to_string(shard) + " of the ring in " + writer->ring().folder() + " has no chunk for " +
                    std::to_string(n) + " rows: they are booked as dropped");
}

void consumed_view(const std::shared_ptr<Reader>& reader, const View& view) {
    if (!view.of(reader)) throw std::invalid_argument("the view comes from another reader");
    reader->consumed(view.pin());
}

py::dict geometry(const Control& control) {
    const Geometry& g = control.ring().geometry();
    py::dict facts;
    facts["shards"] = g.shards;
    facts["chunks"] = g.chunks;
    facts["chunk_bytes"] = g.chunk_bytes;
    facts["depth"] = g.depth();
    facts["pins"] = g.pins;
    facts["accounts"] = g.accounts;
    facts["policy"] = g.policy == Policy::overwrite ? "overwrite" : "drop_new";
    facts["abi"] = std::to_string(abi_major) + "." + std::to_string(abi_minor);
    facts["generation"] = control.ring().live().generation.load();
    return facts;
}

const char* name_of(Populated populated) {
    return populated == Populated::advised ? "madvise" : populated == Populated::touched ? "touched" : "no";
}

/// What this process has of the ring's data.
py::dict topology_of(const Ring& ring, bool registered) {
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

py::dict attached(const Attached& there) {
    py::dict all;
    all["bytes"] = there.bytes.load();
    all["populated"] = name_of(static_cast<Populated>(there.populated.load() & 3));
    all["registered"] = there.registered.load() == 1;
    return all;
}

/// What the file system holds, and what producer and readers obtained when they attached.
py::dict topology_seen(const Control& control) {
    const Ring& ring = control.ring();
    const auto facts = topology::stored(data_path(ring.folder()));
    py::dict all, readers;
    all["file_system"] = facts.file_system;
    all["bytes"] = facts.bytes;
    all["allocated"] = facts.allocated;
    all["page_bytes"] = facts.page_bytes;
    all["nodes"] = facts.nodes;
    all["machine_nodes"] = topology::nodes();
    all["huge_on_request"] = topology::huge_on_request();
    all["writer"] = attached(ring.live().writer);
    for (u32 i = 0; i < ring.geometry().reader_count(); ++i) readers[py::str(ring.geometry().readers[i])] = attached(ring.reader(i).mapping);
    all["readers"] = readers;
    return all;
}

/// Chunks that a reader has pinned, a shard.
std::vector<u32> pins_of(const Control& control, const std::string& reader) {
    const Ring& ring = control.ring();
    const u32 index = ring.reader_index(reader);
    std::vector<u32> pins;
    for (u32 s = 0; s < ring.geometry().shards; ++s) {
        u32 held = 0;
        for (u32 c = 0; c < ring.geometry().chunks; ++c) held += (ring.state(s, c).load(std::memory_order_relaxed) >> index) & 1;
        pins.push_back(held);
    }
    return pins;
}

py::list produced_books(const Control& control) {
    py::list accounts;
    for (u32 i = 0; i < control.ring().accounts(); ++i) {
        const auto values = control.ring().account(i).counters.load();
        py::list dropped;
        for (u32 r = 0; r < max_reasons; ++r) dropped.append(values[produced::dropped + r]);
        py::dict account;
        account["seen"] = values[produced::seen];
        account["published"] = values[produced::published];
        account["sampled_out"] = values[produced::sampled_out];
        account["dropped"] = dropped;
        account["packets"] = values[produced::packets];
        accounts.append(account);
    }
    return accounts;
}

py::list consumed_books(const Control& control, const std::string& reader) {
    const u32 index = control.ring().reader_index(reader);
    py::list accounts;
    for (u32 i = 0; i < control.ring().accounts(); ++i) {
        const auto values = control.ring().book(index, i).counters.load();
        py::dict account;
        account["position"] = values[consumed::position];
        account["durable"] = values[consumed::durable];
        account["lapped"] = values[consumed::lapped];
        account["rolled_back"] = values[consumed::rolled_back];
        accounts.append(account);
    }
    return accounts;
}

std::vector<std::vector<double>> gauges(const Control& control, const std::string& reader) {
    const u32 index = control.ring().reader_index(reader);
    std::vector<std::vector<double>> all;
    for (u32 i = 0; i < control.ring().accounts(); ++i) {
        auto& row = all.emplace_back();
        for (const auto& gauge : control.ring().book(index, i).gauges) row.push_back(std::bit_cast<double>(gauge.load()));
    }
    return all;
}

std::vector<std::string> account_names(const Control& control) {
    std::vector<std::string> names;
    for (u32 i = 0; i < control.ring().accounts(); ++i) names.push_back(control.ring().account_name(i));
    return names;
}

template <typename T, typename Class>
void as_context(Class& type) {
    type.def("__enter__", [](py::object self) { return self; });
    type.def("__exit__", [](py::object self, const py::object&, const py::object&, const py::object&) {
        self.attr("close")();
    });
}

/// Errors of the system keep their errno, so that a missing ring is a FileNotFoundError.
void translate(std::exception_ptr error) {
    try {
        if (error) std::rethrow_exception(error);
    } catch (const std::filesystem::filesystem_error& failure) {
        errno = failure.code().value();
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, failure.path1().c_str());
    } catch (const std::system_error& failure) {
        const py::object arguments = py::make_tuple(failure.code().value(), failure.what());
        const py::object made = py::reinterpret_steal<py::object>(PyObject_CallObject(PyExc_OSError, arguments.ptr()));
        if (made) PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(made.ptr())), made.ptr());
    }
}

void define_exceptions(py::module_& m) {
    py::register_exception_translator(&translate);
    auto base = py::register_exception<RingError>(m, "RingError");
    auto geometry = py::register_exception<GeometryError>(m, "GeometryError", base);
    py::register_exception<TruncatedError>(m, "TruncatedError", geometry);
    auto version = py::register_exception<VersionError>(m, "VersionError", base);
    py::register_exception<EndianError>(m, "EndianError", version);
    py::register_exception<FullError>(m, "FullError", base);
    py::register_exception<SpaceError>(m, "SpaceError", base);
    py::register_exception<BusyError>(m, "BusyError", base);
    py::register_exception<RevokedError>(m, "RevokedError", base);
    py::register_exception<ClosedError>(m, "ClosedError", base);
}

void define_creation(py::module_& m) {
    m.attr("HEADER_BYTES") = header_bytes;
    m.attr("PACKET_VERSION") = static_cast<u32>(packet_version);
    m.attr("MAX_READERS") = max_readers;
    m.attr("MAX_REASONS") = static_cast<u32>(max_reasons);
    m.attr("MAILBOX_WORDS") = static_cast<u32>(mailbox_words);
    m.attr("MAX_PINS") = 16;
    m.def("header_layout", &header_layout);
    m.def("control_layout", &control_layout);
    m.def("payload_at", &payload_at, py::arg("rows"), py::arg("scale_bytes"));
    m.def(
        "required_bytes",
        [](u32 shards, u32 chunks, u64 chunk_bytes, u32 accounts) {
            // For as many readers as there may be: the books of one take little beside the chunks.
            const Geometry g{shards, chunks, chunk_bytes, accounts, 1, Policy::overwrite, {}};
            const Sections at(g, max_readers);
            return at.control_bytes + at.data_bytes;
        },
        py::kw_only(), py::arg("shards"), py::arg("chunks"), py::arg("chunk_bytes"), py::arg("accounts") = 256);
    m.def(
        "create",
        [](const py::object& folder, u32 shards, u32 chunks, u64 chunk_bytes, std::vector<std::string> readers, u32 accounts,
           const std::string& policy, u32 pins, double timeout, std::optional<int> node) {
            const Geometry g{shards, chunks, chunk_bytes, accounts, pins, policy_of(policy), std::move(readers)};
            const std::string path = path_of(folder);
            const py::gil_scoped_release released;
            return create(path, g, seconds(timeout), node);
        },
        py::arg("folder"), py::kw_only(), py::arg("shards"), py::arg("chunks"), py::arg("chunk_bytes"), py::arg("readers"),
        py::arg("accounts") = 256, py::arg("policy"), py::arg("pins") = 16, py::arg("timeout") = 30.0,
        py::arg("node") = py::none());
    m.def(
        "reset",
        [](const py::object& folder, double timeout) {
            const std::string path = path_of(folder);
            const py::gil_scoped_release released;
            reset(path, seconds(timeout));
        },
        py::arg("folder"), py::kw_only(), py::arg("timeout") = 30.0);
}

void define_writer(py::module_& m) {
    const auto buffers = py::custom_type_setup([](PyHeapTypeObject* type) {
        type->ht_type.tp_as_buffer = &type->as_buffer;
        type->as_buffer.bf_getbuffer = get_claim_buffer;
        type->as_buffer.bf_releasebuffer = release_claim_buffer;
    });
    py::class_<Filling> filling(m, "Claim", py::is_final(), buffers);
    filling.def_property_readonly("open", [](Filling& f) { return f.claim().open(); });
    filling.def("set_rows", &Filling::set_rows, py::arg("rows"));
    filling.def("set_scales", &Filling::set_scales, py::arg("scales"));
    filling.def("commit", &Filling::commit);
    filling.def("abort", [](Filling& f) { f.claim().abort(); });
    filling.def("__len__", [](Filling& f) { return f.claim().payload().size(); });
    filling.def("__enter__", [](py::object self) { return self; });
    filling.def("__exit__", [](Filling& f, const py::object& kind, const py::object&, const py::object&) {
        if (!f.claim().open()) return;
        if (kind.is_none() && f.exports == 0) return f.commit();
        f.claim().abort();
        if (!kind.is_none()) return;
        PyErr_SetString(PyExc_BufferError, "an array over the claim outlives the block, and could change the packet: the claim "
                                           "was aborted and its rows booked as dropped; del the array inside the block");
        throw py::error_already_set();
    });
    py::class_<Writer, std::shared_ptr<Writer>> type(m, "Writer", py::is_final());
    type.def(py::init([](const py::object& folder, double timeout) {
                 const std::string path = path_of(folder);
                 const py::gil_scoped_release released;
                 return std::make_shared<Writer>(path, seconds(timeout));
             }),
             py::arg("folder"), py::kw_only(), py::arg("timeout") = 0.0);
    type.def("claim", &claim, py::arg("shard"), py::arg("header"), py::arg("count"), py::arg("dtype"), py::arg("quantization") = 0,
             py::kw_only(), py::arg("rows") = py::none(), py::arg("book_seen") = true);
    type.def("topology", [](const Writer& w) { return topology_of(w.ring(), w.ring().live().writer.registered.load() == 1); });
    type.def("pool", [](const Writer& w) {
        return py::make_tuple(reinterpret_cast<std::uintptr_t>(w.ring().data().base()), w.ring().data().bytes());
    });
    type.def("note_registered", &Writer::note_registered, py::arg("registered"));
    type.def_property_readonly("generation", &Writer::generation);
    type.def_property_readonly("chunk_bytes", [](const Writer& w) { return w.geometry().chunk_bytes; });
    type.def_property_readonly("shards", [](const Writer& w) { return w.geometry().shards; });
    type.def("account", &Writer::account, py::arg("name"));
    type.def("free", [](Writer& w, i64 shard) { return w.free(small(shard, "shard")); }, py::arg("shard") = 0);
    type.def("source", [](const Writer& w, i64 shard) { return w.source(small(shard, "shard")); }, py::arg("shard") = 0);
    type.def("head", [](const Writer& w, i64 shard) { return w.head(small(shard, "shard")); }, py::arg("shard") = 0);
    type.def("publish_block", &publish_block, py::arg("shard"), py::arg("header"), py::arg("rows"), py::arg("address"),
             py::arg("row_stride"), py::arg("index"), py::arg("count"), py::arg("source_dtype"), py::arg("quantization"),
             py::kw_only(), py::arg("book_seen") = true, py::arg("scales") = py::none());
    type.def(
        "book",
        [](Writer& w, i64 account, i64 seen, i64 sampled_out, i64 dropped, i64 reason, i64 shard, i64 source) {
            w.book(small(account, "account"),
                   {.seen = natural(seen, "seen"), .sampled_out = natural(sampled_out, "sampled_out"),
                    .dropped = natural(dropped, "dropped"), .reason = small(reason, "reason")},
                   small(shard, "shard"), natural(source, "source"));
        },
        py::arg("account"), py::kw_only(), py::arg("seen") = 0, py::arg("sampled_out") = 0, py::arg("dropped") = 0,
        py::arg("reason") = 0, py::arg("shard") = 0, py::arg("source") = 0);
    type.def(
        "close",
        [](Writer& w, const std::optional<std::string>& state) {
            w.close(state ? std::optional(writer_end(*state)) : std::nullopt);
        },
        py::arg("state") = py::none());
    as_context<Writer>(type);
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

void define_reader(py::module_& m) {
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

void define_control(py::module_& m) {
    py::class_<Control> type(m, "Control", py::is_final());
    type.def(py::init([](const py::object& folder) { return std::make_unique<Control>(path_of(folder)); }), py::arg("folder"));
    type.def("accounts", &account_names);
    type.def("readers", [](const Control& c) { return c.ring().geometry().readers; });
    type.def("geometry", &geometry);
    type.def("topology", &topology_seen);
    type.def("pins", &pins_of, py::arg("reader"));
    type.def("epoch", [](const Control& c, const std::string& reader) {
        return c.ring().reader(c.ring().reader_index(reader)).epoch.load();
    }, py::arg("reader"));
    type.def("heads", [](const Control& c) {
        std::vector<u64> heads;
        for (u32 s = 0; s < c.ring().geometry().shards; ++s) heads.push_back(c.ring().shard(s).head.load());
        return heads;
    });
    type.def("produced", &produced_books);
    type.def("consumed", &consumed_books, py::arg("reader"));
    type.def("gauges", &gauges, py::arg("reader"));
    type.def(
        "cursors",
        [](const Control& c, const std::string& reader) {
            const u32 index = c.ring().reader_index(reader);
            std::vector<u64> cursors;
            for (u32 s = 0; s < c.ring().geometry().shards; ++s) cursors.push_back(c.ring().cursor(index, s).load());
            return cursors;
        },
        py::arg("reader"));
    type.def("lag", [](const Control& c, const std::string& reader) { return c.ring().lag(c.ring().reader_index(reader)); },
             py::arg("reader"));
    type.def("reader_state", &Control::reader_state, py::arg("reader"));
    type.def("writer_state", &Control::writer_state);
    type.def("get", [](const Control& c, i64 word) { return c.word(word).load(); }, py::arg("word"));
    type.def("set", [](const Control& c, i64 word, u64 value) { c.word(word).store(value); }, py::arg("word"), py::arg("value"));
    type.def("get_float", [](const Control& c, i64 word) { return std::bit_cast<double>(c.word(word).load()); }, py::arg("word"));
    type.def(
        "set_float",
        [](const Control& c, i64 word, double value) { c.word(word).store(std::bit_cast<u64>(value)); }, py::arg("word"),
        py::arg("value"));
    type.def("close", &Control::close);
    as_context<Control>(type);
}

/// How often each test point was reached in this process; nothing in a build without them.
py::dict testpoints() {
    py::dict reached;
#ifdef ASYSI_TESTPOINTS
    for (std::size_t i = 0; i < testpoint::labels.size(); ++i) {
        reached[py::str(testpoint::labels[i].data(), testpoint::labels[i].size())] = testpoint::hits[i].load();
    }
#endif
    return reached;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "The native ring";
    define_exceptions(m);
    m.def("testpoints", &testpoints);
    define_creation(m);
    define_writer(m);
    define_view(m);
    define_reader(m);
    define_control(m);
}
