"""Coulomb collisions compared with exact rates and solutions and with the linear theory of waves, for validate.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments import COULOMB_STRENGTHS, Experiments, damped_wave, relative_l2
from rates import growth_rate
from records import record
from scipy.special import gammaincinv

from hpc_kjko import usercode
from hpc_kjko.case.config import from_table
from hpc_kjko.collisions import StepStart, collide
from hpc_kjko.collisions.landau import LandauCollision
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import Particles
from hpc_kjko.reference.dispersion import linear_field_history
from hpc_kjko.reference.landau import Bkw, bi_maxwellian_relaxation, isotropisation_rate, two_temperature_rate
from hpc_kjko.reference.landau_waves import damping, field_history
from hpc_kjko.running.simulation import Simulation

SEEDS = range(5)
#: Time step for a rate at the start. Electrons as slow as ions change within 0.001 / C.
INSTANT = 2e-4
#: Numbers of particles, then dimensions, strength C, amplitude, start and end of the solution of Bobylev, Krook and Wu
#: as in the literature (doi:10.1016/j.jcpx.2020.100066). At the start f(0) is close to 0.
BKW_COUNTS = (1600, 6400, 25600)
BKW = {2: (1 / 16, 0.5, 0.0, 10.0), 3: (1 / 24, 1.0, 5.5, 6.5)}
BKW_STEP = 0.1
#: log f is compared where f is above this fraction of its maximum.
CERTAIN = 1e-3


# ---- rates at the start


def coulomb_rates(runs: Experiments) -> bool:
    """Isotropisation with 16384 particles, and two temperatures with 5000 of each species: within 0.5 % of exact
    rates."""
    passed = True
    for warm in ([2.0, 0.5, 0.5], [1.0, 4.0, 4.0]):
        found = []
        for seed in SEEDS:
            problem = {"kind": "bi_maxwellian", "temperatures": warm, "amplitude": 0.0}
            (before,), (after,) = _collided(_started(_table(problem, seed=seed, count=16384)), 1, INSTANT)
            old, new = (one.v.var(0, correction=0).numpy() for one in (before, after))
            middle = 0.5 * (old + new)
            found.append((new - old)[0] / INSTANT / isotropisation_rate(middle[0], middle[1:].mean(), 1.0) - 1)
        passed &= _within(f"isotropisation of T = {warm}", found, 0.005)
    for mass in (1.0, 25.0, 1836.0):
        found = []
        for seed in SEEDS:
            species = {
                "electrons": {"charge": -1.0, "mass": 1.0, "count": 5000},
                "ions": {"charge": 1.0, "mass": mass, "count": 5000, "temperature": 0.5},
            }
            before, after = _collided(_started(_table({"kind": "plasma"}, seed=seed, species=species)), 1, INSTANT)
            old, new = (_temperatures(plasma, (1.0, mass)) for plasma in (before, after))
            wanted = two_temperature_rate(0.5 * (old + new), (1.0, mass), (1.0, 1.0), (1.0, 1.0), 1.0)
            found.append((new - old)[0] / INSTANT / wanted[0] - 1)
        passed &= _within(f"two temperatures, mass ratio {mass:g}", found, 0.005)
    return passed


def coulomb_relaxation(runs: Experiments) -> bool:
    """Isotropisation: blocks of 512 against all pairs with half the step. T∥ is within 1 % of its total decrease."""
    series, full = (runs.series(name) for name in ("coulomb", "coulomb_full"))
    time, parallel = series["time"], series["temperature_1"]
    wanted = np.interp(time, full["time"], full["temperature_1"])
    closed = bi_maxwellian_relaxation(parallel[0], 1.5 - 0.5 * parallel[0], 1.0, time)[0]
    error = np.abs(parallel - wanted).max() / (wanted[0] - wanted[-1])
    print(f"coulomb: T along the axis is off by {error:.2%} of its whole fall at most, beside all pairs")
    for t in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0):
        k = int(np.argmin(np.abs(time - t)))
        fall, of_full, of_closed = (one[0] - one[k] for one in (parallel, wanted, closed))
        print(
            f"  C t = {t:g}: fall of T beside all pairs {fall / of_full - 1:+.2%}, the closed form "
            f"{fall / of_closed - 1:+.2%}"
        )
    quantity = "T∥ against a sum over all pairs, largest error divided by the fall of T∥"
    return record("isotropisation to its end", quantity, "≤ 1 %", f"{error:.2%}", error <= 0.01)


def _temperatures(plasma: Sequence[Particles], masses: Sequence[float]) -> np.ndarray:
    return np.array([m * float(one.v.var(0, correction=0).mean()) for m, one in zip(masses, plasma, strict=True)])


def _within(what: str, errors: list[float], allowed: float) -> bool:
    """Print the relative error of each seed, and return whether their mean is within the allowed error."""
    mean, error = float(np.mean(errors)), float(np.std(errors, ddof=1) / math.sqrt(len(errors)))
    print(f"{what}: {mean:+.2%} ± {error:.2%} of the exact rate; each {', '.join(f'{one:+.2%}' for one in errors)}")
    row = (what, "relative error of the rate", f"within {100 * allowed:g} %", f"{mean:+.2%} ± {error:.2%}")
    return record(*row, abs(mean) <= allowed)


# ---- an exact solution


class BkwStart:
    """The solution of Bobylev, Krook and Wu at one time, uniform in a box."""

    def __init__(self, solution: Bkw, time: float, length: float):
        self.solution, self.time, self.length = solution, time, length

    def sample(self, points: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """|v|²/K is a mixture of chi-squared distributions with d and d + 2 degrees of freedom; directions are
        uniform."""
        dims = self.solution.dims
        width = self.solution.width(self.time)
        light = ((dims + 2) * width - dims) / (2 * width)  # P
        heavy = points[:, 1] > light
        share = np.where(heavy, (points[:, 1] - light) / (1 - light), points[:, 1] / max(light, 1e-300))
        speed = np.sqrt(2 * width * gammaincinv(np.where(heavy, dims / 2 + 1, dims / 2), np.clip(share, 0, 1)))
        angle = 2 * np.pi * points[:, 2]
        across = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        if dims == 3:
            along = 2 * points[:, 3:] - 1
            across = np.concatenate([along, np.sqrt(1 - along**2) * across], axis=1)
        return points[:, :1] * self.length, speed[:, None] * across

    def log_density(self, x: torch.Tensor, v: torch.Tensor, temperature: float) -> torch.Tensor:
        width, dims = self.solution.width(self.time), self.solution.dims
        constant, quadratic = ((dims + 2) * width - dims) / (2 * width), (1 - width) / (2 * width**2)
        square = (v**2).sum(1)
        return (
            torch.log(constant + quadratic * square) - square / (2 * width) - 0.5 * dims * math.log(2 * math.pi * width)
        )


LENGTH = 5.0
bkw_2d, bkw_3d = (BkwStart(Bkw(dims, *BKW[dims][:2]), BKW[dims][2], LENGTH) for dims in (2, 3))


def bkw(runs: Experiments) -> bool:
    """f on a grid within 1 % of the exact solution, log f at the particles within 0.03, the fourth moment within 1 %.

    These are the targets for the largest sample. The dependence on N is printed."""
    usercode.look_in(Path(__file__).parent)
    passed = True
    for dims, (strength, amplitude, begin, end) in BKW.items():
        solution, errors = Bkw(dims, strength, amplitude), []
        for count in BKW_COUNTS:
            problem = {"kind": "plasma", "initial_density": f"{__name__}:bkw_{dims}d"}
            table = _table(problem, dims=dims, count=count, strength=strength, landau={"exponent": 0.0})
            simulation = _started(table)
            (before,), (after,) = _collided(simulation, round((end - begin) / BKW_STEP), BKW_STEP)
            found = [
                _of_f(simulation, after, solution, end),
                _of_log_f(after, solution, end),
                *_of_moment(before, after, solution),
                _of_score(simulation, after, solution, end),
            ]
            errors.append(found[:2])
            print(
                f"bkw {dims}D, N = {count}, t = {begin:g} to {end:g}: f on a grid, relative L2 {found[0]:.4f}; log f "
                f"{found[1]:.4f} (root mean square where f > {CERTAIN:g} of its maximum); fourth moment "
                f"{found[2]:.5f}, {found[3]:.5f} exact; score {found[4]:.1e} (relative, squared)"
            )
        for name, values in zip(("f", "log f"), np.array(errors).T, strict=True):
            print(f"  slope of {name} in N: {np.polyfit(np.log(BKW_COUNTS), np.log(values), 1)[0]:.2f}")
        case = f"exact solution in {dims}D, N = {BKW_COUNTS[-1]}"
        passed &= record(case, "f on a grid, relative L²", "≤ 1 %", f"{found[0]:.2%}", found[0] <= 0.01)
        passed &= record(case, "log f, root mean square", "≤ 0.03", f"{found[1]:.3f}", found[1] <= 0.03)
        moment = found[2] / found[3] - 1
        passed &= record(case, "change of the fourth moment", "within 1 %", f"{moment:+.2%}", abs(moment) <= 0.01)
    return passed


def _of_f(simulation: Simulation, particles: Particles, solution: Bkw, time: float) -> float:
    """Relative L² error, on a grid of velocities, of the density that is fitted to the carried log f."""
    dims, axis = solution.dims, np.linspace(-4, 4, 41)
    grid = np.stack(np.meshgrid(*[axis] * dims, indexing="ij"), axis=-1).reshape(-1, dims)
    (collision,) = simulation.collisions
    assert isinstance(collision, LandauCollision)
    collision.density.fit_density(particles, BKW_STEP, StepStart(simulation.case.time.steps, time, particles))
    found = collision.density.log_densities(torch.zeros(len(grid), 1, dtype=torch.float64), torch.from_numpy(grid))[1]
    wanted = solution.density(grid, time)
    return float(np.sqrt(((np.exp(found.numpy()) - wanted) ** 2).sum() / (wanted**2).sum()))


def _of_score(simulation: Simulation, particles: Particles, solution: Bkw, time: float) -> float:
    """Relative squared error of the score of the fitted density of :func:`_of_f`, at the particles."""
    (collision,) = simulation.collisions
    assert isinstance(collision, LandauCollision)
    wanted = solution.score(particles.v.numpy(), time)
    return float(((collision.density.score(particles)[0].numpy() - wanted) ** 2).sum() / (wanted**2).sum())


def _of_log_f(particles: Particles, solution: Bkw, time: float) -> float:
    wanted = solution.log_density(particles.v.numpy(), time)
    largest = solution.log_density(np.linspace(0, 4, 4001)[:, None] * np.eye(solution.dims)[:1], time).max()
    certain = wanted > largest + math.log(CERTAIN)
    return float(np.sqrt(((particles.log_f.numpy() - wanted)[certain] ** 2).mean()))


def _of_moment(before: Particles, after: Particles, solution: Bkw) -> tuple[float, float]:
    """The fraction of its way to the Maxwellian value that the fourth moment has covered: of the particles, and
    exact."""
    dims = solution.dims
    strength, _, begin, end = BKW[dims]
    old, new = (float(((one.v**2).sum(1) ** 2).mean()) for one in (before, after))
    final = (dims + 2) / dims * float((before.v**2).sum(1).mean()) ** 2
    exact = [solution.fourth_moment(time) for time in (begin, end)]
    limit = dims * (dims + 2)
    return (new - old) / (final - old), (exact[1] - exact[0]) / (limit - exact[0])


# ---- what must stay


def coulomb_keeps(runs: Experiments) -> bool:
    """Momentum and energy are conserved to 1e-13 in 10⁴ steps; ∫f log f falls and stays above that of the Maxwellian.

    The latter is also tested in 10³ steps of a Maxwellian."""
    series, case = runs.series("coulomb_keeps"), runs.case("coulomb_keeps")
    energy = np.abs(series["kinetic_energy"] / series["kinetic_energy"][0] - 1).max()
    momentum = max(np.abs(series[f"momentum_{k}"] - series[f"momentum_{k}"][0]).max() for k in (1, 2, 3))
    mass = case.problem.mass
    temperature = 2 * series["kinetic_energy"] / (3 * mass)
    volume = math.prod(case.problem.periods)
    # per particle, for a Maxwellian
    lowest = -1.5 * (1 + np.log(2 * np.pi * temperature)) + math.log(mass / volume)
    below = float((lowest - series["entropy"] / mass).max())
    rises = int((series["certificate"][1:] < 0).sum())
    print(f"coulomb_keeps: {len(series['time']) - 1} steps; energy within {energy:.1e}, momentum {momentum / mass:.1e}")
    print(f"  ∫f log f a particle: {series['entropy'][0] / mass:.4f} to {series['entropy'][-1] / mass:.4f}, ", end="")
    print(f"below the Maxwellian's by {below:.5f} at most; rises of held-out particles for certain: {rises} steps")
    still = runs.series("coulomb_maxwellian")
    change = np.abs(still["entropy"] - still["entropy"][0]).max() / mass
    print(f"coulomb_maxwellian: {len(still['time']) - 1} steps; ∫f log f a particle changes by {change:.5f} at most")
    chance = rises <= 0.005 * len(series["time"])  # 0.00135 is expected by chance
    case = "10⁴ steps to C t = 500"
    passed = record(case, "kinetic energy, relative change", "≤ 1e-13", f"{energy:.1e}", energy <= 1e-13)
    passed &= record(case, "mean velocity, change", "≤ 1e-13", f"{momentum / mass:.1e}", momentum / mass <= 1e-13)
    quantity = "∫f log f per particle, largest fall below the Maxwellian's"
    passed &= record(case, quantity, "≤ 0.001", f"{below:.1e}", below <= 1e-3)
    quantity = "steps in which ∫f log f rises by over three standard errors"
    passed &= record(case, quantity, "13 are expected by chance", f"{rises}", chance)
    row = ("Maxwellian, 10³ steps", "∫f log f per particle, largest change", "≤ 0.001", f"{change:.1e}")
    return record(*row, change <= 1e-3) and passed


# ---- waves


def coulomb_waves(runs: Experiments) -> bool:
    """Landau damping with Coulomb collisions: within 2 % of the linearised operator, whose field is fitted in the same
    way."""
    passed = True
    for strength in COULOMB_STRENGTHS:
        for method in ("", "_binary"):
            names = [f"coulomb_wave_{strength}_{seed}{method}" for seed in range(3)]
            error = _damping_error(runs, f"C = {strength:g}{method}", names, 2)
            passed &= bool(method) or error <= 0.02
    return passed


def coulomb_plasma(runs: Experiments) -> bool:
    """Coulomb collisions in three velocity dimensions, with a field.

    Damping of a wave is within 2 % of theory in one and three space dimensions. Beams, and a bi-Maxwellian plasma with
    a wave, are compared with four times as many particles."""
    passed = _damping_error(runs, "1D3V", [f"coulomb_wave_3v_{seed}" for seed in range(3)], 3) <= 0.02
    passed &= _damping_error(runs, "3D3V", ["coulomb_wave_3d"], 3) <= 0.02
    for name in ("beams", "warm_wave"):
        one, more = (runs.series(f"coulomb_{name}_{count}") for count in (65536, 262144))
        energy = (one["kinetic_energy"] + one["field_energy"]) / (one["kinetic_energy"] + one["field_energy"])[0] - 1
        field = relative_l2(one["field_energy"], more["field_energy"])
        apart = [np.abs(one[key] - more[key]).max() for key in ("entropy", "temperature_1", "temperature_2")]
        length = runs.case(f"coulomb_{name}_65536").problem.periods[0]
        print(f"{name}: 65536 particles beside 262144: field energy {field:.2%}, {one['seconds'].sum():.0f} s")
        print(f"  entropy a particle {apart[0] / length:.5f}, temperatures {apart[1]:.5f}, {apart[2]:.5f}")
        print(f"  energy changes by {np.abs(energy).max():.1e}, momentum across by {np.ptp(one['momentum_2']):.1e}")
        tally = [(one["certificate"][1:] == verdict).sum() for verdict in (1, 0, -1)]
        print(
            f"  log f missed by {one['log_f_residual'].max():.3f}; certified, inconclusive, violated: {tally}", end="; "
        )
        print(f"{(one['substeps'][1:] > 1).sum()} steps split")
        quantity = "field energy against 262144 particles, relative L²"
        passed &= record(f"{name}, 65536 particles", quantity, "≤ 5 %", f"{field:.2%}", field <= 0.05)
    for count in (65536, 262144):
        beams = runs.series(f"coulomb_beams_{count}")
        rate = growth_rate(beams["time"], np.sqrt(beams["wave_energy"]))
        print(f"beams: {count} particles, growth for 10 < t < 18: {rate:.5f}")
    free = linear_field_history(0.2, 1e-6, 1.0, [(0.5, 2.4, 1.0), (0.5, -2.4, 1.0)], beams["time"])
    print(f"beams: the same fit to the linear field without collisions: {growth_rate(beams['time'], free):.5f}")
    warm = runs.series("coulomb_warm_wave_262144")
    closed = bi_maxwellian_relaxation(warm["temperature_1"][0], warm["temperature_2"][0], 0.1, warm["time"])[0]
    for t in (2.0, 4.0, 8.0, 12.0):
        k = int(np.argmin(np.abs(warm["time"] - t)))
        print(f"warm_wave: T along x at t = {t:g}: {warm['temperature_1'][k]:.4f}; the closed form {closed[k]:.4f}")
    return passed


def _damping_error(runs: Experiments, label: str, names: Sequence[str], dims: int) -> float:
    """The relative error of the mean damping rate of some runs, compared with the field of the linearised operator."""
    found, case = [], runs.case(names[0])
    for name in names:
        series = runs.series(name)
        found.append(damped_wave(series["time"], np.sqrt(series["wave_energy"]), latest=8.0))
    k, strength, exponent = (
        2 * np.pi / case.problem.periods[0],
        case.physics.collision_strength,
        case.physics.landau.exponent,
    )
    amplitude = np.abs(field_history(k, strength, series["time"], exponent=exponent, dims=dims))
    wanted = damped_wave(series["time"], amplitude, latest=8.0)
    rates = np.array([rate for rate, _ in found])
    scatter = f" ± {rates.std(ddof=1) / math.sqrt(len(rates)):.5f}" if len(rates) > 1 else ""
    root = damping(k, strength, exponent=exponent, dims=dims)
    print(
        f"{label}: gamma {rates.mean():.5f}{scatter}, {wanted[0]:.5f} expected ({rates.mean() / wanted[0] - 1:+.1%}); "
        f"omega {np.mean([w for _, w in found]):.4f}, {wanted[1]:.4f}; least damped mode {root.imag:.5f}; "
        f"{series['seconds'].sum():.0f} s a run"
    )
    error = float(rates.mean() / wanted[0] - 1)
    target = f"{wanted[0]:.5f}" if "binary" in label else f"{wanted[0]:.5f} within 2 %"
    row = (f"Landau damping, {label}", "damping rate", target, f"{rates.mean():.5f}{scatter} ({error:+.1%})")
    record(*row, "binary" in label or abs(error) <= 0.02)
    return abs(error)


# ---- collision steps alone


def _table(
    problem: dict[str, Any],
    *,
    seed: int = 0,
    dims: int = 3,
    count: int = 0,
    strength: float = 1.0,
    landau: dict[str, Any] | None = None,
    species: dict[str, Any] | None = None,
) -> dict[str, Any]:
    physics = {"field": "external", "collision_operator": "landau", "collision_strength": strength}
    own = {"species": species} if species else {}
    return {
        "problem": {"length": LENGTH, "velocity_dims": dims, **problem},
        "physics": physics | {"landau": landau or {}},
        "particles": {"seed": seed} | ({} if species else {"count": count}),
        "time": {"step": 0.1, "end": 0.1},
        **own,
    }


def _started(table: dict[str, Any]) -> Simulation:
    return Simulation.start(from_table(table), Communicator())


def _collided(simulation: Simulation, steps: int, duration: float) -> tuple[list[Particles], list[Particles]]:
    """The particles of each species before and after several collision steps without pushes."""
    before = plasma = [species.particles for species in simulation.state.species]
    for k in range(steps):
        starts = [StepStart(k, 0.0, particles) for particles in plasma]
        plasma = [particles for particles, _ in collide(simulation.collisions, plasma, duration, starts)]
    return before, plasma
