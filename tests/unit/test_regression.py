"""The solver that fits ψ to the log-density which the particles carry."""

import dataclasses
import math

import pytest
import torch

from hpc_kjko.case.config import from_table
from hpc_kjko.collisions import StepStart
from hpc_kjko.files.checkpoint import load
from hpc_kjko.inner.objective import DensityObjective
from hpc_kjko.inner.potential import PotentialField, combined, number_of_functions
from hpc_kjko.inner.solvers import density, regression
from hpc_kjko.inner.solvers.density import FittedDensity
from hpc_kjko.inner.solvers.regression import RegressionSolver
from hpc_kjko.operators import Bath
from hpc_kjko.particles.state import Shard
from hpc_kjko.running.simulation import Simulation


def beams(start="random", count=4096, solver="regression", step=0.02, dims=1, **method):
    """Two beams that are narrow beside the bath's thermal speed, and do not depend on x."""
    return from_table(
        {
            "problem": {
                **{"kind": "periodic", "space_dims": dims, "amplitude": 0.0},
                **{"beam_velocity": 1.5, "thermal_speed": 0.5},
            },
            "physics": {"collision_strength": 0.5},
            "particles": {"count": count, "start": start},
            "time": {"step": step, "end": step},
            "method": {"solver": solver, "hidden": [32, 32], "first_iterations": 150, **method},
        }
    )


def maxwellian(start="random", **keys):
    """The bath's own equilibrium."""
    quiet = {"amplitude": 0.0, "beam_velocity": 0.0, "thermal_speed": 1.0}
    return from_table({**beams(start, **keys).table(), "problem": {"kind": "periodic", "space_dims": 1, **quiet}})


def collided(case, comm, change=lambda particles: particles):
    """Particles before and after a collision step from a case's start, its report, and the collision."""
    simulation = Simulation.start(case, comm)
    particles = change(simulation.state.particles)
    after, report = simulation.collisions[0].step(particles, case.time.step, StepStart(0, 0.0, particles))
    return particles, after, report, simulation.collisions[0]


@pytest.mark.parametrize(("periods", "dx", "dv"), [((3.0,), 1, 1), ((3.0,), 1, 3), (None, 2, 2), ((2.0, 3.0), 2, 3)])
@pytest.mark.parametrize("hidden", [(5,), (7, 5)])
def test_derivatives_are_those_of_the_functions(periods, dx, dv, hidden):
    field = PotentialField(periods, dx, dv, hidden=hidden, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    x, v = (torch.randn(9, dims, dtype=torch.float64, generator=generator) for dims in (dx, dv))

    def along(function, axis):
        direction = torch.eye(dv, dtype=torch.float64)[axis].expand_as(v)
        return torch.autograd.functional.jvp(function, v, direction)[1]

    def functions(v):
        return torch.cat([field.functions(field.features(x, v)), v**3 / 6, v**4 / 24], dim=1)

    first, second = field.derivatives(field.features(x, v))
    more = [first.shape[-1] + field.functions(field.features(x, v)).shape[1] - field.shared]
    assert more == [number_of_functions(hidden[-1], dx, dv, periods is not None)]
    c = torch.randn(first.shape[-1], dtype=torch.float64, generator=generator)
    (gradient,), (bend,) = field.slopes(field.features(x, v), c[None], bent=1)
    assert torch.allclose(gradient, first @ c, atol=1e-12)
    assert torch.allclose(bend, field.matrix(second @ c), atol=1e-12)
    by_v, of_x = torch.stack([along(functions, axis) for axis in range(dv)], 1), slice(field.shared, -2 * dv)
    assert not by_v[..., of_x].any()
    assert torch.allclose(torch.cat([by_v[..., : field.shared], by_v[..., -2 * dv :]], -1), first, atol=1e-12)
    again = torch.stack([along(lambda v: field.derivatives(field.features(x, v))[0], k) for k in range(dv)], 1)
    whole = torch.stack([field.matrix(second[..., m]) for m in range(first.shape[-1])], -1)
    assert torch.allclose(again, whole, atol=1e-12)


@pytest.mark.parametrize("hidden", [(5,), (7, 5)])
def test_the_gradient_of_the_fit_is_that_of_automatic_differentiation(hidden):
    field = PotentialField((3.0,), 1, 2, hidden=hidden, dtype=torch.float64)
    objective, generator = (
        DensityObjective(field, operator=Bath(1.0, 1.0), mass=1.0, lengths=None, together=128),
        torch.Generator(),
    )
    z, wanted, share, c = (
        torch.rand(size, dtype=torch.float64, generator=generator) for size in ((300, 4), 300, 300, field.of_density)
    )
    value, gradient = objective.evaluate(0.0, z, wanted, share, c, with_gradient=True)
    expected = objective.part(0.0, z, wanted, share, c)
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-10)
    wanted_gradient = torch.cat([part.flatten() for part in torch.autograd.grad(expected, objective.trained)])
    assert torch.allclose(gradient, wanted_gradient, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("order", "dims"), [(1, 1), (2, 1), (2, 3)])
