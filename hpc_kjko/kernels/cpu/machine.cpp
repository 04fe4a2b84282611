#include "cpu/kernels.hpp"
#include "cpu/simd.hpp"

namespace kjko::KJKO_LEVEL {

static long long multiply_adds(long long rounds, float *sink) {
    constexpr int chains = 12;  // latency × units, in at most 16 registers
    Floats x[chains];
    for (int k = 0; k < chains; ++k) x[k] = broadcast(1.0f + 0.01f * k);
    const Floats shrink = broadcast(0.999f), add = broadcast(0.001f);
    for (long long round = 0; round < rounds; ++round)
        for (int k = 0; k < chains; ++k) x[k] = x[k] * shrink + add;
    float sum = 0;
    for (int k = 0; k < chains; ++k)
        for (int lane = 0; lane < LANES; ++lane) sum += x[k][lane];
    *sink = sum;
    return rounds * chains * LANES * 2;
}

const MachineKernels machine = {&multiply_adds};

}  // namespace kjko::KJKO_LEVEL
