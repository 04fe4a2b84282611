"""Small departures from a Maxwellian under Coulomb collisions, without a closure: the linearised Landau operator.

Conventions and units are those of `hpc_kjko.reference.landau`.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import eval_genlaguerre, gammaln, roots_genlaguerre, roots_hermite

from hpc_kjko.reference.landau import as_times, pair, require_positive, require_strength


def small_anisotropy(temperature: float, strength: float, times: np.ndarray, order: int = 12) -> np.ndarray:
    """(T∥ - T⊥)(t) / (T∥ - T⊥)(0), shape (n,), for a small anisotropy: Coulomb, 3 dimensions, no closure.

    It starts from a bi-Maxwellian that differs little from the Maxwellian M of the temperature T. With f = M (1 + g)
    the linearised operator is symmetric in the inner product of M, and its quadratic form is

        -(g, L h) = C/2 ∫∫ M M' ( ∇g - ∇' g' )^T A(v - v') ( ∇h - ∇' h' ) dv dv'.

    The trial functions are Laguerre polynomials L_k^(5/2)(v²/2T), k < order, times the harmonics of degree 2. The
    first one alone is the bi-Maxwellian, and its rate is that of the closure. The integrals are exact, by quadrature of
    polynomials in the centre of mass and the relative velocity. The integral of the result over all times is the
    viscosity divided by n T. In units of τ = 3 √π T^(3/2) / (2 C) it is 5/6 with one polynomial and 0.965 in
    the limit. With two it is the 0.96 of S. I. Braginskii, Reviews of Plasma Physics 1, 205 (1965).

    Args:
        temperature: T > 0.
        strength: C ≥ 0, for unit density and mass.
        times: (n,) times ≥ 0, in any order.
        order: number of polynomials, from 1 to 20. With 12 the result has 5 digits until it has fallen to 1e-3.

    Raises:
        ValueError: a temperature that is not positive, a negative strength or time, an order out of range.
    """
    require_positive(temperature=temperature)
    require_strength(strength)
    times = as_times(times)
    form = _linear_form(_second_harmonics, np.ones(1), np.ones(1), np.ones(1), order)
    start = np.zeros(order)
    start[0] = 1
    return _decay(strength / temperature**1.5 * form, start, times)


def small_temperature_difference(
    temperature: float,
    masses: Sequence[float],
    densities: Sequence[float],
    charges: Sequence[float],
    strength: float,
    times: np.ndarray,
    order: int = 10,
) -> np.ndarray:
    """(T_a - T_b)(t) / (T_a - T_b)(0), shape (n,), for a small difference: Coulomb, 3 dimensions, no closure.

    It starts from Maxwellians. Then each changes its shape, by collisions within the species and with the other one.
    The method is that of `small_anisotropy`, with the polynomials L_k^(1/2)(m v²/2T), k ≤ order, for each species.
    The relaxation takes longer than by `two_temperature_relaxation`. The integral over time is longer by 43 % for equal
    masses, densities and charges, by 28 % for a mass ratio of 25, by about 12 % for 100, and by more for higher
    charges. With the default order this integral has an error of 1e-8 for equal masses, 2e-4 for a ratio of 10, 5e-3
    for 25 and 2e-2 for 100.

    Args:
        temperature: T > 0, that of both species in the end.
        masses, densities, charges, strength: as for `two_temperature_rate`.
        times: (n,) times ≥ 0, in any order.
        order: number of polynomials for each species, from 1 to 20.

    Raises:
        ValueError: not two numbers for each argument, numbers out of range, a negative time, an order out of range.
    """
    m, n, q = pair(masses, "masses"), pair(densities, "densities"), pair(charges, "charges")
    require_positive(temperature=temperature, masses=m, densities=n)
    require_strength(strength)
    times = as_times(times)
    form = _linear_form(_isotropic, m, n, q, order)
    start = np.zeros((2, order + 1))
    start[:, 1] = np.sqrt(n[::-1] / n.sum()) * [1, -1]
    return _decay(strength / temperature**1.5 * form, start.ravel(), times)


#: Gradients divided by m, without the component along the third axis, of the trial functions of one species at T = 1
#: and n = 1. A function of the order, the mass and two components of v, (points,); it returns shape (functions,
#: components, points).
_Trial = Callable[[int, float, np.ndarray, np.ndarray], np.ndarray]


def _linear_form(
    trial: _Trial, masses: np.ndarray, densities: np.ndarray, charges: np.ndarray, order: int
) -> np.ndarray:
    """The form -(g, L h) of `small_anisotropy` for C = T = 1 in the trial functions of all species.

    A depends on z alone, and rotations do not change the form. So z is along the third axis, and the centre of mass W
    is in a plane with it. This requires all harmonics of a degree, averaged. Only the components of gradients across z
    contribute. Products of their differences are even in z and in the part of W across z, so they are polynomials in
    the squares.
    """
    if not 1 <= order <= 20:
        raise ValueError(f"order must be from 1 to 20, is {order}")
    squares, square_weights = roots_genlaguerre(2 * order + 4, 0.0)
    points, point_weights = roots_hermite(2 * order + 4)
    mesh = np.meshgrid(squares, points, squares, indexing="ij")
    across, along, distance = np.sqrt(mesh[0]).ravel(), mesh[1].ravel(), np.sqrt(mesh[2]).ravel()
    weights = np.einsum("i,j,k->ijk", square_weights, point_weights / np.sqrt(np.pi), square_weights).ravel()

    count = len(masses)
    form: np.ndarray = np.zeros(())
    for a in range(count):
        for b in range(count):
            total = masses[a] + masses[b]
            reduced = masses[a] * masses[b] / total
            centre = np.sqrt(2 / total) * np.stack([across, along])
            z = np.sqrt(2 / reduced) * distance
            own = trial(order, masses[a], centre[0], centre[1] + masses[b] / total * z) / np.sqrt(densities[a])
            other = trial(order, masses[b], centre[0], centre[1] - masses[a] / total * z) / np.sqrt(densities[b])
            differences = np.zeros((count, *own.shape))
            differences[a] += own
            differences[b] -= other
            flat = (differences * np.sqrt(weights)).reshape(count * len(own), -1)
            # √(2 μ / π) is the average of 1/|z|, which leaves the weight exp(-y) of y = μ z² / 2
            coupling = densities[a] * densities[b] * (charges[a] * charges[b]) ** 2 * np.sqrt(2 * reduced / np.pi)
            form = form + 0.5 * coupling * flat @ flat.T
    return form


def _isotropic(order: int, mass: float, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """L_k^(1/2)(m v²/2), k ≤ order, of norm 1: gradients at v = (x, 0, z)."""
    y = 0.5 * mass * (x**2 + z**2)
    k = np.arange(order + 1)
    norms = np.exp(0.5 * (gammaln(k + 1.5) - gammaln(k + 1) - gammaln(1.5)))
    gradients = np.zeros((order + 1, 1, len(y)))
    for i in range(1, order + 1):
        gradients[i, 0] = -eval_genlaguerre(i - 1, 1.5, y) * x / norms[i]
    return gradients


def _second_harmonics(order: int, mass: float, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """v^T B v L_k^(5/2)(m v²/2), k < order, of norm 1: gradients at v = (x, 0, z) of five B over √5."""
    y = 0.5 * mass * (x**2 + z**2)
    v = np.stack([x, np.zeros_like(x), z])
    harmonics = np.zeros((5, 3, 3))
    for i, (row, column) in enumerate([(0, 1), (0, 2), (1, 2)]):
        harmonics[i, row, column] = harmonics[i, column, row] = np.sqrt(0.5)
    harmonics[3] = np.diag([1, -1, 0]) / np.sqrt(2)
    harmonics[4] = np.diag([-1, -1, 2]) / np.sqrt(6)
    linear = np.einsum("hij,jp->hip", harmonics, v)
    quadratic = np.einsum("hip,ip->hp", linear, v)
    # <(v^T B v)² L_k²> = 2 <v^4 L_k²> / 15 for |B| = 1
    k = np.arange(order)
    norms = np.exp(0.5 * (gammaln(k + 3.5) - gammaln(k + 1) - gammaln(1.5))) * np.sqrt(8 / 15) / mass
    gradients = np.empty((order, 5, 2, len(y)))
    for i in range(order):
        slope = -eval_genlaguerre(i - 1, 3.5, y) if i else np.zeros_like(y)
        whole = 2 / mass * eval_genlaguerre(i, 2.5, y) * linear[:, :2] + slope * quadratic[:, None] * v[:2]
        gradients[i] = whole / (np.sqrt(5) * norms[i])
    return gradients.reshape(order, 10, -1)


def _decay(form: np.ndarray, start: np.ndarray, times: np.ndarray) -> np.ndarray:
    """start^T exp(-form t) start at the times, (n,). Conserved quantities have rates of 0 up to rounding."""
    rates, vectors = np.linalg.eigh(form)
    return np.exp(-np.outer(times, np.maximum(rates, 0.0))) @ (start @ vectors) ** 2
