// The functions of a log-density and of control fields that are gradients, for a cache block of particles at a time as
// columns (cpu/columns.hpp), and sums of their products.
//
// If derivatives are contracted with coefficients c, the derivatives of the single functions are not needed. Let a_l =
// W_l h_(l−1) + b_l, h_l = tanh a_l, s_l = 1 − h_l² and q_l = ∂ψ/∂h_l. Then q of the last layer is c, q_(l−1) = W_lᵀ
// (s_l q_l), and
//   ∇v ψ = Σ_i (s_l q_l)_i ∇v a_l,i for any l,    ∇v∇v ψ = Σ_l Σ_i −2 (h_l s_l q_l)_i ∇v a_l,i ∇v a_l,iᵀ.
#include "cpu/kernels.hpp"
#include "cpu/columns.hpp"

#include "math/carry.hpp"
#include "math/log_det.hpp"
#include "math/monomials.hpp"
#include "math/rounding.hpp"

namespace kjko::KJKO_LEVEL {

constexpr int BLOCK = 64;     // particles of a cache block, which go through the network together
constexpr int STASH = 256;    // particles of a stash, whose products are added together
constexpr int MOST_PAIRS = MOST_VELOCITY_DIMS * (MOST_VELOCITY_DIMS + 1) / 2;

static int larger(int a, int b) { return a > b ? a : b; }

// A vector of numbers in double precision. The instruction is named, because GCC 12 would convert each half by itself.
static KJKO_INLINE Doubles load_widened(const float *from) {
#if defined(__AVX512F__)
    return _mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(from));
#elif defined(__AVX__)
    return _mm256_cvtps_pd(_mm_loadu_ps(from));
#else
    Doubles wide;
    for (int lane = 0; lane < LANES_OF<double>; ++lane) wide[lane] = from[lane];
    return wide;
#endif
}
static KJKO_INLINE Doubles load_widened(const double *from) { return load(from); }

template <class Real>
static KJKO_INLINE void widen(const Real *from, double *to) {
    KJKO_UNROLL for (int p = 0; p < BLOCK; p += LANES_OF<double>) store(to + p, load_widened(from + p));
}

template <class Real>
struct PotentialPass {
    using Vector = VectorOf<Real>;
    static constexpr int WIDE = LANES_OF<Real>, FINE = LANES_OF<double>;

    const PotentialCall<Real> &call;
    const int layers, inputs, dv, beside, width, most, pairs_of_v;
    const Monomials of;
    const int density, potential;  // numbers of functions

    // Columns of BLOCK particles. There are STASH / BLOCK places for z, h and along; use() selects one.
    Real *z, *h[2], *along[MOST_VELOCITY_DIMS], *pulled[2], *spare[2];
    Real *places_of_columns;
    double *places_of_fine;
    // The transpose of the weights of the second layer; ∂a_1/∂v_j and the products of two of them, as rows of the first
    // layer.
    Real *back, *into, *bent;
    // The inputs in double precision, and rows of STASH particles.
    double *fine, *rows, *weighted;

    static int most_width(const PotentialCall<Real> &call) {
        return larger(call.widths[1], call.widths[call.layers]);
    }
    static Monomials monomials_of(const PotentialCall<Real> &call) {
        return {call.widths[0] - call.velocity_dims, call.velocity_dims, call.periodic};
    }
    static PotentialSizes sizes(const PotentialCall<Real> &call) {
        const Monomials of = monomials_of(call);
        const int width = call.widths[call.layers], low = of_low_velocity(of) + 2 * of.dv;
        const int places = (of.periodic ? 0 : of.beside) + of.dv + 1;
        PotentialSizes found = {width + of_density(of), width + of_potential(of), low, places, 1};
        for (int layer = 0; layer < call.layers; ++layer)
            found.training += call.widths[layer + 1] * (call.widths[layer] + 1);
        return found;
    }
    // The size of the workspace in numbers of Real, then of double.
    static long long real_numbers(const PotentialCall<Real> &call) {
        const long long most = most_width(call), dv = call.velocity_dims;
        const long long matrices = most * most + (dv + MOST_PAIRS) * most;
        return STASH * (call.widths[0] + (2 + dv) * most) + BLOCK * 4 * most + (matrices + 63) / 64 * 64;
    }
    static long long double_numbers(const PotentialCall<Real> &call) {
        return static_cast<long long>(STASH) * (call.widths[0] + rows_of_sums(call) + rows_weighted(call));
    }
    // The number of rows of STASH numbers: the terms that operations add up, and their weights.
    static int rows_of_sums(const PotentialCall<Real> &call) {
        const PotentialSizes of = sizes(call);
        const int dv = call.velocity_dims, most = most_width(call);
        const int barrier = (dv * (dv + 1) / 2 * of.potential * BLOCK + STASH - 1) / STASH, normal = of.density + 1;
        const int tied = dv * (of.low + 2) + 2 * of.low + 1 + of.places;
        const int training = 3 * most + call.widths[0] + 1;  // in Real
        return larger(larger(larger(barrier, of.potential), normal), larger(tied, training));
    }
    static int rows_weighted(const PotentialCall<Real> &call) {
        const PotentialSizes of = sizes(call);
        return larger(larger(of.density, of.potential), larger(of.low, of.places));
    }
    static long long numbers(const PotentialCall<Real> &call) {
        return (real_numbers(call) * static_cast<long long>(sizeof(Real)) + 7) / 8 + double_numbers(call);
    }

