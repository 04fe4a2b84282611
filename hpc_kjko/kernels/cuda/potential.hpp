// Functions that are linear in coefficients, on a GPU, for two hidden layers of the same width, in the phases of
// cuda/phases.hpp. cpu/potential.cpp does the same on the CPU, and explains the mathematics at its top.
#pragma once

#include "cuda/network.hpp"
#include "cuda/shape.hpp"
#include "math/carry.hpp"
#include "math/monomials.hpp"
#include "math/rounding.hpp"

namespace kjko {

// The arguments of all kernels of a potential. Each kernel uses some of them.
template <class Real>
struct DevicePotentialCall {
    NetworkOf<Real> network;  // two hidden layers, without an output layer
    bool periodic;
    int sets, bent;  // number of sets of coefficients, and of the sets whose second derivatives are wanted
    long long count;
    const Real *z;               // [count, inputs]
    const double *coefficients;  // [sets, functions]

    // For sums: the shares, the edges of the pieces that are added before they are rounded [pieces + 1], and the units.
    const double *share;
    long long pieces;
    const long long *edges;
    double unit, finer;
    const double *wanted;
    double step;
    double *sums;  // one for each thread block

    double *values;              // [sets, count]
    Real *gradients, *hessians;  // [sets, count, dv], [bent, count, dv, dv]

    CarryStep how;
    MovedParticles particles;
    double *log_det, *change, *disagreement, *smallest;  // `smallest`: one for each thread that handles particles
};

}  // namespace kjko

namespace kjko::KJKO_LEVEL {

// The numbers of one particle, which are STRIDE apart, as an array.
template <class As, class Real, int STRIDE>
struct ColumnOf {
    const Real *at;
    KJKO_DEVICE As operator[](int l) const { return static_cast<As>(at[l * STRIDE]); }
};

// The functions at a tile of particles. ALONG: with the tangents of the velocities, a_j = ∂a_2/∂v_j.
template <class Real, int H, int DV, bool ALONG>
struct PotentialPass {
    static constexpr int TILE = (!ALONG ? 128 : DV == 1 ? 64 : 32) / (sizeof(Real) == 8 && H > 32 ? 2 : 1);
    static constexpr int MOST_BESIDE = 2 * DV, ROWS = MOST_BESIDE + DV + 1;
    // An odd number of 8 or 16 bytes, so that neighbouring threads read columns of the transpose of W2 from different
    // memory banks.
    static constexpr int PAD = sizeof(Real) == 8 ? 2 : 4;
    using Layers = HiddenLayers<Real, H, Tanh, DV, ALONG ? DV : 0, TILE, false, ROWS, PAD>;
    using Product = typename Layers::Product;
    static constexpr int THREADS = Layers::THREADS, STRIDE = Layers::STRIDE, QUARTER = Layers::QUARTER;
    static constexpr int PAIRS = DV * (DV + 1) / 2, SLICES = THREADS / TILE;
    // The largest numbers of monomials of ψ, and of Φ.
    static constexpr int OF_DENSITY = of_density(Monomials{MOST_BESIDE, DV, true});
    static constexpr int OF_POTENTIAL = of_potential(Monomials{MOST_BESIDE, DV, true});

    const DevicePotentialCall<Real> &call;
    typename Layers::Shared &shared;

    KJKO_DEVICE Layers layers() const { return {call.network, shared}; }
    KJKO_DEVICE Monomials of() const { return {call.network.inputs - DV, DV, call.periodic}; }
    KJKO_DEVICE int density() const { return H + of_density(of()); }
    KJKO_DEVICE int potential() const { return H + of_potential(of()); }

    // x and v of a particle in the form that the monomials take.
    template <class As>
    KJKO_DEVICE ColumnOf<As, Real, TILE> x(int p) const {
        return {&shared.input[0][p]};
    }
    template <class As>
    KJKO_DEVICE ColumnOf<As, Real, TILE> v(int p) const {
        return {&shared.input[call.network.inputs - DV][p]};
    }

