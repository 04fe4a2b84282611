// What a launch needs to know of a kernel. hpc_kjko/kernels/cuda/__init__.py reads it from the compiled code.
#pragma once

namespace kjko {

struct Shape {
    int threads;       // of a block
    int resident;      // blocks that a multiprocessor has registers for at a time
    int shared_bytes;  // of a block
    int tile;          // particles that a block takes at a time
    int sum_numbers;   // of one of the sums that blocks work in, beside the gradient
    int more_numbers;  // of a sum if all moments are wanted
    int groups, linear_groups;  // blocks that share a sum if all moments are wanted: with the exact log det, the linear
};

}  // namespace kjko
