#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <vector>

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include "bind.hpp"
#include "kernels.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kjko {

using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;

static void expect(bool holds, const char *otherwise) {
    if (!holds) throw std::invalid_argument(otherwise);
}

static bool finite(const float *x, size_t count) {
    for (size_t i = 0; i < count; ++i)
        if (!std::isfinite(x[i])) return false;
    return true;
}

// J's part of some particles, and its gradient in all parameters, one after the other; None if it is not wanted.
static nb::tuple evaluate_objective(Matrix z, Rows v, Vector share, std::optional<Vector> known, Matrix w1, Vector b1,
                                    Matrix w2, Vector b2, Matrix w3, Vector b3, std::optional<Matrix> skip, bool tanh,
                                    bool exact, double step, double collision_strength, double temperature,
                                    bool with_gradient) {
    const size_t count = z.shape(0), inputs = z.shape(1), width = w2.shape(0), dv = w3.shape(0);
    const size_t skipped = skip ? skip->shape(1) : 0;
    expect(w1.shape(0) == width && w1.shape(1) == inputs && b1.shape(0) == width && w2.shape(1) == width &&
               b2.shape(0) == width && w3.shape(1) == width && b3.shape(0) == dv && dv <= inputs &&
               skipped <= inputs && (!skip || (skip->shape(0) == dv && skipped >= dv)),
           "the layers do not fit together");
    expect(v.shape(0) == count && v.shape(1) == dv && share.shape(0) == count && (!known || known->shape(0) == count),
           "z, v, share and known are not of the same particles");
    expect(count == 0 || dv == 1 || v.stride(1) == 1, "the components of a particle's v must lie side by side");

    const ObjectiveKernels &kernels = kjko::kernels().objective;
    const Network network{static_cast<int>(inputs), static_cast<int>(width), static_cast<int>(dv),
                          static_cast<int>(skipped), tanh, w1.data(), b1.data(), w2.data(), b2.data(), w3.data(),
                          b3.data(), skip ? skip->data() : nullptr};
    expect(kernels.instantiated(network), "no kernel is compiled for this network");

    const size_t parameters = w1.size() + b1.size() + w2.size() + b2.size() + w3.size() + b3.size() + dv * skipped;
    auto gradient = std::make_unique<double[]>(with_gradient ? parameters : 0);
    double loss = 0;
    {
        nb::gil_scoped_release release;
        // A tanh of infinity is 1 like any other: a network that is not finite must be seen in the parameters.
        if (finite(w1.data(), w1.size()) && finite(b1.data(), b1.size()) && finite(w2.data(), w2.size()) &&
            finite(b2.data(), b2.size()) && finite(w3.data(), w3.size()) && finite(b3.data(), b3.size()) &&
            (!skip || finite(skip->data(), skip->size()))) {
            const long long chunks = (static_cast<long long>(count) + CHUNK - 1) / CHUNK;
            const long long sums = std::max(1LL, std::min<long long>(chunks, MOST_SUMS));
            std::vector<double> workspace(sums * kernels.sums_size(network));
            kernels.evaluate({network, exact, static_cast<float>(step), static_cast<float>(collision_strength),
                              static_cast<float>(temperature), static_cast<long long>(count), z.data(), v.data(),
                              static_cast<long long>(v.stride(0)), share.data(), known ? known->data() : nullptr,
                              workspace.data(), &loss, with_gradient ? gradient.get() : nullptr});
        } else {
            loss = std::numeric_limits<double>::quiet_NaN();
            std::fill_n(gradient.get(), with_gradient ? parameters : 0, loss);
        }
    }
    if (!with_gradient) return nb::make_tuple(loss, nb::none());
    double *numbers = gradient.release();
    nb::capsule owner(numbers, [](void *p) noexcept { delete[] static_cast<double *>(p); });
    return nb::make_tuple(loss, nb::ndarray<nb::numpy, double, nb::ndim<1>>(numbers, {parameters}, owner));
}

void bind_objective(nb::module_ &m) {
    m.def("evaluate_objective", &evaluate_objective, "z"_a.noconvert(), "v"_a.noconvert(), "share"_a.noconvert(),
          "known"_a.noconvert().none(), "w1"_a.noconvert(), "b1"_a.noconvert(), "w2"_a.noconvert(),
          "b2"_a.noconvert(), "w3"_a.noconvert(), "b3"_a.noconvert(), "skip"_a.noconvert().none(), nb::kw_only(),
          "tanh"_a, "exact"_a, "step"_a, "collision_strength"_a, "temperature"_a, "with_gradient"_a,
          "The JKO functional's part of some particles and its gradient in w1, b1, w2, b2, w3, b3, skip.");
    m.attr("WIDTHS") = nb::make_tuple(16, 32, 48, 64);
    m.attr("MOST_INPUTS") = MOST_INPUTS - 1;
}

}  // namespace kjko
