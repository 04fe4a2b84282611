// The kernels of GPUs on the CPU, for tests: phases are loops over the threads of a block. Not made to be fast.
#define KJKO_LEVEL phases

#include <nanobind/nanobind.h>

#include <cstring>
#include <memory>
#include <stdexcept>

#include "cpu/bind.hpp"
#include "cuda/field.hpp"
#include "cuda/moments.hpp"
#include "cuda/objective.hpp"
#include "cuda/particles.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kjko {

using namespace phases;

// The arguments as a launch copies them to a GPU.
template <class Call>
static Call call_of(const nb::bytes &bytes) {
    if (bytes.size() != sizeof(Call)) throw std::invalid_argument("these are not the arguments of this kernel");
    Call call;
    std::memcpy(&call, bytes.data(), sizeof call);
    return call;
}

// A kernel's blocks, one after the other: what(shared, team, block).
template <class Kernel, class What>
static void for_blocks(int blocks, bool backwards, const What &what) {
    const auto shared = std::make_unique<typename Kernel::Shared>();
    std::memset(static_cast<void *>(shared.get()), 0xff, sizeof *shared);  // NaN: as little defined as on a GPU
    const auto team = std::make_unique<Team<Kernel::THREADS, typename Kernel::State>>(backwards);
    for (int block = 0; block < blocks; ++block) what(*shared, *team, block);
}

// What tests run: every width, every way of the tangents, both activations, but not all of their combinations.
template <class Call>
struct Instance {
    int width;
    bool tanh;
    int velocity_dims;
    bool closed;
    void (*run)(const Call &call, int blocks, int groups, bool backwards);
};

template <class Call, size_t COUNT>
static void run_instance(const Instance<Call> (&instances)[COUNT], const Call &call, bool tanh, bool closed, int blocks,
                         int groups, bool backwards) {
    const auto &n = call.network;
    for (const Instance<Call> &one : instances)
        if (one.width == n.width && one.tanh == tanh && one.velocity_dims == n.velocity_dims && one.closed == closed)
            return one.run(call, blocks, groups, backwards);
    throw std::invalid_argument("this kernel is not among those that tests run");
}

template <int H, class Activation, int DV, bool CLOSED>
constexpr Instance<ObjectiveCall> objective_of = {
    H, Activation::curved, DV, CLOSED, [](const ObjectiveCall &call, int blocks, int, bool backwards) {
        using Kernel = DeviceObjective<H, Activation, DV, CLOSED>;
        for_blocks<Kernel>(blocks, backwards, [&](auto &shared, auto &team, int block) {
            Kernel{call, shared}.add_chunks(team, block, blocks);
        });
    }};

template <int H, class Activation, int DV>
constexpr Instance<ObjectiveCall> moments_of = {
    H, Activation::curved, DV, false, [](const ObjectiveCall &call, int blocks, int groups, bool backwards) {
        using Kernel = DeviceMoments<H, Activation, DV>;
        for (int group = 0; group < groups; ++group)
            for_blocks<Kernel>(blocks, backwards, [&](auto &shared, auto &team, int block) {
                Kernel{call, shared, group}.add_chunks(team, block, blocks);
            });
    }};

template <class Real, int H, class Activation, int DV>
constexpr Instance<DeviceFieldCall<Real>> field_of = {
    H, Activation::curved, DV, false, [](const DeviceFieldCall<Real> &call, int blocks, int, bool backwards) {
        using Kernel = DeviceField<Real, H, Activation, DV>;
        for_blocks<Kernel>(blocks, backwards, [&](auto &shared, auto &team, int block) {
            Kernel{call, shared}.evaluate(team, block, blocks);
        });
    }};