    PotentialPass(const PotentialCall<Real> &c, double *workspace)
        : call(c), layers(c.layers), inputs(c.widths[0]), dv(c.velocity_dims), beside(inputs - dv),
          width(c.widths[c.layers]), most(most_width(c)), pairs_of_v(dv * (dv + 1) / 2), of(monomials_of(c)),
          density(sizes(c).density), potential(sizes(c).potential) {
        places_of_fine = workspace;
        rows = places_of_fine + STASH * inputs;
        weighted = rows + static_cast<long long>(STASH) * rows_of_sums(c);
        Real *at = reinterpret_cast<Real *>(workspace + double_numbers(c));
        const auto taken = [&](long long count) {
            Real *const from = at;
            at += count;
            return from;
        };
        places_of_columns = taken(STASH * (inputs + (2 + dv) * most));
        use(0);
        for (int layer = 0; layer < 2; ++layer) pulled[layer] = taken(BLOCK * most), spare[layer] = taken(BLOCK * most);
        back = taken(most * most);
        into = taken(dv * most);
        bent = taken(MOST_PAIRS * most);
        const int first = c.widths[1];
        for (int i = 0; i < first; ++i) {
            const Real *w = c.weights[0] + i * inputs + beside;
            for (int j = 0; j < dv; ++j) into[j * first + i] = w[j];
            for (int number = 0; number < pairs_of_v; ++number) {
                int k, l;
                pair_of(of, number, k, l);
                bent[number * first + i] = w[k] * w[l];
            }
            for (int o = 0; layers == 2 && o < width; ++o) back[i * width + o] = c.weights[1][o * first + i];
        }
    }

    // Selects the place of the inputs, hidden layers and tangents of a cache block. A stash can keep all of its cache
    // blocks.
    void use(int place) {
        fine = places_of_fine + place * BLOCK * inputs;
        z = places_of_columns + place * BLOCK * (inputs + (2 + dv) * most);
        h[0] = z + BLOCK * inputs;
        h[1] = h[0] + BLOCK * most;
        for (int j = 0; j < dv; ++j) along[j] = h[1] + BLOCK * (1 + j) * most;
    }

    // The hidden layers of some particles, at the inputs of the call. Columns beyond the last particle repeat it.
    // Returns the number of particles.
    int forward(long long first) {
        const int count = call.count - first < BLOCK ? static_cast<int>(call.count - first) : BLOCK;
        for (int l = 0; l < inputs; ++l) {
            for (int p = 0; p < BLOCK; ++p) z[l * BLOCK + p] = call.z[(first + (p < count ? p : count - 1)) * inputs + l];
            widen(z + l * BLOCK, fine + l * BLOCK);
        }
        through();
        return count;
    }

    // The hidden layers at positions x and velocities v. The positions enter unchanged, or as cosines and sines.
    int forward_from(long long first, const CarryStep &how, const MovedParticles &particles) {
        const int count = call.count - first < BLOCK ? static_cast<int>(call.count - first) : BLOCK;
        const auto row = [&](int p) { return first + (p < count ? p : count - 1); };
        const bool is_double = particles.is_double;
        const int dx = particles.space_dims;
        for (int j = 0; j < dv; ++j)
            for (int p = 0; p < BLOCK; ++p)
                z[(beside + j) * BLOCK + p] = static_cast<Real>(number_at(is_double, particles.v, row(p) * dv + j));
        for (int l = 0; l < dx; ++l) {
            alignas(64) double at[BLOCK];
            for (int p = 0; p < BLOCK; ++p) at[p] = number_at(is_double, particles.x, row(p) * dx + l);
            for (int p = 0; p < BLOCK && call.periodic; p += FINE) {
                Doubles sine, cosine;
                sine_and_cosine(load(at + p) * (6.283185307179586 / how.periods[l]), sine, cosine);
                for (int lane = 0; lane < FINE; ++lane) {
                    z[l * BLOCK + p + lane] = static_cast<Real>(cosine[lane]);
                    z[(dx + l) * BLOCK + p + lane] = static_cast<Real>(sine[lane]);
                }
            }
            for (int p = 0; p < BLOCK && !call.periodic; ++p) z[l * BLOCK + p] = static_cast<Real>(at[p]);
        }
        through();
        return count;
    }

    void through() {
        for (int layer = 0; layer < layers; ++layer) {
            const int to = call.widths[layer + 1];
            product(call.weights[layer], to, call.widths[layer], layer ? h[0] : z, BLOCK, h[layer], call.biases[layer]);
            for (int at = 0; at < to * BLOCK; at += WIDE) store(h[layer] + at, tanh_of(load(h[layer] + at)));
        }
    }

    // ∂a/∂v_j of the last layer, for networks with two layers.
    void tangents() {
        const int before = call.widths[1];
        for (int at = 0; layers == 2 && at < before * BLOCK; at += WIDE) {
            const Vector s = load(h[0] + at);
            store(spare[1] + at, 1.0f - s * s);
        }
        for (int j = 0; layers == 2 && j < dv; ++j) {
            for (int i = 0; i < before; ++i)
                for (int p = 0; p < BLOCK; p += WIDE)
                    store(spare[0] + i * BLOCK + p, load(spare[1] + i * BLOCK + p) * broadcast(into[j * before + i]));
            product(call.weights[1], width, before, spare[0], BLOCK, along[j]);
        }
    }

    // The functions of ψ as rows that are `stride` apart.
    void functions(double *to, int stride) {
        for (int i = 0; i < width; ++i) widen(h[layers - 1] + i * BLOCK, to + i * stride);
        at_places([&](const Doubles *x, const Doubles *v, int p) {
            monomials(of, x, v, [&](int m, Doubles value) { store(to + (width + m) * stride + p, value); });
        });
    }

