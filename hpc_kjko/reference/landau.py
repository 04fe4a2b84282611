"""Exact solutions, exact rates and the plain pair sum of the Landau collision operator.

For particles of unit mass in d velocity dimensions

    ∂t f = C div ∫ A(v - v') ( f' ∇f - f ∇' f' ) dv',   A(z) = |z|^γ ( |z|² I - z z^T ),

with γ = -3 for Coulomb collisions and γ = 0 for Maxwell molecules. With s = ∇log f, particles have the
velocity

    V(v) = -C ∫ A(v - v') ( s - s' ) f' dv',   d log f/dt = -div V along their paths.

Several species have masses m, charges q and densities n, and one strength C for all:

    V_a = -Σ_b C q_a² q_b² / m_a ∫ A(v - v') ( s_a / m_a - s_b' / m_b ) f_b' dv',   ∫ f_b dv = n_b.

Units: ω_p, Debye length and thermal speed of a reference species are 1, and so are its charge, mass, density and
temperature. In these units C = log(Λ) / (8 π N_D), where N_D is the number of particles in a cube of the Debye
length. A temperature is m times the variance of one component of v. Times are in 1/ω_p and C is in ω_p. For one
species of density n and mass m, use C n / m² as strength and T/m as temperatures.

For γ = 0 two results are exact: the solution of Bobylev, Krook and Wu, and the relaxation of the covariance. For
Coulomb collisions the rates of temperatures are exact for (bi-)Maxwellians, but these do not keep their shape.
Relaxations that integrate such rates are closures. `reference.landau_linear` has no closure. There relaxations take
longer: in the integral over time by 16 %, and between equal species by 43 %.

Sources: L. D. Landau, Phys. Z. Sowjetunion 10, 154 (1936); L. Spitzer, Physics of Fully Ionized Gases (2nd ed., 1962),
chapter 5; M. Krook, T. T. Wu, doi:10.1063/1.861780; C. Villani, doi:10.1142/S0218202598000433.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp
from scipy.special import gammaln

COULOMB = -3.0
MAXWELL = 0.0

# Below this |T⊥/T∥ - 1| the closed form of the rate loses digits. Then 60 terms of the series give all digits.
_SERIES_LIMIT = 0.4
_SERIES_TERMS = 60
# Size of an array in the pair sum.
_PAIRS_AT_ONCE = 1 << 19


# ---- one species, Coulomb


def isotropisation_rate(
    parallel: float | np.ndarray, perpendicular: float | np.ndarray, strength: float
) -> float | np.ndarray:
    """dT∥/dt of a bi-Maxwellian in 3 velocity dimensions with Coulomb collisions; dT⊥/dt is -1/2 of it.

    dT∥/dt = 2 ν (T⊥ - T∥), with a = T⊥/T∥ - 1 and

        ν = C [ (a + 3) atan(√a) / √a - 3 ] / ( √π T∥^(3/2) a² ),

    where atanh(√(-a)) / √(-a) stands for the quotient if a < 0. Exact at the moment of the bi-Maxwellian.
    Source: the NRL Plasma Formulary (J. D. Huba), "Thermal equilibration, temperature isotropization".

    Args:
        parallel: T∥ > 0 along the axis, a number or an array.
        perpendicular: T⊥ > 0 of each direction across; broadcast with parallel.
        strength: C ≥ 0, for unit density and mass.

    Raises:
        ValueError: a temperature that is not positive, or a negative strength.
    """
    parallel, perpendicular = np.asarray(parallel, dtype=np.float64), np.asarray(perpendicular, dtype=np.float64)
    require_positive(parallel=parallel, perpendicular=perpendicular)
    require_strength(strength)
    rate = 2 * strength * _isotropisation_frequency(parallel, perpendicular) * (perpendicular - parallel)
    return rate if rate.ndim else float(rate)


def bi_maxwellian_relaxation(
    parallel: float, perpendicular: float, strength: float, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """T∥(t) and T⊥(t), each (n,), if a bi-Maxwellian kept its shape under Coulomb collisions in 3 dimensions.

    The energy T∥ + 2 T⊥ is constant to round-off. The rate is exact at t = 0. Later it is a closure: the slow
    particles become isotropic first, so the true relaxation is slower. `small_anisotropy` shows by how much.

    Args:
        parallel: T∥(0) > 0.
        perpendicular: T⊥(0) > 0.
        strength: C ≥ 0, for unit density and mass.
        times: (n,) times ≥ 0, in any order.

    Raises:
        ValueError: a temperature that is not positive, a negative strength or time.
    """
    require_positive(parallel=parallel, perpendicular=perpendicular)
    require_strength(strength)
    mean = (parallel + 2 * perpendicular) / 3

    def decay(difference: float) -> float:
        frequency = _isotropisation_frequency(np.asarray(mean + 2 / 3 * difference), np.asarray(mean - difference / 3))
        return 3 * strength * float(frequency)

    difference = _relaxed(parallel - perpendicular, decay, times)
    return mean + 2 / 3 * difference, mean - difference / 3


# ---- one species, Maxwell molecules


@dataclass(frozen=True)
class Bkw:
    """The solution of Bobylev, Krook and Wu for γ = 0: isotropic, of density 1, temperature 1 and mean 0.

        f = (2 π K)^(-d/2) exp(-v²/2K) ( P + Q v² ),   P = ((d + 2) K - d) / 2K,   Q = (1 - K) / 2K²,
        K = 1 - c exp(-2 C (d - 1) t).

    It is a mixture: v²/K has the chi-squared law of d degrees of freedom with probability P, and of d + 2 otherwise.
    It is a density while P ≥ 0, that is c exp(-2 C (d - 1) t) ≤ 2 / (d + 2). At equality f = 0 and log f = -inf at v
    = 0. In the literature C = 1/16, c = 1/2 in two dimensions, and C = 1/24, c = 1, t ≥ 5.5 in three.

    Raises:
        ValueError: dims other than 2 and 3, a negative strength or amplitude; later, a time before f is a density.
    """

    dims: int  #: d, 2 or 3
    strength: float  #: C ≥ 0
    amplitude: float  #: c ≥ 0, which is 1 - K(0)

    def __post_init__(self) -> None:
        if self.dims not in (2, 3):
            raise ValueError(f"dims must be 2 or 3, is {self.dims}")
        require_strength(self.strength)
        if not 0 <= self.amplitude < np.inf:
            raise ValueError(f"amplitude must not be negative, is {self.amplitude}")

    def width(self, time: float) -> float:
        """K(t), the variance of one component in the Gaussian factor; it tends to 1."""
        width = 1 - self.amplitude * float(np.exp(-2 * self.strength * (self.dims - 1) * time))
        # A start at equality must not fail because of a rounded exponential.
        if width < self.dims / (self.dims + 2) * (1 - 1e-14):
            raise ValueError(
                f"at t = {time} this is no density: K = {width} is below {self.dims}/{self.dims + 2}; "
                "take a later time or a smaller amplitude"
            )
        return max(width, self.dims / (self.dims + 2))

    def density(self, v: np.ndarray, time: float) -> np.ndarray:
        """f at v, shape (..., d); returns shape (...)."""
        width, constant, quadratic = self._coefficients(time)
        square = self._square(v)
        return np.exp(-square / (2 * width)) * (constant + quadratic * square) / (2 * np.pi * width) ** (self.dims / 2)

    def log_density(self, v: np.ndarray, time: float) -> np.ndarray:
        """log f at v, shape (..., d), also if f underflows; returns shape (...)."""
        width, constant, quadratic = self._coefficients(time)
        square = self._square(v)
        with np.errstate(divide="ignore"):
            factor = np.log(constant + quadratic * square)
        return factor - square / (2 * width) - 0.5 * self.dims * np.log(2 * np.pi * width)

    def score(self, v: np.ndarray, time: float) -> np.ndarray:
        """s = ∇log f at v, shape (..., d); returns the same shape. It is infinite where f = 0."""
        width, constant, quadratic = self._coefficients(time)
        v = np.asarray(v, dtype=np.float64)
        factor = (constant + quadratic * self._square(v))[..., None]
        return v * (2 * quadratic / factor - 1 / width)

    def hessian(self, v: np.ndarray, time: float) -> np.ndarray:
        """H = ∇∇log f at v, shape (..., d); returns shape (..., d, d)."""
        width, constant, quadratic = self._coefficients(time)
        v = np.asarray(v, dtype=np.float64)
        factor = (constant + quadratic * self._square(v))[..., None, None]
        outer = v[..., :, None] * v[..., None, :]
        return (2 * quadratic / factor - 1 / width) * np.eye(self.dims) - (2 * quadratic / factor) ** 2 * outer

    def log_density_rate(self, v: np.ndarray, time: float) -> np.ndarray:
        """Partial derivative of log f in time at fixed v, shape (..., d); returns shape (...)."""
        width, constant, quadratic = self._coefficients(time)
        square = self._square(v)
        width_rate = 2 * self.strength * (self.dims - 1) * (1 - width)
        constant_rate = self.dims / (2 * width**2)
        quadratic_rate = -1 / (2 * width**2) - (1 - width) / width**3
        factor_rate = (constant_rate + quadratic_rate * square) / (constant + quadratic * square)
        return width_rate * (factor_rate + square / (2 * width**2) - 0.5 * self.dims / width)

    def fourth_moment(self, time: float) -> float:
        """∫ |v|^4 f dv = d (d + 2) K (2 - K)."""
        width = self.width(time)
        return self.dims * (self.dims + 2) * width * (2 - width)

    def _coefficients(self, time: float) -> tuple[float, float, float]:
        """K, P, Q."""
        width = self.width(time)
        constant = max((self.dims + 2) * width - self.dims, 0.0) / (2 * width)
        return width, constant, (1 - width) / (2 * width**2)

    def _square(self, v: np.ndarray) -> np.ndarray:
        v = np.asarray(v, dtype=np.float64)
        if v.ndim == 0 or v.shape[-1] != self.dims:
            raise ValueError(f"v must have shape (..., {self.dims}), has {v.shape}")
        return np.einsum("...i,...i->...", v, v)


def maxwell_covariance(covariance0: np.ndarray, strength: float, times: np.ndarray) -> np.ndarray:
    """Covariance of v at the times, (n, d, d), under Maxwell molecules (γ = 0): exact for an f of any shape.

        Σ(t) = Σ_inf + (Σ_0 - Σ_inf) exp(-4 d C t),   Σ_inf = tr(Σ_0) / d I.

    For a test function p and averages over pairs, the operator gives

        d<p>/dt = C <A : ∇∇p + 2 (div A) . ∇p>,   div A = -(d - 1) z.

    Products of two components, with the covariance 2 Σ of z, give dΣ/dt = 4 C ( tr(Σ) I - d Σ ).

    Args:
        covariance0: (d, d) symmetric, d ≥ 2.
        strength: C ≥ 0, for unit density and mass.
        times: (n,) times ≥ 0, in any order.

    Raises:
        ValueError: a covariance that is not symmetric or too small, a negative strength or time.
    """
    covariance0 = np.asarray(covariance0, dtype=np.float64)
    require_strength(strength)
    times = as_times(times)
    if covariance0.ndim != 2 or covariance0.shape[0] != covariance0.shape[1] or len(covariance0) < 2:
        raise ValueError(f"covariance0 must be a square matrix of two rows or more, has shape {covariance0.shape}")
    if not np.allclose(covariance0, covariance0.T):
        raise ValueError("covariance0 must be symmetric")
    dims = len(covariance0)
    limit = np.trace(covariance0) / dims * np.eye(dims)
    return limit + np.exp(-4 * dims * strength * times)[:, None, None] * (covariance0 - limit)


# ---- two species


def two_temperature_rate(
    temperatures: Sequence[float],
    masses: Sequence[float],
    densities: Sequence[float],
    charges: Sequence[float],
    strength: float,
    exponent: float = COULOMB,
    dims: int = 3,
) -> np.ndarray:
    """(dT_a/dt, dT_b/dt) of two Maxwellians of the same mean velocity: exact at that moment.

    For a pair of Gaussians, z = v - v' and the centre of mass W are independent, and A z = 0. So only the average of
    W^T A W remains:

        dT_a/dt = 2 (d - 1)/d C q_a² q_b² n_b <|z|^(γ + 2)> ( T_b - T_a ) / ( m_a m_b S² ),

    where S² = T_a/m_a + T_b/m_b is the variance of a component of z. For Coulomb collisions in three dimensions the
    average of 1/|z| is √(2/π) / S. This gives Spitzer's formula:

        dT_a/dt = 4/3 √(2/π) C q_a² q_b² n_b ( T_b - T_a ) / ( m_a m_b S³ ).

    Args:
        temperatures: (T_a, T_b), positive.
        masses: (m_a, m_b), positive.
        densities: (n_a, n_b), positive.
        charges: (q_a, q_b); their signs do not matter.
        strength: C ≥ 0, of unit charges.
        exponent: γ > -2 - dims.
        dims: d ≥ 2.

    Raises:
        ValueError: not two numbers for each argument, or numbers out of range.
    """
    now = pair(temperatures, "temperatures")
    frequencies = _two_temperature_frequencies(now, masses, densities, charges, strength, exponent, dims)
    return frequencies * (now[::-1] - now)


def two_temperature_relaxation(
    temperatures: Sequence[float],
    masses: Sequence[float],
    densities: Sequence[float],
    charges: Sequence[float],
    strength: float,
    times: np.ndarray,
    exponent: float = COULOMB,
    dims: int = 3,
) -> np.ndarray:
    """T_a(t) and T_b(t), (n, 2), from the rate for Maxwellians.

    The energy n_a T_a + n_b T_b is constant to round-off. For γ = 0 this is exact for any two f with the same mean
    velocity, where T is the mean over directions. For Coulomb collisions it is a closure, which is good for large mass
    ratios: `small_temperature_difference` shows how good.

    For the other arguments see `two_temperature_rate`.

    Args:
        times: (n,) times ≥ 0, in any order.

    Raises:
        ValueError: not two numbers for each argument, numbers out of range, a negative time.
    """
    start, n = pair(temperatures, "temperatures"), pair(densities, "densities")
    require_positive(temperatures=start, densities=n)
    mean = n @ start / n.sum()
    shares = np.array([n[1], -n[0]]) / n.sum()

    def decay(difference: float) -> float:
        now = mean + shares * difference
        return float(_two_temperature_frequencies(now, masses, densities, charges, strength, exponent, dims).sum())

    return mean + np.outer(_relaxed(float(start[0] - start[1]), decay, times), shares)


# ---- particles


def pair_sum(
    v: np.ndarray,
    score: np.ndarray,
    weights: np.ndarray,
    exponent: float,
    strength: float,
    hessian: np.ndarray | None = None,
    masses: np.ndarray | None = None,
    charges: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The velocities V_i, (n, d), that Landau collisions give n particles, and d log f_i/dt, (n,): the sum over all
    pairs.

        V_i = -Σ_j C q_i² q_j² / m_i w_j A(z) ( s_i/m_i - s_j/m_j ),   z = v_i - v_j,
        d log f_i/dt = Σ_j C q_i² q_j² / m_i w_j [ A(z):H_i/m_i - (d - 1) |z|^γ z . ( s_i/m_i - s_j/m_j ) ].

    d log f_i/dt is -div V_i, where the score of i follows v_i and the others are fixed. For unlike species and γ =
    -3 it has infinite variance, because s_i/m_i - s_j/m_j does not vanish with z. Particles at the same place do not
    collide. A particle of weight 0 is moved by others but does not move them. The time grows as n².

    Args:
        v: (n, d) velocities, d ≥ 2.
        score: (n, d), s = ∇log f at each particle, where f is that of its species.
        weights: (n,) weights w_j; those of a species add up to its density.
        exponent: γ.
        strength: C, of unit charges.
        hessian: (n, d, d), H = ∇s at each particle; if None, d log f/dt is None.
        masses: (n,) mass of each particle; None for 1.
        charges: (n,) charge of each particle; None for 1.

    Raises:
        ValueError: shapes that do not match.
    """
    v, score, weights = (np.asarray(array, dtype=np.float64) for array in (v, score, weights))
    if v.ndim != 2 or v.shape[1] < 2:
        raise ValueError(f"v must have shape (n, d) with d >= 2, has {v.shape}")
    count, dims = v.shape
    masses = np.ones(count) if masses is None else np.asarray(masses, dtype=np.float64)
    charges = np.ones(count) if charges is None else np.asarray(charges, dtype=np.float64)
    for name, array, shape in [
        ("score", score, (count, dims)),
        ("weights", weights, (count,)),
        ("masses", masses, (count,)),
        ("charges", charges, (count,)),
        ("hessian", hessian, (count, dims, dims)),
    ]:
        if array is not None and np.shape(array) != shape:
            raise ValueError(f"v has shape {v.shape}, so {name} needs {shape}, has {np.shape(array)}")

    drive = score / masses[:, None]
    source = strength * weights * charges**2
    velocity = np.empty_like(v)
    rate = None if hessian is None else np.empty(count)
    rows = max(1, _PAIRS_AT_ONCE // max(count * dims, 1))
    for first in range(0, count, rows):
        own = slice(first, first + rows)
        z = v[own, None, :] - v
        difference = drive[own, None, :] - drive
        square = np.einsum("ijk,ijk->ij", z, z)
        along = np.einsum("ijk,ijk->ij", z, difference)
        power = np.zeros_like(square)
        np.power(square, exponent / 2, out=power, where=square > 0)
        power *= source * (charges[own] ** 2 / masses[own])[:, None]
        velocity[own] = np.einsum("ij,ijk->ik", power * along, z) - np.einsum("ij,ijk->ik", power * square, difference)
        if rate is not None and hessian is not None:
            curvature = np.asarray(hessian, dtype=np.float64)[own] / masses[own, None, None]
            trace = np.trace(curvature, axis1=1, axis2=2)[:, None]
            bent = np.einsum("ijk,ikl,ijl->ij", z, curvature, z, optimize=True)
            rate[own] = (power * (square * trace - bent - (dims - 1) * along)).sum(axis=1)
    return velocity, rate


# ---- helpers


def _isotropisation_frequency(parallel: np.ndarray, perpendicular: np.ndarray) -> np.ndarray:
    """ν / C of `isotropisation_rate`."""
    a = perpendicular / parallel - 1
    small = np.abs(a) < _SERIES_LIMIT
    # (a + 3) atan(√a) / √a - 3 = a² Σ_k (-a)^k 4 (k + 1) / ((2k + 3) (2k + 5))
    k = np.arange(_SERIES_TERMS)
    coefficients = (-1.0) ** k * 4 * (k + 1) / ((2 * k + 3) * (2 * k + 5))
    series = np.polynomial.polynomial.polyval(np.where(small, a, 0.0), coefficients)
    safe = np.where(small, 1.0, a)
    root = np.sqrt(np.abs(safe))
    # atanh(r) = log((1 + r) / √(1 - r²)), and 1 - r² = T⊥/T∥ here
    tangent = np.where(safe > 0, np.arctan(root), np.log1p(root) - 0.5 * np.log(perpendicular / parallel))
    closed = ((safe + 3) * tangent / root - 3) / safe**2
    return np.where(small, series, closed) / (np.sqrt(np.pi) * parallel**1.5)


def _two_temperature_frequencies(
    temperatures: Sequence[float] | np.ndarray,
    masses: Sequence[float],
    densities: Sequence[float] | np.ndarray,
    charges: Sequence[float],
    strength: float,
    exponent: float,
    dims: int,
) -> np.ndarray:
    """dT_a/dt / (T_b - T_a), and dT_b/dt / (T_a - T_b)."""
    t, m = pair(temperatures, "temperatures"), pair(masses, "masses")
    n, q = pair(densities, "densities"), pair(charges, "charges")
    require_positive(temperatures=t, masses=m, densities=n)
    require_strength(strength)
    if dims < 2 or exponent <= -2 - dims:
        raise ValueError(f"dims must be 2 or more and exponent above -2 - dims, are {dims} and {exponent}")
    variance = float((t / m).sum())
    power = exponent + 2
    moment = (2 * variance) ** (power / 2) * float(np.exp(gammaln((dims + power) / 2) - gammaln(dims / 2)))
    coupling = strength * float(np.prod(q**2) / np.prod(m))
    return 2 * (dims - 1) / dims * coupling * moment / variance * n[::-1]


def _relaxed(difference0: float, decay: Callable[[float], float], times: np.ndarray) -> np.ndarray:
    """The solution (n,) of dD/dt = -decay(D) D from D(0) = difference0 at the times.

    The integration is of log |D|, so D has relative accuracy even if it is small.
    """
    times = as_times(times)
    if difference0 == 0 or not times.size or times.max() == 0:
        return np.full(len(times), float(difference0))
    moments, places = np.unique(times, return_inverse=True)
    solution = solve_ivp(
        lambda _, y: [-decay(difference0 * float(np.exp(y[0])))],
        (0.0, float(moments[-1])),
        [0.0],
        method="DOP853",
        t_eval=moments,
        rtol=1e-12,
        atol=1e-13,
    )
    return difference0 * np.exp(solution.y[0][places])


def as_times(times: np.ndarray) -> np.ndarray:
    """The times, (n,), as float64.

    Raises:
        ValueError: they are not one-dimensional, or one is negative.
    """
    times = np.asarray(times, dtype=np.float64)
    if times.ndim != 1 or (times < 0).any():
        raise ValueError("times must be a 1D array of numbers that are not negative")
    return times


def pair(values: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    """The two values, (2,), as float64.

    Raises:
        ValueError: there are not two; the message has the name.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (2,):
        raise ValueError(f"{name} must be two numbers, has shape {array.shape}")
    return array


def require_positive(**values: float | np.ndarray) -> None:
    """Check that all values are positive.

    Raises:
        ValueError: one is not; the message has its name.
    """
    for name, value in values.items():
        if not (np.asarray(value) > 0).all():
            raise ValueError(f"{name} must be positive, is {value}")


def require_strength(strength: float) -> None:
    """Check that a collision strength is finite and not negative.

    Raises:
        ValueError: it is not.
    """
    if not 0 <= strength < np.inf:
        raise ValueError(f"strength must not be negative, is {strength}")
