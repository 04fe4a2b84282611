// Sums over particles of products of the functions of a potential, on a GPU, as cpu/potential.cpp sums them on the CPU,
// in the phases of cuda/phases.hpp.
//
// Functions are in the precision of the network. Their products are added in double precision, in registers, over a
// piece of particles. The sum of a piece is rounded to units before it is added to others. So the bits do not depend on
// how pieces are divided among thread blocks or GPUs. The factors are rows [function][particle] in shared memory, for a
// few particles at a time. A thread has a tile of 4 × 4 products of rows that are far apart. So the rows of
// neighbouring threads are neighbours, and lie in different memory banks.
#pragma once

#include "cuda/potential.hpp"

namespace kjko::KJKO_LEVEL {

// Particles whose rows are in shared memory at a time, and the distance between rows.
constexpr int AT_ONCE = 32, ROW = AT_ONCE + 1;
constexpr int SIDE = 4;

struct ProductTile {
    double at[SIDE][SIDE];
};

// Adds Σ_p weight(p) a_s(p) b_t(p) over particles, for rows that begin at `a` and `b` and are `a_step` and `b_step`
// rows apart.
template <class Weight>
KJKO_DEVICE void add_products(const double *a, int a_step, const double *b, int b_step, int from, int to,
                              const Weight &weight, ProductTile &sums) {
    KJKO_ROLLED for (int p = from; p < to; ++p) {
        double left[SIDE];
        KJKO_UNROLLED for (int s = 0; s < SIDE; ++s) left[s] = weight(p) * a[s * a_step * ROW + p];
        KJKO_UNROLLED for (int t = 0; t < SIDE; ++t) {
            const double right = b[t * b_step * ROW + p];
            KJKO_UNROLLED for (int s = 0; s < SIDE; ++s) sums.at[s][t] += left[s] * right;
        }
    }
}

// Adds the rounded sum of a piece to the total, and resets the sum.
KJKO_DEVICE void add_rounded(double &total, double &sum, double unit) {
    total += rounded(sum, shift_of(unit));
    sum = 0;
}
KJKO_DEVICE void add_rounded(ProductTile &total, ProductTile &sums, double unit) {
    KJKO_UNROLLED for (int s = 0; s < SIDE; ++s)
        KJKO_UNROLLED for (int t = 0; t < SIDE; ++t) add_rounded(total.at[s][t], sums.at[s][t], unit);
}

// A symmetric matrix of products in tiles. Each thread has one tile: the products of the row groups a ≤ b, where group
// a has the rows a, a + BLOCKS, a + 2 BLOCKS, ... If there are more tiles than threads, they are divided among several
// thread blocks.
template <int ROWS, int THREADS>
struct SymmetricTiles {
    static constexpr int BLOCKS = (ROWS + SIDE - 1) / SIDE, COUNT = BLOCKS * (BLOCKS + 1) / 2;
    static constexpr int GROUPS = (COUNT + THREADS - 1) / THREADS;

    int a, b;  // b < 0: no tile

    static KJKO_DEVICE SymmetricTiles of(int thread, int group) {
        const int own = thread + group * THREADS;
        if (own >= COUNT) return {0, -1};
        int b = 0;
        while ((b + 1) * (b + 2) / 2 <= own) ++b;
        return {own - b * (b + 1) / 2, b};
    }

    template <class Weight>
    KJKO_DEVICE void add(const double (&rows)[SIDE * BLOCKS][ROW], const Weight &weight, ProductTile &sums) const {
        if (b >= 0) add_products(rows[a], BLOCKS, rows[b], BLOCKS, 0, AT_ONCE, weight, sums);
    }

    // Stores the sums in a matrix [rows][across], in both triangles. Columns beyond the rows have no mirror image.
    KJKO_DEVICE void put(const ProductTile &sums, double *matrix, int rows, int across) const {
        if (b < 0) return;
        KJKO_UNROLLED for (int s = 0; s < SIDE; ++s)
            KJKO_UNROLLED for (int t = 0; t < SIDE; ++t) {
                const int i = a + s * BLOCKS, j = b + t * BLOCKS;
                if (i >= across || j >= across || (a == b && i > j)) continue;
                if (i < rows) matrix[i * across + j] = sums.at[s][t];
                if (j < rows) matrix[j * across + i] = sums.at[s][t];
            }
    }
};

// The common part of the kernels: pieces are divided among thread blocks, and a thread block handles a piece tile by
// tile.
template <int TILE, class Real, class Threads, class Take, class Flush>
KJKO_DEVICE void over_pieces(const DevicePotentialCall<Real> &call, Threads &team, long long block, long long blocks,
                             const Take &take, const Flush &flush) {
    for (long long piece = call.pieces * block / blocks; piece < call.pieces * (block + 1) / blocks; ++piece) {
        for (long long first = call.edges[piece]; first < call.edges[piece + 1]; first += TILE) {
            const long long rest = call.edges[piece + 1] - first;
            take(first, rest < TILE ? static_cast<int>(rest) : TILE);
        }
        flush();
    }
}

// The shares of the particles of a tile, 0 beyond the last particle.
template <int TILE, class Real>
KJKO_DEVICE void take_shares(const DevicePotentialCall<Real> &call, int thread, int threads, long long first, int count,
                             double *to) {
    KJKO_ROLLED for (int p = thread; p < TILE; p += threads) to[p] = p < count ? call.share[first + p] : 0.0;
}

// Σ share g gᵀ, with Σ share g wanted as one more column.
template <class Real, int H, int DV>
struct potential_normal {
    using Pass = PotentialPass<Real, H, DV, false>;
    static constexpr int THREADS = Pass::THREADS, TILE = Pass::TILE;
    using Tiles = SymmetricTiles<H + Pass::OF_DENSITY + 1, THREADS>;
    struct Shared : Pass::Layers::Shared {
        double share[TILE];
        double rows[SIDE * Tiles::BLOCKS][ROW];
    };
    struct State {
        typename Pass::Product product;
        Tiles tile;
        ProductTile sums, total;
    };
    static constexpr Shape shape(int resident_threads) {
        return {THREADS,       Pass::Layers::resident(resident_threads), sizeof(Shared), TILE, 0, 0, Tiles::GROUPS,
                Tiles::GROUPS};
    }

