"""Growth and damping rates of electrostatic waves, ∂t f + v ∂x f + E ∂v f = κ ∂v( v f + T ∂v f ).

Perturbations exp(ikx - i ω t) of a homogeneous state over a fixed neutralising background. Units: ω_p = 1, mean
density 1; k is in ω_p/velocity, and thermal speeds are standard deviations of v.

Without collisions the state is a sum of Maxwellian beams, and ω is a zero of the dielectric function. The function
is continued below the real axis (Landau 1946) by the plasma dispersion function (Fried & Conte 1961)

    Z(ζ) = i √π w(ζ),   w the Faddeeva function.

With several species there is one :class:`SpeciesTerm` for each Maxwellian. Charges, masses and densities are then in
units of a species with ω_p = 1, usually the electrons. If its T is 1, its Debye length is 1. Across a uniform
magnetic field the waves are Bernstein waves. They are undamped, with frequencies between the harmonics of the
gyrofrequencies.

With collisions (Lenard & Bernstein 1958, doi:10.1103/PhysRev.112.1456: a fixed bath, which conserves neither momentum
nor energy) the state is the Maxwellian of the bath. In Hermite functions of v the linearised equation is an eigenvalue
problem with -n κ on the diagonal. For κ > 0 the eigenmodes are discrete and complete, and the roots of Landau
are limits of eigenvalues as κ → 0 (Ng, Bhattacharjee & Skiff 1999, doi:10.1103/PhysRevLett.83.1974). At κ = 0
itself any finite number of Hermite functions is undamped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from scipy.special import ive, wofz

# The eigenvalue problem is dense: 1500 modes take some seconds.
MAX_MODES = 1500


@dataclass(frozen=True)
class SpeciesTerm:
    """One Maxwellian of a homogeneous plasma. A species that is a sum of Maxwellians has a term for each.

    The thermal speed is √(T/m), the plasma frequency is |q| √(n/m). A fixed background neutralises the sum.
    """

    charge: float  #: q; electrons have -1 where they are the unit species
    mass: float  #: m > 0
    density: float  #: mean density n > 0
    temperature: float  #: T > 0, m times the variance of v
    drift: float = 0.0  #: mean velocity along the wavevector

    def __post_init__(self) -> None:
        _require_positive(mass=self.mass, density=self.density, temperature=self.temperature)

    @property
    def thermal_speed(self) -> float:
        """√(T/m)."""
        return float(np.sqrt(self.temperature / self.mass))

    @property
    def plasma_frequency(self) -> float:
        """|q| √(n/m)."""
        return float(abs(self.charge) * np.sqrt(self.density / self.mass))


def dielectric_function(
    frequency: complex | np.ndarray, wavenumber: float, beams: Sequence[tuple[float, float, float]]
) -> complex | np.ndarray:
    """Dielectric function of a collisionless sum of Maxwellian beams; its zeros are the modes.

        ε = 1 + Σ_s n_s / (k σ_s)² [ 1 + ζ_s Z(ζ_s) ],
        ζ_s = (ω/k - v_s) / (√2 σ_s)

    Args:
        frequency: complex ω, of any shape.
        wavenumber: k > 0.
        beams: (density n_s, mean velocity v_s, thermal speed σ_s) of each beam; densities sum to 1.

    Returns:
        ε, complex, in the shape of ``frequency``.
    """
    epsilon = 1.0 + 0.0j
    for density, velocity, thermal_speed in beams:
        zeta = (frequency / wavenumber - velocity) / (np.sqrt(2) * thermal_speed)
        epsilon += density / (wavenumber * thermal_speed) ** 2 * (1 + zeta * _plasma_dispersion(zeta))
    return epsilon


def two_stream_growth_rate(wavenumber: float, beam_velocity: float, thermal_speed: float) -> float:
    """Growth rate of the two-stream instability of f0 = 1/2 [ N(v0, σ²) + N(-v0, σ²) ].

    The unstable mode is unique and purely growing. f0 has one minimum, so the Nyquist contour encircles the origin at
    most once (Penrose 1960, doi:10.1063/1.1706024). By the symmetry ω → -conj(ω) this zero is on the imaginary
    axis, where ε is real. There ε ≥ 1 - 1/(8 γ²) for every f0, because (1 - s)/(1 + s)² ≥ -1/8 for
    s ≥ 0. So γ ≤ 1/√8, the growth rate of cold beams.

    Args:
        wavenumber: k > 0.
        beam_velocity: v0; its sign does not matter.
        thermal_speed: σ > 0 of each beam.

    Raises:
        ValueError: no growing mode, or arguments out of range.
    """
    _require_positive(wavenumber=wavenumber, thermal_speed=thermal_speed)
    beams = [(0.5, beam_velocity, thermal_speed), (0.5, -beam_velocity, thermal_speed)]

    def epsilon(growth_rate: float) -> float:
        return float(np.real(dielectric_function(1j * growth_rate, wavenumber, beams)))

    if epsilon(0.0) >= 0:
        raise ValueError(
            f"no growing mode at k = {wavenumber}, v0 = {beam_velocity}, sigma = {thermal_speed}: "
            "take a smaller wavenumber, faster or colder beams; v0 > 1.31 sigma and about k v0 < 1 are needed"
        )
    return brentq(epsilon, 0.0, np.sqrt(0.125) * (1 + 1e-6), xtol=1e-14, rtol=1e-13)


def species_dielectric_function(
    frequency: complex | np.ndarray, wavenumber: float, terms: Sequence[SpeciesTerm]
) -> complex | np.ndarray:
    """Dielectric function of a collisionless plasma of several species; its zeros are the modes.

        ε = 1 + Σ_a ω_a² / (k σ_a)² [ 1 + ζ_a Z(ζ_a) ],
        ζ_a = (ω/k - u_a) / (√2 σ_a),   ω_a² = q_a² n_a / m_a,   σ_a² = T_a / m_a

    Args:
        frequency: complex ω, of any shape.
        wavenumber: k > 0.
        terms: the Maxwellians of all species.

    Returns:
        ε, complex, in the shape of ``frequency``.
    """
    epsilon: complex | np.ndarray = 1.0 + 0.0j
    for term in terms:
        zeta = (frequency / wavenumber - term.drift) / (np.sqrt(2) * term.thermal_speed)
        epsilon += (term.plasma_frequency / (wavenumber * term.thermal_speed)) ** 2 * _thermal_response(zeta)
    return epsilon


def species_root(wavenumber: float, terms: Sequence[SpeciesTerm], guess: complex | None = None) -> complex:
    """Complex frequency of a mode of several species: ion-acoustic waves, Buneman and beam instabilities.

    Newton's method starts from a grid of points around every drift, as wide as every thermal and plasma frequency.
    Without a guess the mode is the fastest growing or least damped one. The argument principle then confirms that no
    zero lies above it. If two modes have the same growth rate, it is the one with the larger Re ω.

    Sources: Buneman 1959, doi:10.1103/PhysRev.115.503; Fried & Gould 1961, Phys. Fluids 4, 139.

    Args:
        wavenumber: k > 0.
        terms: the Maxwellians of all species.
        guess: ω near the wanted mode. Then the mode is the nearest one that is found, which may be far from a poor
            guess.

    Raises:
        ValueError: k not positive, no charged species, or the search has missed a zero above the one that it found.
    """
    _require_positive(wavenumber=wavenumber)
    terms = [term for term in terms if term.charge]
    if not terms:
        raise ValueError("a wave needs at least one charged species")
    centres = {wavenumber * term.drift for term in terms}
    widths = {np.sqrt(2) * wavenumber * term.thermal_speed for term in terms}
    widths |= {term.plasma_frequency for term in terms}
    widths |= {float(np.linalg.norm([term.plasma_frequency for term in terms]))}
    grid = (np.linspace(-4, 4, 17)[:, None] + 1j * np.linspace(-3, 1, 13)).ravel()
    starts = np.concatenate([centre + width * grid for centre in centres for width in widths])
    roots = _newton(starts if guess is None else np.append(starts, guess), wavenumber, terms)
    if guess is not None:
        return complex(roots[np.argmin(np.abs(roots - guess))])
    highest = roots[np.argmax(roots.imag)]
    # Rounding may cause this difference between the growth rates of a pair. Different modes differ by far more.
    margin = 1e-6 * min(term.plasma_frequency for term in terms) + 1e-9 * abs(highest)
    pair = roots[roots.imag > highest.imag - margin]
    root = complex(pair[np.argmax(pair.real)])
    if _zeros_above(highest.imag + margin, wavenumber, terms):
        raise ValueError(f"the mode {root:.6g} at k = {wavenumber} is not the fastest growing one: give a guess")
    return root


def landau_root(wavenumber: float, thermal_speed: float = 1.0) -> complex:
    """Complex frequency, Re ω > 0, of the least damped mode of a collisionless Maxwellian plasma.

    Newton's method solves 1 + [1 + ζ Z(ζ)] / (k σ)² = 0. It starts from the Bohm-Gross frequency at a small
    k σ. Then it follows the branch in small steps, so that it is not lost.

    Args:
        wavenumber: k > 0.
        thermal_speed: σ = √T > 0.

    Raises:
        ValueError: k σ outside (0, 10].
    """
    _require_positive(wavenumber=wavenumber, thermal_speed=thermal_speed)
    target = wavenumber * thermal_speed  # in units of the inverse Debye length
    if target > 10:
        raise ValueError(f"k sigma = {target} > 10: waves so short are damped within a fraction of a period")
    start = min(target, 0.2)
    zeta = np.sqrt(1 + 3 * start**2) / (np.sqrt(2) * start) + 0.0j
    n_continuation = 1 + int(np.ceil(np.log(target / start) / 0.05))
    for k in np.geomspace(start, target, n_continuation):
        for _ in range(50):
            z = _plasma_dispersion(zeta)
            susceptibility = 1 + zeta * z
            correction = (k**2 + susceptibility) / (z - 2 * zeta * susceptibility)  # Z' = -2 (1 + ζ Z)
            zeta -= correction
            if abs(correction) < 1e-13 * abs(zeta):
                break
    return complex(zeta * np.sqrt(2) * target)


def hermite_eigenvalues(
    wavenumber: float, collision_strength: float, temperature: float = 1.0, modes: int | None = None
) -> np.ndarray:
    """Eigenvalues λ (perturbations ~ e^{λ t}) of the collisional plasma about its Maxwellian.

    With f = M(v) [ 1 + e^{ikx} Σ_n c_n He_n(v/s) / √(n!) ], s = √T, and ikE = c_0 (Gauss),

        dc_n/dt = -iks ( √n c_{n-1} + √(n+1) c_{n+1} ) - n κ c_n - δ_{n1} i c_0 / (ks).

    Scaling c_0 makes the matrix symmetric. The field changes the first coupling from ks to √((ks)² + 1).

    Args:
        wavenumber: k > 0.
        collision_strength: κ > 0.
        temperature: T > 0.
        modes: number of Hermite functions; the others are set to zero. An eigenvector of damping rate γ grows with
            n like exp(2 γ n^{1/2} / (ks)) and then decays like exp(-2/3 κ n^{3/2} / (ks)). With the default it
            decays to e^-40 at Landau's γ. More strongly damped ones may not converge.

    Returns:
        Complex eigenvalues, shape (modes,), least damped first.

    Raises:
        ValueError: κ = 0, or so small that too many modes are needed.
    """
    _require_positive(wavenumber=wavenumber, collision_strength=collision_strength, temperature=temperature)
    if modes is None:
        modes = _enough_modes(wavenumber, collision_strength, temperature)
    if not 2 <= modes <= MAX_MODES:
        raise ValueError(
            f"{modes} Hermite modes, not in [2, {MAX_MODES}]: where weak collisions ask for more, "
            "take landau_root, which differs by a term proportional to the collision strength"
        )
    coupling = wavenumber * np.sqrt(temperature * np.arange(1.0, modes))
    coupling[0] = np.sqrt(wavenumber**2 * temperature + 1)
    matrix = -1j * (np.diag(coupling, 1) + np.diag(coupling, -1))
    matrix -= collision_strength * np.diag(np.arange(modes))
    eigenvalues = np.linalg.eigvals(matrix)
    return eigenvalues[np.argsort(-eigenvalues.real)]


def landau_rate(wavenumber: float, collision_strength: float, temperature: float = 1.0) -> tuple[float, float]:
    """(γ, ω) of the least damped oscillating mode ~ e^{γ t} cos(ω t), any κ ≥ 0.

    For κ = 0 it comes from ``landau_root``. Otherwise it comes from ``hermite_eigenvalues``, if two thirds of the
    modes give the same to 1e-8. Wave energies decay at the rate 2 γ. Modes that do not oscillate are ignored.

    Args:
        wavenumber: k > 0.
        collision_strength: κ ≥ 0.
        temperature: T > 0.

    Raises:
        ValueError: there is no converged oscillating mode. It is overdamped (κ above about 2 at small k), or Landau
            damping is so strong or κ > 0 so small that the Hermite series fails in double precision.
    """
    _require_positive(wavenumber=wavenumber, temperature=temperature)
    if collision_strength == 0:
        root = landau_root(wavenumber, np.sqrt(temperature))
        return root.imag, root.real
    _require_positive(collision_strength=collision_strength)
    modes = _enough_modes(wavenumber, collision_strength, temperature)
    rates = []
    for n in (2 * modes // 3, modes):
        eigenvalues = hermite_eigenvalues(wavenumber, collision_strength, temperature, n)
        oscillating = eigenvalues[eigenvalues.imag > 1e-6]
        rates.append(oscillating[0] if len(oscillating) else np.nan)
    if not abs(rates[0] - rates[1]) < 1e-8:
        raise ValueError(
            f"no converged oscillating mode at k = {wavenumber}, kappa = {collision_strength}, "
            f"T = {temperature}: waves are overdamped at large kappa (see hermite_eigenvalues), "
            "and at small kappa landau_root is close"
        )
    return float(rates[1].real), float(rates[1].imag)


def linear_field_history(
    wavenumber: float,
    collision_strength: float,
    temperature: float,
    beams: Sequence[tuple[float, float, float]],
    times: Sequence[float],
    modes: int = 400,
) -> np.ndarray:
    """|E_k(t)| / |E_k(0)| of a small wave on collisional beams, f = f0(v, t) + α g(v, t) e^{ikx}, g = f0 at t = 0.

    Collisions with a bath relax the beams while the wave grows, so there is no single growth rate. With a_n = ∫ f0
    He_n(v/s) / √(n!) dv, s = √T, the background is a_n(t) = a_n(0) e^{-n κ t}, and the wave obeys

        dc_n/dt = -iks ( √n c_{n-1} + √(n+1) c_{n+1} ) - n κ c_n - i √n a_{n-1}(t) c_0 / (ks).

    For a Maxwellian this is the equation of :func:`hermite_eigenvalues`.

    Args:
        wavenumber: k > 0.
        collision_strength: κ > 0.
        temperature: T > 0 of the bath.
        beams: (density n_s, mean velocity v_s, thermal speed σ_s) of each beam; densities sum to 1.
        times: increasing, from 0.
        modes: number of Hermite functions; the others are set to zero.

    Returns:
        Shape (len(times),).
    """
    _require_positive(wavenumber=wavenumber, collision_strength=collision_strength, temperature=temperature)
    s, n = np.sqrt(temperature), np.arange(modes)
    # E[He_n(v/s)] / √(n!) over a Gaussian by the recurrence e_n = (m e_{n-1} + (q - 1) √(n-1) e_{n-2}) / √n,
    # m = v_s/s its mean and q = σ_s²/T its variance, from the generating function exp(m t + (q - 1) t²/2).
    background = np.zeros(modes)
    for density, velocity, thermal_speed in beams:
        mean, excess = velocity / s, thermal_speed**2 / temperature - 1
        moments = np.zeros(modes)
        moments[0] = 1.0
        for m in range(1, modes):
            before = np.sqrt(m - 1) * moments[m - 2] if m > 1 else 0.0
            moments[m] = (mean * moments[m - 1] + excess * before) / np.sqrt(m)
        background += density * moments
    coupling = wavenumber * s * np.sqrt(n[1:])

    def rate(time: float, c: np.ndarray) -> np.ndarray:
        change = -n * collision_strength * c
        change[1:] -= 1j * coupling * c[:-1]
        change[:-1] -= 1j * coupling * c[1:]
        relaxed = background[:-1] * np.exp(-n[:-1] * collision_strength * time)
        change[1:] -= 1j * np.sqrt(n[1:]) * relaxed * c[0] / (wavenumber * s)
        return change

    start = background.astype(complex)
    solution = solve_ivp(rate, (times[0], times[-1]), start, t_eval=times, rtol=1e-8, atol=1e-12, method="DOP853")
    return np.abs(solution.y[0] / start[0])


def bernstein_frequencies(
    wavenumber: float, magnetic_field: float, terms: Sequence[SpeciesTerm], count: int = 4
) -> np.ndarray:
    """Real frequencies of electrostatic waves across a uniform magnetic field, k perpendicular to B.

    They are the zeros of

        ε = 1 - Σ_a ω_a² / (k σ_a)² Σ_{n>0} e^-l I_n(l) 2 n² Ω_a² / (ω² - n² Ω_a²),
        l = (k σ_a / Ω_a)²,   Ω_a = |q_a| B / m_a.

    Between poles ε rises with ω² from -∞ to ∞. So each gap between successive harmonics n
    Ω_a of any species contains one frequency. Below the lowest harmonic there is none. For k → 0 one species has
    its upper hybrid frequency, √(ω_a² + Ω_a²), and the harmonics n Ω_a with n > 1.

    Sources: Bernstein 1958, doi:10.1103/PhysRev.109.10; T. H. Stix, Waves in Plasmas (1992).

    Args:
        wavenumber: k > 0.
        magnetic_field: B > 0, in units where a unit charge of unit mass gyrates at the frequency B.
        terms: the Maxwellians of all mobile species, without drift.
        count: number of frequencies. With ions and electrons many of the lowest lie between harmonics of the ions.

    Returns:
        Frequencies, shape (count,), in rising order.

    Raises:
        ValueError: arguments out of range, no charged species, or a drift, which B would turn.
    """
    _require_positive(wavenumber=wavenumber, magnetic_field=magnetic_field, count=count)
    terms = [term for term in terms if term.charge]
    if not terms:
        raise ValueError("a wave needs at least one charged species")
    if any(term.drift for term in terms):
        raise ValueError("a drift across the magnetic field is no steady state: every drift must be 0")
    poles_of, strengths_of = [], []
    for term in terms:
        gyrofrequency = abs(term.charge) * magnetic_field / term.mass
        thermal = wavenumber * term.thermal_speed
        gyration = (thermal / gyrofrequency) ** 2
        # e^-l I_n(l) falls like exp(-n²/2l) for large l and like (l/2)^n/n! for small l.
        n = np.arange(1, count + 31 + int(9 * np.sqrt(gyration)))
        poles_of.append((n * gyrofrequency) ** 2)
        strengths_of.append(2 * (term.plasma_frequency / thermal) ** 2 * poles_of[-1] * ive(n, gyration))
    poles, strengths = np.concatenate(poles_of), np.concatenate(strengths_of)
    # Harmonics that differ only by rounding leave no gap.
    distinct = np.unique(poles)
    distinct = distinct[np.append(True, np.diff(distinct) > 1e-12 * distinct[1:])]

    def epsilon(square: float) -> float:
        return float(1 - (strengths / (square - poles)).sum())

    squares = np.empty(count)
    for i, (low, high) in enumerate(zip(distinct[:count], distinct[1 : count + 1], strict=True)):
        margin = 1e-11 * (high - low)
        # The zero of a harmonic that is hardly coupled lies within the margin.
        if epsilon(low + margin) >= 0:
            squares[i] = low
        elif epsilon(high - margin) <= 0:
            squares[i] = high
        else:
            squares[i] = brentq(epsilon, low + margin, high - margin, xtol=1e-14 * high, rtol=1e-13)
    return np.sqrt(squares)


def _newton(starts: np.ndarray, wavenumber: float, terms: Sequence[SpeciesTerm]) -> np.ndarray:
    """Zeros of the dielectric function that Newton's method reaches from the starts, with repetitions."""
    frequency = starts.astype(complex)
    found = []
    # Far below the axis Z overflows. Starts that move there become nan.
    with np.errstate(all="ignore"):
        for _ in range(60):
            epsilon, slope = np.ones_like(frequency), np.zeros_like(frequency)
            for term in terms:
                width = np.sqrt(2) * wavenumber * term.thermal_speed
                zeta = (frequency - wavenumber * term.drift) / width
                response = _thermal_response(zeta)
                strength = 2 * (term.plasma_frequency / width) ** 2
                epsilon += strength * response
                # (1 + ζ Z)' with Z' = -2 (1 + ζ Z)
                slope += strength * ((response - 1) / zeta - 2 * zeta * response) / width
            correction = epsilon / slope
            frequency = frequency - correction
            converged = np.abs(correction) < 1e-9 * np.abs(frequency)
            found.append(frequency[converged])
            frequency = frequency[~converged & np.isfinite(frequency)]
    roots = np.concatenate(found)
    if not len(roots):
        raise ValueError(f"no mode found at k = {wavenumber}")
    return roots


