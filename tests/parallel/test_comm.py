"""Collectives of arrays longer than a message may be, and the cores of a rank. Under a real mpirun."""

import os

import numpy as np
import pytest
import torch

from hpc_kjko.parallel import comm as module
from hpc_kjko.parallel.comm import Communicator

RANKS = [2, 3]


@pytest.fixture(params=[1, 5, 1000])
def limited(request, monkeypatch):
    """A few elements at most in a message: the arrays of the tests go in many pieces, a few, or one."""
    monkeypatch.setattr(module, "MOST_ELEMENTS", request.param)


@pytest.mark.parallel(RANKS)
def test_no_message_is_longer_than_mpi_can_count(world, monkeypatch):
    lengths = []
    monkeypatch.setattr(module, "MOST_ELEMENTS", 5)
    pieces = module._pieces
    monkeypatch.setattr(module, "_pieces", lambda array: lengths.extend(map(len, found := pieces(array))) or found)
    assert world.sum(np.ones(12))[-1] == world.size
    assert lengths == 2 * [5, 5, 2]


@pytest.mark.parallel(RANKS)
def test_sums_and_broadcasts_in_pieces_are_those_of_the_whole(world, limited):
    for values in (np.arange(12.0).reshape(3, 4) + world.rank, np.arange(7) - world.rank, np.zeros((0, 3))):
        wanted = sum(np.asarray(array) for array in world.allgather(values))
        assert np.array_equal(world.sum(values), wanted)
    for root in range(world.size):
        array = np.full((3, 4), float(world.rank))
        assert (world.bcast_array(array, root) == root).all()


@pytest.mark.parallel(RANKS)
def test_exchange_and_join_in_pieces_move_every_row(world, limited):
    rank, size = world.rank, world.size
    # Rank r gives rank s an array [r + 1, s + 2] full of 10 r + s, cut from the middle of a larger one.
    parts = {other: np.full((rank + 1, other + 4), 10.0 * rank + other + 1j)[:, 1:-1] for other in range(size)}
    found = world.exchange(parts, {other: (other + 1, rank + 2) for other in range(size)}, np.dtype(complex))
    for other, part in enumerate(found):
        assert part.shape == (other + 1, rank + 2) and (part == 10 * other + rank + 1j).all()
    rows = [rank_of for rank_of in range(size) for _ in range(2 * rank_of)]  # rank 0 has none
    whole = world.join(np.full((2 * rank, 3), float(rank)), np.empty((len(rows), 3)))
    assert np.array_equal(whole, np.repeat(np.array(rows, float)[:, None], 3, axis=1))


@pytest.mark.parallel(RANKS)
def test_rows_sent_to_rank_0_in_pieces_arrive_in_order(world, limited):
    rows = np.arange(14.0).reshape(2, 7)
    if world.is_root:
        for source in range(1, world.size):
            assert np.array_equal(world.receive(np.empty_like(rows), source, 9), rows + source)
    else:
        world.send(rows + world.rank, 9)
    world.barrier()


@pytest.mark.parallel(RANKS)
@pytest.mark.parametrize(
    ("cores_of", "threads_of"),
    [
        (lambda rank: range(4 * rank, 4 * rank + 4), lambda rank, size: 4),  # each rank is bound to cores of its own
        (lambda rank: range(6), lambda rank, size: 6 // size),  # no rank is bound
        (lambda rank: range(6) if rank < 2 else range(6, 8), lambda rank, size: 3 if rank < 2 else 2),  # two sockets
        (lambda rank: [0], lambda rank, size: 1),  # more ranks than cores
    ],
)
def test_a_rank_has_the_cores_it_is_bound_to_and_its_part_of_shared_ones(world, monkeypatch, cores_of, threads_of):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(cores_of(world.rank)))
    before = torch.get_num_threads()
    try:
        Communicator(world.mpi)
        assert torch.get_num_threads() == threads_of(world.rank, world.size)
    finally:
        torch.set_num_threads(before)
