// The fused objective on a GPU, as cpu/objective.cpp computes it on the CPU, with the same arguments and the same
// mathematics (including its two methods for the tangents).
//
// The gradients of weights stay in registers over a piece of particles. Then they are rounded to units and added, in
// double precision, to one of several sums. So the bits do not depend on how whole pieces are divided among the sums.
#pragma once

#include "cuda/network.hpp"
#include "cuda/shape.hpp"
#include "math/functional.hpp"
#include "math/objective.hpp"
#include "math/parameters.hpp"
#include "math/rounding.hpp"

namespace kjko::KJKO_LEVEL {

template <int H, class Activation, int DV, bool CLOSED>
struct DeviceObjective {
    using Net = DeviceNetwork<float, H, Activation, DV, CLOSED>;
    static constexpr int THREADS = Net::THREADS, TANGENTS = Net::TANGENTS, TILE = Net::TILE, COLUMNS = Net::COLUMNS;
    static constexpr int STRIDE = Net::STRIDE, QUARTER = Net::QUARTER, WIDE = Net::WIDE;
    using Outer = OuterProducts<float, H, COLUMNS, STRIDE, CLOSED ? 2 : 1, TENSOR>;  // the gradients of W2 and M
    static constexpr int TURNS = Outer::TURNS;

    // The second layer and p are replaced by the gradients with respect to y, then to x.
    struct Shared : Net::Shared {
        alignas(16) float w2[H][Net::ACROSS], m[CLOSED ? H : 1][Net::ACROSS];  // columns at their place()
        alignas(16) float v[DV][TILE], share[TILE], known[TILE];
        alignas(16) float gradient_u[DV][TILE], gradient_j[CLOSED ? 1 : DV * DV][TILE];
    };

    // A sum: the gradient with respect to all parameters, then the loss of each thread.
    static constexpr Shape shape(int resident_threads) {
        return {THREADS, Net::resident(resident_threads), sizeof(Shared), TILE, THREADS, 0, 1, 1};
    }

    struct State {
        double loss;
        typename Net::Product product;  // until all threads have read the data that it overwrites
        typename Outer::Sums w2;
        float w1[4], b2, w3[DV], seed[TANGENTS], skip;  // gradients, summed so far
    };

    const ObjectiveCall &call;
    Shared &shared;

    // Adds the pieces that are dealt to a sum.
    template <class Threads>
    KJKO_DEVICE void add_pieces(Threads &team, long long sum, long long sums) const {
        const long long pieces = (call.count + call.settings.together - 1) / call.settings.together;
        const int parameters = places_of(call.network).count;
        double *to = call.sums + sum * (parameters + THREADS), *losses = to + parameters;
        team([&](int thread, State &state) { begin(thread, state, to); });
        if (CLOSED) team([&](int thread, State &) { couple(thread); });
        for (long long piece = pieces * sum / sums; piece < pieces * (sum + 1) / sums; ++piece) {
            const long long first = piece * call.settings.together, rest = call.count - first;
            const int count = rest < call.settings.together ? static_cast<int>(rest) : call.settings.together;
            for (int row = 0; row < count; row += TILE) add_tile(team, first + row, count - row);
            team([&](int thread, State &state) {
                add(losses[thread], state.loss);
                state.loss = 0;
            });
            if (!call.gradient) continue;
            for (int turn = 0; turn < (TURNS > 4 ? TURNS : 4); ++turn)
                team([&](int thread, State &state) { flush(thread, turn, state, to); });
            team([&](int thread, State &) { flush_tables(thread, to); });
        }
    }

private:
    KJKO_DEVICE Net net() const { return {call.network, shared}; }

    template <class Threads>
    KJKO_DEVICE void add_tile(Threads &team, long long first, int count) const {
        team([&](int thread, State &) { take(thread, first, count < TILE ? count : TILE); });
        team([&](int thread, State &) { net().first_layer(thread); });
        team.warps([&](auto &warp) { net().second_layer(warp); });
        team([&](int thread, State &) { net().output_layer(thread); });
        team([&](int thread, State &state) { evaluate(thread, state); });
        if (!call.gradient) return;
        team([&](int thread, State &state) {
            skip_gradient(thread, state);
            back_through_second_layer(thread, state);
        });
        team.warps([&](auto &warp) {
            Outer::add(warp, shared.y, shared.x);
            Net::multiply(warp, shared.y, shared.w2, shared.m);
        });
        team([&](int thread, State &state) { net().keep(thread, state.product); });
        team([&](int thread, State &state) { back_through_first_layer(thread, state); });
        team([&](int thread, State &state) { w1_gradient(thread, state); });
    }

