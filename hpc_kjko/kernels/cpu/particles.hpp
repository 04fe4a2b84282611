// Particles and the periodic mesh on the CPU: drift, deposit, gather and kick.
#pragma once

#include "math/particles.hpp"

namespace kjko {

// The number of chunks: partial sums of a deposit of `numbers` on the padded mesh. They take no more memory than a
// number for each particle. Terms that are rounded to a unit have the same sums in any order. Then one chunk for each
// thread is enough. Otherwise the number of chunks depends only on the particles and the mesh. So the bits of the
// density do not depend on the threads.
static inline long long deposit_chunks(long long numbers, long long count, double unit, int threads) {
    const long long least = 8192, most = 32, chunks = count / (numbers > least ? numbers : least);
    const long long wanted = unit > 0 && threads < most ? threads : most;
    return chunks < 1 ? 1 : chunks > wanted ? wanted : chunks;
}

// The distance from one chunk to the next. Two threads never write to the same cache line.
static inline long long chunk_stride(long long numbers) { return numbers + 16; }

// Numbers of a node in the workspace of a gather.
static inline int gather_numbers(int components) { return components == 3 ? 4 : components; }

// The number of distances l − j between two nodes that one particle can touch: one of each pair ±, and zero.
static inline int distances(const Mesh &mesh) {
    int all = 1;
    for (int axis = 0; axis < mesh.dims; ++axis) all *= 2 * mesh.order + 1;
    return (all + 1) / 2;
}

struct ParticleKernels {
    // moved = x + duration v, wrapped into the box.
    void (*drift)(const double *lengths, int dims, const Particles &particles, double duration, void *moved);

    // Densities n_j = Σ_i q_i S(x_j − x_i) / ∏Δ, [quantities, *cells], after a drift to `moved` unless that is null.
    // `workspace`: chunk_stride(quantities · padded_nodes) numbers for each of the chunks.
    // Returns the number of particles whose position x is not finite.
    long long (*deposit)(const Mesh &mesh, const Particles &particles, double duration, void *moved,
                         const Carried &carried, long long chunks, double *workspace, double *densities);

    // The mass matrix M_jl = Σ_i q_i S(x_j − x_i) S(x_l − x_i) / ∏Δ, [distances, *cells], of one quantity: the entries
    // with a distance l − j from 0 on, in lexicographic order.
    // `workspace`: chunk_stride(distances · padded_nodes) numbers for each of the chunks.
    long long (*mass_matrix)(const Mesh &mesh, const Particles &particles, const Carried &carried, long long chunks,
                             double *workspace, double *entries);

    // Values [*cells, components] at the particles, in the precision of the particles: `gathered` [count, components].
    // If that is null, the velocities `kicked` = v + duration · values, for the first `components` components.
    // `workspace`: gather_numbers(components) · padded_nodes numbers, the first of them at the start of a cache line.
    void (*gather)(const Mesh &mesh, const Particles &particles, const double *values, int components, double duration,
                   double *workspace, void *gathered, void *kicked);
};

}  // namespace kjko
