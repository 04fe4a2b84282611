// The GPU kernels on the CPU, for tests.
#define KJKO_LEVEL phases

#include <nanobind/stl/string.h>

#include "cpu/bind.hpp"
#include "cpu/device_kernels.hpp"
#include "cuda/pairs.hpp"
#include "cuda/particles.hpp"

using namespace nb::literals;

namespace kjko {

using namespace phases;

namespace {

struct Compiled {
    static constexpr Instance objectives[] = {
        objective_of<16, Tanh, 1, false>,      objective_of<16, Tanh, 3, true>,       objective_of<32, Tanh, 1, false>,
        objective_of<32, Tanh, 2, false>,      objective_of<32, Tanh, 2, true>,       objective_of<32, Tanh, 3, false>,
        objective_of<32, Tanh, 3, true>,       objective_of<32, LeakyRelu, 1, false>, objective_of<32, LeakyRelu, 2, true>,
        objective_of<32, LeakyRelu, 3, false>, objective_of<48, Tanh, 1, false>,      objective_of<48, Tanh, 2, true>,
        objective_of<64, Tanh, 1, false>,      objective_of<64, Tanh, 2, true>,       objective_of<64, Tanh, 3, false>,
    };
    static constexpr Instance moments[] = {
        moments_of<16, Tanh, 1>, moments_of<16, Tanh, 3>,      moments_of<32, Tanh, 1>, moments_of<32, Tanh, 2>,
        moments_of<32, Tanh, 3>, moments_of<32, LeakyRelu, 2>, moments_of<48, Tanh, 3>, moments_of<64, Tanh, 3>,
    };
    static constexpr Instance fields[] = {
        field_of<float, 32, Tanh, 1>,       field_of<float, 32, LeakyRelu, 2>, field_of<float, 64, Tanh, 3>,
        field_of<double, 16, Tanh, 2>,      field_of<double, 32, Tanh, 1>,     field_of<double, 32, Tanh, 3>,
        field_of<double, 48, LeakyRelu, 1>, field_of<double, 64, Tanh, 3>,
    };
    template <template <class, int, int> class KernelOf>
    static constexpr Instance potentials[] = {
        potential_of<KernelOf, float, 16, 3>,  potential_of<KernelOf, float, 32, 2>,  potential_of<KernelOf, float, 64, 1>,
        potential_of<KernelOf, float, 64, 3>,  potential_of<KernelOf, double, 32, 1>, potential_of<KernelOf, double, 48, 2>,
        potential_of<KernelOf, double, 64, 3>,
    };
};

}  // namespace

static const Instance &network_kernel(const std::string &kernel, const Constants &constants) {
    return constants.tensor ? tensor_kernel(kernel, constants) : kernel_named<Compiled>(kernel, constants);
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
        [](const std::string &kernel, int width, bool tanh, int velocity_dims, bool closed, bool is_double, bool tensor) {
            const Shape &shape = network_kernel(kernel, {width, tanh, velocity_dims, closed, is_double, tensor}).shape;
            return nb::bytes(reinterpret_cast<const char *>(&shape), sizeof shape);
        },
        "kernel"_a, "width"_a, "tanh"_a, "velocity_dims"_a, "closed"_a, "is_double"_a, "tensor"_a,
        "The properties of a GPU kernel of a network that its launch needs.");
    m.def(
        "device_launch",
        [](const std::string &kernel, int width, bool tanh, int velocity_dims, bool closed, bool is_double,
           bool tensor, const nb::bytes &arguments, int blocks, int groups, bool backwards) {
            const Instance &instance = network_kernel(kernel, {width, tanh, velocity_dims, closed, is_double, tensor});
            kernel == "order_moments" ? instance.order(arguments)
                                      : instance.run(arguments, blocks, groups, backwards);
        },
        "kernel"_a, "width"_a, "tanh"_a, "velocity_dims"_a, "closed"_a, "is_double"_a, "tensor"_a, "arguments"_a,
        "blocks"_a, "groups"_a, "backwards"_a,
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