    static KJKO_DEVICE Real slope(Real h) { return Tanh::slope(h); }
    static KJKO_DEVICE Real curvature(Real h) { return -2.0f * h * (1.0f - h * h); }

    // A set of `number` coefficients.
    template <class Number>
    KJKO_DEVICE void coefficients(int thread, int set, int number, Number *to) const {
        KJKO_ROLLED for (int m = thread; m < number; m += THREADS)
            to[m] = static_cast<Number>(call.coefficients[set * number + m]);
    }

    // The hidden layers, from the inputs in shared memory.
    template <class Threads>
    KJKO_DEVICE void through(Threads &team) const {
        team([&](int thread, auto &) { layers().first_layer(thread); });
        team.warps([&](auto &warp) { layers().second_layer(warp); });
    }

    // The hidden layers for the particles from `first` on. Columns beyond the last of `count` particles repeat it.
    template <class Threads>
    KJKO_DEVICE void forward(Threads &team, long long first, int count) const {
        team([&](int thread, auto &) { layers().take(thread, call.z, first, count); });
        through(team);
    }

    // The columns of the particles times W2: q_1 from pull(k, h) of feature k of the second layer.
    template <class Warp, class Pull>
    KJKO_DEVICE void pull_back(Warp &warp, const Pull &pull) const {
        if constexpr (TENSOR)
            WarpTiles<Real, H, TILE>::multiply(warp, [&](int k, int p) { return pull(k, shared.y[k][p]); },
                                               [&](int k, int f) { return shared.w2_t[f][k]; });
        else
            warp.each([&](int thread, auto &state) {
                if (Layers::column(thread) < TILE) pull_back(thread, Layers::column(thread), 0, H, state.product, pull);
            });
    }

    // The same for the 8 columns of a thread, from `at` on, and its 4 features, summed over some k.
    template <class Pull>
    KJKO_DEVICE void pull_back(int thread, int at, int from, int to, Product &product, const Pull &pull) const {
        const Real *columns = &shared.y[0][at];
        KJKO_UNROLLED for (int i = 0; i < 8; ++i)
            KJKO_UNROLLED for (int j = 0; j < 4; ++j) product.at[i][j] = 0;
        KJKO_UNROLLED_BY_4 for (int k = from; k < to; ++k) {
            const Four<Real> low = load_four(columns + k * STRIDE), high = load_four(columns + k * STRIDE + 4);
            Real q[8];
            KJKO_UNROLLED for (int e = 0; e < 4; ++e) {
                q[e] = pull(k, low.at[e]);
                q[4 + e] = pull(k, high.at[e]);
            }
            KJKO_UNROLLED for (int j = 0; j < 4; ++j) {
                const Real w = shared.w2_t[Layers::feature(thread, j)][Layers::place(k)];
                KJKO_UNROLLED for (int i = 0; i < 8; ++i) product.at[i][j] += q[i] * w;
            }
        }
    }
};

// ∇v Φ and ∇v∇v Φ for sets of coefficients, at particles whose tangents are known: phases that several kernels share.
template <class Real, int H, int DV>
struct Contraction {
    using Pass = PotentialPass<Real, H, DV, true>;
    using Layers = typename Pass::Layers;
    static constexpr int THREADS = Pass::THREADS, TILE = Pass::TILE, PAIRS = Pass::PAIRS, SLICES = Pass::SLICES;
    static constexpr int SETS = 2, OUTPUTS = SETS * DV + PAIRS;
    // of the sums of the pull-back: x has room for as many parts as there are tangents
    static constexpr int PARTS = TENSOR ? 1 : DV;
    static constexpr int ROOM = DV * TILE;  // in each row of x
    static_assert((DV + PAIRS) * THREADS <= H * ROOM, "what threads sum lies in the place of the tangents");

    struct Shared : Layers::Shared {
        alignas(16) Real c[SETS][H + Pass::OF_POTENTIAL];
        alignas(16) Real out[OUTPUTS][TILE];  // gradients of each set, then the second derivatives of the last set
    };
    struct State {
        typename Pass::Product product;
        Real sums[DV + PAIRS];
    };