    const DevicePotentialCall<Real> &call;
    Shared &shared;
    int group;

    template <class Threads>
    KJKO_DEVICE void run(Threads &team, long long block, long long blocks) const {
        team([&](int thread, State &state) {
            state = State{};
            state.tile = Tiles::of(thread, group);
            pass().layers().begin(thread);
            KJKO_ROLLED for (int i = thread; i < SIDE * Tiles::BLOCKS * ROW; i += THREADS)
                shared.rows[i / ROW][i % ROW] = 0;
        });
        over_pieces<TILE>(
            call, team, block, blocks,
            [&](long long first, int count) {
                pass().forward(team, first, count);
                team([&](int thread, State &) { take_shares<TILE>(call, thread, THREADS, first, count, shared.share); });
                for (int from = 0; from < count; from += AT_ONCE) {
                    team([&](int thread, State &) { take_rows(thread, from, first, count); });
                    team([&](int, State &state) {
                        state.tile.add(shared.rows, [&](int p) { return shared.share[from + p]; }, state.sums);
                    });
                }
            },
            [&]() { team([&](int, State &state) { add_rounded(state.total, state.sums, call.unit); }); });
        team([&](int, State &state) {
            const int number = pass().density();
            state.tile.put(state.total, call.sums + block * number * (number + 1), number, number + 1);
        });
    }

private:
    KJKO_DEVICE Pass pass() const { return {call, shared}; }

    KJKO_DEVICE void take_rows(int thread, int from, long long first, int count) const {
        if (thread < AT_ONCE) {
            const int p = from + thread;
            monomials(pass().of(), pass().template x<double>(p), pass().template v<double>(p),
                      [&](int m, double value) { shared.rows[H + m][thread] = value; });
            shared.rows[pass().density()][thread] = p < count ? call.wanted[first + p] : 0.0;
        }
        KJKO_ROLLED for (int i = thread; i < H * AT_ONCE; i += THREADS)
            shared.rows[i / AT_ONCE][i % AT_ONCE] = shared.y[i / AT_ONCE][from + i % AT_ONCE];
    }
};

// For the functions g of Φ: Σ share ∇g·∇g, Σ share ∇∇g : ∇∇g, Σ share Δg, Σ share.
template <class Real, int H, int DV>
struct potential_derivatives {
    using Pass = PotentialPass<Real, H, DV, true>;
    using Layers = typename Pass::Layers;
    static constexpr int THREADS = Pass::THREADS, TILE = Pass::TILE, PAIRS = Pass::PAIRS;
    // The number of particles whose rows are in shared memory at a time; the tile may be smaller.
    static constexpr int SOME = TILE < AT_ONCE ? TILE : AT_ONCE;
    using Tiles = SymmetricTiles<H + Pass::OF_POTENTIAL, THREADS>;
    static_assert(SIDE * Tiles::BLOCKS <= THREADS + THREADS, "a thread adds up two rows at most");
    struct Shared : Layers::Shared {
        double share[TILE < AT_ONCE ? AT_ONCE : TILE];
        double rows[SIDE * Tiles::BLOCKS][ROW];
    };
    struct State {
        typename Pass::Product product;
        Tiles tile;
        ProductTile gram, gram_total, bending, bending_total;
        double row[2], row_total[2], mass, mass_total;  // rows `thread` and `thread` + THREADS
    };
    static constexpr Shape shape(int resident_threads) {
        return {THREADS,       Layers::resident(resident_threads), sizeof(Shared), TILE, 0, 0, Tiles::GROUPS,
                Tiles::GROUPS};
    }

    const DevicePotentialCall<Real> &call;
    Shared &shared;
    int group;

    template <class Threads>
    KJKO_DEVICE void run(Threads &team, long long block, long long blocks) const {
        team([&](int thread, State &state) {
            state = State{};
            state.tile = Tiles::of(thread, group);
            pass().layers().begin(thread);
            KJKO_ROLLED for (int i = thread; i < SIDE * Tiles::BLOCKS * ROW; i += THREADS)
                shared.rows[i / ROW][i % ROW] = 0;
            KJKO_ROLLED for (int p = TILE + thread; p < AT_ONCE; p += THREADS) shared.share[p] = 0;
        });
        over_pieces<TILE>(
            call, team, block, blocks, [&](long long first, int count) { add_tile(team, first, count); },
            [&]() {
                team([&](int, State &state) {
                    add_rounded(state.gram_total, state.gram, call.unit);
                    add_rounded(state.bending_total, state.bending, call.unit);
                    KJKO_UNROLLED for (int n = 0; n < 2; ++n) add_rounded(state.row_total[n], state.row[n], call.unit);
                    add_rounded(state.mass_total, state.mass, call.unit);
                });
            });
        team([&](int thread, State &state) {
            const int number = pass().potential(), square = number * number;
            double *to = call.sums + block * (2 * square + number + 1);
            state.tile.put(state.gram_total, to, number, number);
            state.tile.put(state.bending_total, to + square, number, number);
            if (group > 0) return;
            KJKO_UNROLLED for (int n = 0; n < 2; ++n)
                if (thread + n * THREADS < number) to[2 * square + thread + n * THREADS] = state.row_total[n];
            if (thread == 0) to[2 * square + number] = state.mass_total;
        });
    }

private:
    KJKO_DEVICE Pass pass() const { return {call, shared}; }

