// The fused objective. A cache block of particles goes through the network together, as rows [particle][width].
//
// Besides the values, the needed part of ∇v u goes through the network as tangents: t1 = s'(a1) ∘ seed, p = W t1, t2 =
// s'(a2) ∘ p, J = readout t2. There are two methods.
//   Jacobian: one tangent for each velocity dimension j, seed column j of W1v, W = W2, readout W3: J = ∇v u.
//   Closed form, for the linear log det: one tangent, seed 1, W = M = W2 ∘ (W1v W3)ᵀ, readout 1: J = ∇v·u.
// In one dimension both cost the same, and the Jacobian is used.
#include "cpu/kernels.hpp"
#include "cpu/simd.hpp"

#include "math/activation.hpp"
#include "math/functional.hpp"
#include "math/parameters.hpp"
#include "math/rounding.hpp"

namespace kjko::KJKO_LEVEL {

// Offsets of the parts of a sum. J and its gradient come first. complete() adds the parts from `trace` on to the
// gradient at the end of a piece.
template <int H>
struct Layout {
    // Columns of a weight matrix are rows here. A bias is the column of an input that is 1.
    static constexpr int w1 = 0, w2 = w1 + INPUT_ROWS * H, b2 = w2 + H * H, w3 = b2 + H, skip = w3 + 3 * H,
                         loss = skip + 4 * INPUT_ROWS, size = loss + 16;
    static constexpr int trace = size, seed = trace + 16, m = seed + 3 * H, whole = m + H * H;
};

// The network in the form that the kernel reads: aligned, and with transposes.
template <int H>
struct Weights {
    alignas(64) float w1_t[INPUT_ROWS][H];  // with b1 as the row of the last input
    alignas(64) float w2[H][H], w2_t[H][H];
    alignas(64) float m_t[H][H], bent_m[H][H];  // bent_m: M times Tanh::BEND
    alignas(64) float b2[H];
    alignas(64) float w3[3][H];
    alignas(64) float seed[3][H];
    alignas(64) float skip[3][INPUT_ROWS];  // with b3 as the row of the last input
    alignas(64) float ones[H];
    float skip_v[3][3];

    __attribute__((cold)) explicit Weights(const Network &n) {
        __builtin_memset(static_cast<void *>(this), 0, sizeof *this);
        const int inputs = n.inputs, dv = n.velocity_dims, first_v = inputs - dv, first = inputs - n.skipped;
        for (int i = 0; i < H; ++i) {
            for (int k = 0; k < inputs; ++k) w1_t[k][i] = n.w1[i * inputs + k];
            w1_t[inputs][i] = n.b1[i];
            b2[i] = n.b2[i];
            ones[i] = 1;
            for (int k = 0; k < dv; ++k) w3[k][i] = n.w3[k * H + i], seed[k][i] = n.w1[i * inputs + first_v + k];
        }
        for (int i = 0; i < H; ++i)
            for (int l = 0; l < H; ++l) {
                w2[i][l] = w2_t[l][i] = n.w2[i * H + l];
                m_t[l][i] = w2[i][l] * coupling(&seed[0][l], &w3[0][i], H, dv);
                bent_m[i][l] = Tanh::BEND * m_t[l][i];
            }
        for (int k = 0; k < dv; ++k) {
            for (int l = 0; n.skip && l < n.skipped; ++l) skip[k][first + l] = n.skip[k * n.skipped + l];
            skip[k][inputs] = n.b3[k];
            for (int l = 0; l < dv; ++l) skip_v[k][l] = skip[k][first_v + l];
        }
    }
};

// Rows (second hidden layer, inputs, 1, 0, ...) and the sums of their moments. Sums that are always wanted come first.
// Symmetric matrices are complete only on and above the diagonal.
template <int H>
struct MomentsLayout {
    static constexpr int W = H + INPUT_ROWS, counts = 0, pull = counts + 16, load = pull + 3 * W, gram = load + 4 * W,
                         outer = gram + W * W, size = outer + 6 * W * W;

