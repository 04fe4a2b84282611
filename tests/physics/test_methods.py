"""The methods beside the JKO step, and its other form: against exact solutions, and against each other."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import exactly, quick, run_command

from hpc_kjko.case.config import from_table
from hpc_kjko.collisions.langevin import LangevinCollision
from hpc_kjko.errors import UserError
from hpc_kjko.inner.solvers.adam import AdamSolver
from hpc_kjko.reference.gaussian import gaussian_moments
from hpc_kjko.running.diagnostics import measure
from hpc_kjko.running.simulation import Simulation


def case_of(problem=None, **sections):
    table = {
        "problem": problem or {"kind": "gaussian"},
        "physics": {"collision_strength": 1.0},
        "particles": {"count": 512},
        "time": {"step": 0.1, "end": 1.0, "integrator": "euler"},
    }
    method = {"hidden": [], "precision": "float64", **sections.pop("method", {})}
    return from_table({**table, "method": method, **sections})


def advanced(case, comm, steps=None):
    """The simulation after some steps (all of them unless told), and its rows."""
    simulation = Simulation.start(case, comm)
    simulation.prepare()
    rows = [measure(simulation.diagnostics, simulation.state, comm)]
    for _ in range(steps or case.time.steps):
        simulation.state = simulation.advance()
        simulation.step_index += 1
        rows.append(measure(simulation.diagnostics, simulation.state, comm))
    return simulation, {name: np.array([row[name] for row in rows]) for name in rows[0]}


# -- the non-split form ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logdet", ["exact", "linear"])
@pytest.mark.parametrize("dims", [1, 3])
def test_the_nonsplit_form_with_the_true_jacobian_is_the_split_form(dims, logdet, alone, monkeypatch):
    """Eq. (18) against eqs. (30)-(31): with a linear force an affine u of the pushed state is an affine ū of the state
    before the push, so both minimise over the same fields and must agree to round-off."""
    monkeypatch.setattr(AdamSolver, "minimise", exactly)
    stiffness = np.diag([1.0, 1.5, 0.8][:dims]) + 0.2 * (1 - np.eye(dims))
    covariance = 0.4 * np.eye(2 * dims) + 0.1
    problem = {
        "kind": "gaussian",
        "space_dims": dims,
        "stiffness": stiffness.tolist(),
        "mean": np.linspace(1.5, -0.5, 2 * dims).tolist(),
        "covariance": covariance.tolist(),
    }
    split, nonsplit = (
        advanced(case_of(problem, method={"solver": "adam", "order": 1, "form": form, "logdet": logdet}), alone, 4)[
            0
        ].state.particles
        for form in ("split", "nonsplit")
    )
    for name in ("x", "v", "log_f"):
        assert (getattr(split, name) - getattr(nonsplit, name)).abs().max() < 1e-9, name
    assert (split.log_f - split.log_f[0]).abs().max() > 0.1


def test_without_the_true_jacobian_the_nonsplit_form_loses_entropy_at_first_order(alone, monkeypatch):
    """∇v ū alone instead of (∇v − h ∇x) ū: off by O(h²) in each step, O(h) over a fixed time."""
    monkeypatch.setattr(AdamSolver, "minimise", exactly)
    errors = []
    for step in (0.1, 0.05, 0.025):
        entropy = {
            form: advanced(
                case_of(time={"step": step, "end": 0.5, "integrator": "euler"}, method={"form": form}), alone
            )[1]["entropy"]
            for form in ("split", "nonsplit_naive")
        }
        errors.append(abs(entropy["split"][-1] - entropy["nonsplit_naive"][-1]))
    assert np.log2(np.array(errors[:-1]) / errors[1:]) == pytest.approx([1, 1], abs=0.35)
    assert errors[0] > 0.01


def test_the_nonsplit_jacobian_is_that_of_the_whole_map(alone):
    """log f of a nonlinear network in a periodic box, against autograd's determinant of (x, v) → (x̃, v′)."""
    problem = {"kind": "periodic", "space_dims": 2, "length": [1.0, 2.0]}
    case = case_of(problem, particles={"count": 40}, method={"form": "nonsplit", "hidden": [8, 8]})
    simulation = Simulation.start(case, alone)
    control = simulation.collisions[0].control
    torch.nn.init.normal_(control.layers[-1].weight, std=1.0, generator=torch.Generator().manual_seed(3))
    simulation.collisions[0].fit = lambda *_, **__: 0  # as it is
    before, after = simulation.state.particles, simulation.advance().particles
    h = case.time.step

    def whole_map(z):
        x, v = z[:2], z[2:]
        x_pushed = x + h * v
        force = -torch.func.grad(lambda position: case.problem.potential(position[None])[0])(x_pushed)
        return torch.cat([x_pushed, v + h * force + h * control(control.features(x[None], v[None]))[0]])

    z = torch.cat([before.x, before.v], dim=1)
    jacobians = torch.vmap(torch.func.jacrev(whole_map))(z)
    log_det = torch.linalg.slogdet(jacobians)[1].detach()
    assert torch.allclose(before.log_f - after.log_f, log_det, atol=1e-12)
    assert torch.allclose(after.v, torch.vmap(whole_map)(z)[:, 2:].detach(), atol=1e-12)
    assert log_det.abs().max() > 0.01