    template <class Threads>
    KJKO_DEVICE void add_tile(Threads &team, long long first, int count) const {
        pass().forward(team, first, count);
        team([&](int thread, State &) { take_shares<TILE>(call, thread, THREADS, first, count, shared.share); });
        for (int from = 0; from < count; from += SOME) {
            const auto share = [&](int p) { return shared.share[from + p]; };
            const auto twice = [&](int p) { return 2 * shared.share[from + p]; };
            for (int j = 0; j < DV; ++j) {
                team([&](int thread, State &) { first_rows(thread, from, j); });
                team([&](int, State &state) { state.tile.add(shared.rows, share, state.gram); });
            }
            for (int number = 0; number < PAIRS; ++number) {
                team([&](int thread, State &) { bend_first_layer(thread, from, number); });
                team([&](int thread, State &state) { second_rows(thread, from, number, state.product); });
                team([&](int thread, State &state) {
                    if (number < DV) {
                        state.tile.add(shared.rows, share, state.bending);
                        add_rows(thread, from, state);
                    } else {
                        state.tile.add(shared.rows, twice, state.bending);
                    }
                });
            }
            team([&](int thread, State &state) {
                if (thread == 0)
                    KJKO_ROLLED for (int p = 0; p < SOME; ++p) state.mass += shared.share[from + p];
            });
        }
    }

    KJKO_DEVICE void first_rows(int thread, int from, int j) const {
        if (thread < SOME)
            first_derivatives(pass().of(), j, pass().template x<double>(from + thread),
                              pass().template v<double>(from + thread),
                              [&](int m, double value) { shared.rows[H + m][thread] = value; });
        KJKO_ROLLED for (int i = thread; i < H * SOME; i += THREADS) {
            const int c = i / SOME, p = from + i % SOME;
            shared.rows[c][i % SOME] = Pass::slope(shared.y[c][p]) * shared.y[c][(1 + j) * TILE + p];
        }
    }

    // s''_1 times the product of two weights, stored in place of the first tangents of some particles.
    KJKO_DEVICE void bend_first_layer(int thread, int from, int number) const {
        const int first_v = call.network.inputs - DV;
        int k, l;
        pair_of(pass().of(), number, k, l);
        KJKO_ROLLED for (int i = thread; i < H * SOME; i += THREADS) {
            const int c = i / SOME, p = i % SOME;
            shared.x[c][TILE + p] = Pass::curvature(shared.x[c][from + p]) * (shared.w1[first_v + k][c] * shared.w1[first_v + l][c]);
        }
    }

    KJKO_DEVICE void second_rows(int thread, int from, int number, typename Pass::Product &product) const {
        int k, l;
        pair_of(pass().of(), number, k, l);
        if (thread >= THREADS - SOME) {
            const int p = thread - (THREADS - SOME);
            second_derivatives(pass().of(), k, l, pass().template x<double>(from + p),
                               pass().template v<double>(from + p),
                               [&](int m, double value) { shared.rows[H + m][p] = value; });
        }
        const int at = Layers::column(thread);
        if (at >= SOME) return;
        Layers::multiply(thread, &shared.x[0][TILE + at], shared.w2_t[0], product);
        KJKO_UNROLLED for (int j = 0; j < 4; ++j) {
            const int c = Layers::feature(thread, j);
            KJKO_UNROLLED for (int i = 0; i < 8; ++i) {
                const int p = from + at + i;
                const Real h = shared.y[c][p];
                shared.rows[c][at + i] =
                    Pass::curvature(h) * shared.y[c][(1 + k) * TILE + p] * shared.y[c][(1 + l) * TILE + p] +
                    Pass::slope(h) * product.at[i][j];
            }
        }
    }

    KJKO_DEVICE void add_rows(int thread, int from, State &state) const {
        KJKO_UNROLLED for (int n = 0; n < 2; ++n)
            if (thread + n * THREADS < SIDE * Tiles::BLOCKS)
                KJKO_ROLLED for (int p = 0; p < SOME; ++p)
                    state.row[n] += shared.share[from + p] * shared.rows[thread + n * THREADS][p];
    }
};

// For Φ with coefficients k: Σ share tr (I + h∇∇Φ)⁻¹∇∇g, Σ share log det(I + h∇∇Φ), and the number of particles whose
// determinant is not positive.
template <class Real, int H, int DV>
struct potential_barrier {
    using Field = Contraction<Real, H, DV>;
    using Pass = typename Field::Pass;
    using Layers = typename Pass::Layers;
    static constexpr int THREADS = Pass::THREADS, TILE = Pass::TILE, PAIRS = Pass::PAIRS, GROUPS = TILE / 8;
    static_assert(Pass::OF_POTENTIAL <= THREADS, "a thread adds up one row");
    struct Shared : Field::Shared {
        double weight[PAIRS][TILE];                // share times the entries of the inverse
        double rows[Pass::OF_POTENTIAL][TILE + 1];  // of the monomials
        double log_det[TILE], turned[TILE], pull[GROUPS][H];
    };
    struct State : Field::State {
        double log_det, turned, row, pull[4];                       // sums of a piece
        double log_det_total, turned_total, row_total, pull_total;  // totals: of thread 0, of a monomial, of a feature
    };
    static constexpr Shape shape(int resident_threads) {
        return {THREADS, Layers::resident(resident_threads), sizeof(Shared), TILE, 0, 0, 1, 1};
    }

