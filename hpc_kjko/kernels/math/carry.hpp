// The step of one particle along the field of a potential, and its diagnostics (hpc_kjko/collisions/controlled.py).
// Each processor must declare log_of and sine_and_cosine before this is included.
#pragma once

#include "math/carry_step.hpp"
#include "math/inline.hpp"
#include "math/log_det.hpp"

namespace kjko::KJKO_LEVEL {

// A number of MovedParticles.
KJKO_MATH double number_at(bool is_double, const void *rows, long long at) {
    return is_double ? static_cast<const double *>(rows)[at] : static_cast<const float *>(rows)[at];
}
KJKO_MATH void set_number(bool is_double, void *rows, long long at, double number) {
    if (is_double)
        static_cast<double *>(rows)[at] = number;
    else
        static_cast<float *>(rows)[at] = static_cast<float>(number);
}

// The decrease of log f; the change of ½|v|² − T log f; T h (∇v·u + u·(∇v Φ' − v/T)).
template <class Number>
struct Step {
    Number fallen, gained, wrong;
};

// A particle at `places` [dx] with velocity `mine` moves along u, with the Jacobian ∇v u and the slope ∇v Φ'. The terms
// of its sums are passed to add(column, term), except the share itself.
template <int DV, class Number, class Add>
KJKO_MATH Step<Number> step_along(const CarryStep &how, int dx, const Number *places, const Number (&mine)[DV],
                                  const Number (&along)[DV], const Number (&slope)[DV],
                                  const Number (&jacobian)[DV][DV], const Add &add) {
    Number reached[DV], square{}, energy{}, work{}, stein{}, divergence{};
    KJKO_UNROLLED for (int k = 0; k < DV; ++k) {
        reached[k] = mine[k] + how.fitted * along[k];
        square += along[k] * along[k];
        energy += reached[k] * reached[k];
        work += (mine[k] + 0.5 * how.step * along[k]) * along[k];
        stein += along[k] * (slope[k] - mine[k] / how.temperature);
        divergence += jacobian[k][k];
    }
    const auto log_det_of = [&](double h) {
        Number scaled[DV][DV];
        KJKO_UNROLLED for (int k = 0; k < DV; ++k)
            KJKO_UNROLLED for (int l = 0; l < DV; ++l) scaled[k][l] = h * jacobian[k][l];
        return log_of(1.0 + determinant_beyond_one(scaled, 1.0f));
    };
    const Number exact = log_det_of(how.step), fallen = how.exact ? exact : how.step * divergence;
    const Number seen = how.fitted == how.step ? fallen : how.exact ? log_det_of(how.fitted) : how.fitted * divergence;
    const Number gained = how.step * work - how.temperature * exact;
    const Number wrong = how.step * how.temperature * (divergence + stein);
    add(0, square);
    add(1, 0.5 * energy - how.temperature * seen);
    add(3, gained);
    if (how.wave) {
        Number phase{}, sine, cosine, parallel{}, pulled{}, heated{}, kinetic{};
        for (int k = 0; k < dx; ++k) phase += how.wave_vector[k] * places[k];
        sine_and_cosine(phase, sine, cosine);
        KJKO_UNROLLED for (int k = 0; k < DV; ++k) {
            const Number drag = along[k] + how.strength * reached[k];
            if (k < dx) parallel += how.direction[k] * reached[k], pulled += how.direction[k] * drag;
            heated += reached[k] * drag;
            kinetic += reached[k] * reached[k];
        }
        heated -= how.strength * how.temperature * DV;
        const Number of[2] = {cosine, sine}, given[2] = {pulled, heated}, moment[2] = {parallel, 0.5 * kinetic};
        KJKO_UNROLLED for (int k = 0; k < 2; ++k)
            KJKO_UNROLLED for (int l = 0; l < 2; ++l) {
                const Number amount = moment[l] * of[k];
                add(5 + 2 * k + l, given[l] * of[k]);
                add(9 + 2 * k + l, amount);
                add(13 + 2 * k + l, amount * amount);
            }
    }
    return {fallen, gained, wrong};
}

// The smallest eigenvalue of I + h J, for symmetric J. In three dimensions by the trigonometric solution of the
// characteristic cubic (O. K. Smith, doi:10.1145/355578.366316).
KJKO_MATH double smallest_of(const double (&j)[1][1], double h) { return 1 + h * j[0][0]; }
KJKO_MATH double smallest_of(const double (&j)[2][2], double h) {
    const double apart = 0.5 * (j[0][0] - j[1][1]);
    return 1 + h * 0.5 * (j[0][0] + j[1][1]) - h * root_of(apart * apart + j[0][1] * j[0][1]);
}
KJKO_MATH double smallest_of(const double (&j)[3][3], double h) {
    const double mean = (j[0][0] + j[1][1] + j[2][2]) / 3;
    double a[3][3], square = 0;
    for (int k = 0; k < 3; ++k)
        for (int l = 0; l < 3; ++l) {
            a[k][l] = j[k][l] - (k == l ? mean : 0.0);
            square += a[k][l] * a[k][l];
        }
    const double spread = root_of(square / 6);
    if (!(spread > 0)) return 1 + h * mean + spread;  // NaN stays NaN
    const double determinant = a[0][0] * (a[1][1] * a[2][2] - a[1][2] * a[2][1]) -
                               a[0][1] * (a[1][0] * a[2][2] - a[1][2] * a[2][0]) +
                               a[0][2] * (a[1][0] * a[2][1] - a[1][1] * a[2][0]);
    double half = determinant / (2 * spread * spread * spread);
    half = half < -1 ? -1 : half > 1 ? 1 : half;
    return 1 + h * (mean + 2 * spread * cosine_of(arc_cosine_of(half) / 3 + 2.0943951023931953));
}

}  // namespace kjko::KJKO_LEVEL
