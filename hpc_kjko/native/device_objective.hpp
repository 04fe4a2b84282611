// The fused objective on a GPU: what objective.cpp does on the CPU, with the same arguments and the same mathematics
// (its two ways of the tangents, too), in the phases of device.hpp.
//
// A block of 4 H threads takes TILE particles at a time through the network: 128 columns (96 for two tangents), values
// first and then each tangent, as rows [feature][column] in shared memory. Products are tiles in registers, 8 columns
// by 4 features a thread. The gradients of weights stay in registers over a chunk of particles, then are rounded to units
// and added in double precision to one of some sums: the bits do not depend on how whole chunks are dealt.
#pragma once

#include "device.hpp"
#include "objective.hpp"
#include "particle.hpp"
#include "rational.hpp"

namespace kjko::KJKO_LEVEL {

struct Tanh {
    static KJKO_DEVICE float value(float a) {
        a = a > TANH_END ? TANH_END : a;  // a NaN stays one
        a = a < -TANH_END ? -TANH_END : a;
        float numerator, denominator;
        rational_tanh(a, numerator, denominator);
        return numerator / denominator;
    }
    static KJKO_DEVICE float slope(float s) { return 1.0f - s * s; }
    static constexpr bool curved = true;
};

struct LeakyRelu {
    static KJKO_DEVICE float value(float a) { return a > 0.0f ? a : 0.01f * a; }
    static KJKO_DEVICE float slope(float s) { return s > 0.0f ? 1.0f : 0.01f; }
    static constexpr bool curved = false;
};

// Where the parts of a sum lie, in numbers from its beginning. Columns of a weight matrix lie in rows for w1 (its last
// row in use is b1) and as they are for w2; seed is what reaches W1v through the tangents. hpc_kjko/native/cuda.py reads
// it.
template <int H>
struct DeviceLayout {
    static constexpr int w1 = 0, w2 = w1 + MOST_INPUTS * H, b2 = w2 + H * H, w3 = b2 + H, seed = w3 + 3 * H,
                         skip = seed + 3 * H, loss = skip + 3 * MOST_INPUTS, size = loss + 4 * H;
};

// DV velocity dimensions; CLOSED: by the closed form of the divergence, else by the Jacobian.
template <int H, class Activation, int DV, bool CLOSED>
struct DeviceObjective {
    static constexpr int THREADS = 4 * H, TANGENTS = CLOSED ? 1 : DV, TILE = TANGENTS == 1 ? 64 : 32;
    static constexpr int COLUMNS = (1 + TANGENTS) * TILE;
    static constexpr int STRIDE = COLUMNS + 4;  // four columns of eight features in a row lie in different banks
    static constexpr int QUARTER = TILE / 4;    // of the particles: what is elementwise a thread does for one feature
    // The gradient of W2 is dealt in tiles of TALL × 4, to PARTS threads each, which have their part of the columns.
    static constexpr int TALL = H == 48 ? 6 : 8, WIDE = H / 4, PARTS = 16 * TALL / H;
    static constexpr int TURNS = CLOSED ? PARTS / 2 : PARTS;  // in which they are added
    using At = DeviceLayout<H>;

    struct Shared {
        alignas(16) float w1[MOST_INPUTS][H];  // transposed, b1 in the row after the inputs
        alignas(16) float w2[H][H], w2_t[H][H];
        alignas(16) float m[CLOSED ? H : 1][H], m_t[CLOSED ? H : 1][H];
        alignas(16) float b2[H], w3[DV][H];
        alignas(16) float skip[DV][MOST_INPUTS];  // b3 after the inputs
        alignas(16) float input[MOST_INPUTS][TILE];
        alignas(16) float v[DV][TILE], share[TILE], known[TILE];
        alignas(16) float out[DV][COLUMNS];  // the output layer of both: u, and the Jacobian or the divergence
        alignas(16) float gradient_u[DV][TILE], gradient_j[CLOSED ? 1 : DV * DV][TILE];
        alignas(16) float x[H][STRIDE];  // first hidden layer and its tangents
        alignas(16) float y[H][STRIDE];  // second hidden layer and p; then the gradients of y, then of x
    };

    struct State {
        double loss;
        float product[8][4];  // of the thread's tile, until all have read what it will be written over
        float w1[4], w2[TALL][4], b2, w3[DV], seed[TANGENTS], skip;  // gradients, summed so far
    };

    const ObjectiveCall &call;
    Shared &shared;