    static int used(const ObjectiveCall &call, bool whole) {
        const int dv = call.network.velocity_dims;
        return !whole ? load : !call.settings.exact ? outer : outer + dv * (dv + 1) / 2 * W * W;
    }
};

// add_outer for a symmetric c [WIDTH, WIDTH], which is complete only on and above the diagonal.
template <int WIDTH>
__attribute__((noinline)) static void add_symmetric(const float *a, int down, int across, int rows, const float *b,
                                                    float *c) {
    constexpr int TALL = LANES == 16 ? 16 : 8;
    for (int column = 0; column < WIDTH; column += LANES)
        for (int i = 0; i < column + LANES; i += TALL)
            add_outer_tile<WIDTH, TALL, 1>(a + i * across, down, across, rows, b + column, c + i * WIDTH + column);
}

// DV velocity dimensions. CLOSED: with the closed form of the divergence, else with the Jacobian.
template <int H, class Activation, int DV, bool CLOSED>
struct Pass {
    static constexpr int TANGENTS = CLOSED ? 1 : DV;
    static constexpr int BLOCK = TANGENTS == 1 ? 32 : 16;
    static constexpr int ROWS = (1 + TANGENTS) * BLOCK;
    using At = Layout<H>;

    const ObjectiveCall &call;
    const Weights<H> &weights;

    int taken_rows = 0;
    alignas(64) int is_input[INPUT_ROWS];
    alignas(64) float one[INPUT_ROWS];  // the entries after the inputs: 1, 0, ...
    alignas(64) float input[BLOCK][INPUT_ROWS];
    alignas(64) float x[1 + TANGENTS][BLOCK][H];  // first hidden layer and its tangents
    alignas(64) float y[1 + TANGENTS][BLOCK][H];  // second hidden layer and p; later the gradients with respect to x
    // s' of the second layer and t2; later the gradients with respect to y
    alignas(64) float g[1 + TANGENTS][BLOCK][H];
    alignas(64) float v[DV][BLOCK], share[BLOCK], known[BLOCK];
    alignas(64) float gradient_u[4][BLOCK];
    alignas(64) float gradient_j[CLOSED ? 1 : DV * DV][BLOCK];
    alignas(64) float bent_j[BLOCK];  // for the closed form: Activation::BEND times its gradient

    Pass(const ObjectiveCall &c, const Weights<H> &w) : call(c), weights(w), known{}, gradient_u{} {
        for (int k = 0; k < INPUT_ROWS; ++k) is_input[k] = k < c.network.inputs, one[k] = k == c.network.inputs;
    }

    // Adds the contribution of a piece to `sum`.
    __attribute__((noinline)) void add_piece(long long first, long long count, double *sum) {
        alignas(64) float part[At::whole];
        __builtin_memset(part, 0, (CLOSED ? At::whole : At::m) * sizeof(float));
        double loss = 0;
        for (long long row = first; row < first + count; row += BLOCK) {
            take(row, first + count - row);
            forward();
            loss += evaluate(part);
            if (call.gradient) backward(part);
        }
        sum[At::loss] += rounded(loss, shift_of(call.settings.unit));
        if (!call.gradient) return;
        complete(part);
        add_rounded(part, At::loss, sum);
    }