    const DevicePotentialCall<Real> &call;
    Shared &shared;
    int group;

    template <class Threads>
    KJKO_DEVICE void run(Threads &team, long long block, long long blocks) const {
        team([&](int thread, State &state) {
            state = State{};
            field().begin(thread);
        });
        over_pieces<TILE>(
            call, team, block, blocks,
            [&](long long first, int count) {
                field().pass().forward(team, first, count);
                field().contract(team, 0, true);
                team([&](int p, State &state) { weigh(p, first, count, state); });
                team([&](int thread, State &state) {
                    bend_first_layer(thread);
                    add_rows(thread, state);
                });
                team([&](int thread, State &state) { add_features(thread, state); });
            },
            [&]() {
                team([&](int thread, State &state) { leave(thread, state); });
                team([&](int thread, State &state) { add_up(thread, state); });
            });
        team([&](int thread, State &state) {
            const int number = field().pass().potential();
            double *to = call.sums + block * (number + 2);
            if (thread < H) to[thread] = state.pull_total;
            if (thread < number - H) to[H + thread] = state.row_total;
            if (thread == 0) {
                to[number] = state.log_det_total;
                to[number + 1] = state.turned_total;
            }
        });
    }

private:
    KJKO_DEVICE Field field() const { return {call, shared}; }

    // The weights of the second derivatives of a particle, and the weighted second derivatives of the monomials.
    KJKO_DEVICE void weigh(int p, long long first, int count, State &state) const {
        if (p >= TILE) return;
        const Monomials of = field().pass().of();
        double u[DV][DV], b[DV][DV];
        field().hessian(p, u);
        KJKO_UNROLLED for (int k = 0; k < DV; ++k)
            KJKO_UNROLLED for (int l = 0; l < DV; ++l) u[k][l] *= call.step;
        const double beyond = inverse(u, 1.0f, b), share = p < count ? call.share[first + p] : 0.0;
        const bool turned = !(beyond > -1.0);
        if (!turned) state.log_det += share * log_of_one_plus(beyond);
        state.turned += turned && p < count;
        KJKO_ROLLED for (int m = 0; m < field().pass().potential() - H; ++m) shared.rows[m][p] = 0;
        KJKO_ROLLED for (int number = 0; number < PAIRS; ++number) {
            int k, l;
            pair_of(of, number, k, l);
            double entry = 0;
            KJKO_UNROLLED for (int i = 0; i < DV; ++i)
                KJKO_UNROLLED for (int j = 0; j < DV; ++j)
                    if (i == k && j == l) entry = b[i][j];
            const double weight = turned || !(share > 0) ? 0.0 : (k == l ? 1.0 : 2.0) * share * entry;
            shared.weight[number][p] = weight;
            second_derivatives(of, k, l, field().pass().template x<double>(p), field().pass().template v<double>(p),
                               [&](int m, double value) { shared.rows[m][p] += weight * value; });
        }
    }

    // s''_1 times the weighted products of two weights, stored in place of the first tangents.
    KJKO_DEVICE void bend_first_layer(int thread) const {
        const int first_v = call.network.inputs - DV;
        KJKO_ROLLED for (int i = thread; i < H * TILE; i += THREADS) {
            const int c = i / TILE, p = i % TILE;
            Real sum = 0;
            KJKO_UNROLLED for (int number = 0; number < PAIRS; ++number) {
                int k, l;
                pair_of(Monomials{0, DV, false}, number, k, l);
                sum += static_cast<Real>(shared.weight[number][p]) * (shared.w1[first_v + k][c] * shared.w1[first_v + l][c]);
            }
            shared.x[c][TILE + p] = Pass::curvature(shared.x[c][p]) * sum;
        }
    }

    KJKO_DEVICE void add_rows(int m, State &state) const {
        if (m < field().pass().potential() - H)
            KJKO_ROLLED for (int p = 0; p < TILE; ++p) state.row += shared.rows[m][p];
    }

    KJKO_DEVICE void add_features(int thread, State &state) const {
        const int at = Layers::column(thread);
        if (at >= TILE) return;
        Layers::multiply(thread, &shared.x[0][TILE + at], shared.w2_t[0], state.product);
        KJKO_UNROLLED for (int j = 0; j < 4; ++j) {
            const int c = Layers::feature(thread, j);
            KJKO_UNROLLED for (int i = 0; i < 8; ++i) {
                const int p = at + i;
                const Real h = shared.y[c][p];
                double bend = 0;
                KJKO_UNROLLED for (int number = 0; number < PAIRS; ++number) {
                    int k, l;
                    pair_of(Monomials{0, DV, false}, number, k, l);
                    bend += shared.weight[number][p] * static_cast<double>(shared.y[c][(1 + k) * TILE + p] * shared.y[c][(1 + l) * TILE + p]);
                }
                state.pull[j] += static_cast<double>(Pass::curvature(h)) * bend +
                                 static_cast<double>(Pass::slope(h) * state.product.at[i][j]);
            }
        }
    }

