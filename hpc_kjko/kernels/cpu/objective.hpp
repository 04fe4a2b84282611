// The JKO functional and its gradient (hpc_kjko/inner/objective.py), fused into one pass over the particles.
#pragma once

#include "math/network.hpp"

namespace kjko {

// Single precision holds sums over so many particles at most, double precision the rest. Sums over one chunk are rounded
// to units (hpc_kjko/particles/exact.py) before they are added to others: the bits depend neither on the number of threads nor on
// how whole chunks are dealt to calls. Chunks are dealt to at most so many partial sums.
constexpr int CHUNK = 1024, MOST_SUMS = 128;
struct ObjectiveCall {
    Network network;
    bool exact;
    float step, collision_strength, temperature;

    long long count;
    const float *z;         // [count, inputs]
    const float *v;         // [count, velocity_dims], rows v_stride apart
    long long v_stride;
    const float *share;     // [count]
    const float *known;     // [count], or null

    int together;  // particles in a chunk; of moments, MOMENTS_CHUNK at most
    double unit;   // of sums over chunks; 0: not rounded
    double finer;  // of moments: part of the unit for what rounding leaves of log det

    double *sums;  // [sums, sums_size()] to work in
    double *loss;
    double *gradient;  // of w1, b1, w2, b2, w3, b3, skip, one after the other; null: only the loss is wanted
};

// What variable projection needs (hpc_kjko/inner/solvers/varpro.py): sums over particles of the basis g = (h2, skipped inputs,
// 1), with u = C g for the network's output layer C, and of q_k = Σ_j B_jk ∂g/∂v_j, B = (I + h ∇v u)⁻¹ or, without the
// exact log det, I.
constexpr int MOMENTS_CHUNK = 256, MOST_MOMENTS_SUMS = 32;

struct Moments {
    double *pull;     // Σ share q_k [velocity_dims, basis]
    double *log_det;  // Σ share log det over particles where det > 0, what rounding leaves, and how many the others are
    double *gram;     // Σ share g gᵀ [basis, basis]; null: only pull and log_det are wanted
    double *load;     // Σ share (v_k g + temperature known ∂g/∂v_k) [velocity_dims, basis]
    double *outer;    // Σ share q qᵀ [velocity_dims basis, velocity_dims basis]; with the exact log det
};

struct ObjectiveKernels {
    bool (*instantiated)(const Network &network);
    long long (*sums_size)(const Network &network);  // numbers that one sum needs
    long long (*moments_sums_size)(const Network &network);
    void (*evaluate)(const ObjectiveCall &call);
    void (*moments)(const ObjectiveCall &call, const Moments &moments);
};

}  // namespace kjko
