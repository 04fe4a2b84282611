"""The inner solvers: closed-form output layer, regularisation by held-out particles, where training stops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hpc_kjko.case.config import from_table
from hpc_kjko.errors import UserError
from hpc_kjko.inner.control import ControlField
from hpc_kjko.inner.objective import JKOObjective
from hpc_kjko.inner.solvers import AdamSolver, VarproSolver, varpro
from hpc_kjko.inner.solvers.base import Batches, Sample, TrainingData
from hpc_kjko.operators import Bath
from hpc_kjko.particles.state import BLOCK, FOLDS, Shard, folds, uniform_points

KAPPA, TEMPERATURE, STEP = 0.8, 1.3, 0.2


def sample_of(control, x, v):
    z = control.features(x, v).to(control.layers[0].weight.dtype)
    return Sample(z, z[:, -v.shape[1] :], torch.full_like(z[:, 0], 1 / len(z)))


def banana(dims, count, seed=0):
    """Positions and velocities of a density that is far from Gaussian: [n, dims] each."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, dims, dtype=torch.float64, generator=generator)
    v = 0.7 * torch.randn(count, dims, dtype=torch.float64, generator=generator) + torch.tanh(2 * x) + 0.2 * x**2
    return x, v


def solver_of(control, comm, kind=VarproSolver, logdet="exact", **settings):
    objective = JKOObjective(control, operator=Bath(KAPPA, TEMPERATURE), logdet=logdet)
    defaults = {"iterations": 0, "first_iterations": 0, "learning_rate": 1e-2}
    return kind(objective, comm, **{**defaults, **settings})


