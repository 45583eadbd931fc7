// Python bindings of the lane: rows in accelerator memory, copied into a ring by a dedicated thread.
#include <cstring>
#include <memory>
#include <span>
#include <string>

#include "asysi/lane.hpp"
#include "bindings.hpp"

namespace asysi::python {

namespace {

std::unique_ptr<Lane> open_lane(const std::shared_ptr<Writer>& writer, i64 device, i64 slots, const py::object& runtime, i64 shard,
                                double patience) {
    const std::string path = path_of(runtime);
    const auto number = static_cast<int>(small(device, "device"));
    const u32 of_shard = small(shard, "shard");
    const u32 count = small(slots, "slots");
    const py::gil_scoped_release released;
    return std::make_unique<Lane>(writer, of_shard, DeviceRuntime::load(path), number, count, seconds(patience));
}

void begin_step(Lane& lane, const py::object& rows) {
    const Bytes view(rows, "rows", row_bytes, std::nullopt);
    lane.begin_step({view.as<RowRecord>(), view.bytes() / row_bytes});
}

std::size_t add_table(Lane& lane, const py::object& table) {
    const Bytes view(table, "table", 2 * sizeof(float), std::nullopt);
    return lane.add_table({view.as<float>(), view.bytes() / sizeof(float)});
}

bool submit(Lane& lane, std::uintptr_t stream, const py::object& header, const py::object& counts, std::uintptr_t address,
            i64 dtype, i64 quantization, std::uintptr_t scales, std::uintptr_t outside, i64 table) {
    const Bytes header_view(header, "header", header_bytes, 1);
    const Bytes counts_view(counts, "counts", sizeof(u32), std::nullopt);
    Lane::Content content{};
    std::memcpy(&content.header, header_view.as<PacketHeader>(), sizeof content.header);
    content.counts = {counts_view.as<u32>(), counts_view.bytes() / sizeof(u32)};
    content.source = reinterpret_cast<const std::byte*>(address);
    content.scales = reinterpret_cast<const float*>(scales);
    content.outside = reinterpret_cast<const u32*>(outside);
    content.table = lane.table(small(table, "table"));
    content.dtype = static_cast<Dtype>(small(dtype, "dtype") & 0xFFFF);
    content.quantization = quantization_of(quantization);
    return lane.submit(reinterpret_cast<void*>(stream), content);
}

}  // namespace

void define_lane(py::module_& m) {
    py::class_<Lane> type(m, "Lane", py::is_final());
    type.def(py::init(&open_lane), py::arg("writer"), py::arg("device"), py::arg("slots"), py::arg("runtime"), py::kw_only(),
             py::arg("shard") = 0, py::arg("patience") = 30.0);
    type.def_property_readonly("slots", &Lane::slots);
    type.def("free", &Lane::free);
    type.def("next", &Lane::next);
    type.def("unclaimed", &Lane::unclaimed);
    type.def("begin_step", &begin_step, py::arg("rows"));
    type.def("add_table", &add_table, py::arg("table"));
    type.def("submit", &submit, py::arg("stream"), py::arg("header"), py::arg("counts"), py::arg("address"), py::arg("dtype"),
             py::arg("quantization") = 0, py::arg("scales") = 0, py::arg("outside") = 0, py::arg("table") = 0);
    type.def_property_readonly("failed", &Lane::failed);
    type.def_property_readonly("problem", &Lane::problem);
    type.def_property_readonly("lost", &Lane::lost);
    type.def_property_readonly("finished", &Lane::finished);
    type.def("stop", &Lane::stop, py::call_guard<py::gil_scoped_release>());
}

}  // namespace asysi::python
