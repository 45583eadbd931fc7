// A producer that takes over a ring of arbitrary bytes and publishes in it.
#include "fuzz.hpp"

using namespace asysi;

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most, unsigned int random) {
    return fuzz::mutate(data, size, most, random);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::lay_out(data, size);
    test::guarded_by_types([&] { test::visit_as_producer(fuzz::folder(), size, 12); });
    return 0;
}
