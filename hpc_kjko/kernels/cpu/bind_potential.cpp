#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <stdexcept>
#include <tuple>
#include <vector>

#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "cpu/bind.hpp"
#include "cpu/cpu.hpp"
#include "cpu/kernels.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kjko {

template <class Number, size_t DIMS>
using Array = nb::ndarray<Number, nb::ndim<DIMS>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu>;  // in either precision
using Sum = nb::ndarray<nb::numpy, double, nb::ndim<1>>;

static void expect(bool holds, const char *otherwise) {
    if (!holds) throw std::invalid_argument(otherwise);
}

template <class Real>
static const PotentialTable<Real> &table();
template <>
const PotentialTable<float> &table<float>() {
    return kernels().potential.single_precision;
}
template <>
const PotentialTable<double> &table<double>() {
    return kernels().potential.double_precision;
}

// Weights, biases, the number of velocities among the last inputs, and whether x is periodic.
template <class Real>
using Layers = std::tuple<std::vector<Array<const Real, 2>>, std::vector<Array<const Real, 1>>, int, bool>;
// The shares, where the pieces begin and the last one ends, and the unit to which their sums are rounded.
using Terms = std::tuple<Array<const double, 1>, Array<const long long, 1>, double>;

template <class Real>
static PotentialCall<Real> call_of(const Layers<Real> &network, const Array<const Real, 2> &z) {
    const auto &[weights, biases, velocity_dims, periodic] = network;
    const size_t layers = weights.size();
    expect((layers == 1 || layers == 2) && biases.size() == layers, "there are one or two hidden layers");
    expect(velocity_dims >= 1 && velocity_dims <= MOST_VELOCITY_DIMS, "there are one to three velocities");
    expect(z.shape(1) > static_cast<size_t>(velocity_dims) && z.shape(1) < MOST_INPUTS, "the inputs are too few or many");
    PotentialCall<Real> call{};
    call.layers = static_cast<int>(layers);
    call.widths[0] = static_cast<int>(z.shape(1));
    for (size_t layer = 0; layer < layers; ++layer) {
        const size_t to = weights[layer].shape(0);
        expect(weights[layer].shape(1) == static_cast<size_t>(call.widths[layer]) && biases[layer].shape(0) == to,
               "the layers do not fit together");
        expect(to >= 1 && to <= MOST_FIELD_WIDTH, "a layer is wider than the kernel takes");
        call.widths[layer + 1] = static_cast<int>(to);
        call.weights[layer] = weights[layer].data();
        call.biases[layer] = biases[layer].data();
    }
    call.velocity_dims = velocity_dims;
    call.periodic = periodic;
    call.count = static_cast<long long>(z.shape(0));
    call.z = z.data();
    return call;
}

// The terms of sums over the particles of a call.
template <class Real>
static void take(PotentialCall<Real> &call, const Terms &terms) {
    const auto &[share, edges, unit] = terms;
    const size_t pieces = edges.shape(0) - 1;
    expect(static_cast<long long>(share.shape(0)) == call.count, "the shares are not of these particles");
    expect(edges.shape(0) > 0 && edges(0) == 0 && edges(pieces) == call.count, "the pieces are not of these particles");
    for (size_t piece = 0; piece < pieces; ++piece) expect(edges(piece) < edges(piece + 1), "a piece has no particles");
    call.share = share.data();
    call.pieces = static_cast<long long>(pieces);
    call.edges = edges.data();
    call.unit = unit;
}

template <class Real>
static PotentialCall<Real> call_of(const Layers<Real> &network, const Array<const Real, 2> &z, const Terms &terms) {
    PotentialCall<Real> call = call_of(network, z);
    take(call, terms);
    return call;
}

static const double *of_particles(const Array<const double, 1> &values, long long count) {
    expect(static_cast<long long>(values.shape(0)) == count, "what is wanted is not of these particles");
    return values.data();
}