    // Adds the moments of a piece to `sum`.
    __attribute__((noinline)) void add_moments(long long first, long long count, bool whole, double *sum) {
        using Parts = MomentsLayout<H>;
        constexpr int W = Parts::W;
        alignas(64) float part[Parts::size];
        // Products of several cache blocks are added together. The sums do not fit into the first-level cache, so each
        // pass over them is expensive.
        constexpr int TOGETHER = 64;
        alignas(64) float basis[TOGETHER][W], q[DV][TOGETHER][W], weighted[TOGETHER][W], factors[4][TOGETHER];
        float shares[TOGETHER];
        double log_det = 0, turned = 0;
        const int used = Parts::used(call, whole), unit = H + call.network.inputs - DV;
        __builtin_memset(part, 0, used * sizeof(float));
        __builtin_memset(factors, 0, sizeof factors);
        const auto weigh = [&](const float(&rows)[TOGETHER][W], int filled) __attribute__((always_inline)) {
            for (int p = 0; p < filled; ++p)
                for (int c = 0; c < W; c += LANES) store(&weighted[p][c], shares[p] * load(&rows[p][c]));
        };
        for (long long row = first; row < first + count; row += TOGETHER) {
            int filled = 0;
            for (; filled < TOGETHER && row + filled < first + count; filled += BLOCK) {
                take(row + filled, first + count - row - filled);
                forward();
                invert(log_det, turned);
                for (int p = 0; p < BLOCK; ++p)
                    for (int k = 0; k < DV; ++k) {
                        float *const to = q[k][filled + p];
                        for (int c = 0; c < H; c += LANES) {
                            Floats sum_j = gradient_j[k][p] * load(&g[1][p][c]);
                            for (int j = 1; j < DV; ++j) sum_j += gradient_j[j * DV + k][p] * load(&g[1 + j][p][c]);
                            store(to + c, sum_j);
                        }
                        for (int c = H; c < W; c += LANES) store(to + c, Floats{});
                        for (int j = 0; j < DV; ++j) to[unit + j] = gradient_j[j * DV + k][p];
                    }
                for (int k = 0; k < DV; ++k)
                    for (int c = 0; c < W; c += LANES) {
                        Floats total_q{};
                        for (int p = 0; p < BLOCK; ++p) total_q += share[p] * load(&q[k][filled + p][c]);
                        add(part + Parts::pull + k * W + c, total_q);
                    }
                if (!whole) continue;
                for (int p = 0; p < BLOCK; ++p) {
                    for (int c = 0; c < H; c += LANES) store(&basis[filled + p][c], load(&y[0][p][c]));
                    for (int c = 0; c < INPUT_ROWS; c += LANES) store(&basis[filled + p][H + c], load(&input[p][c]));
                    shares[filled + p] = share[p];
                    for (int k = 0; k < DV; ++k) factors[k][filled + p] = share[p] * v[k][p];
                }
                for (int k = 0; call.known && k < DV; ++k)
                    for (int p = 0; p < BLOCK; ++p) {
                        const float factor = known_weight(call.settings, share[p], known[p]);
                        for (int c = 0; c < H; c += LANES)
                            add(part + Parts::load + k * W + c, factor * load(&g[1 + k][p][c]));
                        part[Parts::load + k * W + unit + k] += factor;
                    }
            }
            if (!whole) continue;
            weigh(basis, filled);
            add_symmetric<W>(weighted[0], W, 1, filled, basis[0], part + Parts::gram);
            add_outer<W>(factors[0], 1, TOGETHER, 4, filled, basis[0], part + Parts::load);
            if (!call.settings.exact) continue;
            float *to = part + Parts::outer;
            for (int k = 0; k < DV; ++k) {
                weigh(q[k], filled);
                add_symmetric<W>(weighted[0], W, 1, filled, q[k][0], to);
                to += W * W;
                for (int l = k + 1; l < DV; ++l, to += W * W) add_outer<W>(weighted[0], W, 1, W, filled, q[l][0], to);
            }
        }
        const Fine fine = rounded_finely(log_det, call.settings.unit, call.settings.finer);
        sum[Parts::counts] += fine.coarse;
        sum[Parts::counts + 1] += fine.rest;
        sum[Parts::counts + 2] += turned;
        add_rounded(part + Parts::pull, used - Parts::pull, sum + Parts::pull);
    }

private:
    void add_rounded(const float *numbers, int count, double *sum) const {
        const double shift = shift_of(call.settings.unit);
        for (int i = 0; i < count; ++i) sum[i] += rounded(numbers[i], shift);
    }