    // The weights, and zeros in place of the sums. The loss becomes NaN if the network is not finite.
    KJKO_DEVICE void begin(int thread, State &state, double *sum) const {
        state = State{};
        const int parameters = places_of(call.network).count;
        KJKO_ROLLED for (int i = thread; i < parameters; i += THREADS) sum[i] = 0;
        KJKO_ROLLED for (int i = thread; i < H * H; i += THREADS)
            shared.w2[i / H][Net::place(i % H)] = call.network.w2[i];
        sum[parameters + thread] = net().begin(thread);
    }

    // A term of the sums in double precision.
    KJKO_DEVICE void add(double &sum, double term) const {
        sum += rounded(term, shift_of(call.settings.unit));
    }

    KJKO_DEVICE int first_v() const { return call.network.inputs - DV; }
    KJKO_DEVICE float w2(int i, int l) const { return shared.w2[i][Net::place(l)]; }

    // M = W2 ∘ (W1v W3)ᵀ.
    KJKO_DEVICE void couple(int thread) const {
        KJKO_ROLLED for (int index = thread; index < H * H; index += THREADS) {
            const int i = index / H, l = index % H;
            if constexpr (CLOSED)
                shared.m[i][Net::place(l)] = shared.m_t[l][Net::place(i)] = w2(i, l) * through(i, l);
        }
    }

    KJKO_DEVICE void take(int thread, long long first, int count) const {
        net().take(thread, call.z, first, count);
        take_particles<DV, TILE>(call, shared, thread, first, count);
    }

    // The contribution of a particle to J, and its gradient with respect to u and to the entries of ∇v u.
    KJKO_DEVICE void evaluate(int thread, State &state) const {
        if (thread >= TILE) return;
        const int p = thread;
        const Settings &settings = call.settings;
        const float mass = shared.share[p], taken = shared.known[p];
        float u[DV], v[DV], to_u[DV], log_det;
        KJKO_UNROLLED for (int k = 0; k < DV; ++k) {
            u[k] = net().u(k, p);
            v[k] = shared.v[k][p];
        }
        const float kinetic = kinetic_term(settings, u, v, mass, to_u);
        KJKO_UNROLLED for (int k = 0; k < DV; ++k) shared.gradient_u[k][p] = to_u[k];
        if constexpr (CLOSED) {
            float divergence = shared.out[0][TILE + p];
            KJKO_UNROLLED for (int k = 0; k < DV; ++k) divergence += shared.skip[k][first_v() + k];
            log_det = linear_term(settings, divergence, mass, taken, shared.gradient_j[0][p]);
        } else {
            float jacobian[DV][DV], to_jacobian[DV][DV];
            net().jacobian(p, jacobian);
            log_det = log_det_term(settings, jacobian, mass, taken, to_jacobian);
            KJKO_UNROLLED for (int k = 0; k < DV; ++k)
                KJKO_UNROLLED for (int j = 0; j < DV; ++j) shared.gradient_j[k * DV + j][p] = to_jacobian[k][j];
        }
        state.loss += part_of(settings, mass, kinetic, log_det);
    }

    // The gradient of the skip and b3: one thread for each of their numbers.
    KJKO_DEVICE void skip_gradient(int thread, State &state) const {
        const int k = thread / INPUT_ROWS, i = thread % INPUT_ROWS, j = i - first_v();
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
            const Four<float> h2 = load_four(&shared.y[c][p]);
            Four<float> gradient{}, bend{};
            KJKO_UNROLLED for (int k = 0; k < DV; ++k) {
                const Four<float> to_u = load_four(&shared.gradient_u[k][p]);
                KJKO_UNROLLED for (int e = 0; e < 4; ++e) {
                    gradient.at[e] += to_u.at[e] * w3[k];
                    state.w3[k] += to_u.at[e] * h2.at[e];
                }
            }
            KJKO_ROLLED for (int j = 0; j < TANGENTS; ++j) {
                float *tangent = &shared.y[c][(1 + j) * TILE + p];
                Four<float> t = load_four(tangent), through{};
                KJKO_UNROLLED for (int k = 0; k < (CLOSED ? 1 : DV); ++k) {
                    const Four<float> to_j = load_four(&shared.gradient_j[k * DV + j][p]);
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
                gradient.at[e] = gradient_before<Activation>(h2.at[e], gradient.at[e], bend.at[e]);
                state.b2 += gradient.at[e];
            }
            store_four(&shared.y[c][p], gradient);
        }
    }

