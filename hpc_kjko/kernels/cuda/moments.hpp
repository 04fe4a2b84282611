// The moments for variable projection on a GPU, as cpu/objective.cpp sums them on the CPU (Moments in
// cpu/objective.hpp), in the phases of cuda/phases.hpp.
//
// The factors of the products are rows [row][particle] in shared memory: the basis g = (h2, skipped inputs, 1), v, and
// q_k for every k. For q_k only the rows of hidden features and velocities are stored, because the others are zero. A
// thread has a tile of 8 × 8 products, which it sums in registers over a piece of particles. The rows of a tile are far
// apart. So the rows of neighbouring threads are neighbours, and lie in different memory banks.
#pragma once

#include "cuda/network.hpp"
#include "cuda/shape.hpp"
#include "math/functional.hpp"
#include "math/objective.hpp"
#include "math/rounding.hpp"

namespace kjko {

// The arguments of the kernel that puts moments in their order (Moments in cpu/objective.hpp). Each thread handles one
// moment.
struct MomentsOrderCall {
    Network network;
    bool exact, whole;
    int count;            // of moments
    const double *total;  // the total of all sums
    double *moments;
};

}  // namespace kjko

namespace kjko::KJKO_LEVEL {

// Rows; pairs of groups of eight rows that are multiplied with each other; and offsets of the parts of a sum.
template <int H, int DV>
struct MomentsRows {
    static constexpr int Q = DV * (H + DV), Q_BLOCKS = (Q + 7) / 8, G_BLOCKS = H / 8 + 1;
    // Group b of a kind of rows has the rows b, b + n, b + 2 n, ..., where n is the number of groups (G_BLOCKS,
    // Q_BLOCKS).
    static constexpr int first_g = 0, first_v = 8 * G_BLOCKS, first_q = first_v + 8, size = first_q + 8 * Q_BLOCKS;

    // Pairs of groups: g with g first, then v with g, then q with q. Pairs a ≤ b of one kind have the number b (b + 1)
    // / 2 + a.
    static constexpr int vg = G_BLOCKS * (G_BLOCKS + 1) / 2, qq = vg + G_BLOCKS,
                         pairs = qq + Q_BLOCKS * (Q_BLOCKS + 1) / 2;

    // `known` has that of a velocity in the basis, then those of hidden features. `counts` has log det, its remainder
    // after rounding, and the number of particles whose map reverses orientation. `finite` has, for each thread, 0, or
    // NaN if a weight is not finite. Products come last, and only if all moments are wanted. The products of a pair are
    // `pairs` apart.
    static constexpr int pull = 0, known = pull + Q, counts = known + 1 + DV * H, finite = counts + 3,
                         products = finite + THREADS_OF<H>;