    const DevicePotentialCall<Real> &call;
    Shared &shared;

    KJKO_DEVICE Pass pass() const { return {call, shared}; }

    KJKO_DEVICE void begin(int thread) const {
        pass().layers().begin(thread);
        KJKO_ROLLED for (int set = 0; set < call.sets && set < SETS; ++set)
            pass().coefficients(thread, set, pass().potential(), shared.c[set]);
    }

    // For one set, with or without its second derivatives.
    template <class Threads>
    KJKO_DEVICE void contract(Threads &team, int set, bool bent) const {
        if (bent) {
            team.warps([&](auto &warp) { pull_back(warp, set); });
            team([&](int thread, auto &state) { keep_parts(thread, state.product); });
        }
        team([&](int thread, auto &state) { accumulate(thread, set, bent, state.sums); });
        team([&](int thread, auto &state) {
            KJKO_UNROLLED for (int output = 0; output < DV + PAIRS; ++output)
                if (bent || output < DV) partial(output, thread) = state.sums[output];
        });
        team([&](int thread, auto &) { finish(thread, set, bent); });
    }

    KJKO_DEVICE Real gradient(int set, int k, int p) const { return shared.out[set * DV + k][p]; }
    template <class Number>
    KJKO_DEVICE void hessian(int p, Number (&matrix)[DV][DV]) const {
        KJKO_UNROLLED for (int number = 0; number < PAIRS; ++number) {
            int k, l;
            pair_of(Monomials{0, DV, false}, number, k, l);
            matrix[k][l] = matrix[l][k] = shared.out[SETS * DV + number][p];
        }
    }

private:
    template <class Warp>
    KJKO_DEVICE void pull_back(Warp &warp, int set) const {
        const auto pull = [&](int k, Real h) { return shared.c[set][k] * Pass::slope(h); };
        if constexpr (TENSOR)
            pass().pull_back(warp, pull);
        else
            warp.each([&](int thread, auto &state) {
                const int at = Layers::column(thread), part = at / TILE;
                if (part < PARTS)
                    pass().pull_back(thread, at % TILE, H * part / PARTS, H * (part + 1) / PARTS, state.product, pull);
            });
    }

    // Stored in place of the tangents of the first layer.
    KJKO_DEVICE void keep_parts(int thread, typename Pass::Product &product) const {
        if constexpr (TENSOR) {
            WarpTiles<Real, H, TILE>::each(thread, product,
                                           [&](int p, int f, Real sum) { shared.x[f][TILE + p] = sum; });
        } else {
            const int part = Layers::column(thread) / TILE, at = (1 + part) * TILE + Layers::column(thread) % TILE;
            if (part >= PARTS) return;
            KJKO_UNROLLED for (int j = 0; j < 4; ++j)
                KJKO_UNROLLED for (int half = 0; half < 8; half += 4) {
                    Four<Real> four;
                    KJKO_UNROLLED for (int i = 0; i < 4; ++i) four.at[i] = product.at[half + i][j];
                    store_four(&shared.x[Layers::feature(thread, j)][at + half], four);
                }
        }
    }

