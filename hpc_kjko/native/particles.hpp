// Particles and the periodic mesh: drift, deposit, gather and kick.
//
// The reference is hpc_kjko/mesh.py and hpc_kjko/particles.py. Positions x [count, dims] and velocities v [count,
// velocity_dims] are rows, in float64 or both in float32; what is computed on the mesh is float64.
#pragma once

namespace kjko {

// A uniform periodic mesh, nodes at cell centres.
struct Mesh {
    int dims, order;
    int cells[3];
    double lengths[3];

    // Nodes of the mesh with ghosts around it: node j along an axis is j + 1 there, and no stencil wraps.
    long long padded_nodes() const {
        long long nodes = 1;
        for (int axis = 0; axis < dims; ++axis) nodes *= cells[axis] + 1 + order;
        return nodes;
    }
};

struct Particles {
    bool is_double;
    long long count;
    const void *x, *v;
    int velocity_dims;
};

// What each particle carries: quantity q of particle i is at data[q * quantity_stride + i * particle_stride].
struct Carried {
    const double *data;
    int quantities;
    long long quantity_stride, particle_stride;
};

// Partial sums of a deposit. Their number depends on the particles and the mesh alone, not on the threads, so the bits
// of the density do neither. They take no more memory than one number for each particle and quantity.
static inline long long deposit_chunks(const Mesh &mesh, long long count) {
    const long long least = 8192, most = 32;
    const long long nodes = mesh.padded_nodes(), chunks = count / (nodes > least ? nodes : least);
    return chunks < 1 ? 1 : chunks > most ? most : chunks;
}

struct ParticleKernels {
    // moved = x + duration v, wrapped into the box.
    void (*drift)(const double *lengths, int dims, const Particles &particles, double duration, void *moved);

    // Densities n_j = Σ_i q_i S(x_j − x_i) / ∏Δ, [quantities, *cells], after a drift to `moved` unless that is null.
    // With `units` (one of each quantity) they are Σ_i of the integer nearest to q_i S / unit instead: the same bits
    // for any order of the particles and any parts that are summed later.
    // `workspace`: deposit_chunks · quantities · padded_nodes numbers.
    // Returns how many particles are nowhere (x not finite) or carry too much to be counted in units.
    long long (*deposit)(const Mesh &mesh, const Particles &particles, double duration, void *moved,
                         const Carried &carried, const double *units, void *workspace, void *densities);

    // Values [*cells, components] at the particles, in their precision: `gathered` [count, components]; or, if that
    // is null, the velocities `kicked` = v + duration · values on the first `components` of them.
    // `workspace`: components · padded_nodes numbers.
    void (*gather)(const Mesh &mesh, const Particles &particles, const double *values, int components, double duration,
                   double *workspace, void *gathered, void *kicked);
};

}  // namespace kjko
