// Sums over pairs of particles on a GPU. A thread block handles a tile of members, as cpu/pairs.cpp handles a vector of
// members on the CPU, in the phases of cuda/phases.hpp. The mathematics is in math/pair.hpp.
#pragma once

#include "cuda/phases.hpp"
#include "cuda/shape.hpp"
#include "math/constants.hpp"
#include "math/pair.hpp"

namespace kjko {

// A tile has at most PARTICLE_THREADS consecutive members of a collision block.
struct DevicePairCall {
    PairCall pairs;
    bool single_precision;
    long long tiles;
    const long long *begin;  // of each tile its collision block and its first member [tiles, 2]
};

}  // namespace kjko

namespace kjko::KJKO_LEVEL {

// The bits of a member do not depend on the order of the tiles. Each tile computes the units of its collision block
// again. This takes as much work as a few sources, out of all that its members meet.
template <class Real, int DIMS, bool ALIKE, int GAMMA>
struct DevicePairs {
    static constexpr int THREADS = PARTICLE_THREADS, NUMBERS = SOURCE<DIMS, ALIKE>;
    static constexpr bool SINGLE = sizeof(Real) == 4;
    static_assert(THREADS == RUN, "a thread takes one source of a run, and a tile meets itself in one run");

    struct Shared {
        PairUnits<DIMS> units;
        double origin[DIMS][THREADS], square[THREADS], score[THREADS], weight[THREADS];  // of the particles of a thread
        Real sources[RUN][NUMBERS];
    };

    static constexpr Shape shape() { return {THREADS, 4, sizeof(Shared), THREADS, 0, 0, 1, 1}; }

    struct State {
        Real target[TARGET<DIMS, ALIKE>], nearest;
        double sums[SUMS<DIMS, ALIKE>];
    };

    const DevicePairCall &call;
    Shared &shared;

    template <class Threads>
    KJKO_DEVICE void evaluate(Threads &team, long long tile) const {
        const long long block = call.begin[2 * tile], row = call.begin[2 * tile + 1];
        const long long first = call.pairs.members.edges[block], last = call.pairs.members.edges[block + 1];
        const long long met = call.pairs.others.edges[block], end = call.pairs.others.edges[block + 1];
        const double count = static_cast<double>(last - first + (ALIKE ? 0 : end - met));
        const int own = last - row < THREADS ? static_cast<int>(last - row) : THREADS;

        team([&](int thread, State &) { add_up(thread, first, last, met, end); });
        KJKO_ROLLED for (int half = THREADS / 2; half > 0; half /= 2)
            team([&](int thread, State &) { fold(thread, half); });
        team([&](int thread, State &) {
            if (thread == 0) KJKO_UNROLLED for (int k = 0; k < DIMS; ++k) shared.units.origin[k] = shared.origin[k][0] / count;
        });
        team([&](int thread, State &) { add_up_squares(thread, first, last, met, end); });
        KJKO_ROLLED for (int half = THREADS / 2; half > 0; half /= 2) team([&](int thread, State &) {
            if (thread < half) shared.square[thread] += shared.square[thread + half];
        });
        team([&](int thread, State &) {
            if (thread != 0) return;
            shared.units = units_of(call.pairs, shared.units.origin, shared.square[0] / count, shared.score[0],
                                    shared.weight[0]);
        });
        team([&](int thread, State &state) {
            if (thread < own) begin(state, row + thread);
        });
        KJKO_ROLLED for (long long from = met; from < end; from += RUN) {
            const int size = end - from < RUN ? static_cast<int>(end - from) : RUN;
            team([&](int thread, State &) {
                if (thread < size) KJKO_UNROLLED for (int l = 0; l < NUMBERS; ++l)
                    shared.sources[thread][l] = static_cast<Real>(
                        in_units<DIMS, ALIKE>(call.pairs.others, from + thread, shared.units, l));
            });
            team([&](int thread, State &state) {
                if (thread >= own) return;
                if (!SINGLE || (ALIKE && from == row))
                    add<true>(state, row + thread, from, size);
                else
                    add<false>(state, row + thread, from, size);
            });
        }
        team([&](int thread, State &state) {
            if (thread < own) hand_over<DIMS, ALIKE>(call.pairs, row + thread, shared.units, state.sums);
        });
    }

private:
    // Calls what(particles, row) for the rows of a collision block that belong to a thread.
    template <class What>
    KJKO_DEVICE void for_part(int thread, long long first, long long last, long long met, long long end,
                              const What &what) const {
        for (long long row = first + thread; row < last; row += THREADS) what(call.pairs.members, row);
        if constexpr (!ALIKE)
            for (long long row = met + thread; row < end; row += THREADS) what(call.pairs.others, row);
    }

