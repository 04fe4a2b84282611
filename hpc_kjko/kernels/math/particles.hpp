// Particles and the periodic mesh as kernels are given them.
//
// The reference is hpc_kjko/fields/mesh.py and hpc_kjko/particles/state.py. Positions x [count, dims] and velocities
// v [count, velocity_dims] are rows, in float64 or both in float32; what is computed on the mesh is float64.
#pragma once

namespace kjko {

// A uniform periodic mesh, nodes at cell centres.
struct Mesh {
    int dims, order;
    int cells[3];
    double lengths[3];

    // Nodes of the mesh with ghosts around it: node j along an axis is j + 1 there, and no stencil wraps.
    // Inlined wherever it is used: a copy of its own would be that of any instruction set level.
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

// What each particle carries: quantity q of particle i is at data[q * quantity_stride + i * particle_stride].
struct Carried {
    const double *data;
    int quantities;
    long long quantity_stride, particle_stride;
    double unit;  // what a particle brings to the density at a node is rounded to so much; 0: not at all
};

}  // namespace kjko