    // The gradients that reach the layers through the seeds of the tangents and, in the closed form, through M = W2 ∘
    // (W1v W3)ᵀ.
    __attribute__((noinline)) void complete(float *part) const {
        const int first_v = call.network.inputs - DV;
        float *const w1 = part + At::w1 + first_v * H;
        for (int k = 0; k < DV; ++k) part[At::skip + k * INPUT_ROWS + first_v + k] += part[At::trace + k];
        for (int i = 0; i < DV * H; i += LANES) add(w1 + i, load(part + At::seed + i));
        if (!CLOSED) return;
        for (int c = 0; c < H; c += LANES) {
            Floats seed[DV], to_w1[DV] = {};
            for (int k = 0; k < DV; ++k) seed[k] = load(&weights.seed[k][c]);
            for (int i = 0; i < H; ++i) {
                float *const to_m = part + At::m + i * H + c;
                const Floats through = load(to_m) * load(&weights.w2[i][c]);
                Floats coupled{};
                for (int k = 0; k < DV; ++k) {
                    coupled += seed[k] * weights.w3[k][i];
                    to_w1[k] += through * weights.w3[k][i];
                }
                add(part + At::w2 + i * H + c, load(to_m) * coupled);
                store(to_m, through);
            }
            for (int k = 0; k < DV; ++k) add(w1 + k * H + c, to_w1[k]);
        }
        for (int k = 0; k < DV; ++k)
            for (int i = 0; i < H; i += LANES)
                add(part + At::w3 + k * H + i, dots<H>(weights.seed[k], part + At::m + i * H));
    }

    // B of every particle, into gradient_j[j * DV + k]. Adds their log det, and the number whose map reverses
    // orientation.
    void invert(double &sum, double &all_turned) {
        for (int p = 0; p < BLOCK; p += LANES) {
            if (!call.settings.exact) {
                for (int j = 0; j < DV; ++j)
                    for (int k = 0; k < DV; ++k) store(&gradient_j[j * DV + k][p], broadcast(j == k ? 1.0f : 0.0f));
                continue;
            }
            Floats jacobian[DV][DV], b[DV][DV];
            jacobian_at(p, jacobian);
            const Floats beyond = inverse(jacobian, call.settings.step, b);
            for (int j = 0; j < DV; ++j)
                for (int k = 0; k < DV; ++k) store(&gradient_j[j * DV + k][p], b[j][k]);
            const Floats log_det = log_of_one_plus(beyond), mass = load(&share[p]);
            for (int lane = 0; lane < LANES; ++lane) {
                const bool turned = beyond[lane] <= -1.0f;
                if (!turned) sum += static_cast<double>(mass[lane]) * log_det[lane];
                all_turned += turned && p + lane < taken_rows;
            }
        }
    }

    KJKO_INLINE void jacobian_at(int p, Floats (&jacobian)[DV][DV]) const {
        for (int k = 0; k < DV; ++k)
            for (int j = 0; j < DV; ++j)
                jacobian[k][j] = weights.skip_v[k][j] + dots<H>(weights.w3[k], g[1 + j][p]);
    }

    // Rows beyond the last particle repeat it, so that they are singular only if it is. Their share is 0.
    __attribute__((noinline)) void take(long long first, long long count) {
        const int rows = count < BLOCK ? static_cast<int>(count) : BLOCK, inputs = call.network.inputs;
        taken_rows = rows;
        const float *z = call.z + first * inputs, *end = call.z + call.count * inputs;
        for (int p = 0; p < BLOCK; ++p) {
            const float *from = z + (p < rows ? p : rows - 1) * inputs;
            if (end - from >= INPUT_ROWS) {
                for (int c = 0; c < INPUT_ROWS; c += LANES) {
                    const Floats row = load_anywhere(from + c);
                    store(&input[p][c], load_ints(&is_input[c]) != 0 ? row : load(&one[c]));
                }
            } else {
                for (int c = 0; c < INPUT_ROWS; ++c) input[p][c] = c < inputs ? from[c] : one[c];
            }
        }
        const float *from = call.v + first * call.v_stride;
        for (int k = 0; k < DV; ++k) {
            for (int p = 0; p < rows; ++p) v[k][p] = from[p * call.v_stride + k];
            for (int p = rows; p < BLOCK; ++p) v[k][p] = v[k][rows - 1];
        }
        for (int p = 0; p < rows; ++p) share[p] = call.share[first + p];
        for (int p = 0; p < rows && call.known; ++p) known[p] = call.known[first + p];
        for (int p = rows; p < BLOCK; ++p) share[p] = known[p] = 0;
    }

