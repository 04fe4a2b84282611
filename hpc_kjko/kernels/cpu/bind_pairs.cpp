#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <tuple>

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include "cpu/bind.hpp"
#include "cpu/cpu.hpp"
#include "cpu/kernels.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kjko {

template <class Number, size_t DIMS>
using Array = nb::ndarray<Number, nb::ndim<DIMS>, nb::c_contig, nb::device::cpu>;
// v, score, hessian, weight, edges.
using Given = std::tuple<Array<const double, 2>, Array<const double, 2>, Array<const double, 3>, Array<const double, 1>,
                         Array<const long long, 1>>;

static void expect(bool holds, const char *otherwise) {
    if (!holds) throw std::invalid_argument(otherwise);
}

static PairMembers members_of(const Given &given, size_t dims) {
    const auto &[v, score, hessian, weight, edges] = given;
    const size_t count = v.shape(0), ends = edges.shape(0);
    expect(v.shape(1) == dims && score.shape(1) == dims && hessian.shape(1) == dims && hessian.shape(2) == dims,
           "v, score and hessian are not of the same dimensions");
    expect(score.shape(0) == count && hessian.shape(0) == count && weight.shape(0) == count,
           "v, score, hessian and weight are not of the same particles");
    bool rising = ends > 0 && edges(0) >= 0 && edges(ends - 1) <= static_cast<long long>(count);
    for (size_t k = 1; k < ends; ++k) rising = rising && edges(k - 1) <= edges(k);
    expect(rising, "the edges are not those of collision blocks of these particles");
    return {v.data(), score.data(), hessian.data(), weight.data(), edges.data()};
}

// The arguments that both kernels share.
static PairCall call_of(const Given &members, const std::optional<Given> &others, double mass, double exponent,
                        Array<double, 2> velocity) {
    const size_t count = velocity.shape(0), dims = velocity.shape(1);
    expect(dims == 2 || dims == 3, "velocities have two or three dimensions");
    expect(exponent != 0, "an exponent of 0 needs no pairs");
    PairCall call{};
    call.dims = static_cast<int>(dims);
    call.alike = !others;
    call.members = members_of(members, dims);
    call.others = others ? members_of(*others, dims) : call.members;
    const size_t ends = std::get<4>(members).shape(0);
    expect(!others || std::get<4>(*others).shape(0) == ends, "the others are not in the same number of collision blocks");
    expect(std::get<0>(members).shape(0) == count, "velocity is not of the members");
    call.blocks = static_cast<long long>(ends) - 1;
    call.exponent = exponent;
    call.mass = mass;
    call.velocity = velocity.data();
    return call;
}

// Calls kernel(threads, most, workspace).
template <class Kernel>
static void with_workspace(const PairCall &call, const Kernel &kernel) {
    nb::gil_scoped_release release;
    long long most = 0;
    for (long long block = 0; block < call.blocks; ++block)
        most = std::max(most, call.others.edges[block + 1] - call.others.edges[block]);
    const int threads = static_cast<int>(std::max(1LL, std::min<long long>(max_threads(), call.blocks)));
    const std::unique_ptr<double[]> workspace(new double[threads * pair_workspace(call.dims, call.alike, most)]);
    kernel(threads, most, workspace.get());
}

static void pair_sums(const Given &members, const std::optional<Given> &others, double mass, double exponent,
                      bool single_precision, Array<double, 2> velocity, Array<double, 1> growth) {
    PairCall call = call_of(members, others, mass, exponent, velocity);
    expect(growth.shape(0) == velocity.shape(0), "growth is not of the members");
    call.growth = growth.data();
    const PairKernels &pairs = kernels().pairs;
    with_workspace(call, [&](int threads, long long most, double *workspace) {
        (single_precision ? pairs.single_precision : pairs.double_precision)(call, threads, most, workspace);
    });
}

static void pair_fields(const Given &members, const std::optional<Given> &others, double mass, double exponent,
                        Array<double, 3> metric, Array<double, 2> velocity, Array<double, 3> slope) {
    PairFieldCall call{call_of(members, others, mass, exponent, velocity), metric.data(), slope.data()};
    for (const Array<double, 3> &matrices : {metric, slope})
        expect(matrices.shape(0) == velocity.shape(0) && matrices.shape(1) == velocity.shape(1) &&
                   matrices.shape(2) == velocity.shape(1),
               "metric and slope are not matrices of the members");
    with_workspace(call.pairs, [&](int threads, long long most, double *workspace) {
        kernels().pairs.fields(call, threads, most, workspace);
    });
}

void bind_pairs(nb::module_ &m) {
    m.def("pair_sums", &pair_sums, "members"_a.noconvert(), "others"_a.noconvert().none(), nb::kw_only(), "mass"_a,
          "exponent"_a, "single_precision"_a, "velocity"_a.noconvert(), "growth"_a.noconvert(),
          "V and G of members (v, score, hessian, weight, edges), from others of `mass`, or from the members if that is "
          "None; written to the last two arguments. Pairs are computed in single or double precision.");
    m.def("pair_fields", &pair_fields, "members"_a.noconvert(), "others"_a.noconvert().none(), nb::kw_only(), "mass"_a,
          "exponent"_a, "metric"_a.noconvert(), "velocity"_a.noconvert(), "slope"_a.noconvert(),
          "D, V and dV/dv of members, from others, or from the members if that is None; written to the last three.");
}

}  // namespace kjko