def test_along_monomials_of_v_the_minimiser_is_that_of_the_sample(order, dims, alone):
    """The derivative of the plain JKO functional, of the fitted particles, along ∇m: m = v_k, v_k v_m, v_k³, v_k⁴."""
    untrained = {"iterations": 0, "first_iterations": 0, "precision": "float64"}
    case = beams(order=order, dims=dims, held_out=False, **untrained)
    particles, _, _, collision = collided(case, alone)
    h, kappa, field = case.time.step / order, case.physics.collision_strength, collision.control
    z = field.features(particles.x, particles.v)
    first, second = field.derivatives(z)
    u, jacobian = combined(first, field.coefficients), field.matrix(combined(second, field.coefficients))
    m = field.of_velocity
    reached = u / kappa + particles.v + h * u
    inverse = torch.linalg.inv(torch.eye(dims, dtype=torch.float64) + h * jacobian)
    bent = torch.stack([field.matrix(part) for part in second[..., m].unbind(-1)], -1)
    pull = torch.einsum("njk,nkjm->nm", inverse, bent)
    derivative = (torch.einsum("nj,njm->nm", reached, first[..., m]) - pull).mean(0)
    assert derivative.abs().max() < 1e-4 * pull.abs().mean()
    assert u.abs().mean() > 0.1


def test_the_field_is_that_of_log_f_and_not_of_the_sample(alone):
    """Random particles: |u − u*|² against the exact score is less than half of that of a fit to positions. What is left
    is the noise of four moments."""
    errors = {}
    for solver in ("varpro", "regression"):
        _, _, report, collision = collided(beams(solver=solver, step=1e-3), alone)
        exact = beams().problem
        particles = Simulation.start(beams(), alone).state.particles
        v = particles.v.requires_grad_()
        score = torch.autograd.grad(exact.log_density(particles.x, v, 1.0).sum(), v)[0]
        wanted = -0.5 * (v.detach() + score)
        u = collision.field(particles, 1e-3, None)(slice(None))[0].detach()
        errors[solver] = float(((u - wanted) ** 2).mean())
        assert report.substeps == 1
    assert errors["regression"] < 0.5 * errors["varpro"]


def test_a_constant_added_to_log_f_moves_no_particle(alone):
    before, after, *_ = collided(beams(), alone)
    shift = lambda particles: particles.move(particles.v, particles.log_f + 3.0)  # noqa: E731
    _, shifted, *_ = collided(beams(), alone, shift)
    assert (after.v - shifted.v).pow(2).mean() < 1e-3 * (after.v - before.v).pow(2).mean()  # by rounding, in 300 steps
    assert (after.log_f + 3.0 - shifted.log_f).pow(2).mean() < 1e-3 * (after.log_f - before.log_f).pow(2).mean()


