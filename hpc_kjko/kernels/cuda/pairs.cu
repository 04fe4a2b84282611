// One kernel, compiled by hpc_kjko/kernels/cuda/__init__.py, which defines its constants.
#include "cuda/pairs.hpp"

using Kernel = kjko::KJKO_LEVEL::DevicePairs<KJKO_REAL, KJKO_DIMS, KJKO_ALIKE, KJKO_GAMMA>;

extern "C" __device__ const kjko::Shape shape = Kernel::shape();

extern "C" __global__ void __launch_bounds__(Kernel::THREADS, Kernel::shape().resident)
    pair_sums(const __grid_constant__ kjko::DevicePairCall call) {
    extern __shared__ __align__(16) unsigned char memory[];
    kjko::KJKO_LEVEL::Team<Kernel::THREADS, Kernel::State> team;
    Kernel{call, *reinterpret_cast<Kernel::Shared *>(memory)}.evaluate(team, blockIdx.x);
}
