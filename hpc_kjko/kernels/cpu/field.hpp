// The control field u and its Jacobian in v at every particle (hpc_kjko/inner/control.py), in the particles' own precision.
#pragma once

#include "math/constants.hpp"

namespace kjko {

// u = W_L s(… s(W_1 z + b_1) …) + b_L + S z, S on the last inputs and v the very last ones. Row-major, rows are outputs.
template <class Real>
struct FieldCall {
    int layers, widths[MOST_FIELD_LAYERS + 1];  // of the inputs, the hidden layers and u
    const Real *weights[MOST_FIELD_LAYERS], *biases[MOST_FIELD_LAYERS];
    const Real *skip;  // [dv, skipped], or null
    int skipped;
    bool tanh;  // else leaky_relu

    long long count;
    const Real *z;          // [count, inputs]
    Real *u, *jacobian;     // [count, dv] and ∂u_k/∂v_j [count, dv, dv]
};

// A particle has the same bits wherever it stands, among however many, and on any number of threads.
struct FieldKernels {
    void (*single_precision)(const FieldCall<float> &call);
    void (*double_precision)(const FieldCall<double> &call);
};

}  // namespace kjko
