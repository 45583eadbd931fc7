// Python bindings of the producer: Writer and Claim.
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "bindings.hpp"

namespace asysi::python {

namespace {

bool publish_block(Writer& writer, i64 shard, const py::object& header, const py::object& rows, std::uintptr_t address,
                   i64 row_stride, const py::object& index, i64 count, i64 source_dtype, i64 quantization, bool book_seen,
                   const py::object& scales, const py::object& table) {
    const auto n = static_cast<std::size_t>(small(count, "count"));
    const Bytes header_view(header, "header", header_bytes, 1);
    std::optional<Bytes> rows_view;
    std::optional<Bytes> index_view;
    std::optional<Bytes> scales_view;
    std::optional<Bytes> table_view;
    if (!rows.is_none()) rows_view.emplace(rows, "rows", row_bytes, n);
    if (!index.is_none()) index_view.emplace(index, "index", sizeof(i64), n);
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
    // Narrow elements have a scale a row, floats two scores.
    const std::size_t beside = item_bytes(block.rows.dtype) == 1 ? 1 : 2;
    if (!scales.is_none()) scales_view.emplace(scales, "scales", sizeof(float), n * beside);
    block.scales = scales_view ? scales_view->as<float>() : nullptr;
    if (!table.is_none()) table_view.emplace(table, "table", sizeof(float), std::size_t{2} * block.header.width);
    block.table = table_view ? table_view->as<float>() : nullptr;
    block.book_seen = book_seen;
    // Below this size, reacquiring the GIL costs more than the copy.
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

/// A block whose payload the caller fills in place.
Block unfilled(i64 shard, const PacketHeader& header, std::size_t count, i64 dtype, i64 quantization, bool book_seen) {
    Block block{};
    block.shard = small(shard, "shard");
    block.header = header;
    block.rows = {.base = nullptr, .stride = 0, .index = nullptr, .count = count, .width = header.width,
                  .dtype = static_cast<Dtype>(small(dtype, "dtype") & 0xFFFF)};
    block.quantization = quantization_of(quantization);
    block.book_seen = book_seen;
    return block;
}

[[noreturn]] void refuse_full(const Writer& writer, i64 shard, u64 rows) {
    throw FullError("shard " + std::to_string(shard) + " of the ring in " + writer.ring().folder() + " has no chunk for " +
                    std::to_string(rows) + " rows: they are counted as dropped");
}

std::unique_ptr<Filling> claim(const std::shared_ptr<Writer>& writer, i64 shard, const py::object& header, i64 count, i64 dtype,
                               i64 quantization, const py::object& rows, bool book_seen) {
    const auto n = static_cast<std::size_t>(small(count, "count"));
    const Bytes header_view(header, "header", header_bytes, 1);
    std::optional<Bytes> rows_view;
    if (!rows.is_none()) rows_view.emplace(rows, "rows", row_bytes, n);
    Block block = unfilled(shard, *header_view.as<PacketHeader>(), n, dtype, quantization, book_seen);
    block.records = rows_view ? rows_view->as<RowRecord>() : nullptr;
    auto claimed = writer->claim(block);
    if (claimed) return std::make_unique<Filling>(writer, std::move(*claimed));
    refuse_full(*writer, shard, n);
}

std::vector<std::unique_ptr<Filling>> claim_many(const std::shared_ptr<Writer>& writer, i64 shard, const py::object& headers,
                                                 const std::vector<i64>& counts, i64 dtype, i64 quantization, bool book_seen) {
    const Bytes headers_view(headers, "headers", header_bytes, counts.size());
    std::vector<Block> blocks;
    for (std::size_t i = 0; i < counts.size(); ++i) {
        const auto n = static_cast<std::size_t>(small(counts[i], "count"));
        PacketHeader header;
        std::memcpy(&header, headers_view.as<PacketHeader>() + i, sizeof header);
        blocks.push_back(unfilled(shard, header, n, dtype, quantization, book_seen));
    }
    std::vector<Claim> claims;
    writer->claim(blocks, claims);
    std::vector<std::unique_ptr<Filling>> all;
    for (Claim& claim : claims) all.push_back(std::make_unique<Filling>(writer, std::move(claim)));
    return all;
}

}  // namespace

void define_writer(py::module_& m) {
    const auto buffers = py::custom_type_setup([](PyHeapTypeObject* type) {
        type->ht_type.tp_as_buffer = &type->as_buffer;
        type->as_buffer.bf_getbuffer = get_claim_buffer;
        type->as_buffer.bf_releasebuffer = release_claim_buffer;
    });
    py::class_<Filling> filling(m, "Claim", py::is_final(), buffers);
    filling.def_property_readonly("open", [](Filling& f) { return f.claim().open(); });
    filling.def_property_readonly("chunk", [](Filling& f) { return f.claim().chunk(); });
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
                                           "was aborted and its rows counted as dropped; delete the array inside the block");
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
    type.def("claim_many", &claim_many, py::arg("shard"), py::arg("headers"), py::arg("counts"), py::arg("dtype"),
             py::arg("quantization") = 0, py::kw_only(), py::arg("book_seen") = true);
    type.def("scattered", [](const Writer& w, i64 shard) { return w.scattered(small(shard, "shard")); }, py::arg("shard") = 0);
    type.def("topology", [](const Writer& w) { return topology_of(w.ring(), w.ring().live().writer.registered.load() == 1); });
    type.def("pool", [](const Writer& w) {
        return py::make_tuple(reinterpret_cast<std::uintptr_t>(w.ring().data().base()), w.ring().data().bytes());
    });
    type.def("note_registered", &Writer::note_registered, py::arg("registered"));
    type.def(
        "convert_with",
        [](Writer& w, i64 threads) {
            if (threads < 1 || threads > 256) throw std::invalid_argument("threads is not within 1 to 256");
            const py::gil_scoped_release released;
            w.convert_with(static_cast<unsigned>(threads));
        },
        py::arg("threads"));
    type.def_property_readonly("generation", &Writer::generation);
    type.def_property_readonly("chunk_bytes", [](const Writer& w) { return w.geometry().chunk_bytes; });
    type.def_property_readonly("depth", [](const Writer& w) { return w.geometry().depth(); });
    type.def_property_readonly("shards", [](const Writer& w) { return w.geometry().shards; });
    type.def("account", &Writer::account, py::arg("name"));
    type.def("free", [](Writer& w, i64 shard) { return w.free(small(shard, "shard")); }, py::arg("shard") = 0);
    type.def("source", [](const Writer& w, i64 shard) { return w.source(small(shard, "shard")); }, py::arg("shard") = 0);
    type.def("head", [](const Writer& w, i64 shard) { return w.head(small(shard, "shard")); }, py::arg("shard") = 0);
    type.def("publish_block", &publish_block, py::arg("shard"), py::arg("header"), py::arg("rows"), py::arg("address"),
             py::arg("row_stride"), py::arg("index"), py::arg("count"), py::arg("source_dtype"), py::arg("quantization"),
             py::kw_only(), py::arg("book_seen") = true, py::arg("scales") = py::none(), py::arg("table") = py::none());
    type.def("saturated", [](Writer& w, i64 account) { return w.saturated(small(account, "account")); }, py::arg("account"));
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

}  // namespace asysi::python
