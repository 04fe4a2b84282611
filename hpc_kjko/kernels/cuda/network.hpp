// The network of the control field on a GPU: the common part of its kernels, in the phases of phases.hpp.
//
// A thread block of 4 H threads takes TILE particles at a time through the network. Rows [feature][column] are in
// shared memory. The columns are first the values of the particles, then each tangent (cpu/objective.cpp explains the
// two methods). Products are computed in tiles in registers: 8 columns by 4 features for each thread.
#pragma once

#include "cuda/phases.hpp"
#include "cuda/tensor.hpp"
#include "math/activation.hpp"
#include "math/network.hpp"

// Whether products are made on tensor cores (cuda/tensor.hpp). Only tests and scripts/bench_gpu.py use that.
#ifndef KJKO_TENSOR
#define KJKO_TENSOR false
#endif

namespace kjko::KJKO_LEVEL {

constexpr bool TENSOR = KJKO_TENSOR;

// The part of a product that belongs to a thread: 8 columns, from column() on, and 4 features. On tensor cores it is a
// part of each tile of the warp.
template <class Real, int COLUMNS, bool TENSOR>
struct ProductOf {
    Real at[8][4];
};
template <class Real, int COLUMNS>
struct ProductOf<Real, COLUMNS, true> {
    ProductPart<Real> at[COLUMNS / 16];
};

// Threads of a thread block: four for each of H features.
template <int H>
constexpr int THREADS_OF = 4 * H;

// Two hidden layers of H features for some particles at a time, with TANGENTS tangents each. The last DV inputs are
// velocities. CLOSED: the only tangent is that of the closed form of the divergence. ROWS: the largest number of
// inputs, plus one. PAD: unused numbers after each row of the transpose of W2, for threads that read its columns.
template <class Real, int H, class Activation, int DV, int TANGENTS_, int TILE_, bool CLOSED = false,
          int ROWS = INPUT_ROWS, int PAD = 0>
struct HiddenLayers {
    static constexpr int THREADS = THREADS_OF<H>, TANGENTS = TANGENTS_, TILE = TILE_;
    static constexpr int COLUMNS = (1 + TANGENTS) * TILE;
    // so that the same columns of eight neighbouring features lie in different memory banks
    static constexpr int IN_16_BYTES = 16 / sizeof(Real);
    static constexpr int STRIDE = COLUMNS + (TENSOR ? IN_16_BYTES : 4);
    // in element-wise work, a thread handles these particles for one feature
    static constexpr int QUARTER = TILE / 4;
    static constexpr int WIDE = H / 4, ACROSS = H + (TENSOR ? IN_16_BYTES : PAD);

    // Thread blocks of a multiprocessor at a time, if it has registers for this many threads.
    static constexpr int resident(int threads) { return threads < THREADS ? 1 : threads / THREADS; }

    struct Shared {
        alignas(16) Real w1[ROWS][H];  // transposed, b1 in the row after the inputs
        alignas(16) Real w2_t[H][ACROSS], m_t[CLOSED ? H : 1][CLOSED ? ACROSS : 4];  // columns at their place()
        alignas(16) Real b2[H];
        alignas(16) Real input[ROWS][TILE];
        alignas(16) Real x[H][STRIDE];  // first hidden layer and its tangents
        alignas(16) Real y[H][STRIDE];  // second hidden layer and p
    };

    using Product = ProductOf<Real, COLUMNS, TENSOR>;
    using Tiles = WarpTiles<Real, H, COLUMNS>;  // on tensor cores

    const NetworkOf<Real> &network;
    Shared &shared;

    KJKO_DEVICE int first_v() const { return network.inputs - DV; }

    // The columns of a thread, and its features. Those of neighbouring threads are neighbours, which lie in different
    // memory banks.
    static KJKO_DEVICE int column(int thread) { return thread / WIDE * 8; }
    static KJKO_DEVICE int feature(int thread, int j) { return thread % WIDE + j * WIDE; }

    // The place of a column in a matrix of factors. The four columns of a thread are stored together. Tensor cores take
    // columns in their order.
    static KJKO_DEVICE int place(int c) { return TENSOR ? c : c % WIDE * 4 + c / WIDE; }