    // For a particle and some features.
    KJKO_DEVICE void accumulate(int thread, int set, bool bent, Real (&sums)[DV + PAIRS]) const {
        const int p = thread % TILE, from = thread / TILE * Pass::QUARTER, first_v = call.network.inputs - DV;
        KJKO_UNROLLED for (int output = 0; output < DV + PAIRS; ++output) sums[output] = 0;
        KJKO_ROLLED for (int i = from; i < from + Pass::QUARTER; ++i) {
            const Real h2 = shared.y[i][p], q2 = shared.c[set][i] * Pass::slope(h2);
            Real a[DV], w[DV];
            KJKO_UNROLLED for (int j = 0; j < DV; ++j) {
                a[j] = shared.y[i][(1 + j) * TILE + p];
                sums[j] += q2 * a[j];
            }
            if (!bent) continue;
            const Real h1 = shared.x[i][p];
            Real q1 = 0;
            KJKO_UNROLLED for (int part = 0; part < PARTS; ++part) q1 += shared.x[i][(1 + part) * TILE + p];
            const Real bend1 = -2.0f * h1 * (q1 * Pass::slope(h1)), bend2 = -2.0f * h2 * q2;
            KJKO_UNROLLED for (int j = 0; j < DV; ++j) w[j] = shared.w1[first_v + j][i];
            KJKO_UNROLLED for (int number = 0; number < PAIRS; ++number) {
                int k, l;
                pair_of(Monomials{0, DV, false}, number, k, l);
                sums[DV + number] += bend1 * (w[k] * w[l]) + bend2 * (a[k] * a[l]);
            }
        }
    }

    KJKO_DEVICE Real &partial(int output, int thread) const {
        const int at = output * THREADS + thread;
        return shared.x[at / ROOM][TILE + at % ROOM];
    }

    KJKO_DEVICE void finish(int thread, int set, bool bent) const {
        const Real *c = &shared.c[set][H];
        KJKO_ROLLED for (int task = thread; task < (bent ? DV + PAIRS : DV) * TILE; task += THREADS) {
            const int output = task / TILE, p = task % TILE;
            Real sum = 0;
            KJKO_ROLLED for (int slice = 0; slice < SLICES; ++slice) sum += partial(output, slice * TILE + p);
            const auto add = [&](int m, Real value) { sum += c[m] * value; };
            const auto x = pass().template x<Real>(p), v = pass().template v<Real>(p);
            int k, l;
            if (output < DV) {
                first_derivatives(pass().of(), output, x, v, add);
            } else {
                pair_of(pass().of(), output - DV, k, l);
                second_derivatives(pass().of(), k, l, x, v, add);
            }
            shared.out[output < DV ? set * DV + output : SETS * DV + output - DV][p] = sum;
        }
    }
};

// Σ c g of the functions of ψ, then of v_k³/6 and v_k⁴/24, added in double precision.
template <class Real, int H, int DV>
struct potential_values {
    using Pass = PotentialPass<Real, H, DV, false>;
    static constexpr int THREADS = Pass::THREADS, TILE = Pass::TILE, SETS = 2;
    struct Shared : Pass::Layers::Shared {
        double c[SETS][H + Pass::OF_DENSITY + 2 * DV];
    };
    struct State {
        typename Pass::Product product;
    };
    static constexpr Shape shape(int resident_threads) {
        return {THREADS, Pass::Layers::resident(resident_threads), sizeof(Shared), TILE, 0, 0, 1, 1};
    }

    const DevicePotentialCall<Real> &call;
    Shared &shared;
    int group;

    template <class Threads>
    KJKO_DEVICE void run(Threads &team, long long block, long long blocks) const {
        const int all = pass().density() + 2 * DV;
        team([&](int thread, State &) {
            pass().layers().begin(thread);
            KJKO_ROLLED for (int set = 0; set < call.sets; ++set) pass().coefficients(thread, set, all, shared.c[set]);
        });
        for (long long first = block * TILE; first < call.count; first += blocks * TILE) {
            const int count = call.count - first < TILE ? static_cast<int>(call.count - first) : TILE;
            pass().forward(team, first, count);
            team([&](int thread, State &) {
                KJKO_ROLLED for (int task = thread; task < call.sets * TILE; task += THREADS)
                    if (task % TILE < count)
                        call.values[task / TILE * call.count + first + task % TILE] = value(task / TILE, task % TILE);
            });
        }
    }

private:
    KJKO_DEVICE Pass pass() const { return {call, shared}; }