    // Σ c g of the functions of ψ and, with `higher`, of v_k³/6 and v_k⁴/24: [BLOCK].
    void combined(const double *c, bool higher, double *to) {
        const Real *const last = h[layers - 1];
        Doubles sums[BLOCK / FINE] = {};
        for (int i = 0; i < width; ++i)
            KJKO_UNROLL for (int p = 0; p < BLOCK; p += FINE)
                sums[p / FINE] += c[i] * load_widened(last + i * BLOCK + p);
        const int low = of_low_velocity(of);
        at_places([&](const Doubles *x, const Doubles *v, int p) {
            Doubles sum = sums[p / FINE];
            monomials(of, x, v, [&](int m, Doubles value) { sum += c[width + m] * value; });
            if (higher)
                monomials_of_velocity(of, v, [&](int m, Doubles value) {
                    if (m >= low) sum += c[density + m - low] * value;
                });
            store(to + p, sum);
        });
    }

    // ∂/∂v_j of the functions of Φ as rows.
    void first(int j, double *to, int stride) {
        const Real *const last = h[layers - 1];
        for (int i = 0; i < width; ++i) {
            for (int p = 0; p < BLOCK; p += WIDE)
                store(spare[0] + p, slope(last, i, p) * last_along(j, i, p));
            widen(spare[0], to + i * stride);
        }
        at_places([&](const Doubles *x, const Doubles *v, int p) {
            first_derivatives(of, j, x, v, [&](int m, Doubles value) { store(to + (width + m) * stride + p, value); });
        });
    }

    // ∂²/∂v_k∂v_l of the functions of Φ as rows.
    void second(int number, double *to, int stride) {
        int k, l;
        pair_of(of, number, k, l);
        const Real *const last = h[layers - 1];
        if (layers == 2) {
            const int before = call.widths[1];
            for (int i = 0; i < before; ++i) {
                const Real product_of_w = bent[number * before + i];
                for (int p = 0; p < BLOCK; p += WIDE)
                    store(spare[0] + i * BLOCK + p, curvature(h[0], i, p) * broadcast(product_of_w));
            }
            product(call.weights[1], width, before, spare[0], BLOCK, spare[1]);
        }
        for (int i = 0; i < width; ++i) {
            for (int p = 0; p < BLOCK; p += WIDE) {
                Vector bend = curvature(last, i, p) * last_along(k, i, p) * last_along(l, i, p);
                if (layers == 2) bend += slope(last, i, p) * load(spare[1] + i * BLOCK + p);
                store(spare[0] + p, bend);
            }
            widen(spare[0], to + i * stride);
        }
        at_places([&](const Doubles *x, const Doubles *v, int p) {
            second_derivatives(of, k, l, x, v, [&](int m, Doubles value) { store(to + (width + m) * stride + p, value); });
        });
    }

    // The q of the sums of the first layer from those of the second.
    void pull_back() {
        product(back, call.widths[1], width, pulled[1], BLOCK, pulled[0]);
        for (int i = 0; i < call.widths[1]; ++i)
            for (int p = 0; p < BLOCK; p += WIDE) {
                Real *const q = pulled[0] + i * BLOCK + p;
                store(q, load(q) * slope(h[0], i, p));
            }
    }

    // Adds the contribution of the second layer to ∇v∇v Φ in `hessian` [pairs][BLOCK].
    template <int DV>
    void add_bent(Real *hessian) const {
        constexpr int PAIRS = DV * (DV + 1) / 2;
        for (int p = 0; p < BLOCK; p += WIDE) {
            Vector sums[PAIRS];
            for (int pair = 0; pair < PAIRS; ++pair) sums[pair] = load(hessian + pair * BLOCK + p);
            for (int at = p; at < width * BLOCK; at += BLOCK) {
                const Vector bend = -2.0f * load(h[1] + at) * load(pulled[1] + at);
                Vector a[DV], bent_a[DV];
                for (int j = 0; j < DV; ++j) a[j] = load(along[j] + at), bent_a[j] = bend * a[j];
                KJKO_UNROLL for (int pair = 0; pair < PAIRS; ++pair) {
                    int k, l;
                    pair_of(Monomials{0, DV, false}, pair, k, l);
                    sums[pair] += bent_a[k] * a[l];
                }
            }
            for (int pair = 0; pair < PAIRS; ++pair) store(hessian + pair * BLOCK + p, sums[pair]);
        }
    }

