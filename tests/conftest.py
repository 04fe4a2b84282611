"""What the tests share."""

import pytest
import torch

from hpc_kjko.comm import Communicator


@pytest.fixture
def alone() -> Communicator:
    """A communicator of one rank that has nothing to do with MPI."""
    torch.set_num_threads(1)
    return Communicator()
