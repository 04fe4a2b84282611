#include "cpu/kernels.hpp"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/cpu.hpp"

namespace kjko {

static const Kernels levels[] = {
#ifdef KJKO_X86_LEVELS
    {"x86-64-v2", v2::field, v2::machine, v2::objective, v2::pairs, v2::particles, v2::potential},
    {"x86-64-v3", v3::field, v3::machine, v3::objective, v3::pairs, v3::particles, v3::potential},
    {"x86-64-v4", v4::field, v4::machine, v4::objective, v4::pairs, v4::particles, v4::potential},
#else
    {"generic", generic::field, generic::machine, generic::objective, generic::pairs, generic::particles, generic::potential},
#endif
};

static const Kernels &choose() {
    const std::string highest = isa_level();
    const char *variable = std::getenv("KJKO_ISA");
    const std::string wanted = variable ? variable : "";
    const Kernels *chosen = nullptr;
    bool found = false;
    for (const Kernels &level : levels) found = found || level.level == highest;
    if (!found) throw std::runtime_error("this machine has none of the instruction sets that the kernels are for");
    for (const Kernels &level : levels) {
        if (wanted.empty() || level.level == wanted) chosen = &level;
        if (level.level == highest) break;
    }
    if (!chosen)
        throw std::invalid_argument("KJKO_ISA='" + wanted + "' is not a level of this machine, which has " + highest +
                                    ": use 'x86-64-v2', 'x86-64-v3' or 'x86-64-v4', or unset it");
    return *chosen;
}

const Kernels &kernels() {
    static const Kernels &chosen = choose();
    return chosen;
}

}  // namespace kjko
