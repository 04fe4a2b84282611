// Particles and the periodic mesh in the form that kernels take.
//
// The reference is hpc_kjko/fields/mesh.py and hpc_kjko/particles/state.py. Positions x [count, dims] and velocities v
// [count, velocity_dims] are rows, both in float64 or both in float32. Results on the mesh are float64.
#pragma once

namespace kjko {

// A uniform periodic mesh, nodes at cell centres.
struct Mesh {
    int dims, order;
    int cells[3];
    double lengths[3];

    // The number of nodes of the mesh with ghost nodes around it. Node j along an axis has the number j + 1 there, so
    // no stencil wraps. The function is inlined everywhere: a separate copy could be of any instruction set level.
    __attribute__((always_inline)) long long padded_nodes() const {
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

// The quantities of the particles: quantity q of particle i is data[q * quantity_stride + i * particle_stride].
struct Carried {
    const double *data;
    int quantities;
    long long quantity_stride, particle_stride;
    double unit;  // the contribution of a particle to the density at a node is rounded to it; 0: not rounded
};

}  // namespace kjko
