"""MPI ranks, devices, and the memory limits of a node."""
