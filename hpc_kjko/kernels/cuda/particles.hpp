// Particles and the periodic mesh on a GPU. One thread handles one particle, where cpu/particles.cpp handles cache
// blocks of particles. The mathematics is in math/mesh.hpp, in the same order of operations (compile it without fused
// multiply-adds). So positions and velocities have the same bits as on the CPU. So have densities whose terms are
// rounded to a unit, whichever thread adds its term first.
#pragma once

#include "cuda/phases.hpp"
#include "cuda/shape.hpp"
#include "math/mesh.hpp"

namespace kjko {

// A drift to `moved` unless it is null, and a deposit there unless there is nothing to deposit.
struct DepositCall {
    Mesh mesh;
    Particles particles;
    double duration;
    void *moved;
    Carried carried;
    double *sums;  // [copies, quantities, *cells]; with many copies, atomic additions wait less
    int copies;
    double *lost;  // number of particles whose position is not finite
};

// Values [*cells, components] at the particles, in the precision of the particles; or the velocities after a kick.
struct GatherCall {
    Mesh mesh;
    Particles particles;
    const double *values;
    int components;
    bool kick;
    double duration;
    void *result;
};

}  // namespace kjko

namespace kjko::KJKO_LEVEL {

// The nodes that a particle touches along one axis, and its shape function at these nodes.
template <int ORDER>
struct Touched {
    int node[ORDER + 1];
    double s[ORDER + 1];
};

// False if the position is not finite.
template <int ORDER, class Real>
KJKO_DEVICE bool place(Real x, int cells, double length, Touched<ORDER> &touched) {
    const double position = in_cells(x, cells / length);
    Place place = place_near<ORDER>(position);
    if (!is_on_mesh(place.padded, cells)) {
        place = place_anywhere<ORDER>(position, cells);
        if (place.offset != place.offset) return false;
    }
    shape<ORDER>(place.offset, touched.s);
    KJKO_UNROLLED for (int k = 0; k <= ORDER; ++k)
        touched.node[k] = (static_cast<int>(place.padded) - 1 + k + cells) % cells;
    return true;
}

template <int DIMS, int ORDER, class Real>
KJKO_DEVICE bool place(const Mesh &mesh, const Real *x, Touched<ORDER> (&touched)[DIMS]) {
    bool somewhere = true;
    KJKO_UNROLLED for (int axis = 0; axis < DIMS; ++axis)
        somewhere &= place<ORDER>(x[axis], mesh.cells[axis], mesh.lengths[axis], touched[axis]);
    return somewhere;
}

// Calls what(node, factor, s) for all nodes that a particle touches. The shape function at the node is factor · s.
template <int DIMS, int ORDER, class What>
KJKO_DEVICE void at_nodes(const Mesh &mesh, const Touched<ORDER> (&touched)[DIMS], double factor, const What &what) {
    if constexpr (DIMS == 1) {
        KJKO_UNROLLED for (int k = 0; k <= ORDER; ++k) what(touched[0].node[k], factor, touched[0].s[k]);
    } else if constexpr (DIMS == 2) {
        KJKO_UNROLLED for (int j = 0; j <= ORDER; ++j)
            KJKO_UNROLLED for (int k = 0; k <= ORDER; ++k)
                what(touched[0].node[j] * mesh.cells[1] + touched[1].node[k], factor * touched[0].s[j],
                     touched[1].s[k]);
    } else {
        KJKO_UNROLLED for (int l = 0; l <= ORDER; ++l)
            KJKO_UNROLLED for (int j = 0; j <= ORDER; ++j)
                KJKO_UNROLLED for (int k = 0; k <= ORDER; ++k)
                    what((touched[0].node[l] * mesh.cells[1] + touched[1].node[j]) * mesh.cells[2] + touched[2].node[k],
                         factor * touched[0].s[l] * touched[1].s[j], touched[2].s[k]);
    }
}

KJKO_DEVICE int nodes_of(const Mesh &mesh) { return mesh.cells[0] * mesh.cells[1] * mesh.cells[2]; }

template <class Real, int DIMS, int ORDER>
KJKO_DEVICE void deposit_particle(const DepositCall &call, long long i, int block) {
    const Mesh &mesh = call.mesh;
    const Real *from = static_cast<const Real *>(call.particles.x) + i * DIMS;
    Real x[DIMS];
    KJKO_UNROLLED for (int axis = 0; axis < DIMS; ++axis) x[axis] = from[axis];
    if (call.moved) {
        const Real *v = static_cast<const Real *>(call.particles.v) + i * call.particles.velocity_dims;
        Real *to = static_cast<Real *>(call.moved) + i * DIMS;
        KJKO_UNROLLED for (int axis = 0; axis < DIMS; ++axis)
            to[axis] = x[axis] = wrap<Real>(advanced(x[axis], static_cast<Real>(call.duration), v[axis]),
                                            static_cast<Real>(mesh.lengths[axis]));
    }
    const Carried &carried = call.carried;
    if (carried.quantities == 0) return;
    Touched<ORDER> touched[DIMS];
    if (!place<DIMS, ORDER>(mesh, x, touched)) return add_atomically(call.lost, 1);
    const double shift = shift_of(carried.unit), density = per_volume<DIMS>(mesh);
    for (int quantity = 0; quantity < carried.quantities; ++quantity) {
        const double carry =
            carried.data[quantity * carried.quantity_stride + i * carried.particle_stride] * density;
        double *sums = call.sums + (static_cast<long long>(block % call.copies) * carried.quantities + quantity) *
                                       nodes_of(mesh);
        at_nodes<DIMS, ORDER>(mesh, touched, carry, [&](int node, double factor, double s) {
            add_atomically(sums + node, rounded(factor * s, shift));
        });
    }
}

template <class Real, int DIMS, int ORDER>
KJKO_DEVICE void gather_particle(const GatherCall &call, long long i) {
    const Mesh &mesh = call.mesh;
    Touched<ORDER> touched[DIMS];
    const bool somewhere = place<DIMS, ORDER>(mesh, static_cast<const Real *>(call.particles.x) + i * DIMS, touched);
    const auto at_particle = [&](int component) {
        double sum = somewhere ? 0 : not_a_number();
        if (somewhere)
            at_nodes<DIMS, ORDER>(mesh, touched, 1, [&](int node, double factor, double s) {
                sum += factor * s * call.values[static_cast<long long>(node) * call.components + component];
            });
        return static_cast<Real>(sum);
    };
    if (call.kick) {
        const int velocity_dims = call.particles.velocity_dims;
        const Real *before = static_cast<const Real *>(call.particles.v) + i * velocity_dims;
        Real *after = static_cast<Real *>(call.result) + i * velocity_dims;
        for (int k = 0; k < velocity_dims; ++k)
            after[k] = k < DIMS ? advanced(before[k], static_cast<Real>(call.duration), at_particle(k)) : before[k];
    } else {
        Real *to = static_cast<Real *>(call.result) + i * call.components;
        for (int component = 0; component < call.components; ++component) to[component] = at_particle(component);
    }
}

}  // namespace kjko::KJKO_LEVEL