    // Loads the weights. Returns 0, or NaN if one is not finite. (The tanh of an infinite weight is just 1.)
    KJKO_DEVICE Real begin(int thread) const {
        const NetworkOf<Real> &n = network;
        const int inputs = n.inputs;
        Real nothing = 0;
        KJKO_ROLLED for (int i = thread; i < ROWS * H; i += THREADS) {
            const int k = i / H, c = i % H;
            const Real w = k < inputs ? n.w1[c * inputs + k] : k == inputs ? n.b1[c] : Real(0);
            shared.w1[k][c] = w;
            nothing += 0 * w;
        }
        KJKO_ROLLED for (int i = thread; i < H * H; i += THREADS) {
            const Real w = n.w2[i];
            shared.w2_t[i % H][place(i / H)] = w;
            nothing += 0 * w;
        }
        KJKO_ROLLED for (int c = thread; c < H; c += THREADS) {
            shared.b2[c] = n.b2[c];
            nothing += 0 * n.b2[c];
        }
        KJKO_ROLLED for (int i = thread; i < ROWS * TILE; i += THREADS)
            shared.input[i / TILE][i % TILE] = i / TILE == inputs;  // take() overwrites only the inputs
        return nothing;
    }

    // Loads the inputs of particles from `first` on. Columns beyond the last of `count` particles repeat it.
    KJKO_DEVICE void take(int thread, const Real *z, long long first, int count) const {
        const int inputs = network.inputs;
        z += first * inputs;
        KJKO_ROLLED for (int i = thread; i < inputs * TILE; i += THREADS) {
            const int p = i / inputs;
            shared.input[i % inputs][p] = z[(p < count ? p : count - 1) * inputs + i % inputs];
        }
    }

    KJKO_DEVICE void first_layer(int thread) const {
        const int c = thread % H, from = thread / H * QUARTER, inputs = network.inputs;
        Real a[QUARTER], seed[TANGENTS > 0 ? TANGENTS : 1];
        KJKO_UNROLLED for (int p = 0; p < QUARTER; ++p) a[p] = shared.w1[inputs][c];
        KJKO_ROLLED for (int i = 0; i < inputs; ++i) {
            const Real w = shared.w1[i][c];
            KJKO_UNROLLED for (int p = 0; p < QUARTER; p += 4) {
                const Four<Real> z = load_four(&shared.input[i][from + p]);
                KJKO_UNROLLED for (int e = 0; e < 4; ++e) a[p + e] += w * z.at[e];
            }
        }
        KJKO_UNROLLED for (int j = 0; j < TANGENTS; ++j) seed[j] = CLOSED ? Real(1) : shared.w1[first_v() + j][c];
        KJKO_UNROLLED for (int p = 0; p < QUARTER; p += 4) {
            Four<Real> h, slope;
            KJKO_UNROLLED for (int e = 0; e < 4; ++e) {
                h.at[e] = Activation::value(a[p + e]);
                slope.at[e] = Activation::slope(h.at[e]);
            }
            store_four(&shared.x[c][from + p], h);
            KJKO_UNROLLED for (int j = 0; j < TANGENTS; ++j) {
                Four<Real> tangent;
                KJKO_UNROLLED for (int e = 0; e < 4; ++e) tangent.at[e] = seed[j] * slope.at[e];
                store_four(&shared.x[c][(1 + j) * TILE + from + p], tangent);
            }
        }
    }

    // The product of columns with W2, and of the tangents of the closed form with M.
    template <class Warp, int TALL, int WIDTH>
    static KJKO_DEVICE void multiply(Warp &warp, const Real (&columns)[H][STRIDE], const Real (&w)[H][ACROSS],
                                     const Real (&m)[TALL][WIDTH]) {
        if constexpr (TENSOR) {
            const Real *factors = CLOSED && Tiles::first_column(warp.index) >= TILE ? m[0] : w[0];
            Tiles::multiply(warp, [&](int k, int c) { return columns[k][c]; },
                            [&](int k, int f) { return factors[k * ACROSS + f]; });
        } else {
            warp.each([&](int thread, auto &state) {
                const int at = column(thread);
                if (at < COLUMNS) multiply(thread, &columns[0][at], CLOSED && at >= TILE ? m[0] : w[0], state.product);
            });
        }
    }