    __attribute__((noinline)) void forward() {
        const int inputs = call.network.inputs;
        multiply<H>(input[0], INPUT_ROWS, inputs, BLOCK, weights.w1_t[0], x[0][0], weights.w1_t[inputs], BLOCK);
        for (int c = 0; c < H; c += LANES) {
            Floats seed[TANGENTS];
            for (int j = 0; j < TANGENTS; ++j) seed[j] = CLOSED ? broadcast(1.0f) : load(&weights.seed[j][c]);
            for (int p = 0; p < BLOCK; ++p) {
                const Floats h1 = Activation::value(load(&x[0][p][c])), slope = Activation::slope(h1);
                store(&x[0][p][c], h1);
                for (int j = 0; j < TANGENTS; ++j) store(&x[1 + j][p][c], slope * seed[j]);
            }
        }
        multiply<H>(x[0][0], H, H, CLOSED ? BLOCK : ROWS, weights.w2_t[0], y[0][0], weights.b2, BLOCK);
        if (CLOSED) multiply<H>(x[1][0], H, H, BLOCK, weights.m_t[0], y[1][0]);
        for (int c = 0; c < H; c += LANES)
            for (int p = 0; p < BLOCK; ++p) {
                const Floats h2 = Activation::value(load(&y[0][p][c])), slope = Activation::slope(h2);
                store(&y[0][p][c], h2);
                store(&g[0][p][c], slope);
                for (int j = 0; j < TANGENTS; ++j) store(&g[1 + j][p][c], slope * load(&y[1 + j][p][c]));
            }
    }

    // The contribution of a cache block to J, and its gradient with respect to u and to the entries of J.
    __attribute__((noinline)) double evaluate(float *part) {
        const Settings &settings = call.settings;
        double loss = 0;
        Floats trace_gradient[DV] = {};
        for (int p = 0; p < BLOCK; p += LANES) {
            Floats u[DV], vs[DV], to_u[DV], log_det;
            const Floats mass = load(&share[p]), taken = load(&known[p]);
            for (int k = 0; k < DV; ++k) {
                u[k] = dots<H, INPUT_ROWS>(weights.w3[k], y[0][p], weights.skip[k], input[p]);
                vs[k] = load(&v[k][p]);
            }
            const Floats kinetic = kinetic_term(settings, u, vs, mass, to_u);
            for (int k = 0; k < DV; ++k) store(&gradient_u[k][p], to_u[k]);
            if constexpr (CLOSED) {
                Floats divergence = dots<H>(weights.ones, g[1][p]), to_divergence;
                for (int k = 0; k < DV; ++k) divergence += weights.skip_v[k][k];
                log_det = linear_term(settings, divergence, mass, taken, to_divergence);
                store(&gradient_j[0][p], to_divergence);
                store(&bent_j[p], Activation::BEND * to_divergence);
                for (int k = 0; k < DV; ++k) trace_gradient[k] += to_divergence;
            } else {
                Floats jacobian[DV][DV], to_jacobian[DV][DV];
                jacobian_at(p, jacobian);
                log_det = log_det_term(settings, jacobian, mass, taken, to_jacobian);
                for (int k = 0; k < DV; ++k)
                    for (int j = 0; j < DV; ++j) store(&gradient_j[k * DV + j][p], to_jacobian[k][j]);
            }
            loss += sum_of_lanes(part_of(settings, mass, kinetic, log_det));
        }
        for (int k = 0; CLOSED && k < DV; ++k) part[At::trace + k] += sum_of_lanes(trace_gradient[k]);
        return loss;
    }

