// The speed of the arithmetic units, with which the other kernels are compared.
#pragma once

namespace kjko {

struct MachineKernels {
    // Runs `rounds` rounds of independent multiply-adds in registers on one thread. Returns the number of operations (a
    // multiply-add is two). `sink` receives a value that depends on all of them.
    long long (*multiply_adds)(long long rounds, float *sink);
};

}  // namespace kjko