    // The index of the product of two rows, in one kind of rows with `blocks` groups, whose pairs begin at `first`.
    static KJKO_DEVICE int of_one_kind(int first, int blocks, int row, int column) {
        const bool swapped = row % blocks > column % blocks;
        const int low = swapped ? column : row, high = swapped ? row : column;
        const int a = low % blocks, b = high % blocks;
        return products + (low / blocks * 8 + high / blocks) * pairs + first + b * (b + 1) / 2 + a;
    }
    // The index of the product of v_k and a row of the basis.
    static KJKO_DEVICE int of_v(int k, int row) {
        return products + (k * 8 + row / G_BLOCKS) * pairs + vg + row % G_BLOCKS;
    }
};

// The row of q_k for function m of the basis; −1 for positions and 1, whose derivatives are zero.
template <int H, int DV>
KJKO_DEVICE int row_of(const Network &n, int m) {
    const int skipped = n.skip ? n.skipped : 0;
    return m < H ? m : m < H + skipped && m >= H + skipped - DV ? m - skipped + DV : -1;
}

// A moment from the total of all sums.
template <int H, int DV>
KJKO_DEVICE double moment_of(const MomentsOrderCall &call, int index) {
    using At = MomentsRows<H, DV>;
    const double *total = call.total;
    double moment = 0;
    KJKO_ROLLED for (int i = 0; i < THREADS_OF<H>; ++i) moment += total[At::finite + i];  // 0, or NaN
    const int basis = H + (call.network.skip ? call.network.skipped : 0) + 1, rows = DV * basis;
    if (index < rows) {  // pull
        const int row = row_of<H, DV>(call.network, index % basis);
        return row < 0 ? moment : moment + total[At::pull + index / basis * (H + DV) + row];
    }
    index -= rows;
    if (index < 3) return moment + total[At::counts + index];
    index -= 3;
    if (index < basis * basis)  // gram
        return moment + total[At::of_one_kind(0, At::G_BLOCKS, index / basis, index % basis)];
    index -= basis * basis;
    if (index < rows) {  // load
        const int k = index / basis, m = index % basis, row = row_of<H, DV>(call.network, m);
        double load = total[At::of_v(k, m)];
        if (row >= 0 && row < H) load += total[At::known + 1 + k * H + row];
        if (row == H + k) load += total[At::known];
        return moment + load;
    }
    index -= rows;  // outer
    const int left = index / rows, right = index % rows;
    const int a = row_of<H, DV>(call.network, left % basis), b = row_of<H, DV>(call.network, right % basis);
    if (!call.exact || a < 0 || b < 0) return moment;
    const int row = left / basis * (H + DV) + a, column = right / basis * (H + DV) + b;
    return moment + total[At::of_one_kind(At::qq, At::Q_BLOCKS, row, column)];
}

template <int H, class Activation, int DV>
struct DeviceMoments {
    using Net = DeviceNetwork<float, H, Activation, DV, false>;
    using At = MomentsRows<H, DV>;
    static constexpr int THREADS = Net::THREADS, TILE = Net::TILE, QUARTER = Net::QUARTER;
    // Threads that share the particles of a pair of groups. If there are more pairs than threads, they are divided
    // among several thread blocks.
    static constexpr int PARTS = 4 * At::pairs <= THREADS ? 4 : 2 * At::pairs <= THREADS ? 2 : 1;

    struct Shared : Net::Shared {
        alignas(16) float v[DV][TILE], share[TILE], known[TILE];
        alignas(16) float inverse[DV * DV][TILE];  // B_jk
        double log_det[TILE], turned[TILE];
        alignas(16) float rows[At::size][TILE + 4];
    };

    static constexpr Shape shape(int resident_threads) {
        return {THREADS,      Net::resident(resident_threads), sizeof(Shared),    TILE,
                At::products, 64 * At::pairs,                  groups(At::pairs), groups(At::qq)};
    }
    static constexpr int groups(int pairs) { return (pairs + THREADS - 1) / THREADS; }

    struct State {
        typename Net::Product product;
        double log_det;
        int turned;
        float pull[DV], known[DV], tail;
        float sums[8][8];
    };

    const ObjectiveCall &call;  // with a non-null gradient all moments are wanted; otherwise pull and counts only
    Shared &shared;
    int group;

    // Adds the pieces that are dealt to a sum.
    template <class Threads>
    KJKO_DEVICE void add_pieces(Threads &team, long long sum, long long sums) const {
        const long long pieces = (call.count + call.settings.together - 1) / call.settings.together;
        double *to = call.sums + sum * (At::products + (call.gradient ? 64LL * At::pairs : 0));
        team([&](int thread, State &state) { begin(thread, state, to); });
        for (long long piece = pieces * sum / sums; piece < pieces * (sum + 1) / sums; ++piece) {
            const long long first = piece * call.settings.together, rest = call.count - first;
            const int count = rest < call.settings.together ? static_cast<int>(rest) : call.settings.together;
            for (int row = 0; row < count; row += TILE) add_tile(team, first + row, count - row);
            for (int turn = 0; turn < 4; ++turn)
                team([&](int thread, State &state) { flush(thread, turn, state, to); });
        }
    }

private:
    KJKO_DEVICE Net net() const { return {call.network, shared}; }
    KJKO_DEVICE int pairs() const { return !call.gradient ? 0 : call.settings.exact ? At::pairs : At::qq; }

    template <class Threads>
    KJKO_DEVICE void add_tile(Threads &team, long long first, int count) const {
        if (count > TILE) count = TILE;
        team([&](int thread, State &) { take(thread, first, count); });
        team([&](int thread, State &) { net().first_layer(thread); });
        team.warps([&](auto &warp) { net().second_layer(warp); });
        team([&](int thread, State &) { net().output_layer(thread); });
        team([&](int thread, State &state) { invert(thread, count, state); });
        team([&](int thread, State &state) {
            hidden_rows(thread, state);
            sum_tail(thread, state);
        });
        if (call.gradient) team([&](int thread, State &state) { multiply(thread, state); });
    }