@pytest.mark.parametrize("variate", [False, True])
@pytest.mark.parametrize("logdet", ["linear", "exact"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_varpros_output_layer_is_stationary(dims, logdet, variate, alone, monkeypatch):
    """Without a ridge, the functional's own gradient (by autograd) vanishes in output weights, skip and bias."""
    monkeypatch.setattr(varpro, "RIDGES", (0.0,))
    monkeypatch.setattr(varpro, "TOLERANCE", 0.0)
    monkeypatch.setattr(varpro, "LAST_STEP", 0.0)
    control = ControlField(None, dims, dims, hidden=(6, 9), dtype=torch.float64, skip=True)
    sample = sample_of(control, *banana(dims, 2000))
    if variate:  # whatever numbers a control variate might give
        sample = replace(sample, v=torch.sin(sample.v) + 0.3, known=0.4 * torch.cos(sample.v[:, 0]))
    solver_of(control, alone, logdet=logdet).minimise(TrainingData.unheld(sample), STEP)
    objective = JKOObjective(control, operator=Bath(KAPPA, TEMPERATURE), logdet=logdet)
    value = objective(STEP, *sample.rows(slice(None)))
    value.backward()
    assert float(value.detach()) < -0.01
    for parameter in (control.skip, *control.layers[-1].parameters()):
        assert parameter.grad.abs().max() < 1e-7
    assert control.layers[0].weight.grad.abs().max() > 1e-4  # what the hidden steps go down


def test_hidden_steps_lower_the_reduced_objective(alone):
    """From step to step, in the long run: the hidden layers follow Adam's own C, which lags behind at first."""
    found = {}
    for iterations in (0, 20):
        control = ControlField(None, 1, 1, hidden=(8, 8), dtype=torch.float64, skip=True)
        sample = sample_of(control, *banana(1, 3000))
        solver = solver_of(control, alone, iterations=iterations, first_iterations=iterations)
        values = []
        for _ in range(8):
            solver.minimise(TrainingData.unheld(sample), STEP)
            values.append(float(solver.trainer.objective(STEP, *sample.rows(slice(None))).detach()))
        found[iterations] = np.array(values)
    assert (found[20][-1] < 1.02 * found[0]).all()  # the values are negative
    assert (np.diff(found[20][-4:]) < 0).all()


def test_held_out_particles_choose_the_affine_field_for_a_gaussian(alone):
    """Its u is affine: what the network adds is noise. Only fitted particles like it."""
    mixing = torch.tensor([[1.0, 0.0], [0.4, 0.7]], dtype=torch.float64)
    control = ControlField(None, 1, 1, hidden=(16, 32), dtype=torch.float64, skip=True)
    added = {True: [], False: []}
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(2000, 2, dtype=torch.float64, generator=generator) @ mixing.T
        fit, select = sample_of(control, z[:1200, :1], z[:1200, 1:]), sample_of(control, z[1200:, :1], z[1200:, 1:])
        for data in (TrainingData.choosing([fit], select), TrainingData.unheld(fit)):
            solver_of(control, alone).minimise(data, STEP)
            excess = torch.linalg.norm(control(select.z) - _affine_part(control(select.z), select.z)).detach()
            added[data.held_out].append(float(excess))
    assert np.median(added[True]) < 0.5 * np.median(added[False])


def _affine_part(u, z):
    design = torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
    return design @ torch.linalg.lstsq(design, u).solution


def test_a_stiffer_fit_has_smaller_coefficients(alone):
    control = ControlField(None, 1, 1, hidden=(16, 32), dtype=torch.float64, skip=True)
    data = TrainingData.unheld(sample_of(control, *banana(1, 3000)))
    sizes = []
    for stiffer in (0, 1):
        solver_of(control, alone).minimise(data, STEP, stiffer)
        sizes.append(float(control.layers[-1].weight.detach().norm()))
    assert sizes[1] < 0.3 * sizes[0]


def test_auto_iterations_stop_where_the_held_out_objective_does(alone):
    """A wide network on few particles overfits: training on makes the held-out objective worse."""
    x, v = banana(1, 120, seed=4)

    def held_out_after(**settings):
        control = ControlField(None, 1, 1, hidden=(32, 32), dtype=torch.float64)
        fit, select = sample_of(control, x[:80], v[:80]), sample_of(control, x[80:], v[80:])
        solver = solver_of(control, alone, AdamSolver, **settings)
        made = solver.minimise(TrainingData.choosing([fit], select), STEP)
        return made, float(solver.trainer.objective(STEP, *select.rows(slice(None))).detach())

    made, stopped = held_out_after(iterations="auto", first_iterations=2000)
    _, trained_on = held_out_after(iterations=2000, first_iterations=2000)
    assert 5 <= made < 1000 and stopped < 0 and trained_on > stopped + 0.01


@pytest.mark.parametrize("total", [100, 4096, 3 * BLOCK + 5, 2**16])
def test_folds_are_spread_alike_and_known_by_the_row_alone(total):
    whole = folds(Shard.of(total, 0, 1))
    assert torch.equal(torch.cat([folds(Shard.of(total, rank, 3)) for rank in range(3)]), whole)
    sizes = torch.bincount(whole, minlength=FOLDS)
    assert sizes.max() <= 2 * max(1, int(sizes.min()))
    points = uniform_points("quiet", 3, 0, total, 2)
    for fold in range(FOLDS):
        assert np.abs(points[whole == fold].mean(0) - 0.5).max() < 3 / math.sqrt(12 * total / FOLDS)


@pytest.mark.parametrize(
    ("method", "advice"),
    [
        ({"solver": "varpro", "collision": "score_matching"}, 'varpro" is for "jko" and "pair_sum"'),
        ({"solver": "varpro", "iterations": "auto"}, "give varpro a number"),
        ({"solver": "adam", "iterations": 0}, "trains nothing"),
        ({"first_iterations": 0}, "set method.iterations = 0 too"),
        ({"solver": "adam", "iterations": "auto"}, "needs method.held_out = true"),
        ({"iterations": "many"}, "method.iterations"),
    ],
)
def test_solver_settings_that_do_not_go_together(method, advice):
    with pytest.raises(UserError, match=advice):
        from_table({"problem": {"kind": "gaussian"}, "method": method})


def test_batches_are_gathered_when_they_are_asked_for():
    gathered = []

    def sample_of(rows, batch):
        gathered.append((rows.tolist(), batch))
        return Sample(rows[:, None], rows[:, None], rows)

    batches = Batches(sample_of, torch.tensor([3, 1, 2, 0, 4]), np.array([0, 2, 2, 5]))
    data = TrainingData.in_batches(batches, batches)
    assert len(data.folds) == 3 and gathered == [([], None)] and not len(data.select.z)
    assert data.folds[2].share.tolist() == data.folds[2].share.tolist() == [2, 0, 4]
    assert gathered[1:] == [([2, 0, 4], 2)]
    assert [len(one.z) for one in data.everything] == [2, 3]
    for most, wanted in (
        (np.inf, [([3, 1, 2, 0, 4], (2, 3))]),
        (4, [([3, 1], (2,)), ([2, 0, 4], (3,))]),
        (1, [([3, 1], (2,)), ([2, 0, 4], (3,))]),
    ):
        assert [(whole.share.tolist(), counts) for whole, counts in batches.joined(most)] == wanted
