// Constants shared by kernels, their launch and their torch twins. hpc_kjko/kernels/constants.py reads this text, so
// each value must be a literal.
#pragma once

namespace kjko {

// Widths of the hidden layers for which kernels of the objective are compiled; the largest numbers of inputs and
// velocities.
constexpr int WIDTHS[] = {16, 32, 48, 64};
constexpr int MOST_INPUTS = 15;
constexpr int MOST_VELOCITY_DIMS = 3;

// The largest number of layers, and the largest width, of networks that the CPU kernel of the field takes.
constexpr int MOST_FIELD_LAYERS = 3;
constexpr int MOST_FIELD_WIDTH = 256;

// s(a) = LEAKY_SLOPE a for a ≤ 0 is leaky_relu.
constexpr double LEAKY_SLOPE = 0.01;

// Below this determinant the objective continues log det smoothly.
constexpr double CONTINUE_BELOW = 0.1;

// Adding and then subtracting this many units, 1.5 · 2^52, rounds a float64 number to whole units.
constexpr double ROUNDING_SHIFT = 0x1.8p52;

// The largest number of particles in a piece, a sum in single precision; and in a piece of a sum of moments.
constexpr int CHUNK = 1024;
constexpr int MOMENTS_CHUNK = 256;

// Threads of a thread block that handle one particle each.
constexpr int PARTICLE_THREADS = 128;

}  // namespace kjko
