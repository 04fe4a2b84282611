// The functions of one particle other than the hidden layer (hpc_kjko/inner/potential.py), with their derivatives in v.
//
//   shared: v_k, v_k v_m (k ≤ m), v_k x_l, and in a box |v|² x_l;   of x alone: x_l, in unbounded space x_k x_m, then
// 1;
//   of Φ, after the shared ones: v_k³/6, v_k⁴/24.
//
// x are the inputs of the network made from positions. x[l] and v[k] are numbers or vectors of numbers. Results are
// passed to to(number of the function, value).
#pragma once

#include "math/constants.hpp"
#include "math/inline.hpp"

namespace kjko::KJKO_LEVEL {

struct Monomials {
    int beside, dv;  // the numbers of x and of v
    bool periodic;
};

// Numbers of functions: shared (those of ψ and Φ that depend on v); all of ψ; all of Φ; and the first ones, v_k and v_k
// v_m.
KJKO_MATH constexpr int shared(const Monomials &m) {
    return m.dv + m.dv * (m.dv + 1) / 2 + m.dv * m.beside + (m.periodic ? m.beside : 0);
}
KJKO_MATH constexpr int of_density(const Monomials &m) {
    return shared(m) + m.beside + (m.periodic ? 0 : m.beside * (m.beside + 1) / 2) + 1;
}
KJKO_MATH constexpr int of_potential(const Monomials &m) { return shared(m) + 2 * m.dv; }
KJKO_MATH constexpr int of_low_velocity(const Monomials &m) { return m.dv + m.dv * (m.dv + 1) / 2; }

// Index pairs of velocities k ≥ l: first v_1² to v_dv², then the mixed ones.
KJKO_MATH void pair_of(const Monomials &m, int number, int &k, int &l) {
    const int mixed = number - m.dv;
    k = mixed < 0 ? number : mixed == 0 ? 1 : 2;
    l = mixed < 0 ? number : mixed == 2 ? 1 : 0;
}

template <class Real>
KJKO_MATH Real sixth_of_cube(Real v) {
    return in_precision_of(v, 1.0 / 6) * (v * v * v);
}

// The functions of ψ.
template <class X, class V, class To>
KJKO_MATH void monomials(const Monomials &m, const X &x, const V &v, const To &to) {
    using Real = decltype(v[0] + v[0]);
    int at = 0;
    Real square{};
    for (int k = 0; k < m.dv; ++k) to(at++, v[k]), square += v[k] * v[k];
    for (int k = 0; k < m.dv; ++k)
        for (int l = k; l < m.dv; ++l) to(at++, v[k] * v[l]);
    for (int k = 0; k < m.dv; ++k)
        for (int l = 0; l < m.beside; ++l) to(at++, v[k] * x[l]);
    for (int l = 0; m.periodic && l < m.beside; ++l) to(at++, square * x[l]);
    for (int l = 0; l < m.beside; ++l) to(at++, x[l]);
    for (int k = 0; !m.periodic && k < m.beside; ++k)
        for (int l = k; l < m.beside; ++l) to(at++, x[k] * x[l]);
    to(at, Real{} + 1.0f);
}

// The functions of Φ that depend on v alone.
template <class V, class To>
KJKO_MATH void monomials_of_velocity(const Monomials &m, const V &v, const To &to) {
    int at = 0;
    for (int k = 0; k < m.dv; ++k) to(at++, v[k]);
    for (int k = 0; k < m.dv; ++k)
        for (int l = k; l < m.dv; ++l) to(at++, v[k] * v[l]);
    for (int k = 0; k < m.dv; ++k) to(at++, sixth_of_cube(v[k]));
    for (int k = 0; k < m.dv; ++k) to(at++, in_precision_of(v[k], 1.0 / 24) * ((v[k] * v[k]) * (v[k] * v[k])));
}

// ∂/∂v_j of the functions of Φ.
template <class X, class V, class To>
KJKO_MATH void first_derivatives(const Monomials &m, int j, const X &x, const V &v, const To &to) {
    using Real = decltype(v[0] + v[0]);
    const Real zero{}, one = zero + 1.0f;
    int at = 0;
    for (int k = 0; k < m.dv; ++k) to(at++, k == j ? one : zero);
    for (int k = 0; k < m.dv; ++k)
        for (int l = k; l < m.dv; ++l)
            to(at++, k == j && l == j ? 2.0f * v[j] : k == j ? v[l] : l == j ? v[k] : zero);
    for (int k = 0; k < m.dv; ++k)
        for (int l = 0; l < m.beside; ++l) to(at++, k == j ? x[l] : zero);
    for (int l = 0; m.periodic && l < m.beside; ++l) to(at++, 2.0f * v[j] * x[l]);
    for (int k = 0; k < m.dv; ++k) to(at++, k == j ? 0.5f * v[j] * v[j] : zero);
    for (int k = 0; k < m.dv; ++k) to(at++, k == j ? sixth_of_cube(v[j]) : zero);
}

// ∂²/∂v_k∂v_l of the functions of Φ.
template <class X, class V, class To>
KJKO_MATH void second_derivatives(const Monomials &m, int k, int l, const X &x, const V &v, const To &to) {
    using Real = decltype(v[0] + v[0]);
    const Real zero{}, one = zero + 1.0f, two = zero + 2.0f;
    int at = 0;
    for (int i = 0; i < m.dv; ++i) to(at++, zero);
    for (int i = 0; i < m.dv; ++i)
        for (int j = i; j < m.dv; ++j)
            to(at++, (i == k && j == l) || (i == l && j == k) ? (k == l ? two : one) : zero);
    for (int i = 0; i < m.dv * m.beside; ++i) to(at++, zero);
    for (int i = 0; m.periodic && i < m.beside; ++i) to(at++, k == l ? 2.0f * x[i] : zero);
    for (int i = 0; i < m.dv; ++i) to(at++, k == l && i == k ? v[k] : zero);
    for (int i = 0; i < m.dv; ++i) to(at++, k == l && i == k ? 0.5f * v[k] * v[k] : zero);
}

}  // namespace kjko::KJKO_LEVEL
