"""Linear theory of the wave of a case. It is computed when a run begins and is stored for readers of its files.

The velocity distribution along the wave decides which dispersion relation applies: that of a sum of Maxwellians, of one
or several species, or that of a kappa distribution. Collisions and a magnetic field are included if a relation with
them is known. If no relation is known, a sentence says why.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpc_kjko.case.config import Case
from hpc_kjko.files.wavetheory import Branch, WaveTheory
from hpc_kjko.operators import OPERATORS
from hpc_kjko.problems import PeriodicWave, Problem
from hpc_kjko.problems.beams import PerturbedBeams
from hpc_kjko.problems.perturbed import PerturbedWave
from hpc_kjko.problems.starts import BiMaxwellian, Kappa, PerturbedStart, Streams
from hpc_kjko.reference import roots
from hpc_kjko.reference.dispersion import (
    SpeciesTerm,
    bernstein_frequencies,
    landau_root,
    linear_field_history,
    species_dielectric_function,
    species_root,
)
from hpc_kjko.reference.landau_waves import damping
from hpc_kjko.running.assembly import SpeciesPart, species_of

#: If the theory cannot include collisions, they are neglected below this fraction of ω_p or of the growth rate.
_FEW = 0.05
#: Number of times in the history of a wave without a single rate.
_TIMES = 201
#: Last time of such a history. Later the wave is no longer small, and the computation would take many seconds.
_LATEST = 60.0
#: Time until a bath has merged all streams, in 1/κ. Their velocities then are smaller by e^-8.
_MERGED = 8.0
#: A frequency below this fraction of the growth rate counts as 0.
_ROUNDING = 1e-9
#: Number of points of a dispersion curve.
_WAVENUMBERS = 24
#: Number of wavenumbers in each of the two searches for the fastest growing wave.
_SCANNED = 25
#: A wave without a single rate counts as growing if its amplitude becomes larger by this factor.
GROWN = 2.0
#: Smallest growth rate, in ω_p, of a wave that is said to grow.
SLOWEST = 1e-4
#: Number of Bernstein harmonics, and the smallest number of gyrations in a run. In a shorter run a wave is damped as
#: without a magnetic field.
_HARMONICS, _GYRATIONS = 6, 2


class NoTheory(Exception):
    """No dispersion relation is known. The message says why."""


@dataclass(frozen=True)
class _Wave:
    """The parameters of a dispersion relation.

    Attributes:
        vector: k [dx], in ω_p/v_th.
        end: the end time of the run.
        terms: the Maxwellians of all species; empty for a kappa distribution.
        kappa: index and temperature of a kappa distribution.
        strength, operator: the collisions of the only species.
        strongest: the largest collision rate of any species.
        temperature: T/m of the bath, or of the species itself; NaN if it depends on the direction.
    """

    vector: np.ndarray
    end: float
    terms: tuple[SpeciesTerm, ...]
    kappa: tuple[float, float] | None
    strongest: float
    strength: float
    operator: str
    temperature: float
    case: Case

    @property
    def k(self) -> float:
        return float(np.linalg.norm(self.vector))

    @property
    def is_in_equilibrium(self) -> bool:
        """Whether the only species is a Maxwellian at rest with the temperature to which collisions relax it."""
        if len(self.terms) != 1:
            return False
        own = self.terms[0].thermal_speed ** 2
        return self.terms[0].drift == 0 and math.isclose(own, self.temperature, rel_tol=1e-9)


def theory_of(case: Case) -> WaveTheory | None:
    """The linear theory of the wave of a case; None if the case has no wave or no self-consistent field."""
    vector = _wave_vector(case)
    return None if vector is None else _theory_along(case, vector)


def _wave_vector(case: Case) -> np.ndarray | None:
    """k [dx] of the wave of a case; None if the case has no wave or no self-consistent field."""
    waves = [one.start for one in species_of(case) if isinstance(one.start, PeriodicWave)]
    if case.physics.field == "external" or not waves:
        return None
    return next((start for start in waves if not start.is_homogeneous), waves[0]).wave_vector


def _theory_along(case: Case, vector: np.ndarray) -> WaveTheory:
    """The theory of the wave with the vector k [dx] in the plasma of a case."""
    try:
        return _theory(_wave(case, vector))
    except NoTheory as why:
        return WaveTheory(vector, missing=str(why))
    except (ValueError, ArithmeticError) as why:  # raised by hpc_kjko.reference
        return WaveTheory(vector, missing=f"the dispersion relation has no solution that could be found: {why}")


def lower_modes(case: Case) -> Iterator[tuple[int, WaveTheory]]:
    """Yield the number and the theory of each longer wave of the box in the direction of the wave of the case."""
    if (vector := _wave_vector(case)) is None:
        return
    own = int(np.gcd.reduce(np.rint(vector * np.asarray(case.problem.torus) / (2 * math.pi)).astype(int)))
    for mode in range(1, own):
        yield mode, _theory_along(case, vector * (mode / own))


def fastest_growing(case: Case) -> tuple[float, float] | None:
    """The fastest growing wave along the direction of the wave of the case, in the initial plasma without collisions.

    Returns:
        k and γ of the wave; None if no wave grows.

    Raises:
        NoTheory: there are no streams that could make a wave grow, or their dispersion relation is not known.
    """
    if (vector := _wave_vector(case)) is None:
        raise NoTheory("the case has no wave in a self-consistent field")
    wave = _wave(case, vector)
    ks = _scanned(wave)
    found: tuple[float, float] | None = None
    for _ in range(2):  # first all wavenumbers, then those near the best one
        rates = np.array([_nan_without(functools.partial(species_root, float(k), wave.terms)).imag for k in ks])
        if np.isnan(rates).all() or not (best := np.nanmax(rates)) > SLOWEST:
            if np.isnan(rates).any():
                raise NoTheory("not all waves could be found")
            return None
        at = int(np.nanargmax(rates))
        found = float(ks[at]), float(best)
        ks = np.linspace(ks[max(0, at - 1)], ks[min(at + 1, len(ks) - 1)], _SCANNED)
    return found


def most_amplified(case: Case) -> tuple[float, float, float] | None:
    """The wave on beams in a bath that grows most, along the direction of the wave of the case.

    The theory of the case must have a history. The end of the run does not count.

    Returns:
        k, the largest amplitude as a multiple of the initial one, and its time. None if no wave grows by a factor of
        GROWN.

    Raises:
        NoTheory: as :func:`fastest_growing`, or not all waves could be found.
    """
    if (vector := _wave_vector(case)) is None:
        raise NoTheory("the case has no wave in a self-consistent field")
    wave = _wave(case, vector)
    found = []
    for k in _scanned(wave):
        # later the bath has merged the streams, and no wave grows
        history = _history(replace(wave, vector=wave.vector * (k / wave.k), end=_MERGED / wave.strength))
        if history is None:
            raise NoTheory("not all waves could be found")
        times, amplitude = history
        found.append((float(amplitude.max()), float(k), float(times[amplitude.argmax()])))
    largest, k, time = max(found)
    return (k, largest, time) if largest > GROWN else None


def _scanned(wave: _Wave) -> np.ndarray:
    """The wavenumbers among which a growing wave is searched [_SCANNED].

    Raises:
        NoTheory: no streams could make a wave grow, or their dispersion relation is not known.
    """
    if len({term.drift for term in wave.terms}) < 2:
        raise NoTheory("no streams move through each other")
    vector, field = wave.vector, np.array(wave.case.physics.magnetic_field)
    if field.any() and not np.allclose(np.cross(np.append(vector, [0.0] * (3 - len(vector))), field), 0):
        raise NoTheory("the magnetic field turns the streams")
    shortest = min(term.thermal_speed / term.plasma_frequency for term in wave.terms if term.plasma_frequency)
    return np.geomspace(0.02 * wave.k, max(1.5 / shortest, wave.k), _SCANNED)


def _wave(case: Case, vector: np.ndarray) -> _Wave:
    plasma = species_of(case)
    if case.physics.drive is not None:
        raise NoTheory("a driven field adds to the wave, so it has no rate of its own")
    direction = vector / np.linalg.norm(vector)
    terms: list[SpeciesTerm] = []
    kappa = None
    for one in plasma:
        if isinstance(one.start, Kappa):
            kappa = one.start.kappa_index, one.temperature
            if len(plasma) > 1 or _drift(one.start, direction):
                raise NoTheory("no dispersion relation is known here for a kappa distribution with other species")
            if not math.isclose(one.charge**2 * one.start.mean_density / one.mass, 1.0):
                raise NoTheory("for kappa distributions only those with a plasma frequency of 1 are known here")
        else:
            terms += _maxwellians(one, direction)
    physics, only = case.physics, next(iter(case.species.values())) if len(case.species) == 1 else None
    together = OPERATORS[physics.collision_operator].sums_pairs
    settings = only if only and not together else physics
    operator = settings.collision_operator
    strength = strongest = settings.collision_strength if case.method.collision != "none" else 0.0
    if len(case.species) > 1:
        strength = 0.0  # the dispersion relations of several species have no collisions
    own = plasma[0].temperature
    if OPERATORS[operator].frame == "local" and len(terms) == 1:
        own = terms[0].thermal_speed ** 2 if _is_isotropic(plasma[0]) else math.nan
    return _Wave(vector, case.time.end, tuple(terms), kappa, strongest, strength, operator, own, case)


def _maxwellians(one: SpeciesPart, direction: np.ndarray) -> list[SpeciesTerm]:
    """The Maxwellians whose sum is the distribution of the velocity along the wave.

    Raises:
        NoTheory: the distribution is not such a sum.
    """
    start, density = one.start, one.start.mean_density
    if not type(start).__module__.startswith(Problem.__module__.partition(".")[0]):
        raise NoTheory("the start is your own: its dispersion relation is not known here")
    if isinstance(start, PerturbedBeams):
        drifts = sorted({start.beam_speed, -start.beam_speed})
        parts = [(1 / len(drifts), drift, start.thermal_speed**2) for drift in drifts]
    elif isinstance(start, Streams):
        shift = _drift(start, direction)
        parts = [(part, shift + mean, width**2) for part, mean, width in start.streams(one.temperature)]
    elif isinstance(start, BiMaxwellian):
        variances = start.variances(one.temperature)[: len(direction)]
        parts = [(1.0, _drift(start, direction), float(direction**2 @ variances))]
    elif getattr(start, "initial_density", None) == "maxwellian":
        parts = [(1.0, 0.0, one.temperature)]
    else:
        raise NoTheory("the velocities start from a distribution whose dispersion relation is not known here")
    return [
        SpeciesTerm(one.charge, one.mass, part * density, one.mass * variance, drift) for part, drift, variance in parts
    ]


def _is_isotropic(one: SpeciesPart, axes: Sequence[int] | None = None) -> bool:
    """Whether a species has the same temperature in all directions, or along the given axes."""
    start, dims = one.start, one.start.velocity_dims
    variances = start.variances(one.temperature) if isinstance(start, PerturbedWave) else np.full(dims, one.temperature)
    some = variances if axes is None else variances[[axis for axis in axes if axis < dims]]
    return bool(np.allclose(some, some[0], rtol=1e-9))


def _drift(start: Problem, direction: np.ndarray) -> float:
    """Mean velocity along the wave, in v_th."""
    if not isinstance(start, PerturbedStart):
        return 0.0
    shift = np.zeros(max(len(direction), len(start.mean_velocity)))
    shift[: len(start.mean_velocity)] = start.mean_velocity
    return float(direction @ shift[: len(direction)])


def _theory(wave: _Wave) -> WaveTheory:
    field = np.array(wave.case.physics.magnetic_field)
    direction = np.zeros(3)
    direction[: len(wave.vector)] = wave.vector / wave.k
    if field.any() and not np.allclose(np.cross(direction, field), 0):
        return _across(wave, field, direction)
    if wave.kappa:
        return _with_kappa(wave)
    if len(wave.terms) == 1 and wave.is_in_equilibrium:
        return _in_equilibrium(wave)
    if wave.strength and wave.operator == "bath" and len(wave.case.species) < 2:
        return _relaxing(wave)
    return _collisionless(wave)


def _across(wave: _Wave, field: np.ndarray, direction: np.ndarray) -> WaveTheory:
    """Bernstein waves, across the magnetic field."""
    if abs(field @ direction) > 1e-6 * np.linalg.norm(field):
        raise NoTheory("the magnetic field is oblique to the wave: its dispersion relation is not known here")
    if any(term.drift for term in wave.terms) or wave.kappa or len(wave.case.species) < 2 < len(wave.terms):
        raise NoTheory("across a magnetic field only the waves of Maxwellians at rest are known here")
    across = [axis for axis in range(3) if not field[axis]] if np.count_nonzero(field) == 1 else None
    if not all(_is_isotropic(one, across) for one in species_of(wave.case)):
        raise NoTheory("the temperature across the magnetic field is not the same in all directions")
    _require_few_collisions(wave, 1.0)
    strength = float(np.linalg.norm(field))
    fastest = max(strength * abs(term.charge) / term.mass for term in wave.terms)
    if wave.end * fastest < 2 * math.pi * _GYRATIONS:
        raise NoTheory("the run ends before its particles have gyrated twice: it does not show these waves")
    ks = _wavenumbers(wave)
    found = np.array([bernstein_frequencies(k, strength, wave.terms, _HARMONICS) for k in ks])
    own = bernstein_frequencies(wave.k, strength, wave.terms, _HARMONICS)
    branches = tuple(Branch(f"Bernstein {n + 1}", ks, found[:, n], 0 * ks) for n in range(_HARMONICS))
    words = "Bernstein's dispersion relation: waves across the magnetic field are not damped"
    return WaveTheory(wave.vector, words, _without(wave), 0.0, float(own[0]), branches=branches)


def _with_kappa(wave: _Wave) -> WaveTheory:
    assert wave.kappa
    root = roots.kappa_root(wave.k, *wave.kappa)
    _require_few_collisions(wave, root.imag)
    ks = _wavenumbers(wave)
    found = [_nan_without(functools.partial(roots.kappa_root, float(k), *wave.kappa)) for k in ks]
    return _of_root(wave, root, "dispersion relation of the kappa distribution", ks, np.array(found))


def _in_equilibrium(wave: _Wave) -> WaveTheory:
    """Langmuir waves of a Maxwellian, with the collisions of the case."""
    (term,) = wave.terms
    ks, k, temperature = _wavenumbers(wave), wave.k, wave.temperature
    unit = term.plasma_frequency
    if term.charge == 0:
        raise NoTheory("the particles carry no charge")
    if not math.isclose(unit, 1.0):
        return _collisionless(wave)

    def root(k: float) -> complex:
        if wave.strength == 0:
            return landau_root(k, math.sqrt(temperature))
        if wave.operator == "bath":
            return roots.bath_root(k, wave.strength, temperature)
        dims = int(wave.case.problem.velocity_dims)
        if wave.operator == "dougherty":
            return roots.dougherty_root(k, wave.strength, temperature, dims)
        exponent = wave.case.physics.landau.exponent
        scaled = wave.strength * temperature ** (exponent / 2)
        return damping(k * math.sqrt(temperature), scaled, exponent, dims)

    words = {
        "bath": "dispersion relation of a Maxwellian with a bath (Lenard and Bernstein)",
        "dougherty": "dispersion relation of a Maxwellian with the Dougherty operator",
        "landau": "dispersion relation of a Maxwellian with Landau collisions",
    }[wave.operator]
    if wave.strength == 0:
        words = "Landau's dispersion relation of a Maxwellian"
    try:
        own = root(k)
    except ValueError:
        if not 0 < wave.strength < 1e-3:
            raise
        return _collisionless(wave)
    found = [_nan_without(functools.partial(landau_root, float(one), math.sqrt(temperature))) for one in ks]
    return _of_root(wave, own, words, ks, np.array(found))


def _relaxing(wave: _Wave) -> WaveTheory:
    """A wave on beams that a bath relaxes while the wave grows. It has a history instead of a rate."""
    if (history := _history(wave)) is None:
        return _collisionless(wave)
    time, field = history
    words = "the bath changes the starting distribution, so γ changes with time"
    found = WaveTheory(wave.vector, words, time=time, energy=field**2)
    try:
        return replace(found, branches=_branches(wave, _root(wave), "theory without collisions"))
    except ValueError:
        return found


def _history(wave: _Wave) -> tuple[np.ndarray, np.ndarray] | None:
    """Times [n] and amplitudes [n] of a wave on beams in a bath, relative to the start.

    None if the computation would be too long, or if the particles are not usual electrons.
    """
    functions = max(100, int((60 * wave.k * math.sqrt(wave.temperature) / wave.strength) ** (2 / 3)))
    is_usual = all(abs(term.charge) == 1 and term.mass == 1 for term in wave.terms)
    if functions > 800 or not is_usual or not math.isclose(sum(term.density for term in wave.terms), 1.0):
        return None
    beams = [(term.density, term.drift, term.thermal_speed) for term in wave.terms]
    time = np.linspace(0, min(wave.end, _LATEST), _TIMES)
    return time, linear_field_history(wave.k, wave.strength, wave.temperature, beams, time.tolist(), functions)


def _collisionless(wave: _Wave) -> WaveTheory:
    root = _root(wave)
    _require_few_collisions(wave, root.imag)
    kinds = "several species" if len(wave.case.species) > 1 else "a sum of Maxwellians"
    words = f"dispersion relation of {kinds if len(wave.terms) > 1 else 'a Maxwellian'}"
    branches = _branches(wave, root, "theory")
    return WaveTheory(wave.vector, words, _without(wave), root.imag, root.real, branches=branches)


def _root(wave: _Wave) -> complex:
    """The fastest growing or least damped mode without collisions."""
    root = species_root(wave.k, wave.terms)
    return 1j * root.imag if abs(root.real) < _ROUNDING * abs(root) else root  # for example of two equal streams


def _branches(wave: _Wave, root: complex, label: str) -> tuple[Branch, ...]:
    def dielectric(frequency: complex, k: float) -> complex:
        return complex(species_dielectric_function(frequency, k, wave.terms))

    ks = _wavenumbers(wave)
    found = roots.branch_of(dielectric, ks, wave.k, root)
    return (_branch(label, ks, found),)


def _of_root(wave: _Wave, own: complex, words: str, ks: np.ndarray, found: np.ndarray) -> WaveTheory:
    label = "theory without collisions" if wave.strongest else "theory"
    branches = (_branch(label, ks, found),)
    missing = "" if wave.strength and not wave.kappa else _without(wave)
    return WaveTheory(wave.vector, words, missing, own.imag, own.real, branches=branches)


def _branch(label: str, ks: np.ndarray, found: np.ndarray) -> Branch:
    """The modes that were found (without NaN)."""
    there = np.isfinite(found)
    return Branch(label, ks[there], found.real[there], found.imag[there])


def _require_few_collisions(wave: _Wave, rate: float) -> None:
    if wave.strongest > _FEW * abs(rate):
        raise NoTheory(
            f"collisions are too strong to be left out (κ = {wave.strongest:g}), and no dispersion relation with them "
            "is known here"
        )


def _without(wave: _Wave) -> str:
    return "theory leaves the collisions out" if wave.strongest else ""


def _wavenumbers(wave: _Wave) -> np.ndarray:
    """Wavenumbers from half the smallest one of the box up to about one inverse Debye length: [n]."""
    lengths = np.asarray(wave.case.problem.torus)
    smallest = 2 * math.pi / float(lengths[np.argmax(np.abs(wave.vector))])
    debye = max((term.thermal_speed / (term.plasma_frequency or 1.0) for term in wave.terms), default=1.0)
    return np.linspace(0.5 * smallest, max(1.2 / debye, 1.5 * wave.k), _WAVENUMBERS)


def _nan_without(root: functools.partial[complex]) -> complex:
    try:
        return root()
    except ValueError:
        return complex(np.nan, np.nan)
