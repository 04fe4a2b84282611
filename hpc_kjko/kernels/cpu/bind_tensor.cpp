// The GPU kernels with products on tensor cores, on the CPU, for tests. Also such a product by itself.
#define KJKO_LEVEL tensor
#define KJKO_TENSOR true

#include <nanobind/ndarray.h>

#include "cpu/bind.hpp"
#include "cpu/device_kernels.hpp"

using namespace nb::literals;

namespace kjko {

namespace {

struct Compiled {
    static constexpr Instance objectives[] = {
        objective_of<16, Tanh, 1, false>, objective_of<32, Tanh, 1, false>,     objective_of<32, Tanh, 2, false>,
        objective_of<32, Tanh, 3, false>, objective_of<32, LeakyRelu, 2, true>, objective_of<48, Tanh, 2, true>,
        objective_of<64, Tanh, 3, false>,
    };
    static constexpr Instance moments[] = {
        moments_of<16, Tanh, 1>, moments_of<32, Tanh, 2>, moments_of<32, Tanh, 3>, moments_of<48, Tanh, 3>,
        moments_of<64, Tanh, 3>,
    };
    static constexpr Instance fields[] = {field_of<float, 64, Tanh, 3>, field_of<double, 32, Tanh, 3>};
    template <template <class, int, int> class KernelOf>
    static constexpr Instance potentials[] = {
        potential_of<KernelOf, float, 16, 3>,  potential_of<KernelOf, float, 32, 2>,  potential_of<KernelOf, float, 64, 3>,
        potential_of<KernelOf, double, 32, 1>, potential_of<KernelOf, double, 48, 2>, potential_of<KernelOf, double, 64, 3>,
    };
};

}  // namespace

const Instance &tensor_kernel(const std::string &kernel, const Constants &constants) {
    return kernel_named<Compiled>(kernel, constants);
}

template <class Real>
using Matrix = nb::ndarray<Real, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// The parts of a matrix that the lanes hold, from [lane][number].
template <class Part, class Real>
static PerLane<Part> parts_of(const Matrix<Real> &numbers) {
    constexpr size_t COUNT = sizeof(Part) / sizeof(Real);
    if (numbers.shape(0) != LANES || numbers.shape(1) != COUNT) throw std::invalid_argument("not what 32 lanes hold");
    PerLane<Part> parts;
    std::memcpy(&parts, numbers.data(), sizeof parts);
    return parts;
}

template <class Real>
static void multiply_parts(const Matrix<Real> &left, const Matrix<Real> &right, const Matrix<Real> &sums) {
    auto result = parts_of<ProductPart<Real>>(sums);
    multiply_add(parts_of<LeftPart<Real>>(left), parts_of<RightPart<Real>>(right), result);
    std::memcpy(sums.data(), &result, sizeof result);
}

// A thread block of one warp that multiplies [16][K] by [K][8], eight k at a time.
template <class Real>
static void multiply_matrix(const Matrix<Real> &left, const Matrix<Real> &right, const Matrix<Real> &to) {
    struct State {
        ProductPart<Real> sums;
    };
    Team<LANES, State> team(false);
    const size_t count = left.shape(1);
    team.warps([&](auto &warp) {
        for (size_t k = 0; k < count; k += 8) {
            LeftFactor<Real> a;
            RightFactor<Real> b;
            warp.each([&](int lane, State &) {
                for (int e = 0; e < 4; ++e)
                    a.set(lane, e, left(LeftPart<Real>::row(lane, e), k + LeftPart<Real>::k(lane, e)));
                for (int e = 0; e < 2; ++e)
                    b.set(lane, e, right(k + RightPart<Real>::k(lane, e), RightPart<Real>::column(lane)));
            });
            add_product(warp, a, b, [](State &state) -> ProductPart<Real> & { return state.sums; });
        }
        warp.each([&](int lane, State &state) {
            for (int e = 0; e < 4; ++e)
                to(ProductPart<Real>::row(lane, e), ProductPart<Real>::column(lane, e)) = state.sums.at[e];
        });
    });
}

void bind_tensor(nb::module_ &m) {
    const char *parts = "Adds a product of one instruction to the sums [32, 4]: of a left part [32, 4] and a right part [32, 2].";
    m.def("tensor_multiply_add", &multiply_parts<float>, "left"_a, "right"_a, "sums"_a, parts);
    m.def("tensor_multiply_add", &multiply_parts<double>, "left"_a, "right"_a, "sums"_a, parts);
    const char *product = "The product of [16, K] and [K, 8] as kernels make it on tensor cores, stored in [16, 8].";
    m.def("tensor_product", &multiply_matrix<float>, "left"_a, "right"_a, "to"_a, product);
    m.def("tensor_product", &multiply_matrix<double>, "left"_a, "right"_a, "to"_a, product);
}

}  // namespace kjko