    // The weights, and zeros in place of the sums.
    KJKO_DEVICE void begin(int thread, State &state, double *sum) const {
        state = State{};
        const float nothing = net().begin(thread);
        KJKO_ROLLED for (int i = thread; i < At::size * (TILE + 4); i += THREADS)
            shared.rows[i / (TILE + 4)][i % (TILE + 4)] = 0;
        const int own = thread + group * THREADS;
        const int products = call.gradient && own < At::pairs ? 64 : 0;
        KJKO_ROLLED for (int e = 0; e < products; ++e) sum[At::products + e * At::pairs + own] = 0;
        if (group > 0) return;
        KJKO_ROLLED for (int i = At::pull + thread; i < At::finite; i += THREADS) sum[i] = 0;
        sum[At::finite + thread] = nothing;
    }

    KJKO_DEVICE void add(double &sum, double term) const { sum += rounded(term, shift_of(call.settings.unit)); }

    KJKO_DEVICE void take(int thread, long long first, int count) const {
        net().take(thread, call.z, first, count);
        take_particles<DV, TILE>(call, shared, thread, first, count);
    }

    // B of a particle, and the rows that do not belong to hidden features.
    KJKO_DEVICE void invert(int p, int count, State &state) const {
        if (p >= TILE) return;
        float b[DV][DV] = {};
        if (call.settings.exact) {
            float jacobian[DV][DV];
            net().jacobian(p, jacobian);
            const float beyond = inverse(jacobian, call.settings.step, b);
            const bool turned = beyond <= -1.0f;
            if (!turned) state.log_det += static_cast<double>(shared.share[p]) * log_of_one_plus(beyond);
            state.turned += turned && p < count;
        } else {
            KJKO_UNROLLED for (int k = 0; k < DV; ++k) b[k][k] = 1;
        }
        KJKO_UNROLLED for (int k = 0; k < DV; ++k) {
            KJKO_UNROLLED for (int j = 0; j < DV; ++j)
                shared.inverse[j * DV + k][p] = shared.rows[At::first_q + k * (H + DV) + H + j][p] = b[j][k];
            shared.rows[At::first_v + k][p] = shared.v[k][p];
        }
        const int skipped = call.network.skipped, from = call.network.inputs - skipped;
        KJKO_ROLLED for (int i = 0; i <= skipped; ++i) shared.rows[H + i][p] = shared.input[from + i][p];
    }

    // The rows of one hidden feature, and its own sums.
    KJKO_DEVICE void hidden_rows(int thread, State &state) const {
        const int c = thread % H, from = thread / H * QUARTER;
        KJKO_ROLLED for (int p = from; p < from + QUARTER; p += 4) {
            const Four<float> h2 = load_four(&shared.y[c][p]), share = load_four(&shared.share[p]);
            const Four<float> known = load_four(&shared.known[p]);
            store_four(&shared.rows[c][p], h2);
            Four<float> t[DV];
            KJKO_UNROLLED for (int j = 0; j < DV; ++j) {
                t[j] = load_four(&shared.y[c][(1 + j) * TILE + p]);
                KJKO_UNROLLED for (int e = 0; e < 4; ++e) {
                    t[j].at[e] *= Activation::slope(h2.at[e]);
                    state.known[j] += known_weight(call.settings, share.at[e], known.at[e]) * t[j].at[e];
                }
            }
            KJKO_UNROLLED for (int k = 0; k < DV; ++k) {
                Four<float> q{};
                KJKO_UNROLLED for (int j = 0; j < DV; ++j) {
                    const Four<float> inverse = load_four(&shared.inverse[j * DV + k][p]);
                    KJKO_UNROLLED for (int e = 0; e < 4; ++e) q.at[e] += inverse.at[e] * t[j].at[e];
                }
                KJKO_UNROLLED for (int e = 0; e < 4; ++e) state.pull[k] += share.at[e] * q.at[e];
                store_four(&shared.rows[At::first_q + k * (H + DV) + c][p], q);
            }
        }
    }

    // The sums of the rows of velocities alone: one thread for each, and one thread for the known part.
    KJKO_DEVICE void sum_tail(int thread, State &state) const {
        const int k = thread / DV, j = thread % DV;
        float sum = 0;
        if (k < DV)
            KJKO_ROLLED for (int p = 0; p < TILE; ++p) sum += shared.share[p] * shared.inverse[j * DV + k][p];
        else if (thread == DV * DV)
            KJKO_ROLLED for (int p = 0; p < TILE; ++p)
                sum += known_weight(call.settings, shared.share[p], shared.known[p]);
        state.tail += sum;
    }

