// A reader, and one who looks on, in a ring of arbitrary bytes.
#include "fuzz.hpp"

using namespace asysi;

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most, unsigned int random) {
    return fuzz::mutate(data, size, most, random);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::lay_out(data, size);
    test::guarded_by_types([] { test::visit_as_onlooker(fuzz::folder()); });
    test::guarded_by_types([] { test::visit_as_reader(fuzz::folder(), "r", 4, std::chrono::microseconds(1)); });
    return 0;
}