    // Adds the chunks that are dealt to a sum.
    template <class Threads>
    KJKO_DEVICE void add_chunks(Threads &team, long long sum, long long sums) const {
        const long long chunks = (call.count + call.together - 1) / call.together;
        double *to = call.sums + sum * At::size;
        team([&](int thread, State &state) { begin(thread, state, to); });
        if (CLOSED) team([&](int thread, State &) { couple(thread); });
        for (long long chunk = chunks * sum / sums; chunk < chunks * (sum + 1) / sums; ++chunk) {
            const long long first = chunk * call.together, rest = call.count - first;
            const int count = rest < call.together ? static_cast<int>(rest) : call.together;
            for (int row = 0; row < count; row += TILE) add_tile(team, first + row, count - row);
            team([&](int thread, State &state) {
                add(to[At::loss + thread], state.loss);
                state.loss = 0;
            });
            if (!call.gradient) continue;
            for (int turn = 0; turn < (TURNS > 4 ? TURNS : 4); ++turn)
                team([&](int thread, State &state) { flush(thread, turn, state, to); });
            team([&](int thread, State &) { flush_tables(thread, to); });
        }
    }

private:
    template <class Threads>
    KJKO_DEVICE void add_tile(Threads &team, long long first, int count) const {
        team([&](int thread, State &) { take(thread, first, count < TILE ? count : TILE); });
        team([&](int thread, State &) { first_layer(thread); });
        team([&](int thread, State &state) {
            multiply(thread, shared.x, shared.w2_t, shared.m_t, state);
            second_layer(thread, state);
        });
        team([&](int thread, State &) { output_layer(thread); });
        team([&](int thread, State &state) { evaluate(thread, state); });
        if (!call.gradient) return;
        team([&](int thread, State &state) {
            skip_gradient(thread, state);
            back_through_second_layer(thread, state);
        });
        team([&](int thread, State &state) {
            w2_gradient(thread, state);
            multiply(thread, shared.y, shared.w2, shared.m, state);
        });
        team([&](int thread, State &state) { keep_product(thread, state); });
        team([&](int thread, State &state) { back_through_first_layer(thread, state); });
        team([&](int thread, State &state) { w1_gradient(thread, state); });
    }

    // The weights, and zeros where sums will be. A tanh of infinity is 1 like any other: the loss shows a network that
    // is not finite by 0 · weight.
    KJKO_DEVICE void begin(int thread, State &state, double *sum) const {
        const Network &n = call.network;
        const int inputs = n.inputs, first = inputs - n.skipped;
        state = State{};
        float nothing = 0;
        KJKO_ROLLED for (int i = thread; i < At::loss; i += THREADS) sum[i] = 0;
        KJKO_ROLLED for (int i = thread; i < MOST_INPUTS * H; i += THREADS) {
            const int k = i / H, c = i % H;
            const float w = k < inputs ? n.w1[c * inputs + k] : k == inputs ? n.b1[c] : 0;
            shared.w1[k][c] = w;
            nothing += 0 * w;
        }
        KJKO_ROLLED for (int i = thread; i < H * H; i += THREADS) {
            const float w = n.w2[i];
            shared.w2[i / H][i % H] = shared.w2_t[i % H][i / H] = w;
            nothing += 0 * w;
        }
        KJKO_ROLLED for (int c = thread; c < H; c += THREADS) {
            shared.b2[c] = n.b2[c];
            nothing += 0 * n.b2[c];
            for (int k = 0; k < DV; ++k) {
                shared.w3[k][c] = n.w3[k * H + c];
                nothing += 0 * n.w3[k * H + c];
            }
        }
        KJKO_ROLLED for (int i = thread; i < DV * MOST_INPUTS; i += THREADS) {
            const int k = i / MOST_INPUTS, l = i % MOST_INPUTS;
            const bool skipped = n.skip && l >= first && l < inputs;
            const float w = skipped ? n.skip[k * n.skipped + l - first] : l == inputs ? n.b3[k] : 0;
            shared.skip[k][l] = w;
            nothing += 0 * w;
        }
        KJKO_ROLLED for (int i = thread; i < MOST_INPUTS * TILE; i += THREADS)
            shared.input[i / TILE][i % TILE] = i / TILE == inputs;  // take() writes over the inputs alone
        sum[At::loss + thread] = nothing;
    }

    // A term of the double sums.
    KJKO_DEVICE void add(double &sum, double term) const {
        const double shift = 0x1.8p52 * call.unit;
        sum += (term + shift) - shift;
    }

