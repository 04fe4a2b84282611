// The control field u and its Jacobian in v at every particle (hpc_kjko/inner/control.py), in the precision of the
// particles.
#pragma once

#include "math/constants.hpp"

namespace kjko {

// u = W_L s(… s(W_1 z + b_1) …) + b_L + S z. S acts on the last inputs, and v are the very last ones. Row-major, rows
// are outputs.
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

// The bits of a particle do not depend on its place, on the other particles, or on the number of threads.
struct FieldKernels {
    void (*single_precision)(const FieldCall<float> &call);
    void (*double_precision)(const FieldCall<double> &call);
};

}  // namespace kjko