// A workspace for the threads, aligned to a cache line.
struct Workspace {
    double *numbers;
    explicit Workspace(long long count)
        : numbers(static_cast<double *>(::operator new(count * sizeof(double), std::align_val_t{64}))) {}
    ~Workspace() { ::operator delete(numbers, std::align_val_t{64}); }
    Workspace(const Workspace &) = delete;
};

// Calls run(threads, workspace) for work of `parts` parts, where each thread adds up `size` numbers.
template <class Real, class Run>
static void with_threads(const PotentialCall<Real> &call, long long parts, long long numbers, const Run &run) {
    if (call.count == 0) return;
    const int threads = static_cast<int>(std::max(1LL, std::min<long long>(max_threads(), parts)));
    const Workspace workspace(threads * table<Real>().workspace(call, numbers));
    run(threads, workspace.numbers);
}

template <class Real, class Run>
static Sum added(const PotentialCall<Real> &call, long long size, const Run &run) {
    double *const sum = new double[size]();
    const nb::capsule owner(sum, [](void *numbers) noexcept { delete[] static_cast<double *>(numbers); });
    {
        nb::gil_scoped_release release;
        with_threads(call, call.pieces, size,
                     [&](int threads, double *workspace) { run(sum, threads, workspace); });
    }
    const size_t shape[] = {static_cast<size_t>(size)};
    return Sum(sum, 1, shape, owner);
}

template <class Real>
static void values(const Layers<Real> &network, Array<const Real, 2> z, Array<const double, 2> coefficients,
                   Array<double, 2> values) {
    const PotentialCall<Real> call = call_of(network, z);
    const size_t sets = coefficients.shape(0), functions = table<Real>().sizes(call).density + 2 * call.velocity_dims;
    expect(coefficients.shape(1) == functions, "there are not as many coefficients as functions");
    expect(values.shape(0) == sets && values.shape(1) == z.shape(0), "the values are not of these particles");
    nb::gil_scoped_release release;
    with_threads(call, call.count / 1024, 0, [&](int threads, double *workspace) {
        table<Real>().values(call, static_cast<int>(sets), coefficients.data(), values.data(), threads, workspace);
    });
}

template <class Real>
static void slopes(const Layers<Real> &network, Array<const Real, 2> z, Array<const Real, 2> coefficients,
                   Array<Real, 3> gradients, Array<Real, 4> hessians) {
    const PotentialCall<Real> call = call_of(network, z);
    const size_t sets = coefficients.shape(0), functions = table<Real>().sizes(call).potential, bent = hessians.shape(0);
    const size_t count = z.shape(0), dv = call.velocity_dims;
    expect(coefficients.shape(1) == functions, "there are not as many coefficients as functions");
    expect(gradients.shape(0) == sets && gradients.shape(1) == count && gradients.shape(2) == dv,
           "the gradients are not of these particles");
    expect(bent <= sets && hessians.shape(1) == count && hessians.shape(2) == dv && hessians.shape(3) == dv,
           "the second derivatives are not of these particles");
    nb::gil_scoped_release release;
    with_threads(call, call.count / 1024, 0, [&](int threads, double *workspace) {
        table<Real>().slopes(call, static_cast<int>(sets), static_cast<int>(bent), coefficients.data(),
                             gradients.data(), hessians.data(), threads, workspace);
    });
}

template <class Real>
static Sum normal(const Layers<Real> &network, Array<const Real, 2> z, const Terms &terms,
                  Array<const double, 1> wanted) {
    const PotentialCall<Real> call = call_of(network, z, terms);
    const double *const values = of_particles(wanted, call.count);
    const long long functions = table<Real>().sizes(call).density;
    return added(call, functions * (functions + 1), [&](double *sum, int threads, double *workspace) {
        table<Real>().normal(call, values, sum, threads, workspace);
    });
}

