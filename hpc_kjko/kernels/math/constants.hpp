// Numbers that kernels, their launch and their torch twins agree on. hpc_kjko/kernels/constants.py reads this text, so
// each value is a literal.
#pragma once

namespace kjko {

// Widths of the hidden layers that kernels of the objective are compiled for; the most inputs and velocity dimensions.
constexpr int WIDTHS[] = {16, 32, 48, 64};
constexpr int MOST_INPUTS = 15;
constexpr int MOST_VELOCITY_DIMS = 3;

// The most layers and the largest width of the networks that the CPU's kernel of the field takes.
constexpr int MOST_FIELD_LAYERS = 3;
constexpr int MOST_FIELD_WIDTH = 256;

// s(a) = LEAKY_SLOPE a for a ≤ 0 is leaky_relu.
constexpr double LEAKY_SLOPE = 0.01;

// Below this determinant the objective continues log det smoothly.
constexpr double CONTINUE_BELOW = 0.1;

// So many units added and subtracted again round a number of float64 to whole ones: 1.5 · 2^52.
constexpr double ROUNDING_SHIFT = 0x1.8p52;

// The most particles to a sum in single precision, and to one of moments.
constexpr int CHUNK = 1024;
constexpr int MOMENTS_CHUNK = 256;

// Threads of a block that take a particle each.
constexpr int PARTICLE_THREADS = 128;

}  // namespace kjko