    // The product of 8 columns with a matrix.
    static KJKO_DEVICE void multiply(int thread, const Real *from, const Real *factors, Product &product) {
        static_assert(H > 0 && !TENSOR, "tensor cores have another order of factors");
        factors += thread % WIDE * 4;
        KJKO_UNROLLED for (int i = 0; i < 8; ++i)
            KJKO_UNROLLED for (int j = 0; j < 4; ++j) product.at[i][j] = 0;
        KJKO_UNROLLED_BY_4 for (int k = 0; k < H; ++k) {
            const Four<Real> low = load_four(from + k * STRIDE), high = load_four(from + k * STRIDE + 4);
            const Four<Real> factor = load_four(factors + k * ACROSS);
            KJKO_UNROLLED for (int j = 0; j < 4; ++j)
                KJKO_UNROLLED for (int i = 0; i < 4; ++i) {
                    product.at[i][j] += low.at[i] * factor.at[j];
                    product.at[4 + i][j] += high.at[i] * factor.at[j];
                }
        }
    }

    // The second layer. Applies the activation to the values. The tangents stay p until they are needed.
    template <class Warp>
    KJKO_DEVICE void second_layer(Warp &warp) const {
        multiply(warp, shared.x, shared.w2_t, shared.m_t);
        warp.each([&](int thread, auto &state) {
            Product &product = state.product;
            if constexpr (TENSOR) {
                Tiles::each(thread, product, [&](int c, int f, Real &sum) {
                    if (c < TILE) sum = Activation::value(sum + shared.b2[f]);
                });
            } else if (column(thread) < TILE) {
                KJKO_UNROLLED for (int j = 0; j < 4; ++j) {
                    const Real b2 = shared.b2[feature(thread, j)];
                    KJKO_UNROLLED for (int i = 0; i < 8; ++i)
                        product.at[i][j] = Activation::value(product.at[i][j] + b2);
                }
            }
            keep(thread, product);
        });
    }

    // Stores a product in y.
    KJKO_DEVICE void keep(int thread, Product &product) const {
        if constexpr (TENSOR) {
            Tiles::each(thread, product, [&](int c, int f, Real sum) { shared.y[f][c] = sum; });
        } else {
            if (column(thread) >= COLUMNS) return;
            KJKO_UNROLLED for (int j = 0; j < 4; ++j)
                KJKO_UNROLLED for (int half = 0; half < 8; half += 4) {
                    Four<Real> part;
                    KJKO_UNROLLED for (int i = 0; i < 4; ++i) part.at[i] = product.at[half + i][j];
                    store_four(&shared.y[feature(thread, j)][column(thread) + half], part);
                }
        }
    }
};

// The whole network: the hidden layers, with the tangents of the Jacobian or of the closed form, and the output layer.
template <class Real, int H, class Activation, int DV, bool CLOSED>
struct DeviceNetwork {
    // In double precision the tiles are smaller if shared memory would not hold them (an A100 has 163 KB).
    static constexpr int TANGENTS = CLOSED ? 1 : DV;
    static constexpr int TILE = (TANGENTS == 1 ? 64 : 32) / (sizeof(Real) == 8 && H > 32 ? 2 : 1);
    using Hidden = HiddenLayers<Real, H, Activation, DV, TANGENTS, TILE, CLOSED>;
    using Product = typename Hidden::Product;
    static constexpr int THREADS = Hidden::THREADS, COLUMNS = Hidden::COLUMNS, STRIDE = Hidden::STRIDE;
    static constexpr int QUARTER = Hidden::QUARTER, WIDE = Hidden::WIDE, ACROSS = Hidden::ACROSS;
    static constexpr int resident(int threads) { return Hidden::resident(threads); }

    struct Shared : Hidden::Shared {
        alignas(16) Real w3[DV][H];
        alignas(16) Real skip[DV][INPUT_ROWS];  // b3 after the inputs
        // the output layer for values and tangents: u, and the Jacobian or the divergence
        alignas(16) Real out[DV][COLUMNS];
    };

    const NetworkOf<Real> &network;
    Shared &shared;

