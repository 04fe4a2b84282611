// The part of the JKO functional J that one particle contributes, with its derivatives (hpc_kjko/inner/objective.py).
//
//   J = Σ share [ h/(2κ) |u|² + h (v + ½ h u)·u − T (ℓ − h known ∇v·u) ],   ℓ = log det(I + h ∇v u)  or  h ∇v·u
//
// share is the particle's fraction of the mass. known is the part of ∇v·u whose average a control variate knows.
#pragma once

#include "math/log_det.hpp"
#include "math/settings.hpp"

namespace kjko::KJKO_LEVEL {

// h/(2κ) |u|² + ½|v + h u|² − ½|v|², and share times its gradient in u.
template <int DV, class Real>
KJKO_MATH Real kinetic_term(const Settings &s, const Real (&u)[DV], const Real (&v)[DV], Real share,
                            Real (&gradient)[DV]) {
    const float h = s.step;
    Real energy{}, along{};
    KJKO_UNROLLED for (int k = 0; k < DV; ++k) {
        energy += u[k] * u[k];
        along += (v[k] + 0.5f * h * u[k]) * u[k];
        gradient[k] = share * h * ((1 / s.collision_strength + h) * u[k] + v[k]);
    }
    const Real running = h / (2 * s.collision_strength) * energy;
    return running + h * along;
}

// h ∇v·u without the known part, and the gradient of −T share times this with respect to ∇v·u.
template <class Real>
KJKO_MATH Real linear_term(const Settings &s, Real divergence, Real share, Real known, Real &gradient) {
    const float h = s.step;
    gradient = -s.temperature * h * share * (1.0f - known);
    return h * divergence - h * known * divergence;
}

// ℓ without the known part of h ∇v·u, and the gradient of −T share times this with respect to ∂u_k/∂v_j.
template <int DV, class Real>
KJKO_MATH Real log_det_term(const Settings &s, const Real (&jacobian)[DV][DV], Real share, Real known,
                            Real (&gradient)[DV][DV]) {
    const float h = s.step;
    Real divergence = jacobian[0][0], slope = 1.0f - Real{}, log_det, cofactor[DV][DV] = {};
    KJKO_UNROLLED for (int k = 1; k < DV; ++k) divergence += jacobian[k][k];
    if (s.exact) {
        log_det = continued_log(determinant_beyond_one(jacobian, h), slope);
        cofactors(jacobian, h, cofactor);
    } else {
        log_det = h * divergence;
        KJKO_UNROLLED for (int k = 0; k < DV; ++k) cofactor[k][k] = 1.0f - Real{};
    }
    const Real weight = -s.temperature * h * share;
    KJKO_UNROLLED for (int k = 0; k < DV; ++k)
        KJKO_UNROLLED for (int j = 0; j < DV; ++j) {
            Real in_entry = slope * cofactor[k][j];
            if (k == j) in_entry -= known;
            gradient[k][j] = weight * in_entry;
        }
    return log_det - h * known * divergence;
}

// The contribution of a particle to J, from its two terms.
template <class Real>
KJKO_MATH Real part_of(const Settings &s, Real share, Real kinetic, Real log_det) {
    return share * (kinetic - s.temperature * log_det);
}

// The weight of a derivative along v in the loads of variable projection, for the part that a control variate knows.
template <class Real>
KJKO_MATH Real known_weight(const Settings &s, Real share, Real known) {
    return s.temperature * share * known;
}

// (W1v W3)ᵀ_il of M = W2 ∘ (W1v W3)ᵀ in the closed form, from the numbers of feature l in W1v and column i of W3. The
// numbers of each are `stride` apart.
KJKO_MATH float coupling(const float *w1v, const float *w3, int stride, int dims) {
    float sum = 0;
    for (int k = 0; k < dims; ++k) sum += w1v[k * stride] * w3[k * stride];
    return sum;
}

}  // namespace kjko::KJKO_LEVEL