@pytest.mark.parametrize("off", [8.0, -8.0])
def test_ten_particles_whose_log_f_is_off_change_little(off, alone):
    def spoil(particles):
        log_f = particles.log_f.clone()
        log_f[torch.arange(10) * 400 + 7] += off
        return particles.move(particles.v, log_f)

    before, after, *_ = collided(beams(), alone)
    _, spoilt, report, _ = collided(beams(), alone, spoil)
    moved, other = after.v - before.v, spoilt.v - before.v
    assert (other - moved).pow(2).mean() < 0.01 * moved.pow(2).mean()
    assert report.substeps == 1 and report.certificate == 1
    # they come back, by relaxation
    ten = torch.arange(10) * 400 + 7
    left = float((spoilt.log_f - after.log_f)[ten].mean()) / off
    assert left == pytest.approx(math.exp(-2 * 0.5 * 0.02), abs=0.002)


def test_a_step_with_a_density_of_the_wrong_sign_is_made_again_from_the_sample_alone(alone, monkeypatch):
    tie = FittedDensity.tie

    def wrong(self, samples):
        self.coefficients = -self.coefficients
        tie(self, samples)

    monkeypatch.setattr(FittedDensity, "tie", wrong)
    _, _, report, collision = collided(beams(), alone)
    assert report.retries == 1 and report.substeps == 1 and report.certificate >= 0
    assert report.log_f_moved == report.entropy_moved == 0  # nor does log f go over to such a density
    assert not collision.control.coefficients[: collision.control.width].any()


def test_a_step_too_long_for_a_density_that_fits_is_split_and_not_fitted_to_monomials(alone):
    """Between beams log f is convex: the midpoint map turns over there at κh = 0.4."""
    problem = {"kind": "periodic", "space_dims": 1, "amplitude": 0.0, "beam_velocity": 2.4, "thermal_speed": 1.0}
    case = from_table({**beams(step=0.8).table(), "problem": problem})
    _, _, report, collision = collided(case, alone)
    assert report.substeps > 1 and report.retries == 0 and report.certificate == 1
    assert report.log_f_residual < 0.1 and collision.control.coefficients[: collision.control.width].any()


def test_what_relaxation_does_to_log_f_is_told(alone):
    """log f moves by 1 − exp(−rκh) of what the tied fit leaves, and ∫f log f by the mean of that."""
    case = beams(relaxation=4.0, iterations=0, first_iterations=0, hidden=[4])
    still = beams(relaxation=0.0, iterations=0, first_iterations=0, hidden=[4])
    before, moved, report, collision = collided(case, alone)
    _, kept, none, _ = collided(still, alone)
    change = moved.log_f - kept.log_f
    assert report.log_f_residual == pytest.approx(none.log_f_residual) and report.log_f_residual > 0.1
    assert none.log_f_moved == none.entropy_moved == 0
    z = collision.control.features(before.x, before.v).float()
    missed, tied = (psi - before.log_f for psi in collision._solver.fitted.log_densities(z))
    assert report.log_f_residual == pytest.approx(float(missed.pow(2).mean().sqrt()), rel=1e-6)
    assert report.log_f_moved == pytest.approx(float(tied.pow(2).mean().sqrt()) * -math.expm1(-0.04), rel=1e-6)
    assert float(change.pow(2).mean().sqrt()) == pytest.approx(report.log_f_moved, rel=1e-6)
    assert report.entropy_moved == pytest.approx(float(moved.total_weight * change.mean()), abs=1e-9)
    assert dataclasses.replace(report).following(report).entropy_moved_total == report.entropy_moved


@pytest.mark.parametrize("off", [0.2, -0.2])
def test_a_temperature_of_log_f_that_the_particles_do_not_have_goes_away(off, alone):
    """Nothing else would damp it: the tie keeps it out of u."""

    def spoil(particles):
        energy = 0.5 * particles.v[:, 0] ** 2
        return particles.move(particles.v, particles.log_f + off * (energy - energy.mean()))

    before, after, report, _ = collided(maxwellian("quiet", step=0.2), alone, spoil)
    assert (after.v - before.v).abs().mean() < 1e-3
    energy = 0.5 * after.v[:, 0] ** 2
    slope = float(((after.log_f + energy) * (energy - energy.mean())).mean() / energy.var())
    assert slope == pytest.approx(off * math.exp(-2 * 0.5 * 0.2), abs=0.005)
    assert report.entropy_moved == pytest.approx(0.0, abs=1e-4)


