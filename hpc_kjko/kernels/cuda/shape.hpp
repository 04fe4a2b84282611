// The properties of a kernel that its launch needs. hpc_kjko/kernels/cuda/__init__.py reads them from the compiled
// code.
#pragma once

namespace kjko {

struct Shape {
    int threads;       // of a thread block
    int resident;      // thread blocks for which a multiprocessor has registers at the same time
    int shared_bytes;  // of a thread block
    int tile;          // particles that a thread block handles at a time
    int sum_numbers;   // of one of the sums in which thread blocks work, besides the gradient
    int more_numbers;  // of a sum if all moments are wanted
    // thread blocks that share a sum if all moments are wanted: with the exact log det, the linear
    int groups, linear_groups;
};

}  // namespace kjko
