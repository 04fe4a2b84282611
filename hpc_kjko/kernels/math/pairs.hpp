// The arguments of kernels for sums over pairs of particles in collision blocks (hpc_kjko/collisions/pairs.py).
#pragma once

namespace kjko {

// Particles of a species. Those of the same collision block follow one another, row-major.
struct PairMembers {
    const double *v, *score, *hessian;  // [n, dims], σ [n, dims], ∇σ [n, dims, dims], whose upper triangle is not read
    const double *weight;               // [n]
    const long long *edges;             // where each block begins, and where the last one ends [blocks + 1]
};

struct PairCall {
    int dims;  // 2 or 3
    bool alike;  // the others are the members
    long long blocks;
    double exponent, mass;  // γ, not 0; m of the others
    PairMembers members, others;
    double *velocity, *growth;  // V [n, dims] and G [n] of the members
};

// The results in place of G: D and ∂V/∂v [n, dims, dims] of the members.
struct PairFieldCall {
    PairCall pairs;
    double *metric, *slope;
};

}  // namespace kjko