    // ∇v Σ c g of the functions of Φ as columns [dv][BLOCK]. It uses `tangents` if they are known, otherwise the first
    // layer. With `hessian`, which needs the tangents, also ∇v∇v [pairs][BLOCK].
    void contracted(const Real *c, bool tangents_known, Real *gradient, Real *hessian) {
        const int last = layers - 1, first_width = call.widths[1];
        const bool by_tangents = tangents_known && layers == 2;
        for (int i = 0; i < width; ++i)
            for (int p = 0; p < BLOCK; p += WIDE)
                store(pulled[last] + i * BLOCK + p, slope(h[last], i, p) * broadcast(c[i]));
        if (layers == 2 && (hessian || !by_tangents)) pull_back();
        for (int j = 0; by_tangents && j < dv; ++j) {
            Vector sums[BLOCK / WIDE] = {};
            for (int i = 0; i < width; ++i)
                for (int p = 0; p < BLOCK; p += WIDE)
                    sums[p / WIDE] += load(pulled[1] + i * BLOCK + p) * load(along[j] + i * BLOCK + p);
            for (int p = 0; p < BLOCK; p += WIDE) store(gradient + j * BLOCK + p, sums[p / WIDE]);
        }
        if (!by_tangents) product(into, dv, first_width, pulled[0], BLOCK, gradient);
        if (hessian) {
            for (int i = 0; i < first_width; ++i)
                for (int p = 0; p < BLOCK; p += WIDE)
                    store(spare[0] + i * BLOCK + p, -2.0f * load(h[0] + i * BLOCK + p) * load(pulled[0] + i * BLOCK + p));
            product(bent, pairs_of_v, first_width, spare[0], BLOCK, hessian);
            if (layers == 2) {
                switch (dv) {
                    case 1: add_bent<1>(hessian); break;
                    case 2: add_bent<2>(hessian); break;
                    default: add_bent<3>(hessian); break;
                }
            }
        }
        for (int p = 0; p < BLOCK; p += WIDE) {
            Vector x[MOST_INPUTS], v[MOST_VELOCITY_DIMS];
            for (int l = 0; l < beside; ++l) x[l] = load(z + l * BLOCK + p);
            for (int j = 0; j < dv; ++j) v[j] = load(z + (beside + j) * BLOCK + p);
            for (int j = 0; j < dv; ++j) {
                Vector sum = load(gradient + j * BLOCK + p);
                first_derivatives(of, j, x, v, [&](int m, Vector value) { sum += c[width + m] * value; });
                store(gradient + j * BLOCK + p, sum);
            }
            for (int number = 0; hessian && number < pairs_of_v; ++number) {
                int k, l;
                pair_of(of, number, k, l);
                Vector sum = load(hessian + number * BLOCK + p);
                second_derivatives(of, k, l, x, v, [&](int m, Vector value) { sum += c[width + m] * value; });
                store(hessian + number * BLOCK + p, sum);
            }
        }
    }

    // Some particles of a sum: calls take(place in the stash) for each cache block that has been through the network,
    // and add(first particle, number of particles, filled places of the stash) whenever the stash is full, and at the
    // end.
    template <class Take, class Add>
    void over_stash(long long begin, long long count, const Take &take, const Add &add) {
        for (long long from = begin; from < begin + count; from += STASH) {
            const int here = begin + count - from < STASH ? static_cast<int>(begin + count - from) : STASH;
            int filled = 0;
            for (; filled < here; filled += BLOCK) {
                forward(from + filled);
                take(filled);
            }
            add(from, here, filled);
        }
    }

    // The shares of the particles of the stash: [filled], 0 beyond the last particle.
    void shares(long long from, int here, int filled, double *to) const {
        for (int p = 0; p < filled; ++p) to[p] = p < here ? call.share[from + p] : 0.0;
    }

    // Calls what(x, v, p) for every vector of particles, in double precision.
    template <class What>
    KJKO_INLINE void at_places(const What &what) const {
        for (int p = 0; p < BLOCK; p += FINE) {
            Doubles x[MOST_INPUTS], v[MOST_VELOCITY_DIMS];
            for (int l = 0; l < beside; ++l) x[l] = load(fine + l * BLOCK + p);
            for (int j = 0; j < dv; ++j) v[j] = load(fine + (beside + j) * BLOCK + p);
            what(x, v, p);
        }
    }

    // s' of a layer.
    KJKO_INLINE Vector slope(const Real *layer, int i, int p) const {
        const Vector s = load(layer + i * BLOCK + p);
        return 1.0f - s * s;
    }

private:
    // s''
    KJKO_INLINE Vector curvature(const Real *layer, int i, int p) const {
        const Vector s = load(layer + i * BLOCK + p);
        return -2.0f * s * (1.0f - s * s);
    }
    KJKO_INLINE Vector last_along(int j, int i, int p) const {
        return layers == 2 ? load(along[j] + i * BLOCK + p) : broadcast(into[j * width + i]);
    }
};

template <class Real>
static void weigh(const Real *rows, int number, const Real *weights, int length, Real *to) {
    for (int m = 0; m < number; ++m)
        for (int p = 0; p < length; ++p) to[m * STASH + p] = weights[p] * rows[m * STASH + p];
}

// Adds Σ over columns of weights times a row to sums[row], for rows that are `stride` apart.
template <class Real>
static void add_row_sums(const Real *rows, int number, int stride, const Real *weights, int length, double *sums) {
    using Vector = VectorOf<Real>;
    constexpr int WIDE = LANES_OF<Real>;
    for (int first = 0; first < number; first += WIDE) {
        Vector totals[WIDE] = {};
        const Real *row[WIDE];  // rows beyond the last row repeat it
        for (int i = 0; i < WIDE; ++i) row[i] = rows + (first + i < number ? first + i : number - 1) * stride;
        for (int p = 0; p < length; p += WIDE) {
            const Vector weight = load(weights + p);
            KJKO_UNROLL for (int i = 0; i < WIDE; ++i) totals[i] += weight * load(row[i] + p);
        }
        const Vector sum = folded<WIDE>([&](int i) __attribute__((always_inline)) { return totals[i]; }, 0);
        for (int i = 0; i < WIDE && first + i < number; ++i) sums[first + i] += sum[i];
    }
}

static void mirror(double *matrix, int number, int across) {
    for (int i = 0; i < number; ++i)
        for (int j = 0; j < i; ++j) matrix[i * across + j] = matrix[j * across + i];
}