    __attribute__((noinline)) void backward(float *part) {
        for (int c = 0; c < H; c += LANES) {
            Floats w3[DV], to_w3[DV] = {}, to_w3_by_tangents[DV] = {}, to_b2{};
            for (int k = 0; k < DV; ++k) w3[k] = load(&weights.w3[k][c]);
            for (int p = 0; p < BLOCK; ++p) {
                const Floats h2 = load(&y[0][p][c]), slope = load(&g[0][p][c]);
                Floats gradient{}, bent{};
                for (int k = 0; k < DV; ++k) {
                    gradient += gradient_u[k][p] * w3[k];
                    to_w3[k] += gradient_u[k][p] * h2;
                }
                if constexpr (CLOSED) {
                    bent = bent_j[p] * load(&y[1][p][c]);
                    store(&g[1][p][c], gradient_j[0][p] * slope);
                } else {
                    for (int j = 0; j < TANGENTS; ++j) {
                        const Floats t2 = load(&g[1 + j][p][c]);
                        Floats through{};
                        for (int k = 0; k < DV; ++k) {
                            through += gradient_j[k * DV + j][p] * w3[k];
                            to_w3_by_tangents[k] += gradient_j[k * DV + j][p] * t2;
                        }
                        bent += through * load(&y[1 + j][p][c]);
                        store(&g[1 + j][p][c], through * slope);
                    }
                    bent *= Activation::BEND;
                }
                if (Activation::curved) gradient += h2 * bent;
                gradient *= slope;
                store(&g[0][p][c], gradient);
                to_b2 += gradient;
            }
            for (int k = 0; k < DV; ++k) add(part + At::w3 + k * H + c, to_w3[k] + to_w3_by_tangents[k]);
            add(part + At::b2 + c, to_b2);
        }
        multiply<H>(g[0][0], H, H, CLOSED ? BLOCK : ROWS, weights.w2[0], y[0][0]);
        if (CLOSED && Activation::curved) multiply<H>(g[1][0], H, H, BLOCK, weights.bent_m[0], y[1][0]);
        add_outer<H>(g[0][0], H, 1, H, CLOSED ? BLOCK : ROWS, x[0][0], part + At::w2);
        if (CLOSED) add_outer<H>(g[1][0], H, 1, H, BLOCK, x[1][0], part + At::m);
        for (int c = 0; c < H; c += LANES) {
            Floats bent_seed[TANGENTS], to_seed[TANGENTS] = {};
            for (int j = 0; j < TANGENTS; ++j) bent_seed[j] = Activation::BEND * load(&weights.seed[j][c]);
            for (int p = 0; p < BLOCK; ++p) {
                const Floats h1 = load(&x[0][p][c]), slope = CLOSED ? load(&x[1][p][c]) : Activation::slope(h1);
                Floats gradient = load(&y[0][p][c]), bent{};
                if (CLOSED) {
                    if (Activation::curved) bent = load(&y[1][p][c]);
                } else {
                    for (int j = 0; j < TANGENTS; ++j) {
                        const Floats tangent = load(&y[1 + j][p][c]);
                        bent += tangent * bent_seed[j];
                        to_seed[j] += tangent * slope;
                    }
                }
                if (Activation::curved) gradient += h1 * bent;
                store(&y[0][p][c], gradient * slope);
            }
            for (int j = 0; !CLOSED && j < TANGENTS; ++j) add(part + At::seed + j * H + c, to_seed[j]);
        }
        const int inputs = (call.network.inputs + 4) / 4 * 4;
        add_outer<H>(input[0], INPUT_ROWS, 1, inputs, BLOCK, y[0][0], part + At::w1);
        add_outer<INPUT_ROWS>(gradient_u[0], 1, BLOCK, 4, BLOCK, input[0], part + At::skip);
        for (int k = 0; !CLOSED && k < DV; ++k)
            for (int j = 0; j < DV; ++j) {
                Floats sum{};
                for (int p = 0; p < BLOCK; p += LANES) sum += load(&gradient_j[k * DV + j][p]);
                part[At::skip + k * INPUT_ROWS + call.network.inputs - DV + j] += sum_of_lanes(sum);
            }
    }

