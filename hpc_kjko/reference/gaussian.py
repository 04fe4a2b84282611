"""Exact solutions of the linear Vlasov-Fokker-Planck equation in a quadratic potential.

For a = -Λ x (φ = 1/2 x^T Λ x) a Gaussian density of z = (x, v) stays Gaussian, with

    d μ/dt = A μ,   d Σ/dt = A Σ + Σ A^T + D,
    A = [[0, I], [-Λ, -κ I]],   D = diag(0, 2 κ T I).

Arrays of z hold the d positions first, then the d velocities. Densities integrate to 1. Source: H. Risken,
The Fokker-Planck Equation (2nd ed., 1996), section 3.2, doi:10.1007/978-3-642-61544-3.
"""

import numpy as np
import scipy  # its parts are loaded when they are first used


def gaussian_moments(
    mean0: np.ndarray,
    covariance0: np.ndarray,
    stiffness: np.ndarray | float,
    collision_strength: float,
    temperature: float,
    times: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of z = (x, v) at the given times, exact to rounding.

    With Φ = e^{At}, μ(t) = Φ μ(0) and Σ(t) = Φ Σ(0) Φ^T + Q, Q = ∫_0^t e^{As} D e^{A^T s}
    ds; Φ and Q come from one matrix exponential (Van Loan 1978, doi:10.1109/TAC.1978.1101743).

    Args:
        mean0: (2d,) initial mean.
        covariance0: (2d, 2d) initial covariance.
        stiffness: (d, d) symmetric Λ, or a number for d = 1; in ω_p².
        collision_strength: κ ≥ 0, in ω_p.
        temperature: T of the bath, as a velocity squared.
        times: (n,) times ≥ 0, in any order, in 1/ω_p.

    Returns:
        Means, (n, 2d), and covariances, (n, 2d, 2d).

    Raises:
        ValueError: shapes that do not match, an unsymmetric matrix, or a negative rate, temperature or time.
    """
    stiffness = _symmetric(stiffness, "stiffness")
    covariance0 = _symmetric(covariance0, "covariance0")
    mean0 = np.asarray(mean0, dtype=np.float64)
    times = np.asarray(times, dtype=np.float64)
    d = len(stiffness)
    if mean0.shape != (2 * d,) or covariance0.shape != (2 * d, 2 * d):
        raise ValueError(
            f"stiffness is {d}x{d}, so the mean needs shape ({2 * d},), the covariance ({2 * d}, {2 * d}); "
            f"got {mean0.shape} and {covariance0.shape}"
        )
    if times.ndim != 1 or (times < 0).any() or collision_strength < 0 or temperature < 0:
        raise ValueError("times must be a 1D array; times, collision_strength, temperature not negative")

    identity, zero = np.eye(d), np.zeros((d, d))
    drift = np.block([[zero, identity], [-stiffness, -collision_strength * identity]])
    diffusion = np.block([[zero, zero], [zero, 2 * collision_strength * temperature * identity]])
    means = np.empty((len(times), 2 * d))
    covariances = np.empty((len(times), 2 * d, 2 * d))
    for i, t in enumerate(times):
        transition, noise = _transition(drift, diffusion, t)
        means[i] = transition @ mean0
        covariances[i] = transition @ covariance0 @ transition.T + noise
    return means, covariances


def gaussian_equilibrium(stiffness: np.ndarray | float, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean (2d,), zero, and covariance (2d, 2d), diag(T Λ^-1, T I), of the equilibrium.

    Raises:
        ValueError: stiffness that is not symmetric positive definite: then there is no equilibrium.
    """
    stiffness = _symmetric(stiffness, "stiffness")
    d = len(stiffness)
    if np.linalg.eigvalsh(stiffness).min() <= 0:
        raise ValueError("the potential does not confine: stiffness must be positive definite")
    covariance = temperature * np.eye(2 * d)
    covariance[:d, :d] = temperature * np.linalg.inv(stiffness)
    return np.zeros(2 * d), covariance


def gaussian_log_density(z: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """log of the normalised Gaussian density at z, shape (..., m) for a mean (m,); returns shape (...).

    Raises:
        numpy.linalg.LinAlgError: covariance that is not positive definite.
    """
    factor = scipy.linalg.cholesky(covariance, lower=True)
    z = np.asarray(z, dtype=np.float64)
    whitened = scipy.linalg.solve_triangular(factor, (z - mean).reshape(-1, len(factor)).T, lower=True)
    log_norm = np.log(np.diag(factor)).sum() + 0.5 * len(factor) * np.log(2 * np.pi)
    return (-0.5 * (whitened**2).sum(axis=0) - log_norm).reshape(z.shape[:-1])


def gaussian_entropy(covariance: np.ndarray) -> float:
    """∫ f log f = -1/2 log det(2 π e Σ), minus Shannon's entropy, for a covariance (m, m)."""
    _, log_det = np.linalg.slogdet(2 * np.pi * np.e * np.atleast_2d(covariance))
    return -0.5 * log_det


def gaussian_relative_entropy(
    mean: np.ndarray, covariance: np.ndarray, reference_mean: np.ndarray, reference_covariance: np.ndarray
) -> float:
    """Kullback-Leibler divergence ∫ f log(f/g) of a Gaussian f from a Gaussian g (the reference).

    1/2 [ tr(S_g^-1 S_f) + (μ_g - μ_f)^T S_g^-1 (μ_g - μ_f) - m + log(det S_g / det S_f) ].

    Raises:
        numpy.linalg.LinAlgError: reference covariance that is not positive definite.
    """
    factor = scipy.linalg.cho_factor(reference_covariance)
    shift = np.asarray(mean) - reference_mean
    quadratic = (
        np.trace(scipy.linalg.cho_solve(factor, covariance))
        + shift @ scipy.linalg.cho_solve(factor, shift)
        - len(shift)
    )
    return 0.5 * quadratic + gaussian_entropy(covariance) - gaussian_entropy(reference_covariance)


def _transition(drift: np.ndarray, diffusion: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
    """Φ = e^{At} and Q = ∫_0^t e^{As} D e^{A^T s} ds.

    Van Loan's matrix exponential contains e^{-At}, which is much larger than Q if |A| t is large. So it is computed for
    t/2^m with |A| t/2^m < 1. Then the time is doubled by Q(2s) = Φ(s) Q(s) Φ(s)^T + Q(s).
    """
    m = len(drift)
    doublings = max(0, int(np.ceil(np.log2(max(float(np.linalg.norm(drift, 1)) * time, 1.0)))))
    block = scipy.linalg.expm(np.block([[-drift, diffusion], [np.zeros((m, m)), drift.T]]) * (time / 2**doublings))
    transition = block[m:, m:].T
    noise = transition @ block[:m, m:]
    for _ in range(doublings):
        noise = transition @ noise @ transition.T + noise
        transition = transition @ transition
    return transition, 0.5 * (noise + noise.T)


def _symmetric(matrix: np.ndarray | float, name: str) -> np.ndarray:
    matrix = np.atleast_2d(np.asarray(matrix, dtype=np.float64))
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.allclose(matrix, matrix.T):
        raise ValueError(f"{name} must be a symmetric matrix")
    return matrix
