// The JKO functional and its gradient (hpc_kjko/inner/objective.py) as kernels are given it.
//
// Sums over one chunk of particles are rounded to units before they are added to others: the bits depend neither on the
// number of threads nor on how whole chunks are dealt to calls.
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

    double *sums;  // to work in
    double *loss;
    double *gradient;  // of w1, b1, w2, b2, w3, b3, skip, one after the other; null: only the loss is wanted
};

}  // namespace kjko