    static KJKO_INLINE void add(float *to, Floats x) { store(to, load(to) + x); }
};

template <int H>
__attribute__((cold)) static void hand_over(const ObjectiveCall &call, double *sum) {
    using At = Layout<H>;
    const Network &n = call.network;
    const int inputs = n.inputs, dv = n.velocity_dims;
    *call.loss = sum[At::loss];
    if (!call.gradient) return;
    const ParameterPlaces place = places_of(n);
    double *to = call.gradient;
    for (int i = 0; i < H; ++i) {
        for (int k = 0; k < inputs; ++k) to[place.w1 + i * inputs + k] = sum[At::w1 + k * H + i];
        to[place.b1 + i] = sum[At::w1 + inputs * H + i];
        to[place.b2 + i] = sum[At::b2 + i];
    }
    for (int i = 0; i < H * H; ++i) to[place.w2 + i] = sum[At::w2 + i];
    for (int i = 0; i < dv * H; ++i) to[place.w3 + i] = sum[At::w3 + i];
    for (int k = 0; k < dv; ++k) {
        const double *row = sum + At::skip + k * INPUT_ROWS;
        to[place.b3 + k] = row[inputs];
        for (int l = 0; n.skip && l < n.skipped; ++l) to[place.skip + k * n.skipped + l] = row[inputs - n.skipped + l];
    }
}

// Calls add(pass, first, count, sum) for every piece. Each thread has its own sum of `size` numbers. Their total is
// stored at the beginning of call.sums.
template <class Pass, class Weights, class Add>
static void add_pieces(const ObjectiveCall &call, const Weights &weights, long long size, int threads, Add add) {
    const long long together = call.settings.together, pieces = (call.count + together - 1) / together;
    __builtin_memset(call.sums, 0, static_cast<unsigned long>(size) * sizeof(double));
    int started = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int thread;
#pragma omp atomic capture
        thread = started++;
        double *const sum = call.sums + thread * size;
        if (thread) __builtin_memset(sum, 0, static_cast<unsigned long>(size) * sizeof(double));
        Pass pass(call, weights);
#pragma omp for schedule(dynamic)
        for (long long piece = 0; piece < pieces; ++piece) {
            const long long first = piece * together, left = call.count - first;
            add(pass, first, left < together ? left : together, sum);
        }
    }
    for (int thread = 1; thread < started; ++thread)
        for (long long i = 0; i < size; ++i) call.sums[i] += call.sums[thread * size + i];
}

template <int H, class Activation, int DV, bool CLOSED>
static void run(const ObjectiveCall &call, int threads) {
    using Objective = Pass<H, Activation, DV, CLOSED>;
    add_pieces<Objective>(call, Weights<H>(call.network), Layout<H>::size, threads,
                          [](Objective &pass, long long first, long long count, double *sum) {
                              pass.add_piece(first, count, sum);
                          });
    hand_over<H>(call, call.sums);
}

template <int H>
__attribute__((cold)) static void hand_over_moments(const ObjectiveCall &call, const Moments &to) {
    using Parts = MomentsLayout<H>;
    constexpr int W = Parts::W;
    const int dv = call.network.velocity_dims;
    const double *sum = call.sums;

    // The columns of the basis: all hidden ones, then those from the first skipped input on.
    const int inputs = call.network.inputs, skipped = call.network.skip ? call.network.skipped : 0;
    const int basis = H + skipped + 1;
    const auto column = [&](int m) __attribute__((always_inline)) { return m < H ? m : m + inputs - skipped; };
    for (int i = 0; i < 3; ++i) to.log_det[i] = sum[Parts::counts + i];
    for (int k = 0; k < dv; ++k)
        for (int m = 0; m < basis; ++m) to.pull[k * basis + m] = sum[Parts::pull + k * W + column(m)];
    if (!to.gram) return;
    for (int m = 0; m < basis; ++m)
        for (int n = m; n < basis; ++n)
            to.gram[m * basis + n] = to.gram[n * basis + m] = sum[Parts::gram + column(m) * W + column(n)];
    for (int k = 0; k < dv; ++k)
        for (int m = 0; m < basis; ++m) to.load[k * basis + m] = sum[Parts::load + k * W + column(m)];
    if (!call.settings.exact) return;
    const double *from = sum + Parts::outer;
    for (int k = 0; k < dv; ++k)
        for (int l = k; l < dv; ++l, from += W * W)
            for (int m = 0; m < basis; ++m)
                for (int n = k == l ? m : 0; n < basis; ++n)
                    to.outer[(k * basis + m) * dv * basis + l * basis + n] =
                        to.outer[(l * basis + n) * dv * basis + k * basis + m] = from[column(m) * W + column(n)];
}