// Calls what(pass, first particle) for every cache block of particles.
template <class Real, class What>
static void over_blocks(const PotentialCall<Real> &call, int threads, double *workspace, const What &what) {
    const long long blocks = (call.count + BLOCK - 1) / BLOCK, own = PotentialPass<Real>::numbers(call);
    int started = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int thread;
#pragma omp atomic capture
        thread = started++;
        PotentialPass<Real> pass(call, workspace + thread * ((own + 7) / 8 * 8));
#pragma omp for schedule(dynamic, 8)
        for (long long block = 0; block < blocks; ++block) what(pass, block * BLOCK);
    }
}

// Adds the rounded sum [size] of every piece, which add(pass, first, count, part) computes, to `sum`.
template <class Real, class Add>
static void over_pieces(const PotentialCall<Real> &call, long long size, double *sum, int threads, double *workspace,
                        const Add &add) {
    const long long own = PotentialPass<Real>::numbers(call), each = (own + 2 * size + 15) / 8 * 8;
    const double shift = shift_of(call.unit);
    int started = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int thread;
#pragma omp atomic capture
        thread = started++;
        double *const mine = workspace + thread * each, *const part = mine + own, *const total = part + size;
        PotentialPass<Real> pass(call, mine);
        for (long long i = 0; i < size; ++i) total[i] = 0;
#pragma omp for schedule(dynamic)
        for (long long piece = 0; piece < call.pieces; ++piece) {
            const long long first = call.edges[piece];
            for (long long i = 0; i < size; ++i) part[i] = 0;
            add(pass, first, call.edges[piece + 1] - first, part);
            for (long long i = 0; i < size; ++i) total[i] += rounded(part[i], shift);
        }
#pragma omp critical
        for (long long i = 0; i < size; ++i) sum[i] += total[i];
    }
}

template <class Real>
static PotentialSizes sizes(const PotentialCall<Real> &call) {
    return PotentialPass<Real>::sizes(call);
}

template <class Real>
static long long workspace_of(const PotentialCall<Real> &call, long long sum) {
    return (PotentialPass<Real>::numbers(call) + 2 * sum + 15) / 8 * 8;
}

template <class Real>
static void values(const PotentialCall<Real> &call, int sets, const double *coefficients, double *values, int threads,
                   double *workspace) {
    over_blocks(call, threads, workspace, [&](PotentialPass<Real> &pass, long long first) {
        const int here = pass.forward(first), all = pass.density + 2 * pass.dv;
        alignas(64) double found[BLOCK];
        for (int set = 0; set < sets; ++set) {
            pass.combined(coefficients + set * all, true, found);
            __builtin_memcpy(values + set * call.count + first, found, here * sizeof(double));
        }
    });
}

template <class Real>
static void slopes(const PotentialCall<Real> &call, int sets, int bent, const Real *coefficients, Real *gradients,
                   Real *hessians, int threads, double *workspace) {
    over_blocks(call, threads, workspace, [&](PotentialPass<Real> &pass, long long first) {
        alignas(64) Real gradient[MOST_VELOCITY_DIMS * BLOCK], hessian[MOST_PAIRS * BLOCK];
        const int here = pass.forward(first), dv = pass.dv;
        if (bent) pass.tangents();
        for (int set = 0; set < sets; ++set) {
            pass.contracted(coefficients + set * pass.potential, bent > 0, gradient, set < bent ? hessian : nullptr);
            Real *const to = gradients + (set * call.count + first) * dv;
            for (int p = 0; p < here; ++p)
                for (int j = 0; j < dv; ++j) to[p * dv + j] = gradient[j * BLOCK + p];
            if (set >= bent) continue;
            Real *const matrix = hessians + (set * call.count + first) * dv * dv;
            for (int number = 0; number < pass.pairs_of_v; ++number) {
                int k, l;
                pair_of(pass.of, number, k, l);
                for (int p = 0; p < here; ++p)
                    matrix[(p * dv + k) * dv + l] = matrix[(p * dv + l) * dv + k] = hessian[number * BLOCK + p];
            }
        }
    });
}

template <class Real>
static void normal(const PotentialCall<Real> &call, const double *wanted, double *sum, int threads, double *workspace) {
    const int density = sizes(call).density, across = density + 1;
    over_pieces(call, static_cast<long long>(density) * across, sum, threads, workspace,
                [&](PotentialPass<Real> &pass, long long begin, long long count, double *part) {
                    alignas(64) double share[STASH];
                    pass.over_stash(
                        begin, count, [&](int at) { pass.functions(pass.rows + at, STASH); },
                        [&](long long from, int here, int filled) {
                            double *const last = pass.rows + density * STASH;
                            for (int p = 0; p < filled; ++p) last[p] = p < here ? wanted[from + p] : 0.0;
                            pass.shares(from, here, filled, share);
                            weigh(pass.rows, density, share, filled, pass.weighted);
                            add_dots(pass.weighted, density, pass.rows, across, STASH, filled, true, part, across);
                        });
                });
    mirror(sum, density, across);
}

