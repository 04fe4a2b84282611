// One pair of particles: its contribution to the sums of hpc_kjko/collisions/pairs.py, and the units in which it is
// computed.
//
// A particle i that is moved is called a target here, and each of its partners j a source. A collision block has its
// own units. In these its mean velocity is 0. The spread of its velocities, its largest score and its largest weight
// are 1. So float32 resolves the differences between particles, and no power of |z| overflows.
//
// inverse_root and power_of of vectors must be declared before this is included.
#pragma once

#include "math/inline.hpp"
#include "math/pairs.hpp"

namespace kjko::KJKO_LEVEL {

#ifdef __CUDACC__
KJKO_MATH double square_root(double x) { return sqrt(x); }
KJKO_MATH float inverse_root(float x) { return rsqrtf(x); }
KJKO_MATH double inverse_root(double x) { return rsqrt(x); }
KJKO_MATH float power_of(float x, double exponent) { return exp2f(static_cast<float>(exponent) * log2f(x)); }
KJKO_MATH double power_of(double x, double exponent) { return pow(x, exponent); }
#else
KJKO_MATH double square_root(double x) { return __builtin_sqrt(x); }
KJKO_MATH float inverse_root(float x) { return 1 / __builtin_sqrtf(x); }
KJKO_MATH double inverse_root(double x) { return 1 / __builtin_sqrt(x); }
KJKO_MATH float power_of(float x, double exponent) {
    return __builtin_exp2f(static_cast<float>(exponent) * __builtin_log2f(x));
}
KJKO_MATH double power_of(double x, double exponent) { return __builtin_pow(x, exponent); }
#endif

// A symmetric matrix, stored as its rows up to the diagonal: the index of (k, m ≤ k), and the number of entries.
KJKO_MATH constexpr int entry_of(int k, int m) { return k * (k + 1) / 2 + m; }
template <int DIMS>
constexpr int ENTRIES = DIMS * (DIMS + 1) / 2;

// The numbers of a target: v, σ and, for unlike species, ∇σ. A source has w after them.
template <int DIMS, bool ALIKE>
constexpr int TARGET = 2 * DIMS + (ALIKE ? 0 : ENTRIES<DIMS>);
template <int DIMS, bool ALIKE>
constexpr int SOURCE = TARGET<DIMS, ALIKE> + 1;

// The sums of a target: −V; then, for like particles, Σ w |z|^γ z·Δσ and Σ w |z|^γ z zᵀ, and for unlike particles G.
template <int DIMS, bool ALIKE>
constexpr int SUMS = DIMS + 1 + (ALIKE ? ENTRIES<DIMS> : 0);

// The number of sources in a run: they are added in the precision of the pairs, and their sum is added in double
// precision.
constexpr int RUN = 128;

// float32 requires |z| to be at least this fraction of |v| of the target, or of the spread if that is larger. The
// relative rounding error 2⁻²⁴ of v and σ causes an error of w |z|^(γ + 1) 2⁻²⁴ |σ| in the contribution of a pair to G.
// This error has no bound as |z| falls. A run with a nearer source is computed again in double precision. In three
// dimensions that is one run in thousands. In two dimensions near pairs are more frequent, and it is half a percent of
// the runs of a vector of members.
template <int DIMS>
constexpr double NEAR = DIMS == 3 ? 1.0 / 128 : 1.0 / 512;

// w |z|^γ and w |z|^(γ + 2) from |z|²: for γ = −3, −2, −1 and 1, and for any γ.
template <int GAMMA, class Real>
KJKO_MATH void weigh(Constant<GAMMA>, Real square, Real weight, Real &bare, Real &bent) {
    static_assert(GAMMA >= -3 && GAMMA <= 1 && GAMMA != 0);
    const Real inverse = inverse_root(square);
    if constexpr (GAMMA == -3) {
        bent = weight * inverse;
        bare = bent * (inverse * inverse);
    } else if constexpr (GAMMA == -2) {
        bent = weight;
        bare = weight * (inverse * inverse);
    } else {
        bare = weight * (GAMMA == -1 ? inverse : square * inverse);
        bent = bare * square;
    }
}
template <class Real>
KJKO_MATH void weigh(double exponent, Real square, Real weight, Real &bare, Real &bent) {
    bare = weight * power_of(square, 0.5 * exponent);
    bent = bare * square;
}

// The γ with which |z|^γ is computed: the constant, or `exponent` if the constant is 0.
template <int GAMMA>
KJKO_MATH auto force_of(Constant<GAMMA> force, double exponent) {
    if constexpr (GAMMA == 0)
        return exponent;
    else
        return force;
}

// Calls what(constant) with γ if there is special code for it, otherwise with 0.
template <class What>
KJKO_MATH void with_constant(double exponent, const What &what) {
    if (exponent == -3) return what(Constant<-3>());
    if (exponent == -2) return what(Constant<-2>());
    if (exponent == -1) return what(Constant<-1>());
    if (exponent == 1) return what(Constant<1>());
    what(Constant<0>());
}

// Adds the contribution of a source to a target, or to a vector of targets; returns |z|². If GUARDED, a source at z = 0
// adds nothing, and 1 is returned for it. Otherwise it may make the sums invalid.
template <int DIMS, bool ALIKE, bool GUARDED, class Force, class Real, class Number>
KJKO_MATH Real add_pair(const Real (&target)[TARGET<DIMS, ALIKE>], const Number *source, Force force, Number mass,
                        Real (&sums)[SUMS<DIMS, ALIKE>]) {
    Real z[DIMS], change[DIMS];
    KJKO_UNROLLED for (int k = 0; k < DIMS; ++k) {
        z[k] = target[k] - source[k];
        change[k] = target[DIMS + k] - source[DIMS + k];
    }
    Real square = z[0] * z[0], along = z[0] * change[0];
    KJKO_UNROLLED for (int k = 1; k < DIMS; ++k) {
        square += z[k] * z[k];
        along += z[k] * change[k];
    }
    Real weight = source[TARGET<DIMS, ALIKE>] - Real{};
    if constexpr (GUARDED) {
        const auto apart = square != 0;  // true also if z is NaN, so that the sums show it
        weight = apart ? weight : Real{};
        square = apart ? square : 1 - Real{};
    }
    Real bare, bent, pulled[DIMS];
    weigh(force, square, weight, bare, bent);
    KJKO_UNROLLED for (int k = 0; k < DIMS; ++k) {
        pulled[k] = bare * z[k];
        sums[k] += bent * change[k];
        sums[k] -= pulled[k] * along;
    }
    if constexpr (ALIKE) {
        sums[DIMS] += bare * along;
        KJKO_UNROLLED for (int k = 0; k < DIMS; ++k)
            KJKO_UNROLLED for (int m = 0; m <= k; ++m) sums[DIMS + 1 + entry_of(k, m)] += pulled[k] * z[m];
    } else {
        // ∇σ_i − ∇σ_j is formed before the sum, because each difference vanishes in equilibrium.
        Real trace{}, quadratic{}, inner{}, crossed{};
        KJKO_UNROLLED for (int k = 0; k < DIMS; ++k) {
            Real row{};
            KJKO_UNROLLED for (int m = 0; m <= k; ++m) {
                const Real bending = target[2 * DIMS + entry_of(k, m)] - source[2 * DIMS + entry_of(k, m)];
                row += (m == k ? bending : bending + bending) * z[m];
                if (m == k) trace += bending;
            }
            quadratic += row * z[k];
            inner += change[k] * source[DIMS + k];
            crossed += z[k] * source[DIMS + k];
        }
        sums[DIMS] += bent * (trace + mass * inner);
        sums[DIMS] -= bare * (quadratic + mass * (along * crossed));
    }
    return square;
}

// The sums of the field of a target, which the implicit step of Coulomb collisions needs: −V; Σ w |z|^γ z zᵀ; −∂V/∂v
// with the sources fixed, row-major, without the contribution of the target's own ∇σ; and for like particles Σ w |z|^γ
// z·Δσ.
template <int DIMS>
constexpr int FIELD_SUMS = DIMS + ENTRIES<DIMS> + DIMS * DIMS + 1;

// Adds the contribution of a source to the field of a target, or of a vector of targets. A source at z = 0 adds
// nothing. Between unlike species −∂V/∂v is another average with the same mean, which is bounded as A(z) is
// (hpc_kjko/collisions/pairs.py).
template <int DIMS, bool ALIKE, class Force, class Real, class Number>
KJKO_MATH void add_field(const Real (&target)[TARGET<DIMS, ALIKE>], const Number *source, Force force, Number exponent,
                         Number mass, Real (&sums)[FIELD_SUMS<DIMS>]) {
    constexpr int SECOND = DIMS, SLOPE = DIMS + ENTRIES<DIMS>, TRACE = SLOPE + DIMS * DIMS;
    Real z[DIMS], change[DIMS], square{}, along{};
    KJKO_UNROLLED for (int k = 0; k < DIMS; ++k) {
        z[k] = target[k] - source[k];
        change[k] = target[DIMS + k] - source[DIMS + k];
        square += z[k] * z[k];
        along += z[k] * change[k];
    }
    const auto apart = square != 0;  // true also if z is NaN, so that the sums show it
    const Real weight = apart ? source[TARGET<DIMS, ALIKE>] - Real{} : Real{};
    square = apart ? square : 1 - Real{};
    Real bare, bent;
    weigh(force, square, weight, bare, bent);
    Real pushed[DIMS], pulled[DIMS];  // w |z|^γ z and w A(z) Δσ
    KJKO_UNROLLED for (int k = 0; k < DIMS; ++k) {
        pushed[k] = bare * z[k];
        pulled[k] = bent * change[k] - pushed[k] * along;
        sums[k] += pulled[k];
        KJKO_UNROLLED for (int m = 0; m <= k; ++m) sums[SECOND + entry_of(k, m)] += pushed[k] * z[m];
    }
    if constexpr (ALIKE) {
        const Real steep = exponent / square;
        KJKO_UNROLLED for (int m = 0; m < DIMS; ++m) {
            const Real steeper = steep * z[m];
            const Real twice = pushed[m] + pushed[m];
            KJKO_UNROLLED for (int k = 0; k < DIMS; ++k)
                sums[SLOPE + k * DIMS + m] += steeper * pulled[k] + twice * change[k] - pushed[k] * change[m];
        }
        sums[TRACE] += bare * along;
    } else {
        KJKO_UNROLLED for (int m = 0; m < DIMS; ++m) {
            Real bending{};  // of z·∇σ_j
            KJKO_UNROLLED for (int l = 0; l < DIMS; ++l)
                bending += z[l] * source[2 * DIMS + (l < m ? entry_of(m, l) : entry_of(l, m))];
            const Number drag = mass * source[DIMS + m];
            KJKO_UNROLLED for (int k = 0; k < DIMS; ++k)
                sums[SLOPE + k * DIMS + m] +=
                    pulled[k] * drag + pushed[k] * bending -
                    bent * source[2 * DIMS + (k < m ? entry_of(m, k) : entry_of(k, m))];
        }
    }
}

// The units of a collision block, as factors for numbers on their way in and back.
template <int DIMS>
struct PairUnits {
    double origin[DIMS], per_speed, per_score, per_weight, bending;  // of v, σ, w, ∇σ
    double mass;                                                      // of the sources, in these units
    double velocity, growth, distance;                                // for sums with Δσ |z|², Δσ |z| and |z|²
};

KJKO_MATH double larger(double one, double other) { return one > other ? one : other; }

// The units from an origin, the mean |v − origin|², and the largest |σ_k| and weight. No unit is 0.
template <int DIMS>
KJKO_MATH PairUnits<DIMS> units_of(const PairCall &call, const double (&origin)[DIMS], double square, double score,
                                   double weight) {
    const double speed = square > 0 ? square_root(square) : 1;
    score = score > 0 ? score : 1;
    weight = weight > 0 ? weight : 1;
    const double weighed = weight * power_of(speed, call.exponent + 1);
    PairUnits<DIMS> units = {{}, 1 / speed, 1 / score, 1 / weight, speed / score, call.mass * speed * score,
                             weighed * speed * score, weighed * score, weighed * speed};
    KJKO_UNROLLED for (int k = 0; k < DIMS; ++k) units.origin[k] = origin[k];
    return units;
}

// |v − origin|² of a particle, and its largest |σ_k|.
template <int DIMS>
KJKO_MATH double square_of(const PairMembers &of, long long row, const double (&origin)[DIMS]) {
    double square = 0;
    KJKO_UNROLLED for (int k = 0; k < DIMS; ++k) {
        const double z = of.v[row * DIMS + k] - origin[k];
        square += z * z;
    }
    return square;
}
template <int DIMS>
KJKO_MATH double largest_score(const PairMembers &of, long long row) {
    double largest = 0;
    KJKO_UNROLLED for (int k = 0; k < DIMS; ++k) {
        const double score = of.score[row * DIMS + k];
        largest = larger(larger(score, -score), largest);
    }
    return largest;
}

// The |z|² of a target below which a source is too near for float32, in the units of the collision block.
template <int DIMS>
KJKO_MATH double nearest_of(const PairMembers &of, long long row, const PairUnits<DIMS> &units) {
    return NEAR<DIMS> * NEAR<DIMS> * larger(square_of(of, row, units.origin) * (units.per_speed * units.per_speed), 1);
}

// Number l of a target or a source, in the units of the collision block.
template <int DIMS, bool ALIKE>
KJKO_MATH double in_units(const PairMembers &of, long long row, const PairUnits<DIMS> &units, int l) {
    if (l < DIMS) return (of.v[row * DIMS + l] - units.origin[l]) * units.per_speed;
    if (l < 2 * DIMS) return of.score[row * DIMS + l - DIMS] * units.per_score;
    if (l == TARGET<DIMS, ALIKE>) return of.weight[row] * units.per_weight;
    const int entry = l - 2 * DIMS, k = entry < 1 ? 0 : entry < 3 ? 1 : 2, m = entry - entry_of(k, 0);
    return of.hessian[(row * DIMS + k) * DIMS + m] * units.bending;
}

// V and G of a member from its sums.
template <int DIMS, bool ALIKE>
KJKO_MATH void hand_over(const PairCall &call, long long row, const PairUnits<DIMS> &units,
                         const double (&sums)[SUMS<DIMS, ALIKE>]) {
    KJKO_UNROLLED for (int k = 0; k < DIMS; ++k) call.velocity[row * DIMS + k] = -sums[k] * units.velocity;
    double growth = sums[DIMS] * units.growth;
    if constexpr (ALIKE) {
        const double *hessian = call.members.hessian + row * DIMS * DIMS;
        double distance = 0, trace = 0, quadratic = 0;
        KJKO_UNROLLED for (int k = 0; k < DIMS; ++k) {
            KJKO_UNROLLED for (int m = 0; m <= k; ++m)
                quadratic += (m == k ? 1 : 2) * sums[DIMS + 1 + entry_of(k, m)] * hessian[k * DIMS + m];
            distance += sums[DIMS + 1 + entry_of(k, k)];
            trace += hessian[k * DIMS + k];
        }
        growth = (distance * trace - quadratic) * units.distance - (DIMS - 1) * growth;
    }
    call.growth[row] = growth;
}

// D = Σ w A(z), V and ∂V/∂v of a member from the sums of its field.
template <int DIMS, bool ALIKE>
KJKO_MATH void hand_over(const PairFieldCall &call, long long row, const double (&sums)[FIELD_SUMS<DIMS>]) {
    constexpr int SECOND = DIMS, SLOPE = DIMS + ENTRIES<DIMS>, TRACE = SLOPE + DIMS * DIMS;
    const double *hessian = call.pairs.members.hessian + row * DIMS * DIMS;
    double distance = 0, *metric = call.metric + row * DIMS * DIMS;
    KJKO_UNROLLED for (int k = 0; k < DIMS; ++k) {
        call.pairs.velocity[row * DIMS + k] = -sums[k];
        distance += sums[SECOND + entry_of(k, k)];
    }
    KJKO_UNROLLED for (int k = 0; k < DIMS; ++k)
        KJKO_UNROLLED for (int m = 0; m < DIMS; ++m)
            metric[k * DIMS + m] = (k == m ? distance : 0) - sums[SECOND + (k < m ? entry_of(m, k) : entry_of(k, m))];
    KJKO_UNROLLED for (int k = 0; k < DIMS; ++k)
        KJKO_UNROLLED for (int m = 0; m < DIMS; ++m) {
            double slope = (ALIKE && k == m ? sums[TRACE] : 0) - sums[SLOPE + k * DIMS + m];
            KJKO_UNROLLED for (int l = 0; l < DIMS; ++l)
                slope -= metric[k * DIMS + l] * hessian[l < m ? m * DIMS + l : l * DIMS + m];
            call.slope[(row * DIMS + k) * DIMS + m] = slope;
        }
}

}  // namespace kjko::KJKO_LEVEL
