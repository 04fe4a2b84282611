"""Runs from Python under mpirun: every rank calls, and every rank gets the run or the mistake."""

import pytest

from hpc_kjko import Case, UserError, run
from hpc_kjko.parallel.comm import Communicator

TABLE = {
    "problem": {"kind": "two_stream"},
    "particles": {"count": 3000},
    "grid": {"cells": 16},
    "time": {"end": 0.2},
    "method": {"hidden": [4], "first_iterations": 4, "iterations": 2},
}


@pytest.mark.parallel([1, 2, 3])
def test_every_rank_gets_the_run(tmp_path):
    world = Communicator.world()
    folder = world.bcast(tmp_path / "out")
    result = run(Case.from_table(TABLE), folder, progress=False)
    assert result.status == "finished" and result.provenance["ranks"] == world.size
    assert len(result.series.time) == 3 and result.particles.sizes["particle"] == 3000
    with pytest.raises(UserError, match="already holds a run"):
        run(Case.from_table(TABLE), folder, progress=False)
    again = run(Case.from_table(TABLE), folder, force=True, progress=False)  # the folder is free, whoever failed
    assert (again.series.field_energy == result.series.field_energy).all()
    world.barrier()
