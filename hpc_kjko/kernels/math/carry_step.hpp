// A step along the field of a potential as kernels are given it (hpc_kjko/inner/potential.py).
#pragma once

#include "math/constants.hpp"

namespace kjko {

// A step v ← v + h u along u = ∇v Φ, and what is asked of it.
struct CarryStep {
    double step, fitted, temperature;      // h; what the functional saw of it; T
    bool exact;                            // log f falls by log det(I + h ∇v u); else by h ∇v·u
    double periods[MOST_VELOCITY_DIMS];    // in which positions enter as cosines and sines, if they do
    bool wave;                             // whether a wave is watched: its k, the direction of that, and κ
    double wave_vector[MOST_VELOCITY_DIMS], direction[MOST_VELOCITY_DIMS], strength;
};

// Particles that are moved along u, in the precision in which they are kept: the network may have another.
struct MovedParticles {
    bool is_double;
    int space_dims;
    const void *x, *v;  // [count, space_dims], [count, dv]
    void *moved;        // their velocities after the step [count, dv]
};

// Columns that a step sums: |u|², ½|v + h' u|² − T log det(I + h' ∇v u) of what the functional saw, none, the change of
// the free energy, the share, then those of collisions/witness.py.
constexpr int CARRY_COLUMNS = 17;

}  // namespace kjko
