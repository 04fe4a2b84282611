#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include "cpu/bind.hpp"
#include "cpu/cpu.hpp"
#include "cpu/kernels.hpp"

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

// The settings of hpc_kjko/kernels/settings.py, by the names of its attributes.
static Settings settings_of(const nb::object &python) {
    const auto number = [&](const char *name) { return nb::cast<double>(python.attr(name)); };
    Settings settings{};
    settings.tanh = nb::cast<bool>(python.attr("tanh"));
    settings.exact = nb::cast<bool>(python.attr("exact"));
    settings.step = static_cast<float>(number("step"));
    settings.collision_strength = static_cast<float>(number("collision_strength"));
    settings.temperature = static_cast<float>(number("temperature"));
    settings.together = nb::cast<int>(python.attr("together"));
    settings.unit = number("unit");
    settings.finer = number("finer");
    return settings;
}

// The network and the particles in the form that kernels take.
static ObjectiveCall call_of(const Matrix &z, const Rows &v, const Vector &share, const std::optional<Vector> &known,
                             const Matrix &w1, const Vector &b1, const Matrix &w2, const Vector &b2, const Matrix &w3,
                             const Vector &b3, const std::optional<Matrix> &skip, const nb::object &settings,
                             int most) {
    const size_t count = z.shape(0), inputs = z.shape(1), width = w2.shape(0), dv = w3.shape(0);
    const size_t skipped = skip ? skip->shape(1) : 0;
    expect(w1.shape(0) == width && w1.shape(1) == inputs && b1.shape(0) == width && w2.shape(1) == width &&
               b2.shape(0) == width && w3.shape(1) == width && b3.shape(0) == dv && dv <= inputs &&
               skipped <= inputs && (!skip || (skip->shape(0) == dv && skipped >= dv)),
           "the layers do not fit together");
    expect(v.shape(0) == count && v.shape(1) == dv && share.shape(0) == count && (!known || known->shape(0) == count),
           "z, v, share and known are not of the same particles");
    expect(count == 0 || dv == 1 || v.stride(1) == 1, "the components of a particle's v must lie side by side");
    ObjectiveCall call{};
    call.network = {static_cast<int>(inputs), static_cast<int>(width), static_cast<int>(dv), static_cast<int>(skipped),
                    w1.data(), b1.data(), w2.data(), b2.data(), w3.data(), b3.data(), skip ? skip->data() : nullptr};
    expect(kernels().objective.instantiated(call.network), "no kernel is compiled for this network");
    call.settings = settings_of(settings);
    expect(call.settings.together > 0 && call.settings.together <= most,
           "no particles, or more than a sum in single precision is good for, are added up together");
    call.count = static_cast<long long>(count);
    call.z = z.data();
    call.v = v.data();
    call.v_stride = static_cast<long long>(v.stride(0));
    call.share = share.data();
    call.known = known ? known->data() : nullptr;
    return call;
}

// The tanh of an infinite weight is just 1. So a network that is not finite is detected by its parameters.
static bool finite(const Network &n) {
    const int h = n.width, dv = n.velocity_dims;
    return finite(n.w1, h * n.inputs) && finite(n.b1, h) && finite(n.w2, h * h) && finite(n.b2, h) &&
           finite(n.w3, dv * h) && finite(n.b3, dv) && (!n.skip || finite(n.skip, dv * n.skipped));
}

// The number of threads for a call: at most one for each piece.
static int threads_of(const ObjectiveCall &call) {
    const long long chunks = (call.count + call.settings.together - 1) / call.settings.together;
    return static_cast<int>(std::max(1LL, std::min<long long>(chunks, max_threads())));
}

static nb::ndarray<nb::numpy, double, nb::ndim<1>> as_array(std::unique_ptr<double[]> numbers, size_t size) {
    nb::capsule owner(numbers.get(), [](void *p) noexcept { delete[] static_cast<double *>(p); });
    return {numbers.release(), {size}, owner};
}

