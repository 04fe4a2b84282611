"""The calls of a step that scripts/collectives.py lists, and scaling_model.py counts on, are those that a run makes."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from hpc_kjko.case.config import from_table

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import collectives
from collectives import Call, CountingCommunicator, counted, expected, expected_of

TABLE = {
    "problem": {"kind": "two_stream", "velocity_dims": 2, "amplitude": 0.1, "beam_velocity": 1.0},
    "physics": {"collision_strength": 0.1},
    "particles": {"count": 5 * 1024},
    "grid": {"cells": 16},
    "time": {"step": 0.1, "end": 1.0},
    "method": {"hidden": [8, 6], "first_iterations": 150, "iterations": 4},
}


@pytest.fixture(scope="module")
def counting():
    torch.set_num_threads(1)
    comm = CountingCommunicator.world()
    yield comm
    comm.close()


@pytest.mark.parallel([2, 3])
def test_a_step_makes_the_calls_that_are_expected(counting):
    (calls,), simulation = counted(from_table(TABLE), 1, counting)
    assert calls == expected_of(calls, simulation)
    # of five row blocks two ranks store unequal parts of a batch, and three ranks as equal ones as possible
    assert any(call.kind == "exchange" for call in calls) == (counting.size == 2)
    calls = Counter({call: number for call, number in calls.items() if call.kind != "exchange"})
    assert not any(call.purpose == "other" for call in calls)
    # as many as the case allows: a step that trains less would hide what a longer one sends
    assert calls == expected(
        simulation.case,
        hidden_steps=4,
        passes=simulation.state.collision.inner_iterations - 4,
        series=sum(len(diagnostic.local(simulation.state)) for diagnostic in simulation.diagnostics),
    )
    # by hand: the network has 2 + 2 inputs, layers of 8 and 6; the mesh 16 nodes; order 2 solves for the field twice
    assert calls[Call("hidden steps", "sum", 8 * (8 * 4 + 8 + 6 * 8 + 6))] == 4
    assert calls[Call("density", "sum", 8 * 16)] == 2 == calls[Call("electric field", "broadcast", 8 * 16)]


def test_only_the_field_grows_with_the_mesh():
    small, large = (expected(from_table(TABLE | {"grid": {"cells": cells}})) for cells in (16, 64))
    grown = {call.purpose for call in (small - large) | (large - small)}
    assert grown == {"density", "electric field"}
    more = expected(from_table(TABLE | {"particles": {"count": 10**9}}))
    assert more == small


@pytest.mark.parametrize(
    "change, says",
    [
        ("physics.field=ampere", 'physics.field = "ampere": the expected calls are those of physics.field = "poisson"'),
        ("method.collision=none", 'method.collision = "none": the expected calls are those of method.collision'),
        ("physics.collision_strength=0", "physics.collision_strength must not be 0"),
        ("physics.field=amper", "physics.field = 'amper': it should be"),
    ],
)
def test_a_case_whose_calls_are_not_known_is_refused(change, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["collectives.py", "--set", change])
    with pytest.raises(SystemExit) as stopped:
        collectives.main()
    assert stopped.value.code == 2 and says in capsys.readouterr().err


def test_a_call_of_a_new_function_is_listed_last(monkeypatch, capsys):
    purposes = {place: purpose for place, purpose in collectives.PURPOSES.items() if purpose != "time series"}
    monkeypatch.setattr(collectives, "PURPOSES", purposes)
    monkeypatch.setattr(collectives, "expected_of", lambda calls, simulation: calls)
    job = collectives.JOB.with_name("e5_two_stream_weak.toml")
    sizes = ["particles.count=2048", "method.first_iterations=2", "method.iterations=2", "method.hidden=[8,8]"]
    monkeypatch.setattr(sys, "argv", ["collectives.py", "--job", str(job), *(f"--set={size}" for size in sizes)])
    collectives.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert rows[-1].startswith("other,") and not any(row.startswith("time series,") for row in rows)