    KJKO_DEVICE int first_v() const { return call.network.inputs - DV; }

    // M = W2 ∘ (W1v W3)ᵀ.
    KJKO_DEVICE void couple(int thread) const {
        KJKO_ROLLED for (int index = thread; index < H * H; index += THREADS) {
            const int i = index / H, l = index % H;
            if constexpr (CLOSED) shared.m[i][l] = shared.m_t[l][i] = shared.w2[i][l] * through(i, l);
        }
    }

    // Columns beyond the last particle are where it is, and have no share.
    KJKO_DEVICE void take(int thread, long long first, int count) const {
        const int inputs = call.network.inputs;
        const float *z = call.z + first * inputs;
        KJKO_ROLLED for (int i = thread; i < inputs * TILE; i += THREADS) {
            const int p = i / inputs;
            shared.input[i % inputs][p] = z[(p < count ? p : count - 1) * inputs + i % inputs];
        }
        if (thread >= TILE) return;
        const int p = thread;
        const float *v = call.v + (first + (p < count ? p : count - 1)) * call.v_stride;
        for (int k = 0; k < DV; ++k) shared.v[k][p] = v[k];
        shared.share[p] = p < count ? call.share[first + p] : 0;
        shared.known[p] = p < count && call.known ? call.known[first + p] : 0;
    }

    KJKO_DEVICE void first_layer(int thread) const {
        const int c = thread % H, from = thread / H * QUARTER, inputs = call.network.inputs;
        float a[QUARTER], seed[TANGENTS];
        KJKO_UNROLLED for (int p = 0; p < QUARTER; ++p) a[p] = shared.w1[inputs][c];
        KJKO_ROLLED for (int i = 0; i < inputs; ++i) {
            const float w = shared.w1[i][c];
            KJKO_UNROLLED for (int p = 0; p < QUARTER; p += 4) {
                const Four z = load_four(&shared.input[i][from + p]);
                KJKO_UNROLLED for (int e = 0; e < 4; ++e) a[p + e] += w * z.at[e];
            }
        }
        KJKO_UNROLLED for (int j = 0; j < TANGENTS; ++j) seed[j] = CLOSED ? 1.0f : shared.w1[first_v() + j][c];
        KJKO_UNROLLED for (int p = 0; p < QUARTER; p += 4) {
            Four h, slope;
            KJKO_UNROLLED for (int e = 0; e < 4; ++e) {
                h.at[e] = Activation::value(a[p + e]);
                slope.at[e] = Activation::slope(h.at[e]);
            }
            store_four(&shared.x[c][from + p], h);
            KJKO_UNROLLED for (int j = 0; j < TANGENTS; ++j) {
                Four tangent;
                KJKO_UNROLLED for (int e = 0; e < 4; ++e) tangent.at[e] = seed[j] * slope.at[e];
                store_four(&shared.x[c][(1 + j) * TILE + from + p], tangent);
            }
        }
    }

    // The thread's tile of a product: 8 columns from here on, of 4 features.
    static KJKO_DEVICE int column(int thread) { return thread / WIDE * 8; }
    static KJKO_DEVICE int feature(int thread) { return thread % WIDE * 4; }

    // The product of columns with w, and of the closed form's tangents with m.
    template <int ROWS>
    KJKO_DEVICE void multiply(int thread, const float (&columns)[H][STRIDE], const float (&w)[H][H],
                              const float (&m)[ROWS][H], State &state) const {
        const int at = column(thread);
        if (at >= COLUMNS) return;
        const float *from = &columns[0][at], *factors = CLOSED && at >= TILE ? &m[0][feature(thread)]
                                                                             : &w[0][feature(thread)];
        KJKO_UNROLLED for (int i = 0; i < 8; ++i)
            KJKO_UNROLLED for (int j = 0; j < 4; ++j) state.product[i][j] = 0;
        KJKO_UNROLLED_BY_4 for (int k = 0; k < H; ++k) {
            const Four low = load_four(from + k * STRIDE), high = load_four(from + k * STRIDE + 4);
            const Four factor = load_four(factors + k * H);
            KJKO_UNROLLED for (int j = 0; j < 4; ++j)
                KJKO_UNROLLED for (int i = 0; i < 4; ++i) {
                    state.product[i][j] += low.at[i] * factor.at[j];
                    state.product[4 + i][j] += high.at[i] * factor.at[j];
                }
        }
    }

