// Sums over pairs of particles in collision blocks on the CPU.
#pragma once

#include "math/pairs.hpp"

namespace kjko {

// The workspace of a thread, in numbers, for collision blocks with at most `most` sources: the sources in both
// precisions.
static inline long long pair_workspace(int dims, bool alike, long long most) {
    const long long numbers = 2 * dims + 1 + (alike ? 0 : dims * (dims + 1) / 2);
    return numbers * most + (numbers * most + 1) / 2 + 16;  // two threads never write to the same cache line
}

// V and G of all members, or D, V and ∂V/∂v; the bits do not depend on the number of threads.
// `most`: number of sources in the largest collision block; `workspace`: pair_workspace numbers for each thread.
struct PairKernels {
    void (*single_precision)(const PairCall &call, int threads, long long most, double *workspace);
    void (*double_precision)(const PairCall &call, int threads, long long most, double *workspace);
    void (*fields)(const PairFieldCall &call, int threads, long long most, double *workspace);  // in double precision
};

}  // namespace kjko
