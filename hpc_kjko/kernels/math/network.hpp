// The control field's network as kernels are given it (hpc_kjko/inner/control.py).
#pragma once

namespace kjko {

// Inputs of the network, with one that is 1.
constexpr int MOST_INPUTS = 16;

// u = W3 s(W2 s(W1 z + b1) + b2) + S z + b3, S on the last inputs.
template <class Real>
struct NetworkOf {
    int inputs, width, velocity_dims, skipped;
    bool tanh;  // else leaky_relu
    const Real *w1, *b1, *w2, *b2, *w3, *b3, *skip;  // rows are outputs; no skip: null
};

using Network = NetworkOf<float>;

}  // namespace kjko