# -- score matching --------------------------------------------------------------------------------------------------


def test_score_matching_learns_the_score_of_a_gaussian(alone, monkeypatch):
    """The affine minimiser of E[½|s|² + ∇v·s] is the score of the particles' own Gaussian; u = −κ (ṽ + T s)."""
    monkeypatch.setattr(AdamSolver, "minimise", exactly)
    case = case_of(physics={"collision_strength": 0.7, "temperature": 1.3}, method={"collision": "score_matching"})
    simulation = Simulation.start(case, alone)
    pushed = simulation.state.particles.drift(0.1)
    pushed = pushed.kick(0.1, -pushed.x)
    moved = simulation.advance().particles
    z = torch.cat([pushed.x, pushed.v], dim=1)
    covariance = torch.cov(z.T, correction=0)
    score = -((z - z.mean(0)) @ torch.linalg.inv(covariance))[:, 1:]
    assert torch.allclose(moved.v, pushed.v - 0.1 * 0.7 * (pushed.v + 1.3 * score), atol=1e-9)
    slope = 1 - 0.1 * 0.7 * (1 - 1.3 * torch.linalg.inv(covariance)[1, 1])
    assert torch.allclose(pushed.log_f - moved.log_f, slope.log().expand(512), atol=1e-9)


@pytest.mark.parametrize("form", ["split", "nonsplit"])
def test_score_matching_is_of_first_order(form, alone, monkeypatch):
    """Sequential, and score-based transport; both against the exact moments."""
    monkeypatch.setattr(AdamSolver, "minimise", exactly)
    errors = []
    for step in (0.1, 0.05, 0.025):
        case = case_of(
            time={"step": step, "end": 1.0, "integrator": "euler"},
            method={"collision": "score_matching", "form": form},
        )
        simulation = Simulation.start(case, alone)
        z = torch.cat([simulation.state.particles.x, simulation.state.particles.v], dim=1).numpy()
        exact = gaussian_moments(z.mean(0), np.cov(z.T, bias=True), [[1.0]], 1.0, 1.0, [1.0])
        simulation, _ = advanced(case, alone)
        z = torch.cat([simulation.state.particles.x, simulation.state.particles.v], dim=1).numpy()
        errors.append(max(np.abs(z.mean(0) - exact[0][0]).max(), np.abs(np.cov(z.T, bias=True) - exact[1][0]).max()))
    assert np.log2(np.array(errors[:-1]) / errors[1:]) == pytest.approx([1, 1], abs=0.25)


# -- Langevin --------------------------------------------------------------------------------------------------------


def test_langevin_kicks_have_the_law_of_the_ornstein_uhlenbeck_process(alone):
    case = case_of(
        physics={"collision_strength": 2.0, "temperature": 0.5},
        particles={"count": 40_000},
        method={"collision": "langevin"},
    )
    simulation = Simulation.start(case, alone)
    before = simulation.state.particles
    from hpc_kjko.collisions import StepStart

    noises = []
    for index in (0, 1):
        after, report = simulation.collisions[0].step(before, 0.3, StepStart(index, 0.0, before))
        noise = (after.v - math.exp(-0.6) * before.v) / math.sqrt(0.5 * (1 - math.exp(-1.2)))
        noises.append(noise[:, 0].numpy())
        assert abs(noises[-1].mean()) < 4 / math.sqrt(40_000)
        assert noises[-1].var() == pytest.approx(1.0, abs=4 * math.sqrt(2 / 40_000))
        assert torch.isnan(after.log_f).all() and torch.equal(after.x, before.x)
    against = np.corrcoef([*noises, before.v[:, 0].numpy(), before.x[:, 0].numpy()])
    assert np.abs(against - np.eye(4))[:2].max() < 4 / math.sqrt(40_000)  # of each other, and of what drew the start


def test_langevin_follows_the_exact_moments_and_claims_no_entropy(alone):
    case = case_of(
        particles={"count": 20_000},
        time={"step": 0.1, "end": 2.0, "integrator": "verlet"},
        method={"collision": "langevin", "order": 2},
    )
    _, rows = advanced(case, alone)
    assert rows["mean_error"].max() < 0.03 and rows["covariance_error"].max() < 0.05
    assert not {"entropy", "free_energy", "kl", "dissipation", "drift_error"} & rows.keys()
    assert all(np.isfinite(values).all() for values in rows.values())
    assert not LangevinCollision.tracks_log_f


