// The settings of the functional and of its sums, the same for every particle. `Settings` of
// hpc_kjko/kernels/settings.py has the same fields.
#pragma once

namespace kjko {

struct Settings {
    bool tanh;                 // the activation; else leaky_relu
    bool exact;                // log det(I + h ∇v u) in J; else h ∇v·u
    float step;                // h
    float collision_strength;  // κ
    float temperature;         // T
    int together;              // size of a piece: particles that are added before their sum is rounded
    double unit;               // to which the sum of a piece is rounded (hpc_kjko/particles/exact.py); 0: not rounded
    double finer;              // for moments: fraction of the unit to which the remainder of log det is rounded
};

}  // namespace kjko