    KJKO_DEVICE void leave(int thread, State &state) const {
        if (thread < TILE) {
            shared.log_det[thread] = state.log_det;
            shared.turned[thread] = state.turned;
            state.log_det = state.turned = 0;
        }
        if (Layers::column(thread) >= TILE) return;
        KJKO_UNROLLED for (int j = 0; j < 4; ++j) {
            shared.pull[Layers::column(thread) / 8][Layers::feature(thread, j)] = state.pull[j];
            state.pull[j] = 0;
        }
    }

    KJKO_DEVICE void add_up(int thread, State &state) const {
        if (thread == 0) {
            double log_det = 0;
            KJKO_ROLLED for (int p = 0; p < TILE; ++p) {
                log_det += shared.log_det[p];
                state.turned_total += shared.turned[p];
            }
            add_rounded(state.log_det_total, log_det, call.unit);
        }
        add_rounded(state.row_total, state.row, call.unit);
        if (thread >= H) return;
        double sum = 0;
        KJKO_ROLLED for (int some = 0; some < GROUPS; ++some) sum += shared.pull[some][thread];
        add_rounded(state.pull_total, sum, call.unit);
    }
};

// For the L functions m of Φ that depend on v alone: Σ share ∇m·(∇m, v, ∇Φ), Σ share Δm, Σ share (m, 1), Σ share y yᵀ
// with y = (x in unbounded space, v, 1).
template <class Real, int H, int DV>
struct potential_tied {
    using Pass = PotentialPass<Real, H, DV, false>;
    using Layers = typename Pass::Layers;
    static constexpr int THREADS = Pass::THREADS, TILE = Pass::TILE;
    static constexpr int SLICES = Pass::SLICES > 1 ? Pass::SLICES : 1, FEATURES = H / SLICES;
    // The functions m are those of Φ without any x.
    static constexpr int L = of_potential(Monomials{0, DV, false}), PLACES = 2 * DV + 1;
    // Rows: for each v_j (∇m)_j, v_j and (∇Φ)_j; then y; then Δm, m, 1.
    static constexpr int LEFT = (L + SIDE - 1) / SIDE, RIGHT = (L + 2 + SIDE - 1) / SIDE, OF_AXIS = SIDE * RIGHT;
    static constexpr int OF_PLACES = (PLACES + SIDE - 1) / SIDE, Y = DV * OF_AXIS, ALONE = Y + SIDE * OF_PLACES;
    static constexpr int ROWS = ALONE + 2 * L + 1;
    // Tiles of products, each shared by PARTS threads that handle some of the particles each; then single rows.
    static constexpr int SQUARES = OF_PLACES * OF_PLACES, TILES = LEFT * RIGHT + SQUARES;
    static constexpr int PARTS = 8 * TILES + 2 * L + 1 <= THREADS ? 8 : 2 * TILES + 2 * L + 1 <= THREADS ? 2 : 1;
    static_assert(PARTS * TILES + 2 * L + 1 <= THREADS, "each row has a thread");
    struct Shared : Layers::Shared {
        Real c[H + Pass::OF_POTENTIAL];
        double share[TILE];
        Real along[SLICES][DV][TILE];  // contributions of groups of features to ∇Φ
        double rows[ROWS][ROW];
        double table[TILES][SIDE][SIDE], totals[TILES][SIDE][SIDE];
    };
    struct State {
        typename Pass::Product product;
        ProductTile sums;
        double row, row_total;
    };
    static constexpr Shape shape(int resident_threads) {
        return {THREADS, Layers::resident(resident_threads), sizeof(Shared), TILE, 0, 0, 1, 1};
    }

    const DevicePotentialCall<Real> &call;
    Shared &shared;
    int group;

    template <class Threads>
    KJKO_DEVICE void run(Threads &team, long long block, long long blocks) const {
        team([&](int thread, State &state) {
            state = State{};
            pass().layers().begin(thread);
            pass().coefficients(thread, 0, pass().potential(), shared.c);
            KJKO_ROLLED for (int i = thread; i < ROWS * ROW; i += THREADS) shared.rows[i / ROW][i % ROW] = 0;
            KJKO_ROLLED for (int i = thread; i < TILES * SIDE * SIDE; i += THREADS) (&shared.totals[0][0][0])[i] = 0;
        });
        over_pieces<TILE>(
            call, team, block, blocks,
            [&](long long first, int count) {
                pass().forward(team, first, count);
                team.warps([&](auto &warp) {
                    warp.each([&](int thread, State &) {
                        take_shares<TILE>(call, thread, THREADS, first, count, shared.share);
                    });
                    pass().pull_back(warp, [&](int k, Real h) { return shared.c[k] * Pass::slope(h); });
                });
                team([&](int thread, State &state) { pass().layers().keep(thread, state.product); });
                team([&](int thread, State &) { add_features(thread); });
                for (int from = 0; from < count; from += AT_ONCE) {
                    team([&](int thread, State &) { take_rows(thread, from); });
                    team([&](int thread, State &state) { multiply(thread, from, state); });
                }
            },
            [&]() {
                for (int turn = 0; turn < PARTS; ++turn)
                    team([&](int thread, State &state) { leave(thread, turn, state); });
                team([&](int thread, State &state) {
                    KJKO_ROLLED for (int i = thread; i < TILES * SIDE * SIDE; i += THREADS)
                        add_rounded((&shared.totals[0][0][0])[i], (&shared.table[0][0][0])[i], call.unit);
                    add_rounded(state.row_total, state.row, call.unit);
                });
            });
        team([&](int thread, State &state) { hand_over(thread, block, state); });
    }

private:
    KJKO_DEVICE Pass pass() const { return {call, shared}; }
    KJKO_DEVICE int places() const { return (call.periodic ? 0 : call.network.inputs - DV) + DV + 1; }

