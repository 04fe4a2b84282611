// Two kernels, compiled by hpc_kjko/kernels/cuda/__init__.py, which defines their constants.
#include "cuda/moments.hpp"

using Kernel = kjko::KJKO_LEVEL::DeviceMoments<KJKO_WIDTH, kjko::KJKO_LEVEL::KJKO_ACTIVATION, KJKO_VELOCITY_DIMS>;

extern "C" __device__ const kjko::Shape shape = Kernel::shape(KJKO_RESIDENT_THREADS);

extern "C" __global__ void __launch_bounds__(Kernel::THREADS, Kernel::shape(KJKO_RESIDENT_THREADS).resident)
    sum_moments(const __grid_constant__ kjko::ObjectiveCall call) {
    extern __shared__ __align__(16) unsigned char memory[];
    kjko::KJKO_LEVEL::Team<Kernel::THREADS, Kernel::State> team;
    Kernel{call, *reinterpret_cast<Kernel::Shared *>(memory), static_cast<int>(blockIdx.y)}.add_pieces(
        team, blockIdx.x, gridDim.x);
}

extern "C" __global__ void order_moments(const __grid_constant__ kjko::MomentsOrderCall call) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index < call.count)
        call.moments[index] = kjko::KJKO_LEVEL::moment_of<KJKO_WIDTH, KJKO_VELOCITY_DIMS>(call, index);
}
