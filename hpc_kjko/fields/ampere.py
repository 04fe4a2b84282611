"""Ampère's law: E is a state of its own that follows the current. A second solver also conserves the energy of
particles and field exactly.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from hpc_kjko.fields.base import CoupledField, MeshField, charge_density, require_finite
from hpc_kjko.fields.mesh import Grid, MassMatrix, Spectrum
from hpc_kjko.fields.poisson import PoissonSolver
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.control_variate import ControlVariate
from hpc_kjko.particles.exact import UNIT
from hpc_kjko.species import Plasma, moved


class AmpereSolver(PoissonSolver):
    """∂t E = −(J − mean J), J = Σ q_a ∫ v f_a dv: Vlasov-Ampère-Fokker-Planck (paper's eq. 13). E is advanced in time.

    A drift changes E by the current of the particles half way along it. This is second order in the step. In two and
    three dimensions E takes only the curl-free part of J, Ê_t = −k (k·Ĵ)/|k|². Otherwise a curl would grow, which the
    Poisson equation does not have. Then Gauss's law ∇·E = ρ − ρ̄ holds to the accuracy of the step and the mesh; see
    :meth:`gauss_residual`. With a control variate, its weights change between drifts, and so does the noise that they
    remove. No current belongs to this change. So E changes by the field of this change of density.

    Args:
        initial: E at t = 0: "poisson", which satisfies Gauss's law, or "zero".
    """

    spectrum: Spectrum

    def __init__(
        self,
        grid: Grid,
        comm: Communicator,
        solver: Literal["root", "replicated"] = "root",
        initial: Literal["poisson", "zero"] = "poisson",
        variate: ControlVariate | None = None,
        unit: float = UNIT,
    ):
        super().__init__(grid, comm, solver, variate, unit)
        self.initial = initial

    def start(self, plasma: Plasma) -> MeshField:
        field = super().start(plasma)
        if self.initial == "zero":
            nothing = np.zeros_like(field.electric)
            return replace(field, electric=nothing, potential=np.zeros_like(field.potential))
        return field

    def drift(self, field: MeshField, plasma: Plasma, duration: float) -> tuple[MeshField, Plasma]:
        if self.variate:
            field = self.reweighted(field, plasma)
        arrived, local = [], []
        for one in plasma:
            particles = one.particles
            carried, (velocity, after) = self.deposited(one), self.free_motion(one, duration)
            momentum = (carried[:, None] * velocity[:, : len(self.grid.cells)]).T
            unit = self.unit_of(one)
            _, flux = self.grid.drift(particles.x, velocity, 0.5 * duration, momentum, unit)
            x, deposit = self.grid.drift(particles.x, velocity, duration, carried[None], unit)
            arrived.append(replace(particles, x=x, v=after))
            local.append(torch.cat([deposit, flux]))
        summed = self.comm.sum(torch.stack(local).cpu().numpy())
        densities, current = self.restored(summed[:, 0], plasma), charge_density(summed[:, 1:], plasma)
        charge = charge_density(densities, plasma)
        require_finite(charge)
        electric, potential = field.electric.copy(), np.zeros_like(charge)
        if self.solver == "replicated" or self.comm.is_root:
            electric -= duration * self.spectrum.curl_free(np.stack(list(current), axis=-1))
            potential = self.spectrum.potential_of(electric)
        if self.solver == "root":
            self.comm.bcast_array(electric)
        return MeshField(self.grid, densities, charge, potential, electric), moved(plasma, arrived)

    def gauss_residual(self, field: MeshField) -> float:
        """max |∇·E − (ρ − ρ̄)| over the mesh, in the spectral derivative."""
        divergence = self.spectrum.divergence(field.electric)
        return float(np.abs(divergence - self.spectrum.resolved(field.charge_density)).max())

    def reweighted(self, field: MeshField, plasma: Plasma) -> MeshField:
        densities = self.densities(plasma)
        change = self.field_of(densities - field.densities, plasma)
        potential, electric = field.potential + change.potential, field.electric + change.electric
        return MeshField(self.grid, densities, charge_density(densities, plasma), potential, electric)

    def state(self, field: MeshField) -> dict[str, np.ndarray]:
        return {**super().state(field), "field/electric": field.electric}

    def resume(self, plasma: Plasma, arrays: dict[str, np.ndarray]) -> MeshField:
        field = super().resume(plasma, arrays)
        electric = self.saved(arrays, "electric", field.electric.shape)
        return replace(field, electric=electric, potential=self.spectrum.potential_of(electric))


class ConservingAmpereSolver(AmpereSolver):
    """Ampère's law with kinetic + field energy conserved to round-off for any step. E changes in the kick.

    At fixed x, particles and field are a linear oscillator: dv/dt = (q/m) E(x), dE/dt = −P J, and so dJ/dt = M E. Here
    P is the projection on curl-free fields of zero mean. M is the sum of the mass matrices of all species, each times
    q²/m. A kick is the exact flow of this oscillator. It conserves kinetic + field energy because gather and deposit
    are adjoint. A drift changes neither E nor any speed. So every composition of the two conserves energy, and has the
    same order as with other fields. Momentum is not conserved exactly: like Gauss's law (:meth:`gauss_residual`), it
    holds to the accuracy of the step and the mesh.

    The flow is summed as its Taylor series on the mesh. M is assembled once per drift. So in a kick the particles only
    deposit J and gather the mean of E over the kick.

    The mass matrix is that of G. Lapenta's energy-conserving semi-implicit method, doi:10.1016/j.jcp.2017.01.002, which
    uses the implicit midpoint rule instead of the exact flow. L. F. Ricketson, J. Hu, doi:10.1016/j.jcp.2025.114098,
    conserve energy explicitly instead, by a correction of the push of each particle.
    """

    def start(self, plasma: Plasma) -> CoupledField:
        return self._coupled(super().start(plasma), plasma)

    def resume(self, plasma: Plasma, arrays: dict[str, np.ndarray]) -> CoupledField:
        return self._coupled(super().resume(plasma, arrays), plasma)

    def drift(self, field: MeshField, plasma: Plasma, duration: float) -> tuple[CoupledField, Plasma]:
        after = moved(plasma, [self.drifted(one, duration) for one in plasma])
        return self._coupled(field, after), after

    def kick(self, field: MeshField, plasma: Plasma, duration: float) -> tuple[CoupledField, Plasma]:
        assert isinstance(field, CoupledField)
        local = []
        for one in plasma:
            momentum = one.particles.weight[:, None] * one.particles.v[:, : len(self.grid.cells)]
            local.append(self.grid.deposit(one.particles.x, momentum.T, self.unit_of(one)))
        summed = self.comm.sum(torch.stack(local).cpu().numpy())
        current = np.moveaxis(charge_density(summed, plasma), 0, -1)
        flow, potential = np.empty((2, *field.electric.shape)), np.zeros_like(field.charge_density)
        if self.solver == "replicated" or self.comm.is_root:
            flow[:] = self._flow(field, current, duration)
            potential = self.spectrum.potential_of(flow[0])
        if self.solver == "root":
            self.comm.bcast_array(flow)
        electric, mean = flow
        _, kicked = super().kick(replace(field, electric=mean), plasma, duration)
        return replace(field, electric=electric, potential=potential), kicked

    def _coupled(self, field: MeshField, plasma: Plasma) -> CoupledField:
        """The same E with the mass matrix of the present positions.

        Raises:
            SolverFailure: a position is not finite (on every rank).
        """
        local = [self.grid.mass_matrix(one.particles.x, one.particles.weight, self.unit_of(one)) for one in plasma]
        entries = self.comm.sum(torch.stack(local).cpu().numpy())
        one_everywhere = np.ones((*self.grid.cells, 1))  # shape functions add up to one, so row sums are the density
        densities = np.stack([(MassMatrix(self.grid, own) @ one_everywhere)[..., 0] for own in entries])
        charge = charge_density(densities, plasma)
        require_finite(charge)
        response = sum(one.charge * one.charge_to_mass * own for one, own in zip(plasma, entries, strict=True))
        return CoupledField(
            self.grid, densities, charge, field.potential, field.electric, MassMatrix(self.grid, response)
        )

    def _flow(self, field: CoupledField, current: np.ndarray, duration: float) -> tuple[np.ndarray, np.ndarray]:
        """E after ``duration``, and its mean over this time, [*cells, dx] each, from dE/dt = −P J and dJ/dt = M E.

        No eigenvalue of M is above its largest row sum, ω², which is the largest Σ q_a² n_a / m_a. So term k is at most
        (ω t)^k / k!. The time is divided into pieces with ω t ≤ 1. Then no term is larger than the state, and no digits
        are lost.
        """
        largest = float((field.mass_matrix @ np.ones((*self.grid.cells, 1))).max())
        angle = math.sqrt(largest) * abs(duration)
        pieces, electric = max(1, math.ceil(angle)), field.electric
        step, impulse = duration / pieces, np.zeros_like(electric)
        for _ in range(pieces):
            electric_term, current_term, mean, size = electric, current, electric, 1.0
            for k in itertools.count(1):
                electric_term, current_term = (
                    -step / k * self.spectrum.curl_free(current_term),
                    step / k * (field.mass_matrix @ electric_term),
                )
                electric, current = electric + electric_term, current + current_term
                mean = mean + electric_term / (k + 1)
                size *= angle / pieces / k
                if size < 2.0**-60:
                    break
            impulse += mean
        return electric, impulse / pieces
