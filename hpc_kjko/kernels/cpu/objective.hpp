// The JKO functional and its gradient on the CPU, fused into one pass over the particles.
#pragma once

#include "math/objective.hpp"

namespace kjko {

// The moments for variable projection (hpc_kjko/inner/solvers/varpro.py): sums over particles of the basis g = (h2,
// skipped inputs, 1), with u = C g for the output layer C of the network, and of q_k = Σ_j B_jk ∂g/∂v_j. B = (I + h ∇v
// u)⁻¹ for the exact log det; otherwise B = I.
struct Moments {
    double *pull;     // Σ share q_k [velocity_dims, basis]
    double *log_det;  // Σ share log det over particles with det > 0, its remainder, and the number of other particles
    double *gram;     // Σ share g gᵀ [basis, basis]; null: only pull and log_det are wanted
    double *load;     // Σ share (v_k g + temperature known ∂g/∂v_k) [velocity_dims, basis]
    double *outer;    // Σ share q qᵀ [velocity_dims basis, velocity_dims basis]; only with the exact log det
};

struct ObjectiveKernels {
    bool (*instantiated)(const Network &network);
    // Size of the sum of each thread. call.sums has room for the sums of all threads.
    long long (*sums_size)(const Network &network);
    long long (*moments_sums_size)(const Network &network);
    void (*evaluate)(const ObjectiveCall &call, int threads);
    void (*moments)(const ObjectiveCall &call, const Moments &moments, int threads);
};

}  // namespace kjko
