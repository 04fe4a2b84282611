// One kernel, compiled by hpc_kjko/kernels/cuda/__init__.py, which defines its constants.
#include "cuda/objective.hpp"

using Kernel = kjko::KJKO_LEVEL::DeviceObjective<KJKO_WIDTH, kjko::KJKO_LEVEL::KJKO_ACTIVATION, KJKO_VELOCITY_DIMS,
                                                 KJKO_CLOSED>;

extern "C" __device__ const kjko::Shape shape = Kernel::shape(KJKO_RESIDENT_THREADS);

extern "C" __global__ void __launch_bounds__(Kernel::THREADS, Kernel::shape(KJKO_RESIDENT_THREADS).resident)
    evaluate_objective(const __grid_constant__ kjko::ObjectiveCall call) {
    extern __shared__ __align__(16) unsigned char memory[];
    kjko::KJKO_LEVEL::Team<Kernel::THREADS, Kernel::State> team;
    Kernel{call, *reinterpret_cast<Kernel::Shared *>(memory)}.add_pieces(team, blockIdx.x, gridDim.x);
}
