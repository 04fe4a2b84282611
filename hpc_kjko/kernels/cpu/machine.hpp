// What the arithmetic units can do: the yardstick of the other kernels.
#pragma once

namespace kjko {

struct MachineKernels {
    // Runs `rounds` rounds of independent multiply-adds in registers on one thread; returns how many operations (a
    // multiply-add is two) that were. `sink` receives a value that depends on all of them.
    long long (*multiply_adds)(long long rounds, float *sink);
};

}  // namespace kjko
