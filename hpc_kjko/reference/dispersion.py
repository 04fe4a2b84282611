"""Growth and damping rates of electrostatic waves, d_t f + v d_x f + E d_v f = kappa d_v( v f + T d_v f ).

Perturbations exp(ikx - i omega t) of a homogeneous state over a fixed neutralising background.
Units: omega_p = 1, mean density 1; k is in omega_p/velocity, and thermal speeds are standard deviations of v.

Without collisions the state is a sum of Maxwellian beams and omega is a zero of the dielectric function,
continued below the real axis (Landau 1946) by the plasma dispersion function (Fried & Conte 1961)

    Z(zeta) = i sqrt(pi) w(zeta),   w the Faddeeva function.

With collisions (Lenard & Bernstein 1958, doi:10.1103/PhysRev.112.1456: a fixed bath, which keeps neither
momentum nor energy) the state is the Maxwellian of the bath. Hermite functions of v turn the linearised
equation into an eigenvalue problem with -n kappa on the diagonal. For kappa > 0 the eigenmodes are discrete
and complete, and Landau's roots are limits of eigenvalues as kappa -> 0 (Ng, Bhattacharjee & Skiff 1999,
doi:10.1103/PhysRevLett.83.1974); at kappa = 0 itself any finite number of Hermite functions is undamped.
"""

from collections.abc import Sequence

import numpy as np
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from scipy.special import wofz

# The eigenvalue problem is dense: 1500 modes take some seconds.
MAX_MODES = 1500


def dielectric_function(
    frequency: complex | np.ndarray, wavenumber: float, beams: Sequence[tuple[float, float, float]]
) -> complex | np.ndarray:
    """Dielectric function of a collisionless sum of Maxwellian beams; its zeros are the modes.

    epsilon = 1 + sum_s n_s / (k sigma_s)^2 [ 1 + zeta_s Z(zeta_s) ],
    zeta_s = (omega/k - v_s) / (sqrt 2 sigma_s)

    Args:
        frequency: complex omega, any shape; so is the result.
        wavenumber: k > 0.
        beams: (density n_s, mean velocity v_s, thermal speed sigma_s) of each beam; densities sum to 1.
    """
    epsilon = 1.0 + 0.0j
    for density, velocity, thermal_speed in beams:
        zeta = (frequency / wavenumber - velocity) / (np.sqrt(2) * thermal_speed)
        epsilon += density / (wavenumber * thermal_speed) ** 2 * (1 + zeta * _plasma_dispersion(zeta))
    return epsilon


def two_stream_growth_rate(wavenumber: float, beam_velocity: float, thermal_speed: float) -> float:
    """Growth rate of the two-stream instability of f0 = 1/2 [ N(v0, sigma^2) + N(-v0, sigma^2) ].

    The unstable mode is unique and purely growing: f0 has one minimum, so the Nyquist contour encircles the
    origin at most once (Penrose 1960, doi:10.1063/1.1706024), and the symmetry omega -> -conj(omega) puts
    that one zero on the imaginary axis, where epsilon is real. There epsilon >= 1 - 1/(8 gamma^2) for every
    f0, because (1 - s)/(1 + s)^2 >= -1/8 for s >= 0: hence gamma <= 1/sqrt 8, the growth rate of cold beams.

    Args:
        wavenumber: k > 0.
        beam_velocity: v0, its sign does not matter.
        thermal_speed: sigma > 0 of each beam.

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


def landau_root(wavenumber: float, thermal_speed: float = 1.0) -> complex:
    """Complex frequency, Re omega > 0, of the least damped mode of a collisionless Maxwellian plasma.

    Newton's method on 1 + [1 + zeta Z(zeta)] / (k sigma)^2 = 0, from the Bohm-Gross frequency at a small
    k sigma, then along the branch in steps so small that it is not lost.

    Args:
        wavenumber: k > 0.
        thermal_speed: sigma = sqrt(T) > 0.

    Raises:
        ValueError: k sigma outside (0, 10].
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
            correction = (k**2 + susceptibility) / (z - 2 * zeta * susceptibility)  # Z' = -2 (1 + zeta Z)
            zeta -= correction
            if abs(correction) < 1e-13 * abs(zeta):
                break
    return complex(zeta * np.sqrt(2) * target)


