// V and G of a vector of members at a time, source after source. The numbers of a source are broadcast. Each lane
// belongs to one member, so nothing is added across lanes.
#include "cpu/kernels.hpp"
#include "cpu/simd.hpp"

#include "math/pair.hpp"

namespace kjko::KJKO_LEVEL {

// The number of members in a group (a vector of members), in either precision.
constexpr int GROUP = LANES;

// Members as targets in the units of a collision block, and their sums.
template <int DIMS, bool ALIKE>
struct Group {
    alignas(64) float single_precision[TARGET<DIMS, ALIKE>][GROUP];
    alignas(64) double double_precision[TARGET<DIMS, ALIKE>][GROUP];
    alignas(64) float nearest[GROUP];    // |z|² below which single precision is not accurate enough
    alignas(64) double sums[SUMS<DIMS, ALIKE>][GROUP];
};

// Adds sources to the sums of some members of a group. Returns false, and adds nothing, if a source is too near for
// single precision.
template <int DIMS, bool ALIKE, bool GUARDED, class Force, class Real>
__attribute__((noinline)) static bool add_run(const Real (&targets)[TARGET<DIMS, ALIKE>][GROUP], int first,
                                              const Real *sources, long long count, Force force, Real mass,
                                              Group<DIMS, ALIKE> &group) {
    using Vector = VectorOf<Real>;
    constexpr int WIDTH = LANES_OF<Real>;
    Vector target[TARGET<DIMS, ALIKE>], sums[SUMS<DIMS, ALIKE>] = {}, nearest = broadcast(Real(1));
    for (int l = 0; l < TARGET<DIMS, ALIKE>; ++l) target[l] = load(&targets[l][first]);
    for (long long j = 0; j < count; ++j, sources += SOURCE<DIMS, ALIKE>) {
        const Vector square = add_pair<DIMS, ALIKE, GUARDED>(target, sources, force, mass, sums);
        if constexpr (sizeof(Real) == 4) nearest = square < nearest ? square : nearest;
    }
    if constexpr (sizeof(Real) == 4) {
        const auto near = nearest < load(&group.nearest[first]);
        int any = 0;
        for (int lane = 0; lane < WIDTH; ++lane) any |= near[lane];
        if (any) return false;
    }
    for (int l = 0; l < SUMS<DIMS, ALIKE>; ++l)
        for (int lane = 0; lane < WIDTH; ++lane) group.sums[l][first + lane] += sums[l][lane];
    return true;
}

template <int DIMS, bool ALIKE, class Force, class Real>
struct PairPass {
    static constexpr int NUMBERS = SOURCE<DIMS, ALIKE>;

    const PairCall &call;
    const Force force;
    double *const doubles;
    float *const floats;

    PairPass(const PairCall &c, Force f, long long most, double *workspace)
        : call(c), force(f), doubles(workspace), floats(reinterpret_cast<float *>(workspace + NUMBERS * most)) {}

    void block(long long number) const {
        const long long first = call.members.edges[number], last = call.members.edges[number + 1];
        const long long met = call.others.edges[number], count = call.others.edges[number + 1] - met;
        if (first == last) return;
        const PairUnits<DIMS> units = measured(number);
        for (long long j = 0; j < count; ++j)
            KJKO_UNROLL for (int l = 0; l < NUMBERS; ++l) {
                const double x = in_units<DIMS, ALIKE>(call.others, met + j, units, l);
                doubles[j * NUMBERS + l] = x;
                floats[j * NUMBERS + l] = static_cast<float>(x);
            }
        for (long long row = first; row < last; row += GROUP) {
            Group<DIMS, ALIKE> group = {};
            take(units, row, last, group);
            if constexpr (ALIKE) {  // a member among its own sources
                const long long own = row - first, after = own + GROUP < count ? own + GROUP : count;
                add<false>(0, own, units.mass, group);
                add<true>(own, after, units.mass, group);
                add<false>(after, count, units.mass, group);
            } else {
                add<false>(0, count, units.mass, group);
            }
            for (int lane = 0; lane < GROUP && row + lane < last; ++lane) {
                double sums[SUMS<DIMS, ALIKE>];
                for (int l = 0; l < SUMS<DIMS, ALIKE>; ++l) sums[l] = group.sums[l][lane];
                hand_over<DIMS, ALIKE>(call, row + lane, units, sums);
            }
        }
    }

private:
    // Calls what(particles, row) once for each row of a collision block.
    template <class What>
    void for_all(long long number, const What &what) const {
        for (long long row = call.members.edges[number]; row < call.members.edges[number + 1]; ++row)
            what(call.members, row);
        if constexpr (!ALIKE)
            for (long long row = call.others.edges[number]; row < call.others.edges[number + 1]; ++row)
                what(call.others, row);
    }

    PairUnits<DIMS> measured(long long number) const {
        double count = 0, origin[DIMS] = {}, square = 0, score = 0, weight = 0;
        for_all(number, [&](const PairMembers &of, long long row) {
            for (int k = 0; k < DIMS; ++k) origin[k] += of.v[row * DIMS + k];
            score = larger(largest_score<DIMS>(of, row), score);
            count += 1;
        });
        for (int k = 0; k < DIMS; ++k) origin[k] /= count;
        for_all(number, [&](const PairMembers &of, long long row) { square += square_of(of, row, origin); });
        for (long long row = call.others.edges[number]; row < call.others.edges[number + 1]; ++row)
            weight = larger(call.others.weight[row], weight);
        return units_of(call, origin, square / count, score, weight);
    }

