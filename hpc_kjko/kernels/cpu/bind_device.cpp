// The GPU kernels on the CPU, for tests. A phase is a loop over the threads of a thread block. They are not optimised
// for speed.
#define KJKO_LEVEL phases

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "cpu/bind.hpp"
#include "cuda/field.hpp"
#include "cuda/moments.hpp"
#include "cuda/objective.hpp"
#include "cuda/pairs.hpp"
#include "cuda/particles.hpp"
#include "cuda/potential_sums.hpp"

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

// The thread blocks of a kernel, one after the other: what(shared, team, block).
template <class Kernel, class What>
static void for_blocks(int blocks, bool backwards, const What &what) {
    const auto shared = std::make_unique<typename Kernel::Shared>();
    // NaN, because shared memory is undefined at the start on a GPU
    std::memset(static_cast<void *>(shared.get()), 0xff, sizeof *shared);
    const auto team = std::make_unique<Team<Kernel::THREADS, typename Kernel::State>>(backwards);
    for (int block = 0; block < blocks; ++block) what(*shared, *team, block);
}

// A kernel of a network, selected by the constants for which it is compiled.
struct Constants {
    int width;
    bool tanh;
    int velocity_dims;
    bool closed, is_double;

    bool operator==(const Constants &other) const {
        return width == other.width && tanh == other.tanh && velocity_dims == other.velocity_dims &&
               closed == other.closed && is_double == other.is_double;
    }
};

// The kernels that tests run: every width, both methods for the tangents, both activations, but not all combinations.
struct Instance {
    Constants constants;
    Shape shape;
    void (*run)(const nb::bytes &arguments, int blocks, int groups, bool backwards);
    void (*order)(const nb::bytes &arguments);  // of moments
};

template <size_t COUNT>
static const Instance &found(const Instance (&instances)[COUNT], const Constants &constants) {
    for (const Instance &one : instances)
        if (one.constants == constants) return one;
    throw std::invalid_argument("this kernel is not among those that tests run");
}

template <int H, class Activation, int DV, bool CLOSED>
constexpr Instance objective_of = {
    {H, Activation::curved, DV, CLOSED, false},
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
    {H, Activation::curved, DV, false, false},
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
    {H, Activation::curved, DV, false, sizeof(Real) == 8},
    DeviceField<Real, H, Activation, DV>::shape(0),
    [](const nb::bytes &arguments, int blocks, int, bool backwards) {
        using Kernel = DeviceField<Real, H, Activation, DV>;
        const auto call = call_of<DeviceFieldCall<Real>>(arguments);
        for_blocks<Kernel>(blocks, backwards, [&](auto &shared, auto &team, int block) {
            Kernel{call, shared}.evaluate(team, block, blocks);
        });
    },
    nullptr};

static const Instance objectives[] = {
    objective_of<16, Tanh, 1, false>,      objective_of<16, Tanh, 3, true>,       objective_of<32, Tanh, 1, false>,
    objective_of<32, Tanh, 2, false>,      objective_of<32, Tanh, 2, true>,       objective_of<32, Tanh, 3, false>,
    objective_of<32, Tanh, 3, true>,       objective_of<32, LeakyRelu, 1, false>, objective_of<32, LeakyRelu, 2, true>,
    objective_of<32, LeakyRelu, 3, false>, objective_of<48, Tanh, 1, false>,      objective_of<48, Tanh, 2, true>,
    objective_of<64, Tanh, 1, false>,      objective_of<64, Tanh, 2, true>,       objective_of<64, Tanh, 3, false>,
};
static const Instance moments_kernels[] = {
    moments_of<16, Tanh, 1>, moments_of<16, Tanh, 3>,      moments_of<32, Tanh, 1>, moments_of<32, Tanh, 2>,
    moments_of<32, Tanh, 3>, moments_of<32, LeakyRelu, 2>, moments_of<48, Tanh, 3>, moments_of<64, Tanh, 3>,
};
static const Instance fields[] = {
    field_of<float, 32, Tanh, 1>,  field_of<float, 32, LeakyRelu, 2>, field_of<float, 64, Tanh, 3>,
    field_of<double, 16, Tanh, 2>, field_of<double, 32, Tanh, 1>,     field_of<double, 32, Tanh, 3>,
    field_of<double, 48, LeakyRelu, 1>, field_of<double, 64, Tanh, 3>,
};

