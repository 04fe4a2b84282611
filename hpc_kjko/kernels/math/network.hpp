// The network of the control field in the form that kernels take (hpc_kjko/inner/control.py).
#pragma once

#include "math/constants.hpp"

namespace kjko {

// The inputs of the network, and one more that is 1.
constexpr int INPUT_ROWS = MOST_INPUTS + 1;

// u = W3 s(W2 s(W1 z + b1) + b2) + S z + b3, with S on the last inputs; s is the activation of the settings.
template <class Real>
struct NetworkOf {
    int inputs, width, velocity_dims, skipped;
    const Real *w1, *b1, *w2, *b2, *w3, *b3, *skip;  // rows are outputs; without a skip: null
};

using Network = NetworkOf<float>;

}  // namespace kjko