    // Of the values; the tangents stay p until they are needed.
    KJKO_DEVICE void second_layer(int thread, State &state) const {
        if (column(thread) < TILE)
            KJKO_UNROLLED for (int j = 0; j < 4; ++j) {
                const float b2 = shared.b2[feature(thread) + j];
                KJKO_UNROLLED for (int i = 0; i < 8; ++i)
                    state.product[i][j] = Activation::value(state.product[i][j] + b2);
            }
        keep_product(thread, state);
    }

    KJKO_DEVICE void keep_product(int thread, const State &state) const {
        if (column(thread) >= COLUMNS) return;
        KJKO_UNROLLED for (int j = 0; j < 4; ++j)
            KJKO_UNROLLED for (int half = 0; half < 8; half += 4) {
                Four part;
                KJKO_UNROLLED for (int i = 0; i < 4; ++i) part.at[i] = state.product[half + i][j];
                store_four(&shared.y[feature(thread) + j][column(thread) + half], part);
            }
    }

    KJKO_DEVICE void output_layer(int thread) const {
        for (int at = thread; at < COLUMNS; at += THREADS) {
            const bool is_tangent = at >= TILE;
            float sum[DV] = {};
            KJKO_UNROLLED_BY_4 for (int c = 0; c < H; ++c) {
                float t = shared.y[c][at];
                if (is_tangent) t *= Activation::slope(shared.y[c][at % TILE]);
                KJKO_UNROLLED for (int k = 0; k < DV; ++k)
                    sum[k] += CLOSED && is_tangent ? (k == 0 ? t : 0) : shared.w3[k][c] * t;
            }
            KJKO_UNROLLED for (int k = 0; k < DV; ++k) shared.out[k][at] = sum[k];
        }
    }

    // A particle's part of J, and its gradient in u and in J's entries.
    KJKO_DEVICE void evaluate(int thread, State &state) const {
        if (thread >= TILE) return;
        const int p = thread;
        const float h = call.step, mass = shared.share[p], taken = shared.known[p];
        float u[DV], energy = 0, along = 0;
        KJKO_UNROLLED for (int k = 0; k < DV; ++k) {
            float skipped = 0;
            KJKO_ROLLED for (int i = 0; i <= call.network.inputs; ++i)
                skipped += shared.skip[k][i] * shared.input[i][p];
            u[k] = shared.out[k][p] + skipped;
            const float vk = shared.v[k][p];
            energy += u[k] * u[k];
            along += (vk + 0.5f * h * u[k]) * u[k];
            shared.gradient_u[k][p] = mass * h * ((1 / call.collision_strength + h) * u[k] + vk);
        }
        float divergence = 0, log_det;
        const float weight = -call.temperature * h * mass;
        if constexpr (CLOSED) {
            divergence = shared.out[0][TILE + p];
            KJKO_UNROLLED for (int k = 0; k < DV; ++k) divergence += shared.skip[k][first_v() + k];
            log_det = h * divergence;
            shared.gradient_j[0][p] = weight * (1.0f - taken);
        } else {
            float jacobian[DV][DV], cofactor[DV][DV] = {}, slope = 1;
            KJKO_UNROLLED for (int k = 0; k < DV; ++k) {
                KJKO_UNROLLED for (int j = 0; j < DV; ++j)
                    jacobian[k][j] = shared.skip[k][first_v() + j] + shared.out[k][(1 + j) * TILE + p];
                divergence += jacobian[k][k];
            }
            if (call.exact) {
                log_det = continued_log(determinant_beyond_one(jacobian, h), slope);
                cofactors(jacobian, h, cofactor);
            } else {
                log_det = h * divergence;
                KJKO_UNROLLED for (int k = 0; k < DV; ++k) cofactor[k][k] = 1;
            }
            KJKO_UNROLLED for (int k = 0; k < DV; ++k)
                KJKO_UNROLLED for (int j = 0; j < DV; ++j)
                    shared.gradient_j[k * DV + j][p] = weight * (slope * cofactor[k][j] - (k == j ? taken : 0));
        }
        log_det -= h * taken * divergence;
        const float running = h / (2 * call.collision_strength) * energy;
        state.loss += mass * (running + h * along - call.temperature * log_det);
    }

