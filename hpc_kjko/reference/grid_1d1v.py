"""Vlasov-Poisson-Fokker-Planck on a grid, one position and one velocity.

    d_t f + v d_x f + a d_v f = kappa d_v( v f + T d_v f ),   x periodic with length L,   |v| < velocity_max

a is either the self-consistent field E = -phi', -phi'' = n - 1, n = int f dv, or a given static a(x). Or, with the
Dougherty operator of like-particle collisions, kappa d_v( (v - U) f + Theta d_v f ) with the local mean velocity
U(x) and temperature Theta(x) of f itself.
Units: omega_p = 1, mean density 1; T is a velocity squared, the square of the bath's thermal speed.

One step of length h is the Strang composition (second order in h; Strang 1968, doi:10.1137/0705041)

    drift h/2 | kick h/2 | collide h | kick h/2 | drift h/2

of three exact sub-flows: drift and kick are translations, done by Fourier interpolation (after Cheng & Knorr
1976, doi:10.1016/0021-9991(76)90053-X); collide is the matrix exponential of the Chang-Cooper discretisation
(1970, doi:10.1016/0021-9991(70)90001-X), second order in the velocity spacing, which keeps the mass, f >= 0
and the Maxwellian. Kick and collide leave n alone, so one field serves the whole inner part of the step. The
Dougherty operator keeps U and Theta too, so that its flow is that of an Ornstein-Uhlenbeck process with constants:
exact in Fourier space, f^(k) -> f^(k e^(-kappa h)) times the transform of a Gaussian.

Without collisions f filaments without end (in free flight f ~ exp(-ikvt)). Filaments that reach the grid
spacing would alias back as noise, so each translation also filters the shortest waves away. This keeps mass,
momentum and energy but lowers int f log f, which the collisionless equation keeps: trust the entropy as far
as more cells agree.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.fft import irfft, rfft
from scipy.linalg import expm
from scipy.special import xlogy

# |f| at the velocity boundary, relative to max f, above which the truncation of velocity space is an error.
BOUNDARY_TOLERANCE = 1e-5


class TooNarrow(ValueError):
    """f is not negligible where the grid ends in v."""


@dataclass(frozen=True)
class GridSolution:
    """A solution of :func:`solve`; time series have shape (steps + 1,), from t = 0 to ``end``.

    Integrals run over the whole box, so for a mean density of 1 the mass is L.
    """

    x: np.ndarray  #: (cells[0],) cell centres
    v: np.ndarray  #: (cells[1],) cell centres
    times: np.ndarray
    mass: np.ndarray  #: int f
    momentum: np.ndarray  #: int v f
    kinetic_energy: np.ndarray  #: int v^2/2 f
    field_energy: np.ndarray  #: 1/2 int E^2 dx of the self-consistent field; 0 in a given field
    potential_energy: np.ndarray  #: int phi f in a given field, nan if phi was not given; else 0
    entropy: np.ndarray  #: int f log f, where undershoots f < 0 count as f = 0
    free_energy: np.ndarray  #: kinetic + field + potential energy + T entropy
    relative_entropy: np.ndarray  #: int f log(f/f_inf), f_inf ~ exp(-(v^2/2 + phi)/T) of the same mass
    final: np.ndarray  #: (cells[0], cells[1]) f at ``end``
    snapshots: np.ndarray  #: (len(snapshot_times), cells[0], cells[1]) f at the snapshot times


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
        collision_strength: kappa >= 0, in omega_p. 0 skips the collision step.
        temperature: T > 0 of the bath, as a velocity squared.
        end: final time, in 1/omega_p, a multiple of ``step``.
        step: time step h, in 1/omega_p.
        cells: number of cells in x and v.
        velocity_max: v runs over (-velocity_max, velocity_max), where f must stay negligible at the ends.
        collision_operator: the bath's, or Dougherty's, for which T is only that of ``free_energy`` and
            ``relative_entropy``.
        acceleration: a(x) of a given static field, in place of the Poisson equation.
        potential: phi(x) with a = -phi', for the energies and the relative entropy in a given field.
        left: x runs over (left, left + length).
        snapshot_times: multiples of ``step`` in [0, end] at which f is kept.

    Raises:
        TooNarrow: f is not negligible at v = +-velocity_max, at any time.
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
    n_steps = _step_index(end, step)
    snapshot_steps = [_step_index(t, step) for t in snapshot_times]
    if any(n < 0 or n > n_steps for n in snapshot_steps):
        raise ValueError(f"snapshot times must lie in [0, {end}], got {list(snapshot_times)}")

    n_x, n_v = cells
    dx, dv = length / n_x, 2 * velocity_max / n_v
    x = left + dx * (np.arange(n_x) + 0.5)
    v = -velocity_max + dv * (np.arange(n_v) + 0.5)
    wavenumber_x = 2 * np.pi * np.fft.rfftfreq(n_x, dx)
    wavenumber_v = 2 * np.pi * np.fft.rfftfreq(n_v, dv)

    f = np.broadcast_to(initial_density(x[:, None], v[None, :]), (n_x, n_v)).astype(np.float64)
    if acceleration is not None:
        given_field = np.broadcast_to(acceleration(x), n_x)
        phi = np.broadcast_to(np.nan if potential is None else potential(x), n_x)
    else:
        given_field = None
        phi = np.zeros(n_x)
        missing = 1 - f.mean() * 2 * velocity_max
        if abs(missing) > 1e-5:
            at_ends = np.abs(f[:, [0, -1]]).max()
            # Beyond the ends a tail that falls faster than 1/v^3 holds less than this.
            in_tails = velocity_max * at_ends
            is_cut_off = at_ends > BOUNDARY_TOLERANCE * f.max() or 0 < missing < in_tails
            raise (TooNarrow if is_cut_off else ValueError)(
                f"the mean density is {f.mean() * 2 * velocity_max:.8g} on the grid, it must be 1: "
                "normalise initial_density, or enlarge velocity_max if it cuts f off"
            )

    def field(f: np.ndarray) -> np.ndarray:
        return given_field if given_field is not None else _poisson(f.sum(axis=1) * dv, wavenumber_x)

    drift_half = _filter(wavenumber_x)[:, None] * np.exp(-0.5j * step * np.outer(wavenumber_x, v))
    filter_v = _filter(wavenumber_v)
    collide: Callable[[np.ndarray], np.ndarray] | None = None
    if collision_strength > 0 and collision_operator == "dougherty":
        collide = _dougherty(v, wavenumber_v, step * collision_strength)
    elif collision_strength > 0:
        matrix = expm(step * collision_strength * _chang_cooper(v, temperature)).T
        # Columns sum to 1 up to the rounding of expm, which would add up to a drift of the mass.
        collide = (matrix / matrix.sum(axis=1, keepdims=True)).__rmatmul__

    series = np.empty((n_steps + 1, 6))
    snapshots = np.empty((len(snapshot_steps), n_x, n_v))
    for n in range(n_steps + 1):
        if n > 0:
            f = _translate(f, drift_half, axis=0)
            kick_half = filter_v * np.exp(-0.5j * step * np.outer(field(f), wavenumber_v))
            if collide is None:
                f = _translate(f, kick_half**2, axis=1)
            else:
                f = _translate(f, kick_half, axis=1)
                f = collide(f)
                f = _translate(f, kick_half, axis=1)
            f = _translate(f, drift_half, axis=0)

        boundary = np.abs(f[:, [0, -1]]).max() / f.max()
        if not boundary < BOUNDARY_TOLERANCE:
            raise TooNarrow(
                f"f at v = +-{velocity_max} is {boundary:.1e} of its maximum at t = {n * step:.6g} "
                f"(limit {BOUNDARY_TOLERANCE:.0e}): enlarge velocity_max, or refine v if f filaments"
            )
        marginal_v = f.sum(axis=0) * dx
        density = f.sum(axis=1) * dv
        positive = np.maximum(f, 0.0)
        series[n] = (
            marginal_v.sum() * dv,
            (v * marginal_v).sum() * dv,
            (0.5 * v**2 * marginal_v).sum() * dv,
            0.5 * (field(f) ** 2).sum() * dx if given_field is None else 0.0,
            (phi * density).sum() * dx,
            xlogy(positive, positive).sum() * dx * dv,
        )
        for i, snapshot_step in enumerate(snapshot_steps):
            if snapshot_step == n:
                snapshots[i] = f

    mass, momentum, kinetic, field_energy, potential_energy, entropy = series.T.copy()
    partition = np.sqrt(2 * np.pi * temperature) * np.exp(-phi / temperature).sum() * dx
    return GridSolution(
        x=x,
        v=v,
        times=step * np.arange(n_steps + 1),
        mass=mass,
        momentum=momentum,
        kinetic_energy=kinetic,
        field_energy=field_energy,
        potential_energy=potential_energy,
        entropy=entropy,
        free_energy=kinetic + field_energy + potential_energy + temperature * entropy,
        relative_entropy=entropy + (kinetic + potential_energy) / temperature + mass * np.log(partition / mass),
        final=f,
        snapshots=snapshots,
    )


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
    """Matrix of f -> d_v( v f + T d_v f ), shape (n_v, n_v), no flux through the ends.

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
    """The flow f -> f of the Dougherty operator for kappa h = ``duration``, as a function of f (n_x, n_v).

    With g = e^(-kappa h), v goes to U + g (v - U) + sqrt(Theta (1 - g^2)) times a standard normal number, and so
    f^(k) = int f e^(-i k v) dv to f^(g k) exp( -i k U (1 - g) - k^2 Theta (1 - g^2)/2 ).
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