template <class Real>
static Sum derivatives(const Layers<Real> &network, Array<const Real, 2> z, const Terms &terms) {
    const PotentialCall<Real> call = call_of(network, z, terms);
    const long long functions = table<Real>().sizes(call).potential;
    return added(call, 2 * functions * functions + functions + 1, [&](double *sum, int threads, double *workspace) {
        table<Real>().derivatives(call, sum, threads, workspace);
    });
}

template <class Real>
static Sum barrier(const Layers<Real> &network, Array<const Real, 2> z, const Terms &terms, Array<const double, 1> k,
                   double step) {
    const PotentialCall<Real> call = call_of(network, z, terms);
    const long long functions = table<Real>().sizes(call).potential;
    expect(static_cast<long long>(k.shape(0)) == functions, "there are not as many coefficients as functions");
    return added(call, functions + 2, [&](double *sum, int threads, double *workspace) {
        table<Real>().barrier(call, k.data(), step, sum, threads, workspace);
    });
}

template <class Real>
static Sum tied(const Layers<Real> &network, Array<const Real, 2> z, const Terms &terms, Array<const double, 1> k) {
    const PotentialCall<Real> call = call_of(network, z, terms);
    const PotentialSizes of = table<Real>().sizes(call);
    expect(static_cast<int>(k.shape(0)) == of.potential, "there are not as many coefficients as functions");
    const long long size = of.low * (of.low + 2) + 2 * of.low + 1 + of.places * of.places;
    return added(call, size, [&](double *sum, int threads, double *workspace) {
        table<Real>().tied(call, k.data(), sum, threads, workspace);
    });
}

// h, the step in the functional, T, whether log det is exact; periods; the k of the wave, κ: empty without a wave.
using How = std::tuple<double, double, double, bool, std::vector<double>, std::vector<double>, double>;

// The sums of the columns, then their remainders after rounding, then the smallest eigenvalue.
template <class Real>
static std::tuple<Sum, double> carry(const Layers<Real> &network, Array<const Real, 2> z, const Terms &terms,
                                     double finer, const How &given, Rows x, Rows v,
                                     Array<const Real, 2> coefficients, Rows moved, Array<double, 1> log_det,
                                     Array<double, 1> change, Array<double, 1> disagreement) {
    PotentialCall<Real> call = call_of(network, z);
    const size_t count = v.shape(0), dx = x.shape(1), dv = call.velocity_dims;
    const auto &[step, fitted, temperature, exact, periods, wave, strength] = given;
    const bool is_double = v.dtype() == nb::dtype<double>();
    expect((is_double || v.dtype() == nb::dtype<float>()) && x.dtype() == v.dtype() && moved.dtype() == v.dtype(),
           "particles are in float32 or in float64");
    expect(x.shape(0) == count && v.shape(1) == dv, "x and v are not of the same particles");
    expect(dx >= 1 && dx <= MOST_VELOCITY_DIMS && (call.periodic ? 2 * dx : dx) == z.shape(1) - dv,
           "positions do not enter the network");
    expect(!call.periodic || periods.size() == dx, "there is a period for each position");
    expect(wave.empty() || wave.size() == dx, "the wave vector is not that of the positions");
    expect(moved.shape(0) == count && moved.shape(1) == dv && log_det.shape(0) == count && change.shape(0) == count &&
               disagreement.shape(0) == count,
           "what is wanted is not of these particles");
    expect(coefficients.shape(0) == 2 && static_cast<int>(coefficients.shape(1)) == table<Real>().sizes(call).potential,
           "there are not two sets of as many coefficients as functions");
    call.count = static_cast<long long>(count);
    take(call, terms);
    call.finer = finer;
    CarryStep how{};
    how.step = step, how.fitted = fitted, how.temperature = temperature, how.exact = exact, how.strength = strength;
    how.wave = !wave.empty();
    double square = 0;
    for (double k : wave) square += k * k;
    for (size_t k = 0; k < dx; ++k) {
        how.periods[k] = call.periodic ? periods[k] : 0;
        how.wave_vector[k] = how.wave ? wave[k] : 0;
        how.direction[k] = how.wave ? wave[k] / std::sqrt(square) : 0;
    }
    const MovedParticles particles{is_double, static_cast<int>(dx), x.data(), v.data(), moved.data()};
    double smallest = std::numeric_limits<double>::infinity();
    const Sum sums = added(call, 2 * CARRY_COLUMNS, [&](double *sum, int threads, double *workspace) {
        table<Real>().carry(call, how, particles, coefficients.data(), log_det.data(), change.data(),
                            disagreement.data(), sum, &smallest, threads, workspace);
    });
    return {sums, smallest};
}