template <class Real>
static void derivatives(const PotentialCall<Real> &call, double *sum, int threads, double *workspace) {
    const long long number = sizes(call).potential, square = number * number;
    over_pieces(call, 2 * square + number + 1, sum, threads, workspace,
                [&](PotentialPass<Real> &pass, long long begin, long long count, double *part) {
                    alignas(64) double share[STASH], twice[STASH];
                    const int dv = pass.dv, components = dv + pass.pairs_of_v;
                    double *const own = pass.rows;  // for one component at a time, because all do not fit into a cache
                    pass.over_stash(
                        begin, count,
                        [&](int at) {
                            pass.tangents();
                            pass.use((at / BLOCK + 1) % (STASH / BLOCK));
                        },
                        [&](long long from, int here, int filled) {
                            pass.shares(from, here, filled, share);
                            for (int p = 0; p < filled; ++p) twice[p] = 2 * share[p];
                            for (int c = 0; c < components; ++c) {
                                for (int at = 0; at < filled; at += BLOCK) {
                                    pass.use(at / BLOCK);
                                    c < dv ? pass.first(c, own + at, STASH) : pass.second(c - dv, own + at, STASH);
                                }
                                weigh(own, number, c < 2 * dv ? share : twice, filled, pass.weighted);
                                double *const to = part + (c < dv ? 0 : square);
                                add_dots(pass.weighted, number, own, number, STASH, filled, true, to, number);
                                if (c >= dv && c < 2 * dv) add_row_sums(own, number, STASH, share, filled, part + 2 * square);
                            }
                            pass.use(0);
                            for (int p = 0; p < here; ++p) part[2 * square + number] += share[p];
                        });
                });
    mirror(sum, number, number);
    mirror(sum + square, number, number);
}

template <int DV, class Real>
static void barrier_of(const PotentialCall<Real> &call, const double *k, double step, double *sum, int threads,
                       double *workspace) {
    constexpr int PAIRS = DV * (DV + 1) / 2, FINE = LANES_OF<double>;
    const int number = sizes(call).potential;
    over_pieces(
        call, number + 2, sum, threads, workspace,
        [&](PotentialPass<Real> &pass, long long begin, long long count, double *part) {
            alignas(64) double share[BLOCK], bend[PAIRS][BLOCK], weights[PAIRS][BLOCK];
            const long long rows = static_cast<long long>(number) * BLOCK;
            for (long long from = begin; from < begin + count; from += BLOCK) {
                const int here = begin + count - from < BLOCK ? static_cast<int>(begin + count - from) : BLOCK;
                pass.forward(from);
                pass.tangents();
                pass.shares(from, here, BLOCK, share);
                for (int pair = 0; pair < PAIRS; ++pair) {
                    double *const own = pass.rows + pair * rows;
                    pass.second(pair, own, BLOCK);
                    Doubles totals[BLOCK / FINE] = {};
                    for (int m = 0; m < number; ++m)
                        KJKO_UNROLL for (int p = 0; p < BLOCK; p += FINE)
                            totals[p / FINE] += k[m] * load(own + m * BLOCK + p);
                    for (int p = 0; p < BLOCK; p += FINE) store(bend[pair] + p, totals[p / FINE]);
                }
                for (int p = 0; p < BLOCK; p += FINE) {
                    Doubles u[DV][DV], b[DV][DV];
                    for (int pair = 0; pair < PAIRS; ++pair) {
                        int i, j;
                        pair_of(pass.of, pair, i, j);
                        u[i][j] = u[j][i] = step * load(bend[pair] + p);
                    }
                    const Doubles beyond = inverse(u, 1.0f, b), own = load(share + p);
                    const Doubles kept = beyond > -1.0 ? own : broadcast(0.0);
                    for (int pair = 0; pair < PAIRS; ++pair) {
                        int i, j;
                        pair_of(pass.of, pair, i, j);
                        const Doubles weight = (i == j ? 1.0 : 2.0) * kept * b[i][j];
                        store(weights[pair] + p, kept > 0.0 ? weight : broadcast(0.0));
                    }
                    for (int lane = 0; lane < FINE && p + lane < here; ++lane) {
                        const bool turned = !(beyond[lane] > -1.0);
                        if (!turned) part[number] += own[lane] * __builtin_log1p(beyond[lane]);
                        part[number + 1] += turned;
                    }
                }
                for (int pair = 0; pair < PAIRS; ++pair)
                    add_row_sums(pass.rows + pair * rows, number, BLOCK, weights[pair], BLOCK, part);
            }
        });
}

template <class Real>
static void barrier(const PotentialCall<Real> &call, const double *k, double step, double *sum, int threads,
                    double *workspace) {
    switch (call.velocity_dims) {
        case 1: return barrier_of<1>(call, k, step, sum, threads, workspace);
        case 2: return barrier_of<2>(call, k, step, sum, threads, workspace);
        default: return barrier_of<3>(call, k, step, sum, threads, workspace);
    }
}

