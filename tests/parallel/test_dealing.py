"""Batches of the inner solve on any number of ranks: which rows they have, and who works on them."""

import numpy as np
import pytest
import torch

from hpc_kjko.case.config import from_table
from hpc_kjko.inner.solvers.density import FittedDensity
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.dealing import Batching, Dealing
from hpc_kjko.particles.exact import rows_together
from hpc_kjko.particles.state import BATCH, CERTIFY, FOLDS, Shard
from hpc_kjko.running.simulation import Simulation

FITTED = tuple(fold for fold in range(FOLDS) if fold != CERTIFY)
#: Of all kinds: fewer than a block, than ranks; a block that is not whole; several batches of a fold.
TOTALS = [1, 700, 2049, 5003, 20000, 69779]


@pytest.mark.parametrize("total", TOTALS)
def test_rows_of_a_batch_are_those_of_the_particles_in_it(total):
    batching = Batching.of(total, FITTED)
    batch = batching.of_rows(Shard.of(total, 0, 1), torch.device("cpu")).numpy()
    assert set(batch) - {-1} == set(range(len(batching)))
    for number in range(len(batching)):
        assert np.array_equal(batching.rows(number), np.flatnonzero(batch == number))


@pytest.mark.parallel([2, 3, 4])
@pytest.mark.parametrize("total", TOTALS)
def test_each_rank_has_its_pieces_of_the_rows_in_order(total, world):
    """A rank without particles too."""
    batching, shard = Batching.of(total, FITTED), Shard.of(total, world.rank, world.size)
    deal = Dealing(batching, world, rows_together(total))
    batch = batching.of_rows(shard, torch.device("cpu"))
    for number in range(min(len(batching), 3)):
        own = shard.start + torch.nonzero(batch == number)[:, 0]
        given = {"two": torch.stack([own, -own], dim=1).float(), "double": own.double()}
        found = deal(number, given)
        assert [part.dtype for part in found.values()] == [torch.float32, torch.float64]
        assert torch.equal(found["two"], torch.stack([found["double"], -found["double"]], dim=1).float())
        rows = [part.numpy() for part in world.allgather(found["double"])]
        assert np.array_equal(np.concatenate(rows), batching.rows(number))  # all of them, once, in their order
        pieces = [-(-len(part) // deal.together) for part in rows]
        assert max(pieces) - min(pieces) <= 1
        assert all(len(part) % deal.together == 0 for part in rows[: np.flatnonzero(pieces)[-1]])


@pytest.mark.parametrize("ranks", [2, 16, 64, 1000])
@pytest.mark.parametrize(("total", "apart"), [(2**20, 1), (10**6, 2)])
def test_many_ranks_take_turns(ranks, total, apart):
    """Those that have no part in a batch have one in the next; two ranks keep the rows that they have. With a power of
    two all batches have two pieces, with other numbers some have three.
    """
    batching = Batching.of(total, FITTED)
    comm = Communicator()
    comm.size = ranks
    deal = Dealing(batching, comm, rows_together(total))
    worked = np.zeros(ranks, int)
    for number in range(16):
        source, target, length = deal.plan(number)
        assert length.sum() >= BATCH and len(set(target)) == min(ranks, len(target))
        worked += np.bincount(target, minlength=ranks)
        assert ranks > 2 or np.array_equal(source, target)
    assert worked.max() - worked.min() <= apart


@pytest.mark.parallel([2, 3, 4])
def test_every_rank_works_on_each_batch_of_a_step(world, monkeypatch):
    """Hidden steps and coefficients; of 3000 particles a rank of four has none of its own."""
    taken, best = [], FittedDensity.best

    def counting(self, samples, penalty=None):
        taken.extend(len(z) for z, *_ in samples)
        return best(self, samples, penalty)

    monkeypatch.setattr(FittedDensity, "best", counting)
    table = {
        "problem": {"kind": "two_stream"},
        "physics": {"collision_strength": 0.5},
        "particles": {"count": 3000},
        "grid": {"cells": 16},
        "time": {"step": 0.1, "end": 1.0},
        "method": {"hidden": [8, 8], "first_iterations": 5, "iterations": 2},
    }
    simulation = Simulation.start(from_table(table), world)
    assert (world.min(len(simulation.state.particles.x)) == 0) == (world.size == 4)
    simulation.advance()
    of_ranks = np.array(world.allgather(taken))
    assert of_ranks.shape[1] >= 6 and (of_ranks.min(axis=0) > 0).all()
    assert (of_ranks.max(axis=0) <= of_ranks.sum(axis=0) / world.size + 2 * 128).all()
