// The kernels of particles, compiled by hpc_kjko/kernels/cuda/__init__.py, which defines the three constants.
#include "cuda/particles.hpp"

using namespace kjko::KJKO_LEVEL;

constexpr int THREADS = kjko::PARTICLE_THREADS;

extern "C" __device__ const kjko::Shape shape = {THREADS, 3, 0, THREADS, 0, 0, 1, 1};

extern "C" __global__ void __launch_bounds__(THREADS, 3) deposit(const __grid_constant__ kjko::DepositCall call) {
    for (long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x; i < call.particles.count;
         i += static_cast<long long>(gridDim.x) * blockDim.x)
        deposit_particle<KJKO_REAL, KJKO_DIMS, KJKO_ORDER>(call, i, blockIdx.x);
}

extern "C" __global__ void __launch_bounds__(THREADS, 3) gather(const __grid_constant__ kjko::GatherCall call) {
    for (long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x; i < call.particles.count;
         i += static_cast<long long>(gridDim.x) * blockDim.x)
        gather_particle<KJKO_REAL, KJKO_DIMS, KJKO_ORDER>(call, i);
}