    KJKO_DEVICE void back_through_first_layer(int thread, State &state) const {
        const int c = thread % H, from = thread / H * QUARTER;
        KJKO_ROLLED for (int p = from; p < from + QUARTER; p += 4) {
            const Four<float> h1 = load_four(&shared.x[c][p]);
            Four<float> gradient = load_four(&shared.y[c][p]), bend{};
            KJKO_UNROLLED for (int j = 0; j < TANGENTS; ++j) {
                const Four<float> tangent = load_four(&shared.y[c][(1 + j) * TILE + p]);
                const float seed = CLOSED ? 1.0f : shared.w1[first_v() + j][c];
                KJKO_UNROLLED for (int e = 0; e < 4; ++e) {
                    bend.at[e] += seed * tangent.at[e];
                    if (!CLOSED) state.seed[j] += tangent.at[e] * Activation::slope(h1.at[e]);
                }
            }
            KJKO_UNROLLED for (int e = 0; e < 4; ++e)
                gradient.at[e] = gradient_before<Activation>(h1.at[e], gradient.at[e], bend.at[e]);
            store_four(&shared.y[c][p], gradient);
        }
    }

    // The gradient of W1 and b1: a thread has every fourth input of one feature.
    KJKO_DEVICE void w1_gradient(int thread, State &state) const {
        const int c = thread % H;
        KJKO_UNROLLED for (int j = 0; j < 4; ++j) {
            const int i = thread / H + 4 * j;
            if (i > call.network.inputs) return;
            KJKO_ROLLED for (int p = 0; p < TILE; p += 4) {
                const Four<float> gradient = load_four(&shared.y[c][p]), z = load_four(&shared.input[i][p]);
                KJKO_UNROLLED for (int e = 0; e < 4; ++e) state.w1[j] += gradient.at[e] * z.at[e];
            }
        }
    }

    // Adds the gradients of the threads whose turn it is to the sum, and resets them. Those of W2 (and of M) are first
    // stored in y (and x). Otherwise all double-precision sums of a thread would need too many registers at the same
    // time.
    KJKO_DEVICE void flush(int thread, int turn, State &state, double *sum) const {
        const int c = thread % H, quarter = thread / H;
        Outer::leave(thread, turn, shared.y, shared.x, state.w2);
        if (quarter != turn) return;
        const int inputs = call.network.inputs, skipped = call.network.skip ? call.network.skipped : 0;
        const ParameterPlaces at = places_of(call.network);
        add(sum[at.b2 + c], state.b2);
        state.b2 = 0;
        KJKO_UNROLLED for (int k = 0; k < DV; ++k) {
            add(sum[at.w3 + k * H + c], state.w3[k]);
            state.w3[k] = 0;
        }
        if constexpr (!CLOSED) {
            KJKO_UNROLLED for (int j = 0; j < DV; ++j) {
                add(sum[at.w1 + c * inputs + first_v() + j], state.seed[j]);
                state.seed[j] = 0;
            }
        }
        KJKO_UNROLLED for (int j = 0; j < 4; ++j) {
            const int i = quarter + 4 * j;
            if (i <= inputs) add(sum[i < inputs ? at.w1 + c * inputs + i : at.b1 + c], state.w1[j]);
            state.w1[j] = 0;
        }
        const int k = thread / INPUT_ROWS, l = thread % INPUT_ROWS - (inputs - skipped);
        if (k < DV && l >= 0 && l <= skipped)
            add(sum[l < skipped ? at.skip + k * skipped + l : at.b3 + k], state.skip);
        state.skip = 0;
    }

    // The gradient of W2, and the gradients that reach W1v, W2 and W3 through M = W2 ∘ (W1v W3)ᵀ.
    KJKO_DEVICE void flush_tables(int thread, double *sum) const {
        const ParameterPlaces at = places_of(call.network);
        KJKO_ROLLED for (int index = thread; index < H * H; index += THREADS) {
            const int i = index / H, l = index % H;
            double gradient = shared.y[i][l];
            if constexpr (CLOSED) gradient += static_cast<double>(shared.x[i][l]) * through(i, l);
            add(sum[at.w2 + index], gradient);
        }
        if constexpr (CLOSED) {
            KJKO_ROLLED for (int index = thread; index < DV * H; index += THREADS) {
                const int k = index / H, c = index % H;
                double to_w1 = 0, to_w3 = 0;
                KJKO_ROLLED for (int other = 0; other < H; ++other) {
                    to_w1 += static_cast<double>(shared.x[other][c]) * w2(other, c) * shared.w3[k][other];
                    to_w3 += static_cast<double>(shared.x[c][other]) * w2(c, other) *
                             shared.w1[first_v() + k][other];
                }
                add(sum[at.w1 + c * call.network.inputs + first_v() + k], to_w1);
                add(sum[at.w3 + index], to_w3);
            }
        }
    }

    // (W1v W3)ᵀ.
    KJKO_DEVICE float through(int i, int l) const {
        return coupling(&shared.w1[first_v()][l], &shared.w3[0][i], H, DV);
    }
};

}  // namespace kjko::KJKO_LEVEL
