// log det(I + h J) of a particle's map v ← v + h u, J = ∇v u, with its derivatives.
#pragma once

#include "math/constants.hpp"
#include "math/inline.hpp"

namespace kjko::KJKO_LEVEL {

// det(I + h J) − 1. Without the 1, small determinants keep their digits.
template <class Real>
KJKO_MATH Real determinant_beyond_one(const Real (&j)[1][1], float h) {
    return h * j[0][0];
}

template <class Real>
KJKO_MATH Real determinant_beyond_one(const Real (&j)[2][2], float h) {
    return h * (j[0][0] + j[1][1] + h * (j[0][0] * j[1][1] - j[0][1] * j[1][0]));
}

template <class Real>
KJKO_MATH Real determinant_beyond_one(const Real (&j)[3][3], float h) {
    const Real minor0 = j[1][1] * j[2][2] - j[1][2] * j[2][1];
    const Real minor1 = j[1][0] * j[2][2] - j[1][2] * j[2][0];
    const Real minor2 = j[1][0] * j[2][1] - j[1][1] * j[2][0];
    const Real minors = minor0 + j[0][0] * (j[1][1] + j[2][2]) - j[0][1] * j[1][0] - j[0][2] * j[2][0];
    const Real determinant = j[0][0] * minor0 - j[0][1] * minor1 + j[0][2] * minor2;
    return h * (j[0][0] + j[1][1] + j[2][2] + h * (minors + h * determinant));
}

// Cofactors c_kj = ∂ det(I + h J) / ∂ (I + h J)_kj.
template <class Real>
KJKO_MATH void cofactors(const Real (&)[1][1], float, Real (&c)[1][1]) {
    c[0][0] = 1.0f - Real{};
}

template <class Real>
KJKO_MATH void cofactors(const Real (&j)[2][2], float h, Real (&c)[2][2]) {
    c[0][0] = 1.0f + h * j[1][1];
    c[0][1] = -h * j[1][0];
    c[1][0] = -h * j[0][1];
    c[1][1] = 1.0f + h * j[0][0];
}

template <class Real>
KJKO_MATH void cofactors(const Real (&j)[3][3], float h, Real (&c)[3][3]) {
    Real m[3][3];
    for (int k = 0; k < 3; ++k)
        for (int i = 0; i < 3; ++i) m[k][i] = h * j[k][i] + (k == i ? 1.0f : 0.0f);
    for (int k = 0; k < 3; ++k)
        for (int i = 0; i < 3; ++i) {
            const int k1 = (k + 1) % 3, k2 = (k + 2) % 3, i1 = (i + 1) % 3, i2 = (i + 2) % 3;
            c[k][i] = m[k1][i1] * m[k2][i2] - m[k1][i2] * m[k2][i1];
        }
}

// B = (I + h J)⁻¹, and det(I + h J) − 1.
template <int DV, class Real>
KJKO_MATH Real inverse(const Real (&j)[DV][DV], float h, Real (&b)[DV][DV]) {
    const Real beyond = determinant_beyond_one(j, h);
    Real cofactor[DV][DV];
    cofactors(j, h, cofactor);
    for (int i = 0; i < DV; ++i)
        for (int k = 0; k < DV; ++k) b[i][k] = cofactor[k][i] / (1.0f + beyond);
    return beyond;
}

// log(1 + e). Below 1 + e = 0.1 it is continued by its second-order Taylor polynomial there. `slope` is the derivative.
template <class Real>
KJKO_MATH Real continued_log(Real e, Real &slope) {
    constexpr float d0 = static_cast<float>(CONTINUE_BELOW);
    const Real below = (e - (d0 - 1.0f)) / d0;
    const Real clear = e > d0 - 1.0f ? e : (d0 - 1.0f) - Real{};
    const Real continuation = -2.3025851f /* log d0 */ + below - 0.5f * below * below;
    slope = below < 0.0f ? (1.0f - below) / d0 : 1.0f / (1.0f + clear);
    return below < 0.0f ? continuation : log_of_one_plus(clear);
}

}  // namespace kjko::KJKO_LEVEL