def test_where_the_mass_of_the_density_can_be_told_log_f_goes_over_to_the_right_one(alone):
    """At a Maxwellian what was added to log f goes away, by relaxation; beams, whose mass is not known, keep it."""
    shift = lambda particles: particles.move(particles.v, particles.log_f + 0.05)  # noqa: E731
    before, after, report, _ = collided(maxwellian("quiet", step=0.2), alone, shift)
    assert float((after.log_f - before.log_f).mean()) == pytest.approx(0.05 * math.expm1(-2 * 0.5 * 0.2), rel=0.01)
    expected = float(after.total_weight) * 0.05 * math.expm1(-2 * 0.5 * 0.2)
    assert report.entropy_moved == pytest.approx(expected, rel=0.01)
    _, kept, *_ = collided(beams(step=0.2), alone)
    _, shifted, *_ = collided(beams(step=0.2), alone, shift)
    assert float((shifted.log_f - kept.log_f).mean()) == pytest.approx(0.05, rel=0.03)


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ({"form": "nonsplit"}, "form"),
        ({"logdet": "linear"}, "logdet"),
        ({"activation": "leaky_relu"}, "activation"),
        ({"hidden": []}, "hidden"),
        ({"iterations": "auto"}, "iterations"),
        ({"collision": "score_matching"}, "solver"),
    ],
)
def test_what_it_cannot_do_is_refused(method, named):
    with pytest.raises(Exception, match=f"method.{named}"):
        beams(**method)


@pytest.mark.parametrize(("count", "batches"), [(700, 1), (2048, 1), (8192, 3), (16384, 7), (40000, 14)])
def test_a_batch_has_as_many_particles_as_its_functions_need(count, batches, alone):
    """At least 2048, or all that are fitted: a fold of few particles would be overfitted."""
    case = beams(count=count, iterations=1, first_iterations=1)
    simulation = Simulation.start(case, alone)
    particles = simulation.state.particles
    start = StepStart(0, 0.0, particles)
    data = simulation.collisions[0].training_data(simulation.collisions[0].control, particles, case.time.step, start)
    sizes = [len(fold.z) for fold in data.folds]
    assert len(sizes) == batches and min(sizes) >= min(2048, sum(sizes)) and sum(sizes) >= 0.86 * count
    assert float(sum(fold.share.double().sum() for fold in data.folds)) == pytest.approx(1.0, abs=1e-6)
    assert sum(len(part.z) for part in data.everything) == count


def test_a_batch_is_fitted_alike_in_an_ensemble_of_any_size(alone):
    """The shares of a batch of 10⁹ particles add up to 2e-6. With the same share the solver of normal equations would
    change ψ by 0.01."""
    case = beams("quiet", count=8192)
    simulation = Simulation.start(case, alone)
    collision, some = simulation.collisions[0], simulation.state.particles
    fitted, found = collision._solver.fitted, []
    for total in (2**17, 2**30, 10**9):
        collision._folds = None
        particles = dataclasses.replace(some, shard=Shard(0, 8192, total))
        for _ in range(2):
            data = collision.training_data(collision.control, particles, case.time.step, StepStart(0, 0.0, particles))
            order, edges, masses = collision._folds
            collision._folds = order, edges, masses / masses.sum()  # as if the other rows were on other ranks
        samples = [data.folds[number] for number in range(7)]
        assert [len(one.z) for one in samples] == [1024] * 7
        best = fitted.best([(one.z, fitted.wanted(one), one.share) for one in samples])
        found.append(torch.cat([collision.control.values(one.z, best.coefficients[None])[0] for one in samples]))
        factors = [data.factor * float(one.share.double().sum()) for one in samples]
        assert factors == pytest.approx([factors[0]] * 7)
    assert torch.equal(found[0], found[1])
    assert (found[2] - found[0]).square().mean().sqrt() < 1e-5 * found[0].std()


def test_hidden_layers_that_show_log_f_are_left_alone(alone, monkeypatch):
    """A Maxwellian is fitted at once: one of Adam's steps is made, not thirty. Beams take all of them."""

    def of_adam(case):
        return collided(case, alone)[3]._solver.fitted.trainer.steps_made

    assert of_adam(maxwellian()) == 1
    assert of_adam(beams(first_iterations=30)) == 30
    monkeypatch.setattr(density, "FAITHFUL", 10.0)
    assert of_adam(beams(first_iterations=30)) == 1