// The contribution of some particles to J, and its gradient with respect to all parameters, one after the other; None
// if it is not wanted.
static nb::tuple evaluate_objective(Matrix z, Rows v, Vector share, std::optional<Vector> known, Matrix w1, Vector b1,
                                    Matrix w2, Vector b2, Matrix w3, Vector b3, std::optional<Matrix> skip,
                                    const nb::object &settings, bool with_gradient) {
    ObjectiveCall call = call_of(z, v, share, known, w1, b1, w2, b2, w3, b3, skip, settings, CHUNK);
    const Network &n = call.network;
    const size_t parameters = w1.size() + b1.size() + w2.size() + b2.size() + w3.size() + b3.size() +
                              (skip ? skip->size() : 0);
    auto gradient = std::make_unique<double[]>(with_gradient ? parameters : 0);
    double loss = std::numeric_limits<double>::quiet_NaN();
    if (finite(n)) {
        nb::gil_scoped_release release;
        const int threads = threads_of(call);
        const std::unique_ptr<double[]> sums(new double[threads * kernels().objective.sums_size(n)]);
        call.sums = sums.get();
        call.loss = &loss;
        call.gradient = with_gradient ? gradient.get() : nullptr;
        kernels().objective.evaluate(call, threads);
    } else {
        std::fill_n(gradient.get(), with_gradient ? parameters : 0, loss);
    }
    if (!with_gradient) return nb::make_tuple(loss, nb::none());
    return nb::make_tuple(loss, as_array(std::move(gradient), parameters));
}

// The moments of cpu/objective.hpp in the order of VarproSolver, in one array: pull, log_det, its remainder and the
// number of particles whose map reverses orientation; then, if `whole`, gram and load and, for the exact log det, outer
// (else zeros).
static nb::ndarray<nb::numpy, double, nb::ndim<1>> objective_moments(
    Matrix z, Rows v, Vector share, std::optional<Vector> known, Matrix w1, Vector b1, Matrix w2, Vector b2, Matrix w3,
    Vector b3, std::optional<Matrix> skip, const nb::object &settings, bool whole) {
    ObjectiveCall call = call_of(z, v, share, known, w1, b1, w2, b2, w3, b3, skip, settings, MOMENTS_CHUNK);
    const size_t dv = call.network.velocity_dims, basis = call.network.width + call.network.skipped + 1;
    const size_t size = dv * basis + 3 + (whole ? basis * basis + dv * basis + dv * dv * basis * basis : 0);
    auto numbers = std::make_unique<double[]>(size);
    if (finite(call.network)) {
        nb::gil_scoped_release release;
        Moments moments{};
        moments.pull = numbers.get();
        moments.log_det = moments.pull + dv * basis;
        if (whole) {
            moments.gram = moments.log_det + 3;
            moments.load = moments.gram + basis * basis;
            moments.outer = moments.load + dv * basis;
        }
        const int threads = threads_of(call);
        const std::unique_ptr<double[]> sums(new double[threads * kernels().objective.moments_sums_size(call.network)]);
        call.sums = sums.get();
        kernels().objective.moments(call, moments, threads);
    } else {
        std::fill_n(numbers.get(), size, std::numeric_limits<double>::quiet_NaN());
    }
    return as_array(std::move(numbers), size);
}

void bind_objective(nb::module_ &m) {
    m.def("evaluate_objective", &evaluate_objective, "z"_a.noconvert(), "v"_a.noconvert(), "share"_a.noconvert(),
          "known"_a.noconvert().none(), "w1"_a.noconvert(), "b1"_a.noconvert(), "w2"_a.noconvert(),
          "b2"_a.noconvert(), "w3"_a.noconvert(), "b3"_a.noconvert(), "skip"_a.noconvert().none(), nb::kw_only(),
          "settings"_a, "with_gradient"_a,
          "The part of the JKO functional from some particles, and its gradient in w1, b1, w2, b2, w3, b3, skip.");
    m.def("objective_moments", &objective_moments, "z"_a.noconvert(), "v"_a.noconvert(), "share"_a.noconvert(),
          "known"_a.noconvert().none(), "w1"_a.noconvert(), "b1"_a.noconvert(), "w2"_a.noconvert(),
          "b2"_a.noconvert(), "w3"_a.noconvert(), "b3"_a.noconvert(), "skip"_a.noconvert().none(), nb::kw_only(),
          "settings"_a, "whole"_a,
          "Sums for variable projection: pull, log_det, its remainder, number of det <= 0; gram, load, outer.");
}

}  // namespace kjko
