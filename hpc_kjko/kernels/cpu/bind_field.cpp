#include <algorithm>
#include <optional>
#include <stdexcept>
#include <vector>

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include "cpu/bind.hpp"
#include "cpu/kernels.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kjko {

template <class Real, size_t DIMS>
using Given = nb::ndarray<const Real, nb::ndim<DIMS>, nb::c_contig, nb::device::cpu>;
template <class Real, size_t DIMS>
using Wanted = nb::ndarray<Real, nb::ndim<DIMS>, nb::c_contig, nb::device::cpu>;

static void expect(bool holds, const char *otherwise) {
    if (!holds) throw std::invalid_argument(otherwise);
}

static void run(const FieldCall<float> &call) { kernels().field.single_precision(call); }
static void run(const FieldCall<double> &call) { kernels().field.double_precision(call); }

template <class Real>
static void evaluate_field(Given<Real, 2> z, const std::vector<Given<Real, 2>> &weights,
                           const std::vector<Given<Real, 1>> &biases, std::optional<Given<Real, 2>> skip, bool tanh,
                           Wanted<Real, 2> u, Wanted<Real, 3> jacobian) {
    const size_t layers = weights.size(), count = z.shape(0), dv = u.shape(1);
    expect(layers >= 1 && layers <= MOST_FIELD_LAYERS && biases.size() == layers, "a field has one to three layers");
    FieldCall<Real> call{};
    call.layers = static_cast<int>(layers);
    for (size_t layer = 0; layer < layers; ++layer) {
        const size_t from = layer ? weights[layer - 1].shape(0) : z.shape(1), to = weights[layer].shape(0);
        expect(weights[layer].shape(1) == from && biases[layer].shape(0) == to, "the layers do not fit together");
        expect(from <= MOST_FIELD_WIDTH && to <= MOST_FIELD_WIDTH, "a layer is wider than the kernel takes");
        call.widths[layer] = static_cast<int>(from);
        call.widths[layer + 1] = static_cast<int>(to);
        call.weights[layer] = weights[layer].data();
        call.biases[layer] = biases[layer].data();
    }
    expect(static_cast<int>(dv) == call.widths[layers] && dv >= 1 && dv <= MOST_VELOCITY_DIMS && dv <= z.shape(1),
           "u has as many columns as the last layer has outputs, one to three");
    expect(!skip || (skip->shape(0) == dv && skip->shape(1) >= dv && skip->shape(1) <= z.shape(1)),
           "the skip does not fit the inputs and u");
    expect(u.shape(0) == count && jacobian.shape(0) == count && jacobian.shape(1) == dv && jacobian.shape(2) == dv,
           "z, u and its Jacobian are not of the same particles");
    call.skip = skip ? skip->data() : nullptr;
    call.skipped = skip ? static_cast<int>(skip->shape(1)) : 0;
    call.tanh = tanh;
    call.count = static_cast<long long>(count);
    call.z = z.data();
    call.u = u.data();
    call.jacobian = jacobian.data();
    nb::gil_scoped_release release;
    run(call);
}

template <class Real>
static void bind(nb::module_ &m) {
    m.def("evaluate_field", &evaluate_field<Real>, "z"_a.noconvert(), "weights"_a.noconvert(), "biases"_a.noconvert(),
          "skip"_a.noconvert().none(), nb::kw_only(), "tanh"_a, "u"_a.noconvert(), "jacobian"_a.noconvert(),
          "The control field u and its Jacobian in v at inputs z, in one precision, written to the last two arguments.");
}

void bind_field(nb::module_ &m) {
    bind<float>(m);
    bind<double>(m);
}

}  // namespace kjko
