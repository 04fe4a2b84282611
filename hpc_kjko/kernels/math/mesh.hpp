// One particle on the mesh: the B-spline shape functions and the periodic box, as hpc_kjko/fields/mesh.py defines them.
#pragma once

#include "math/inline.hpp"
#include "math/particles.hpp"
#include "math/rounding.hpp"

namespace kjko::KJKO_LEVEL {

#ifdef __CUDACC__
KJKO_MATH double floor_of(double x) { return floor(x); }
KJKO_MATH double remainder_of(double x, double length) { return fmod(x, length); }
#else
KJKO_MATH double floor_of(double x) { return __builtin_floor(x); }
KJKO_MATH double remainder_of(double x, double length) { return __builtin_fmod(x, length); }
#endif

// The node from which a position, in cells from the first node, is measured: the node on its left (order 1:
// cloud-in-cell) or the nearest node (order 2: triangular-shaped cloud).
template <int ORDER>
KJKO_MATH double node_of(double position) {
    return floor_of(ORDER == 1 ? position : position + 0.5);
}

// The first node that the particle touches, relative to node_of. It touches ORDER + 1 nodes along each axis.
template <int ORDER>
constexpr int FIRST = ORDER == 1 ? 0 : -1;

// S at the nodes that the particle touches. The particle is `offset` cells from node_of.
template <int ORDER>
KJKO_MATH void shape(double offset, double (&s)[ORDER + 1]) {
    if constexpr (ORDER == 1) {
        s[0] = 1 - offset;
        s[1] = offset;
    } else {
        s[0] = 0.5 * (0.5 - offset) * (0.5 - offset);
        s[1] = 0.75 - offset * offset;
        s[2] = 0.5 * (0.5 + offset) * (0.5 + offset);
    }
}

// x in cells from the first node, at the centre of the first cell.
template <class Real>
KJKO_MATH double in_cells(Real x, double per_spacing) {
    return x * per_spacing - 0.5;
}

// Along an axis of a mesh with ghost nodes, where node j has the number j + 1: the first node that a particle touches,
// and the distance of the particle from node_of.
struct Place {
    double padded, offset;
};

template <int ORDER>
KJKO_MATH Place place_near(double position) {
    const double node = node_of<ORDER>(position);
    return {node + (FIRST<ORDER> + 1), position - node};
}

// Whether the mesh has all the nodes that the particle touches.
KJKO_MATH bool is_on_mesh(double padded, double cells) { return (padded >= 0) & (padded <= cells); }

// The same for a position outside the box, which is wrapped into it. The offset is NaN if the position is not finite.
template <int ORDER>
KJKO_MATH Place place_anywhere(double position, double cells) {
    Place place = place_near<ORDER>(remainder_of(position, cells));
    if (place.padded < 0) place.padded += cells;
    return place;
}

// The factor from the quantity of a particle to its contribution to a density.
template <int DIMS>
KJKO_MATH double per_volume(const Mesh &mesh) {
    double product = 1;
    KJKO_UNROLLED for (int axis = 0; axis < DIMS; ++axis) product *= mesh.cells[axis] / mesh.lengths[axis];
    return product;
}

// The position after a drift; the velocity after a kick.
template <class Real>
KJKO_MATH Real advanced(Real from, Real duration, Real rate) {
    return from + duration * rate;
}

// x wrapped into the periodic box [0, length), for x at most one length outside. (A tiny negative x plus the length may
// round to the length itself, which becomes 0.)
template <class Real>
KJKO_MATH Real wrap_near(Real x, Real length) {
    const Real wrapped = x < 0 ? x + length : x >= length ? x - length : x;
    return wrapped >= length ? Real(0) : wrapped;
}

template <class Real>
KJKO_MATH bool is_near(Real x, Real length) {
    return (x >= -length) & (x < 2 * length);  // false for NaN
}

// The same for any x; NaN if x is not finite.
template <class Real>
KJKO_MATH Real wrap(Real x, Real length) {
    return wrap_near(is_near(x, length) ? x : Real(remainder_of(x, length)), length);
}

}  // namespace kjko::KJKO_LEVEL
