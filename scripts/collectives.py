#!/usr/bin/env python
"""Counts the collective calls and bytes in a step of the default method, by their purpose.

    mpirun -n 2 python scripts/collectives.py [--job JOB.toml] [--set KEY=VALUE ...] [--steps N] [--out FILE.csv]

Every call of hpc_kjko/parallel/comm.py is counted during some steps, each with a row of the time series. Two steps
before them are not counted, because the first one trains longer. The table also has the numbers of :func:`expected`,
from which scaling_model.py predicts the time on many ranks without a run. On one rank the gradients of the hidden steps
are not summed, so use two ranks. Not counted are the files of a run, and one sum of one number that asks whether to
stop.

The kind `sum` puts the sum of an array on every rank. `broadcast` sends the array or a small object of one rank to all
ranks. `gather` brings a small object of every rank to all ranks. Bytes are those of the array; 0 for a small object.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from hpc_kjko.case import config
from hpc_kjko.collisions.witness import WaveWitness
from hpc_kjko.errors import UserError
from hpc_kjko.files.binned import MARGINAL_BINS
from hpc_kjko.inner.potential import PotentialField
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.push.integrators import MAPS, compose
from hpc_kjko.running.diagnostics import measure
from hpc_kjko.running.simulation import Simulation

JOB = Path(__file__).resolve().parent.parent / "jobs" / "e7_two_stream_3d3v.toml"
#: Number of steps before the counted ones.
WARM = 2
#: The purpose of a call, by the nearest function around it: its module and its name.
PURPOSES = {
    ("poisson", "summed"): "density",
    ("poisson", "solve"): "electric field",
    ("density", "train"): "hidden steps",
    ("density", "solve"): "coefficients of psi",
    ("density", "tie"): "tie to the sample",
    ("potential_sums", "derivatives"): "control field",
    ("regression", "_fit_field"): "control field",
    ("jko", "relaxed"): "relaxation of log f",
    ("controlled", "_move"): "move and certificate",
    ("base", "with_energy"): "energy of collisions",
    ("diagnostics", "measure"): "time series",
}
#: The purpose of calls by all other functions.
OTHER = "other"
#: Settings that :func:`expected` needs to know the calls of a case.
KNOWN = {
    "method.collision": "jko",
    "method.solver": "regression",
    "physics.collision_operator": "bath",
    "physics.field": "poisson",
    "grid.solver": "root",
}


@dataclass(frozen=True, order=True)
class Call:
    """One collective call.

    Attributes:
        purpose: a value of PURPOSES, or OTHER.
        kind: sum, broadcast or gather.
        nbytes: bytes of the array; 0 for a small object.
    """

    purpose: str
    kind: str
    nbytes: int


class CountingCommunicator(Communicator):
    """A communicator that records its calls in ``calls``."""

    def __init__(self, *arguments: Any):
        self.calls: Counter[Call] = Counter()
        super().__init__(*arguments)

    def sum(self, values: np.ndarray) -> np.ndarray:
        self._note("sum", values.nbytes)
        return super().sum(values)

    def min(self, value: float) -> float:
        self._note("gather", 0)
        return super().min(value)

    def allgather(self, value: Any) -> list[Any]:
        self._note("gather", 0)
        return super().allgather(value)

    def bcast(self, value: Any) -> Any:
        self._note("broadcast", 0)
        return super().bcast(value)

    def bcast_array(self, array: np.ndarray, root: int = 0) -> np.ndarray:
        self._note("broadcast", array.nbytes)
        return super().bcast_array(array, root)

    def _note(self, kind: str, nbytes: int) -> None:
        frame: FrameType | None = sys._getframe(2)
        while frame:
            code = frame.f_code
            purpose = PURPOSES.get((Path(code.co_filename).stem, code.co_name))
            if purpose:
                self.calls[Call(purpose, kind, nbytes)] += 1
                return
            frame = frame.f_back
        self.calls[Call(OTHER, kind, nbytes)] += 1


def refusal(case: config.Case) -> str:
    """A sentence that says why :func:`expected` does not know the calls of a case; empty if it does."""
    if case.species:
        return "the expected calls are those of one species: take a case without [species.NAME]"
    if case.physics.collision_strength == 0:
        return "the expected calls are those of a step with collisions: physics.collision_strength must not be 0"
    table = case.table()
    for key, value in KNOWN.items():
        section, name = key.split(".")
        if (found := table[section].get(name)) != value:
            return f'{key} = "{found}": the expected calls are those of {key} = "{value}"'
    return ""


def expected(
    case: config.Case, *, hidden_steps: int | None = None, passes: int = 2, series: int | None = None
) -> Counter[Call]:
    """The calls of a usual step of the default method, with the number of each.

    A usual step has one species with a wave in a bath, Poisson's field and ``grid.solver = "root"``. No fit is repeated
    in it, neither for outliers in log f nor for a refused step.

    Args:
        case: the case.
        hidden_steps: Adam's steps on the hidden layers; by default the largest number in the case.
        passes: passes of Newton's method for the control field. The first one needs no particles.
        series: numbers in a row of the time series that are summed; by default only those of the marginals.
    """
    problem, method = case.problem, case.method
    dims = problem.space_dims + problem.velocity_dims
    control = PotentialField(problem.periods, problem.space_dims, problem.velocity_dims, hidden=method.hidden)
    psi, phi, tied = control.of_density, len(control.coefficients), len(control.of_velocity)
    places = 1 + problem.velocity_dims + (0 if problem.periods else problem.space_dims)
    parameters = sum(parameter.numel() for parameter in control.parameters())
    nodes, hidden = math.prod(case.grid.cells), method.iterations if hidden_steps is None else hidden_steps
    solves = sum(stage.action == "drift" for stage in compose(MAPS[case.time.integrator], method.order))
    numbers = Counter(
        {
            ("density", "sum", nodes): solves,
            ("electric field", "broadcast", nodes * problem.space_dims): solves,
            ("hidden steps", "sum", psi * (psi + 1)): hidden,
            ("hidden steps", "broadcast", psi): hidden,
            ("hidden steps", "sum", 2): hidden,
            ("hidden steps", "sum", parameters): hidden,
            ("coefficients of psi", "sum", psi * (psi + 1)): 1,
            ("coefficients of psi", "broadcast", psi): 1,
            ("coefficients of psi", "sum", 2): 1,
            ("tie to the sample", "sum", tied * (tied + 2) + 2 * tied + 1 + places**2): 1,
            ("tie to the sample", "broadcast", tied): 1,
            ("tie to the sample", "broadcast", 0): 1,
            ("control field", "sum", 2 * phi**2 + phi + 1): 1,
            ("control field", "broadcast", phi): passes + 1,
            ("control field", "sum", phi + 2): passes - 1,
            ("control field", "broadcast", 0): 2 * passes - 1,
            ("relaxation of log f", "sum", 6): 1,
            ("move and certificate", "sum", 2 * (5 + WaveWitness.TERMS)): 1,
            ("move and certificate", "sum", 8): 2,
            ("move and certificate", "gather", 0): 1,
            ("energy of collisions", "sum", 2): 1,
            ("time series", "gather", 0): 1,
            ("time series", "sum", MARGINAL_BINS * dims if series is None else series): 1,
        }
    )
    return Counter({Call(purpose, kind, 8 * number): calls for (purpose, kind, number), calls in numbers.items()})


def counted(case: config.Case, steps: int, comm: CountingCommunicator) -> tuple[list[Counter[Call]], Simulation]:
    """The calls of each of some steps with a row of the time series, and the simulation after them."""
    simulation, found = Simulation.start(case, comm), []
    for _ in range(WARM + steps):
        comm.calls.clear()
        simulation.state = simulation.advance()
        simulation.step_index += 1
        measure(simulation.diagnostics, simulation.state, comm)
        found.append(Counter(comm.calls))
    return found[WARM:], simulation


def expected_of(calls: Counter[Call], simulation: Simulation) -> Counter[Call]:
    """The result of :func:`expected` for the number of hidden steps and Newton passes of a counted step."""
    parameters = sum(parameter.numel() for parameter in simulation.collisions[0].control.parameters())
    hidden = calls[Call("hidden steps", "sum", 8 * parameters)]
    series = sum(len(diagnostic.local(simulation.state)) for diagnostic in simulation.diagnostics)
    return expected(
        simulation.case,
        hidden_steps=hidden,
        passes=simulation.state.collision.inner_iterations - hidden,
        series=series,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", type=Path, default=JOB, help=f"the case (default {JOB.name})")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in kjko run")
    parser.add_argument("--steps", type=int, default=2, help="number of counted steps (default 2)")
    parser.add_argument("--out", type=Path, help="file for the table, as CSV")
    options = parser.parse_args()
    try:
        case = config.load(options.job, options.set)
    except UserError as failure:
        parser.error(str(failure))
    if why := refusal(case):
        parser.error(why)
    torch.set_num_threads(1)
    comm = CountingCommunicator.world()
    steps, simulation = counted(case, options.steps, comm)
    known = expected_of(steps[-1], simulation)
    if comm.is_root:
        total, order = sum(steps, Counter()), [*PURPOSES.values(), OTHER]
        rows = [
            {
                "purpose": call.purpose,
                "kind": call.kind,
                "bytes a call": call.nbytes,
                "calls a step": total[call] / options.steps,
                "expected": known[call],
            }
            for call in sorted({*total, *known}, key=lambda call: (order.index(call.purpose), call))
        ]
        writer = csv.DictWriter(sys.stdout, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        calls, nbytes = sum(total.values()), sum(call.nbytes * number for call, number in total.items())
        print(
            f"# {calls / options.steps:g} calls and {nbytes / options.steps / 1e6:.3f} MB a step on {comm.size} ranks"
        )
        print(f"# the last step made the calls that were expected: {'yes' if steps[-1] == known else 'no'}")
        if options.out:
            with options.out.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    comm.close()


if __name__ == "__main__":
    main()