template <int H, class Activation, int DV>
static void run_moments(const ObjectiveCall &call, const Moments &to, int threads) {
    using Objective = Pass<H, Activation, DV, false>;
    const bool whole = to.gram;
    add_pieces<Objective>(call, Weights<H>(call.network), MomentsLayout<H>::used(call, whole), threads,
                          [whole](Objective &pass, long long first, long long count, double *sum) {
                              pass.add_moments(first, count, whole, sum);
                          });
    hand_over_moments<H>(call, to);
}

template <int H, class Activation>
static void run_moments(const ObjectiveCall &call, const Moments &to, int threads) {
    switch (call.network.velocity_dims) {
        case 1: return run_moments<H, Activation, 1>(call, to, threads);
        case 2: return run_moments<H, Activation, 2>(call, to, threads);
        case 3: return run_moments<H, Activation, 3>(call, to, threads);
    }
}

template <int H, class Activation>
static void run(const ObjectiveCall &call, int threads) {
    const bool exact = call.settings.exact;
    switch (call.network.velocity_dims) {
        case 1: return run<H, Activation, 1, false>(call, threads);
        case 2: return exact ? run<H, Activation, 2, false>(call, threads) : run<H, Activation, 2, true>(call, threads);
        case 3: return exact ? run<H, Activation, 3, false>(call, threads) : run<H, Activation, 3, true>(call, threads);
    }
}

// The result of what(width) for the width of a network, as a constant from WIDTHS.
template <int INDEX = 0, class What>
static auto with_width(const Network &n, const What &what) {
    if constexpr (INDEX + 1 < sizeof(WIDTHS) / sizeof(*WIDTHS))
        if (n.width != WIDTHS[INDEX]) return with_width<INDEX + 1>(n, what);
    return what(Constant<WIDTHS[INDEX]>());
}

static bool instantiated(const Network &n) {
    bool known = false;
    for (const int width : WIDTHS) known = known || n.width == width;
    return known && n.velocity_dims >= 1 && n.velocity_dims <= MOST_VELOCITY_DIMS && n.inputs <= MOST_INPUTS;
}

static long long sums_size(const Network &n) {
    return with_width(n, [](auto width) -> long long { return Layout<width.value>::size; });
}

static long long moments_sums_size(const Network &n) {
    return with_width(n, [](auto width) -> long long { return MomentsLayout<width.value>::size; });
}

static void moments(const ObjectiveCall &call, const Moments &to, int threads) {
    with_width(call.network, [&](auto width) {
        constexpr int H = width.value;
        call.settings.tanh ? run_moments<H, Tanh>(call, to, threads) : run_moments<H, LeakyRelu>(call, to, threads);
    });
}

static void evaluate(const ObjectiveCall &call, int threads) {
    with_width(call.network, [&](auto width) {
        constexpr int H = width.value;
        call.settings.tanh ? run<H, Tanh>(call, threads) : run<H, LeakyRelu>(call, threads);
    });
}

const ObjectiveKernels objective = {&instantiated, &sums_size, &moments_sums_size, &evaluate, &moments};

}  // namespace kjko::KJKO_LEVEL
