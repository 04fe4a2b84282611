// The arguments of kernels for the JKO functional and its gradient (hpc_kjko/inner/objective.py).
//
// The sum over one piece of particles is rounded to units before it is added to others. So the bits depend neither on
// the number of threads nor on how whole pieces are divided among calls.
#pragma once

#include "math/network.hpp"
#include "math/settings.hpp"

namespace kjko {

struct ObjectiveCall {
    Network network;
    Settings settings;

    long long count;
    const float *z;      // [count, inputs]
    const float *v;      // [count, velocity_dims], rows v_stride apart
    long long v_stride;
    const float *share;  // [count]
    const float *known;  // [count], or null

    double *sums;  // workspace
    double *loss;
    // with respect to w1, b1, w2, b2, w3, b3, skip, one after the other; null: only the loss is wanted
    double *gradient;
};

}  // namespace kjko