static const Instance<ObjectiveCall> objectives[] = {
    objective_of<16, Tanh, 1, false>,      objective_of<16, Tanh, 3, true>,       objective_of<32, Tanh, 1, false>,
    objective_of<32, Tanh, 2, false>,      objective_of<32, Tanh, 2, true>,       objective_of<32, Tanh, 3, false>,
    objective_of<32, Tanh, 3, true>,       objective_of<32, LeakyRelu, 1, false>, objective_of<32, LeakyRelu, 2, true>,
    objective_of<32, LeakyRelu, 3, false>, objective_of<48, Tanh, 1, false>,      objective_of<48, Tanh, 2, true>,
    objective_of<64, Tanh, 1, false>,      objective_of<64, Tanh, 2, true>,       objective_of<64, Tanh, 3, false>,
};
static const Instance<ObjectiveCall> moments_kernels[] = {
    moments_of<16, Tanh, 1>, moments_of<16, Tanh, 3>,      moments_of<32, Tanh, 1>, moments_of<32, Tanh, 2>,
    moments_of<32, Tanh, 3>, moments_of<32, LeakyRelu, 2>, moments_of<48, Tanh, 3>, moments_of<64, Tanh, 3>,
};
static const Instance<DeviceFieldCall<float>> single_fields[] = {
    field_of<float, 32, Tanh, 1>,
    field_of<float, 32, LeakyRelu, 2>,
    field_of<float, 64, Tanh, 3>,
};
static const Instance<DeviceFieldCall<double>> double_fields[] = {
    field_of<double, 16, Tanh, 2>, field_of<double, 32, Tanh, 1>, field_of<double, 32, Tanh, 3>,
    field_of<double, 48, LeakyRelu, 1>, field_of<double, 64, Tanh, 3>,
};

// what(real, dims, order), which are constants there, for every particle.
template <int VALUE>
struct Constant {
    static constexpr int value = VALUE;
};

template <class Call, class What>
static void for_particles(const nb::bytes &arguments, bool backwards, const What &what) {
    const Call call = call_of<Call>(arguments);
    const auto with = [&](auto real, auto dims, auto order) {
        for (long long i = 0; i < call.particles.count; ++i)
            what(call, backwards ? call.particles.count - 1 - i : i, real, dims, order);
    };
    const auto with_dims = [&](auto real, auto dims) {
        call.mesh.order == 1 ? with(real, dims, Constant<1>()) : with(real, dims, Constant<2>());
    };
    const auto with_real = [&](auto real) {
        if (call.mesh.dims == 1) with_dims(real, Constant<1>());
        if (call.mesh.dims == 2) with_dims(real, Constant<2>());
        if (call.mesh.dims == 3) with_dims(real, Constant<3>());
    };
    call.particles.is_double ? with_real(double()) : with_real(float());
}

void bind_device(nb::module_ &m) {
    m.def(
        "device_objective",
        [](const nb::bytes &arguments, bool closed, int blocks, bool backwards) {
            const auto call = call_of<ObjectiveCall>(arguments);
            run_instance(objectives, call, call.settings.tanh, closed, blocks, 1, backwards);
        },
        "arguments"_a, "closed"_a, "blocks"_a, "backwards"_a,
        "The GPU's evaluate_objective, block after block and thread after thread, from the last one if `backwards`.");
    m.def(
        "device_moments",
        [](const nb::bytes &arguments, int blocks, int groups, bool backwards) {
            const auto call = call_of<ObjectiveCall>(arguments);
            run_instance(moments_kernels, call, call.settings.tanh, false, blocks, groups, backwards);
        },
        "arguments"_a, "blocks"_a, "groups"_a, "backwards"_a, "The GPU's sum_moments.");
    m.def(
        "device_field",
        [](const nb::bytes &arguments, bool is_double, bool tanh, int blocks, bool backwards) {
            if (is_double)
                run_instance(double_fields, call_of<DeviceFieldCall<double>>(arguments), tanh, false, blocks, 1,
                             backwards);
            else
                run_instance(single_fields, call_of<DeviceFieldCall<float>>(arguments), tanh, false, blocks, 1,
                             backwards);
        },
        "arguments"_a, "is_double"_a, "tanh"_a, "blocks"_a, "backwards"_a, "The GPU's evaluate_field.");
    m.def(
        "device_deposit",
        [](const nb::bytes &arguments, bool backwards) {
            const auto what = [](auto &call, long long i, auto real, auto dims, auto order) {
                deposit_particle<decltype(real), dims.value, order.value>(call, i, static_cast<int>(i / 128));
            };
            for_particles<DepositCall>(arguments, backwards, what);
        },
        "arguments"_a, "backwards"_a, "The GPU's deposit, particle after particle.");
    m.def(
        "device_gather",
        [](const nb::bytes &arguments, bool backwards) {
            const auto what = [](auto &call, long long i, auto real, auto dims, auto order) {
                gather_particle<decltype(real), dims.value, order.value>(call, i);
            };
            for_particles<GatherCall>(arguments, backwards, what);
        },
        "arguments"_a, "backwards"_a, "The GPU's gather, particle after particle.");
}

}  // namespace kjko