template <class Real>
static Sum training(const Layers<Real> &network, Array<const Real, 2> z, const Terms &terms,
                    Array<const double, 1> wanted, Array<const double, 1> c) {
    const PotentialCall<Real> call = call_of(network, z, terms);
    const double *const values = of_particles(wanted, call.count);
    expect(static_cast<int>(c.shape(0)) == table<Real>().sizes(call).density,
           "there are not as many coefficients as functions");
    return added(call, table<Real>().sizes(call).training, [&](double *sum, int threads, double *workspace) {
        table<Real>().training(call, values, c.data(), sum, threads, workspace);
    });
}

template <class Real>
static void bind(nb::module_ &m) {
    m.def("potential_values", &values<Real>, "network"_a.noconvert(), "z"_a.noconvert(), "coefficients"_a.noconvert(),
          nb::kw_only(), "values"_a.noconvert(), "Sums of functions at inputs z for each set of coefficients, written to `values`.");
    m.def("potential_slopes", &slopes<Real>, "network"_a.noconvert(), "z"_a.noconvert(), "coefficients"_a.noconvert(),
          nb::kw_only(), "gradients"_a.noconvert(), "hessians"_a.noconvert(),
          "∇v Φ at inputs z for each set of coefficients, and ∇v∇v Φ of the first of them, written to the last two.");
    m.def("potential_normal", &normal<Real>, "network"_a.noconvert(), "z"_a.noconvert(), "terms"_a.noconvert(),
          "wanted"_a.noconvert(), "Sums for the normal equations of ψ.");
    m.def("potential_derivatives", &derivatives<Real>, "network"_a.noconvert(), "z"_a.noconvert(),
          "terms"_a.noconvert(), "Sums of products of derivatives of the functions of Φ.");
    m.def("potential_barrier", &barrier<Real>, "network"_a.noconvert(), "z"_a.noconvert(), "terms"_a.noconvert(),
          "coefficients"_a.noconvert(), nb::kw_only(), "step"_a, "Sums of log det(I + h ∇v∇v Φ) and its derivative.");
    m.def("potential_tied", &tied<Real>, "network"_a.noconvert(), "z"_a.noconvert(), "terms"_a.noconvert(),
          "coefficients"_a.noconvert(), "Sums that tie ψ to a sample.");
    m.def("potential_carry", &carry<Real>, "network"_a.noconvert(), "z"_a.noconvert(), "terms"_a.noconvert(), "finer"_a,
          "how"_a, "x"_a.noconvert(), "v"_a.noconvert(), "coefficients"_a.noconvert(), nb::kw_only(),
          "moved"_a.noconvert(), "log_det"_a.noconvert(), "change"_a.noconvert(), "disagreement"_a.noconvert(),
          "A step along u, written to the last four; sums of its columns, and the smallest eigenvalue of its map.");
    m.def("potential_training", &training<Real>, "network"_a.noconvert(), "z"_a.noconvert(), "terms"_a.noconvert(),
          "wanted"_a.noconvert(), "c"_a.noconvert(), "Half the sum of the squared residuals of ψ, and its gradient.");
}

void bind_potential(nb::module_ &m) {
    bind<float>(m);
    bind<double>(m);
}

}  // namespace kjko
