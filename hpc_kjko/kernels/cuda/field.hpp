// u and ∇v u on a GPU, as cpu/field.cpp computes them on the CPU, for two hidden layers of the same width, in the
// phases of cuda/phases.hpp.
#pragma once

#include "cuda/network.hpp"
#include "cuda/shape.hpp"

namespace kjko {

template <class Real>
struct DeviceFieldCall {
    NetworkOf<Real> network;
    long long count;
    const Real *z;       // [count, inputs]
    Real *u, *jacobian;  // [count, velocity_dims] and ∂u_k/∂v_j [count, velocity_dims, velocity_dims]
};

}  // namespace kjko

namespace kjko::KJKO_LEVEL {

// The bits of a particle do not depend on its place or on the other particles.
template <class Real, int H, class Activation, int DV>
struct DeviceField {
    using Net = DeviceNetwork<Real, H, Activation, DV, false>;
    using Shared = typename Net::Shared;
    static constexpr int THREADS = Net::THREADS, TILE = Net::TILE;

    static constexpr Shape shape(int resident_threads) {
        return {THREADS, Net::resident(resident_threads), sizeof(Shared), TILE, 0, 0, 1, 1};
    }

    struct State {
        typename Net::Product product;
    };

    const DeviceFieldCall<Real> &call;
    Shared &shared;

    // Every `blocks`-th tile, from one on.
    template <class Threads>
    KJKO_DEVICE void evaluate(Threads &team, long long block, long long blocks) const {
        team([&](int thread, State &) { net().begin(thread); });
        for (long long first = block * TILE; first < call.count; first += blocks * TILE) {
            const int count = call.count - first < TILE ? static_cast<int>(call.count - first) : TILE;
            team([&](int thread, State &) { net().take(thread, call.z, first, count); });
            team([&](int thread, State &) { net().first_layer(thread); });
            team.warps([&](auto &warp) { net().second_layer(warp); });
            team([&](int thread, State &) { net().output_layer(thread); });
            team([&](int thread, State &) { hand_over(thread, first, count); });
        }
    }

private:
    KJKO_DEVICE Net net() const { return {call.network, shared}; }

    KJKO_DEVICE void hand_over(int p, long long first, int count) const {
        if (p >= count) return;
        Real jacobian[DV][DV];
        net().jacobian(p, jacobian);
        KJKO_UNROLLED for (int k = 0; k < DV; ++k) {
            call.u[(first + p) * DV + k] = net().u(k, p);
            KJKO_UNROLLED for (int j = 0; j < DV; ++j)
                call.jacobian[((first + p) * DV + k) * DV + j] = jacobian[k][j];
        }
    }
};

}  // namespace kjko::KJKO_LEVEL