template <class Real>
static void tied(const PotentialCall<Real> &call, const double *coefficients, double *sum, int threads,
                 double *workspace) {
    const Monomials of = PotentialPass<Real>::monomials_of(call);
    const int low = of_low_velocity(of), number = sizes(call).low, across = number + 2;
    const int all = sizes(call).potential, place = sizes(call).places;
    const int laplacian = number * across, mean = laplacian + number, moments = mean + number + 1;
    over_pieces(
        call, moments + place * place, sum, threads, workspace,
        [&](PotentialPass<Real> &pass, long long begin, long long count, double *part) {
            alignas(64) double share[STASH];
            Real c[MOST_FIELD_WIDTH + 256];
            for (int m = 0; m < all; ++m) c[m] = coefficients[m];
            // Rows: for each v_j (∇m)_j, v_j and (∇Φ)_j, then Δm, then m and 1, then y.
            const int dv = pass.dv;
            double *const bend = pass.rows + static_cast<long long>(dv) * across * STASH, *const own = bend + number * STASH,
                          *const y = own + (number + 1) * STASH;
            const auto chosen = [&](int m) { return m < low ? m : m - (shared(of) - low); };
            const auto is_chosen = [&](int m) { return m < low || m >= shared(of); };
            pass.over_stash(
                begin, count,
                [&](int at) {
                    alignas(64) Real gradient[MOST_VELOCITY_DIMS * BLOCK];
                    pass.contracted(c, false, gradient, nullptr);
                    for (int j = 0; j < dv; ++j) {
                        double *const rows = pass.rows + j * across * STASH + at;
                        __builtin_memcpy(rows + number * STASH, pass.fine + (pass.beside + j) * BLOCK,
                                         BLOCK * sizeof(double));
                        widen(gradient + j * BLOCK, rows + (number + 1) * STASH);
                    }
                    pass.at_places([&](const Doubles *x, const Doubles *v, int p) {
                        for (int j = 0; j < dv; ++j)
                            first_derivatives(of, j, x, v, [&](int m, Doubles value) {
                                if (is_chosen(m)) store(pass.rows + (j * across + chosen(m)) * STASH + at + p, value);
                            });
                        Doubles total[MOST_VELOCITY_DIMS * 5] = {};
                        for (int k = 0; k < dv; ++k)
                            second_derivatives(of, k, k, x, v, [&](int m, Doubles value) {
                                if (is_chosen(m)) total[chosen(m)] += value;
                            });
                        for (int m = 0; m < number; ++m) store(bend + m * STASH + at + p, total[m]);
                        monomials_of_velocity(
                            of, v, [&](int m, Doubles value) { store(own + m * STASH + at + p, value); });
                        store(own + number * STASH + at + p, broadcast(1.0));
                        for (int l = 0; l < place - 1; ++l)
                            store(y + l * STASH + at + p, l < place - 1 - dv ? x[l] : v[l - (place - 1 - dv)]);
                        store(y + (place - 1) * STASH + at + p, broadcast(1.0));
                    });
                },
                [&](long long from, int here, int filled) {
                    pass.shares(from, here, filled, share);
                    for (int j = 0; j < dv; ++j) {
                        const double *const rows = pass.rows + j * across * STASH;
                        weigh(rows, number, share, filled, pass.weighted);
                        add_dots(pass.weighted, number, rows, across, STASH, filled, false, part, across);
                    }
                    add_row_sums(bend, number, STASH, share, filled, part + laplacian);
                    add_row_sums(own, number + 1, STASH, share, filled, part + mean);
                    weigh(y, place, share, filled, pass.weighted);
                    add_dots(pass.weighted, place, y, place, STASH, filled, false, part + moments, place);
                });
        });
}

// The results and sums of carry() for a cache block of particles.
template <int DV, class Real>
static void carry_block(PotentialPass<Real> &pass, const CarryStep &how, const MovedParticles &particles,
                        long long first, const Real *coefficients, double *log_det, double *change,
                        double *disagreement, Doubles (&sums)[CARRY_COLUMNS], double &smallest) {
    constexpr int FINE = LANES_OF<double>, PAIRS = DV * (DV + 1) / 2;
    alignas(64) Real slope[2][DV * BLOCK], hessian[PAIRS * BLOCK];
    alignas(64) double u[DV][BLOCK], score[DV][BLOCK], bend[PAIRS][BLOCK];
    const bool is_double = particles.is_double;
    const int dx = particles.space_dims, here = pass.forward_from(first, how, particles);
    pass.tangents();
    pass.contracted(coefficients, true, slope[0], hessian);
    pass.contracted(coefficients + pass.potential, true, slope[1], nullptr);
    for (int k = 0; k < DV; ++k) widen(slope[0] + k * BLOCK, u[k]), widen(slope[1] + k * BLOCK, score[k]);
    for (int k = 0; k < PAIRS; ++k) widen(hessian + k * BLOCK, bend[k]);
    for (int p = 0; p < BLOCK && p < here; p += FINE) {
        Doubles share, mine[DV], along[DV], jacobian[DV][DV], places[MOST_VELOCITY_DIMS] = {};
        for (int lane = 0; lane < FINE; ++lane) {
            const long long row = first + (p + lane < here ? p + lane : here - 1);
            share[lane] = p + lane < here ? pass.call.share[row] : 0.0;
            for (int k = 0; k < DV; ++k) mine[k][lane] = number_at(is_double, particles.v, row * DV + k);
            for (int k = 0; k < dx; ++k) places[k][lane] = number_at(is_double, particles.x, row * dx + k);
        }
        for (int number = 0; number < PAIRS; ++number) {
            int k, l;
            pair_of(pass.of, number, k, l);
            jacobian[k][l] = jacobian[l][k] = load(bend[number] + p);
        }
        Doubles slopes[DV];
        for (int k = 0; k < DV; ++k) along[k] = load(u[k] + p), slopes[k] = load(score[k] + p);
        const auto step = step_along<DV>(how, dx, places, mine, along, slopes, jacobian, [&](int column, Doubles term) {
            sums[column] += share * term;
        });
        sums[4] += share * share;
        for (int lane = 0; lane < FINE && p + lane < here; ++lane) {
            const long long row = first + p + lane;
            double matrix[DV][DV];
            for (int k = 0; k < DV; ++k) {
                set_number(is_double, particles.moved, row * DV + k, mine[k][lane] + how.step * along[k][lane]);
                for (int l = 0; l < DV; ++l) matrix[k][l] = jacobian[k][l][lane];
            }
            log_det[row] = step.fallen[lane];
            change[row] = step.gained[lane];
            disagreement[row] = step.wrong[lane];
            const double own = smallest_of(matrix, how.step);
            if (own < smallest || own != own) smallest = own;  // NaN stays NaN
        }
    }
}