    // The two row groups of a pair: the first row of each, and the distance between their rows.
    struct Pair {
        int left, left_step, right, right_step;
    };
    static KJKO_DEVICE Pair pair_of(int index) {
        const bool is_q = index >= At::qq;
        if (!is_q && index >= At::vg) return {At::first_v, 1, index - At::vg, At::G_BLOCKS};
        const int within = is_q ? index - At::qq : index, first = is_q ? At::first_q : At::first_g;
        const int blocks = is_q ? At::Q_BLOCKS : At::G_BLOCKS;
        int b = 0;
        while ((b + 1) * (b + 2) / 2 <= within) ++b;
        return {first + within - b * (b + 1) / 2, blocks, first + b, blocks};
    }

    static KJKO_DEVICE int part_of(int thread) { return PARTS > 1 ? thread / At::pairs : 0; }
    KJKO_DEVICE int own_pair(int thread) const { return PARTS > 1 ? thread % At::pairs : thread + group * THREADS; }

    KJKO_DEVICE void multiply(int thread, State &state) const {
        constexpr int COLUMNS = TILE / PARTS;
        const int part = part_of(thread);
        if (own_pair(thread) >= pairs() || part >= PARTS) return;
        const Pair pair = pair_of(own_pair(thread));
        KJKO_ROLLED for (int p = part * COLUMNS; p < (part + 1) * COLUMNS; p += 4) {
            const Four<float> share = load_four(&shared.share[p]);
            Four<float> left[8];
            KJKO_UNROLLED for (int i = 0; i < 8; ++i) {
                left[i] = load_four(&shared.rows[pair.left + i * pair.left_step][p]);
                KJKO_UNROLLED for (int e = 0; e < 4; ++e) left[i].at[e] *= share.at[e];
            }
            KJKO_UNROLLED for (int j = 0; j < 8; ++j) {
                const Four<float> right = load_four(&shared.rows[pair.right + j * pair.right_step][p]);
                KJKO_UNROLLED for (int i = 0; i < 8; ++i)
                    KJKO_UNROLLED for (int e = 0; e < 4; ++e) state.sums[i][j] += left[i].at[e] * right.at[e];
            }
        }
    }

    // Adds the sums of the threads whose turn it is, and resets them. log det is summed over threads before it is
    // rounded. It may be the same number for each thread, and then the rounding error would be the same too.
    KJKO_DEVICE void flush(int thread, int turn, State &state, double *sum) const {
        if (turn == 0 && thread < TILE) {
            shared.log_det[thread] = state.log_det;
            shared.turned[thread] = state.turned;
            state.log_det = 0;
            state.turned = 0;
        } else if (turn == 1 && thread == 0 && group == 0) {
            double log_det = 0, turned = 0;
            KJKO_ROLLED for (int p = 0; p < TILE; ++p) {
                log_det += shared.log_det[p];
                turned += shared.turned[p];
            }
            const Fine fine = rounded_finely(log_det, call.settings.unit, call.settings.finer);
            sum[At::counts] += fine.coarse;
            sum[At::counts + 1] += fine.rest;
            sum[At::counts + 2] += turned;
        }
        const int own = own_pair(thread);
        if (part_of(thread) == turn && own < pairs())
            KJKO_UNROLLED for (int i = 0; i < 8; ++i)
                KJKO_UNROLLED for (int j = 0; j < 8; ++j) {
                    add(sum[At::products + (i * 8 + j) * At::pairs + own], state.sums[i][j]);
                    state.sums[i][j] = 0;
                }
        if (thread / H != turn || group > 0) return;
        const int c = thread % H;
        KJKO_UNROLLED for (int k = 0; k < DV; ++k) {
            add(sum[At::pull + k * (H + DV) + c], state.pull[k]);
            add(sum[At::known + 1 + k * H + c], state.known[k]);
            state.pull[k] = state.known[k] = 0;
        }
        if (thread < DV * DV) add(sum[At::pull + thread / DV * (H + DV) + H + thread % DV], state.tail);
        if (thread == DV * DV) add(sum[At::known], state.tail);
        state.tail = 0;
    }
};

}  // namespace kjko::KJKO_LEVEL