    KJKO_DEVICE double value(int set, int p) const {
        const double *c = shared.c[set];
        double sum = 0;
        KJKO_UNROLLED_BY_4 for (int i = 0; i < H; ++i) sum += c[i] * static_cast<double>(shared.y[i][p]);
        const auto v = pass().template v<double>(p);
        monomials(pass().of(), pass().template x<double>(p), v, [&](int m, double g) { sum += c[H + m] * g; });
        const double *higher = c + pass().density() - of_low_velocity(pass().of());
        monomials_of_velocity(pass().of(), v, [&](int m, double g) {
            if (m >= of_low_velocity(pass().of())) sum += higher[m] * g;
        });
        return sum;
    }
};

// ∇v Φ for each set of coefficients, and ∇v∇v Φ for the first ones.
template <class Real, int H, int DV>
struct potential_slopes {
    using Field = Contraction<Real, H, DV>;
    using Shared = typename Field::Shared;
    using State = typename Field::State;
    static constexpr int THREADS = Field::THREADS, TILE = Field::TILE;
    static constexpr Shape shape(int resident_threads) {
        return {THREADS, Field::Layers::resident(resident_threads), sizeof(Shared), TILE, 0, 0, 1, 1};
    }

    const DevicePotentialCall<Real> &call;
    Shared &shared;
    int group;

    template <class Threads>
    KJKO_DEVICE void run(Threads &team, long long block, long long blocks) const {
        const Field field{call, shared};
        team([&](int thread, State &) { field.begin(thread); });
        for (long long first = block * TILE; first < call.count; first += blocks * TILE) {
            const int count = call.count - first < TILE ? static_cast<int>(call.count - first) : TILE;
            field.pass().forward(team, first, count);
            for (int set = 0; set < call.sets; ++set) {
                field.contract(team, set, set < call.bent);
                team([&](int p, State &) {
                    if (p >= count) return;
                    const long long row = set * call.count + first + p;
                    KJKO_UNROLLED for (int k = 0; k < DV; ++k) call.gradients[row * DV + k] = field.gradient(set, k, p);
                    if (set >= call.bent) return;
                    Real matrix[DV][DV];
                    field.hessian(p, matrix);
                    KJKO_UNROLLED for (int k = 0; k < DV; ++k)
                        KJKO_UNROLLED for (int l = 0; l < DV; ++l) call.hessians[(row * DV + k) * DV + l] = matrix[k][l];
                });
            }
        }
    }
};

// A step v ← v + h ∇v Φ, and its diagnostics.
template <class Real, int H, int DV>
struct potential_carry {
    using Field = Contraction<Real, H, DV>;
    static constexpr int THREADS = Field::THREADS, TILE = Field::TILE;
    static constexpr int NONE = 2;  // the empty column, which is not stored
    struct Shared : Field::Shared {
        double terms[CARRY_COLUMNS - 1][TILE];  // of a piece, from each place in the tiles
    };
    struct State : Field::State {
        double coarse, rest, smallest;
    };
    // The smallest eigenvalue of each thread of a tile comes after the sums.
    static constexpr Shape shape(int resident_threads) {
        return {THREADS, Field::Layers::resident(resident_threads), sizeof(Shared), TILE, 2 * CARRY_COLUMNS, TILE, 1, 1};
    }

    const DevicePotentialCall<Real> &call;
    Shared &shared;
    int group;

    template <class Threads>
    KJKO_DEVICE void run(Threads &team, long long block, long long blocks) const {
        team([&](int thread, State &state) {
            field().begin(thread);
            state.coarse = state.rest = 0;
            state.smallest = 1.0 / 0.0;
            KJKO_ROLLED for (int i = thread; i < (CARRY_COLUMNS - 1) * TILE; i += THREADS)
                shared.terms[i / TILE][i % TILE] = 0;
        });
        for (long long piece = call.pieces * block / blocks; piece < call.pieces * (block + 1) / blocks; ++piece) {
            for (long long first = call.edges[piece]; first < call.edges[piece + 1]; first += TILE) {
                const long long rest = call.edges[piece + 1] - first;
                const int count = rest < TILE ? static_cast<int>(rest) : TILE;
                team([&](int thread, State &) { take(thread, first, count); });
                field().pass().through(team);
                field().contract(team, 0, true);
                field().contract(team, 1, false);
                team([&](int p, State &state) {
                    if (p < count) move(p, first + p, state.smallest);
                });
            }
            team([&](int thread, State &state) { add_up(thread, state); });
        }
        team([&](int thread, State &state) {
            double *to = call.sums + block * 2 * CARRY_COLUMNS;
            KJKO_ROLLED for (int i = thread; i < 2 * CARRY_COLUMNS; i += THREADS)
                if (i % CARRY_COLUMNS == NONE) to[i] = 0;
            if (thread < CARRY_COLUMNS - 1) {
                to[thread < NONE ? thread : thread + 1] = state.coarse;
                to[CARRY_COLUMNS + (thread < NONE ? thread : thread + 1)] = state.rest;
            }
            if (thread < TILE) call.smallest[block * TILE + thread] = state.smallest;
        });
    }

private:
    KJKO_DEVICE Field field() const { return {call, shared}; }

