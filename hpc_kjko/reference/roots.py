"""Complex frequencies of a wave with collisions, or with a kappa distribution, by Newton's method. Each takes
milliseconds.

Conventions and units are those of `hpc_kjko.reference.dispersion`. Its eigenvalue problem in Hermite functions is
tridiagonal. So the condition for a mode is a continued fraction in s = -i ω,

    s + b_1² / (s + d_1 + b_2² / (s + d_2 + b_3² / (s + d_3 + ...))) = 0,
    b_1² = k² T + 1,   b_n² = n k² T,

where d_n is the rate at which collisions damp the n-th function. For a bath d_n = n κ. The operator of Lenard and
Bernstein for like particles (Dougherty 1964, Phys. Fluids 7, 1788) conserves momentum and energy. So d_1 = 0. Of the
functions of degree two only the energy, He_2(v_x) + He_2(v_y) + ..., is not damped. The functions He_n(v_x)
He_2(across) form a second chain that meets the first at n = 2.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import gammaln

from hpc_kjko.reference.dispersion import landau_root

#: The largest number of Hermite functions.
MOST_FUNCTIONS = 20_000

Dielectric = Callable[[complex, float], complex]


def bath_root(wavenumber: float, collision_strength: float, temperature: float = 1.0) -> complex:
    """ω of the wave in a plasma in equilibrium with a bath. Without collisions it is the least damped wave of
    Landau.

    Args:
        wavenumber: k > 0.
        collision_strength: κ ≥ 0.
        temperature: T > 0.

    Raises:
        ValueError: arguments out of range, or there is no such wave: it is overdamped, or κ > 0 is too small.
    """
    return _followed(wavenumber, collision_strength, temperature, 0)


def dougherty_root(
    wavenumber: float, collision_strength: float, temperature: float = 1.0, velocity_dims: int = 1
) -> complex:
    """ω of the same wave, if like particles collide by the operator of Lenard, Bernstein and Dougherty.

    For κ → ∞ it is a sound wave of a charged gas, ω² = 1 + (d + 2)/d k² T.

    Args:
        wavenumber: k > 0.
        collision_strength: κ ≥ 0.
        temperature: T > 0.
        velocity_dims: d, the number of velocity directions that share the energy.

    Raises:
        ValueError: as :func:`bath_root`.
    """
    if velocity_dims not in (1, 2, 3):
        raise ValueError(f"velocity_dims must be 1, 2 or 3, is {velocity_dims}")
    return _followed(wavenumber, collision_strength, temperature, velocity_dims)


def kappa_root(wavenumber: float, kappa_index: float, temperature: float = 1.0) -> complex:
    """ω of the least damped mode of a collisionless plasma with a kappa distribution of the velocity along k.

    g ~ (1 + v²/((2 κ - 3) T))^-κ has the variance T. For κ → ∞ it is a Maxwellian. The dispersion
    relation is

        ε = 1 - 1/k² ∫ g'(v) / (v - ω/k) dv = 0,

    integrated along a line Im v = -a below the pole at ω/k. Source: Summers and Thorne 1991, doi:10.1063/1.859653,
    for the distribution and its waves.

    Args:
        wavenumber: k > 0.
        kappa_index: κ > 3/2.
        temperature: T > 0.

    Raises:
        ValueError: arguments out of range, or the damping is so strong that the line cannot pass below the pole.
    """
    if not (wavenumber > 0 and temperature > 0 and kappa_index > 1.5):
        raise ValueError("wavenumber and temperature must be positive, and kappa_index above 3/2")
    square = (2 * kappa_index - 3) * temperature
    below = min(0.9 * np.sqrt(square), 2.5 * np.sqrt(temperature))  # g has singularities at ±i √(square)
    scale = np.sqrt(temperature)
    step = 0.002
    s = np.arange(-9, 9, step)
    v = scale * np.sinh(s) - 1j * below
    log_norm = gammaln(kappa_index) - gammaln(kappa_index - 0.5) - 0.5 * np.log(np.pi * square)
    slope = -2 * kappa_index * v / square * np.exp(log_norm - (kappa_index + 1) * np.log1p(v**2 / square))
    weight = slope * scale * np.cosh(s) * step

    def dielectric(frequency: complex, k: float) -> complex:
        return complex(1 - (weight / (v - frequency / k)).sum() / k**2)

    found = root_of(dielectric, wavenumber, landau_root(wavenumber, scale))
    if not found.imag / wavenumber > -below:
        raise ValueError(f"the mode at k = {wavenumber} is damped too strongly for this method")
    return found


def root_of(dielectric: Dielectric, wavenumber: float, guess: complex) -> complex:
    """The zero of a dielectric function of (ω, k) near a guess, by the secant method.

    Raises:
        ValueError: the method does not converge.
    """
    before, now = guess * (1 + 1e-4) + 1e-6j, guess
    with np.errstate(all="ignore"):  # Z overflows far below the real axis
        left, right = dielectric(before, wavenumber), dielectric(now, wavenumber)
        for _ in range(60):
            if right == left or not np.isfinite(right):
                break
            before, now, left = now, now - right * (now - before) / (right - left), right
            right = dielectric(now, wavenumber)
            if abs(now - before) < 1e-10 * abs(now):
                return now
    raise ValueError(f"no mode was found near omega = {guess:.4g} at k = {wavenumber}")


def branch_of(dielectric: Dielectric, wavenumbers: np.ndarray, wavenumber: float, root: complex) -> np.ndarray:
    """ω of one mode at other wavenumbers [n], followed from the wavenumber where it is known; NaN where it is lost.

    Args:
        dielectric: a function of (ω, k).
        wavenumbers: in any order.
        wavenumber: where ω is known.
        root: ω there.
    """
    found = np.full(len(wavenumbers), complex(np.nan, np.nan))
    order = np.argsort(wavenumbers)
    above = [i for i in order if wavenumbers[i] >= wavenumber]
    for side in (above, [i for i in order[::-1] if wavenumbers[i] < wavenumber]):
        k, now, before = wavenumber, root, None
        for i in side:
            target = float(wavenumbers[i])
            steps = max(1, int(np.ceil(abs(target - k) / (0.05 * max(k, target)))))
            try:
                for between in np.linspace(k, target, steps + 1)[1:]:
                    guess = now if before is None else 2 * now - before
                    before, now = now, root_of(dielectric, float(between), guess)
            except ValueError:
                break
            k, found[i] = target, now
            before = None  # the next step may have another length
    return found


def _followed(wavenumber: float, strength: float, temperature: float, dims: int) -> complex:
    """The root, followed from that without collisions, while collisions grow by a fourth of their strength at a
    time.
    """
    if not strength >= 0:
        raise ValueError(f"collision_strength must not be negative, is {strength}")
    k = wavenumber * np.sqrt(temperature)
    root = landau_root(k)
    if strength == 0:
        return root
    functions = 40 + int((80 * k / strength) ** (2 / 3) + 4 * abs(root.imag) / strength)
    if functions > MOST_FUNCTIONS:
        raise ValueError(f"kappa = {strength} is too small: at k = {wavenumber} take landau_root")
    first = min(strength, max(0.05, 0.1 * strength))
    steps = 1 + int(np.ceil(np.log(strength / first) / np.log(1.25)))
    for now in np.geomspace(first, strength, steps):
        root = root_of(lambda omega, k, now=now: _chain(omega, k, now, dims, functions), k, root)  # type: ignore[misc]
    if not root.real > 1e-3:
        raise ValueError(f"the wave at k = {wavenumber}, kappa = {strength} is overdamped")
    return complex(root)


def _chain(frequency: complex, k: float, strength: float, dims: int, functions: int) -> complex:
    """The continued fraction for T = 1: of a bath (dims = 0), or of like particles with ``dims`` velocity
    directions.
    """
    s = -1j * frequency
    first = [0.0, strength] if dims == 0 else [0.0, 0.0]
    tail: complex = 0.0
    for n in range(functions, 2, -1):  # the part of the fraction below b_n²
        tail = n * k**2 / (s + n * strength + tail)
    second: complex = s + 2 * strength
    if dims:
        energy = 1 / dims  # cos² of the angle between He_2(v_x) and the energy
        across: complex = 0.0
        for n in range(functions, 0, -1):
            across = n * k**2 / (s + (n + 2) * strength + across)
        other = s + 2 * strength * energy + across
        second = s + 2 * strength * (1 - energy) - 4 * strength**2 * energy * (1 - energy) / other
    return s + (k**2 + 1) / (s + first[1] + 2 * k**2 / (second + tail))