    // The contribution of some features to ∇Φ at a particle.
    KJKO_DEVICE void add_features(int thread) const {
        const int first_v = call.network.inputs - DV;
        KJKO_ROLLED for (int task = thread; task < SLICES * TILE; task += THREADS) {
            const int p = task % TILE, slice = task / TILE;
            Real sums[DV] = {};
            KJKO_UNROLLED_BY_4 for (int i = slice * FEATURES; i < (slice + 1) * FEATURES; ++i) {
                const Real q = shared.y[i][p] * Pass::slope(shared.x[i][p]);
                KJKO_UNROLLED for (int j = 0; j < DV; ++j) sums[j] += q * shared.w1[first_v + j][i];
            }
            KJKO_UNROLLED for (int j = 0; j < DV; ++j) shared.along[slice][j][p] = sums[j];
        }
    }

    KJKO_DEVICE void take_rows(int thread, int from) const {
        const Monomials of_v = {0, DV, false};
        KJKO_ROLLED for (int task = thread; task < (DV + 2) * AT_ONCE; task += THREADS) {
            const int at = task % AT_ONCE, p = from + at, j = task / AT_ONCE;
            const auto x = pass().template x<double>(p), v = pass().template v<double>(p);
            if (j < DV) {
                double(*rows)[ROW] = &shared.rows[j * OF_AXIS];
                first_derivatives(of_v, j, x, v, [&](int m, double value) { rows[m][at] = value; });
                rows[L][at] = v[j];
                Real sum = 0;
                KJKO_UNROLLED for (int slice = 0; slice < SLICES; ++slice) sum += shared.along[slice][j][p];
                first_derivatives(pass().of(), j, pass().template x<Real>(p), pass().template v<Real>(p),
                                  [&](int m, Real value) { sum += shared.c[H + m] * value; });
                rows[L + 1][at] = sum;
            } else if (j == DV) {
                double(*rows)[ROW] = &shared.rows[ALONE];
                KJKO_ROLLED for (int m = 0; m < L; ++m) rows[m][at] = 0;
                KJKO_ROLLED for (int k = 0; k < DV; ++k)
                    second_derivatives(of_v, k, k, x, v, [&](int m, double value) { rows[m][at] += value; });
            } else {
                double(*rows)[ROW] = &shared.rows[ALONE + L], (*y)[ROW] = &shared.rows[Y];
                monomials_of_velocity(of_v, v, [&](int m, double value) { rows[m][at] = value; });
                rows[L][at] = 1;
                const int last = places() - 1, beside = last - DV;
                KJKO_ROLLED for (int l = 0; l < last; ++l) y[l][at] = l < beside ? x[l] : v[l - beside];
                y[last][at] = 1;
            }
        }
    }

    KJKO_DEVICE void multiply(int thread, int from, State &state) const {
        const auto share = [&](int p) { return shared.share[from + p]; };
        const int tile = thread / PARTS, begin = thread % PARTS * (AT_ONCE / PARTS), end = begin + AT_ONCE / PARTS;
        if (tile < LEFT * RIGHT) {
            const int a = tile / RIGHT, b = tile % RIGHT;
            KJKO_ROLLED for (int j = 0; j < DV; ++j)
                add_products(shared.rows[j * OF_AXIS + a * SIDE], 1, shared.rows[j * OF_AXIS + b * SIDE], 1, begin, end,
                             share, state.sums);
        } else if (tile < TILES) {
            const int a = (tile - LEFT * RIGHT) / OF_PLACES, b = (tile - LEFT * RIGHT) % OF_PLACES;
            add_products(shared.rows[Y + a * SIDE], 1, shared.rows[Y + b * SIDE], 1, begin, end, share, state.sums);
        } else if (thread - PARTS * TILES < 2 * L + 1) {
            const double *row = shared.rows[ALONE + thread - PARTS * TILES];
            KJKO_ROLLED for (int p = 0; p < AT_ONCE; ++p) state.row += share(p) * row[p];
        }
    }

    KJKO_DEVICE void leave(int thread, int turn, State &state) const {
        const int tile = thread / PARTS;
        if (tile >= TILES || thread % PARTS != turn) return;
        KJKO_UNROLLED for (int s = 0; s < SIDE; ++s)
            KJKO_UNROLLED for (int t = 0; t < SIDE; ++t) {
                double &place = shared.table[tile][s][t];
                place = turn == 0 ? state.sums.at[s][t] : place + state.sums.at[s][t];
                state.sums.at[s][t] = 0;
            }
    }