    // Lanes beyond the last member repeat it.
    void take(const PairUnits<DIMS> &units, long long row, long long last, Group<DIMS, ALIKE> &group) const {
        for (int lane = 0; lane < GROUP; ++lane) {
            const long long from = row + lane < last ? row + lane : last - 1;
            KJKO_UNROLL for (int l = 0; l < TARGET<DIMS, ALIKE>; ++l) {
                const double x = in_units<DIMS, ALIKE>(call.members, from, units, l);
                group.double_precision[l][lane] = x;
                group.single_precision[l][lane] = static_cast<float>(x);
            }
            group.nearest[lane] = static_cast<float>(nearest_of(call.members, from, units));
        }
    }

    // Adds sources to a group. OWN: the sources are those of the group itself.
    template <bool OWN>
    void add(long long begin, long long end, double mass, Group<DIMS, ALIKE> &group) const {
        for (; begin < end; begin += RUN) {
            const long long count = end - begin < RUN ? end - begin : RUN;
            if constexpr (sizeof(Real) == 4)
                if (add_run<DIMS, ALIKE, OWN>(group.single_precision, 0, floats + begin * NUMBERS, count, force,
                                              static_cast<float>(mass), group))
                    continue;
            for (int half = 0; half < GROUP; half += LANES_OF<double>)
                add_run<DIMS, ALIKE, true>(group.double_precision, half, doubles + begin * NUMBERS, count, force, mass,
                                           group);
        }
    }
};

template <int DIMS, bool ALIKE, class Real, class Force>
static void sum_blocks(const PairCall &call, Force force, int threads, long long most, double *workspace) {
    int thread = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int own;
#pragma omp atomic capture
        own = thread++;
        const PairPass<DIMS, ALIKE, Force, Real> pass(call, force, most,
                                                      workspace + own * pair_workspace(DIMS, ALIKE, most));
#pragma omp for schedule(dynamic)
        for (long long block = 0; block < call.blocks; ++block) pass.block(block);
    }
}

template <class Real>
static void sum_pairs(const PairCall &call, int threads, long long most, double *workspace) {
    with_constant(call.exponent, [&](auto constant) {
        const auto force = force_of(constant, call.exponent);
        if (call.dims == 2)
            call.alike ? sum_blocks<2, true, Real>(call, force, threads, most, workspace)
                       : sum_blocks<2, false, Real>(call, force, threads, most, workspace);
        else
            call.alike ? sum_blocks<3, true, Real>(call, force, threads, most, workspace)
                       : sum_blocks<3, false, Real>(call, force, threads, most, workspace);
    });
}

// The fields of the members of a collision block, a vector of members at a time, in double precision.
template <int DIMS, bool ALIKE, class Force>
static void fields_of_block(const PairFieldCall &call, Force force, long long number, double *sources) {
    constexpr int NUMBERS = SOURCE<DIMS, ALIKE>, WIDTH = LANES_OF<double>;
    const PairCall &pairs = call.pairs;
    PairUnits<DIMS> plain{};  // the units of the particles
    plain.per_speed = plain.per_score = plain.per_weight = plain.bending = 1;
    const long long first = pairs.members.edges[number], last = pairs.members.edges[number + 1];
    const long long met = pairs.others.edges[number], count = pairs.others.edges[number + 1] - met;
    for (long long j = 0; j < count; ++j)
        KJKO_UNROLL for (int l = 0; l < NUMBERS; ++l)
            sources[j * NUMBERS + l] = in_units<DIMS, ALIKE>(pairs.others, met + j, plain, l);
    for (long long row = first; row < last; row += WIDTH) {
        Doubles target[TARGET<DIMS, ALIKE>], sums[FIELD_SUMS<DIMS>] = {};
        for (int lane = 0; lane < WIDTH; ++lane) {
            const long long from = row + lane < last ? row + lane : last - 1;
            KJKO_UNROLL for (int l = 0; l < TARGET<DIMS, ALIKE>; ++l)
                target[l][lane] = in_units<DIMS, ALIKE>(pairs.members, from, plain, l);
        }
        const double *source = sources;
        for (long long j = 0; j < count; ++j, source += NUMBERS)
            add_field<DIMS, ALIKE>(target, source, force, pairs.exponent, pairs.mass, sums);
        for (int lane = 0; lane < WIDTH && row + lane < last; ++lane) {
            double own[FIELD_SUMS<DIMS>];
            for (int l = 0; l < FIELD_SUMS<DIMS>; ++l) own[l] = sums[l][lane];
            hand_over<DIMS, ALIKE>(call, row + lane, own);
        }
    }
}

template <int DIMS, bool ALIKE>
static void fields_of_blocks(const PairFieldCall &call, int threads, long long most, double *workspace) {
    with_constant(call.pairs.exponent, [&](auto constant) {
        const auto force = force_of(constant, call.pairs.exponent);
        int thread = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
            int own;
#pragma omp atomic capture
            own = thread++;
            double *const sources = workspace + own * pair_workspace(DIMS, ALIKE, most);
#pragma omp for schedule(dynamic)
            for (long long block = 0; block < call.pairs.blocks; ++block)
                fields_of_block<DIMS, ALIKE>(call, force, block, sources);
        }
    });
}

static void pair_fields(const PairFieldCall &call, int threads, long long most, double *workspace) {
    if (call.pairs.dims == 2)
        call.pairs.alike ? fields_of_blocks<2, true>(call, threads, most, workspace)
                         : fields_of_blocks<2, false>(call, threads, most, workspace);
    else
        call.pairs.alike ? fields_of_blocks<3, true>(call, threads, most, workspace)
                         : fields_of_blocks<3, false>(call, threads, most, workspace);
}

const PairKernels pairs = {&sum_pairs<float>, &sum_pairs<double>, &pair_fields};

}  // namespace kjko::KJKO_LEVEL
