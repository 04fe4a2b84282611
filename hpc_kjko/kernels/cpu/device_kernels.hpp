// The GPU kernels as functions of the CPU, for tests. A phase is a loop over the threads of a thread block. They are not
// optimised for speed. This file is compiled twice: with products by threads (bind_device.cpp), and with products as
// tensor cores make them (bind_tensor.cpp).
#pragma once

#include <nanobind/nanobind.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "cuda/field.hpp"
#include "cuda/moments.hpp"
#include "cuda/objective.hpp"
#include "cuda/potential_sums.hpp"

namespace nb = nanobind;

namespace kjko {

// A kernel of a network, selected by the constants for which it is compiled.
struct Constants {
    int width;
    bool tanh;
    int velocity_dims;
    bool closed, is_double, tensor;  // tensor: products on tensor cores

    bool operator==(const Constants &other) const {
        return width == other.width && tanh == other.tanh && velocity_dims == other.velocity_dims &&
               closed == other.closed && is_double == other.is_double && tensor == other.tensor;
    }
};

// The kernels that tests run: every width, both methods for the tangents, both activations, but not all combinations.
struct Instance {
    Constants constants;
    Shape shape;
    void (*run)(const nb::bytes &arguments, int blocks, int groups, bool backwards);
    void (*order)(const nb::bytes &arguments);  // of moments
};

// A kernel with products on tensor cores.
const Instance &tensor_kernel(const std::string &kernel, const Constants &constants);

using namespace KJKO_LEVEL;

// The arguments as a launch copies them to a GPU.
template <class Call>
static Call call_of(const nb::bytes &bytes) {
    if (bytes.size() != sizeof(Call)) throw std::invalid_argument("these are not the arguments of this kernel");
    Call call;
    std::memcpy(&call, bytes.data(), sizeof call);
    return call;
}

// The thread blocks of a kernel, one after the other: what(shared, team, block).
template <class Kernel, class What>
static void for_blocks(int blocks, bool backwards, const What &what) {
    const auto shared = std::make_unique<typename Kernel::Shared>();
    // NaN, because shared memory is undefined at the start on a GPU
    std::memset(static_cast<void *>(shared.get()), 0xff, sizeof *shared);
    const auto team = std::make_unique<Team<Kernel::THREADS, typename Kernel::State>>(backwards);
    for (int block = 0; block < blocks; ++block) what(*shared, *team, block);
}

template <size_t COUNT>
static const Instance &found(const Instance (&instances)[COUNT], const Constants &constants) {
    for (const Instance &one : instances)
        if (one.constants == constants) return one;
    throw std::invalid_argument("this kernel is not among those that tests run");
}

template <int H, class Activation, int DV, bool CLOSED>
constexpr Instance objective_of = {
    {H, Activation::curved, DV, CLOSED, false, TENSOR},
    DeviceObjective<H, Activation, DV, CLOSED>::shape(0),
    [](const nb::bytes &arguments, int blocks, int, bool backwards) {
        using Kernel = DeviceObjective<H, Activation, DV, CLOSED>;
        const auto call = call_of<ObjectiveCall>(arguments);
        for_blocks<Kernel>(blocks, backwards, [&](auto &shared, auto &team, int block) {
            Kernel{call, shared}.add_pieces(team, block, blocks);
        });
    },
    nullptr};

template <int H, class Activation, int DV>
constexpr Instance moments_of = {
    {H, Activation::curved, DV, false, false, TENSOR},
    DeviceMoments<H, Activation, DV>::shape(0),
    [](const nb::bytes &arguments, int blocks, int groups, bool backwards) {
        using Kernel = DeviceMoments<H, Activation, DV>;
        const auto call = call_of<ObjectiveCall>(arguments);
        for (int group = 0; group < groups; ++group)
            for_blocks<Kernel>(blocks, backwards, [&](auto &shared, auto &team, int block) {
                Kernel{call, shared, group}.add_pieces(team, block, blocks);
            });
    },
    [](const nb::bytes &arguments) {
        const auto call = call_of<MomentsOrderCall>(arguments);
        for (int index = 0; index < call.count; ++index) call.moments[index] = moment_of<H, DV>(call, index);
    }};

template <class Real, int H, class Activation, int DV>
constexpr Instance field_of = {
    {H, Activation::curved, DV, false, sizeof(Real) == 8, TENSOR},
    DeviceField<Real, H, Activation, DV>::shape(0),
    [](const nb::bytes &arguments, int blocks, int, bool backwards) {
        using Kernel = DeviceField<Real, H, Activation, DV>;
        const auto call = call_of<DeviceFieldCall<Real>>(arguments);
        for_blocks<Kernel>(blocks, backwards, [&](auto &shared, auto &team, int block) {
            Kernel{call, shared}.evaluate(team, block, blocks);
        });
    },
    nullptr};

template <template <class, int, int> class KernelOf, class Real, int H, int DV>
constexpr Instance potential_of = {
    {H, true, DV, false, sizeof(Real) == 8, TENSOR},
    KernelOf<Real, H, DV>::shape(0),
    [](const nb::bytes &arguments, int blocks, int groups, bool backwards) {
        using Kernel = KernelOf<Real, H, DV>;
        const auto call = call_of<DevicePotentialCall<Real>>(arguments);
        for (int group = 0; group < groups; ++group)
            for_blocks<Kernel>(blocks, backwards, [&](auto &shared, auto &team, int block) {
                Kernel{call, shared, group}.run(team, block, blocks);
            });
    },
    nullptr};

// The kernel of a name that is compiled for these constants. `Compiled` has lists of kernels: `objectives`, `moments`,
// `fields`, and `potentials`, which is the same list for each kernel of a potential.
template <class Compiled>
static const Instance &kernel_named(const std::string &kernel, const Constants &constants) {
    const auto one_of = [&](const auto &instances) -> const Instance & { return found(instances, constants); };
    if (kernel == "evaluate_objective") return one_of(Compiled::objectives);
    if (kernel == "sum_moments" || kernel == "order_moments") return one_of(Compiled::moments);
    if (kernel == "evaluate_field") return one_of(Compiled::fields);
    if (kernel == "potential_values") return one_of(Compiled::template potentials<potential_values>);
    if (kernel == "potential_slopes") return one_of(Compiled::template potentials<potential_slopes>);
    if (kernel == "potential_carry") return one_of(Compiled::template potentials<potential_carry>);
    if (kernel == "potential_normal") return one_of(Compiled::template potentials<potential_normal>);
    if (kernel == "potential_tied") return one_of(Compiled::template potentials<potential_tied>);
    if (kernel == "potential_missed") return one_of(Compiled::template potentials<potential_missed>);
    if (kernel == "potential_training") return one_of(Compiled::template potentials<potential_training>);
    if constexpr (!TENSOR) {  // these two never use tensor cores
        if (kernel == "potential_derivatives") return one_of(Compiled::template potentials<potential_derivatives>);
        if (kernel == "potential_barrier") return one_of(Compiled::template potentials<potential_barrier>);
    }
    throw std::invalid_argument("there is no kernel of this name");
}

}  // namespace kjko