def _zeros_above(floor: float, wavenumber: float, terms: Sequence[SpeciesTerm]) -> int:
    """Number of zeros of the dielectric function with Im ω > floor, by the argument principle.

    The function has no poles and tends to 1 far away, so the line Im ω = floor is the whole contour.
    """
    widths = {np.sqrt(2) * wavenumber * term.thermal_speed for term in terms}
    widths |= {term.plasma_frequency for term in terms}
    centres = {wavenumber * term.drift for term in terms}
    farthest = 1e3 * (max(widths) + max(abs(centre) for centre in centres))
    steps = [width * np.sinh(np.linspace(-1, 1, 801) * np.arcsinh(farthest / width)) for width in widths]
    real = np.unique(np.concatenate([centre + step for centre in centres for step in steps]))
    with np.errstate(all="ignore"):
        epsilon = np.asarray(species_dielectric_function(real + 1j * floor, wavenumber, terms))
        for _ in range(60):
            turn = np.angle(epsilon[1:] / epsilon[:-1])
            coarse = np.flatnonzero(np.abs(turn) > 0.5)
            if not len(coarse):
                break
            middle = 0.5 * (real[coarse] + real[coarse + 1])
            real = np.insert(real, coarse + 1, middle)
            between = np.asarray(species_dielectric_function(middle + 1j * floor, wavenumber, terms))
            epsilon = np.insert(epsilon, coarse + 1, between)
    turns = float(turn.sum()) / (2 * np.pi)
    if not abs(turns - round(turns)) < 1e-2:
        raise ValueError(f"the zeros above Im omega = {floor:.3g} at k = {wavenumber} cannot be counted: give a guess")
    return round(turns)


