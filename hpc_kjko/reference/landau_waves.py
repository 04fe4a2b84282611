"""Small electrostatic waves under Landau collisions: frequency, damping, and the field in time, without a closure.

Conventions and units are those of `hpc_kjko.reference.landau`. The wave varies along the first component of v. A fixed
background neutralises the plasma. With f = M (1 + g), the Maxwellian M of temperature 1, and g ~ exp(ikx),

    ∂t g = -i k v_x g + E v_x + L g,   i k E = ∫ M g dv,

where L is the linearised operator, C times that of C = 1. For another temperature T use k √T and C T^(γ/2).

g is expanded in harmonics of degree l about the x axis times Laguerre polynomials of degree n in y = |v|²/2,

    φ_nl ~ (-1)^n L_n^{(l + d/2 - 1)}(y) |v|^l P_l(v_x/|v|),   <φ_nl²> = 1 over M,   2n + l ≤ order.

P_l are the polynomials of Legendre for d = 3, and those of Chebyshev for d = 2. Streaming couples l to l - 1 and l + 1.
L does not change l: with u = (v - v') / √2 and w = (v + v') / √2, for C = 1,

    -(g, L h) = 2^(γ/2 + 1) ∫∫ M(u) M(w) |u|^γ (u x ∂u G) . (u x ∂u H) du dw,   G = g(v) + g(v').

So only the harmonics of u in G contribute: those of even degree q, each with the factor q (q + d - 2). exp(s.v - s²/2)
generates the φ_nl(v). It is the product of the same functions of w and u with s / √2. So φ_nl(v) is a sum of
products of such polynomials of w and of u. The remaining integrals are over |u|. There L_n^{(p)} is a sum of
L_j^{(p + γ/2)}. For γ ≤ 0 all terms of an element have the same sign, so nothing cancels at any order. Density,
momentum and energy have no q ≥ 2. So they are conserved exactly at any order.

Collisions alone would need a high order. The wave moves to ever higher degrees, and for small C it would be reflected
from the last one. So it is absorbed there, by 4 k √(order) ((2n + l) / order)^6 on the diagonal, as in the paper of
Parker and Dellar. At any fixed degree this tends to 0 as the order grows. With it Landau damping is also correct
without collisions.

For γ < 0 fast particles hardly collide, and some of their modes hardly decay. These are absorbed too. In fields up
to t = 90 at k = 0.5 they are invisible, to 1e-6 of the wave.

Sources: L. D. Landau, J. Phys. USSR 10, 25 (1946); M. Moshinsky, Nucl. Phys. 13, 104 (1959) for the sum of products; J.
T. Parker, P. J. Dellar, doi:10.1017/S0022377814001287.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy  # its modules are loaded when they are first used
from scipy.special import gammaln

from hpc_kjko.reference.dispersion import landau_root
from hpc_kjko.reference.landau import COULOMB, as_times, require_positive, require_strength

# At this order building the matrix takes some seconds.
MAX_ORDER = 200
# The last third of the order may change a frequency by at most this fraction.
_CONVERGED = 1e-4


def damping(wavenumber: float, strength: float, exponent: float = COULOMB, dims: int = 3, order: int = 60) -> complex:
    """Complex frequency ω, fields ~ exp(-i ω t), of the wave that without collisions is the least damped one of
    Landau.

    Re ω > 0, and -Im ω > 0 is the rate at which the field decays. The mode is followed from `landau_root` as C
    grows. In all searches no other oscillating mode was less damped. For C → ∞ it is a sound wave of a charged
    gas, ω² = 1 + (d + 2)/d k². Viscosity and heat conduction damp it, and these fall as 1/C.

    Args:
        wavenumber: k > 0, in inverse Debye lengths.
        strength: C ≥ 0, for unit density and mass.
        exponent: γ.
        dims: d, 2 or 3.
        order: highest degree of the polynomials, up to MAX_ORDER. At k = 0.5, for C from 0 to 0.4 and γ from -3 to
            0, the error is at most 8e-6 for order 40, 1e-6 for 60 and 3e-7 for 80. k = 1 needs up to 150, which takes a
            few seconds.

    Returns:
        ω, in ω_p.

    Raises:
        ValueError: arguments out of range, or an order that is too low: two thirds of it change ω by more than
            1e-4.
    """
    _require(wavenumber, strength, exponent, dims, order)
    found = [_followed(wavenumber, strength, exponent, dims, degree) for degree in (2 * order // 3, order)]
    if not abs(found[1] - found[0]) < _CONVERGED * abs(found[1]):
        raise ValueError(
            f"the wave at k = {wavenumber}, C = {strength} is not converged: orders of {2 * order // 3} and {order} "
            f"give {found[0]:.6g} and {found[1]:.6g}; give a higher order"
        )
    return found[1]


def field_history(
    wavenumber: float,
    strength: float,
    times: np.ndarray,
    exponent: float = COULOMB,
    dims: int = 3,
    order: int = 60,
) -> np.ndarray:
    """E_k(t) / E_k(0), shape (n,) and real, from f = M (1 + a cos kx) at t = 0, for small a.

    E = (a/k) sin kx times this ratio. After two or three periods it is the wave of `damping`. A fit of the first
    periods gives other rates. So if you compare it with another result, fit both over the same times. The default order
    has an error of at most 2e-7 at k = 0.5, for C from 0 to 0.4 and γ from -3 to 0, up to t = 40.

    For the other arguments see `damping`.

    Args:
        times: (n,) times ≥ 0, in any order.

    Raises:
        ValueError: arguments out of range.
    """
    _require(wavenumber, strength, exponent, dims, order)
    times = as_times(times)
    if not times.size or times.max() == 0:
        return np.ones(len(times))
    matrix = _matrix(wavenumber, strength, exponent, dims, order)
    count = int(np.ceil(times.max() * 10 * np.hypot(1, wavenumber)))
    grid = np.linspace(0, times.max(), count + 1)
    step = grid[1]

    # Padé approximation of exp of degrees 4 and 5, damped at ∞, in partial fractions.
    above = np.array([1 / 3024, 1 / 126, 1 / 12, 4 / 9, 1])
    below = np.array([-1 / 15120, 5 / 3024, -5 / 252, 5 / 36, -5 / 9, 1])
    poles = np.roots(below)
    poles = poles[poles.imag > -1e-9]
    residues = np.polyval(above, poles) / np.polyval(np.polyder(below), poles)
    residues[poles.imag > 1e-9] *= 2  # stands for the complex conjugate too
    one = scipy.sparse.identity(matrix.shape[0], format="csc")
    factors = [scipy.sparse.linalg.splu((step * matrix - pole * one).tocsc(), permc_spec="NATURAL") for pole in poles]

    rate = matrix[0].toarray()[0]
    second = matrix.T @ rate
    state = np.zeros(matrix.shape[0])
    state[0] = 1
    values = np.empty((count + 1, 3))
    for i in range(count + 1):
        values[i] = state[0], rate @ state, second @ state
        if i < count:
            state = sum(
                (residue * factor.solve(state.astype(complex))).real
                for residue, factor in zip(residues, factors, strict=True)
            )
    return scipy.interpolate.BPoly.from_derivatives(grid, values)(times)


@lru_cache(maxsize=16)
def collision_blocks(exponent: float, dims: int, order: int) -> tuple[np.ndarray, ...]:
    """-(φ_nl, L φ_ml) for C = 1, one matrix for each l from 0 to order, with n and m from 0 to (order - l) // 2.

    With t = b(n - s, q) / b(n, l), b(n, l) as in `_log_coefficients`, and R the integrals of |u|^γ,

        2^(γ/2 + 3) Σ_qs q (q + d - 2) c(q, s) 2^(-n - m - l) √(t_n t_m) R(n - s, m - s, q),

    where c(q, s) is the sum over degrees p of c(p, q; l) b(s - (p + q - l)/2, p), and P_p P_q = Σ_l c(p, q; l) P_l.

    Args:
        exponent: γ, above -2 - dims and at most 1.
        dims: d, 2 or 3.
        order: highest degree, from 2 to MAX_ORDER.

    Raises:
        ValueError: arguments out of range.
    """
    _require(1.0, 0.0, exponent, dims, order)
    degrees, n = np.arange(order + 1), np.arange(order // 2 + 1)
    even = degrees[2::2]
    # The scale prevents underflow. It drops out, because all products have the same degree.
    log_b = _log_coefficients(n[:, None], degrees, dims) + (2 * n[:, None] + degrees) * np.log(order / 2)
    b = np.exp(log_b)

    # L_n^(p) = Σ_j (-γ/2)_(n - j) / (n - j)! L_j^(p + γ/2)
    rising = np.cumprod(np.append(1.0, (n[:-1] - exponent / 2) / (n[:-1] + 1)))
    lower = np.tril(rising[np.abs(n[:, None] - n)])
    radial = np.empty((len(even), len(n), len(n)))
    for i, q in enumerate(even):
        p = q + dims / 2 - 1
        norms = gammaln(n + p + exponent / 2 + 1) - gammaln(n + 1) + (gammaln(n + 1) - gammaln(n + p + 1))[:, None]
        root = np.sqrt(b[:, q])[:, None] * (-1.0) ** n[:, None] * lower * np.exp(0.5 * norms)
        radial[i] = q * (q + dims - 2) * root @ root.T

    blocks = []
    for degree in range(order + 1):
        size = (order - degree) // 2 + 1
        coupling = _products(degree, even, degrees, dims)
        block = np.zeros((size, size))
        for s in range(size):
            used = even <= degree + s
            twice = 2 * s + degree - even[used, None] - degrees
            there = (twice >= 0) & (twice % 2 == 0)
            c = (coupling[used] * np.where(there, b[np.maximum(twice // 2, 0), degrees], 0.0)).sum(axis=1)
            block[s:, s:] += np.tensordot(c, radial[: len(c), : size - s, : size - s], 1)
        scale = np.exp(-0.5 * log_b[:size, degree] - (n[:size] + degree / 2) * np.log(2))
        block *= 2 ** (exponent + 3) * scale[:, None] * scale
        block.setflags(write=False)
        blocks.append(block)
    return tuple(blocks)


# ---- the parts of the matrix


def _log_coefficients(n: np.ndarray, degree: np.ndarray, dims: int) -> np.ndarray:
    """log b(n, l) of exp(s.v) = Σ_nl b(n, l) (|s||v|)^(2n + l) P_l(cos)."""
    multiplicity = 2 * degree + 1 if dims == 3 else np.where(degree > 0, 2, 1)
    half = dims / 2
    logs = gammaln(half) - gammaln(n + 1) - gammaln(n + degree + half) - (2 * n + degree) * np.log(2)
    return np.log(multiplicity) + logs


def _products(degree: int, even: np.ndarray, degrees: np.ndarray, dims: int) -> np.ndarray:
    """c(p, q; l) of P_p P_q = Σ_l c(p, q; l) P_l, for one l, shape (even q, p)."""
    q, p = even[:, None], degrees
    if dims == 2:
        # cos p cos q = cos(p + q) / 2 + cos(p - q) / 2
        return 0.5 * (p + q == degree) + 0.5 * (abs(p - q) == degree)
    there = (abs(p - q) <= degree) & (degree <= p + q) & ((p + q + degree) % 2 == 0)
    half = np.where(there, (p + q + degree) // 2, 0)
    logs = 2 * gammaln(half + 1) - gammaln(2 * half + 2)
    for k in (p, q, degree):
        rest = np.where(there, half - k, 0)
        logs = logs + gammaln(2 * rest + 1) - 2 * gammaln(rest + 1)
    return np.where(there, (2 * degree + 1) * np.exp(logs), 0.0)


@lru_cache(maxsize=16)
def _parts(
    exponent: float, dims: int, order: int
) -> tuple[scipy.sparse.csc_matrix, scipy.sparse.csc_matrix, scipy.sparse.csc_matrix]:
    """v_x from each l to l + 1; collisions for C = 1; and the absorption for k = 1. The order is l, then n."""
    blocks = collision_blocks(exponent, dims, order)
    starts = np.cumsum([0] + [len(block) for block in blocks])
    rows, columns, values = [], [], []
    for degree in range(order):
        # v_x / |v| maps P_l, of norm 1, to this times P_(l + 1)
        turn = (degree + 1) / np.sqrt((2 * degree + 1) * (2 * degree + 3)) if dims == 3 else 0.5
        if dims == 2 and degree == 0:
            turn = np.sqrt(0.5)
        n = np.arange(len(blocks[degree + 1]))
        rows += [starts[degree + 1] + n]
        columns += [starts[degree] + n]
        values += [turn * np.sqrt(2 * n + 2 * degree + dims)]
        n = n[: len(blocks[degree]) - 1]
        rows += [starts[degree + 1] + n]
        columns += [starts[degree] + n + 1]
        values += [turn * np.sqrt(2 * n + 2)]
    shape = (starts[-1], starts[-1])
    streaming = scipy.sparse.coo_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape
    )
    whole = np.concatenate([degree + 2 * np.arange(len(block)) for degree, block in enumerate(blocks)])
    absorbed = scipy.sparse.diags(4 * np.sqrt(order) * (whole / order) ** 6, format="csc")
    return streaming.tocsc(), scipy.sparse.block_diag(blocks, format="csc"), absorbed


def _matrix(wavenumber: float, strength: float, exponent: float, dims: int, order: int) -> scipy.sparse.csc_matrix:
    """Real A of da/dt = A a, where the coefficient of φ_nl is (-i)^l a_nl, and a_00 is the density.

    a_00 is multiplied by √(1 + 1/k²). Then the field is part of the coupling of density and momentum, as in
    `hermite_eigenvalues`. A is an antisymmetric matrix minus a symmetric one that has no negative eigenvalue.
    """
    streaming, collisions, absorbed = _parts(float(exponent), dims, order)
    momentum = (order // 2) + 1
    field = scipy.sparse.coo_matrix(
        ([np.hypot(1, wavenumber) - wavenumber], ([momentum], [0])), streaming.shape
    ).tocsc()
    flow = wavenumber * streaming + field
    return (flow - flow.T - strength * collisions - wavenumber * absorbed).tocsc()


# ---- the pole of the wave


def _followed(wavenumber: float, strength: float, exponent: float, dims: int, order: int) -> complex:
    """ω of the mode at this order. It is followed while collisions grow by a third of their strength at a time."""
    rate = -1j * landau_root(wavenumber)
    first = min(strength, 0.05)
    steps = 1 + int(np.ceil(np.log(strength / first) / np.log(4 / 3))) if strength > 0 else 1
    for now in np.geomspace(first, strength, steps) if strength > 0 else [0.0]:
        rate = _pole(_matrix(wavenumber, float(now), exponent, dims, order), rate)
    return 1j * rate


def _pole(matrix: scipy.sparse.csc_matrix, rate: complex) -> complex:
    """The zero of 1 / e^T (s - A)^-1 e near s = rate, by Newton's method. e is the density, and the zero is an
    eigenvalue of A.
    """
    one = scipy.sparse.identity(matrix.shape[0], format="csc")
    density = np.zeros(matrix.shape[0], dtype=complex)
    density[0] = 1
    for _ in range(30):
        factor = scipy.sparse.linalg.splu((rate * one - matrix).tocsc(), permc_spec="NATURAL")
        right, left = factor.solve(density), factor.solve(density, "T")
        correction = right[0] / (left @ right)
        rate -= correction
        if abs(correction) < 1e-9 * abs(rate):
            return complex(rate)
    raise ValueError(
        f"no wave was found near omega = {1j * rate:.3g}: the order is too low, or the wave too much damped"
    )


def _require(wavenumber: float, strength: float, exponent: float, dims: int, order: int) -> None:
    require_positive(wavenumber=wavenumber)
    require_strength(strength)
    if dims not in (2, 3):
        raise ValueError(f"dims must be 2 or 3, is {dims}")
    if not -2 - dims < exponent <= 1:
        raise ValueError(f"exponent must be above -2 - dims and at most 1, is {exponent}")
    if not 2 <= order <= MAX_ORDER:
        raise ValueError(f"order must be from 2 to {MAX_ORDER}, is {order}")