    // Of the skip and b3: a thread for each of their numbers.
    KJKO_DEVICE void skip_gradient(int thread, State &state) const {
        const int k = thread / MOST_INPUTS, i = thread % MOST_INPUTS, j = i - first_v();
        if (k >= DV || i > call.network.inputs) return;
        float sum = 0;
        KJKO_UNROLLED_BY_4 for (int p = 0; p < TILE; ++p) sum += shared.gradient_u[k][p] * shared.input[i][p];
        if (j >= 0 && j < DV && (!CLOSED || j == k))
            KJKO_UNROLLED_BY_4 for (int p = 0; p < TILE; ++p)
                sum += shared.gradient_j[CLOSED ? 0 : k * DV + j][p];
        state.skip += sum;
    }

    KJKO_DEVICE void back_through_second_layer(int thread, State &state) const {
        const int c = thread % H, from = thread / H * QUARTER;
        float w3[DV];
        KJKO_UNROLLED for (int k = 0; k < DV; ++k) w3[k] = shared.w3[k][c];
        KJKO_ROLLED for (int p = from; p < from + QUARTER; p += 4) {
            const Four h2 = load_four(&shared.y[c][p]);
            Four gradient{}, bend{};
            KJKO_UNROLLED for (int k = 0; k < DV; ++k) {
                const Four to_u = load_four(&shared.gradient_u[k][p]);
                KJKO_UNROLLED for (int e = 0; e < 4; ++e) {
                    gradient.at[e] += to_u.at[e] * w3[k];
                    state.w3[k] += to_u.at[e] * h2.at[e];
                }
            }
            KJKO_ROLLED for (int j = 0; j < TANGENTS; ++j) {
                float *tangent = &shared.y[c][(1 + j) * TILE + p];
                Four t = load_four(tangent), through{};
                KJKO_UNROLLED for (int k = 0; k < (CLOSED ? 1 : DV); ++k) {
                    const Four to_j = load_four(&shared.gradient_j[k * DV + j][p]);
                    KJKO_UNROLLED for (int e = 0; e < 4; ++e) {
                        through.at[e] += CLOSED ? to_j.at[e] : to_j.at[e] * w3[k];
                        if (!CLOSED) state.w3[k] += to_j.at[e] * Activation::slope(h2.at[e]) * t.at[e];
                    }
                }
                KJKO_UNROLLED for (int e = 0; e < 4; ++e) {
                    bend.at[e] += through.at[e] * t.at[e];
                    t.at[e] = through.at[e] * Activation::slope(h2.at[e]);
                }
                store_four(tangent, t);
            }
            KJKO_UNROLLED for (int e = 0; e < 4; ++e) {
                if (Activation::curved) gradient.at[e] -= 2.0f * h2.at[e] * bend.at[e];
                gradient.at[e] *= Activation::slope(h2.at[e]);
                state.b2 += gradient.at[e];
            }
            store_four(&shared.y[c][p], gradient);
        }
    }

    // Of W2, and of M by the threads whose columns are the closed form's tangents.
    KJKO_DEVICE void w2_gradient(int thread, State &state) const {
        const int tile = thread % (THREADS / PARTS), part = thread / (THREADS / PARTS);
        const float *y = shared.y[tile / WIDE], *x = shared.x[tile % WIDE];
        KJKO_ROLLED for (int at = part * (COLUMNS / PARTS); at < (part + 1) * (COLUMNS / PARTS); at += 4) {
            Four column[4];
            KJKO_UNROLLED for (int j = 0; j < 4; ++j) column[j] = load_four(x + j * WIDE * STRIDE + at);
            KJKO_UNROLLED for (int i = 0; i < TALL; ++i) {
                const Four row = load_four(y + i * (H / TALL) * STRIDE + at);
                KJKO_UNROLLED for (int j = 0; j < 4; ++j)
                    KJKO_UNROLLED for (int e = 0; e < 4; ++e) state.w2[i][j] += row.at[e] * column[j].at[e];
            }
        }
    }

    KJKO_DEVICE void back_through_first_layer(int thread, State &state) const {
        const int c = thread % H, from = thread / H * QUARTER;
        KJKO_ROLLED for (int p = from; p < from + QUARTER; p += 4) {
            const Four h1 = load_four(&shared.x[c][p]);
            Four gradient = load_four(&shared.y[c][p]), bend{};
            KJKO_UNROLLED for (int j = 0; j < TANGENTS; ++j) {
                const Four tangent = load_four(&shared.y[c][(1 + j) * TILE + p]);
                const float seed = CLOSED ? 1.0f : shared.w1[first_v() + j][c];
                KJKO_UNROLLED for (int e = 0; e < 4; ++e) {
                    bend.at[e] += seed * tangent.at[e];
                    if (!CLOSED) state.seed[j] += tangent.at[e] * Activation::slope(h1.at[e]);
                }
            }
            KJKO_UNROLLED for (int e = 0; e < 4; ++e) {
                if (Activation::curved) gradient.at[e] -= 2.0f * h1.at[e] * bend.at[e];
                gradient.at[e] *= Activation::slope(h1.at[e]);
            }
            store_four(&shared.y[c][p], gradient);
        }
    }