def _thermal_response(zeta: complex | np.ndarray) -> complex | np.ndarray:
    """1 + ζ Z(ζ), also for cold species, where 1 and ζ Z(ζ) cancel except for -1/(2 ζ²).

    There it is the asymptotic series -Σ_n (2n - 1)!! / (2 ζ²)^n, with ten terms. Below the real axis Landau's
    continuation adds 2 i √π ζ exp(-ζ²).
    """
    far = np.abs(zeta) > 12  # so that the eleventh term is below 1e-14 of the first
    square = np.where(far, zeta, 1.0) ** 2
    series = np.ones_like(square)
    for n in range(10, 1, -1):
        series = 1 + (2 * n - 1) / (2 * square) * series
    with np.errstate(over="ignore", invalid="ignore"):
        continuation = np.where(np.imag(zeta) < 0, 2j * np.sqrt(np.pi) * zeta * np.exp(-square), 0.0)
    return np.where(far, continuation - series / (2 * square), 1 + zeta * _plasma_dispersion(zeta))


def _plasma_dispersion(zeta: complex | np.ndarray) -> complex | np.ndarray:
    return 1j * np.sqrt(np.pi) * wofz(zeta)


def _enough_modes(wavenumber: float, collision_strength: float, temperature: float) -> int:
    """n with 2/3 κ n^{3/2} - 2 γ n^{1/2} > 40 ks at Landau's γ (see hermite_eigenvalues)."""
    thermal_rate = wavenumber * np.sqrt(temperature)
    damping = abs(landau_root(thermal_rate).imag) + collision_strength
    diffusive = (60 * thermal_rate / collision_strength) ** (2 / 3)
    return 30 + int(np.ceil(diffusive + 3 * damping / collision_strength))


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