    KJKO_DEVICE Hidden hidden() const { return {network, shared}; }
    KJKO_DEVICE int first_v() const { return hidden().first_v(); }
    static KJKO_DEVICE int place(int c) { return Hidden::place(c); }

    // Loads the weights. Returns 0, or NaN if one is not finite.
    KJKO_DEVICE Real begin(int thread) const {
        const NetworkOf<Real> &n = network;
        const int inputs = n.inputs, first = inputs - n.skipped;
        Real nothing = hidden().begin(thread);
        KJKO_ROLLED for (int c = thread; c < H; c += THREADS)
            for (int k = 0; k < DV; ++k) {
                shared.w3[k][c] = n.w3[k * H + c];
                nothing += 0 * n.w3[k * H + c];
            }
        KJKO_ROLLED for (int i = thread; i < DV * INPUT_ROWS; i += THREADS) {
            const int k = i / INPUT_ROWS, l = i % INPUT_ROWS;
            const bool skipped = n.skip && l >= first && l < inputs;
            const Real w = skipped ? n.skip[k * n.skipped + l - first] : l == inputs ? n.b3[k] : Real(0);
            shared.skip[k][l] = w;
            nothing += 0 * w;
        }
        return nothing;
    }

    KJKO_DEVICE void take(int thread, const Real *z, long long first, int count) const {
        hidden().take(thread, z, first, count);
    }
    KJKO_DEVICE void first_layer(int thread) const { hidden().first_layer(thread); }
    template <class Warp>
    KJKO_DEVICE void second_layer(Warp &warp) const {
        hidden().second_layer(warp);
    }
    KJKO_DEVICE void keep(int thread, Product &product) const { hidden().keep(thread, product); }
    template <class Warp, int TALL, int WIDTH>
    static KJKO_DEVICE void multiply(Warp &warp, const Real (&columns)[H][STRIDE], const Real (&w)[H][ACROSS],
                                     const Real (&m)[TALL][WIDTH]) {
        Hidden::multiply(warp, columns, w, m);
    }

    KJKO_DEVICE void output_layer(int thread) const {
        for (int at = thread; at < COLUMNS; at += THREADS) {
            const bool is_tangent = at >= TILE;
            Real sum[DV] = {};
            KJKO_UNROLLED_BY_4 for (int c = 0; c < H; ++c) {
                Real t = shared.y[c][at];
                if (is_tangent) t *= Activation::slope(shared.y[c][at % TILE]);
                KJKO_UNROLLED for (int k = 0; k < DV; ++k)
                    sum[k] += CLOSED && is_tangent ? (k == 0 ? t : 0) : shared.w3[k][c] * t;
            }
            KJKO_UNROLLED for (int k = 0; k < DV; ++k) shared.out[k][at] = sum[k];
        }
    }

    // u and, without the closed form, ∇v u of a particle, from `out`.
    KJKO_DEVICE Real u(int k, int p) const {
        Real skipped = 0;
        KJKO_ROLLED for (int i = 0; i <= network.inputs; ++i) skipped += shared.skip[k][i] * shared.input[i][p];
        return shared.out[k][p] + skipped;
    }
    KJKO_DEVICE void jacobian(int p, Real (&jacobian)[DV][DV]) const {
        KJKO_UNROLLED for (int k = 0; k < DV; ++k)
            KJKO_UNROLLED for (int j = 0; j < DV; ++j)
                jacobian[k][j] = shared.skip[k][first_v() + j] + shared.out[k][(1 + j) * TILE + p];
    }
};

// The sums over columns of a row of a times a row of b [H][H], in tiles of TALL × 4. Each tile has PARTS threads, which
// handle some of the columns each. If TABLES is 2, the second half of the columns has its own sums. The sums of a thread
// are w2 of its state. They are added up in tables, in TURNS.
template <class Real, int H, int COLUMNS, int STRIDE, int TABLES, bool TENSOR>
struct OuterProducts {
    static constexpr int THREADS = THREADS_OF<H>, WIDE = H / 4;
    static constexpr int TALL = H == 48 ? 6 : 8, PARTS = 16 * TALL / H, TURNS = PARTS / TABLES;

    struct Sums {
        Real at[TALL][4];
    };

