// The JKO functional and its gradient (hpc_kjko/objective.py), fused into one pass over the particles.
#pragma once

namespace kjko {

// Single precision holds sums over so many particles, double precision the rest. Chunks are dealt to at most so many
// sums, which are added in order: the bits do not depend on the number of threads.
constexpr int CHUNK = 1536, MOST_SUMS = 128;
// Inputs of the network, with one that is 1.
constexpr int MOST_INPUTS = 16;

// u = W3 s(W2 s(W1 z + b1) + b2) + S z + b3, S on the last inputs.
struct Network {
    int inputs, width, velocity_dims, skipped;
    bool tanh;  // else leaky_relu
    const float *w1, *b1, *w2, *b2, *w3, *b3, *skip;  // rows are outputs; no skip: null
};

struct ObjectiveCall {
    Network network;
    bool exact;
    float step, collision_strength, temperature;

    long long count;
    const float *z;         // [count, inputs]
    const float *v;         // [count, velocity_dims], rows v_stride apart
    long long v_stride;
    const float *share;     // [count]
    const float *known;     // [count], or null

    double *sums;  // [sums, sums_size()] to work in
    double *loss;
    double *gradient;  // of w1, b1, w2, b2, w3, b3, skip, one after the other; null: only the loss is wanted
};

struct ObjectiveKernels {
    bool (*instantiated)(const Network &network);
    long long (*sums_size)(const Network &network);  // numbers that one sum needs
    void (*evaluate)(const ObjectiveCall &call);
};

}  // namespace kjko
