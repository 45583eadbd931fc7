// What the relacy models share: the orders of the code (orders.hpp is written by run.py from the headers), and a main.
#pragma once

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <string>

#include <relacy/relacy.hpp>

#include "orders.hpp"

namespace model {

using Word = unsigned;

/// A byte lock of the control file: the kernel frees it when its owner dies.
using Lock = rl::mutex;

/// Whether every schedule is to be tried, which asks for few steps.
inline bool every_schedule = false;

/// Changes that a model must not survive, from the command line. No std::string: relacy counts what its threads allocate.
inline char** changes = nullptr;
inline bool mutant(const char* name) {
    for (char** change = changes; *change != nullptr; ++change) {
        if (std::strcmp(*change, name) == 0) return true;
    }
    return false;
}

/// `NAME=order` replaces an order of the code.
inline void replace(const std::string& argument, std::size_t equals) {
    static const std::map<std::string, rl::memory_order> known = {
        {"relaxed", rl::mo_relaxed}, {"acquire", rl::mo_acquire}, {"release", rl::mo_release}, {"acq_rel", rl::mo_acq_rel}};
    orders[index_of(argument.substr(0, equals))] = known.at(argument.substr(equals + 1));
}

/// Arguments: random N, or bound N (every schedule with at most N preemptions); then mutants.
template <typename Suite>
int main(int count, char** arguments) {
    changes = arguments + 3;
    for (int i = 3; i < count; ++i) {
        const std::string argument = arguments[i];
        if (const auto equals = argument.find('='); equals != std::string::npos) replace(argument, equals);
    }
    const bool random = std::string(arguments[1]) == "random";
    every_schedule = !random;
    const auto limit = static_cast<unsigned>(std::atoi(arguments[2]));
    std::ostream nowhere(nullptr);
    rl::test_params params;
    params.search_type = random ? rl::random_scheduler_type : rl::fair_context_bound_scheduler_type;
    params.iteration_count = random ? limit : 2'000'000'000;
    params.context_bound = random ? 1 : limit;
    params.execution_depth_limit = 5000;
    params.progress_stream = &nowhere;
    const bool passed = rl::simulate<Suite>(params);
    std::cout << "RESULT " << (passed ? "pass" : rl::test_result_str(params.test_result)) << " after " << params.stop_iteration << "\n";
    return passed ? 0 : 1;
}

}  // namespace model