    KJKO_DEVICE void hand_over(int thread, long long block, const State &state) const {
        const int across = L + 2, alone = L * across, place = places(), moments = alone + 2 * L + 1;
        double *to = call.sums + block * (moments + place * place);
        KJKO_ROLLED for (int i = thread; i < L * across; i += THREADS) {
            const int row = i / across, column = i % across;
            to[i] = shared.totals[row / SIDE * RIGHT + column / SIDE][row % SIDE][column % SIDE];
        }
        KJKO_ROLLED for (int i = thread; i < place * place; i += THREADS) {
            const int row = i / place, column = i % place;
            to[moments + i] = shared.totals[LEFT * RIGHT + row / SIDE * OF_PLACES + column / SIDE][row % SIDE][column % SIDE];
        }
        if (thread >= PARTS * TILES && thread - PARTS * TILES < 2 * L + 1) to[alone + thread - PARTS * TILES] = state.row_total;
    }
};

// |ψ − wanted| of each particle with coefficients c, Σ share (ψ − wanted)², and the number of particles where |ψ −
// wanted| is larger than call.step.
template <class Real, int H, int DV>
struct potential_missed {
    using Pass = PotentialPass<Real, H, DV, false>;
    using Layers = typename Pass::Layers;
    static constexpr int THREADS = Pass::THREADS, TILE = Pass::TILE;
    struct Shared : Layers::Shared {
        double c[H + Pass::OF_DENSITY];
        double square[THREADS], far[THREADS];
    };
    struct State {
        typename Pass::Product product;
        double square, far, square_total, far_total;  // of a piece; and the totals of thread 0
    };
    static constexpr Shape shape(int resident_threads) {
        return {THREADS, Layers::resident(resident_threads), sizeof(Shared), TILE, 0, 0, 1, 1};
    }

    const DevicePotentialCall<Real> &call;
    Shared &shared;
    int group;

    template <class Threads>
    KJKO_DEVICE void run(Threads &team, long long block, long long blocks) const {
        team([&](int thread, State &state) {
            state = State{};
            pass().layers().begin(thread);
            pass().coefficients(thread, 0, pass().density(), shared.c);
        });
        over_pieces<TILE>(
            call, team, block, blocks,
            [&](long long first, int count) {
                pass().forward(team, first, count);
                team([&](int thread, State &state) {
                    KJKO_ROLLED for (int p = thread; p < count; p += THREADS) miss(p, first + p, state);
                });
            },
            [&]() {
                team([&](int thread, State &state) {
                    shared.square[thread] = state.square;
                    shared.far[thread] = state.far;
                    state.square = state.far = 0;
                });
                team([&](int thread, State &state) {
                    if (thread != 0) return;
                    double square = 0;
                    KJKO_ROLLED for (int i = 0; i < THREADS; ++i) {
                        square += shared.square[i];
                        state.far_total += shared.far[i];
                    }
                    add_rounded(state.square_total, square, call.unit);
                });
            });
        team([&](int thread, State &state) {
            if (thread != 0) return;
            call.sums[2 * block] = state.square_total;
            call.sums[2 * block + 1] = state.far_total;
        });
    }

private:
    KJKO_DEVICE Pass pass() const { return {call, shared}; }

    KJKO_DEVICE void miss(int p, long long row, State &state) const {
        double psi = 0;
        KJKO_UNROLLED_BY_4 for (int i = 0; i < H; ++i) psi += shared.c[i] * static_cast<double>(shared.y[i][p]);
        monomials(pass().of(), pass().template x<double>(p), pass().template v<double>(p),
                  [&](int m, double value) { psi += shared.c[H + m] * value; });
        const double off = psi - call.wanted[row], missed = off < 0 ? -off : off;
        call.values[row] = missed;
        state.square += call.share[row] * missed * missed;
        state.far += missed > call.step;
    }
};

// ½ Σ share (ψ − wanted)² with coefficients c, and its gradient with respect to weights and biases, layer by layer.
template <class Real, int H, int DV>
struct potential_training {
    using Pass = PotentialPass<Real, H, DV, false>;
    using Layers = typename Pass::Layers;
    static constexpr int THREADS = Pass::THREADS, TILE = Pass::TILE, STRIDE = Pass::STRIDE, QUARTER = Pass::QUARTER;
    static constexpr int SLICES = Pass::SLICES > 1 ? Pass::SLICES : 1, FEATURES = H / SLICES;
    using Outer = OuterProducts<Real, H, TILE, STRIDE, 1, TENSOR>;
    static constexpr int INPUTS_EACH = (Pass::ROWS + 3) / 4;
    struct Shared : Layers::Shared {
        double c[H + Pass::OF_DENSITY];
        double psi[SLICES][TILE];
        alignas(16) Real pull[TILE];
    };
    struct State {
        typename Pass::Product product;
        double loss;
        typename Outer::Sums w2;
        Real w1[INPUTS_EACH], b2;
        double total;  // of the loss
    };
    // The loss of each thread comes after the sums.
    static constexpr Shape shape(int resident_threads) {
        return {THREADS, Layers::resident(resident_threads), sizeof(Shared), TILE, THREADS, 0, 1, 1};
    }

    const DevicePotentialCall<Real> &call;
    Shared &shared;
    int group;