def test_all_particles_have_their_turn_whether_or_not_hidden_steps_are_made(alone, monkeypatch):
    monkeypatch.setattr(regression, "FITTED_BATCHES", 3)
    simulation = Simulation.start(beams(count=16384, iterations=0, first_iterations=0), alone)
    solver, fitted, chosen = simulation.collisions[0]._solver, set(), RegressionSolver.chosen

    def recorded(self, number):
        fitted.update(found := chosen(self, number))
        assert len(found) == 3 and number == 7
        return found

    monkeypatch.setattr(RegressionSolver, "chosen", recorded)
    for _ in range(3):
        particles = simulation.state.particles
        simulation.collisions[0].step(particles, 0.02, StepStart(0, 0.0, particles))
    assert fitted == set(range(7)) and solver.fitted.trainer.steps_made == 0


def test_a_part_of_many_particles_is_enough_but_for_what_ties_the_fit_to_them(alone, monkeypatch):
    """With a quarter of the batches u is the same within its noise, and the tie holds over all, those that certify
    included."""
    case = beams(count=16384)
    before, after, *_ = collided(case, alone)
    monkeypatch.setattr(regression, "FITTED_BATCHES", 2)
    _, found, report, collision = collided(case, alone)
    assert report.substeps == 1 and not report.retries
    moved, off = after.v - before.v, found.v - after.v
    assert off.pow(2).mean() < 1e-3 * moved.pow(2).mean()
    field, c = collision.control, collision._solver.fitted.corrected
    z = field.features(before.x, before.v).float()
    first, second = (part[..., field.of_velocity].double() for part in field.derivatives(z))
    score = field.slopes(z, c[None])[0][0].double() - before.v  # of ψ̄, T = 1
    left = ((first * score[..., None]).sum(1) + second[:, 0]).mean(0)
    assert left.abs().max() < 1e-4 * second.abs().mean()


@pytest.mark.parametrize(
    ("field", "others"),
    [
        ({}, {}),
        ({"field": "ampere"}, {}),
        ({"field": "poisson"}, {"control_variate": True}),
        ({"field": "poisson", "collision_operator": "dougherty"}, {}),
    ],
)
def test_a_restart_is_to_the_bit_with_every_field(field, others, alone, tmp_path):
    """Their states stand beside each other in a checkpoint."""
    table = {
        "problem": {"kind": "two_stream", "amplitude": 0.1},
        "physics": {"collision_strength": 0.3, **field},
        "particles": {"count": 2048, **others},
        "grid": {"cells": 16},
        "time": {"step": 0.1, "end": 0.4},
        "method": {"hidden": [8], "first_iterations": 20, "iterations": 3},
    }
    case = from_table(table)
    simulation = Simulation.start(case, alone)
    for step in range(4):
        if step == 2:
            resumed = Simulation.resume(case, alone, load(simulation.save(tmp_path, {}), alone))
        simulation.state, simulation.step_index = simulation.advance(), step + 1
    for step in (2, 3):
        resumed.state, resumed.step_index = resumed.advance(), step + 1
    for name in ("x", "v", "log_f"):
        assert torch.equal(getattr(resumed.state.particles, name), getattr(simulation.state.particles, name))


def test_a_dent_in_log_f_that_is_narrower_than_a_step_resolves_is_not_followed(alone):
    """Particles between v = 0.5 and 0.53 whose log f is 0.4 low. A fit that follows the edge pushes them with u of the
    order κT 0.4/0.03, and the map turns over."""
    case = maxwellian("quiet", step=0.8, first_iterations=300)

    def spoil(particles):
        v = particles.v[:, 0]
        return particles.move(particles.v, particles.log_f - 0.4 * ((v > 0.5) & (v < 0.53)))

    _, _, report, collision = collided(case, alone, spoil)
    assert report.substeps == 1 and not report.retries and report.min_eigenvalue > 0.8
    assert 0.02 < report.log_f_residual < 0.06  # the dent itself, of 1 % of the particles