def hermite_eigenvalues(
    wavenumber: float, collision_strength: float, temperature: float = 1.0, modes: int | None = None
) -> np.ndarray:
    """Eigenvalues lambda (perturbations ~ e^{lambda t}) of the collisional plasma about its Maxwellian.

    With f = M(v) [ 1 + e^{ikx} sum_n c_n He_n(v/s) / sqrt(n!) ], s = sqrt T, and ikE = c_0 (Gauss),

        dc_n/dt = -iks ( sqrt(n) c_{n-1} + sqrt(n+1) c_{n+1} ) - n kappa c_n - delta_{n1} i c_0 / (ks).

    Scaling c_0 makes the matrix symmetric; the field turns the first coupling, ks, into sqrt((ks)^2 + 1).

    Args:
        wavenumber: k > 0.
        collision_strength: kappa > 0.
        temperature: T > 0.
        modes: number of Hermite functions, the rest is set to zero. An eigenvector of damping rate gamma
            grows with n like exp(2 gamma n^{1/2} / (ks)) and then decays like exp(-2/3 kappa n^{3/2} / (ks));
            the default lets it decay to e^-40 at Landau's gamma. More strongly damped ones may not converge.

    Returns:
        Complex eigenvalues, shape (modes,), least damped first.

    Raises:
        ValueError: kappa = 0, or so small that too many modes are needed.
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
    """(gamma, omega) of the least damped oscillating mode ~ e^{gamma t} cos(omega t), any kappa >= 0.

    From ``landau_root`` for kappa = 0, else from ``hermite_eigenvalues``, if two thirds of the modes give the
    same to 1e-8. Wave energies decay at the rate 2 gamma. Modes that do not oscillate are passed over.

    Args:
        wavenumber: k > 0.
        collision_strength: kappa >= 0.
        temperature: T > 0.

    Raises:
        ValueError: no converged oscillating mode: overdamped (kappa above about 2 at small k), or Landau
            damping so strong or kappa > 0 so small that the Hermite series fails in double precision.
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
    """|E_k(t)| / |E_k(0)| of a small wave on collisional beams, f = f0(v, t) + alpha g(v, t) e^{ikx}, g = f0 at t = 0.

    Collisions with a bath relax the beams while the wave grows, so there is no single growth rate: with
    a_n = int f0 He_n(v/s) / sqrt(n!) dv, s = sqrt T, the background is a_n(t) = a_n(0) e^{-n kappa t},
    and the wave obeys

        dc_n/dt = -iks ( sqrt(n) c_{n-1} + sqrt(n+1) c_{n+1} ) - n kappa c_n - i sqrt(n) a_{n-1}(t) c_0 / (ks),

    for a Maxwellian that of :func:`hermite_eigenvalues`.

    Args:
        wavenumber: k > 0.
        collision_strength: kappa > 0.
        temperature: T > 0 of the bath.
        beams: (density n_s, mean velocity v_s, thermal speed sigma_s) of each beam; densities sum to 1.
        times: increasing, from 0.
        modes: number of Hermite functions; the rest is set to zero.

    Returns:
        Shape (len(times),).
    """
    _require_positive(wavenumber=wavenumber, collision_strength=collision_strength, temperature=temperature)
    s, n = np.sqrt(temperature), np.arange(modes)
    # E[He_n(v/s)] / sqrt(n!) over a Gaussian by the recurrence e_n = (m e_{n-1} + (q - 1) sqrt(n-1) e_{n-2}) / sqrt(n),
    # m = v_s/s its mean and q = sigma_s^2/T its variance, from the generating function exp(m t + (q - 1) t^2/2).
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


def _plasma_dispersion(zeta: complex | np.ndarray) -> complex | np.ndarray:
    return 1j * np.sqrt(np.pi) * wofz(zeta)


def _enough_modes(wavenumber: float, collision_strength: float, temperature: float) -> int:
    """n with 2/3 kappa n^{3/2} - 2 gamma n^{1/2} > 40 ks at Landau's gamma (see hermite_eigenvalues)."""
    thermal_rate = wavenumber * np.sqrt(temperature)
    damping = abs(landau_root(thermal_rate).imag) + collision_strength
    diffusive = (60 * thermal_rate / collision_strength) ** (2 / 3)
    return 30 + int(np.ceil(diffusive + 3 * damping / collision_strength))


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