    KJKO_DEVICE void add_up(int thread, long long first, long long last, long long met, long long end) const {
        double origin[DIMS] = {}, score = 0, weight = 0;
        for_part(thread, first, last, met, end, [&](const PairMembers &of, long long row) {
            KJKO_UNROLLED for (int k = 0; k < DIMS; ++k) origin[k] += of.v[row * DIMS + k];
            score = larger(largest_score<DIMS>(of, row), score);
        });
        for (long long row = met + thread; row < end; row += THREADS)
            weight = larger(call.pairs.others.weight[row], weight);
        KJKO_UNROLLED for (int k = 0; k < DIMS; ++k) shared.origin[k][thread] = origin[k];
        shared.score[thread] = score;
        shared.weight[thread] = weight;
    }

    KJKO_DEVICE void fold(int thread, int half) const {
        if (thread >= half) return;
        KJKO_UNROLLED for (int k = 0; k < DIMS; ++k) shared.origin[k][thread] += shared.origin[k][thread + half];
        shared.score[thread] = larger(shared.score[thread + half], shared.score[thread]);
        shared.weight[thread] = larger(shared.weight[thread + half], shared.weight[thread]);
    }

    KJKO_DEVICE void add_up_squares(int thread, long long first, long long last, long long met, long long end) const {
        double square = 0;
        for_part(thread, first, last, met, end, [&](const PairMembers &of, long long row) {
            square += square_of(of, row, shared.units.origin);
        });
        shared.square[thread] = square;
    }

    KJKO_DEVICE void begin(State &state, long long row) const {
        KJKO_UNROLLED for (int l = 0; l < TARGET<DIMS, ALIKE>; ++l)
            state.target[l] = static_cast<Real>(in_units<DIMS, ALIKE>(call.pairs.members, row, shared.units, l));
        state.nearest = static_cast<Real>(nearest_of(call.pairs.members, row, shared.units));
        KJKO_UNROLLED for (int l = 0; l < SUMS<DIMS, ALIKE>; ++l) state.sums[l] = 0;
    }

    // Adds a run of sources to a member; in double precision if one is too near for single precision.
    template <bool GUARDED>
    KJKO_DEVICE void add(State &state, long long row, long long from, int size) const {
        const auto force = force_of(Constant<GAMMA>(), call.pairs.exponent);
        const Real mass = static_cast<Real>(shared.units.mass);
        Real sums[SUMS<DIMS, ALIKE>] = {}, nearest = 1;
        KJKO_UNROLLED_BY_4 for (int j = 0; j < size; ++j) {
            const Real square = add_pair<DIMS, ALIKE, GUARDED>(state.target, shared.sources[j], force, mass, sums);
            nearest = square < nearest ? square : nearest;
        }
        if (SINGLE && nearest < state.nearest) return add_near(state, row, from, size);
        KJKO_UNROLLED for (int l = 0; l < SUMS<DIMS, ALIKE>; ++l) state.sums[l] += sums[l];
    }

    KJKO_DEVICE void add_near(State &state, long long row, long long from, int size) const {
        const auto force = force_of(Constant<GAMMA>(), call.pairs.exponent);
        double target[TARGET<DIMS, ALIKE>], source[NUMBERS];
        KJKO_UNROLLED for (int l = 0; l < TARGET<DIMS, ALIKE>; ++l)
            target[l] = in_units<DIMS, ALIKE>(call.pairs.members, row, shared.units, l);
        KJKO_ROLLED for (int j = 0; j < size; ++j) {
            KJKO_UNROLLED for (int l = 0; l < NUMBERS; ++l)
                source[l] = in_units<DIMS, ALIKE>(call.pairs.others, from + j, shared.units, l);
            add_pair<DIMS, ALIKE, true>(target, source, force, shared.units.mass, state.sums);
        }
    }
};

}  // namespace kjko::KJKO_LEVEL
