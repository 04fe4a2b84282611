// The arguments of kernels for a step along the field of a potential (hpc_kjko/inner/potential.py).
#pragma once

#include "math/constants.hpp"

namespace kjko {

// A step v ← v + h u along u = ∇v Φ, and the results that are wanted.
struct CarryStep {
    double step, fitted, temperature;      // h; the step in the functional; T
    bool exact;                            // log f falls by log det(I + h ∇v u); else by h ∇v·u
    double periods[MOST_VELOCITY_DIMS];    // of positions that enter as cosines and sines
    bool wave;                             // whether a wave is checked: its k, the direction of k, and κ
    double wave_vector[MOST_VELOCITY_DIMS], direction[MOST_VELOCITY_DIMS], strength;
};

// Particles that are moved along u, in the precision in which they are stored. The network may have another precision.
struct MovedParticles {
    bool is_double;
    int space_dims;
    const void *x, *v;  // [count, space_dims], [count, dv]
    void *moved;        // their velocities after the step [count, dv]
};

// Columns that a step sums: |u|²; ½|v + h' u|² − T log det(I + h' ∇v u) with the step h' of the functional; an empty
// column; the change of the free energy; the share; then those of collisions/witness.py.
constexpr int CARRY_COLUMNS = 17;

}  // namespace kjko