# -- velocity matching -----------------------------------------------------------------------------------------------


def test_velocity_matching_finds_the_control_field_of_all_times(alone):
    """E1 with a small network of time and state: moments and KL, after the fixed-point iteration."""
    method = {"collision": "velocity_matching", "hidden": [16, 16]}
    training = {"outer_iterations": 10}  # with 5 it has not converged, and what follows fails
    _, rows = advanced(case_of(particles={"count": 256}, method=method, velocity_matching=training), alone)
    _, jko = advanced(case_of(method={"iterations": 100}), alone)
    assert rows["mean_error"].max() < 0.15 and rows["covariance_error"].max() < 0.15  # the step's error is half of it
    assert np.abs(rows["kl"] - jko["kl"]).max() < 0.08
    assert np.sqrt(rows["drift_error"][1:].mean()) < 0.25 < np.sqrt(rows["dissipation"][1:].mean())


def test_velocity_matching_cannot_go_on_past_the_time_it_was_trained_for(alone):
    table = {"problem": {"kind": "gaussian"}, "particles": {"count": 64}, "time": {"step": 0.1, "end": 0.2}}
    method = {"collision": "velocity_matching", "hidden": [4]}
    training = {"outer_iterations": 1, "iterations": 2}
    short = Simulation.start(from_table({**table, "method": method, "velocity_matching": training}), alone)
    short.prepare()
    arrays = short.collisions[0].state()
    longer = {**table, "time": {"step": 0.1, "end": 0.4}, "method": method, "velocity_matching": training}
    with pytest.raises(UserError, match="time.end = 0.4: velocity matching has trained its field up to t = 0.2"):
        Simulation.start(from_table(longer), alone).collisions[0].load(arrays)


def test_velocity_matching_stops_while_it_trains_and_goes_on_later(alone):
    table = {"problem": {"kind": "gaussian"}, "particles": {"count": 64}, "time": {"step": 0.1, "end": 0.2}}
    training = {"outer_iterations": 3, "iterations": 2}
    case = from_table(
        {**table, "method": {"collision": "velocity_matching", "hidden": [4]}, "velocity_matching": training}
    )
    stopped, straight = Simulation.start(case, alone), Simulation.start(case, alone)
    answers = iter([False, False, False, True])  # in the middle of the second outer iteration
    assert not stopped.prepare(lambda: next(answers))
    assert stopped.step_index == 0 and stopped.state.time == 0.0
    resumed = Simulation.start(case, alone)
    resumed.collisions[0].load(stopped.collisions[0].state())
    assert resumed.prepare() and straight.prepare()
    kept = resumed.collisions[0].state()
    assert resumed.prepare()  # has nothing left to do
    assert all(np.array_equal(kept[name], array) for name, array in resumed.collisions[0].state().items())


# -- what cannot be done ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        (
            {"problem": {"kind": "two_stream"}, "method": {"collision": "velocity_matching"}},
            "does not work with physics.field",
        ),
        ({"method": {"form": "nonsplit"}, "time": {"integrator": "verlet"}}, 'set time.integrator = "euler"'),
        ({"method": {"form": "nonsplit", "order": 2}}, "method.order = 1"),
        ({"method": {"collision": "score_matching", "order": 2}}, "explicit, of order 1"),
        ({"velocity_matching": {}}, "velocity_matching] needs method.collision"),
        ({"physics": {"field": "ampere"}}, "needs a periodic box"),
        ({"particles": {"start": "grid"}}, 'particles.start = "grid" needs a periodic box'),
        ({"particles": {"weights": "density"}}, 'particles.weights = "density" needs a periodic box'),
        ({"problem": {"kind": "periodic"}, "particles": {"start": "grid"}}, "add [grid]"),
        ({"problem": {"kind": "periodic"}, "physics": {"field": "poisson"}}, "does not use problem.potential"),
        ({"problem": {"kind": "two_stream"}, "physics": {"initial_field": "zero"}}, 'needs physics.field = "ampere"'),
        (
            {"problem": {"kind": "two_stream"}, "particles": {"start": "grid", "weights": "density"}},
            "places particles uniformly",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(sections, says):
    with pytest.raises(UserError) as caught:
        from_table({"problem": {"kind": "gaussian"}, **sections})
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_the_bench_of_methods_runs_and_ranks_them(tmp_path):
    """Example 4 in its first four steps: exact solves at second order beat the paper's scheme several times over."""
    script = Path(__file__).parents[2] / "scripts" / "bench_methods.py"
    done = run_command(quick(script, "e4", "--quick", "--out", tmp_path), tmp_path)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "bench_methods.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert float(rows["varpro, order 2"]["kl"]) < 0.5 * float(rows["paper's scheme"]["kl"])
    assert rows["Langevin"]["kl"] == "nan"
    assert (tmp_path / "bench_methods.png").stat().st_size > 0
