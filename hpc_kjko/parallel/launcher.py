"""Information from the launcher of this process (mpirun, srun), without loading MPI."""

from __future__ import annotations

import os

_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


def promised_ranks() -> int:
    """The number of ranks that a launcher says it started; 1 without one."""
    return max(int(os.environ.get(name) or 1) for name in _SIZES)
