"""Vlasov-Poisson-Fokker-Planck on a grid, one position and one velocity.

    ∂t f + v ∂x f + a ∂v f = κ ∂v( v f + T ∂v f ),   x periodic with length L,   |v| < velocity_max

a is either the self-consistent field E = -φ', with -φ'' = n - 1 and n = ∫ f dv, or a given static a(x). With the
Dougherty operator for like-particle collisions, the right-hand side is κ ∂v( (v - U) f + Θ ∂v f ), with the
local mean velocity U(x) and temperature Θ(x) of f itself. Units: ω_p = 1, mean density 1. T is a velocity
squared, the square of the thermal speed of the bath.

:func:`solve_species` has several species of charge q, mass m and mean density, each with its own grid of v:

    ∂t f + v ∂x f + (q/m) E ∂v f = κ ∂v( v f + (T/m) ∂v f ),   dE/dx = Σ q n minus its mean

Units are those of a species with q² n = m = 1. T is m times a velocity squared. The box may have reflecting walls.

One step of length h is the Strang composition (second order in h; Strang 1968, doi:10.1137/0705041)

    drift h/2 | kick h/2 | collide h | kick h/2 | drift h/2

of three exact sub-flows. Drift and kick are translations, done by Fourier interpolation (after Cheng & Knorr 1976,
doi:10.1016/0021-9991(76)90053-X). Collide is the matrix exponential of the Chang-Cooper discretisation (1970,
doi:10.1016/0021-9991(70)90001-X). It is second order in the velocity spacing, and conserves the mass, f ≥ 0 and the
Maxwellian. Kick and collide do not change n, so one field is enough for the inner part of the step. The Dougherty
operator also conserves U and Θ. So its flow is that of an Ornstein-Uhlenbeck process with constant coefficients. It
is exact in Fourier space: f̂(k) → f̂(k e^{-κ h}) times the transform of a Gaussian.

Without collisions f forms ever finer filaments (in free flight f ~ exp(-ikvt)). Filaments that reach the grid spacing
would return as noise by aliasing. So each translation also removes the shortest waves. This conserves mass, momentum
and energy but lowers ∫ f log f, which the collisionless equation conserves. Trust the entropy only as far as more
cells give the same result.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.fft import irfft, rfft
from scipy.linalg import expm
from scipy.special import xlogy

# |f| at the velocity boundary, relative to max f, above which the truncation of velocity space is an error.
BOUNDARY_TOLERANCE = 1e-5


class TooNarrow(ValueError):
    """f is not negligible at the ends of the velocity grid."""


@dataclass(frozen=True)
class GridSolution:
    """A solution of :func:`solve`; time series have shape (steps + 1,), from t = 0 to ``end``.

    Integrals run over the whole box, so for a mean density of 1 the mass is L.
    """

    x: np.ndarray  #: (cells[0],) cell centres
    v: np.ndarray  #: (cells[1],) cell centres
    times: np.ndarray
    mass: np.ndarray  #: ∫ f
    momentum: np.ndarray  #: ∫ v f
    kinetic_energy: np.ndarray  #: ∫ v²/2 f
    field_energy: np.ndarray  #: 1/2 ∫ E² dx of the self-consistent field; 0 in a given field
    potential_energy: np.ndarray  #: ∫ φ f in a given field, nan if φ was not given; else 0
    entropy: np.ndarray  #: ∫ f log f, where undershoots f < 0 count as f = 0
    free_energy: np.ndarray  #: kinetic + field + potential energy + T entropy
    relative_entropy: np.ndarray  #: ∫ f log(f/f_inf), f_inf ~ exp(-(v²/2 + φ)/T) of the same mass
    final: np.ndarray  #: (cells[0], cells[1]) f at ``end``
    snapshots: np.ndarray  #: (len(snapshot_times), cells[0], cells[1]) f at the snapshot times


@dataclass(frozen=True)
class GridSpecies:
    """One species of :func:`solve_species`, with its grid of velocities and its collisions."""

    initial_density: Callable[[np.ndarray, np.ndarray], np.ndarray]  #: f(x, v, t = 0) as for :func:`solve`
    charge: float = 1.0  #: q; a species without charge feels no field
    mass: float = 1.0  #: m > 0
    density: float = 1.0  #: mean density, which f must have on the grid
    velocity_range: tuple[float, float] = (-8.0, 8.0)  #: where f must stay negligible at both ends
    velocity_cells: int = 512
    collision_strength: float = 0.0  #: κ ≥ 0, in ω_p. 0 skips the collision step.
    temperature: float = 1.0  #: T > 0 of the bath
    collision_operator: Literal["bath", "dougherty"] = "bath"  # not used by Dougherty's operator, which has no bath


@dataclass(frozen=True)
class SpeciesSolution:
    """A solution of :func:`solve_species`.

    Series of the species have shape (species, steps + 1), those of the whole plasma (steps + 1,). Integrals run
    over the box.
    """

    x: np.ndarray  #: (cells_x,) cell centres
    v: tuple[np.ndarray, ...]  #: (velocity_cells,) cell centres of each species
    times: np.ndarray
    number: np.ndarray  #: ∫ f
    momentum: np.ndarray  #: m ∫ v f
    kinetic_energy: np.ndarray  #: m/2 ∫ v² f
    entropy: np.ndarray  #: ∫ f log f, where undershoots f < 0 count as f = 0
    field_energy: np.ndarray  #: 1/2 ∫ E² dx
    total_energy: np.ndarray  #: field energy + kinetic energy of all species
    final: tuple[np.ndarray, ...]  #: (cells_x, velocity_cells) f of each species at ``end``
    snapshots: tuple[np.ndarray, ...]  #: (len(snapshot_times), cells_x, velocity_cells) f of each species


@dataclass(frozen=True)
class _GivenField:
    """A static field in place of the Poisson equation: its a(x) and φ(x) at the cell centres."""

    acceleration: np.ndarray
    potential: np.ndarray


def solve(
    initial_density: Callable[[np.ndarray, np.ndarray], np.ndarray],
    length: float,
    collision_strength: float,
    temperature: float,
    end: float,
    step: float,
    cells: tuple[int, int] = (128, 512),
    velocity_max: float = 8.0,
    *,
    collision_operator: Literal["bath", "dougherty"] = "bath",
    acceleration: Callable[[np.ndarray], np.ndarray] | None = None,
    potential: Callable[[np.ndarray], np.ndarray] | None = None,
    left: float = 0.0,
    snapshot_times: Sequence[float] = (),
) -> GridSolution:
    """Solve the 1D1V Vlasov-Poisson-Fokker-Planck equation, or its linear form in a given field.

    Args:
        initial_density: f(x, v, t = 0) for arrays x of shape (cells[0], 1), v of shape (1, cells[1]).
            The self-consistent problem needs a mean density of 1, the linear one takes any normalisation.
        length: period L of x. To treat x in R, choose it so wide that f is negligible at both ends.
        collision_strength: κ ≥ 0, in ω_p. 0 skips the collision step.
        temperature: T > 0 of the bath, as a velocity squared.
        end: final time, in 1/ω_p, a multiple of ``step``.
        step: time step h, in 1/ω_p.
        cells: number of cells in x and v.
        velocity_max: v runs over (-velocity_max, velocity_max), where f must stay negligible at the ends.
        collision_operator: the bath's, or Dougherty's, for which T is only that of ``free_energy`` and
            ``relative_entropy``.
        acceleration: a(x) of a given static field, in place of the Poisson equation.
        potential: φ(x) with a = -φ', for the energies and the relative entropy in a given field.
        left: x runs over (left, left + length).
        snapshot_times: multiples of ``step`` in [0, end] at which f is kept.

    Raises:
        TooNarrow: f is not negligible at v = ±velocity_max, at any time.
        ValueError: inconsistent arguments.
    """
    if length <= 0 or temperature <= 0 or velocity_max <= 0 or step <= 0 or end < 0:
        raise ValueError("length, temperature, velocity_max and step must be positive and end not negative")
    if min(cells) < 4:
        raise ValueError(f"cells must be at least 4 in x and in v, got {cells}")
    if collision_strength < 0:
        raise ValueError(f"collision_strength must not be negative, got {collision_strength}")
    if potential is not None and acceleration is None:
        raise ValueError("a potential needs its acceleration = -d(potential)/dx: give both or neither")
    x = left + length / cells[0] * (np.arange(cells[0]) + 0.5)
    given = None
    phi = np.zeros(cells[0])
    if acceleration is not None:
        phi = np.broadcast_to(np.nan if potential is None else potential(x), cells[0])
        given = _GivenField(np.broadcast_to(acceleration(x), cells[0]), phi)
    only = GridSpecies(
        initial_density,
        velocity_range=(-velocity_max, velocity_max),
        velocity_cells=cells[1],
        collision_strength=collision_strength,
        temperature=temperature,
        collision_operator=collision_operator,
    )
    run, potential_energy = _evolve(
        [only], x, length, end, step, snapshot_times, given=given, range_name="velocity_max"
    )
    (mass,), (momentum,), (kinetic,), (entropy,) = run.number, run.momentum, run.kinetic_energy, run.entropy
    partition = np.sqrt(2 * np.pi * temperature) * np.exp(-phi / temperature).sum() * (length / cells[0])
    return GridSolution(
        x=run.x,
        v=run.v[0],
        times=run.times,
        mass=mass,
        momentum=momentum,
        kinetic_energy=kinetic,
        field_energy=run.field_energy,
        potential_energy=potential_energy,
        entropy=entropy,
        free_energy=kinetic + run.field_energy + potential_energy + temperature * entropy,
        relative_entropy=entropy + (kinetic + potential_energy) / temperature + mass * np.log(partition / mass),
        final=run.final[0],
        snapshots=run.snapshots[0],
    )


def solve_species(
    species: Sequence[GridSpecies],
    length: float,
    end: float,
    step: float,
    cells_x: int = 128,
    *,
    left: float = 0.0,
    walls: bool = False,
    snapshot_times: Sequence[float] = (),
) -> SpeciesSolution:
    """Solve the 1D1V Vlasov-Poisson-Fokker-Planck equations of several species in their common field.

    A fixed uniform background makes the charges neutral.

    Args:
        species: the mobile species.
        length: L of the box in x.
        end: final time, in 1/ω_p, a multiple of ``step``.
        step: time step h, in 1/ω_p.
        cells_x: number of cells in x.
        left: x runs over (left, left + length).
        walls: whether walls at the ends of the box reflect particles. They carry no charge, so E = 0 there. Otherwise x
            is periodic. The box and its mirror image, f(-x, -v) for a wall at 0, are solved as one periodic box. So
            velocity ranges must be symmetric. f must be even in v at the walls, because a jump there would be smeared.
        snapshot_times: multiples of ``step`` in [0, end] at which f is kept.

    Returns:
        The solution at all steps, and f at the end and at the snapshot times.

    Raises:
        TooNarrow: f of a species is not negligible at the ends of its velocity range, at any time.
        ValueError: inconsistent arguments.
    """
    if not species:
        raise ValueError("at least one species is needed")
    if length <= 0 or step <= 0 or end < 0:
        raise ValueError("length and step must be positive and end not negative")
    for one in species:
        low, high = one.velocity_range
        if one.mass <= 0 or one.density <= 0 or one.temperature <= 0 or low >= high:
            raise ValueError("mass, density, temperature and the width of velocity_range must be positive")
        if min(cells_x, one.velocity_cells) < 4:
            raise ValueError(f"cells must be at least 4 in x and in v, got {cells_x} and {one.velocity_cells}")
        if one.collision_strength < 0:
            raise ValueError(f"collision_strength must not be negative, got {one.collision_strength}")
        if walls and low != -high:
            raise ValueError(f"between walls a velocity_range must be symmetric, got {one.velocity_range}")
    boxes = 2 if walls else 1
    x = left + length / cells_x * (np.arange(boxes * cells_x) + 0.5)
    if walls:
        species = [replace(one, initial_density=_mirrored(one.initial_density)) for one in species]
    run, _ = _evolve(species, x, boxes * length, end, step, snapshot_times, inside=cells_x)
    return run


class _Phase:
    """f of one species on its grid, and the sub-flows of one step."""

    def __init__(self, species: GridSpecies, x: np.ndarray, wavenumber_x: np.ndarray, step: float) -> None:
        (low, high), n_v = species.velocity_range, species.velocity_cells
        self.species = species
        self.step = step
        self.dv = (high - low) / n_v
        self.v = low + self.dv * (np.arange(n_v) + 0.5)
        self.f = np.broadcast_to(species.initial_density(x[:, None], self.v[None, :]), (len(x), n_v)).astype(np.float64)
        self.wavenumber = 2 * np.pi * np.fft.rfftfreq(n_v, self.dv)
        self.filter = _filter(self.wavenumber)
        self.drift_half = _filter(wavenumber_x)[:, None] * np.exp(-0.5j * step * np.outer(wavenumber_x, self.v))
        self.collide: Callable[[np.ndarray], np.ndarray] | None = None
        duration = step * species.collision_strength
        if duration > 0 and species.collision_operator == "dougherty":
            self.collide = _dougherty(self.v, self.wavenumber, duration)
        elif duration > 0:
            matrix = expm(duration * _chang_cooper(self.v, species.temperature / species.mass)).T
            # Columns sum to 1 up to the rounding of expm, which would add up to a drift of the mass.
            self.collide = (matrix / matrix.sum(axis=1, keepdims=True)).__rmatmul__

    def density(self) -> np.ndarray:
        return self.f.sum(axis=1) * self.dv

    def drift(self) -> None:
        self.f = _translate(self.f, self.drift_half, axis=0)

    def kick_and_collide(self, field: np.ndarray) -> None:
        acceleration = self.species.charge / self.species.mass * field
        kick_half = self.filter * np.exp(-0.5j * self.step * np.outer(acceleration, self.wavenumber))
        if self.collide is None:
            self.f = _translate(self.f, kick_half**2, axis=1)
        else:
            self.f = _translate(self.f, kick_half, axis=1)
            self.f = self.collide(self.f)
            self.f = _translate(self.f, kick_half, axis=1)


def _evolve(
    species: Sequence[GridSpecies],
    x: np.ndarray,
    length: float,
    end: float,
    step: float,
    snapshot_times: Sequence[float],
    *,
    inside: int | None = None,
    given: _GivenField | None = None,
    range_name: str = "velocity_range",
) -> tuple[SpeciesSolution, np.ndarray]:
    """The solution in the periodic box of x, and the potential energy in a given field.

    Integrals and stored arrays are those of the first ``inside`` cells, by default of all cells. Messages call the
    velocity range ``range_name``.
    """
    n_steps = _step_index(end, step)
    snapshot_steps = [_step_index(t, step) for t in snapshot_times]
    if any(n < 0 or n > n_steps for n in snapshot_steps):
        raise ValueError(f"snapshot times must lie in [0, {end}], got {list(snapshot_times)}")
    dx = length / len(x)
    wavenumber_x = 2 * np.pi * np.fft.rfftfreq(len(x), dx)
    phases = [_Phase(one, x, wavenumber_x, step) for one in species]
    for phase in phases if given is None else []:
        low, high = phase.species.velocity_range
        relative = phase.f.mean() * (high - low) / phase.species.density
        missing = 1 - relative
        if abs(missing) > 1e-5:
            at_ends = np.abs(phase.f[:, [0, -1]]).max()
            # Beyond the ends, a tail that falls faster than 1/v³ contains less than this.
            in_tails = 0.5 * (high - low) * at_ends / phase.species.density
            is_cut_off = at_ends > BOUNDARY_TOLERANCE * phase.f.max() or 0 < missing < in_tails
            raise (TooNarrow if is_cut_off else ValueError)(
                f"the mean density is {relative * phase.species.density:.8g} on the grid, it must be "
                f"{phase.species.density:g}: normalise initial_density, or enlarge {range_name} if it cuts f off"
            )

    def field() -> np.ndarray:
        if given is not None:
            return given.acceleration
        charge_density = np.sum([phase.species.charge * phase.density() for phase in phases], axis=0)
        return _poisson(charge_density, wavenumber_x)

    inside = len(x) if inside is None else inside
    series = np.empty((4, len(phases), n_steps + 1))
    field_energy, potential_energy = np.zeros(n_steps + 1), np.zeros(n_steps + 1)
    snapshots = [np.empty((len(snapshot_steps), inside, len(phase.v))) for phase in phases]
    for n in range(n_steps + 1):
        if n > 0:
            for phase in phases:
                phase.drift()
            kick = field()
            for phase in phases:
                phase.kick_and_collide(kick)
                phase.drift()

        if given is None:
            field_energy[n] = 0.5 * (field()[:inside] ** 2).sum() * dx
        for i, phase in enumerate(phases):
            boundary = np.abs(phase.f[:, [0, -1]]).max() / phase.f.max()
            if not boundary < BOUNDARY_TOLERANCE:
                low, high = phase.species.velocity_range
                ends = f"+-{high}" if low == -high else f"{low} or {high}"
                raise TooNarrow(
                    f"f at v = {ends} is {boundary:.1e} of its maximum at t = {n * step:.6g} "
                    f"(limit {BOUNDARY_TOLERANCE:.0e}): enlarge {range_name}, or refine v if f filaments"
                )
            f, v, dv, mass = phase.f[:inside], phase.v, phase.dv, phase.species.mass
            marginal_v = f.sum(axis=0) * dx
            positive = np.maximum(f, 0.0)
            series[:, i, n] = (
                marginal_v.sum() * dv,
                mass * (v * marginal_v).sum() * dv,
                (0.5 * mass * v**2 * marginal_v).sum() * dv,
                xlogy(positive, positive).sum() * dx * dv,
            )
            if given is not None:
                potential_energy[n] += (given.potential * phase.density()).sum() * dx
            for j, snapshot_step in enumerate(snapshot_steps):
                if snapshot_step == n:
                    snapshots[i][j] = f

    number, momentum, kinetic, entropy = series
    solution = SpeciesSolution(
        x=x[:inside],
        v=tuple(phase.v for phase in phases),
        times=step * np.arange(n_steps + 1),
        number=number,
        momentum=momentum,
        kinetic_energy=kinetic,
        entropy=entropy,
        field_energy=field_energy,
        total_energy=field_energy + kinetic.sum(axis=0),
        final=tuple(phase.f[:inside] for phase in phases),
        snapshots=tuple(snapshots),
    )
    return solution, potential_energy


def _mirrored(
    density: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The density in the first half of x, and its mirror image with the opposite velocity in the second half."""

    def both(x: np.ndarray, v: np.ndarray) -> np.ndarray:
        inner = x[: len(x) // 2]
        f = np.broadcast_to(density(inner, v), (len(inner), v.size))
        return np.concatenate([f, f[::-1, ::-1]])

    return both


def _step_index(time: float, step: float) -> int:
    n = round(time / step)
    if abs(time / step - n) > 1e-6:
        raise ValueError(f"time {time} is not a multiple of the step {step}: change one of them")
    return n


def _filter(wavenumber: np.ndarray) -> np.ndarray:
    """exp(-36 (k/k_max)^36), 1 to 1e-9 for k < k_max/2 (Hou & Li 2007, doi:10.1016/j.jcp.2007.04.014)."""
    return np.exp(-36 * (wavenumber / wavenumber[-1]) ** 36)


def _translate(f: np.ndarray, phase: np.ndarray, axis: int) -> np.ndarray:
    """Translate f along an axis by s, given as exp(-i k s) for each wavenumber k of that axis."""
    return irfft(rfft(f, axis=axis) * phase, n=f.shape[axis], axis=axis)


def _poisson(density: np.ndarray, wavenumber: np.ndarray) -> np.ndarray:
    """E of dE/dx = n - mean n. The Nyquist mode of E is imaginary on the grid: irfft drops it."""
    density_hat = rfft(density)
    field_hat = np.zeros_like(density_hat)
    field_hat[1:] = density_hat[1:] / (1j * wavenumber[1:])
    return irfft(field_hat, n=len(density))


def _chang_cooper(v: np.ndarray, temperature: float) -> np.ndarray:
    """Matrix of f → ∂v( v f + T ∂v f ), shape (n_v, n_v), no flux through the ends.

    The flux at v_{j+1/2} is T/dv ( B(-w) f_{j+1} - B(w) f_j ), w = v_{j+1/2} dv/T, B(w) = w/(e^w - 1) (the
    Chang-Cooper weights in Scharfetter & Gummel's form). It vanishes on the Maxwellian, f_{j+1}/f_j = e^-w.
    """
    dv = v[1] - v[0]
    w = 0.5 * (v[1:] + v[:-1]) * dv / temperature
    w[np.abs(w) < 1e-12] = 1e-12  # B(0) = 1
    from_left = temperature / dv * w / np.expm1(w)
    from_right = temperature / dv * w / -np.expm1(-w)
    flux = np.zeros((len(v) + 1, len(v)))
    inner = np.arange(1, len(v))
    flux[inner, inner - 1] = -from_left
    flux[inner, inner] = from_right
    return np.diff(flux, axis=0) / dv


def _dougherty(v: np.ndarray, wavenumber: np.ndarray, duration: float) -> Callable[[np.ndarray], np.ndarray]:
    """The flow f → f of the Dougherty operator for κ h = ``duration``, as a function of f (n_x, n_v).

    With g = e^(-κ h), v becomes U + g (v - U) + √(Θ (1 - g²)) times a standard normal number. So f^(k) =
    ∫ f e^(-i k v) dv becomes f^(g k) exp( -i k U (1 - g) - k² Θ (1 - g²)/2 ).
    """
    damping = np.exp(-duration)
    transform = np.exp(-1j * damping * np.outer(v, wavenumber))
    back = np.exp(1j * wavenumber * v[0])

    def flow(f: np.ndarray) -> np.ndarray:
        density = f.sum(axis=1)
        mean = f @ v / density
        temperature = f @ v**2 / density - mean**2
        noise = -0.5 * (1 - damping**2) * np.outer(temperature, wavenumber**2)
        moved = (f @ transform) * np.exp(noise - 1j * (1 - damping) * np.outer(mean, wavenumber))
        return irfft(moved * back, n=len(v), axis=1)

    return flow