    // Of W1 and b1: a thread has every fourth input of one feature.
    KJKO_DEVICE void w1_gradient(int thread, State &state) const {
        const int c = thread % H;
        KJKO_UNROLLED for (int j = 0; j < 4; ++j) {
            const int i = thread / H + 4 * j;
            if (i > call.network.inputs) return;
            KJKO_ROLLED for (int p = 0; p < TILE; p += 4) {
                const Four gradient = load_four(&shared.y[c][p]), z = load_four(&shared.input[i][p]);
                KJKO_UNROLLED for (int e = 0; e < 4; ++e) state.w1[j] += gradient.at[e] * z.at[e];
            }
        }
    }

    // Adds the gradients of those threads whose turn it is to the sum, and forgets them. Those of W2 (and of M) go to
    // the place of y (and x) first: all double sums of a thread at once would need too many registers.
    KJKO_DEVICE void flush(int thread, int turn, State &state, double *sum) const {
        const int c = thread % H, quarter = thread / H;
        const int tile = thread % (THREADS / PARTS), part = thread / (THREADS / PARTS);
        if (part % TURNS == turn) {
            float(&table)[H][STRIDE] = part < TURNS ? shared.y : shared.x;
            KJKO_UNROLLED for (int i = 0; i < TALL; ++i)
                KJKO_UNROLLED for (int j = 0; j < 4; ++j) {
                    float &place = table[tile / WIDE + i * (H / TALL)][tile % WIDE + j * WIDE];
                    place = turn == 0 ? state.w2[i][j] : place + state.w2[i][j];
                    state.w2[i][j] = 0;
                }
        }
        if (quarter != turn) return;
        add(sum[At::b2 + c], state.b2);
        state.b2 = 0;
        KJKO_UNROLLED for (int k = 0; k < DV; ++k) {
            add(sum[At::w3 + k * H + c], state.w3[k]);
            state.w3[k] = 0;
        }
        if constexpr (!CLOSED) {
            KJKO_UNROLLED for (int j = 0; j < DV; ++j) {
                add(sum[At::seed + j * H + c], state.seed[j]);
                state.seed[j] = 0;
            }
        }
        KJKO_UNROLLED for (int j = 0; j < 4; ++j) {
            add(sum[At::w1 + (quarter + 4 * j) * H + c], state.w1[j]);
            state.w1[j] = 0;
        }
        if (thread < DV * MOST_INPUTS) {
            add(sum[At::skip + thread], state.skip);
            state.skip = 0;
        }
    }

    // The gradient of W2, and what reaches W1v, W2 and W3 through M = W2 ∘ (W1v W3)ᵀ.
    KJKO_DEVICE void flush_tables(int thread, double *sum) const {
        KJKO_ROLLED for (int index = thread; index < H * H; index += THREADS) {
            const int i = index / H, l = index % H;
            double gradient = shared.y[i][l];
            if constexpr (CLOSED) gradient += static_cast<double>(shared.x[i][l]) * through(i, l);
            add(sum[At::w2 + index], gradient);
        }
        if constexpr (CLOSED) {
            KJKO_ROLLED for (int index = thread; index < DV * H; index += THREADS) {
                const int k = index / H, c = index % H;
                double to_w1 = 0, to_w3 = 0;
                KJKO_ROLLED for (int other = 0; other < H; ++other) {
                    to_w1 += static_cast<double>(shared.x[other][c]) * shared.w2[other][c] * shared.w3[k][other];
                    to_w3 += static_cast<double>(shared.x[c][other]) * shared.w2[c][other] *
                             shared.w1[first_v() + k][other];
                }
                add(sum[At::seed + index], to_w1);
                add(sum[At::w3 + index], to_w3);
            }
        }
    }

    // (W1v W3)ᵀ.
    KJKO_DEVICE float through(int i, int l) const {
        float sum = 0;
        for (int k = 0; k < DV; ++k) sum += shared.w1[first_v() + k][l] * shared.w3[k][i];
        return sum;
    }
};

}  // namespace kjko::KJKO_LEVEL
