// The kernels of GPUs on the CPU, for tests: phases are loops over the threads of a block. Not made to be fast.
#define KJKO_LEVEL phases

#include <nanobind/nanobind.h>

#include <cstring>
#include <memory>
#include <stdexcept>

#include "bind.hpp"
#include "device_objective.hpp"
#include "device_particles.hpp"

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

template <int H, class Activation, int DV, bool CLOSED>
static void evaluate_objective(const ObjectiveCall &call, int blocks, bool backwards) {
    using Kernel = DeviceObjective<H, Activation, DV, CLOSED>;
    using Threads = Team<Kernel::THREADS, typename Kernel::State>;
    const auto shared = std::make_unique<typename Kernel::Shared>();
    const auto team = std::make_unique<Threads>(backwards);
    for (int block = 0; block < blocks; ++block) Kernel{call, *shared}.add_chunks(*team, block, blocks);
}

struct ObjectiveInstance {
    int width;
    bool tanh;
    int velocity_dims;
    bool closed;
    void (*evaluate)(const ObjectiveCall &call, int blocks, bool backwards);
};

template <int H, class Activation, int DV, bool CLOSED>
constexpr ObjectiveInstance instance = {H, Activation::curved, DV, CLOSED,
                                       &evaluate_objective<H, Activation, DV, CLOSED>};

// What tests run: every width, every way of the tangents, both activations, but not all of their combinations.
static const ObjectiveInstance objectives[] = {
    instance<16, Tanh, 1, false>,      instance<16, Tanh, 3, true>,       instance<32, Tanh, 1, false>,
    instance<32, Tanh, 2, false>,      instance<32, Tanh, 2, true>,       instance<32, Tanh, 3, false>,
    instance<32, Tanh, 3, true>,       instance<32, LeakyRelu, 1, false>, instance<32, LeakyRelu, 2, true>,
    instance<32, LeakyRelu, 3, false>, instance<48, Tanh, 1, false>,      instance<48, Tanh, 2, true>,
    instance<64, Tanh, 1, false>,      instance<64, Tanh, 2, true>,       instance<64, Tanh, 3, false>,
};

static void evaluate_any(const nb::bytes &arguments, bool closed, int blocks, bool backwards) {
    const ObjectiveCall call = call_of<ObjectiveCall>(arguments);
    const Network &n = call.network;
    for (const ObjectiveInstance &one : objectives)
        if (one.width == n.width && one.tanh == n.tanh && one.velocity_dims == n.velocity_dims && one.closed == closed)
            return one.evaluate(call, blocks, backwards);
    throw std::invalid_argument("this kernel is not among those that tests run");
}

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
    m.def("device_objective", &evaluate_any, "arguments"_a, "closed"_a, "blocks"_a, "backwards"_a,
          "The GPU's evaluate_objective, block after block and thread after thread, from the last one if `backwards`.");
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
