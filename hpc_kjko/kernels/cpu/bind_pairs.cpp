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
    expect(rising, "the edges are not those of blocks of these particles");
    return {v.data(), score.data(), hessian.data(), weight.data(), edges.data()};
}

static void pair_sums(const Given &members, const std::optional<Given> &others, double mass, double exponent,
                      bool single_precision, Array<double, 2> velocity, Array<double, 1> growth) {
    const size_t count = velocity.shape(0), dims = velocity.shape(1);
    expect(dims == 2 || dims == 3, "velocities have two or three dimensions");
    expect(exponent != 0, "an exponent of 0 needs no pairs");
    PairCall call{};
    call.dims = static_cast<int>(dims);
    call.alike = !others;
    call.members = members_of(members, dims);
    call.others = others ? members_of(*others, dims) : call.members;
    const size_t ends = std::get<4>(members).shape(0);
    expect(!others || std::get<4>(*others).shape(0) == ends, "the others are not in as many blocks");
    expect(std::get<0>(members).shape(0) == count && growth.shape(0) == count,
           "velocity and growth are not of the members");
    call.blocks = static_cast<long long>(ends) - 1;
    call.exponent = exponent;
    call.mass = mass;
    call.velocity = velocity.data();
    call.growth = growth.data();
    nb::gil_scoped_release release;
    long long most = 0;
    for (long long block = 0; block < call.blocks; ++block)
        most = std::max(most, call.others.edges[block + 1] - call.others.edges[block]);
    const int threads = static_cast<int>(std::max(1LL, std::min<long long>(max_threads(), call.blocks)));
    const std::unique_ptr<double[]> workspace(new double[threads * pair_workspace(call.dims, call.alike, most)]);
    const PairKernels &pairs = kernels().pairs;
    (single_precision ? pairs.single_precision : pairs.double_precision)(call, threads, most, workspace.get());
}

void bind_pairs(nb::module_ &m) {
    m.def("pair_sums", &pair_sums, "members"_a.noconvert(), "others"_a.noconvert().none(), nb::kw_only(), "mass"_a,
          "exponent"_a, "single_precision"_a, "velocity"_a.noconvert(), "growth"_a.noconvert(),
          "V and G of members (v, score, hessian, weight, edges) by others, or by themselves if that is None, of `mass`; "
          "written to the last two. Pairs are computed in single or double precision.");
}

}  // namespace kjko
