"""Warnings before a run whose parameters are outside the range where the method is accurate. They are not errors.

Units: ω_p = 1 and n̄ = 1, so λ_D = √T for particles of temperature T.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from hpc_kjko.case.config import Case
from hpc_kjko.case.species_section import SpeciesSettings
from hpc_kjko.fields.base import ExternalField
from hpc_kjko.inner.potential import number_of_functions
from hpc_kjko.operators import OPERATORS
from hpc_kjko.particles.state import BLOCK, uniform_points
from hpc_kjko.problems import PeriodicWave
from hpc_kjko.problems.perturbed import PerturbedWave
from hpc_kjko.problems.quasirandom import Sobol
from hpc_kjko.running.assembly import operators_of, species_of

#: Limits of the warnings: κh for the midpoint rule, κh for explicit methods, hω for the push, fraction of a wavelength
#: travelled in a step, cell size in Debye lengths, cells per wavelength, particles per fitted coefficient, particles in
#: a collision block.
MIDPOINT, EXPLICIT, PUSH, FLIGHT, COARSE, WAVELENGTH, FEW, SMALL_BLOCK = 1.0, 0.5, 0.5, 1.0, 3.0, 8, 8, 32
#: The largest power of two that is allowed for particles.count.
LARGEST_POWER_OF_TWO = 2**39
#: The noise of a quiet start with N particles at time t is MIXING · t/N times that of a random start, and at most equal
#: to it (docs/explanation/particles_and_fields.md). The second number is the time for which a wave should exceed it.
MIXING, WHILE = 40.0, 10.0
#: Number of evenly spaced particles from which the wave of a user's own start is found.
PROBES = 1 << 14


def warnings_of(case: Case, ranks: int) -> list[str]:
    """Sentences about settings for which the method is not accurate. Each names a key to change."""
    return [
        *case.idle,
        *_of_collisions(case),
        *(_of_external_force(case) if case.physics.field == "external" else _of_plasma(case)),
        *_of_particles(case, ranks),
    ]


def noise_floor(case: Case) -> dict[str, float]:
    """The noise of the particles in columns of the time series, for independent particles.

    In thermal equilibrium the plasma shields the field of independent particles. Their two waves cos k·x and sin k·x
    then have the energy (V/N) S(k)²/(k² + 1/T) together, where S is the transform of the shape function (C. K. Birdsall
    and A. B. Langdon, Plasma Physics via Computer Simulation, section 12-3).

    Returns:
        The noise level by column. It is empty without a field on a mesh, and with several species.
    """
    if case.physics.field == "external" or case.grid is None or case.problem.periods is None or case.species:
        return {}
    volume, periods, cells = case.problem.mass, case.problem.periods, case.grid.cells
    power = 2 * (case.grid.shape_order + 1)
    scale = volume / case.particles.count

    def energy(wave_vectors: list[np.ndarray]) -> np.ndarray:
        """The energy of the wave with the wave vector k = (k_1, …). The components are broadcast."""
        found = np.asarray(scale / (1 / case.physics.temperature + sum(k**2 for k in wave_vectors)))
        for k, length, number in zip(wave_vectors, periods, cells, strict=True):
            found = found * np.sinc(k * length / number / (2 * math.pi)) ** power
        return found

    axes = [2 * math.pi * np.fft.fftfreq(n, length / n) for n, length in zip(cells, periods, strict=True)]
    total = 0.0
    for first in axes[0] if len(axes) > 1 else axes[:1]:  # one slab at a time
        total += float(energy([np.array(first), *np.meshgrid(*axes[1:], indexing="ij")]).sum())
    zero = float(energy([np.zeros(())] * len(axes)))
    floor = {"field_energy": 0.5 * (total - zero)}  # each wave is counted as k and as −k
    if case.physics.field == "poisson" and isinstance(case.problem, PeriodicWave):
        floor["wave_energy"] = float(energy([np.array(k) for k in case.problem.wave_vector]))
    return floor


def noise_growth(case: Case) -> dict[str, float]:
    """Growth of the noise of a quiet start per unit of time, as a fraction of the floor, by column.

    A column without a number starts at the floor. In two and three dimensions these are all but the wave: noise enters
    at short waves first, and there the whole field reaches the floor within a few 1/ω_p.
    """
    if case.particles.start != "quiet":
        return {}
    columns = ("wave_energy", "field_energy") if case.problem.space_dims == 1 else ("wave_energy",)
    return dict.fromkeys(columns, MIXING / case.particles.count)


def _of_collisions(case: Case) -> list[str]:
    method, strength = case.method, case.physics.collision_strength
    if strength == 0 or method.collision in ("none", "langevin", "binary"):
        return []
    if case.species and OPERATORS[case.physics.collision_operator].sums_pairs:
        return _of_pairs(case)
    if case.species:
        return [sentence for name, species in case.species.items() for sentence in _of_a_species(case, name, species)]
    kh = strength * case.time.step
    found = []
    if OPERATORS[case.physics.collision_operator].sums_pairs:
        found += _of_small_blocks(case)
        exponent = case.physics.landau.exponent
        pairs = kh * _thermal_speed(case) ** exponent
        if method.collision == "jko" and method.order == 2 and pairs > MIDPOINT:
            found.append(
                f"C h σ^γ = {pairs:.3g}, with the smallest thermal speed σ of the start and γ = {exponent:g}: beyond 1 "
                "the midpoint rule overshoots and has no decay guarantee: use method.order = 1 or a smaller time.step"
            )
        elif method.collision == "pair_sum" and pairs > EXPLICIT:
            found.append(
                f"C h σ^γ = {pairs:.3g}, with the smallest thermal speed σ of the start and γ = {exponent:g}: the "
                "explicit sum over pairs needs values well below 1: use a smaller time.step, or method.collision = "
                '"jko"'
            )
    elif method.collision in ("score_matching", "velocity_matching") and kh > EXPLICIT:
        found.append(
            f'κh = {kh:.3g}: method.collision = "{method.collision}" is explicit and needs κh well below 1: use a '
            'smaller time.step, or method.collision = "jko"'
        )
    elif method.order == 2 and kh > MIDPOINT:
        found.append(
            f"κh = {kh:.3g}: beyond κh = 1 the midpoint rule overshoots and has no decay guarantee: use "
            "method.order = 1 or a smaller time.step"
        )
    elif method.order == 2:
        coldest, target = _thermal_speed(case), case.physics.temperature
        if OPERATORS[case.physics.collision_operator].frame == "local" and isinstance(case.problem, PerturbedWave):
            target = float(case.problem.variances(target).mean())
        stiff = kh * target / coldest**2
        if stiff > MIDPOINT:
            found.append(
                f"the smallest thermal speed of the start, {coldest:.3g}, is too small for these collisions, which in "
                f"one step widen it by {stiff:.3g} times its own width: use method.order = 1 or a smaller time.step"
            )
    if case.method.solver == "regression":
        dims = case.problem.space_dims, case.problem.velocity_dims
        features = number_of_functions(method.hidden[-1], *dims, case.problem.periods is not None)
        fitted = "the fitted log-density"
    else:
        features = (method.hidden[-1] if method.hidden else 0) + case.problem.space_dims
        features += case.problem.velocity_dims + 1
        fitted = "each component of the control field"
    if case.particles.count < FEW * features:
        found.append(
            f"particles.count = {case.particles.count} for {features} coefficients in {fitted}: the fit will follow "
            f"the noise of the particles; use at least {FEW * features}, or a smaller method.hidden"
        )
    return found


def _of_pairs(case: Case) -> list[str]:
    """Warnings about Coulomb collisions between several species."""
    found, method, plasma = [], case.method, species_of(case)
    for one, operator in zip(plasma, operators_of(case, plasma), strict=True):
        rate = operator.collision_strength * case.time.step
        if method.collision == "pair_sum" and rate > EXPLICIT:
            found.append(
                f"species.{one.name}: its velocities relax by the fraction {rate:.3g} in a step, and the explicit sum "
                'over pairs needs values well below 1: use a smaller time.step, or method.collision = "jko"'
            )
        elif method.collision == "jko" and method.order == 2 and rate > MIDPOINT:
            found.append(
                f"species.{one.name}: its velocities relax by {rate:.3g} times their size in a step, and beyond 1 the "
                "midpoint rule overshoots and has no decay guarantee: use method.order = 1 or a smaller time.step"
            )
        found += _of_few(case, one.name, one.count)
    return found + _of_small_blocks(case)


def _of_small_blocks(case: Case) -> list[str]:
    """A warning if each particle collides with so few others that the result is mostly noise."""
    block = case.physics.landau.block
    if block >= SMALL_BLOCK:
        return []
    return [
        f"physics.landau.block = {block}: collisions with so few particles are mostly noise; use {SMALL_BLOCK} or more"
    ]


def _of_few(case: Case, name: str, count: int) -> list[str]:
    """A warning if a species has too few particles for its fit."""
    method, dims = case.method, (case.problem.space_dims, case.problem.velocity_dims)
    if method.solver == "regression":
        features = number_of_functions(method.hidden[-1], *dims, True)
    else:
        features = (method.hidden[-1] if method.hidden else 0) + sum(dims) + 1
    if count >= FEW * features:
        return []
    return [
        f"species.{name}.count = {count}: its fit will follow the particles' noise; use at least {FEW * features}, or "
        "a smaller method.hidden"
    ]


def _of_a_species(case: Case, name: str, species: SpeciesSettings) -> list[str]:
    """Warnings about the collision step of one of several species."""
    method, kh, found = case.method, species.collision_strength * case.time.step, []
    thermal = species.temperature / species.mass
    if kh == 0:
        return []
    if method.collision in ("score_matching", "velocity_matching") and kh > EXPLICIT:
        found.append(
            f'species.{name}: κh = {kh:.3g}: method.collision = "{method.collision}" is explicit and needs κh well '
            'below 1: use a smaller time.step, or method.collision = "jko"'
        )
    elif method.order == 2 and kh > MIDPOINT:
        found.append(
            f"species.{name}: κh = {kh:.3g}: beyond κh = 1 the midpoint rule overshoots and has no decay guarantee: "
            "use method.order = 1 or a smaller time.step"
        )
    elif method.order == 2 and isinstance(species.start, PerturbedWave):
        is_local = OPERATORS[species.collision_operator].frame == "local"
        target = float(species.start.variances(thermal).mean()) if is_local else thermal
        stiff = kh * target / species.start.coldest(thermal) ** 2
        if stiff > MIDPOINT:
            found.append(
                f"species.{name}: its start is too cold for its collisions, which in one step widen it by {stiff:.3g} "
                "times its own width: use method.order = 1 or a smaller time.step"
            )
    return found + _of_few(case, name, species.count)


def _thermal_speed(case: Case) -> float:
    """The smallest thermal speed at the start: that of a beam, or the standard deviation of a component of v."""
    problem = case.problem
    if isinstance(problem, PerturbedWave):
        return problem.coldest(case.physics.temperature)
    points = uniform_points("quiet", 0, 0, BLOCK, problem.space_dims + problem.velocity_dims)
    deviation = float(problem.sample(points, case.physics.temperature)[1].std(axis=0).min())
    return deviation or math.inf  # if all velocities are equal, there is no width to compare with


def _of_plasma(case: Case) -> list[str]:
    assert case.grid is not None and case.problem.periods is not None  # ensured by hpc_kjko.case.config
    found, step, (_, windows) = [], case.time.step, case.problem.window
    frequency, coldest = 1.0, math.sqrt(case.physics.temperature)
    if case.species:
        charged = [one for one in case.species.values() if one.charge]
        frequency = math.sqrt(sum(one.charge**2 * one.density / one.mass for one in charged))
        lengths = [math.sqrt(one.temperature / one.density) / abs(one.charge) for one in charged]
        coldest = min(lengths, default=math.inf)
    if (angle := frequency * step) > PUSH:
        unstable = "; from 2 on the push is unstable" if angle >= 2 else ""
        found.append(
            f"time.step = {step:g} is long for plasma oscillations, whose period is {2 * math.pi / frequency:.3g}: "
            f"their phase is off by {(angle**2 / 24):.1%}{unstable}; use {0.2 / frequency:.2g} or less"
        )
    if isinstance(case.problem, PerturbedWave):
        coldest = min(coldest, case.problem.coldest(case.physics.temperature))
    coarse = max(length / number for length, number in zip(case.problem.periods, case.grid.cells, strict=True))
    if coarse > COARSE * coldest:
        found.append(
            f"a cell is {coarse / coldest:.3g} Debye lengths: the mesh does not resolve Debye shielding and "
            "heats cold particles; use more grid.cells"
        )
    if case.particles.count < math.prod(case.grid.cells):
        found.append(
            f"particles.count = {case.particles.count} is less than one particle for each of the "
            f"{math.prod(case.grid.cells)} cells: use more particles or fewer grid.cells"
        )
    if case.species:
        for name, species in case.species.items():
            if isinstance(species.start, PeriodicWave) and not species.start.is_homogeneous:
                fastest = max(high for _, high in species.start.window[1])
                found += [f"species.{name}: {text}" for text in _of_wavelength(case, species.start, fastest)]
    elif isinstance(case.problem, PeriodicWave):
        found += _of_wave(case, case.problem, max(high for _, high in windows))
    return found


def _of_wavelength(case: Case, problem: PeriodicWave, fastest: float) -> list[str]:
    """Warnings if the mesh or the time step does not resolve a wave, or the particles that cross it."""
    assert case.grid is not None
    found = []
    for axis, (mode, number) in enumerate(zip(problem.mode, case.grid.cells, strict=False)):
        if mode and number < WAVELENGTH * abs(mode):
            found.append(
                f"problem.mode = {list(problem.mode)}: the wave has {number / abs(mode):.3g} cells along x_{axis + 1}, "
                f"and the mesh weakens it; use {WAVELENGTH * abs(mode)} grid.cells or more"
            )
    flight = problem.wavenumber * fastest * case.time.step
    if flight > FLIGHT:
        found.append(
            f"k v h = {flight:.3g}: in a step the fastest particles cross {flight / (2 * math.pi):.2g} of a "
            "wavelength; use a smaller time.step"
        )
    return found


def _of_wave(case: Case, problem: PeriodicWave, fastest: float) -> list[str]:
    found = _of_wavelength(case, problem, fastest)
    floor = noise_floor(case).get("wave_energy")
    amplitude = _starting_amplitude(problem, case.physics.temperature)
    if floor and amplitude:
        energy = problem.mass * (amplitude / problem.wavenumber) ** 2 / 4
        noise = floor * (1 + 1 / (case.physics.temperature * problem.wavenumber**2))  # not yet shielded
        if (growth := noise_growth(case).get("wave_energy")) is not None:
            noise = floor * min(1.0, growth * WHILE)
        if energy < noise:
            found.append(
                f"the noise of the wave from {case.particles.count} particles has an energy of about {noise:.2g}, "
                f"and the wave starts with {energy:.2g}: use particles.control_variate = true, more particles, or a "
                "larger wave"
            )
    return found


def _starting_amplitude(problem: PeriodicWave, temperature: float) -> float:
    """The amplitude α of the wave α cos k·x in the density at the start; 0 if it is as small as rounding errors."""
    if isinstance(problem, PerturbedWave):
        return abs(problem.amplitude)
    if problem.is_homogeneous:
        return 0.0
    points = Sobol(problem.space_dims + problem.velocity_dims, seed=0).points(0, PROBES)
    x, _ = problem.sample(np.clip(points, 2.0**-64, 1 - 2.0**-53), temperature)
    found = 2 * abs(np.exp(-1j * (x @ problem.wave_vector)).mean())
    return float(found) if found > 32 / PROBES else 0.0


def _of_external_force(case: Case) -> list[str]:
    """A warning if the push does not resolve the fastest oscillation, √(largest curvature of the potential)."""
    low, high = np.array(case.problem.window[0]).T
    places = low + (high - low) * np.random.default_rng(0).random((512, len(low)))
    apart, steepest = 1e-4 * (high - low), 0.0
    try:
        field = ExternalField(case.problem)
        for axis in range(len(low)):
            moved = places.copy()
            moved[:, axis] += apart[axis]
            change = field.acceleration(torch.from_numpy(moved)) - field.acceleration(torch.from_numpy(places))
            slope = (change[:, axis].abs() / apart[axis]).numpy()
            steepest = max(steepest, float(slope[np.isfinite(slope)].max(initial=0.0)))
    except Exception:  # the user's code need not work at positions that no particle reaches
        return []
    turn = case.time.step * math.sqrt(steepest)
    if turn <= PUSH:
        return []
    unstable = "; from 2 on the push is unstable" if turn >= 2 else ""
    return [
        f"time.step = {case.time.step:g} is long for the potential: hω = {turn:.2g}, where ω² is its largest "
        f"curvature{unstable}; use {0.2 * case.time.step / turn:.2g} or less"
    ]


def _of_particles(case: Case, ranks: int) -> list[str]:
    found = []
    keys = {f"species.{name}.count": species.count for name, species in case.species.items()}
    for key, count in (keys or {"particles.count": case.particles.count}).items():
        blocks, of = -(-count // BLOCK), f" of {key.split('.')[1]}" if keys else ""
        if blocks < ranks:
            found.append(
                f"{ranks - blocks} of {ranks} ranks hold no particles{of}, which are dealt in row blocks of {BLOCK}: "
                f"use {blocks} for {count} particles"
            )
        if case.particles.start == "quiet" and count & (count - 1):
            nearest = min(2 ** round(math.log2(count)), LARGEST_POWER_OF_TWO)
            found.append(f"a quiet start is quietest with a power of two: {key} = {nearest} would be one")
    return found