    template <class Threads>
    KJKO_DEVICE void run(Threads &team, long long block, long long blocks) const {
        const int size = H * (call.network.inputs + 1) + H * (H + 1);
        double *const to = call.sums + block * (size + THREADS);
        team([&](int thread, State &state) {
            state = State{};
            pass().layers().begin(thread);
            pass().coefficients(thread, 0, pass().density(), shared.c);
            KJKO_ROLLED for (int i = thread; i < size; i += THREADS) to[i] = 0;
        });
        over_pieces<TILE>(
            call, team, block, blocks,
            [&](long long first, int count) {
                pass().forward(team, first, count);
                team([&](int thread, State &) { add_features(thread); });
                team([&](int thread, State &state) { miss(thread, first, count, state); });
                team([&](int thread, State &state) { pull_second_layer(thread, state); });
                team.warps([&](auto &warp) {
                    Outer::add(warp, shared.y, shared.x);
                    pass().pull_back(warp, [](int, Real q) { return q; });
                });
                team([&](int thread, State &state) { pass().layers().keep(thread, state.product); });
                team([&](int thread, State &) { pull_first_layer(thread); });
                team([&](int thread, State &state) { add_inputs(thread, state); });
            },
            [&]() {
                for (int turn = 0; turn < (Outer::TURNS > 4 ? Outer::TURNS : 4); ++turn)
                    team([&](int thread, State &state) { flush(thread, turn, state, to); });
                team([&](int thread, State &state) {
                    KJKO_ROLLED for (int i = thread; i < H * H; i += THREADS)
                        to[w2() + i] += rounded(shared.y[i / H][i % H], shift_of(call.unit));
                    add_rounded(state.total, state.loss, call.unit);
                });
            });
        team([&](int thread, State &state) { to[size + thread] = state.total; });
    }

private:
    KJKO_DEVICE Pass pass() const { return {call, shared}; }
    KJKO_DEVICE int b1() const { return H * call.network.inputs; }
    KJKO_DEVICE int w2() const { return b1() + H; }
    KJKO_DEVICE int b2() const { return w2() + H * H; }

    // The contribution of some features, and of the monomials, to ψ.
    KJKO_DEVICE void add_features(int thread) const {
        KJKO_ROLLED for (int task = thread; task < SLICES * TILE; task += THREADS) {
            const int p = task % TILE, slice = task / TILE;
            double sum = 0;
            KJKO_UNROLLED_BY_4 for (int i = slice * FEATURES; i < (slice + 1) * FEATURES; ++i)
                sum += shared.c[i] * static_cast<double>(shared.y[i][p]);
            if (slice == SLICES - 1)
                monomials(pass().of(), pass().template x<double>(p), pass().template v<double>(p),
                          [&](int m, double value) { sum += shared.c[H + m] * value; });
            shared.psi[slice][p] = sum;
        }
    }

    KJKO_DEVICE void miss(int thread, long long first, int count, State &state) const {
        KJKO_ROLLED for (int p = thread; p < TILE; p += THREADS) {
            double psi = 0;
            KJKO_UNROLLED for (int slice = 0; slice < SLICES; ++slice) psi += shared.psi[slice][p];
            const double share = p < count ? call.share[first + p] : 0.0;
            const double missed = p < count ? psi - call.wanted[first + p] : 0.0;
            state.loss += 0.5 * share * missed * missed;
            shared.pull[p] = static_cast<Real>(share * missed);
        }
    }

    // The gradients with respect to the sums of the second layer, stored in place of that layer.
    KJKO_DEVICE void pull_second_layer(int thread, State &state) const {
        const int c = thread % H, from = thread / H * QUARTER;
        const Real factor = static_cast<Real>(shared.c[c]);
        KJKO_ROLLED for (int p = from; p < from + QUARTER; p += 4) {
            Four<Real> h = load_four(&shared.y[c][p]);
            const Four<Real> pull = load_four(&shared.pull[p]);
            KJKO_UNROLLED for (int e = 0; e < 4; ++e) {
                h.at[e] = factor * pull.at[e] * Pass::slope(h.at[e]);
                state.b2 += h.at[e];
            }
            store_four(&shared.y[c][p], h);
        }
    }

    KJKO_DEVICE void pull_first_layer(int thread) const {
        const int c = thread % H, from = thread / H * QUARTER;
        KJKO_ROLLED for (int p = from; p < from + QUARTER; p += 4) {
            Four<Real> q = load_four(&shared.y[c][p]);
            const Four<Real> h = load_four(&shared.x[c][p]);
            KJKO_UNROLLED for (int e = 0; e < 4; ++e) q.at[e] *= Pass::slope(h.at[e]);
            store_four(&shared.y[c][p], q);
        }
    }

    // The gradient of W1 and b1: a thread has every fourth input of one feature.
    KJKO_DEVICE void add_inputs(int thread, State &state) const {
        const int c = thread % H;
        KJKO_UNROLLED for (int j = 0; j < INPUTS_EACH; ++j) {
            const int i = thread / H + 4 * j;
            if (i > call.network.inputs) return;
            KJKO_ROLLED for (int p = 0; p < TILE; p += 4) {
                const Four<Real> q = load_four(&shared.y[c][p]), z = load_four(&shared.input[i][p]);
                KJKO_UNROLLED for (int e = 0; e < 4; ++e) state.w1[j] += q.at[e] * z.at[e];
            }
        }
    }

    // Adds the gradients of the threads whose turn it is to the sum, and resets them. The gradient of W2 is first
    // stored in y.
    KJKO_DEVICE void flush(int thread, int turn, State &state, double *to) const {
        const int c = thread % H, quarter = thread / H, inputs = call.network.inputs;
        const double shift = shift_of(call.unit);
        Outer::leave(thread, turn, shared.y, shared.y, state.w2);
        if (quarter != turn) return;
        to[b2() + c] += rounded(state.b2, shift);
        state.b2 = 0;
        KJKO_UNROLLED for (int j = 0; j < INPUTS_EACH; ++j) {
            const int i = quarter + 4 * j;
            if (i <= inputs) to[i < inputs ? c * inputs + i : b1() + c] += rounded(state.w1[j], shift);
            state.w1[j] = 0;
        }
    }
};

}  // namespace kjko::KJKO_LEVEL