template <int DV, class Real>
static void carry_of(const PotentialCall<Real> &call, const CarryStep &how, const MovedParticles &particles,
                     const Real *coefficients, double *log_det, double *change, double *disagreement, double *sum,
                     double *smallest, int threads, double *workspace) {
    const long long own = (PotentialPass<Real>::numbers(call) + 15) / 8 * 8;
    int started = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int thread;
#pragma omp atomic capture
        thread = started++;
        PotentialPass<Real> pass(call, workspace + thread * own);
        double total[2][CARRY_COLUMNS] = {}, least = *smallest;
#pragma omp for schedule(dynamic)
        for (long long piece = 0; piece < call.pieces; ++piece) {
            const long long begin = call.edges[piece], end = call.edges[piece + 1];
            Doubles sums[CARRY_COLUMNS] = {};
            for (long long first = begin; first < end; first += BLOCK)
                carry_block<DV>(pass, how, particles, first, coefficients, log_det, change, disagreement, sums, least);
            for (int column = 0; column < CARRY_COLUMNS; ++column) {
                double whole = 0;
                for (int lane = 0; lane < LANES_OF<double>; ++lane) whole += sums[column][lane];
                const Fine fine = rounded_finely(whole, call.unit, call.finer);
                total[0][column] += fine.coarse;
                total[1][column] += fine.rest;
            }
        }
#pragma omp critical
        {
            for (int column = 0; column < CARRY_COLUMNS; ++column) {
                sum[column] += total[0][column];
                sum[CARRY_COLUMNS + column] += total[1][column];
            }
            if (least < *smallest || least != least) *smallest = least;
        }
    }
}

template <class Real>
static void carry(const PotentialCall<Real> &call, const CarryStep &how, const MovedParticles &particles,
                  const Real *coefficients, double *log_det, double *change, double *disagreement, double *sum,
                  double *smallest, int threads, double *workspace) {
    const auto run = call.velocity_dims == 1   ? &carry_of<1, Real>
                     : call.velocity_dims == 2 ? &carry_of<2, Real>
                                               : &carry_of<3, Real>;
    run(call, how, particles, coefficients, log_det, change, disagreement, sum, smallest, threads, workspace);
}

template <class Real>
static void training(const PotentialCall<Real> &call, const double *wanted, const double *c, double *sum, int threads,
                     double *workspace) {
    over_pieces(
        call, sizes(call).training, sum, threads, workspace,
        [&](PotentialPass<Real> &pass, long long begin, long long count, double *part) {
            constexpr int WIDE = LANES_OF<Real>;
            const int last = pass.layers - 1;
            // Rows: the gradients with respect to the sums of the layers, the inputs of each layer, and 1.
            Real *pulls[2], *entered[2], *at = reinterpret_cast<Real *>(pass.rows);
            for (int layer = last; layer >= 0; --layer) {
                pulls[layer] = at;
                entered[layer] = at += call.widths[layer + 1] * STASH;
                at += call.widths[layer] * STASH;
            }
            Real *const ones = at;
            for (int p = 0; p < STASH; ++p) ones[p] = 1;
            long long from = begin;
            const auto copy = [&](const Real *columns, int width, Real *to) {
                for (int i = 0; i < width; ++i) __builtin_memcpy(to + i * STASH, columns + i * BLOCK, BLOCK * sizeof(Real));
            };
            pass.over_stash(
                begin, count,
                [&](int filled) {
                    alignas(64) Real pull[BLOCK];
                    alignas(64) double psi[BLOCK];
                    pass.combined(c, false, psi);
                    for (int p = 0; p < BLOCK; ++p) {
                        const long long row = from + filled + p;
                        const bool here = row < begin + count;
                        const double share = here ? call.share[row] : 0.0, missed = here ? psi[p] - wanted[row] : 0.0;
                        part[0] += 0.5 * share * missed * missed;
                        pull[p] = static_cast<Real>(share * missed);
                    }
                    for (int i = 0; i < pass.width; ++i)
                        for (int p = 0; p < BLOCK; p += WIDE)
                            store(pass.pulled[last] + i * BLOCK + p,
                                  static_cast<Real>(c[i]) * load(pull + p) * pass.slope(pass.h[last], i, p));
                    if (last == 1) pass.pull_back();
                    for (int layer = 0; layer < pass.layers; ++layer) {
                        copy(pass.pulled[layer], call.widths[layer + 1], pulls[layer] + filled);
                        copy(layer ? pass.h[0] : pass.z, call.widths[layer], entered[layer] + filled);
                    }
                },
                [&](long long next, int here, int filled) {
                    double *to = part + 1;
                    for (int layer = 0; layer < pass.layers; ++layer) {
                        const int out = call.widths[layer + 1], in = call.widths[layer];
                        add_dots(pulls[layer], out, entered[layer], in, STASH, filled, false, to, in);
                        add_row_sums(pulls[layer], out, STASH, ones, filled, to + out * in);
                        to += out * (in + 1);
                    }
                    from = next + here;
                });
        });
}

template <class Real>
static constexpr PotentialTable<Real> table = {&sizes<Real>,  &workspace_of<Real>, &values<Real>,
                                               &slopes<Real>, &normal<Real>,       &derivatives<Real>,
                                               &barrier<Real>, &tied<Real>,        &carry<Real>,
                                               &training<Real>};

const PotentialKernels potential = {table<float>, table<double>};

}  // namespace kjko::KJKO_LEVEL
