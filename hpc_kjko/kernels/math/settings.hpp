// What kernels are told of the functional and of its sums, the same for every particle.
// `Settings` of hpc_kjko/kernels/settings.py is its mirror.
#pragma once

namespace kjko {

struct Settings {
    bool tanh;                 // the activation; else leaky_relu
    bool exact;                // log det(I + h ∇v u) in J; else h ∇v·u
    float step;                // h
    float collision_strength;  // κ
    float temperature;         // T
    int together;              // particles that are added up before their sum is rounded
    double unit;               // what sums of so many are rounded to (hpc_kjko/particles/exact.py); 0: not rounded
    double finer;              // of moments: part of the unit for what rounding leaves of log det
};

}  // namespace kjko
