// One kernel of a potential, compiled by hpc_kjko/kernels/cuda/__init__.py, which defines its constants.
#include "cuda/potential_sums.hpp"

using Kernel = kjko::KJKO_LEVEL::KJKO_KERNEL<KJKO_REAL, KJKO_WIDTH, KJKO_VELOCITY_DIMS>;

extern "C" __device__ const kjko::Shape shape = Kernel::shape(KJKO_RESIDENT_THREADS);

extern "C" __global__ void __launch_bounds__(Kernel::THREADS, Kernel::shape(KJKO_RESIDENT_THREADS).resident)
    KJKO_KERNEL(const __grid_constant__ kjko::DevicePotentialCall<KJKO_REAL> call) {
    extern __shared__ __align__(16) unsigned char memory[];
    kjko::KJKO_LEVEL::Team<Kernel::THREADS, Kernel::State> team;
    Kernel{call, *reinterpret_cast<Kernel::Shared *>(memory), static_cast<int>(blockIdx.y)}.run(team, blockIdx.x, gridDim.x);
}
