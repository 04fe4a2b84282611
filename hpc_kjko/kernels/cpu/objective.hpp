// The JKO functional and its gradient on the CPU, fused into one pass over the particles.
#pragma once

#include "math/objective.hpp"

namespace kjko {

// Chunks are dealt to at most so many partial sums, of the functional and of moments.
constexpr int MOST_SUMS = 128, MOST_MOMENTS_SUMS = 32;

// What variable projection needs (hpc_kjko/inner/solvers/varpro.py): sums over particles of the basis g = (h2, skipped inputs,
// 1), with u = C g for the network's output layer C, and of q_k = Σ_j B_jk ∂g/∂v_j, B = (I + h ∇v u)⁻¹ or, without the
// exact log det, I.
struct Moments {
    double *pull;     // Σ share q_k [velocity_dims, basis]
    double *log_det;  // Σ share log det over particles where det > 0, what rounding leaves, and how many the others are
    double *gram;     // Σ share g gᵀ [basis, basis]; null: only pull and log_det are wanted
    double *load;     // Σ share (v_k g + temperature known ∂g/∂v_k) [velocity_dims, basis]
    double *outer;    // Σ share q qᵀ [velocity_dims basis, velocity_dims basis]; with the exact log det
};

struct ObjectiveKernels {
    bool (*instantiated)(const Network &network);
    long long (*sums_size)(const Network &network);  // numbers of one of the sums that a call works in
    long long (*moments_sums_size)(const Network &network);
    void (*evaluate)(const ObjectiveCall &call);
    void (*moments)(const ObjectiveCall &call, const Moments &moments);
};

}  // namespace kjko
