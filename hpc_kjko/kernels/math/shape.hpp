// One particle and the mesh: the B-spline shape functions and the periodic box, as hpc_kjko/fields/mesh.py defines them.
//
// Compiles as C++ and as CUDA and needs no other header: the same text is the mathematics of every particle kernel.
#pragma once

#ifndef KJKO_LEVEL
#error "a kernel's header: include it in files that are compiled for each level"
#endif

#ifdef __CUDACC__
#define KJKO_EACH static __device__ __forceinline__
#else
#define KJKO_EACH static inline __attribute__((always_inline))
#endif

namespace kjko::KJKO_LEVEL {

#ifdef __CUDACC__
KJKO_EACH double floor_of(double x) { return floor(x); }
KJKO_EACH double remainder_of(double x, double length) { return fmod(x, length); }
#else
KJKO_EACH double floor_of(double x) { return __builtin_floor(x); }
KJKO_EACH double remainder_of(double x, double length) { return __builtin_fmod(x, length); }
#endif

// The node that a position, in cells from the first node, is measured from: the one on its left (order 1: cloud in cell)
// or the nearest one (order 2: triangular-shaped cloud).
template <int ORDER>
KJKO_EACH double node_of(double position) {
    return floor_of(ORDER == 1 ? position : position + 0.5);
}

// The first node that the particle touches, counted from node_of; it touches ORDER + 1 of them along each axis.
template <int ORDER>
constexpr int FIRST = ORDER == 1 ? 0 : -1;

// S at the nodes that the particle touches, which is `offset` cells from node_of.
template <int ORDER>
KJKO_EACH void shape(double offset, double (&s)[ORDER + 1]) {
    if constexpr (ORDER == 1) {
        s[0] = 1 - offset;
        s[1] = offset;
    } else {
        s[0] = 0.5 * (0.5 - offset) * (0.5 - offset);
        s[1] = 0.75 - offset * offset;
        s[2] = 0.5 * (0.5 + offset) * (0.5 + offset);
    }
}

// x of the periodic box [0, length), for x at most one length outside of it. (A tiny negative x plus the length may
// round to the length itself, which is 0.)
template <class Real>
KJKO_EACH Real wrap_near(Real x, Real length) {
    const Real wrapped = x < 0 ? x + length : x >= length ? x - length : x;
    return wrapped >= length ? Real(0) : wrapped;
}

template <class Real>
KJKO_EACH bool is_near(Real x, Real length) {
    return (x >= -length) & (x < 2 * length);  // not so for NaN
}

// The same for any x; NaN for one that is not finite.
template <class Real>
KJKO_EACH Real wrap(Real x, Real length) {
    return wrap_near(is_near(x, length) ? x : Real(remainder_of(x, length)), length);
}

// A term of a sum rounded to whole multiples of the unit that `shift` stands for, 1.5 · 2^52 units (hpc_kjko/particles/exact.py): sums
// of such terms do not depend on their order. 0 rounds nothing.
KJKO_EACH double rounded(double term, double shift) { return (term + shift) - shift; }

}  // namespace kjko::KJKO_LEVEL