    // x and v as the inputs of the network.
    KJKO_DEVICE void take(int thread, long long first, int count) const {
        const MovedParticles &from = call.particles;
        const int dx = from.space_dims, first_v = call.network.inputs - DV;
        KJKO_ROLLED for (int task = thread; task < (dx + DV) * TILE; task += THREADS) {
            const int l = task / TILE, p = task % TILE;
            const long long row = first + (p < count ? p : count - 1);
            if (l >= dx) {
                shared.input[first_v + l - dx][p] = static_cast<Real>(number_at(from.is_double, from.v, row * DV + l - dx));
                continue;
            }
            const double x = number_at(from.is_double, from.x, row * dx + l);
            if (!call.periodic) {
                shared.input[l][p] = static_cast<Real>(x);
            } else {
                double sine, cosine;
                sine_and_cosine(x * (6.283185307179586 / call.how.periods[l]), sine, cosine);
                shared.input[l][p] = static_cast<Real>(cosine);
                shared.input[dx + l][p] = static_cast<Real>(sine);
            }
        }
    }

    KJKO_DEVICE void move(int p, long long row, double &smallest) const {
        const MovedParticles &of = call.particles;
        double places[MOST_VELOCITY_DIMS], mine[DV], along[DV], slope[DV], jacobian[DV][DV];
        KJKO_UNROLLED for (int k = 0; k < MOST_VELOCITY_DIMS; ++k)
            places[k] = k < of.space_dims ? number_at(of.is_double, of.x, row * of.space_dims + k) : 0.0;
        KJKO_UNROLLED for (int k = 0; k < DV; ++k) {
            mine[k] = number_at(of.is_double, of.v, row * DV + k);
            along[k] = field().gradient(0, k, p);
            slope[k] = field().gradient(1, k, p);
        }
        field().hessian(p, jacobian);
        const double share = call.share[row];
        const auto add = [&](int column, double term) {
            shared.terms[column < NONE ? column : column - 1][p] += share * term;
        };
        const auto step = step_along<DV>(call.how, of.space_dims, places, mine, along, slope, jacobian, add);
        add(4, share);
        KJKO_UNROLLED for (int k = 0; k < DV; ++k)
            set_number(of.is_double, of.moved, row * DV + k, mine[k] + call.how.step * along[k]);
        call.log_det[row] = step.fallen;
        call.change[row] = step.gained;
        call.disagreement[row] = step.wrong;
        const double own = smallest_of(jacobian, call.how.step);
        if (own < smallest || own != own) smallest = own;  // NaN stays NaN
    }

    KJKO_DEVICE void add_up(int column, State &state) const {
        if (column >= CARRY_COLUMNS - 1) return;
        double sum = 0;
        KJKO_ROLLED for (int p = 0; p < TILE; ++p) {
            sum += shared.terms[column][p];
            shared.terms[column][p] = 0;
        }
        const Fine fine = rounded_finely(sum, call.unit, call.finer);
        state.coarse += fine.coarse;
        state.rest += fine.rest;
    }
};

}  // namespace kjko::KJKO_LEVEL
