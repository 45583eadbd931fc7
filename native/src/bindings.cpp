// Python bindings of the ring: the module, its errors, creation and Control. All logic is in the headers.
#include <tuple>
#include <utility>
#include <vector>

#include "asysi/device_runtime.hpp"
#include "bindings.hpp"

namespace asysi::python {

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
            FIELD(PacketHeader, scale_bytes), FIELD(PacketHeader, saturated), FIELD(PacketHeader, loss_scale),
            FIELD(PacketHeader, accumulated), FIELD(PacketHeader, microbatch), FIELD(PacketHeader, reduction),
            FIELD(PacketHeader, reserved)};
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

py::dict attached(const Attached& there) {
    py::dict all;
    all["bytes"] = there.bytes.load();
    all["populated"] = name_of(static_cast<Populated>(there.populated.load() & 3));
    all["registered"] = there.registered.load() == 1;
    return all;
}

/// State of the data file, and the mappings of the producer and readers at attach time.
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

/// Number of chunks pinned by a reader, per shard.
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

/// Number of open claims (neither committed nor aborted) per shard.
std::vector<u32> open_claims(const Control& control) {
    const Ring& ring = control.ring();
    std::vector<u32> claims;
    for (u32 s = 0; s < ring.geometry().shards; ++s) {
        u32 open = 0;
        for (u32 c = 0; c < ring.geometry().chunks; ++c) open += ring.claim(s, c).open.load(std::memory_order_relaxed) == 1 ? 1U : 0U;
        claims.push_back(open);
    }
    return claims;
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

/// System errors keep their errno, so that a missing ring raises FileNotFoundError.
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
    py::register_exception<DeviceError>(m, "DeviceError", base);
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
            // Assume the maximum number of readers: their counters are small compared to the chunks.
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
    type.def("scattered", [](const Control& c) {
        std::vector<u64> scattered;
        for (u32 s = 0; s < c.ring().geometry().shards; ++s) scattered.push_back(c.ring().shard(s).scattered.load());
        return scattered;
    });
    type.def("open_claims", &open_claims);
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

/// Number of hits of each test point in this process; empty in a build without test points.
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

}  // namespace asysi::python

PYBIND11_MODULE(_core, m) {
    using namespace asysi::python;
    m.doc() = "The native ring";
    define_exceptions(m);
    m.def("testpoints", &testpoints);
    define_creation(m);
    define_writer(m);
    define_reader(m);
    define_lane(m);
    define_control(m);
}