    template <class Warp>
    static KJKO_DEVICE void add(Warp &warp, const Real (&a)[H][STRIDE], const Real (&b)[H][STRIDE]) {
        warp.each([&](int thread, auto &state) { add(thread, a, b, state.w2.at); });
    }

    // In the first turn stores the sums of the threads whose turn it is in a table, in later turns adds them to it. Then
    // resets them.
    static KJKO_DEVICE void leave(int thread, int turn, Real (&first)[H][STRIDE], Real (&second)[H][STRIDE], Sums &sums) {
        const int part = thread / (THREADS / PARTS), tile = thread % (THREADS / PARTS);
        if (part % TURNS != turn) return;
        Real(&table)[H][STRIDE] = part < TURNS ? first : second;
        KJKO_UNROLLED for (int i = 0; i < TALL; ++i)
            KJKO_UNROLLED for (int j = 0; j < 4; ++j) {
                Real &place = table[tile / WIDE + i * (H / TALL)][tile % WIDE + j * WIDE];
                place = turn == 0 ? sums.at[i][j] : place + sums.at[i][j];
                sums.at[i][j] = 0;
            }
    }

private:
    static KJKO_DEVICE void add(int thread, const Real (&a)[H][STRIDE], const Real (&b)[H][STRIDE],
                                Real (&sums)[TALL][4]) {
        const int tile = thread % (THREADS / PARTS), part = thread / (THREADS / PARTS);
        const Real *y = a[tile / WIDE], *x = b[tile % WIDE];
        KJKO_ROLLED for (int at = part * (COLUMNS / PARTS); at < (part + 1) * (COLUMNS / PARTS); at += 4) {
            Four<Real> column[4];
            KJKO_UNROLLED for (int j = 0; j < 4; ++j) column[j] = load_four(x + j * WIDE * STRIDE + at);
            KJKO_UNROLLED for (int i = 0; i < TALL; ++i) {
                const Four<Real> row = load_four(y + i * (H / TALL) * STRIDE + at);
                KJKO_UNROLLED for (int j = 0; j < 4; ++j)
                    KJKO_UNROLLED for (int e = 0; e < 4; ++e) sums[i][j] += row.at[e] * column[j].at[e];
            }
        }
    }
};

// These sums on tensor cores.
template <class Real, int H, int COLUMNS, int STRIDE, int TABLES>
struct OuterProducts<Real, H, COLUMNS, STRIDE, TABLES, true> {
    using Tiles = WarpOuterTiles<Real, H>;
    static constexpr int PARTS = Tiles::PARTS, TURNS = PARTS / TABLES;

    struct Sums {
        ProductPart<Real> at[Tiles::COUNT];
    };

    template <class Warp>
    static KJKO_DEVICE void add(Warp &warp, const Real (&a)[H][STRIDE], const Real (&b)[H][STRIDE]) {
        const int part = Tiles::part_of(warp.index);
        Tiles::add(warp, COLUMNS / PARTS * part, COLUMNS / PARTS * (part + 1), a, b,
                   [](auto &state) -> auto & { return state.w2.at; });
    }

    static KJKO_DEVICE void leave(int thread, int turn, Real (&first)[H][STRIDE], Real (&second)[H][STRIDE], Sums &sums) {
        const int part = Tiles::part_of(thread / LANES);
        if (part % TURNS != turn) return;
        Real(&table)[H][STRIDE] = part < TURNS ? first : second;
        Tiles::each(thread, sums.at, [&](int i, int l, Real &sum) {
            table[i][l] = turn == 0 ? sum : table[i][l] + sum;
            sum = 0;
        });
    }
};

// Loads the data of the particles that functionals need, besides the inputs of the network. Columns beyond the last of
// `count` particles have the share 0.
template <int DV, int TILE, class Call, class Shared>
KJKO_DEVICE void take_particles(const Call &call, Shared &shared, int p, long long first, int count) {
    if (p >= TILE) return;
    const float *v = call.v + (first + (p < count ? p : count - 1)) * call.v_stride;
    for (int k = 0; k < DV; ++k) shared.v[k][p] = v[k];
    shared.share[p] = p < count ? call.share[first + p] : 0;
    shared.known[p] = p < count && call.known ? call.known[first + p] : 0;
}

}  // namespace kjko::KJKO_LEVEL