template <template <class, int, int> class KernelOf, class Real, int H, int DV>
constexpr Instance potential_of = {
    {H, true, DV, false, sizeof(Real) == 8},
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

template <template <class, int, int> class KernelOf>
static const Instance &found_potential(const Constants &constants) {
    static const Instance all[] = {
        potential_of<KernelOf, float, 16, 3>,  potential_of<KernelOf, float, 32, 2>,  potential_of<KernelOf, float, 64, 1>,
        potential_of<KernelOf, float, 64, 3>,  potential_of<KernelOf, double, 32, 1>, potential_of<KernelOf, double, 48, 2>,
        potential_of<KernelOf, double, 64, 3>,
    };
    return found(all, constants);
}

static const Instance &found(const std::string &kernel, const Constants &constants) {
    if (kernel == "potential_values") return found_potential<potential_values>(constants);
    if (kernel == "potential_slopes") return found_potential<potential_slopes>(constants);
    if (kernel == "potential_carry") return found_potential<potential_carry>(constants);
    if (kernel == "potential_normal") return found_potential<potential_normal>(constants);
    if (kernel == "potential_derivatives") return found_potential<potential_derivatives>(constants);
    if (kernel == "potential_barrier") return found_potential<potential_barrier>(constants);
    if (kernel == "potential_tied") return found_potential<potential_tied>(constants);
    if (kernel == "potential_missed") return found_potential<potential_missed>(constants);
    if (kernel == "potential_training") return found_potential<potential_training>(constants);
    if (kernel == "evaluate_objective") return found(objectives, constants);
    if (kernel == "sum_moments" || kernel == "order_moments") return found(moments_kernels, constants);
    return found(fields, constants);
}

// Calls what(real, dims, order), with these as constants, for particles.
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

// The tiles of a sum over pairs, one after the other.
static void sum_pairs(const nb::bytes &arguments, bool backwards) {
    const auto call = call_of<DevicePairCall>(arguments);
    const auto sum = [&](auto real, auto dims, auto alike, auto gamma) {
        using Kernel = DevicePairs<decltype(real), dims.value, alike.value != 0, gamma.value>;
        for_blocks<Kernel>(static_cast<int>(call.tiles), backwards, [&](auto &shared, auto &team, int tile) {
            Kernel{call, shared}.evaluate(team, tile);
        });
    };
    with_constant(call.pairs.exponent, [&](auto gamma) {
        const auto with_dims = [&](auto real, auto dims) {
            call.pairs.alike ? sum(real, dims, Constant<1>(), gamma) : sum(real, dims, Constant<0>(), gamma);
        };
        const auto with_real = [&](auto real) {
            call.pairs.dims == 2 ? with_dims(real, Constant<2>()) : with_dims(real, Constant<3>());
        };
        call.single_precision ? with_real(float()) : with_real(double());
    });
}

// The offsets of the fields of a struct that Python mirrors, and its size.
template <class Struct, class... Fields>
static nb::list layout(Fields Struct::*...fields) {
    alignas(Struct) unsigned char memory[sizeof(Struct)] = {};
    const auto &of = *reinterpret_cast<Struct *>(memory);
    nb::list places;
    (places.append(reinterpret_cast<const unsigned char *>(&(of.*fields)) - memory), ...);
    places.append(sizeof(Struct));
    return places;
}

static nb::dict struct_layouts() {
    nb::dict all;
    all["Network"] = layout(&Network::inputs, &Network::width, &Network::velocity_dims, &Network::skipped, &Network::w1,
                            &Network::b1, &Network::w2, &Network::b2, &Network::w3, &Network::b3, &Network::skip);
    all["Settings"] = layout(&Settings::tanh, &Settings::exact, &Settings::step, &Settings::collision_strength,
                             &Settings::temperature, &Settings::together, &Settings::unit, &Settings::finer);
    using Objective = ObjectiveCall;
    all["ObjectiveCall"] = layout(&Objective::network, &Objective::settings, &Objective::count, &Objective::z,
                                  &Objective::v, &Objective::v_stride, &Objective::share, &Objective::known,
                                  &Objective::sums, &Objective::loss, &Objective::gradient);
    using Order = MomentsOrderCall;
    all["MomentsOrderCall"] = layout(&Order::network, &Order::exact, &Order::whole, &Order::count, &Order::total,
                                     &Order::moments);
    using Field = DeviceFieldCall<double>;
    all["FieldCall"] = layout(&Field::network, &Field::count, &Field::z, &Field::u, &Field::jacobian);
    using Potential = DevicePotentialCall<double>;
    all["CarryStep"] = layout(&CarryStep::step, &CarryStep::fitted, &CarryStep::temperature, &CarryStep::exact,
                              &CarryStep::periods, &CarryStep::wave, &CarryStep::wave_vector, &CarryStep::direction,
                              &CarryStep::strength);
    all["MovedParticles"] = layout(&MovedParticles::is_double, &MovedParticles::space_dims, &MovedParticles::x,
                                   &MovedParticles::v, &MovedParticles::moved);
    all["PotentialCall"] = layout(
        &Potential::network, &Potential::periodic, &Potential::sets, &Potential::bent, &Potential::count, &Potential::z,
        &Potential::coefficients, &Potential::share, &Potential::pieces, &Potential::edges, &Potential::unit,
        &Potential::finer, &Potential::wanted, &Potential::step, &Potential::sums, &Potential::values,
        &Potential::gradients, &Potential::hessians, &Potential::how, &Potential::particles,
        &Potential::log_det, &Potential::change, &Potential::disagreement, &Potential::smallest);
    all["Mesh"] = layout(&Mesh::dims, &Mesh::order, &Mesh::cells, &Mesh::lengths);
    all["Particles"] = layout(&Particles::is_double, &Particles::count, &Particles::x, &Particles::v,
                              &Particles::velocity_dims);
    all["Carried"] = layout(&Carried::data, &Carried::quantities, &Carried::quantity_stride,
                            &Carried::particle_stride, &Carried::unit);
    all["DepositCall"] = layout(&DepositCall::mesh, &DepositCall::particles, &DepositCall::duration,
                                &DepositCall::moved, &DepositCall::carried, &DepositCall::sums, &DepositCall::copies,
                                &DepositCall::lost);
    all["GatherCall"] = layout(&GatherCall::mesh, &GatherCall::particles, &GatherCall::values,
                               &GatherCall::components, &GatherCall::kick, &GatherCall::duration, &GatherCall::result);
    using Members = PairMembers;
    all["PairMembers"] = layout(&Members::v, &Members::score, &Members::hessian, &Members::weight, &Members::edges);
    all["PairCall"] = layout(&PairCall::dims, &PairCall::alike, &PairCall::blocks, &PairCall::exponent,
                             &PairCall::mass, &PairCall::members, &PairCall::others, &PairCall::velocity,
                             &PairCall::growth);
    all["DevicePairCall"] = layout(&DevicePairCall::pairs, &DevicePairCall::single_precision, &DevicePairCall::tiles,
                                   &DevicePairCall::begin);
    return all;
}

void bind_device(nb::module_ &m) {
    m.def("struct_layouts", &struct_layouts,
          "The offsets of the fields of each struct that hpc_kjko.kernels.cuda mirrors, and its size.");
    m.def(
        "device_shape",
        [](const std::string &kernel, int width, bool tanh, int velocity_dims, bool closed, bool is_double) {
            const Shape &shape = found(kernel, {width, tanh, velocity_dims, closed, is_double}).shape;
            return nb::bytes(reinterpret_cast<const char *>(&shape), sizeof shape);
        },
        "kernel"_a, "width"_a, "tanh"_a, "velocity_dims"_a, "closed"_a, "is_double"_a,
        "The properties of a GPU kernel of a network that its launch needs.");
    m.def(
        "device_launch",
        [](const std::string &kernel, int width, bool tanh, int velocity_dims, bool closed, bool is_double,
           const nb::bytes &arguments, int blocks, int groups, bool backwards) {
            const Instance &instance = found(kernel, {width, tanh, velocity_dims, closed, is_double});
            kernel == "order_moments" ? instance.order(arguments)
                                      : instance.run(arguments, blocks, groups, backwards);
        },
        "kernel"_a, "width"_a, "tanh"_a, "velocity_dims"_a, "closed"_a, "is_double"_a, "arguments"_a, "blocks"_a,
        "groups"_a, "backwards"_a,
        "A GPU kernel of a network: one thread block and one thread after another, from the last one if `backwards`.");
    m.def(
        "device_deposit",
        [](const nb::bytes &arguments, bool backwards) {
            const auto what = [](auto &call, long long i, auto real, auto dims, auto order) {
                const int block = static_cast<int>(i / PARTICLE_THREADS);
                deposit_particle<decltype(real), dims.value, order.value>(call, i, block);
            };
            for_particles<DepositCall>(arguments, backwards, what);
        },
        "arguments"_a, "backwards"_a, "The deposit of the GPU, one particle after another.");
    m.def(
        "device_gather",
        [](const nb::bytes &arguments, bool backwards) {
            const auto what = [](auto &call, long long i, auto real, auto dims, auto order) {
                gather_particle<decltype(real), dims.value, order.value>(call, i);
            };
            for_particles<GatherCall>(arguments, backwards, what);
        },
        "arguments"_a, "backwards"_a, "The gather of the GPU, one particle after another.");
    m.def("device_pair_sums", &sum_pairs, "arguments"_a, "backwards"_a,
          "The sums over pairs of the GPU: one tile and one thread after another, from the last one if `backwards`.");
}

}  // namespace kjko
